"""The STAC item beside a map: valid, without a network and without anything that changes from run to run."""

import hashlib
import json
import struct
from pathlib import Path

import pystac
import pytest
import torch
from jsonschema import Draft7Validator
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from covermap.errors import ModelError, SettingError
from covermap.model_settings import Model
from covermap.mosaic import mosaic_layer
from covermap.stac_item import EXTENSIONS, class_objects, describe_map, layer_of
from covermap.trained import build, save_weights
from covermap.vectorize import vectorize

from ._maps import FILES, LEGEND, NAMES, made, mapped, named

SCHEMAS = Path(__file__).parents[1] / "fixtures" / "stac"
MEANING = {
    "s1": {"month": ["01", "02"], "polarisation": ["VV", "VH"], "convention": ["sigma0"]},
    "s2": {"band": ["B04", "B08"], "step": ["1"], "level": ["L2A"], "fill": ["none"]},
}


def address(extension):
    return f"https://stac-extensions.github.io/{extension}/schema.json"


def validator(schema):
    """Of a schema, with all that it refers to: STAC's own, those of the extensions, and nothing of a network."""
    known = dict(get_local_schema_cache())
    for path in SCHEMAS.glob("*.json"):
        known[address(path.stem.replace("-", "/"))] = json.loads(path.read_text())
    known[address("classification/v1.1.0")] = known[address("classification/v2.0.0")]
    known["https://proj.org/schemas/v0.7/projjson.schema.json"] = {}
    resources = [(name, Resource.from_contents(one, default_specification=DRAFT7)) for name, one in known.items()]
    return Draft7Validator(known[schema], registry=Registry().with_resources(resources))


CORE = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"


def faults(item):
    return [error.message for schema in (CORE, *EXTENSIONS) for error in validator(schema).iter_errors(item)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A map with all that lies beside it, and weights elsewhere."""
    folder = tmp_path_factory.mktemp("results")
    arguments = made(folder)
    (folder / "maps").mkdir()
    (folder / "models" / "unet").mkdir(parents=True)
    mapped(folder / "maps", arguments)
    for layer in ("margin", "probabilities"):
        mosaic_layer(layer_file=folder / "maps" / f"demo.{layer}.tif", layer=layer, **arguments)
    vectorize(folder / "maps" / "demo.tif", folder / "maps" / "demo.gpkg", LEGEND, 20)
    model = Model(network="unet", options={"width": 8, "depth": 2}, train_on=["here"])
    torch.manual_seed(0)
    net = build(model, {"s1": (2, 2), "s2": (1, 2)}, len(LEGEND.classes), MEANING)
    save_weights(folder / "models" / "unet" / "weights.safetensors", net, model, [one.key for one in LEGEND.classes])
    return folder


def described(folder, **changes):
    arguments = made(folder)
    steps = {name: arguments[name] for name in ("listing", "grid", "area", "legend", "period", "model", "attribution")}
    given = {
        **named(folder / "maps"),
        **steps,
        "layers": [folder / "maps" / f"demo.{layer}.tif" for layer in ("margin", "probabilities")],
        "weights": [folder / "models" / "unet" / "weights.safetensors"],
        "item": folder / "maps" / "demo.stac.json",
        "aoi": "upper_valley",
        "window_pixels": 64,
        "vector": folder / "maps" / "demo.gpkg",
    }
    describe_map(**given | changes)
    return json.loads((folder / "maps" / "demo.stac.json").read_text())


def test_the_item_and_its_extensions_are_valid(folder):
    item = described(folder)
    assert faults(item) == []
    assert not set(item["stac_extensions"]) - {address(path.stem.replace("-", "/")) for path in SCHEMAS.glob("*.json")}
    wrong = {**item, "properties": {**item["properties"], "proj:shape": "wide", "mlm:tasks": ["mapping"], "bands": []}}
    wrong["assets"]["map"]["classification:classes"][1]["color_hint"] = "#2532E4"
    assert len(faults(wrong)) >= 4


def test_pystac_reads_the_item_and_finds_every_file(folder):
    described(folder)
    item = pystac.Item.from_file(str(folder / "maps" / "demo.stac.json"))
    assert item.id == "upper_valley-unet" and item.datetime is None
    assert {*item.assets} == {
        "map", "confidence", "margin", "probabilities", "style", "confidence_style", "attributes", "table", "vector",
        "model",
    }  # fmt: skip
    for asset in item.assets.values():
        path = folder / "maps" / asset.href
        content = path.read_bytes()
        assert not asset.href.startswith("/") and asset.extra_fields["file:size"] == len(content)
        assert asset.extra_fields["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
    assert item.assets["model"].href == "../models/unet/weights.safetensors"


def test_the_item_tells_place_period_classes_and_network(folder):
    item = described(folder)
    told = item["properties"]
    west, south, east, north = item["bbox"]
    assert -57 < west < east < -55 and -14 < south < north < -13
    assert told["start_datetime"] == "2021-01-01T00:00:00Z" and told["end_datetime"] == "2021-12-31T23:59:59Z"
    assert told["title"] == "Land cover of Upper valley, 2021-01-01 to 2021-12-31"
    assert told["processing:lineage"] == "Contains modified Copernicus Sentinel data 2021"
    assert told["proj:code"] == "EPSG:32721" and len(told["proj:transform"]) == 6
    radar, optical = told["mlm:input"]
    assert radar["bands"] == ["VV", "VH"] and radar["input"]["shape"] == [-1, 2, 2, 64, 64]
    assert optical["bands"] == ["B04", "B08"] and optical["input"]["data_type"] == "uint16"
    assert told["mlm:architecture"] == "unet" and told["mlm:pretrained"] is False
    assert [one["value"] for one in told["mlm:output"][0]["classification:classes"]] == [1, 2, 3]
    classes = item["assets"]["map"]["classification:classes"]
    assert [one["title"] for one in classes[1:]] == list(NAMES) and classes[1]["color_hint"] == "2532E4"
    assert classes[0]["nodata"] is True
    bands = item["assets"]["probabilities"]["raster:bands"]
    assert [band["scale"] for band in bands] == [0.004] * 3 and bands[0]["nodata"] == 255


def test_a_run_later_gives_the_same_bytes(folder):
    described(folder)
    first = (folder / "maps" / "demo.stac.json").read_bytes()
    described(folder)
    assert (folder / "maps" / "demo.stac.json").read_bytes() == first


def test_without_layers_and_polygons_the_item_is_valid_too(folder):
    item = described(folder, layers=[], vector=None)
    assert faults(item) == [] and "vector" not in item["assets"]


def test_weights_that_cannot_be_read_are_named(folder, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 9))
    with pytest.raises(ModelError, match="cannot be read"):
        described(folder, weights=[tmp_path / "w.safetensors"])


def test_keys_become_words_and_files_layers():
    odd = LEGEND.model_copy(update={"classes": (LEGEND.classes[0].model_copy(update={"key": "água doce"}),)})
    assert class_objects(odd)[1]["name"] == "_gua_doce"
    assert layer_of(Path("a/x.y.entropy.tif")) == "entropy"
    with pytest.raises(SettingError, match="no layer of a map"):
        layer_of(Path("demo.tif"))
    assert len(FILES) == 6
