"""Training that resumes exactly, and maps on which blocks do not show."""

import json
import multiprocessing
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from shapely.geometry import box, mapping

import covermap.baseline
import covermap.predict
import covermap.train
from covermap.area_settings import Composite, Masks, Period
from covermap.baseline import map_baseline
from covermap.errors import CoverageError, ModelError
from covermap.grid import project
from covermap.legend import Legend, LegendClass
from covermap.model_settings import Model, Prediction, Tiles
from covermap.models.unet import Unet
from covermap.mosaic import mosaic
from covermap.predict import CONFIDENCE_NODATA, predict_block
from covermap.prepare import labelled_pixels, prepare
from covermap.raster import read_window, write_raster
from covermap.recipe import learning_rate
from covermap.stack import stack_block
from covermap.store import TileStore, new_store, pack_tiles, places_digest
from covermap.tiles import index_tiles
from covermap.train import train
from covermap.trained import build

from .conftest import BANDS, PERIOD, stack_of

PREDICTION = Prediction(window_pixels=64, batch=3)
TILES = Tiles(pixels=32, stride_pixels=32, cell_pixels=64, buffer_pixels=0, validation=0.25, test=0.25)
CLASSES = ["water", "forest", "field"]
MAP_FILES = ("map.tif", "confidence.tif", "map.qml", "confidence.qml", "map.tif.aux.xml", "map.tif.vat.dbf")
LEGEND = Legend(
    classes=tuple(
        LegendClass(id=i + 1, key=key, name=key.title(), colour=f"#{i}0{i}080") for i, key in enumerate(CLASSES)
    ),
    codes={},
)


def settings(**training):
    return Model(
        network="unet",
        options={"width": 8, "depth": 2},
        train_on=["here"],
        tiles=TILES,
        training={"epochs": 4, "batch": 4, "learning_rate": 1e-2, "threads": 1, **training},
    )


@pytest.fixture(scope="module")
def tiles(area, tmp_path_factory):
    return pack(area, area.stacks, tmp_path_factory.mktemp("tiles"))


def pack(area, stacks, folder):
    index = folder / "index.parquet"
    blocks = [("here", name, block) for name, block in area.blocks.items()]
    index_tiles(list(area.labels.values()), index, blocks, TILES, 1, ["a", "b", "c"])
    packed = [folder / f"{name}.safetensors" for name in area.blocks]
    for name, path in zip(area.blocks, packed, strict=True):
        pack_tiles(index, stacks[name], area.labels[name], path, "here", name, TILES.pixels)
    return index, packed, [("here", name) for name in area.blocks]


def run(tiles, folder, model):
    folder.mkdir(exist_ok=True)
    names = "weights.safetensors", "metrics.json", "log.csv", "curves.png", "events.tfevents"
    outputs = [folder / name for name in names]
    train(tiles[0], tiles[1], *outputs, tiles[2], model, CLASSES)
    return outputs[:3]


@pytest.fixture(scope="module")
def trained(tiles, tmp_path_factory):
    return run(tiles, tmp_path_factory.mktemp("trained"), settings())


@pytest.fixture(scope="module")
def rich(area, tmp_path_factory):
    """Stacks with two months of Sentinel-2, the second filled in from the first, and terrain that tells the classes.

    Sentinel-2 sees nothing but a flat grey, and nothing at all in a corner.
    """
    folder = tmp_path_factory.mktemp("rich")
    dem, grey = folder / "dem.tif", folder / "grey.tif"
    write_raster(dem, 100 * area.classes[None].astype(np.int16), area.grid, nodata=-1)
    scene = np.full((3, *area.grid.shape), 1000, np.uint16)
    scene[-1] = 4  # SCL: vegetation
    scene[:, :40, :50] = 0
    tags = {"datetime": "2022-01-20T14:00:00Z"}
    write_raster(grey, scene, area.grid, nodata=0, descriptions=(*BANDS, "SCL"), tags=tags)
    composite = Composite(every="month", fill="nearest", layers=("slope", "elevation"))
    stacks = {"grey": {}, "clear": {}}
    for name, block in area.blocks.items():
        for kind, optical in (("grey", [grey]), ("clear", area.s2)):
            stacks[kind][name] = folder / f"{kind}_{name}.zarr.zip"
            sensors = ("sentinel1", "sentinel2")
            given = area.s1, optical, stacks[kind][name], block, PERIOD, sensors, BANDS, ("VV", "VH"), Masks(dilate_m=0)
            stack_block(*given, composite, dem=dem)
    return stacks


