"""Exported models give the classes of our own predictor: the graph, the command, and ArcGIS's raster function."""

import importlib.util
import json
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
from covermap.errors import CoverageError, CovermapError, ModelError
from covermap.export import OneImage, agreement, card_of, export_model, main, metadata_of, samples, to_onnx
from covermap.exported import IMAGE, Card, grid_of_stack, new_session, predict_raster, read_exported, write_inputs
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
QUICK = ("unet", "fcn", "classifier")


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
    with pytest.raises(CovermapError, match="is both what is mapped and where the map goes"):
        predict_raster(model, raster, raster)


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
        (lambda proto: other_card(proto, shapes={"s3": [1, 1]}), "has a card that contradicts itself"),
        (lambda proto: proto.graph.output[0].type.tensor_type.ClearField("shape"), "does not take the bands or give"),
        (lambda proto: other_card(proto, classes=[]), "has a card that cannot be read"),
    ],
)
def test_a_graph_from_elsewhere_is_not_trusted(exported, tmp_path, change, told):
    path = tmp_path / "model.onnx"
    hostile(exported[2], path, change)
    with pytest.raises(ModelError, match=told):
        read_exported(path)


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
    net = network_of(settings(sensors=["sentinel2"]), {"s2": (2, 2)}, meaning)
    proto, _ = to_onnx(OneImage([net]).eval(), card_of([net], PREDICTION, LEGEND, 10.0))
    model, raster = tmp_path / "model.onnx", tmp_path / "bands.tif"
    model.write_bytes(proto.SerializeToString())
    write_inputs(model, stacks[1:], raster)
    with rasterio.open(raster) as made:
        assert made.dtypes[0] == "uint16" and made.nodata == 0
        expected = read_stack(stacks[1], slice(0, 256), slice(0, 256), ["s2", DAY])
        np.testing.assert_array_equal(made.read()[:4], expected["s2"].reshape(4, 256, 256))
        np.testing.assert_array_equal(made.read()[4:], expected[DAY])


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
