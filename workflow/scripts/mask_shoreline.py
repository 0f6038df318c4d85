from covermap.shoreline import mask_shoreline
from covermap.step import run
run(mask_shoreline, snakemake)  # noqa: F821
