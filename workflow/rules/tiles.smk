rule index_tiles:
    input:
        labels=lambda wildcards: [labels_of(aoi, block) for aoi, block in model_blocks(wildcards)],
        stacks=lambda wildcards: (
            model_files("results/stacks/{aoi}/{block}.zarr.zip")(wildcards)
            if clouds_matter(CFG.models[wildcards.model])
            else []
        ),
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
        version=2,
    script:
        "../scripts/index_tiles.py"


rule pack_tiles:
    input:
        index="results/tiles/{model}/index.parquet",
        stack="results/stacks/{aoi}/{block}.zarr.zip",
        labels=lambda wildcards: labels_of(wildcards.aoi, wildcards.block),
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
