rule sen2cor:
    input:
        product="resources/scenes/{aoi}/{scene}.zip",
        gipp=lambda wildcards: CFG.section("sentinel2", wildcards.aoi).sen2cor_gipp or [],
        listing=ancient("results/scenes/{aoi}.json"),
    output:
        corrected=temp("resources/sen2cor/{aoi}/{scene}.zip"),
    log:
        "results/logs/sen2cor/{aoi}/{scene}.log",
    benchmark:
        "results/benchmarks/sen2cor/{aoi}/{scene}.tsv"
    conda:
        "../../envs/covermap.yaml"
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        item=scene_item,
        program=lambda wildcards: plain(CFG.section("sentinel2", wildcards.aoi))["sen2cor_program"],
        version=1,
    script:
        "../scripts/sen2cor.py"


rule clip_s2:
    input:
        product=optical_product,
        listing=ancient("results/scenes/{aoi}.json"),
    output:
        clipped="results/s2/{aoi}/{scene}.tif",
    log:
        "results/logs/clip_s2/{aoi}/{scene}.log",
    benchmark:
        "results/benchmarks/clip_s2/{aoi}/{scene}.tsv"
    conda:
        "../../envs/covermap.yaml"
    threads: 2
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        item=scene_item,
        grid=clip_grid,
        settings=aoi_section("sentinel2"),
        version=4,
    script:
        "../scripts/clip_s2.py"
