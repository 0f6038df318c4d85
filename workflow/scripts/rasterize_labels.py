from covermap.labels import rasterize_labels
from covermap.step import run
run(rasterize_labels, snakemake)  # noqa: F821
