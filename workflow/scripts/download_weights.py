from covermap.weights import download_weights
from covermap.step import run
run(download_weights, snakemake)  # noqa: F821
