from covermap.report import report
from covermap.step import run
run(report, snakemake)  # noqa: F821
