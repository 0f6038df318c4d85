from covermap.orbits import download_orbit
from covermap.step import run
run(download_orbit, snakemake)  # noqa: F821
