"""The map of a block as a file: whatever way it is cut and made, its bytes are the same."""

import json
import multiprocessing
import os
import resource
import signal
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import rasterio
import torch

import covermap.predict
from covermap.errors import ModelError, RoomError
from covermap.inputs import meaning_of
from covermap.model_settings import Bayes, Crf, Model, Prediction
from covermap.predict import CONFIDENCE_NODATA, grid_at, look_of, predict_block, region_of, regrouped
from covermap.raster import read_window
from covermap.trained import build, load_weights, save_weights

CLASSES = ["water", "forest", "field"]
SHAPES = {"s1": (2, 2), "s2": (1, 2)}
WINDOWS = Prediction(window_pixels=32, overlap=0.5, batch=3)


def network(folder, area, network="unet", seed=0, **settings):
    """Weights of a network that was not trained, but sees its inputs in proper units."""
    torch.manual_seed(seed)
    meaning = meaning_of(next(iter(area.stacks.values())))
    model = Model(network=network, train_on=["here"], **settings)
    net = build(model, SHAPES, len(CLASSES), meaning)
    for key, mean, std in (("s1", -1200, 500), ("s2", 1700, 1000)):
        net.get_buffer(f"{key}_mean").fill_(mean)
        net.get_buffer(f"{key}_std").fill_(std)
    path = folder / f"{network}{seed}.safetensors"
    save_weights(path, net, model, CLASSES)
    return path


@pytest.fixture(scope="module")
def weights(area, tmp_path_factory):
    return network(tmp_path_factory.mktemp("weights"), area, options={"width": 8, "depth": 2})


def predict(weights, area, path, block, settings=WINDOWS, **more):
    weights = weights if isinstance(weights, list) else [weights]
    predict_block(weights, list(area.stacks.values()), path, block, list(area.blocks.values()), settings, **more)
    return read_window(path, block, fill=0)


def blocks_of(grid, side):
    return [
        grid.window(row, column, min(side, grid.height - row), min(side, grid.width - column))
        for row in range(0, grid.height, side)
        for column in range(0, grid.width, side)
    ]


def put_together(parts, blocks, grid):
    whole = np.zeros((len(parts[0]), *grid.shape), np.uint8)
    for part, block in zip(parts, blocks, strict=True):
        row, column = block.offset_in(grid)
        whole[:, row : row + block.height, column : column + block.width] = part
    return whole


WAYS = {
    "hann": {"settings": Prediction(window_pixels=64, overlap=0.3, batch=3, layers=("margin", "entropy"))},
    "centre": {"settings": WINDOWS.model_copy(update={"blend": "centre"})},
    "crf": {"settings": WINDOWS, "crf": Crf(radius_pixels=2, iterations=2)},
    "bayes": {"settings": WINDOWS.model_copy(update={"layers": ("probabilities",)}), "bayes": Bayes(pixels=5)},
    "symmetries": {"settings": Prediction(window_pixels=64, overlap=0, batch=2, symmetries=True)},
}


@pytest.mark.parametrize("way", WAYS)
def test_blocks_of_three_sizes_are_the_bytes_of_one(area, weights, tmp_path, way):
    middle = area.grid.window(0, 150, 200, 200)  # of both stacks
    one = predict(weights, area, tmp_path / "one.tif", middle, **WAYS[way])
    assert len(np.unique(one[0])) > 1
    for side in (150, 128, 70):
        blocks = blocks_of(middle, side)
        parts = [predict(weights, area, tmp_path / "part.tif", block, **WAYS[way]) for block in blocks]
        np.testing.assert_array_equal(put_together(parts, blocks, middle), one)


def test_two_workers_change_no_byte(area, weights, tmp_path):
    one = predict(weights, area, tmp_path / "one.tif", area.grid)
    blocks = blocks_of(area.grid, 256)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            number: pool.submit(predict, weights, area, tmp_path / f"{number}.tif", blocks[number])
            for number in reversed(range(len(blocks)))
        }
        parts = [jobs[number].result() for number in range(len(blocks))]
    np.testing.assert_array_equal(put_together(parts, blocks, area.grid), one)


def test_strips_of_columns_and_their_width_change_no_byte(area, weights, tmp_path, monkeypatch):
    for more in ({}, {"bayes": Bayes(pixels=7)}):
        one = predict(weights, area, tmp_path / "one.tif", area.grid, **more)
        with monkeypatch.context() as patch:
            patch.setattr(covermap.predict, "COLUMNS", 90)
            patch.setattr(covermap.predict, "TILE", 64)
            cut = predict(weights, area, tmp_path / "cut.tif", area.grid, **more)
        np.testing.assert_array_equal(cut, one)


