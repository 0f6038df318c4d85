from covermap.dem import download_dem
from covermap.step import run
run(download_dem, snakemake)  # noqa: F821
