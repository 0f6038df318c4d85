

rule train:
    input:
        index="results/tiles/{model}/index.parquet",
        packed=model_files("results/tiles/{model}/{aoi}/{block}.safetensors"),
    output:
        weights="results/models/{model}/weights.safetensors",
        metrics="results/models/{model}/metrics.json",
        training_log="results/models/{model}/log.csv",
    log:
        "results/logs/train/{model}.log",
    benchmark:
        "results/benchmarks/train/{model}.tsv"
    conda:
        "../../envs/covermap.yaml"
    threads: lambda wildcards: CFG.models[wildcards.model].training.threads
    params:
        blocks=model_blocks,
        model=training_settings,
        classes=lambda wildcards: [entry["key"] for entry in legend_of(wildcards.model)["classes"]],
        version=4,
    script:
        "../scripts/train.py"
