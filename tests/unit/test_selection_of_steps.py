"""A model may see some months and dates of a stack alone: in its tiles, and where it maps; and weights go together."""

import json
from datetime import date

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from covermap.area_settings import Composite, Masks
from covermap.errors import ModelError
from covermap.inputs import chosen_steps, dates_of, meaning_of, must_mean, numbers_of, seen_steps
from covermap.model_settings import Model, Prediction, Tiles
from covermap.predict import CONFIDENCE_NODATA, Source, load_together, predict_block, read_lattice, shapes_in
from covermap.raster import read_window, write_raster
from covermap.stack import read_stack, stack_block
from covermap.store import pack_tiles
from covermap.tiles import index_tiles
from covermap.trained import build, save_weights

from .conftest import BANDS, PERIOD

DAYS = [date(2022, 1, 5), date(2022, 1, 20), date(2022, 2, 9)]
TILES = Tiles(pixels=32, stride_pixels=32, cell_pixels=64, buffer_pixels=0, validation=0.25, test=0.25)
SENSORS = ("sentinel1", "sentinel2")
WINDOWS = Prediction(window_pixels=64, overlap=0, batch=2)
CLASSES = ["water", "forest", "field"]


@pytest.fixture(scope="module")
def stack(area, tmp_path_factory):
    """Two months of Sentinel-1, three days of Sentinel-2: the reflectance of day n is n thousand; its stack and block.

    The last day has a gap, which is filled in from the day before where ``fill`` says so.
    """
    folder = tmp_path_factory.mktemp("steps")
    name, block = next(iter(area.blocks.items()))
    optical = []
    for number, day in enumerate(DAYS, 1):
        scene = np.full((3, *area.grid.shape), 1000 * number, np.uint16)
        scene[-1] = 4
        scene[:, :64, :64] *= number != 3
        optical.append(folder / f"{day}.tif")
        tags = {"datetime": f"{day}T10:00:00Z"}
        write_raster(optical[-1], scene, area.grid, nodata=0, descriptions=(*BANDS, "SCL"), tags=tags)
    paths = {}
    for fill in ("none", "nearest"):
        paths[fill] = folder / f"{fill}.zarr.zip"
        about = block, PERIOD, SENSORS, BANDS, ("VV", "VH"), Masks(dilate_m=0), Composite(dates=DAYS, fill=fill)
        stack_block(area.s1, optical, paths[fill], *about)
    return paths, name, block


def whole(path):
    return read_stack(path, slice(None, 256), slice(None, 256))


def test_steps_are_chosen_by_month_and_by_first_day(stack):
    path = stack[0]["none"]
    assert chosen_steps(path) == {}
    steps = chosen_steps(path, [2], [DAYS[2], DAYS[0]])
    assert steps["s1"] == [1]
    assert steps["s2"] == steps["day"] == steps["clear"] == steps["observed"] == [0, 2]  # in the order of the stack
    everything = whole(path)
    seen = seen_steps(everything, steps)
    np.testing.assert_array_equal(seen["s1"], everything["s1"][1:])
    assert [int(step.max()) for step in seen["s2"]] == [1000, 3000]
    np.testing.assert_array_equal(seen["distorted"], everything["distorted"])


def test_all_years_of_a_month_are_chosen():
    assert numbers_of("month", [12, 1], [11, 12, 1, 2, 12, 1]) == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("months", "dates", "told"),
    [
        ([1, 3], [], "months have 3, but there is only 1, 2"),
        ([], [date(2022, 1, 6)], "dates have 2022-01-06, but there is only 2022-01-05, 2022-01-20, 2022-02-09"),
    ],
)
def test_what_a_stack_lacks_is_named(stack, months, dates, told):
    with pytest.raises(ModelError, match=told):
        chosen_steps(stack[0]["none"], months, dates)


def test_a_meaning_numbers_what_is_left_anew(stack):
    path = stack[0]["none"]
    assert meaning_of(path)["s2"]["step"] == ["1", "2", "3"]
    steps = chosen_steps(path, [2], DAYS[1:])
    meaning = meaning_of(path, steps)
    assert meaning["s1"]["month"] == ["02"] and meaning["s2"]["step"] == ["1", "2"]
    assert dates_of(path, steps) == {"s1": ["2022-02"], "s2": [[str(day)] * 2 for day in DAYS[1:]]}


