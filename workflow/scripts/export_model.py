from covermap.export import export_model
from covermap.step import run
run(export_model, snakemake)  # noqa: F821
