"""Networks and forests on held-out tiles: each pixel counted once for its cell, and figures that can be paired."""

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from covermap.accuracy import confusion
from covermap.baseline import fit_forest, spread
from covermap.errors import CoverageError, ModelError, ProductError
from covermap.files import whole
from covermap.grid import Grid
from covermap.legend import Legend, LegendClass
from covermap.model_settings import Model, Tiles
from covermap.models.normalise import Normalised
from covermap.models.unet import Unet
from covermap.predict import mean_probabilities
from covermap.score import HELD_OUT, Judged, cells_of_tile, gain, score_tiles, tally, told
from covermap.store import TileStore, new_store, places_digest
from covermap.trained import build, load_weights, read_weights, save_weights

KEYS = ["water", "forest", "field"]
LEGEND = Legend(
    classes=tuple(LegendClass(id=k, key=key, name=key.title(), colour=f"#40{k}0a0") for k, key in enumerate(KEYS, 1)),
    codes={},
)
TILES = Tiles(pixels=32, cell_pixels=64, buffer_pixels=0)
BLOCK = Grid(crs="EPSG:32721", left=640 * 700, top=10_000_000 - 640 * 2000, width=256, height=64)
SPLITS = ["train", "train", "validation", "test"]  # of each 64 px of the block
MEANING = {"s2": {"band": ["B04", "B08"], "step": ["1", "2"], "level": ["L2A"]}}
SHAPE = (2, 2)
TYPICAL = np.array([[900, 2000], [400, 3500], [1500, 2200]])  # of the classes


def pack(folder, table, arrays):
    """The index and the store of one block, as the workflow makes them."""
    table = pd.DataFrame(table).assign(sampling=1.0, geometry=None)
    for k in range(1, len(KEYS) + 1):
        table[f"class_{k}"] = [int((label == k).sum()) for label in arrays["label"]]
    table.to_parquet(folder / "index.parquet")
    kinds = {key: (values.dtype, values.shape[1:]) for key, values in arrays.items()}
    about = {"meaning": json.dumps(MEANING), "dates": "{}", "places": places_digest(table)}
    with whole(folder / "b.safetensors") as part, new_store(part, len(table), kinds, about) as write:
        for number in range(len(table)):
            write(number, {key: values[number] for key, values in arrays.items()})
    return folder / "index.parquet", [folder / "b.safetensors"]


def scene(label, random):
    """Two dates of two bands that tell the class, with noise: uint16 (T, B, ...)."""
    bands = np.moveaxis(TYPICAL[label - 1], -1, 0)
    return (bands + random.normal(0, 200, (2, *bands.shape))).clip(1).astype(np.uint16)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Sixteen tiles in four cells; some pixels of them must not count."""
    random, rows, arrays = np.random.default_rng(3), [], {"s2": [], "label": [], "weight": []}
    for row, column in product((0, 32), range(0, 256, 32)):
        label = np.kron(random.integers(1, 4, (4, 4)), np.ones((8, 8), int))
        arrays["s2"].append(scene(label, random))
        label[0, :5], label[1, :5] = 0, 255
        arrays["label"].append(label.astype(np.uint8))
        arrays["weight"].append(np.where(np.arange(32) < 3, 0, 60).astype(np.uint8)[None].repeat(32, 0))
        rows.append({"aoi": "here", "block": "b", "row": row, "column": column, "split": SPLITS[column // 64]})
    return pack(tmp_path_factory.mktemp("tiles"), rows, {key: np.stack(values) for key, values in arrays.items()})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of one class each, two of them without anything to see."""
    random, rows, arrays = np.random.default_rng(4), [], {"s2": [], "label": [], "weight": []}
    for number in range(60):
        label = np.full((16, 16), number % 3 + 1)
        arrays["s2"].append(scene(label, random) * (number >= 2))
        arrays["label"].append(np.array(number % 3 + 1, np.uint8))
        arrays["weight"].append(np.array(100 * (number >= 2), np.uint8))
        split = ("train", "train", "test", "validation")[number % 4]
        rows.append(
            {"aoi": "set", "block": "patches", "row": number, "column": 0, "split": split, "file": f"{number}.jpg"}
        )
    return pack(tmp_path_factory.mktemp("images"), rows, {key: np.stack(values) for key, values in arrays.items()})


def network(path, name="unet", seed=0, classes=KEYS, training=None, **options):
    model = Model(network=name, options=options, train_on=["here"], sensors=["sentinel2"], training=training or {})
    torch.manual_seed(seed)
    net = build(model, {"s2": SHAPE}, len(classes), MEANING)
    net.get_buffer("s2_mean").fill_(1500)
    net.get_buffer("s2_std").fill_(900)
    save_weights(path, net, model, classes)
    return path


def forest_of(packed, path, grids, threads=1, blocks=(("here", "b"),)):
    fit_forest(*packed, path, list(blocks), grids, ("sentinel2",), TILES, KEYS, 1, 0, threads)
    return path


