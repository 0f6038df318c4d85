rule index_tiles:
    input:
        labels=model_files("results/labels/{aoi}/{block}.tif"),
    output:
        index="results/tiles/{model}/index.parquet",
    log:
        "results/logs/index_tiles/{model}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        blocks=lambda wildcards: [(aoi, name, plain(blocks_of(aoi)[name])) for aoi, name in model_blocks(wildcards)],
        tiles=lambda wildcards: plain(CFG.models[wildcards.model].tiles),
        seed=lambda wildcards: CFG.models[wildcards.model].seed,
        classes=lambda wildcards: len(legend_of(wildcards.model)["classes"]),
        version=1,
    script:
        "../scripts/index_tiles.py"


rule pack_tiles:
    input:
        index="results/tiles/{model}/index.parquet",
        stack="results/stacks/{aoi}/{block}.zarr.zip",
        labels="results/labels/{aoi}/{block}.tif",
    output:
        packed="results/tiles/{model}/{aoi}/{block}.safetensors",
    log:
        "results/logs/pack_tiles/{model}/{aoi}/{block}.log",
    benchmark:
        "results/benchmarks/pack_tiles/{model}/{aoi}/{block}.tsv"
    conda:
        "../../envs/covermap.yaml"
    params:
        aoi="{aoi}",
        name="{block}",
        tiles=lambda wildcards: plain(CFG.models[wildcards.model].tiles),
        version=2,
    script:
        "../scripts/pack_tiles.py"
