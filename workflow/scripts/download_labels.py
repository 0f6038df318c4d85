from covermap.labels import download_labels
from covermap.step import run
run(download_labels, snakemake)  # noqa: F821
