"""Exported models give the classes of our own predictor: the graph, the command, and ArcGIS's raster function."""

import importlib.util
import json
import logging
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import rasterio
import torch
from rasterio.transform import Affine

from covermap.area_settings import Composite, Masks
from covermap.errors import CoverageError, CovermapError, ModelError, RoomError, SettingError
from covermap.export import OneImage, agreement, card_of, export_model, main, metadata_of, samples, to_onnx
from covermap.exported import (
    IMAGE,
    Card,
    bands_of,
    grid_of_stack,
    new_session,
    predict_raster,
    read_exported,
    write_inputs,
)
from covermap.grid import Grid
from covermap.inputs import DAY, meaning_of
from covermap.legend import Legend, LegendClass
from covermap.model_settings import Model, Prediction
from covermap.models import MODELS
from covermap.predict import predict_block, region_of
from covermap.raster import write_raster
from covermap.stack import read_stack, stack_block
from covermap.trained import build, load_weights, save_weights

from .conftest import BANDS, PERIOD

CLASSES = ["water", "forest", "field", "bare"]
LEGEND = Legend(
    classes=tuple(
        LegendClass(id=i + 1, key=key, name=f"{key.title()}, çé", colour=f"#{i}0{i}080")
        for i, key in enumerate(CLASSES)
    ),
    codes={},
)
PREDICTION = Prediction(window_pixels=64, batch=3)
SHAPES = {"s1": (3, 2), "s2": (2, 4)}
MEANING = {
    "s1": {"month": ["01", "02", "12"], "polarisation": ["VV", "VH"]},
    "s2": {"band": ["B02", "B03", "B04", "B08"], "step": ["01", "02"]},
}
OPTIONS = {"segmenter": {"encoder": "resnet18"}, "classifier": {"encoder": "resnet18"}}
QUICK = ("classifier",)  # a unet is in the fixtures


def settings(network="unet", **given):
    sensors = ["sentinel2"] if network.startswith("fcn") else ["sentinel1", "sentinel2"]
    training = {"precision": "float32"}
    options = OPTIONS.get(network, {"width": 8})
    return Model(
        **{
            "network": network,
            "options": options,
            "train_on": ["here"],
            "sensors": sensors,
            "training": training,
            **given,
        }
    )


def network_of(model, shapes, meaning, seed=0):
    """A network as it is after training: statistics of batches and of inputs are some, and its classes differ."""
    torch.manual_seed(seed)
    net = build(model, shapes, len(CLASSES), meaning).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    for key, mean, std in (("s1", -1200.0, 300.0), ("s2", 1500.0, 700.0), ("terrain", 100.0, 60.0)):
        if key in shapes:
            net.get_buffer(f"{key}_mean").copy_(mean + 10 * torch.randn_like(net.get_buffer(f"{key}_mean")))
            net.get_buffer(f"{key}_std").fill_(std)
    net.log_weights.copy_(0.1 * torch.randn(len(CLASSES)))
    return net


@pytest.fixture(scope="module")
def stacks(area, tmp_path_factory):
    """Of both sensors, two months of Sentinel-2, the second filled in from the first, and slope and elevation."""
    folder = tmp_path_factory.mktemp("stacks")
    dem = folder / "dem.tif"
    write_raster(dem, 30 * area.classes[None].astype(np.int16), area.grid, nodata=-1)
    with rasterio.open(area.s2[0]) as given:
        scene, tags = given.read(), {"datetime": given.tags()["datetime"]}
    scene[scene > 30_000] = 1  # dark pixels that noise made negative
    scene[:, :30, 240:300] = 0
    optical = folder / "s2.tif"
    write_raster(optical, scene, area.grid, nodata=0, descriptions=(*BANDS, "SCL"), tags=tags)
    composite = Composite(every="month", fill="nearest", layers=("slope", "elevation"))
    made = []
    for name, block in area.blocks.items():
        made.append(folder / f"{name}.zarr.zip")
        sensors = ("sentinel1", "sentinel2")
        given = area.s1, [optical], made[-1], block, PERIOD, sensors, BANDS, ("VV", "VH"), Masks(dilate_m=0)
        stack_block(*given, composite, dem=dem)
    return made


