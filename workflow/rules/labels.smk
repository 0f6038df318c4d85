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
        codes=lambda wildcards: plainly(read_legend)(CFG.aois[wildcards.aoi].labels.legend).codes,
        source=lambda wildcards: CFG.aois[wildcards.aoi].labels.source,
        attribute=lambda wildcards: CFG.aois[wildcards.aoi].labels.attribute,
        version=1,
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
        codes=lambda wildcards: plainly(read_legend)(CFG.aois[wildcards.aoi].reference.legend).codes,
        source=lambda wildcards: CFG.aois[wildcards.aoi].reference.source,
        attribute=lambda wildcards: CFG.aois[wildcards.aoi].reference.attribute,
        version=1,
