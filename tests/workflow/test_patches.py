"""A set of patches goes through the same files as tiles of areas, and what cannot be done with it is told."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import rasterio
from PIL import Image
from safetensors.numpy import load_file

from ..conftest import run_snakemake, small_settings

COLOURS = {"Forest": (20, 120, 40), "Water": (10, 40, 160)}
LEGEND = "code,class,name,colour\nForest,forest,Forest,#008C00\nWater,water,Water,#2532E4\n"
INDEX, PACKED = "results/tiles/tells/index.parquet", "results/tiles/tells/chips/patches.safetensors"


@pytest.fixture
def settings(tmp_path):
    for code, colour in COLOURS.items():
        for number in range(20):
            path = tmp_path / "chips" / code / f"{code}_{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), tuple(part + number for part in colour)).save(path)
    (tmp_path / "legend.csv").write_text(LEGEND)
    tells = {
        "network": "classifier",
        "options": {"encoder": "resnet18"},
        "train_on": ["chips"],
        "sensors": ["sentinel2"],
        "tiles": {"split": "random"},
        "training": {"epochs": 1, "batch": 8, "threads": 1, "augment": {"crop": 0.5, "rotate_deg": 10}},
    }
    settings = small_settings(tmp_path)
    settings["models"]["tells"] = tells
    return {**settings, "patches": {"chips": {"path": "chips", "legend": "legend.csv"}}}


def rules_of(folder, settings, *targets):
    done = run_snakemake(folder, settings, *targets, "-n", "--quiet", "rules")
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"^(\w+)\s+\d+$", done.stdout, re.MULTILINE)) - {"total"}


def test_patches_are_indexed_packed_and_drawn_and_follow_what_they_are_made_of(settings, tmp_path, snakemake):
    targets = (INDEX, PACKED, "results/labels/chips.png")
    snakemake(tmp_path, settings, *targets)
    table, stored = pd.read_parquet(tmp_path / INDEX), load_file(tmp_path / PACKED)
    assert len(table) == 40 and set(table.split) == {"train", "validation", "test"}
    colours = np.array([*COLOURS.values()])[stored["label"] - 1]
    assert (np.abs(stored["s2"].mean((1, 3, 4)) - colours - 10) < 12).all()
    with Image.open(tmp_path / "results/labels/chips.png") as picture:
        assert (0, 140, 0) in {colour for _, colour in picture.getcolors(2**20)}
    assert rules_of(tmp_path, settings, *targets) == set()
    (tmp_path / "legend.csv").write_text(LEGEND.replace("#008C00", "#00FF00"))
    assert rules_of(tmp_path, settings, *targets) == {"draw_patches"}
    (tmp_path / "chips" / "Forest" / "Forest_3.jpg").unlink()
    assert rules_of(tmp_path, settings, INDEX, PACKED) == {"index_patches", "pack_patches"}


def test_patches_teach_a_classifier(settings, tmp_path, snakemake):
    snakemake(tmp_path, settings, "results/models/tells/weights.safetensors")
    folder = tmp_path / "results/models/tells"
    assert {path.name for path in folder.iterdir()} >= {"weights.safetensors", "metrics.json", "log.csv", "curves.png"}
    assert 0 <= json.loads((folder / "metrics.json").read_text())["validation"]["overall"] <= 1
    assert rules_of(tmp_path, settings, "results/models/tells/weights.safetensors") == set()


def test_what_cannot_be_done_with_patches_is_told(settings, tmp_path):
    for target, words in (
        ("results/maps/demo/tells.tif", "models.tells.prediction.window_pixels is not set"),
        ("results/tiles/tells/survey.json", "results/tiles/tells/survey.json"),
    ):
        done = run_snakemake(tmp_path, settings, target)
        assert done.returncode != 0
        assert words in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr


def test_a_classifier_of_patches_maps_an_area_tile_by_tile(settings, tmp_path, copied_world, snakemake):
    for name in ("chips", "legend.csv"):
        (tmp_path / name).rename(copied_world / name)
    settings["models"]["tells"]["prediction"] = {"window_pixels": 32, "overlap": 0}
    snakemake(copied_world, settings, "results/maps/demo/tells.tif")
    with (
        rasterio.open(copied_world / "results/maps/demo/tells.tif") as raster,
        rasterio.open(copied_world / "results/maps/demo.tif") as pixels,
    ):
        classes, seen = raster.read(1), pixels.read(1) > 0
        assert raster.colormap(1)[1] == (0, 140, 0, 255)
        left = round(raster.bounds.left / 10) % 32
        top = round((10_000_000 - raster.bounds.top) / 10) % 32
    np.testing.assert_array_equal(classes > 0, seen)
    for row in range(-top % 32, classes.shape[0] - 32, 32):
        for column in range(-left % 32, classes.shape[1] - 32, 32):
            tile = classes[row : row + 32, column : column + 32]
            assert len(np.unique(tile[tile > 0])) <= 1
