rule rasterize_labels:
    input:
        labels=source_of("labels"),
    output:
        rasterized="results/labels/{aoi}/{block}.tif",
    log:
        "results/logs/rasterize_labels/{aoi}/{block}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        block=block_grid,
        codes=lambda wildcards: reading(CFG.aois[wildcards.aoi].labels)["codes"],
        source=lambda wildcards: CFG.aois[wildcards.aoi].labels.source,
        attribute=lambda wildcards: CFG.aois[wildcards.aoi].labels.code_attribute,
        polygons=lambda wildcards: plain(CFG.aois[wildcards.aoi].labels.polygons),
        version=3,
    script:
        "../scripts/rasterize_labels.py"


use rule rasterize_labels as rasterize_reference with:
    input:
        labels=source_of("reference"),
    output:
        rasterized="results/references/{aoi}/{block}.tif",
    log:
        "results/logs/rasterize_reference/{aoi}/{block}.log",
    params:
        block=block_grid,
        codes=lambda wildcards: reading(CFG.aois[wildcards.aoi].reference)["codes"],
        source=lambda wildcards: CFG.aois[wildcards.aoi].reference.source,
        attribute=lambda wildcards: CFG.aois[wildcards.aoi].reference.code_attribute,
        polygons=lambda wildcards: plain(CFG.aois[wildcards.aoi].reference.polygons),
        version=3,


rule weaken_labels:
    input:
        labels=source_of("labels"),
        rasterized="results/labels/{aoi}/{block}.tif",
        stable=stable_maps,
        agreeing=agreeing_map,
    output:
        weakened="results/weakened/{aoi}/{block}.tif",
    log:
        "results/logs/weaken_labels/{aoi}/{block}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        block=block_grid,
        reading=lambda wildcards: reading(CFG.aois[wildcards.aoi].labels),
        reading_agreeing=reading_agreeing,
        erode_pixels=weak_setting("erode_pixels"),
        ignored=lambda wildcards: [class_ids(wildcards)[key] for key in weak_setting("ignore")(wildcards)],
        weights=lambda wildcards: {
            class_ids(wildcards)[key]: weight for key, weight in weak_setting("class_weights")(wildcards).items()
        },
        version=2,
    script:
        "../scripts/weaken_labels.py"


rule draw_labels:
    input:
        labels=lambda wildcards: [labels_of(wildcards.aoi, block) for block in blocks_of(wildcards.aoi)],
    output:
        picture="results/labels/{aoi}.png",
    log:
        "results/logs/draw_labels/{aoi}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        blocks=aoi_blocks,
        grid=aoi_grid,
        legend=lambda wildcards: plain(
            plainly(labels_legend)(CFG.aois[wildcards.aoi].labels, CFG.aois[wildcards.aoi].language)
        ),
        version=1,
    script:
        "../scripts/draw_labels.py"


rule find_shoreline:
    input:
        labels=lambda wildcards: trusted_labels(wildcards.aoi, wildcards.block),
        s2=scenes_of_block("sentinel2", "s2"),
        quality=shifts_of("s2"),
    output:
        lowest="results/shorelines/{aoi}/{block}.ndwi.tif",
    log:
        "results/logs/find_shoreline/{aoi}/{block}.log",
    benchmark:
        "results/benchmarks/find_shoreline/{aoi}/{block}.tsv"
    conda:
        "../../envs/covermap.yaml"
    params:
        block=block_grid,
        period=aoi_setting("period"),
        water=lambda wildcards: shoreline_of(wildcards)["water"],
        masks=scene_masks,
        composite=lambda wildcards: {"season": CFG.section("composite", wildcards.aoi).season},
        steps=aoi_steps,
        version=1,
    script:
        "../scripts/find_shoreline.py"


rule mask_shoreline:
    input:
        labels=lambda wildcards: trusted_labels(wildcards.aoi, wildcards.block),
        lowest="results/shorelines/{aoi}/{block}.ndwi.tif",
    output:
        masked="results/shorelines/{aoi}/{block}.tif",
    log:
        "results/logs/mask_shoreline/{aoi}/{block}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        block=block_grid,
        water=lambda wildcards: shoreline_of(wildcards)["water"],
        threshold=lambda wildcards: shoreline_of(wildcards)["threshold"],
        version=2,
    script:
        "../scripts/mask_shoreline.py"


rule sweep_shoreline:
    input:
        lowest=blocks_in("results/shorelines/{aoi}/{block}.ndwi.tif"),
    output:
        table="results/shorelines/{aoi}.csv",
        chart="results/shorelines/{aoi}.svg",
    log:
        "results/logs/sweep_shoreline/{aoi}.log",
    conda:
        "../../envs/covermap.yaml"
    params:
        area="{aoi}",
        threshold=lambda wildcards: shoreline_of(wildcards)["threshold"],
        sweep=lambda wildcards: shoreline_of(wildcards)["sweep"],
        version=1,
    script:
        "../scripts/sweep_shoreline.py"