def test_the_same_job_writes_the_same_file(area, weights, tmp_path):
    for name in ("one", "two"):
        predict(weights, area, tmp_path / f"{name}.tif", area.grid, bayes=Bayes())
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()


SEED = {"unet": {"width": 8, "depth": 3}, "deepforest_1a": {"width": 8}, "segmenter": {"encoder": "resnet18"}}


@pytest.mark.parametrize("name", SEED)
def test_the_company_of_a_window_in_its_batch_changes_no_byte(area, tmp_path, name):
    path = network(tmp_path, area, name, options=SEED[name])
    net, _ = load_weights(path, torch.device("cpu"))
    random = np.random.default_rng(0)
    batch = {
        "s1": torch.from_numpy(random.integers(-2000, -400, (5, 2, 2, 64, 64)).astype(np.int16)),
        "s2": torch.from_numpy(random.integers(0, 4000, (5, 1, 2, 64, 64)).astype(np.int32)),
    }
    with torch.inference_mode():
        expected = net.probabilities(batch)
        for order in (torch.tensor([4, 3, 2, 1, 0]), torch.tensor([2, 2, 2, 2, 2]), torch.tensor([1, 4, 0, 0, 3])):
            found = net.probabilities({key: values[order].contiguous() for key, values in batch.items()})
            np.testing.assert_array_equal(found, expected[order])


def test_layers_and_tags_say_what_they_are(area, weights, tmp_path):
    settings = Prediction(
        window_pixels=64, overlap=0.25, layers=("entropy", "probabilities", "margin"), symmetries=True
    )
    calibration = tmp_path / "calibration.json"
    calibration.write_text(json.dumps({"temperature": 2.5}))
    block = area.grid.window(0, 0, 64, 96)
    found = predict(
        weights, area, tmp_path / "p.tif", block, settings, calibrations=(calibration,), bayes=Bayes(pixels=9)
    )
    with rasterio.open(tmp_path / "p.tif") as raster:
        names = [f"probability of {key}" for key in CLASSES]
        assert raster.descriptions == ("class", "confidence", "entropy", *names, "margin")
        tags = raster.tags()
    assert tags["window_pixels"] == "64" and tags["step_pixels"] == "48" and tags["blend"] == "hann"
    assert tags["symmetries"] == "8" and tags["temperatures"] == "2.5" and json.loads(tags["bayes"])["pixels"] == 9
    assert "crf" not in tags
    classes, confidence, _, *probabilities, margin = found.astype(float)
    assert (np.argmax(probabilities, 0) + 1 == classes).mean() > 0.99  # but where they are alike in steps of 0.004
    first, second = np.sort(probabilities, 0)[::-1][:2] / 250
    assert np.abs(100 * first - confidence).max() <= 1 and np.abs(100 * (first - second) - margin).max() <= 1.5
    assert np.abs(np.sum(probabilities, 0) - 250).max() <= 2


def test_a_temperature_flattens_and_changes_no_class(area, weights, tmp_path):
    calibration = tmp_path / "calibration.json"
    calibration.write_text(json.dumps({"temperature": 5}))
    settings = WINDOWS.model_copy(update={"overlap": 0.0})
    sure = predict(weights, area, tmp_path / "p.tif", area.grid, settings)
    flat = predict(weights, area, tmp_path / "p.tif", area.grid, settings, calibrations=(calibration,))
    np.testing.assert_array_equal(sure[0], flat[0])
    assert (flat[1] <= sure[1]).all() and flat[1].mean() < sure[1].mean()


def test_no_observation_no_data_in_every_layer(area, weights, tmp_path):
    beyond = area.grid.window(-100, -60, 200, 200)
    layers = ("margin", "entropy", "probabilities")
    settings = WINDOWS.model_copy(update={"layers": layers})
    for more in ({}, {"bayes": Bayes()}, {"crf": Crf(iterations=1, radius_pixels=1)}):
        classes, *others = predict(weights, area, tmp_path / "p.tif", beyond, settings, **more)
        seen = np.zeros(beyond.shape, bool)
        seen[100:, 60:] = True
        np.testing.assert_array_equal(classes > 0, seen)
        assert all(((layer == CONFIDENCE_NODATA) == ~seen).all() for layer in others)


def test_a_random_field_draws_pixels_to_their_neighbours(area, weights, tmp_path):
    plain = predict(weights, area, tmp_path / "p.tif", area.grid)[0]
    drawn = predict(weights, area, tmp_path / "p.tif", area.grid, crf=Crf(smoothness=10))[0]
    edges = [(np.diff(classes.astype(int), axis=1) != 0).sum() for classes in (plain, drawn)]
    assert edges[1] < edges[0]


