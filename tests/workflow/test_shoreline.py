"""A shoreline that is asked for reaches the sweep and the tiles that training reads, and nothing that is compared."""

import csv
import re

import numpy as np
import rasterio
from safetensors.numpy import load_file

from ..conftest import run_snakemake, small_settings


def test_training_reads_the_masked_labels(copied_world, snakemake):
    settings = small_settings(copied_world)
    settings["aois"]["demo"]["labels"]["shoreline"] = {"water": ["water"], "sweep": [-0.5, 0.0, 0.5]}
    blocks = sorted(path.stem for path in (copied_world / "results/labels/demo").glob("*.tif"))
    packed = [f"results/tiles/unet_demo/demo/{block}.safetensors" for block in blocks]
    snakemake(copied_world, settings, "results/shorelines/demo.csv", *packed)
    excluded = {"labels": 0, "shorelines": 0}
    for folder in excluded:
        for block in blocks:
            with rasterio.open(copied_world / f"results/{folder}/demo/{block}.tif") as raster:
                excluded[folder] += int((raster.read(1) == 255).sum())
    assert excluded["labels"] == 0 < excluded["shorelines"]
    tiles = [load_file(copied_world / path) for path in packed]
    labels, weights = (np.concatenate([tile[key] for tile in tiles]) for key in ("label", "weight"))
    assert (labels == 255).any()
    assert not weights[labels == 255].any()
    with open(copied_world / "results/shorelines/demo.csv", newline="") as file:
        rows = {float(row["threshold"]): float(row["excluded_ha"]) for row in csv.DictReader(file)}
    assert sorted(rows) == [-0.5, 0, 0.5]
    assert rows[0] == round(excluded["shorelines"] / 100, 2)
    assert (copied_world / "results/shorelines/demo.svg").exists()
    settings["aois"]["demo"]["labels"]["shoreline"]["sweep"] = [-0.1, 0.1]
    done = run_snakemake(copied_world, settings, "results/shorelines/demo.csv", *packed, "-n", "--quiet", "rules")
    assert set(re.findall(r"^(\w+)\s+\d+$", done.stdout, re.MULTILINE)) - {"total"} == {"sweep_shoreline"}
    settings["aois"]["demo"]["masks"]["unmask_above"] = 95
    done = run_snakemake(copied_world, settings, "results/shorelines/demo.csv", "-n", "--quiet", "rules")
    assert set(re.findall(r"^(\w+)\s+\d+$", done.stdout, re.MULTILINE)) - {"total"} == {"sweep_shoreline"}


def test_a_sweep_of_an_area_without_a_shoreline_is_explained(copied_world):
    done = run_snakemake(copied_world, small_settings(copied_world), "results/shorelines/demo.csv")
    assert done.returncode != 0
    assert "covermap: aois.demo.labels.shoreline is not set" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
