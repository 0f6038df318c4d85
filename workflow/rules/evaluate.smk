rule map_baseline:
    input:
        index=index_of,
        packed=packs_of,
        stacks=blocks_in("results/stacks/{aoi}/{block}.zarr.zip"),
    output:
        baseline="results/baselines/{aoi}/{model}.tif",
    log:
        "results/logs/map_baseline/{aoi}/{model}.log",
    benchmark:
        "results/benchmarks/map_baseline/{aoi}/{model}.tsv"
    conda:
        "../../envs/covermap.yaml"
    threads: 2
    params:
        packs=model_blocks,
        grid=aoi_grid,
        blocks=aoi_blocks,
        sensors=model_setting("sensors"),
        tiles=model_setting("tiles"),
        seed=split_seed,
        tested=tested,
        months=model_setting("months"),
        dates=model_setting("dates"),
        version=1,
    script:
        "../scripts/map_baseline.py"


rule fit_forest:
    input:
        index=index_of,
        packed=packs_of,
    output:
        forest="results/models/{model}/forest.json",
    log:
        "results/logs/fit_forest/{model}.log",
    benchmark:
        "results/benchmarks/fit_forest/{model}.tsv"
    conda:
        "../../envs/covermap.yaml"
    threads: 2
    params:
        blocks=model_blocks,
        grids=grids_of_tiles,
        sensors=model_setting("sensors"),
        tiles=model_setting("tiles"),
        classes=lambda wildcards: [entry["key"] for entry in legend_of(wildcards.model)["classes"]],
        min_pixels=lambda wildcards: CFG.models[wildcards.model].min_pixels,
        seed=split_seed,
        version=1,
    script:
        "../scripts/fit_forest.py"


rule score_tiles:
    input:
        index=index_of,
        packed=packs_of,
        weights=weights_of,
        calibrations=calibrations_of,
        forest="results/models/{model}/forest.json",
    output:
        scores="results/models/{model}/scores.json",
        confusion="results/models/{model}/confusion.png",
        confusion_log="results/models/{model}/confusion_log.png",
    log:
        "results/logs/score_tiles/{model}.log",
    benchmark:
        "results/benchmarks/score_tiles/{model}.tsv"
    conda:
        "../../envs/covermap.yaml"
    threads: lambda wildcards: CFG.models[wildcards.model].training.threads
    resources:
        gpu=on_gpu,
    params:
        blocks=model_blocks,
        grids=grids_of_tiles,
        tiles=model_setting("tiles"),
        batch=lambda wildcards: CFG.models[wildcards.model].training.batch,
        min_pixels=lambda wildcards: CFG.models[wildcards.model].min_pixels,
        seed=split_seed,
        legend=lambda wildcards: legend_of(wildcards.model),
        version=2,
    script:
        "../scripts/score_tiles.py"


rule evaluate:
    input:
        map=lambda wildcards: map_of(wildcards.aoi, wildcards.model),
        labels=blocks_in("results/labels/{aoi}/{block}.tif"),
        reference=lambda wildcards: (
            blocks_in("results/references/{aoi}/{block}.tif")(wildcards) if CFG.aois[wildcards.aoi].reference else []
        ),
        baseline="results/baselines/{aoi}/{model}.tif",
        index=lambda wildcards: index_of(wildcards) if tested(wildcards) else [],
    output:
        accuracy="results/accuracy/{aoi}/{model}.json",
    log:
        "results/logs/evaluate/{aoi}/{model}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        legend=compared_legend,
        tiles=model_setting("tiles"),
        seed=split_seed,
        tested=tested,
        version=1,
    script:
        "../scripts/evaluate.py"


rule report:
    input:
        map="results/maps/{aoi}.tif",
        confidence="results/maps/{aoi}.confidence.tif",
        accuracy=accuracy_of,
        metrics=reported("results/models/{model}/metrics.json"),
        training_log=reported("results/models/{model}/log.csv"),
        survey=lambda wildcards: f"results/tiles/{tiles_of(default_model(wildcards))}/survey.json",
        listing="results/scenes/{aoi}.json",
        stacks=blocks_in("results/stacks/{aoi}/{block}.zarr.zip"),
        quality=checked(".json"),
        quicklooks=checked(".png"),
        shoreline=shoreline_file("results/shorelines/{aoi}.csv"),
        shoreline_chart=shoreline_file("results/shorelines/{aoi}.svg"),
    output:
        report="results/reports/{aoi}.html",
    log:
        "results/logs/report/{aoi}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        legend=lambda wildcards: legend_of(default_model(wildcards), wildcards.aoi),
        area="{aoi}",
        period=aoi_setting("period"),
        model=default_model,
        notes=notes_of,
        unused=unused_of,
        registration=lambda wildcards: CFG.section("registration", wildcards.aoi).mode,
        masks=aoi_section("masks"),
        threshold=shoreline_threshold,
        version=5,
    script:
        "../scripts/report.py"
