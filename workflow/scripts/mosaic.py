from covermap.mosaic import mosaic
from covermap.step import run
run(mosaic, snakemake)  # noqa: F821
