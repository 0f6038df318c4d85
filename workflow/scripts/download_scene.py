from covermap.download import download_scene
from covermap.step import run
run(download_scene, snakemake)  # noqa: F821