@pytest.fixture(scope="module")
def exported(area, stacks, tmp_path_factory):
    """Two networks over all inputs, one of them calibrated, as files, and as one graph and one package."""
    folder = tmp_path_factory.mktemp("exported")
    meaning = meaning_of(stacks[0])
    shapes = {
        key: values.shape[:2]
        for key, values in read_stack(stacks[0], slice(0, 1), slice(0, 1)).items()
        if key in meaning
    }
    model = settings(sensors=["sentinel1", "sentinel2", "terrain"], indices=["vh_minus_vv", "ndvi"])
    weights = [folder / f"{number}.safetensors" for number in range(2)]
    for number, path in enumerate(weights):
        save_weights(path, network_of(model, shapes, meaning, number), model, CLASSES)
    calibrations = [folder / f"{number}.json" for number in range(2)]
    for path, temperature in zip(calibrations, (0.5, 2.0), strict=True):
        path.write_text(json.dumps({"temperature": temperature}))
    outputs = folder / "both.onnx", folder / "both.dlpk"
    export_model(weights, *outputs, PREDICTION, LEGEND, 10.0, "Simulated data", tuple(calibrations))
    raster = folder / "bands.tif"
    write_inputs(outputs[0], stacks, raster)
    return weights, tuple(calibrations), *outputs, raster


@pytest.fixture(scope="module")
def ours(area, stacks, exported, tmp_path_factory):
    """Classes and confidence of our predictor, (2, y, x)."""
    weights, calibrations, *_ = exported
    out = tmp_path_factory.mktemp("ours") / "block.tif"
    blocks = [grid_of_stack(stack) for stack in stacks]
    predict_block(weights, stacks, out, area.grid, blocks, PREDICTION, calibrations=calibrations)
    with rasterio.open(out) as raster:
        found = raster.read()
    assert (np.bincount(found[0].ravel(), minlength=5) / found[0].size > 0.05).sum() >= 2  # else all would agree
    return found


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in MODELS]
)
def test_the_graph_of_every_network_has_its_classes(name):
    shapes = {"s2": SHAPES["s2"]} if name.startswith("fcn") else SHAPES
    net = network_of(settings(name), shapes, {key: MEANING[key] for key in shapes})
    graph = OneImage([net]).eval()
    proto, card = to_onnx(graph, card_of([net], PREDICTION, LEGEND, 10.0))
    assert card.any_window
    assert agreement(graph, proto, card) >= 0.9999
    image = samples(net, card)[:, :, :32, :32].repeat(1, 1, 3, 3)  # other windows, and another number of them
    with torch.inference_mode():
        expected = graph(image).numpy()
    found = new_session(proto, 96, 1).run(None, {IMAGE: image.numpy()})[0]
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.9999
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.long
def test_a_vote_by_majority_is_in_the_graph():
    model = settings("fcn", options={"width": 8, "voting": "majority"})
    net = network_of(model, {"s2": SHAPES["s2"]}, {"s2": MEANING["s2"]})
    graph = OneImage([net]).eval()
    assert agreement(graph, *to_onnx(graph, card_of([net], PREDICTION, LEGEND, 10.0))) >= 0.9999


def test_what_is_no_data_is_none_inside_the_graph():
    net = network_of(settings(), SHAPES, MEANING)
    graph = OneImage([net])
    image = torch.full((1, 14, 8, 8), 700.0)
    image[0, 6:, 0, 0], image[0, 6:, 0, 1] = torch.nan, -32768  # Sentinel-2; 0 in the stack
    image[0, :6, 0, 2], image[0, :6, 0, 3] = torch.nan, -32768  # Sentinel-1
    inputs = graph.integers(image)
    assert not inputs["s2"][0, :, :, 0, :2].any()
    assert (inputs["s1"][0, :, :, 0, 2:4] == -32768).all()
    image[0, :, 1, 1] = torch.nan
    found = graph(image)[0]
    assert found[0, 1, 1] == 1 and not found[1:, 1, 1].any()
    assert found[0].sum() == 1
    np.testing.assert_allclose(found.detach().sum(0), 1, atol=1e-6)


def test_the_mean_of_calibrated_networks_and_filled_days_are_in_the_graph(stacks, exported):
    weights, calibrations, model, *_ = exported
    nets = [load_weights(*given)[0] for given in zip(weights, [torch.device("cpu")] * 2, calibrations, strict=True)]
    assert [net.temperature for net in nets] == [0.5, 2.0]
    read = read_stack(stacks[0], slice(0, 64), slice(0, 64), ["s1", "s2", "terrain", DAY])
    inputs = {key: torch.from_numpy(values.astype(np.int32))[None] for key, values in read.items()}
    assert (inputs[DAY] == 0).any() and (inputs[DAY] > 0).any()
    with torch.inference_mode():
        expected = torch.stack([net.probabilities(inputs) for net in nets]).mean(0).numpy()
        without = nets[0].probabilities({key: values for key, values in inputs.items() if key != DAY})
        assert not torch.equal(without, nets[0].probabilities(inputs))
    proto, card = read_exported(model)
    keys = [*card.shapes, DAY]
    image = np.concatenate([inputs[key].reshape(1, -1, 64, 64).numpy() for key in keys], 1).astype(np.float32)
    found = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {IMAGE: image})[0]
    np.testing.assert_allclose(found[:, 1:], expected, atol=1e-4)


