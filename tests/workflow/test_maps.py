"""What is made of a map, and what an edit makes again."""

import json
import re
import shutil
from copy import deepcopy

import geopandas
import numpy as np
import pytest
import rasterio

from ..conftest import run_snakemake, small_settings

MAPS = "results/maps/demo"
BESIDE = [f"{MAPS}.{name}" for name in ("margin.tif", "probabilities.tif", "gpkg", "json")]
TARGETS = [f"{MAPS}.tif", *BESIDE, "results/seams/demo.json"]
AFTER_THE_MAP = {"vectorize", "measure_seams", "describe_map"}
LAYERS = {"mosaic_layer", "mosaic", *AFTER_THE_MAP}


def with_layers(folder):
    settings = small_settings(folder)
    settings["models"]["unet_demo"] |= {
        "prediction": {"window_pixels": 64, "batch": 8, "layers": ["margin", "probabilities"]},
        "postprocess": {
            "crf": {"iterations": 2},
            "bayes": {},
            "majority_pixels": 3,
            "min_unit_ha": 0.1,
            "polygons": True,
        },
    }
    return settings


@pytest.fixture(scope="module")
def finished(small_world, tmp_path_factory, snakemake):
    """A copy of the small world with all that lies beside its map."""
    folder = tmp_path_factory.mktemp("maps") / "world"
    shutil.copytree(small_world, folder, symlinks=True)
    snakemake(folder, with_layers(folder), *TARGETS)
    return folder


def test_layers_agree_with_the_map(finished):
    def read(name, bands=1):
        with rasterio.open(finished / f"{MAPS}.{name}") as raster:
            return raster.read(bands)

    classes, confidence, margin = read("tif"), read("confidence.tif"), read("margin.tif")
    shares = read("probabilities.tif", None)
    there = classes > 0
    for layer in (confidence, margin, *shares):
        np.testing.assert_array_equal(layer != 255, there)
    best, second = np.sort(shares[:, there].astype(int), 0)[:-3:-1]
    assert np.abs(best * 0.4 - confidence[there]).max() <= 1  # steps of 0.4 % beside whole ones
    assert np.abs((best - second) * 0.4 - margin[there]).max() <= 1.5
    untouched = shares.argmax(0) + 1 == classes
    assert 0.8 < untouched[there].mean() < 1  # smaller patches have joined their neighbours
    table = geopandas.read_file(finished / f"{MAPS}.gpkg")
    assert table.hectares.sum() == pytest.approx(there.sum() / 100, rel=0.01)


def test_seams_are_measured_along_windows_and_blocks(finished):
    lines = json.loads((finished / "results/seams/demo.json").read_text())["lines"]
    assert lines["windows"] and lines["blocks"] and lines["blocks"]["class"]["ratio"] < 2


@pytest.mark.parametrize(
    ("path", "value", "reruns"),
    [
        ("prediction/threads", 2, set()),
        ("postprocess/simplify_m", 50, {"vectorize", "describe_map"}),
        ("postprocess/min_unit_ha", 0.2, LAYERS),  # the tags of all layers tell of it
        ("postprocess/bayes", None, {"predict_block", *LAYERS}),
        ("prediction/calibrate", False, {"predict_block", *LAYERS}),
    ],
)
def test_an_edit_makes_again_what_depends_on_it(finished, path, value, reruns):
    settings = deepcopy(with_layers(finished))
    *parents, last = path.split("/")
    place = settings["models"]["unet_demo"]
    for name in parents:
        place = place[name]
    place[last] = value
    done = run_snakemake(finished, settings, *TARGETS, "-n", "--quiet", "rules")
    assert set(re.findall(r"^(\w+)\s+\d+$", done.stdout, re.MULTILINE)) - {"total"} == reruns, done.stdout


def test_a_layer_that_the_predictions_lack_is_told_before_anything_runs(small_world):
    done = run_snakemake(small_world, small_settings(small_world), f"{MAPS}.margin.tif", "-n")
    assert done.returncode and "prediction.layers is empty, which lacks margin: add it" in done.stdout + done.stderr
