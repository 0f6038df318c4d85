from covermap.plan import plan
from covermap.step import run
run(plan, snakemake)  # noqa: F821