@pytest.fixture(scope="module")
def forest(tiles, tmp_path_factory):
    return forest_of(tiles, tmp_path_factory.mktemp("forest") / "forest.json", [BLOCK])


def score(packed, folder, weights, forest, grids=(BLOCK,), blocks=(("here", "b"),), legend=LEGEND):
    outputs = folder / "scores.json", folder / "confusion.png", folder / "confusion_log.png"
    score_tiles(*packed, weights, [], forest, *outputs, list(blocks), list(grids), TILES, 3, 5, 0, legend)
    return json.loads(outputs[0].read_text())


def test_a_tile_across_cells_knows_which_pixel_is_in_which():
    names, group = cells_of_tile(BLOCK.window(0, 48, 32, 32), 64)
    assert names == ["EPSG:32721 x700y-2001", "EPSG:32721 x701y-2001"]
    np.testing.assert_array_equal(group, np.arange(48, 80)[None].repeat(32, 0) // 64)


def test_pixels_count_for_their_cell_where_they_have_a_label_and_a_weight(tiles):
    store = TileStore({("here", "b"): tiles[1][0]}, tiles[0], "test")
    judged = [Judged(np.full((32, 32), 2), store[k]["label"], store[k]["weight"]) for k in range(len(store))]
    counts = tally(store, judged, {("here", "b"): BLOCK}, 64, 3, "test")
    assert list(counts) == ["EPSG:32721 x703y-2001"]
    expected = np.zeros((3, 3), int)
    for one in judged:
        for row, column in product(range(32), range(32)):
            if column >= 3 and one.label[row, column] in (1, 2, 3):
                expected[1, one.label[row, column] - 1] += 1
    np.testing.assert_array_equal(counts["EPSG:32721 x703y-2001"], expected)
    nothing = [one._replace(weight=np.zeros_like(one.weight)) for one in judged]
    with pytest.raises(CoverageError, match=r"no test tile has a labelled pixel with a weight"):
        tally(store, nothing, {("here", "b"): BLOCK}, 64, 3, "test")


def test_what_is_told_can_be_paired():
    first = {"a": np.array([[6, 1], [0, 3]]), "b": np.array([[2, 0], [2, 0]])}
    second = {"a": np.array([[6, 3], [0, 1]]), "b": np.array([[4, 0], [0, 0]])}
    one, other = (told(counts, ["x", "y"], 0, 1) for counts in (first, second))
    assert one["cells"] == {"a": [[1, 1, 6], [1, 2, 1], [2, 2, 3]], "b": [[1, 1, 2], [2, 1, 2]]}
    assert one["pixels"] == 14 and one["overall"] == pytest.approx(11 / 14)
    assert one["confusion"] == [[8, 1], [2, 3]] and one["classes"]["y"]["support"] == 4
    difference = gain(one["cells"], other["cells"], 0)
    assert difference["difference"] == 0 and difference["low"] < 0 < difference["high"]


@pytest.mark.parametrize(("name", "options"), [("unet", {"width": 8, "depth": 2}), ("fcn", {"width": 8})])
def test_networks_are_scored_by_the_mean_of_their_probabilities(tiles, forest, tmp_path, name, options):
    weights = [network(tmp_path / f"{seed}.safetensors", name, seed, **options) for seed in (0, 1)]
    result = score(tiles, tmp_path, weights, forest)
    nets: list[Normalised] = [load_weights(path, torch.device("cpu"))[0] for path in weights]
    for split in HELD_OUT:
        store = TileStore({("here", "b"): tiles[1][0]}, tiles[0], split, ["s2"])
        expected = np.zeros((3, 3), int)
        for number in range(len(store)):
            tile = store[number]
            with torch.inference_mode():
                seen = {"s2": torch.from_numpy(tile["s2"].astype(np.int32))[None]}
                best = sum(net.probabilities(seen) for net in nets).argmax(1)[0].numpy() + 1
            label = np.where(tile["weight"] > 0, tile["label"], 0)
            expected += confusion(label, best, 3)
        found = np.array(result["network"][split]["confusion"])
        assert found.sum() == expected.sum()
        assert np.abs(found - expected).sum() <= 0.02 * expected.sum()  # bfloat16, where the processor has it
        assert result["network_minus_forest"][split]["difference"] == pytest.approx(
            result["network"][split]["overall"] - result["forest"][split]["overall"]
        )
    assert result["classes"] == KEYS
    for picture in ("confusion.png", "confusion_log.png"):
        with Image.open(tmp_path / picture) as opened:
            assert opened.size[0] > 300


def test_a_network_is_scored_and_maps_in_the_precision_that_it_was_taught_in(tmp_path, monkeypatch):
    monkeypatch.setattr("covermap.devices.has_bfloat16", lambda device: True)
    seen, kinds = [], {}
    original = Unet.forward

    def watched(*given):
        seen.append(torch.is_autocast_enabled("cpu"))
        return original(*given)

    monkeypatch.setattr(Unet, "forward", watched)
    for precision in ("auto", "float32"):
        path = network(tmp_path / f"{precision}.safetensors", training={"precision": precision}, width=8, depth=2)
        kinds[precision] = load_weights(path, torch.device("cpu"))[0]
    batch = {"s2": torch.full((1, *SHAPE, 32, 32), 900)}
    mean_probabilities([kinds["auto"], kinds["float32"], kinds["auto"]], batch, torch.device("cpu"))
    assert seen == [True, False, True]


def test_the_same_weights_give_the_same_bytes(tiles, forest, tmp_path):
    weights = [network(tmp_path / "w.safetensors", width=8, depth=2)]
    outputs = [tmp_path / name for name in ("scores.json", "confusion.png", "confusion_log.png")]
    score(tiles, tmp_path, weights, forest)
    first = [path.read_bytes() for path in outputs]
    score(tiles, tmp_path, weights, forest)
    assert [path.read_bytes() for path in outputs] == first


def test_a_forest_tells_classes_apart_the_same_by_any_number_of_threads(tiles, forest, tmp_path):
    first = forest.read_bytes()
    assert forest_of(tiles, tmp_path / "forest.json", [BLOCK], threads=3).read_bytes() == first
    result = json.loads(first)
    assert result["test"]["overall"] > 0.95 and result["test"]["pixels"] == 4 * (32 * 32 - 3 * 32 - 4)
    assert list(result["validation"]["cells"]) == ["EPSG:32721 x702y-2001"]


def test_images_count_by_themselves(images, tmp_path):
    forest = forest_of(images, tmp_path / "forest.json", [], blocks=[("set", "patches")])
    result = json.loads(forest.read_text())
    assert result["test"]["overall"] == 1 and result["test"]["pixels"] == 15
    assert result["test"]["cells"]["2.jpg"] == [[3, 3, 1]]
    weights = [network(tmp_path / "w.safetensors", "classifier", encoder="resnet18")]
    scored = score(images, tmp_path, weights, forest, grids=[], blocks=[("set", "patches")])["network"]["test"]
    assert scored["pixels"] == 15 and scored["cells"].keys() == result["test"]["cells"].keys()
    assert {name: cells[0][1] for name, cells in scored["cells"].items()} == {
        f"{n}.jpg": n % 3 + 1 for n in range(2, 60, 4)
    }


def test_an_image_is_told_by_what_was_seen_of_it():
    values = np.zeros((1, 2, 2, 3), np.uint16)
    values[0, 0] = [[0, 10, 20], [30, 0, 40]]
    np.testing.assert_allclose(spread({"s2": values}), [25, np.std([10, 20, 30, 40]), 13, 25, 37, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    path = network(tmp_path / "w.safetensors", width=8, depth=2)
    header, state = read_weights(path)
    state["network.head.bias"][1] = value
    save_file(state, path, {"covermap": json.dumps(header)})
    with pytest.raises(
        ModelError, match=r"w\.safetensors cannot be used, since network\.head\.bias is not finite: rem"
    ):
        load_weights(path, torch.device("cpu"))


@pytest.mark.parametrize("fault", ["missing", "size", "option"])
def test_weights_of_another_version_are_one_sentence(tmp_path, fault):
    path = network(tmp_path / "w.safetensors", width=8, depth=2)
    header, state = read_weights(path)
    if fault == "missing":
        del state["network.head.bias"]
    if fault == "size":
        state["network.head.bias"] = torch.zeros(7)
    if fault == "option":
        header["model"]["colour"] = "red"
    save_file(state, path, {"covermap": json.dumps(header)})
    with pytest.raises(ModelError, match=r"^weights .* cannot be read .*: expected a file that rule train") as caught:
        load_weights(path, torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_weights_of_another_legend_are_refused(tiles, forest, tmp_path):
    weights = [network(tmp_path / "w.safetensors", classes=["water", "town", "field"], width=8, depth=2)]
    with pytest.raises(
        ModelError, match=r"w.safetensors has the classes water, town, field, the model's legend water, f"
    ):
        score(tiles, tmp_path, weights, forest)
    assert not (tmp_path / "scores.json").exists() and not (tmp_path / "confusion.png").exists()


WITHOUT_CELLS = {"overall": 0.5, "low": None, "high": None, "macro_f1": 0.5}


@pytest.mark.parametrize(
    "found", [{}, {"test": {}}, {"test": WITHOUT_CELLS}, {"test": {**WITHOUT_CELLS, "cells": {"a": [[1, 2]]}}}, []]
)
def test_a_broken_forest_is_an_error(tiles, forest, tmp_path, found):
    weights = [network(tmp_path / "w.safetensors", width=8, depth=2)]
    whole = json.loads(forest.read_text())
    (tmp_path / "forest.json").write_text(json.dumps({"validation": whole["test"]} | found if found != [] else found))
    with pytest.raises(ProductError, match=r"forest .*forest.json cannot be read .*remove it"):
        score(tiles, tmp_path, weights, tmp_path / "forest.json")