def test_steps_that_may_be_any_may_differ_and_nothing_else():
    learnt = {"s2": {"band": ["B04"], "step": ["1", "2"]}, "s1": {"month": ["01"], "polarisation": ["VV"]}}
    met = {"s2": {"band": ["B04"], "step": ["1", "2", "3"]}, "s1": {"month": ["01"], "polarisation": ["VV"]}}
    must_mean(learnt, met, "stack", "weights have", ["s2"])
    with pytest.raises(ModelError, match="step 1, 2, 3 of s2"):
        must_mean(learnt, met, "stack", "weights have")
    for key, axis, names in (("s2", "band", ["B08"]), ("s1", "month", ["02"])):
        other = {**met, key: {**met[key], axis: names}}
        with pytest.raises(ModelError, match=f"{axis} {names[0]} of {key}"):
            must_mean(learnt, other, "stack", "weights have", ["s2"])
    with pytest.raises(ModelError, match="band none of s2"):
        must_mean(learnt, {"s1": met["s1"]}, "stack", "weights have", ["s2"])


def packed(area, stack, folder, fill, **chosen):
    paths, name, block = stack
    index_tiles([area.labels[name]], folder / "index.parquet", [("here", name, block)], TILES, 1, CLASSES)
    store = folder / "packed.safetensors"
    given = folder / "index.parquet", paths[fill], area.labels[name], store
    pack_tiles(*given, "here", name, TILES.pixels, **chosen)
    with open(store, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    return load_file(store), header


def test_tiles_hold_the_chosen_steps_alone(area, stack, tmp_path):
    everything, _ = packed(area, stack, tmp_path, "none")
    tiles, header = packed(area, stack, tmp_path, "none", months=(2,), dates=(DAYS[1], DAYS[2]))
    np.testing.assert_array_equal(tiles["s1"], everything["s1"][:, 1:])
    np.testing.assert_array_equal(tiles["s2"], everything["s2"][:, 1:])
    assert json.loads(header["meaning"])["s2"]["step"] == ["1", "2"]
    assert json.loads(header["dates"])["s1"] == ["2022-02"]


def test_days_of_filled_gaps_are_those_of_the_chosen_steps(area, stack, tmp_path):
    everything, _ = packed(area, stack, tmp_path, "nearest")
    tiles, _ = packed(area, stack, tmp_path, "nearest", dates=(DAYS[2],))
    np.testing.assert_array_equal(tiles["day"], everything["day"][:, 2:])
    assert (tiles["day"] == 0).any() and (tiles["s2"] > 0).all()


def test_a_pixel_that_no_chosen_step_saw_has_no_weight_and_fills_no_tile(area, stack, tmp_path):
    paths, name, block = stack
    given = [area.labels[name]], tmp_path / "index.parquet", [("here", name, block)]
    strict = TILES.model_copy(update={"incomplete": "drop"})
    kept = {}
    for dates in (DAYS[:1], DAYS[2:]):
        index_tiles(*given, strict, 1, CLASSES, [paths["none"]], ("sentinel2",), False, dates=tuple(dates))
        kept[dates[0]] = len(pd.read_parquet(tmp_path / "index.parquet"))
    assert kept[DAYS[0]] - kept[DAYS[2]] == 4  # of 32 px, in the gap of 64 px


def write_network(path, network, shapes, meaning, seed, classes=CLASSES, **settings):
    """Weights of an untrained network with something to say."""
    torch.manual_seed(seed)
    model = Model(network=network, train_on=["here"], tiles=TILES, prediction=WINDOWS, **settings)
    net = build(model, shapes, len(classes), meaning)
    for key in shapes:
        net.get_buffer(f"{key}_mean").fill_(1500)
        net.get_buffer(f"{key}_std").fill_(700)
    save_weights(path, net, model, classes)
    return path


def mapped(weights, stack, path, fill="none", **chosen):
    _, _, block = stack
    predict_block(weights, [stack[0][fill]], path, block, [block], WINDOWS, **chosen)
    return read_window(path, block, fill=0)


UNET = {"options": {"width": 8, "depth": 1}}
FCN = {"options": {"width": 8}, "sensors": ["sentinel2"]}


def test_a_network_maps_what_it_saw_in_training(stack, tmp_path):
    """Of two months and three days, one and one: where none of the day was observed, and no month, is no map."""
    steps = {"s1": [0], "s2": [2]}
    meaning = meaning_of(stack[0]["none"], steps)
    only = {"s2": meaning["s2"]}
    weights = write_network(tmp_path / "w", "unet", {"s2": (1, 2)}, only, 0, **UNET, sensors=["sentinel2"])
    classes, confidence = mapped([weights], stack, tmp_path / "p.tif", dates=(DAYS[2],))
    assert not classes[:64, :64].any() and (confidence[:64, :64] == CONFIDENCE_NODATA).all()
    assert classes[64:].all() and classes[:, 64:].all()
    with pytest.raises(ModelError, match="step 1, 2, 3 of s2, the network learned from 1"):
        mapped([weights], stack, tmp_path / "p.tif")


def test_a_network_of_any_number_of_dates_maps_with_those_that_it_gets(stack, tmp_path):
    """The map of several dates is the vote over the maps of each."""
    meaning = {"s2": meaning_of(stack[0]["none"], {"s2": [0, 1]})["s2"]}
    weights = write_network(tmp_path / "w", "fcn", {"s2": (2, 2)}, meaning, 0, **FCN)
    nets, _ = load_together([weights], torch.device("cpu"))
    source = Source(stack[2], stack[0]["none"], {})
    assert shapes_in(nets, source) == {"s2": (3, 2)}
    window = read_lattice([source], stack[2].window(64, 64, 64, 64), shapes_in(nets, source), days=False)
    assert window["s2"].shape == (3, 2, 64, 64)
    maps = {dates: mapped([weights], stack, tmp_path / "p.tif", dates=dates) for dates in ((), *zip(DAYS, strict=True))}
    assert all(found.shape == (2, 256, 256) for found in maps.values())
    with torch.inference_mode():
        alone = [
            nets[0].probabilities({"s2": torch.from_numpy(window["s2"][None, step : step + 1].astype(np.int32))})
            for step in range(3)
        ]
    expected = torch.stack(alone).mean(0)[0].argmax(0).numpy() + 1
    assert (maps[()][0, 64:128, 64:128] == expected).mean() > 0.99  # in bfloat16 here and there


def test_probabilities_of_several_weights_are_averaged(stack, tmp_path):
    meaning = {"s2": meaning_of(stack[0]["none"])["s2"]}
    about = "unet", {"s2": (3, 2)}, meaning
    weights = [write_network(tmp_path / str(seed), *about, seed, **UNET, sensors=["sentinel2"]) for seed in (0, 1)]
    one, two = (mapped([path], stack, tmp_path / "p.tif") for path in weights)
    both = mapped(weights, stack, tmp_path / "p.tif")
    np.testing.assert_array_equal(both, mapped(weights[::-1], stack, tmp_path / "p.tif"))
    agreed = one[0] == two[0]
    assert agreed.any() and not agreed.all()
    np.testing.assert_array_equal(both[0][agreed], one[0][agreed])
    mean = (one[1].astype(float) + two[1]) / 2
    assert np.abs(both[1] - mean)[agreed].max() <= 1  # both are rounded
    assert (both[1][~agreed] <= np.maximum(one[1], two[1])[~agreed]).all()


def test_networks_together_take_other_steps_only_where_all_of_them_do(stack, tmp_path):
    about = {"s2": (3, 2)}, {"s2": meaning_of(stack[0]["none"])["s2"]}
    free = [write_network(tmp_path / f"fcn{seed}", "fcn", *about, seed, **FCN) for seed in (0, 1)]
    fixed = write_network(tmp_path / "unet", "unet", *about, 0, **UNET, sensors=["sentinel2"])
    assert mapped(free, stack, tmp_path / "p.tif", dates=tuple(DAYS[:2])).any()
    for together in ([free[0], fixed], [fixed, free[0]]):
        assert mapped(together, stack, tmp_path / "p.tif").any()
        with pytest.raises(ModelError, match="step 1, 2 of s2, the network learned from 1, 2, 3"):
            mapped(together, stack, tmp_path / "p.tif", dates=tuple(DAYS[:2]))


def test_weights_of_other_classes_or_inputs_are_not_averaged(stack, tmp_path):
    meaning = {"s2": meaning_of(stack[0]["none"])["s2"]}
    own = write_network(tmp_path / "own", "unet", {"s2": (3, 2)}, meaning, 0, **UNET, sensors=["sentinel2"])
    classes = [*CLASSES[:2], "meadow"]
    other = write_network(tmp_path / "a", "unet", {"s2": (3, 2)}, meaning, 0, classes, **UNET, sensors=["sentinel2"])
    with pytest.raises(ModelError, match=r"forest, meadow.*forest, field: average models of one legend"):
        mapped([own, other], stack, tmp_path / "p.tif")
    fewer = {"s2": {**meaning["s2"], "step": ["1"]}}
    other = write_network(tmp_path / "b", "unet", {"s2": (1, 2)}, fewer, 0, **UNET, sensors=["sentinel2"])
    with pytest.raises(ModelError, match="step 1 of s2"):
        mapped([own, other], stack, tmp_path / "p.tif")
    more = {**meaning, "s1": {"month": ["01", "02"], "polarisation": ["VV", "VH"]}}
    other = write_network(tmp_path / "c", "unet", {"s1": (2, 2), "s2": (3, 2)}, more, 0, **UNET)
    for pair in ([own, other], [other, own]):
        with pytest.raises(ModelError, match="of s1"):
            mapped(pair, stack, tmp_path / "p.tif")
    assert not (tmp_path / "p.tif").exists()
