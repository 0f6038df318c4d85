

rule train:
    input:
        index=index_of,
        packed=packs_of,
        start=start_of,
    output:
        weights="results/models/{model}/weights.safetensors",
        metrics="results/models/{model}/metrics.json",
        training_log="results/models/{model}/log.csv",
        curves="results/models/{model}/curves.png",
        events="results/models/{model}/events.tfevents",
    log:
        "results/logs/train/{model}.log",
    benchmark:
        "results/benchmarks/train/{model}.tsv"
    wildcard_constraints:
        model=one_of([name for name, model in CFG.models.items() if not model.weights]),
    conda:
        "../../envs/covermap.yaml"
    threads: lambda wildcards: CFG.models[wildcards.model].training.threads
    resources:
        gpu=on_gpu,
    params:
        blocks=model_blocks,
        model=training_settings,
        classes=lambda wildcards: [entry["key"] for entry in legend_of(wildcards.model)["classes"]],
        version=6,
    script:
        "../scripts/train.py"