def test_bands_are_named_by_what_they_mean(exported):
    _, card = read_exported(exported[2])
    names = [band.name for band in card.bands]
    assert names[:2] == ["s1 01 VV", "s1 01 VH"]
    assert f"s2 02 {BANDS[1]}" in names and "terrain slope" in names and names[-1] == f"s2 {names[-1].split()[1]} day"
    assert len({*names}) == len(names)


def test_the_same_weights_are_the_same_bytes_and_tell_nothing_of_the_machine(exported, tmp_path):
    weights, calibrations, model, package, _ = exported
    again = tmp_path / "both.onnx", tmp_path / "both.dlpk"
    export_model(weights, *again, PREDICTION, LEGEND, 10.0, "Simulated data", calibrations)
    assert again[0].read_bytes() == model.read_bytes()
    assert again[1].read_bytes() == package.read_bytes()
    assert str(Path(torch.__file__).parent.parent).encode() not in model.read_bytes()
    assert b".py" not in model.read_bytes()


def test_deepness_finds_what_it_reads(exported, area):
    session = onnxruntime.InferenceSession(str(exported[2]))
    told = session.get_modelmeta().custom_metadata_map
    taken, given = session.get_inputs()[0].shape, session.get_outputs()[0].shape
    assert taken[2] == taken[3] == given[2] == given[3] == 64 and isinstance(taken[0], str)
    assert json.loads(told["model_type"]) == "Segmentor"
    names = json.loads(told["class_names"])
    assert names == {"0": "no data", **{str(entry.id): entry.name for entry in LEGEND.classes}}
    assert json.loads(told["resolution"]) == 1000
    assert json.loads(told["tile_size"]) == 64 and json.loads(told["tiles_overlap"]) == 50
    with rasterio.open(exported[4]) as raster:
        image = raster.read(window=((0, 64), (0, 64)))[None]
    mean, std = (np.float32(json.loads(told[f"standardization_{name}"])) for name in ("mean", "std"))
    fed = (np.float32(image * 1.0 / 255.0) - mean[:, None, None]) / std[:, None, None]  # as the plugin does
    plain, scaled = (session.run(None, {IMAGE: np.float32(each)})[0] for each in (image, fed))
    np.testing.assert_array_equal(plain, scaled)


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_maps_as_our_predictor_does(exported, ours, tmp_path):
    *_, model, _, raster = exported
    output, confidence = tmp_path / "map.tif", tmp_path / "confidence.tif"
    main(["predict", str(model), str(raster), str(output), "--confidence", str(confidence), "--batch", "3"])
    with rasterio.open(output) as made, rasterio.open(raster) as given:
        assert (made.crs, made.transform, made.nodata) == (given.crs, given.transform, 0)
        assert made.colormap(1)[2] == (*LEGEND.classes[1].rgb, 255)
        assert json.loads(made.tags()["classes"])["1"] == LEGEND.classes[0].name
        classes = made.read(1)
    assert (classes == ours[0]).mean() >= 0.9999
    assert ((classes == 0) == (ours[0] == 0)).all()
    with rasterio.open(confidence) as made:
        assert np.abs(made.read(1).astype(int) - ours[1]).max() <= 1
    assert LEGEND.classes[0].name in Path(f"{output}.aux.xml").read_text(encoding="utf-8")


def test_bands_are_found_by_their_names(exported, tmp_path):
    *_, model, _, raster = exported
    expected, found, shuffled = (tmp_path / name for name in ("expected.tif", "found.tif", "shuffled.tif"))
    with rasterio.open(raster) as given:
        values, names = given.read().astype(np.float32), list(given.descriptions)
        profile = {**given.profile, "dtype": "float32", "nodata": None, "count": len(values) + 1, "predictor": 1}
        values[values == given.nodata] = np.nan
    order = np.random.default_rng(0).permutation(len(values))
    with rasterio.open(shuffled, "w", **profile) as made:
        made.write(np.concatenate([values[:1], values[order]]))
        made.descriptions = ["something", *(names[i] for i in order)]
    predict_raster(model, raster, expected)
    predict_raster(model, shuffled, found)
    with rasterio.open(expected) as one, rasterio.open(found) as other:
        np.testing.assert_array_equal(one.read(), other.read())