@pytest.mark.parametrize(
    ("stacks", "sensors", "indices"),
    [
        ("clear", ["sentinel2"], []),
        ("clear", ["sentinel1"], ["vh_minus_vv"]),
        ("grey", ["terrain", "sentinel2"], []),
        ("clear", ["sentinel1", "sentinel2", "terrain"], ["vh_minus_vv", "ndvi"]),
    ],
)
def test_every_choice_of_inputs_learns_and_maps(area, rich, tmp_path, stacks, sensors, indices):
    chosen = list(rich[stacks].values())
    model = settings().model_copy(update={"sensors": sensors, "indices": indices})
    weights = run(pack(area, rich[stacks], tmp_path), tmp_path, model)[0]
    paths = predicted(area, [weights], tmp_path, area.blocks, chosen, PREDICTION)
    for path, block in zip(paths, area.blocks.values(), strict=True):
        _, column = block.offset_in(area.grid)
        found, expected = read_window(path, block, fill=0)[0], area.classes[:, column : column + 256]
        unseen = np.zeros(block.shape, bool)
        unseen[:40, : max(50 - column, 0)] = stacks == "grey"
        np.testing.assert_array_equal(found == 0, unseen)  # terrain alone makes no map
        assert (found == expected)[~unseen].mean() > 0.75


def test_a_network_is_told_which_values_were_filled_in(area, rich, tmp_path, monkeypatch):
    seen = []
    original = Unet.forward
    monkeypatch.setattr(Unet, "forward", lambda *given: seen.append(given[2]["s2"]) or original(*given))
    index, packed, blocks = pack(area, rich["clear"], tmp_path)
    run((index, packed, blocks), tmp_path, settings(epochs=1).model_copy(update={"sensors": ["sentinel2"]}))
    block = next(iter(area.blocks.values()))
    trained = len(seen)
    predicted(
        area, [tmp_path / "weights.safetensors"], tmp_path, {"p": block}, list(rich["clear"].values()), PREDICTION
    )
    assert all(mask[:, 0].float().mean() > 0.99 for mask in seen[:trained])
    assert len(seen) > trained and all(mask[:, 0].any() for mask in seen[trained:])
    assert not any(mask[:, 1].any() for mask in seen)


def test_the_random_forest_sees_terrain(area, rich, tmp_path):
    index, packed, blocks = pack(area, rich["grey"], tmp_path)
    sensors, grids = ("sentinel2", "terrain"), list(area.blocks.values())
    stacks = list(rich["grey"].values())
    map_baseline(index, packed, stacks, tmp_path / "b.tif", blocks, area.grid, grids, sensors, TILES, 1)
    found = read_window(tmp_path / "b.tif", area.grid, fill=0)[0]
    assert not found[:40, :50].any() and (found > 0).any()
    assert (found == area.classes)[found > 0].mean() > 0.95


def test_it_learns_and_reports(trained):
    metrics = json.loads(trained[1].read_text())
    assert metrics["validation"]["overall"] > 0.8
    assert set(metrics["validation"]["f1"]) == set(CLASSES)
    assert len(trained[2].read_text().splitlines()) == 5


