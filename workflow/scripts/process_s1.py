from covermap.sentinel1 import process_s1
from covermap.step import run
run(process_s1, snakemake)  # noqa: F821