def test_another_window_may_be_taken(exported, tmp_path):
    *_, model, _, raster = exported
    predict_raster(model, raster, tmp_path / "map.tif", window_pixels=96, overlap=0)
    assert rasterio.open(tmp_path / "map.tif").read(1).any()
    with pytest.raises(CovermapError, match="the window is 36 px: expected a multiple of 8"):
        predict_raster(model, raster, tmp_path / "map.tif", window_pixels=36)
    with pytest.raises(CovermapError, match="batch: expected at least 1"):
        predict_raster(model, raster, tmp_path / "map.tif", batch=0)


def changed(raster, path, bands=slice(None), **profile):
    with rasterio.open(raster) as given:
        values = given.read()[bands]
        made = {**given.profile, "count": len(values), **profile}
    with rasterio.open(path, "w", **made) as out:
        out.write(values)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"bands": slice(3, None)}, "bands, of which 0 bear names of the model, but it needs .* such as 's1 01 VV'"),
        ({"crs": "EPSG:4326"}, "is not projected in metres"),
        ({"crs": None}, "has no CRS"),
        ({"transform": Affine(20, 0, 768000, 0, -20, 2320000)}, "pixels of 20 x 20 m, the model learned from 10 m"),
        ({"transform": Affine(10, 1, 768000, 0, -10, 2320000)}, "is rotated or upside down"),
    ],
)
def test_a_raster_that_does_not_suit_is_refused(exported, tmp_path, change, told):
    *_, model, _, raster = exported
    other, output = tmp_path / "other.tif", tmp_path / "map.tif"
    changed(raster, other, **change)
    with pytest.raises(CovermapError, match=told):
        predict_raster(model, other, output)
    assert not output.exists()


def test_a_raster_without_data_or_file_is_refused(exported, tmp_path, capsys):
    *_, model, _, raster = exported
    empty, output = tmp_path / "empty.tif", tmp_path / "map.tif"
    with rasterio.open(raster) as given, rasterio.open(empty, "w", **given.profile) as made:
        made.write(np.full((given.count, *given.shape), given.nodata, given.dtypes[0]))
    with pytest.raises(CoverageError, match="has no pixel with data"):
        predict_raster(model, empty, output)
    assert not list(tmp_path.glob("*map*"))
    with pytest.raises(SystemExit, match=r"covermap\.export predict: raster .* does not exist"):
        main(["predict", str(model), str(tmp_path / "none.tif"), str(output)])


def hostile(model, path, change):
    proto = onnx.load(str(model))
    change(proto)
    path.write_bytes(proto.SerializeToString())


def to_another_file(proto):
    tensor = proto.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def within_a_node(proto):
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    proto.graph.node[0].attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)


def other_card(proto, **update):
    entry = next(entry for entry in proto.metadata_props if entry.key == "covermap")
    entry.value = json.dumps({**json.loads(entry.value), **update})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (to_another_file, "refers to other files"),
        (within_a_node, "refers to other files"),
        (lambda proto: proto.ClearField("metadata_props"), "was not exported by covermap"),
        (lambda proto: other_card(proto, pixel_m=-1), "has a card that cannot be read"),
        (lambda proto: other_card(proto, shapes={"s3": [1, 1]}), "it has other inputs than s1, s2, terrain"),
        (lambda proto: proto.graph.output[0].type.tensor_type.ClearField("shape"), "does not take the bands and"),
        (lambda proto: other_card(proto, classes=[]), "has a card that cannot be read"),
    ],
)
def test_a_graph_from_elsewhere_is_not_trusted(exported, tmp_path, change, told):
    path = tmp_path / "model.onnx"
    hostile(exported[2], path, change)
    with pytest.raises(ModelError, match=told):
        read_exported(path)


# --- a small graph, made by hand --------------------------------------------------------------------------------------


def small_card(**given):
    classes = [{"id": i, "key": f"c{i}", "name": f"Class {i}", "colour": "#00ff00"} for i in (1, 2)]
    return {
        "covermap": "1",
        "bands": [{"name": "s1 01 VV", "input": "s1", "unit": "0.01 dB", "nodata": -32768}],
        "shapes": {"s1": [1, 1]},
        "meaning": {"s1": {"month": ["01"], "polarisation": ["VV"]}},
        "classes": classes,
        "pixel_m": 10,
        "window_pixels": 32,
        "multiple": 8,
        "any_window": True,
        "overlap": 0.5,
        "blend": "hann",
        "symmetries": False,
        "attribution": "",
        **given,
    }


