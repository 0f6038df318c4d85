from covermap.survey import survey_split
from covermap.step import run
run(survey_split, snakemake)  # noqa: F821
