from covermap.label_picture import draw_labels
from covermap.step import run
run(draw_labels, snakemake)  # noqa: F821
