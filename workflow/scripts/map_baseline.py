from covermap.baseline import map_baseline
from covermap.step import run
run(map_baseline, snakemake)  # noqa: F821
