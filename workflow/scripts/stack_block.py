from covermap.stack import stack_block
from covermap.step import run
run(stack_block, snakemake)  # noqa: F821
