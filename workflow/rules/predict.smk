rule calibrate:
    input:
        index=index_of,
        packed=packs_of,
        weights="results/models/{model}/weights.safetensors",
    output:
        calibration="results/models/{model}/calibration.json",
    log:
        "results/logs/calibrate/{model}.log",
    benchmark:
        "results/benchmarks/calibrate/{model}.tsv"
    wildcard_constraints:
        model=one_of([name for name, model in CFG.models.items() if not model.weights]),
    conda:
        "../../envs/covermap.yaml"
    threads: lambda wildcards: CFG.models[wildcards.model].training.threads
    resources:
        gpu=on_gpu,
    params:
        blocks=model_blocks,
        batch=lambda wildcards: CFG.models[wildcards.model].training.batch,
        version=1,
    script:
        "../scripts/calibrate.py"


rule predict_block:
    input:
        weights=weights_of,
        calibrations=calibrations_of,
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
        settings=windows_of,
        crf=postprocess_setting("crf"),
        bayes=postprocess_setting("bayes"),
        months=model_setting("months"),
        dates=model_setting("dates"),
        pictures=pictures_of,
        version=2,
    script:
        "../scripts/predict_block.py"


# What is made of a map, `results/maps/{mapped}.tif`: an area by its own model, or an area and another model


rule mosaic:
    input:
        predictions=of_map(blocks_in("results/predictions/{aoi}/{model}/{block}.tif")),
        listing=ancient(of_map("results/scenes/{aoi}.json")),
    output:
        map="results/maps/{mapped}.tif",
        confidence="results/maps/{mapped}.confidence.tif",
        style="results/maps/{mapped}.qml",
        confidence_style="results/maps/{mapped}.confidence.qml",
        attributes="results/maps/{mapped}.tif.aux.xml",
        table="results/maps/{mapped}.tif.vat.dbf",
    log:
        "results/logs/mosaic/{mapped}.log",
    benchmark:
        "results/benchmarks/mosaic/{mapped}.tsv"
    conda:
        "../../envs/covermap.yaml"
    params:
        grid=of_map(aoi_grid),
        blocks=of_map(aoi_blocks),
        area=of_map(aoi_area),
        legend=of_map(legend_of_map),
        period=of_map(aoi_setting("period")),
        model=of_map("{model}"),
        attribution=of_map(attribution_of),
        tidy=of_map(tidy_of),
        provenance=of_map(provenance_of),
        version=3,
    script:
        "../scripts/mosaic.py"


rule mosaic_layer:
    input:
        predictions=of_map(blocks_with_layer),
        listing=ancient(of_map("results/scenes/{aoi}.json")),
    output:
        layer_file="results/maps/{mapped}.{layer}.tif",
    log:
        "results/logs/mosaic_layer/{mapped}.{layer}.log",
    benchmark:
        "results/benchmarks/mosaic_layer/{mapped}.{layer}.tsv"
    conda:
        "../../envs/covermap.yaml"
    params:
        grid=of_map(aoi_grid),
        blocks=of_map(aoi_blocks),
        area=of_map(aoi_area),
        legend=of_map(legend_of_map),
        period=of_map(aoi_setting("period")),
        model=of_map("{model}"),
        attribution=of_map(attribution_of),
        layer="{layer}",
        provenance=of_map(provenance_of),
        version=1,
    script:
        "../scripts/mosaic_layer.py"


rule vectorize:
    input:
        map="results/maps/{mapped}.tif",
    output:
        vector="results/maps/{mapped}.gpkg",
    log:
        "results/logs/vectorize/{mapped}.log",
    benchmark:
        "results/benchmarks/vectorize/{mapped}.tsv"
    conda:
        "../../envs/covermap.yaml"
    params:
        legend=of_map(legend_of_map),
        simplify_m=of_map(postprocess_setting("simplify_m")),
        version=1,
    script:
        "../scripts/vectorize.py"


rule measure_seams:
    input:
        map="results/maps/{mapped}.tif",
        confidence="results/maps/{mapped}.confidence.tif",
        listing=of_map("results/scenes/{aoi}.json"),
    output:
        seams="results/seams/{mapped}.json",
    log:
        "results/logs/measure_seams/{mapped}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        settings=of_map(windows_of),
        block_pixels=of_map(aoi_setting("block_pixels")),
        network_pixels=of_map(halving_of),
        scenes=of_map(stacked),
        seed=of_map(split_seed),
        version=1,
    script:
        "../scripts/measure_seams.py"


rule describe_map:
    input:
        map="results/maps/{mapped}.tif",
        confidence="results/maps/{mapped}.confidence.tif",
        style="results/maps/{mapped}.qml",
        confidence_style="results/maps/{mapped}.confidence.qml",
        attributes="results/maps/{mapped}.tif.aux.xml",
        table="results/maps/{mapped}.tif.vat.dbf",
        layers=layers_of_map,
        vector=polygons_of_map,
        weights=of_map(weights_of),
        listing=of_map("results/scenes/{aoi}.json"),
    output:
        item="results/maps/{mapped}.json",
    log:
        "results/logs/describe_map/{mapped}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        grid=of_map(aoi_grid),
        area=of_map(aoi_area),
        aoi=of_map("{aoi}"),
        legend=of_map(legend_of_map),
        period=of_map(aoi_setting("period")),
        model=of_map("{model}"),
        attribution=of_map(attribution_of),
        window_pixels=of_map(lambda wildcards: CFG.models[wildcards.model].prediction.window_pixels),
        version=1,
    script:
        "../scripts/describe_map.py"


rule export_model:
    input:
        weights=weights_of,
        calibrations=calibrations_of,
    output:
        onnx="results/models/{model}/{model}.onnx",
        dlpk="results/models/{model}/{model}.dlpk",
    log:
        "results/logs/export_model/{model}.log",
    benchmark:
        "results/benchmarks/export_model/{model}.tsv"
    conda:
        "../../envs/export.yaml"
    threads: lambda wildcards: CFG.models[wildcards.model].prediction.threads
    params:
        settings=windows_of,
        legend=lambda wildcards: legend_of(wildcards.model),
        pixel_m=pixel_of,
        attribution=lambda wildcards: attribution_of_labels(maps_of_labels(wildcards.model)),
        version=1,
    script:
        "../scripts/export_model.py"
