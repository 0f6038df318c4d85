from covermap.stac_item import describe_map
from covermap.step import run
run(describe_map, snakemake)  # noqa: F821