def small_model(path, card=None, *, last="Identity", output="probabilities", side=32, bands=1, channels=3):
    """Probabilities 0, 1, 0 of no data and two classes, as float32 (batch, 3, side, side); ``last`` changes them."""
    zeros = [onnx.helper.make_node("Sub", ["image", "image"], ["zeros"])]
    ones = onnx.helper.make_node("Exp", ["zeros"], ["ones"])
    joined = onnx.helper.make_node("Concat", ["zeros", "ones", "zeros"], ["joined"], axis=1)
    inputs = ["joined", "joined"] if last == "Div" else ["joined"]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size, side, side])
        for name, size in (("image", bands), (output, channels))
    ]
    nodes = [*zeros, ones, joined, onnx.helper.make_node(last, inputs, [output])]
    graph = onnx.helper.make_graph(nodes, "small", values[:1], values[1:])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    card = small_card() if card is None else card
    proto.metadata_props.add(key="covermap", value=card if isinstance(card, str) else json.dumps(card))
    path.write_bytes(proto.SerializeToString())
    return path


def small_raster(path, side=64):
    values = np.random.default_rng(0).integers(-2000, -500, (1, side, side)).astype(np.int16)
    grid = Grid(crs="EPSG:32721", left=768000, top=2320000, width=side, height=side, pixel_m=10)
    write_raster(path, values, grid, nodata=-32768)
    return path


@pytest.fixture
def small(tmp_path):
    return small_model(tmp_path / "small.onnx"), small_raster(tmp_path / "small.tif"), tmp_path / "maps" / "map.tif"


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What the command sets for its own process does not outlast a test."""
    level = logging.getLogger("rasterio").level
    monkeypatch.setenv("GDAL_CACHEMAX", "64")
    yield
    logging.getLogger("rasterio").setLevel(level)


def refused(capfd, *words):
    """What the command says, which is one line, and its status is not 0."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, words)))
    assert capfd.readouterr().err == ""
    assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    return stop.value.code


def test_a_small_graph_maps(small):
    output = small[2]
    main(["predict", *map(str, small), "--confidence", str(output.with_name("confidence.tif"))])
    with rasterio.open(output) as made:
        assert (made.read() == 1).all()
    assert sorted(path.name for path in output.parent.iterdir()) == ["confidence.tif", "map.tif", "map.tif.aux.xml"]


@pytest.mark.parametrize(
    "words",
    [
        ("{model}", "{raster}", "{raster}"),
        ("{model}", "{raster}", "{model}"),
        ("{model}", "{raster}", "{link}"),
        ("{model}", "{raster}", "{output}", "--confidence", "{raster}"),
        ("{model}", "{raster}", "{output}", "--confidence", "{output}"),
        ("{model}", "{raster}", "{output}", "--confidence", "{output}.aux.xml"),
    ],
)
def test_nothing_is_written_over_what_is_read_or_written(small, tmp_path, capfd, words):
    model, raster, output = small
    link = tmp_path / "link.tif"
    link.symlink_to(raster)
    before = model.read_bytes(), raster.read_bytes()
    names = {"model": model, "raster": raster, "output": output, "link": link}
    assert "is read or written under that name too" in refused(capfd, "predict", *(w.format(**names) for w in words))
    assert (model.read_bytes(), raster.read_bytes()) == before and not output.exists()


def test_inputs_are_not_written_over_what_they_are_made_of(small, area, capfd):
    model, stack = small[0], next(iter(area.stacks.values()))
    for output in (model, stack):
        before = output.read_bytes()
        assert "is read or written under that name too" in refused(capfd, "inputs", model, output, stack)
        assert output.read_bytes() == before


