rule stack_block:
    input:
        s1=scenes_of_block("sentinel1", "s1"),
        s2=scenes_of_block("sentinel2", "s2"),
        dem=dem_of_layers,
        quality=shifts_of("s1", "s2"),
    output:
        stack="results/stacks/{aoi}/{block}.zarr.zip",
    log:
        "results/logs/stack_block/{aoi}/{block}.log",
    benchmark:
        "results/benchmarks/stack_block/{aoi}/{block}.tsv"
    conda:
        "../../envs/covermap.yaml"
    resources:
        mem_mb=3000,
        runtime=60,
    params:
        block=block_grid,
        period=aoi_setting("period"),
        sensors=aoi_setting("sensors"),
        bands=lambda wildcards: CFG.section("sentinel2", wildcards.aoi).bands,
        polarisations=lambda wildcards: CFG.section("sentinel1", wildcards.aoi).polarisations,
        masks=aoi_section("masks"),
        composite=aoi_section("composite"),
        steps=aoi_steps,
        version=5,
    script:
        "../scripts/stack_block.py"
