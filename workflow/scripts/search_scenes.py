from covermap.download import search_scenes
from covermap.step import run
run(search_scenes, snakemake)  # noqa: F821