def test_a_raster_broken_in_the_middle_leaves_no_map(small, capfd):
    model, raster, output = small
    small_raster(raster, 1100)
    data = bytearray(raster.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    raster.write_bytes(data)
    confidence = output.with_name("confidence.tif")
    told = refused(capfd, "predict", model, raster, output, "--confidence", confidence)
    assert f"raster {raster} is broken" in told
    assert not list(output.parent.iterdir())


@pytest.mark.parametrize("place", ["folder", "small.tif/map.tif", "/proc/map.tif", "n" * 300])
def test_an_output_without_a_place_is_refused_before_the_work(small, tmp_path, capfd, place):
    (tmp_path / "folder").mkdir()
    model, raster, _ = small
    assert "cannot be written (" in refused(capfd, "predict", model, raster, tmp_path / place)


def test_a_map_that_does_not_fit_on_the_disk_is_told_and_gone(small):
    output = small[2]
    predict_raster(*small)
    size = output.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (size // 2, size - 1):
        for made in output.parent.iterdir():
            made.unlink()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(RoomError, match="make room"):
                predict_raster(*small)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not list(output.parent.iterdir())


CLASS = small_card()["classes"][0]


@pytest.mark.parametrize(
    ("card", "told"),
    [
        ("[" * 200_000, "has a card that cannot be read"),
        ("[1]", "has a card that cannot be read"),
        (small_card(shapes={"s1": [-1, -1]}), "expected at least 1"),
        (small_card(shapes={"s1": [1, 2]}), "it has other bands than its inputs have"),
        (small_card(meaning={"s1": {"polarisation": ["VV", "VH"]}}), "have other names than it has bands"),
        (small_card(classes=[{**CLASS, "colour": ""}]), r"classes.0.colour: expected #RRGGBB \(got ''\)"),
        (small_card(classes=[{**CLASS, "colour": "zz"}]), r"classes.0.colour: expected #RRGGBB \(got 'zz'\)"),
        (small_card(classes=[{**CLASS, "name": "\ud800"}]), "has a card that cannot be read"),
        (small_card(classes=[{**CLASS, "name": "\x1b[2J"}]), "without control characters"),
        (small_card(classes=[{**CLASS, "name": "n" * 201}]), r"name: expected 1 to 200 letters \(got 201\)"),
        (small_card(classes=[{**CLASS, "id": i} for i in (1, 3)]), "other ids than 1, 2, 3 and so on"),
        (small_card(classes=[{**CLASS, "id": i} for i in (0, 300)]), "other ids than 1, 2, 3 and so on"),
        (small_card(blend="other"), "has a card that cannot be read"),
        (small_card(attribution="\ud800"), "has a card that cannot be read"),
        (small_card(any_window=False, window_pixels=64), "does not take the bands and windows"),
    ],
)
def test_a_card_from_elsewhere_is_not_trusted(tmp_path, card, told):
    with pytest.raises(ModelError, match=told) as error:
        read_exported(small_model(tmp_path / "small.onnx", card))
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("graph", "told"),
    [
        ({"last": "NoSuchThing"}, "cannot be run"),
        ({"last": "Div"}, "no probabilities from 0 to 1"),  # 0 / 0
        ({"last": "Exp"}, "no probabilities from 0 to 1"),
        ({"output": "others"}, "does not take the bands and windows"),
        ({"side": 0}, "does not take the bands and windows"),
        ({"channels": 4}, "does not take the bands and windows"),
    ],
)
def test_a_graph_that_gives_no_probabilities_is_refused(small, capfd, graph, told):
    small_model(small[0], **graph)
    assert told in refused(capfd, "predict", *small)
    assert not list(small[2].parent.glob("*"))


def test_no_map_is_left_without_its_table(small, monkeypatch):
    def fail(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("covermap.exported.write_attributes", fail)
    with pytest.raises(RoomError, match="No space left"):
        predict_raster(*small)
    assert not list(small[2].parent.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--months", "x"], "--months: expected months from 1 to 12 with commas between, such as 1,7 (got 'x')"),
        (["--months", "0"], "(got '0')"),
        (["--dates", "2020-13-01"], "--dates: expected days as YYYY-MM-DD with commas between"),
    ],
)
def test_steps_that_are_none_are_refused(small, capsys, words, told):
    with pytest.raises(SystemExit):
        main(["inputs", str(small[0]), "out.tif", "a.zarr.zip", *words])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("window", "told"), [(0, "window_pixels: expected at least 32 (got 0)"), (-8, "(got -8)")])
def test_a_window_of_nothing_is_refused(small, capfd, window, told):
    assert told in refused(capfd, "predict", *small, "--window", window)


def test_a_stack_is_nothing_to_remove(small, tmp_path, capfd):
    model, foreign, other = small[0], tmp_path / "foreign.zarr.zip", tmp_path / "other.zarr.zip"
    foreign.write_bytes(b"something")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("hello.txt", "hello")
    for stack, told in ((tmp_path / "none", "does not exist"), (foreign, "cannot be read"), (other, "cannot be read")):
        said = refused(capfd, "inputs", model, small[2], stack)
        assert f"stack {stack} {told}" in said and "remove" not in said
    assert not small[2].exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_what_is_not_installed_is_told(small, capfd, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == package else find(name, *more))
    assert f"{package} is not installed: pip install 'covermap[export]'" in refused(capfd, "predict", *small)
    with pytest.raises(SettingError, match=f"{package} is not installed"):
        export_model([Path("a")], Path("b"), Path("c"), PREDICTION, LEGEND, 10.0)


def test_memory_does_not_depend_on_the_machine(small, monkeypatch):
    main(["predict", *map(str, small)])
    assert os.environ["GDAL_CACHEMAX"] == "64"  # the user's own
    monkeypatch.delenv("GDAL_CACHEMAX")
    main(["predict", *map(str, small)])
    assert os.environ["GDAL_CACHEMAX"] == "256"


