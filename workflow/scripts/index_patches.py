from covermap.patches import index_patches
from covermap.step import run
run(index_patches, snakemake)  # noqa: F821