def test_a_killed_training_resumes_to_the_same_weights(tiles, trained, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    calls = []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return original(*arguments)

    original = covermap.train.run_epoch
    monkeypatch.setattr(covermap.train, "run_epoch", dying)
    with pytest.raises(Killed):
        run(tiles, tmp_path / "again", settings())
    assert not (tmp_path / "again" / "weights.safetensors").exists()
    weights = run(tiles, tmp_path / "again", settings())[0]
    assert len(calls) == 3 + 2
    expected, found = load_file(trained[0]), load_file(weights)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    files = ["curves.png", "events.tfevents", "log.csv", "metrics.json", "weights.safetensors"]
    assert sorted(path.name for path in weights.parent.iterdir()) == files


@pytest.mark.parametrize("order", ["tiles", "shards"])
def test_a_killed_training_with_chance_in_all_its_parts_resumes_in_another_process(tiles, tmp_path, monkeypatch, order):
    class Killed(BaseException):
        pass

    def dying(*arguments):
        if len(arguments[0].state.rows) == 1:
            raise Killed
        return original(*arguments)

    augment = {
        "reflectance_gain": 0.1, "reflectance_offset": 0.02, "reflectance_noise": 0.01, "backscatter_shift_db": 1,
        "backscatter_noise_db": 0.5, "drop_dates": 0.3, "drop_sensors": 0.2,
    }  # fmt: skip
    model = settings(epochs=2, augment=augment, order=order)
    table = pd.read_parquet(tiles[0])
    taught = (table.split == "train").to_numpy()
    table.loc[taught, "sampling"] = np.resize(np.float32([0.4, 1.6]), taught.sum())
    table.to_parquet(tmp_path / "index.parquet")
    balanced = tmp_path / "index.parquet", *tiles[1:]
    expected = run(balanced, tmp_path / "undisturbed", model)[0]
    original = covermap.train.run_epoch
    with monkeypatch.context() as patch:
        patch.setattr(covermap.train, "run_epoch", dying)
        with pytest.raises(Killed):
            run(balanced, tmp_path / "again", model)
    process = multiprocessing.get_context("spawn").Process(target=run, args=(balanced, tmp_path / "again", model))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "again" / "weights.safetensors").read_bytes() == expected.read_bytes()
    logs = [pd.read_csv(tmp_path / name / "log.csv") for name in ("undisturbed", "again")]
    columns = ["epoch", "train_loss", "val_loss", "learning_rate"]
    pd.testing.assert_frame_equal(logs[0][columns], logs[1][columns], check_exact=True)


# --- which tiles count, and what the priors are ----------------------------------------------------------------------


def changed(tiles, folder, split):
    """The tiles, but those of one split with other labels and brighter."""
    folder.mkdir()
    table = pd.read_parquet(tiles[0])
    stores = []
    for (_, block), source in zip(tiles[2], tiles[1], strict=True):
        arrays = load_file(source)
        here = (table.split[table.block == block] == split).to_numpy()
        arrays["label"][here] = arrays["label"][here] % 3 + 1
        arrays["s2"][here] += 700
        stores.append(folder / source.name)
        with safe_open(source, "numpy") as file:
            save_file(arrays, stores[-1], file.metadata())
    return tiles[0], stores, tiles[2]


def test_a_network_learns_from_training_tiles_and_chooses_by_those_of_validation(tiles, tmp_path):
    model = settings(epochs=1)
    weights, _, log = run(tiles, tmp_path / "none", model)
    losses = pd.read_csv(log)
    for split, teaches, chooses in (("train", True, True), ("validation", False, True), ("test", False, False)):
        found, _, log = run(changed(tiles, tmp_path / f"{split}_tiles", split), tmp_path / split, model)
        told = pd.read_csv(log)
        assert (found.read_bytes() != weights.read_bytes()) == teaches  # the statistics of the inputs are among them
        assert (told.train_loss[0] != losses.train_loss[0]) == teaches
        assert (told.val_loss[0] != losses.val_loss[0]) == chooses


