from covermap.seams import measure_seams
from covermap.step import run
run(measure_seams, snakemake)  # noqa: F821