def test_what_is_no_model_is_refused(exported, tmp_path):
    for name, data in (("pickle", b"\x80\x04\x95\x10"), ("weights", exported[0][0].read_bytes()), ("empty", b"")):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ModelError, match=r"is no ONNX file|was not exported by covermap"):
            read_exported(path)
    with pytest.raises(ModelError, match="does not exist"):
        read_exported(tmp_path / "none.onnx")


def test_sentinel2_alone_is_kept_as_it_is(stacks, tmp_path):
    meaning = {"s2": meaning_of(stacks[0])["s2"]}
    bands = [band.model_dump() for band in bands_of({"s2": (2, 2)}, meaning, days=True)]
    card = small_card(bands=bands, shapes={"s2": [2, 2]}, meaning=meaning)
    model, raster = small_model(tmp_path / "model.onnx", card, bands=6), tmp_path / "bands.tif"
    write_inputs(model, stacks[1:], raster)
    with rasterio.open(raster) as made:
        assert made.dtypes[0] == "uint16" and made.nodata == 0
        expected = read_stack(stacks[1], slice(0, 256), slice(0, 256), ["s2", DAY])
        np.testing.assert_array_equal(made.read()[:4], expected["s2"].reshape(4, 256, 256))
        np.testing.assert_array_equal(made.read()[4:], expected[DAY])


def test_a_stack_of_other_steps_than_the_card_tells_is_refused(stacks, tmp_path):
    meaning = {"s2": {"band": meaning_of(stacks[0])["s2"]["band"]}}
    bands = [band.model_dump() for band in bands_of({"s2": (5, 2)}, meaning, days=False)]
    model = small_model(tmp_path / "m.onnx", small_card(bands=bands, shapes={"s2": [5, 2]}, meaning=meaning), bands=10)
    with pytest.raises(ModelError, match=r"a stack has \(2, 2\) steps and bands of s2, the model \(5, 2\)"):
        write_inputs(model, stacks[1:], tmp_path / "bands.tif")
    assert not (tmp_path / "bands.tif").exists()


def test_stacks_of_other_inputs_are_refused(exported, area, tmp_path):
    with pytest.raises(ModelError, match="learned from"):
        write_inputs(exported[2], list(area.stacks.values()), tmp_path / "bands.tif")


def test_another_legend_is_refused(exported, tmp_path):
    legend = Legend(classes=LEGEND.classes[:3], codes={})
    with pytest.raises(ModelError, match="give its own legend"):
        export_model(exported[0], tmp_path / "a.onnx", tmp_path / "a.dlpk", PREDICTION, legend, 10.0)


# --- ArcGIS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(exported, tmp_path_factory):
    """The package as ArcGIS unpacks it, and its raster function's class."""
    folder = tmp_path_factory.mktemp("dlpk")
    with zipfile.ZipFile(exported[3]) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    definition = folder / "both.emd"
    told = json.loads(definition.read_text(encoding="utf-8"))
    path = folder / told["InferenceFunction"]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return definition, getattr(module, path.stem)


def run_as_arcgis(function, rasters, **scalars):
    """Classes of a whole raster: the calls that ArcGIS makes, tile by tile, each with its padding and its mask."""
    configuration = function.getConfiguration(**scalars)
    height, width = next(iter(rasters.values()))[0].shape[1:]
    info = {"bandCount": 3, "pixelType": "i2", "noData": None}
    info = function.updateRasterInfo(output_info=info, raster_info=dict(info), **scalars)["output_info"]
    out = np.zeros((height, width), info["pixelType"])
    tx, ty, padding = (configuration[name] for name in ("tx", "ty", "padding"))
    for row in range(0, height, ty):
        for column in range(0, width, tx):
            blocks = {}
            for name, (pixels, mask) in rasters.items():
                sides = [(0, 0), (padding, ty + padding), (padding, tx + padding)]
                cut = np.s_[:, row : row + ty + 2 * padding, column : column + tx + 2 * padding]
                blocks[f"{name}_pixels"] = np.pad(pixels, sides)[cut]
                blocks[f"{name}_mask"] = np.pad(mask, sides)[cut]
            props = {"pixelType": info["pixelType"], "cellSize": (10.0, 10.0), "noData": info["noData"]}
            found = function.updatePixels((column, row), (1, ty, tx), props, **blocks)
            assert found["output_pixels"].shape == found["output_mask"].shape == (1, ty, tx)
            assert ((found["output_pixels"] != 0) == (found["output_mask"] != 0)).all()
            part = out[row : row + ty, column : column + tx]
            part[:] = found["output_pixels"][0][: part.shape[0], : part.shape[1]]
    return out, info


