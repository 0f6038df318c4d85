from covermap.simulator import simulate_demo
from covermap.step import run
run(simulate_demo, snakemake)  # noqa: F821
