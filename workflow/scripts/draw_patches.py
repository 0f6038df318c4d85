from covermap.patches import draw_patches
from covermap.step import run
run(draw_patches, snakemake)  # noqa: F821
