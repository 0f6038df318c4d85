from covermap.score import score_tiles
from covermap.step import run
run(score_tiles, snakemake)  # noqa: F821
