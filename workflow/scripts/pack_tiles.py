from covermap.store import pack_tiles
from covermap.step import run
run(pack_tiles, snakemake)  # noqa: F821
