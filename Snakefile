from snakemake.utils import min_version

min_version("9.0")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/acquire.smk"
include: "workflow/rules/sentinel1.smk"
include: "workflow/rules/sentinel2.smk"
include: "workflow/rules/labels.smk"
include: "workflow/rules/stack.smk"
include: "workflow/rules/quality.smk"
include: "workflow/rules/tiles.smk"
include: "workflow/rules/patches.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/evaluate.smk"


onstart:
    check_accounts()


rule all:
    default_target: True
    input:
        expand("results/maps/{aoi}.tif", aoi=CFG.targets),
        expand("results/maps/{aoi}.json", aoi=CFG.targets),
        expand("results/reports/{aoi}.html", aoi=CFG.targets),


localrules:
    all,
