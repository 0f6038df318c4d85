rule index_patches:
    input:
        source=patches_source,
        lists=split_lists,
    output:
        index="results/tiles/{model}/index.parquet",
    log:
        "results/logs/index_patches/{model}.log",
    benchmark:
        "results/benchmarks/index_patches/{model}.tsv"
    wildcard_constraints:
        model=with_own_tiles(CFG.classifiers),
    conda:
        "../../envs/covermap.yaml"
    params:
        name=lambda wildcards: CFG.models[wildcards.model].train_on[0],
        codes=lambda wildcards: patches_legend(wildcards)["codes"],
        images=images_of,
        tiles=model_setting("tiles"),
        seed=split_seed,
        stamp=lambda wildcards: stamp([patches_source(wildcards)]),
        version=2,
    script:
        "../scripts/index_patches.py"


rule pack_patches:
    input:
        index="results/tiles/{model}/index.parquet",
        source=patches_source,
    output:
        packed="results/tiles/{model}/{patches}/patches.safetensors",
    log:
        "results/logs/pack_patches/{model}/{patches}.log",
    benchmark:
        "results/benchmarks/pack_patches/{model}/{patches}.tsv"
    wildcard_constraints:
        model=with_own_tiles(CFG.classifiers),
    conda:
        "../../envs/covermap.yaml"
    params:
        name="{patches}",
        codes=lambda wildcards: patches_legend(wildcards)["codes"],
        images=images_of,
        version=2,
    script:
        "../scripts/pack_patches.py"


rule draw_patches:
    input:
        source=patches_source,
    output:
        picture="results/labels/{patches}.png",
    log:
        "results/logs/draw_patches/{patches}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        legend=patches_legend,
        images=images_of,
        stamp=lambda wildcards: stamp([patches_source(wildcards)]),
        version=2,
    script:
        "../scripts/draw_patches.py"
