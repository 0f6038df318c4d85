"""EuroSAT as it is published, through the workflow's own rules; its labels tell what its pixels show."""

from __future__ import annotations

import io
import zipfile
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from covermap.legend import read_legend
from covermap.loader import buffers_for, load
from covermap.store import TileStore

from ..conftest import ROOT, small_settings

LEGEND = ROOT / "resources" / "legends" / "eurosat.csv"
MODEL = {
    "network": "classifier",
    "options": {"encoder": "test_resnet"},
    "train_on": ["eurosat"],
    "sensors": ["sentinel2"],
    "tiles": {"split": "random"},
}
INDEX, PACKED = "results/tiles/classifier/index.parquet", "results/tiles/classifier/eurosat/patches.safetensors"


@pytest.fixture(scope="module")
def run(data, tmp_path_factory, snakemake):
    folder = tmp_path_factory.mktemp("eurosat")
    settings = small_settings(folder)
    settings["models"]["classifier"] = MODEL
    settings["patches"] = {"eurosat": {"path": str(data / "eurosat" / "EuroSAT.zip"), "legend": str(LEGEND)}}
    snakemake(folder, settings, INDEX, PACKED, "results/labels/eurosat.png")
    return folder


def test_every_patch_is_that_of_the_zip(run, data):
    table, codes = pd.read_parquet(run / INDEX), read_legend(LEGEND).codes
    assert len(table) == 2500 and (table[[f"class_{id}" for id in codes.values()]].sum() == 250).all()
    stores = {
        split: TileStore({("eurosat", "patches"): run / PACKED}, run / INDEX, split) for split in set(table.split)
    }
    with zipfile.ZipFile(data / "eurosat" / "EuroSAT.zip") as archive:
        for store in stores.values():
            for number in range(0, len(store), 50):
                file = store.table.file[number]
                picture = np.asarray(Image.open(io.BytesIO(archive.read(file)))).transpose(2, 0, 1)
                tile = store[number]
                np.testing.assert_array_equal(tile["s2"][0], picture)
                assert tile["label"] == codes[file.split("/")[1]]


def means(run, split):
    """Mean and deviation of each band of every patch, and its label, as the loader brings them."""
    store = TileStore({("eurosat", "patches"): run / PACKED}, run / INDEX, split, ["s2"])
    figures, labels = [], []
    for batch in load(store, np.arange(len(store)), buffers_for(store, 64, torch.device("cpu"))):
        values = batch["s2"][:, 0].float()
        figures.append(torch.cat([values.mean((2, 3)), values.std((2, 3))], 1))
        labels.append(batch["label"].clone())
    return torch.cat(figures).numpy(), torch.cat(labels).numpy()


def test_a_linear_model_of_means_tells_held_out_patches_far_above_chance(run):
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    linear.fit(*means(run, "train"))
    figures, labels = means(run, "test")
    assert len(labels) > 250 and min(Counter(labels.tolist()).values()) > 15
    assert linear.score(figures, labels) > 0.55  # chance is 0.1


def test_the_picture_has_a_row_of_every_class(run):
    with Image.open(run / "results/labels/eurosat.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**24)}
    assert {entry.rgb for entry in read_legend(LEGEND).classes} <= colours
