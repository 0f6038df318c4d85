from covermap.sen2cor import sen2cor
from covermap.step import run
run(sen2cor, snakemake)  # noqa: F821
