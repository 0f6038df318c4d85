from covermap.vectorize import vectorize
from covermap.step import run
run(vectorize, snakemake)  # noqa: F821