def bands_and_mask(raster):
    with rasterio.open(raster) as given:
        return given.read(), (given.read_masks() > 0).astype(np.uint8)


@pytest.mark.parametrize(
    "scalars", [{"padding": 32, "batch_size": 4}, {"padding": 0, "batch_size": 1}, {"padding": "50", "batch_size": "7"}]
)
def test_the_raster_function_gives_the_classes_of_our_predictor(installed, exported, ours, scalars):
    definition, made = installed
    function = made()
    function.initialize(model=str(definition), device=-1)
    names = [parameter["name"] for parameter in function.getParameterInfo()]
    assert names[:3] == ["raster", "model", "device"] and {"padding", "batch_size"} < {*names}
    classes, info = run_as_arcgis(function, {"raster": bands_and_mask(exported[4])}, **scalars)
    assert classes.dtype == np.uint8 and info["bandCount"] == 1
    assert (classes == ours[0]).mean() >= 0.9999
    assert ((classes == 0) == (ours[0] == 0)).all()
    table = json.loads(info["rasterAttributeTable"])["features"]
    assert [row["attributes"]["Classname"] for row in table] == [entry.name for entry in LEGEND.classes]


def test_the_bands_may_be_spread_over_several_rasters(installed, exported, ours):
    definition, made = installed
    function = made()
    function.initialize(
        model=definition.read_text(encoding="utf-8").replace(
            '"both.onnx"', json.dumps(str(definition.with_suffix(".onnx")))
        )
    )
    assert [parameter["name"] for parameter in function.getParameterInfo()][3:5] == ["raster2", "raster3"]
    pixels, mask = bands_and_mask(exported[4])
    counts = [entry["Bands"] for entry in json.loads(definition.read_text(encoding="utf-8"))["Inputs"]]
    assert sum(counts) == len(pixels)
    edges = [0, *np.cumsum(counts)]
    names = ("raster", "raster2", "raster3")
    parts = {name: (pixels[a:b], mask[a:b]) for name, a, b in zip(names, edges[:-1], edges[1:], strict=True)}
    assert "extractBands" not in function.getConfiguration()
    classes, _ = run_as_arcgis(function, parts)
    assert (classes == ours[0]).mean() >= 0.9999
    with pytest.raises(ValueError, match="bands, the model takes"):
        run_as_arcgis(function, {"raster": parts["raster"]})


def test_class_values_are_those_of_the_definition(installed, exported, ours, tmp_path):
    definition, made = installed
    told = json.loads(definition.read_text(encoding="utf-8"))
    for entry in told["Classes"]:
        entry["Value"] *= 10
    function = made()
    told["ModelFile"] = str(definition.with_suffix(".onnx"))
    function.initialize(model=json.dumps(told))
    classes, _ = run_as_arcgis(function, {"raster": bands_and_mask(exported[4])})
    assert (classes == 10 * ours[0]).mean() >= 0.9999


@pytest.mark.parametrize(
    ("overlap", "blend", "symmetries"), [(0.25, "none", False), (0.6, "centre", False), (0, "hann", True)]
)
def test_windows_of_the_function_are_those_of_the_engine(
    installed, exported, stacks, area, tmp_path, overlap, blend, symmetries
):
    weights, calibrations, _, _, raster = exported
    chosen = Prediction(window_pixels=64, overlap=overlap, blend=blend, symmetries=symmetries, batch=2)
    out, shift = tmp_path / "block.tif", chosen.step_pixels
    blocks = [grid_of_stack(stack) for stack in stacks]
    grid = area.grid
    predict_block(weights, stacks, out, grid, blocks, chosen, calibrations=calibrations)
    definition, made = installed
    told = json.loads(definition.read_text(encoding="utf-8"))
    told |= {"WindowStep": shift, "Blend": blend, "Symmetries": symmetries}
    told["ModelFile"] = str(definition.with_suffix(".onnx"))
    function = made()
    function.initialize(model=json.dumps(told))
    pixels, mask = bands_and_mask(raster)
    # tiles of ArcGIS begin at the raster's corner, windows of ours at multiples of the step of the lattice
    place = region_of(grid)
    row, column = place.row % shift, place.column % shift
    around = [(0, 0), (row, 0), (column, 0)]
    classes, _ = run_as_arcgis(function, {"raster": (np.pad(pixels, around), np.pad(mask, around))})
    with rasterio.open(out) as expected:
        assert (classes[row:, column:] == expected.read(1)).mean() >= 0.9999


def test_the_card_goes_through_json(exported):
    card = read_exported(exported[2])[1]
    assert Card(**json.loads(metadata_of(card)["covermap"])) == card
