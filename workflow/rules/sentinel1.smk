rule process_s1:
    input:
        product="resources/scenes/{aoi}/{scene}.zip",
        dem=dem_of_scene,
        geoid=geoid_of,
        orbit=orbit_of,
        listing=ancient("results/scenes/{aoi}.json"),
    output:
        processed="results/s1/{aoi}/{scene}.tif",
    log:
        "results/logs/process_s1/{aoi}/{scene}.log",
    benchmark:
        "results/benchmarks/process_s1/{aoi}/{scene}.tsv"
    conda:
        "../../envs/covermap.yaml"
    threads: 2
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        item=scene_item,
        grid=aoi_grid,
        settings=aoi_section("sentinel1"),
        version=2,
    script:
        "../scripts/process_s1.py"
