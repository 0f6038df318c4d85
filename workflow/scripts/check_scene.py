from covermap.quality import check_scene
from covermap.step import run
run(check_scene, snakemake)  # noqa: F821
