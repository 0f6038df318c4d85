from covermap.clms import download_urban_atlas
from covermap.step import run
run(download_urban_atlas, snakemake)  # noqa: F821
