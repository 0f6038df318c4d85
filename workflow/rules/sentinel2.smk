rule clip_s2:
    input:
        product="resources/scenes/{aoi}/{scene}.zip",
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
