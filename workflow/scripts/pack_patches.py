from covermap.patches import pack_patches
from covermap.step import run
run(pack_patches, snakemake)  # noqa: F821
