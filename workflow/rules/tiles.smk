rule index_tiles:
    input:
        labels=lambda wildcards: [labels_of(aoi, block) for aoi, block in model_blocks(wildcards)],
        stacks=lambda wildcards: (
            model_files("results/stacks/{aoi}/{block}.zarr.zip")(wildcards)
            if stacks_matter(CFG.models[wildcards.model])
            else []
        ),
    output:
        index="results/tiles/{model}/index.parquet",
    log:
        "results/logs/index_tiles/{model}.log",
    wildcard_constraints:
        model=with_own_tiles(CFG.mappers),
    conda:
        "../../envs/covermap.yaml"
    params:
        blocks=model_grids,
        tiles=model_setting("tiles"),
        seed=split_seed,
        classes=lambda wildcards: [entry["key"] for entry in legend_of(wildcards.model)["classes"]],
        sensors=model_setting("sensors"),
        clouds=lambda wildcards: clouds_matter(CFG.models[wildcards.model]),
        test_on=held_out_whole,
        margin_pixels=margin_of,
        months=model_setting("months"),
        dates=model_setting("dates"),
        version=3,
    script:
        "../scripts/index_tiles.py"


rule survey_split:
    input:
        index="results/tiles/{model}/index.parquet",
        labels=lambda wildcards: [labels_of(aoi, block) for aoi, block in model_blocks(wildcards)],
        packed=lambda wildcards: (
            model_files("results/tiles/{model}/{aoi}/{block}.safetensors")(wildcards)
            if CFG.models[wildcards.model].test_on
            else []
        ),
    output:
        survey="results/tiles/{model}/survey.json",
    log:
        "results/logs/survey_split/{model}.log",
    wildcard_constraints:
        model=with_own_tiles(CFG.mappers),
    conda:
        "../../envs/covermap.yaml"
    params:
        blocks=model_grids,
        tiles=model_setting("tiles"),
        classes=lambda wildcards: [entry["key"] for entry in legend_of(wildcards.model)["classes"]],
        sensors=model_setting("sensors"),
        test_on=held_out_whole,
        margin_pixels=margin_of,
        version=2,
    script:
        "../scripts/survey_split.py"


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
    wildcard_constraints:
        model=with_own_tiles(CFG.mappers),
    conda:
        "../../envs/covermap.yaml"
    params:
        aoi="{aoi}",
        name="{block}",
        pixels=lambda wildcards: CFG.models[wildcards.model].tiles.pixels,
        months=model_setting("months"),
        dates=model_setting("dates"),
        version=4,
    script:
        "../scripts/pack_tiles.py"
