from covermap.tiles import index_tiles
from covermap.step import run
run(index_tiles, snakemake)  # noqa: F821