def test_a_random_field_compares_what_was_seen_in_standard_deviations(area, weights):
    net, _ = load_weights(weights, torch.device("cpu"))
    s1 = torch.full((1, 2, 2, 1, 3), -1200, dtype=torch.int16)
    s1[0, 0, 0, 0] = torch.tensor([-700, -32768, -32768])
    s1[0, 1, 0, 0, 2] = -32768
    s2 = torch.zeros((1, 1, 2, 1, 3), dtype=torch.int32)
    s2[0, 0, :, 0, 0] = 2700
    s1[0, :, 1, 0, 2] = -32768
    look, seen = look_of(net, {"s1": s1, "s2": s2})
    assert look[0, :, 0].tolist() == [[0.5, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]
    assert seen[0, 0].tolist() == [True, True, False]


def test_a_classifier_of_patches_maps_cells(area, tmp_path):
    path = network(tmp_path, area, "classifier", options={"encoder": "resnet18"})
    tiles = predict(path, area, tmp_path / "p.tif", area.grid, Prediction(window_pixels=32, overlap=0))
    cells = tiles[1].reshape(8, 32, 16, 32)
    assert (cells == cells[:, :1, :, :1]).all() and len(np.unique(cells)) > 1
    finer = Prediction(window_pixels=32, overlap=0.5, blend="centre")
    confidence = predict(path, area, tmp_path / "p.tif", area.grid, finer)[1, 8:-8, 8:-8]
    cells = confidence.reshape(15, 16, 31, 16)
    assert (cells == cells[:, :1, :, :1]).all()
    with pytest.raises(ModelError, match="one to a patch"):
        predict(path, area, tmp_path / "p.tif", area.grid, finer, crf=Crf())


def test_a_job_that_dies_leaves_no_file(area, weights, tmp_path, monkeypatch):
    original = covermap.predict.write_part

    def dying(raster, row, column, part):
        if row:
            raise OSError("No space left on device")
        original(raster, row, column, part)

    monkeypatch.setattr(covermap.predict, "write_part", dying)
    monkeypatch.setattr(covermap.predict, "TILE", 64)
    with pytest.raises(RoomError, match=r"p\.tif cannot be written whole .No space.* MB free: make room"):
        predict(weights, area, tmp_path / "p.tif", area.grid)
    assert not list(tmp_path.iterdir())


def test_a_prediction_that_does_not_fit_on_the_disk_is_told_and_gone(area, weights, tmp_path):
    """GDAL is silent where the last of a file does not fit."""
    predict(weights, area, tmp_path / "p.tif", area.grid)
    size = (tmp_path / "p.tif").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (size // 2, size - 2000, size - 100, size - 1):
        (tmp_path / "p.tif").unlink(missing_ok=True)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(RoomError, match="make room"):
                predict(weights, area, tmp_path / "p.tif", area.grid)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list(tmp_path.iterdir())


def test_a_killed_prediction_leaves_nothing_to_its_rerun(area, weights, tmp_path):
    expected = predict(weights, area, tmp_path / "one.tif", area.grid)
    first = (tmp_path / "one.tif").read_bytes()
    (tmp_path / "one.tif").unlink()
    job = multiprocessing.get_context("spawn").Process(target=die_half_way, args=(weights, area, tmp_path / "one.tif"))
    job.start()
    job.join()
    assert job.exitcode == -signal.SIGKILL and [path.name for path in tmp_path.iterdir()] == [f".one.tif.{job.pid}.tif"]
    np.testing.assert_array_equal(predict(weights, area, tmp_path / "one.tif", area.grid), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["one.tif"]
    assert (tmp_path / "one.tif").read_bytes() == first


def die_half_way(weights, area, path):
    original = covermap.predict.write_part

    def dying(raster, row, column, part):
        original(raster, row, column, part)
        if row >= area.grid.height // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    covermap.predict.write_part, covermap.predict.TILE = dying, 64
    predict(weights, area, path, area.grid)


def test_rows_are_regrouped_whatever_their_number():
    rows = np.arange(100)[None, :, None]
    for cuts in ([], [3, 50], [64], list(range(1, 100))):
        groups = list(regrouped(np.split(rows, cuts, 1), 32))
        assert [group.shape[1] for group in groups] == [32, 32, 32, 4]
        np.testing.assert_array_equal(np.concatenate(groups, 1), rows)


def test_a_grid_has_a_place_on_the_lattice(area):
    region = region_of(area.grid)
    assert region == (3000 * 256, 300 * 256, 256, 512)
    assert grid_at(region, area.grid.window(-7, 13, 5, 5)) == area.grid
