from covermap.shoreline import sweep_shoreline
from covermap.step import run
run(sweep_shoreline, snakemake)  # noqa: F821
