from covermap.baseline import fit_forest
from covermap.step import run
run(fit_forest, snakemake)  # noqa: F821
