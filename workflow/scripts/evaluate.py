from covermap.accuracy import evaluate
from covermap.step import run
run(evaluate, snakemake)  # noqa: F821
