rule reference_block:
    input:
        s1=scenes_of_block("sentinel1", "s1"),
        s2=scenes_of_block("sentinel2", "s2"),
    output:
        reference="results/registration/{aoi}/{block}.tif",
    log:
        "results/logs/reference_block/{aoi}/{block}.log",
    benchmark:
        "results/benchmarks/reference_block/{aoi}/{block}.tsv"
    conda:
        "../../envs/covermap.yaml"
    params:
        block=block_grid,
        period=aoi_setting("period"),
        bands=lambda wildcards: CFG.section("sentinel2", wildcards.aoi).bands,
        polarisations=lambda wildcards: CFG.section("sentinel1", wildcards.aoi).polarisations,
        masks=clear_masks,
        version=2,
    script:
        "../scripts/reference_block.py"


rule check_scene:
    input:
        scene=processed,
        reference=reference_of,
        listing=ancient("results/scenes/{aoi}.json"),
    output:
        quality="results/quality/{aoi}/{scene}.json",
        quicklook="results/quality/{aoi}/{scene}.png",
    log:
        "results/logs/check_scene/{aoi}/{scene}.log",
    benchmark:
        "results/benchmarks/check_scene/{aoi}/{scene}.tsv"
    conda:
        "../../envs/covermap.yaml"
    params:
        item=scene_item,
        grid=aoi_grid,
        bands=lambda wildcards: CFG.section("sentinel2", wildcards.aoi).bands,
        polarisations=lambda wildcards: CFG.section("sentinel1", wildcards.aoi).polarisations,
        masks=scene_masks,
        settings=registration_of,
        version=2,
    script:
        "../scripts/check_scene.py"
