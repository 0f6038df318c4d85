from covermap.calibrate import calibrate
from covermap.step import run
run(calibrate, snakemake)  # noqa: F821
