from covermap.weak import weaken_labels
from covermap.step import run
run(weaken_labels, snakemake)  # noqa: F821
