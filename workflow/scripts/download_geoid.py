from covermap.sentinel1.geoid import download_geoid
from covermap.step import run
run(download_geoid, snakemake)  # noqa: F821
