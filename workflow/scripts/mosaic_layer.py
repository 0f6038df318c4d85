from covermap.mosaic import mosaic_layer
from covermap.step import run
run(mosaic_layer, snakemake)  # noqa: F821
