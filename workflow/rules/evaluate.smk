rule map_baseline:
    input:
        index="results/tiles/{model}/index.parquet",
        packed=model_files("results/tiles/{model}/{aoi}/{block}.safetensors"),
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
        sensors=lambda wildcards: CFG.models[wildcards.model].sensors,
        tiles=lambda wildcards: plain(CFG.models[wildcards.model].tiles),
        seed=lambda wildcards: CFG.models[wildcards.model].seed,
        tested=tested,
        version=1,
    script:
        "../scripts/map_baseline.py"


rule evaluate:
    input:
        map=lambda wildcards: map_of(wildcards.aoi, wildcards.model),
        labels=blocks_in("results/labels/{aoi}/{block}.tif"),
        reference=lambda wildcards: (
            blocks_in("results/references/{aoi}/{block}.tif")(wildcards) if CFG.aois[wildcards.aoi].reference else []
        ),
        baseline="results/baselines/{aoi}/{model}.tif",
        index=lambda wildcards: f"results/tiles/{wildcards.model}/index.parquet" if tested(wildcards) else [],
    output:
        accuracy="results/accuracy/{aoi}/{model}.json",
    log:
        "results/logs/evaluate/{aoi}/{model}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        legend=compared_legend,
        tiles=lambda wildcards: plain(CFG.models[wildcards.model].tiles),
        seed=lambda wildcards: CFG.models[wildcards.model].seed,
        tested=tested,
        version=1,
    script:
        "../scripts/evaluate.py"


rule report:
    input:
        map="results/maps/{aoi}.tif",
        confidence="results/maps/{aoi}.confidence.tif",
        accuracy=accuracy_of,
        metrics=lambda wildcards: f"results/models/{default_model(wildcards)}/metrics.json",
        training_log=lambda wildcards: f"results/models/{default_model(wildcards)}/log.csv",
        survey=lambda wildcards: f"results/tiles/{default_model(wildcards)}/survey.json",
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
