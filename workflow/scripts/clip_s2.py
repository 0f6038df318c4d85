from covermap.sentinel2 import clip_s2
from covermap.step import run
run(clip_s2, snakemake)  # noqa: F821
