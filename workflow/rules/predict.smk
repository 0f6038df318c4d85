rule predict_block:
    input:
        weights=weights_of,
        stacks=stacks_near,
    output:
        prediction="results/predictions/{aoi}/{model}/{block}.tif",
    log:
        "results/logs/predict_block/{aoi}/{model}/{block}.log",
    benchmark:
        "results/benchmarks/predict_block/{aoi}/{model}/{block}.tsv"
    conda:
        "../../envs/covermap.yaml"
    threads: lambda wildcards: CFG.models[wildcards.model].prediction.threads
    resources:
        gpu=on_gpu,
    params:
        block=block_grid,
        blocks=lambda wildcards: [
            plain(blocks_of(wildcards.aoi)[name]) for name in neighbours_of(wildcards.aoi, wildcards.block)
        ],
        settings=model_setting("prediction"),
        months=model_setting("months"),
        dates=model_setting("dates"),
        version=1,
    script:
        "../scripts/predict_block.py"


rule mosaic:
    input:
        predictions=blocks_in("results/predictions/{aoi}/{model}/{block}.tif"),
        listing=ancient("results/scenes/{aoi}.json"),
    output:
        map="results/maps/{aoi}/{model}.tif",
        confidence="results/maps/{aoi}/{model}.confidence.tif",
        style="results/maps/{aoi}/{model}.qml",
        attributes="results/maps/{aoi}/{model}.tif.aux.xml",
    log:
        "results/logs/mosaic/{aoi}/{model}.log",
    benchmark:
        "results/benchmarks/mosaic/{aoi}/{model}.tsv"
    conda:
        "../../envs/covermap.yaml"
    params:
        grid=aoi_grid,
        blocks=aoi_blocks,
        area=aoi_area,
        legend=lambda wildcards: legend_of(wildcards.model, wildcards.aoi),
        period=aoi_setting("period"),
        model="{model}",
        attribution=attribution_of,
        version=2,
    script:
        "../scripts/mosaic.py"


use rule mosaic as mosaic_default with:
    input:
        predictions=lambda wildcards: expand(
            "results/predictions/{aoi}/{model}/{block}.tif",
            aoi=wildcards.aoi,
            model=default_model(wildcards),
            block=blocks_of(wildcards.aoi),
        ),
        listing=ancient("results/scenes/{aoi}.json"),
    output:
        map="results/maps/{aoi}.tif",
        confidence="results/maps/{aoi}.confidence.tif",
        style="results/maps/{aoi}.qml",
        attributes="results/maps/{aoi}.tif.aux.xml",
    log:
        "results/logs/mosaic_default/{aoi}.log",
    benchmark:
        "results/benchmarks/mosaic_default/{aoi}.tsv"
    params:
        grid=aoi_grid,
        blocks=aoi_blocks,
        area=aoi_area,
        legend=lambda wildcards: legend_of(default_model(wildcards), wildcards.aoi),
        period=aoi_setting("period"),
        model=default_model,
        attribution=attribution_of,
        version=2,
