from covermap.predict import predict_block
from covermap.step import run
run(predict_block, snakemake)  # noqa: F821