def test_the_random_forest_learns_from_training_tiles_alone(area, tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(covermap.baseline, "SAMPLES", 2000)

    def mapped(given, name):
        sensors, grids = ("sentinel1", "sentinel2"), list(area.blocks.values())
        stacks = list(area.stacks.values())
        map_baseline(*given[:2], stacks, tmp_path / name, given[2], area.grid, grids, sensors, TILES, 1)
        return read_window(tmp_path / name, area.grid, fill=0)

    expected = mapped(tiles, "none.tif")
    for split in ("train", "validation", "test"):
        found = mapped(changed(tiles, tmp_path / split, split), f"{split}.tif")
        assert (found != expected).any() == (split == "train")


@pytest.mark.parametrize("rule", ["none", "inverse"])
@pytest.mark.parametrize("weight", [100, 60])
def test_priors_undo_uneven_drawing_and_weights(tmp_path, rule, weight):
    """Tile A is 3/4 of class 1 and 1/4 of class 2, B of class 1 alone; A is drawn three times as often."""
    labels = np.ones((2, 32, 32), np.uint8)
    labels[0, :8] = 2
    weights = np.where(labels == 2, weight, 100).astype(np.uint8)
    weights[:, :, :4] = 0  # seen by no satellite, of both classes alike
    weights[0, :4] = 0  # and half of the second class, in the shadow of mountains
    inputs = np.arange(2 * 2 * 1024, dtype=np.uint16).reshape(2, 1, 2, 32, 32)
    index = tmp_path / "index.parquet"
    rows = pd.DataFrame({"row": [0, 0], "column": [0, 32], "aoi": "here", "block": "b", "split": "train"})
    rows = rows.assign(class_1=[768, 1024], class_2=[256, 0], class_3=0, sampling=np.float32([1.5, 0.5]), geometry=b"")
    rows.to_parquet(index)
    arrays = {"s2": inputs, "label": labels, "weight": weights}
    kinds = {key: (values.dtype, values.shape[1:]) for key, values in arrays.items()}
    with new_store(tmp_path / "store", 2, kinds, {"meaning": "{}", "places": places_digest(rows)}) as write:
        for number in range(2):
            write(number, {key: values[number] for key, values in arrays.items()})
    training = TileStore({("here", "b"): tmp_path / "store"}, index, "train")
    net = build(settings(), {"s2": (1, 2)}, 3, {"s2": {"band": ["B04", "B08"]}})
    model = settings(class_weights=rule, **({} if rule == "none" else {"weight_cap": 1000}))
    of_class = prepare(net, training, labelled_pixels(training, 3), model)
    seen, there = np.array([1.5 * 768 + 0.5 * 1024, 1.5 * 256]), np.array([1792, 256])
    in_loss = {"none": np.ones(2), "inverse": 2048 / seen / 2}[rule]
    np.testing.assert_allclose(of_class, [*in_loss, 0], rtol=1e-6)
    expected = in_loss * (seen / there) * (0.875, 0.5 * 0.875 * weight / 100)
    np.testing.assert_allclose(net.log_weights, [*np.log(expected), 0], rtol=1e-5)


def test_a_killed_training_does_not_resume_on_other_data(tiles, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def dying(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(covermap.train, "finish", dying)
        with pytest.raises(Killed):
            run(tiles, tmp_path / "again", settings(epochs=1))
    other = [tmp_path / path.name for path in tiles[1]]
    for source, path in zip(tiles[1], other, strict=True):
        arrays = load_file(source)
        arrays["s2"][0, 0, 0, 0, 0] += 1  # one pixel: all counts stay
        with safe_open(source, "numpy") as file:
            save_file(arrays, path, file.metadata())
    epochs = []
    original = covermap.train.run_epoch
    monkeypatch.setattr(covermap.train, "run_epoch", lambda *given: epochs.append(1) or original(*given))
    run((tiles[0], other, tiles[2]), tmp_path / "again", settings(epochs=1))
    assert len(epochs) == 1


def test_areas_whose_inputs_mean_different_things_are_refused(area, tiles, tmp_path):
    name = next(iter(area.blocks))
    other = tmp_path / "other.safetensors"
    stack = stack_of(area.s1, area.s2, tmp_path / "s.zarr.zip", area.blocks[name], bands=BANDS[::-1])
    pack_tiles(tiles[0], stack, area.labels[name], other, "here", name, TILES.pixels)
    with pytest.raises(ModelError, match=rf"has band B04, B08 of s2, {other} has B08, B04"):
        run((tiles[0], [other, tiles[1][1]], tiles[2]), tmp_path / "mixed", settings())
    assert not (tmp_path / "mixed" / "weights.safetensors").exists()


def test_a_loss_that_explodes_is_explained(tiles, tmp_path, monkeypatch):
    def explode(parameters, _):
        for parameter in parameters:
            parameter.grad.mul_(float("inf"))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", explode)
    with pytest.raises(ModelError, match="learning_rate"):
        run(tiles, tmp_path / "hot", settings())


def test_an_option_that_the_network_lacks_is_explained(tiles, tmp_path):
    model = settings().model_copy(update={"options": {"colour": 3}})
    with pytest.raises(ModelError, match="colour"):
        run(tiles, tmp_path / "odd", model)


def test_a_pickled_file_is_no_weights_file(area, tmp_path):
    path = tmp_path / "weights.safetensors"
    torch.save({"model": 1}, path)
    name, block = next(iter(area.blocks.items()))
    with pytest.raises(ModelError, match="rule train"):
        predict_block([path], [area.stacks[name]], tmp_path / "p.tif", block, [block], Prediction())


def predicted(area, trained, folder, blocks, stacks, prediction):
    paths = []
    for name, block in blocks.items():
        paths.append(folder / f"{name}.tif")
        predict_block([trained[0]], stacks, paths[-1], block, list(area.blocks.values()), prediction)
    return paths


@pytest.mark.parametrize(("window", "overlap"), [(32, 0.5), (64, 0.25), (32, 0.0)])
def test_blocks_do_not_show(area, trained, tmp_path, window, overlap):
    prediction = Prediction(window_pixels=window, overlap=overlap, batch=3)
    stacks = list(area.stacks.values())
    one = predicted(area, trained, tmp_path, {"whole": area.grid}, stacks, prediction)[0]
    many = predicted(area, trained, tmp_path, area.blocks, stacks, prediction)
    expected = read_window(one, area.grid, fill=0)
    for path, block in zip(many, area.blocks.values(), strict=True):
        _, column = block.offset_in(area.grid)
        np.testing.assert_array_equal(read_window(path, block, fill=0), expected[:, :, column : column + 256])
    assert (expected[0] == area.classes).mean() > 0.8


def test_no_data_in_no_data_out(area, trained, tmp_path):
    name, block = next(iter(area.blocks.items()))
    beyond = block.window(-128, -128, 256, 256)  # only its south-eastern quarter has a stack
    path = tmp_path / "p.tif"
    predict_block([trained[0]], [area.stacks[name]], path, beyond, [block], Prediction(window_pixels=32, batch=2))
    classes, confidence = read_window(path, beyond, fill=0)
    assert (classes[128:, 128:] > 0).all()
    assert not classes[:128].any() and not classes[:, :128].any()
    assert (confidence[:128] == CONFIDENCE_NODATA).all()
    assert confidence[128:, 128:].max() <= 100


def test_a_stack_with_other_inputs_is_explained(area, trained, tmp_path, monkeypatch):
    block = next(iter(area.blocks.values()))
    other = stack_of(area.s1[:1], area.s2, tmp_path / "other.zarr.zip", block)
    original = covermap.predict.read_stack
    fewer = lambda *place: {key: values[:, :1] for key, values in original(*place).items()}  # noqa: E731
    monkeypatch.setattr(covermap.predict, "read_stack", fewer)
    with pytest.raises(ModelError, match="steps and bands"):
        predict_block([trained[0]], [other], tmp_path / "p.tif", block, [block], Prediction(window_pixels=32))
    assert not (tmp_path / "p.tif").exists()


SPRING = Period(start="2023-03-01", end="2023-04-30")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bands": BANDS[::-1]}, "band B08, B04 of s2, the network learned from B04, B08"),
        ({"polarisations": ("VH", "VV")}, "polarisation VH, VV of s1, the network learned from VV, VH"),
        ({"period": SPRING}, "month 03, 04 of s1, the network learned from 01, 02"),
    ],
)
def test_inputs_that_mean_something_else_are_refused(area, trained, tmp_path, changes, told):
    block = next(iter(area.blocks.values()))
    other = stack_of(area.s1, area.s2, tmp_path / "other.zarr.zip", block, **changes)
    with pytest.raises(ModelError, match=told):
        predict_block([trained[0]], [other], tmp_path / "p.tif", block, [block], Prediction(window_pixels=32))
    assert not (tmp_path / "p.tif").exists()


def test_the_random_forest_refuses_inputs_that_mean_something_else(area, tiles, tmp_path):
    block = next(iter(area.blocks.values()))
    other = stack_of(area.s1, area.s2, tmp_path / "other.zarr.zip", block, bands=BANDS[::-1])
    sensors = ("sentinel1", "sentinel2")
    with pytest.raises(ModelError, match="the random forest learned from B04, B08"):
        map_baseline(*tiles[:2], [other], tmp_path / "b.tif", tiles[2], block, [block], sensors, TILES, 1)
    assert not (tmp_path / "b.tif").exists()


@pytest.fixture
def listing(tmp_path):
    """Scenes of two years."""
    shape = mapping(box(0, 0, 1, 1))
    items = [
        {"id": name, "geometry": shape, "properties": {"datetime": f"{name}-06-01T10:00:00Z"}, "assets": {}}
        for name in ("2022", "2021")
    ]
    (tmp_path / "scenes.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return tmp_path / "scenes.json"


def test_the_map_is_one_band_with_colours_and_ends_at_the_area(area, trained, tmp_path, listing):
    predictions = predicted(
        area, trained, tmp_path, area.blocks, list(area.stacks.values()), Prediction(window_pixels=32)
    )
    left, bottom, right, top = area.grid.bounds
    outline = project(box(left + 300, bottom + 100, right - 300, top - 100), area.grid.crs, "EPSG:4326")
    files = [tmp_path / name for name in MAP_FILES]
    period = Period(start="2022-01-01", end="2022-02-28")
    blocks = list(area.blocks.values())
    mosaic(predictions, *files, listing, area.grid, blocks, outline.wkt, LEGEND, period, "unet", "mine {years}")
    with rasterio.open(files[0]) as raster:
        values = raster.read(1)
        assert raster.count == 1 and raster.nodata == 0
        assert raster.colormap(1)[1][:3] == LEGEND.classes[0].rgb
        assert json.loads(raster.tags()["classes"])["1"] == "Water"
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.tags()["TIFFTAG_COPYRIGHT"] == "mine 2021, 2022"
    assert not values[:, :29].any() and not values[:9].any()
    assert (values[12:-12, 32:-32] > 0).all()
    with rasterio.open(files[1]) as raster:
        np.testing.assert_array_equal(raster.read(1) == CONFIDENCE_NODATA, values == 0)
        assert raster.tags()["TIFFTAG_COPYRIGHT"] == "mine 2021, 2022"
    pixels = [int(row.findall("F")[6].text) for row in ElementTree.parse(files[4]).iter("Row")]
    assert pixels == np.bincount(values.ravel(), minlength=len(LEGEND.classes) + 1)[1:].tolist()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_area_without_observations_is_explained(area, tmp_path, listing):
    block = area.blocks["x300y-3001"]
    empty = np.stack([np.zeros(block.shape, np.uint8), np.full(block.shape, CONFIDENCE_NODATA, np.uint8)])
    names = ("class", "confidence")
    write_raster(tmp_path / "p.tif", empty, block, nodata=CONFIDENCE_NODATA, descriptions=names)
    outline = project(block.polygon, block.crs, "EPSG:4326")
    files = [tmp_path / name for name in MAP_FILES]
    period = Period(start="2022-01-01", end="2022-02-28")
    with pytest.raises(CoverageError, match="no pixel"):
        mosaic([tmp_path / "p.tif"], *files, listing, block, [block], outline.wkt, LEGEND, period, "unet", "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.tif", "scenes.json"]


def test_the_learning_rate_rises_and_falls():
    recipe = settings(epochs=1, learning_rate=0.5).training
    values = [learning_rate(recipe, [], step, 100) for step in range(101)]
    assert values[0] < 0.025 and max(values) == pytest.approx(0.5) and values[-1] == pytest.approx(0)
    assert np.argmax(values) == 5
