from covermap.train import train
from covermap.step import run
run(train, snakemake)  # noqa: F821
