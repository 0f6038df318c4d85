from covermap.quality import reference_block
from covermap.step import run
run(reference_block, snakemake)  # noqa: F821
