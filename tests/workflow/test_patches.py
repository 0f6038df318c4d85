"""A set of patches goes through the same files as tiles of areas, and what cannot be done with it is told."""

import json
import re

import numpy as np
import pandas as pd
import pytest
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
        (
            "results/maps/demo/tells.tif",
            "covermap: models.tells learns from patches and gives one class to a whole patch, so it maps no area",
        ),
        ("results/tiles/tells/survey.json", "results/tiles/tells/survey.json"),
    ):
        done = run_snakemake(tmp_path, settings, target)
        assert done.returncode != 0
        assert words in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr
    settings["patches"]["chips"]["path"] = "elsewhere"
    done = run_snakemake(tmp_path, settings, INDEX)
    assert done.returncode != 0
    assert "covermap: the patches' path is elsewhere, which does not exist" in done.stdout + done.stderr
