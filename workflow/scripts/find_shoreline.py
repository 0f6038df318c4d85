from covermap.shoreline import find_shoreline
from covermap.step import run
run(find_shoreline, snakemake)  # noqa: F821
