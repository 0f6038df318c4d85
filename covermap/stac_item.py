"""What a map is, as a STAC item beside it: its files, its classes, and the network that made it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rasterio
from shapely import from_wkt
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from covermap import __version__
from covermap.area_settings import Period
from covermap.attribution import dated
from covermap.errors import SettingError
from covermap.files import whole
from covermap.grid import Grid
from covermap.inputs import CHANNELS, DTYPE, STEPS
from covermap.legend import NO_LABEL, Legend, LegendClass
from covermap.scenes import read_listing
from covermap.styles import title_of
from covermap.trained import read_weights

STAC_VERSION = "1.1.0"
EXTENSIONS = [
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in (
        "classification/v2.0.0",
        "file/v2.1.0",
        "mlm/v1.4.0",
        "processing/v1.1.0",
        "projection/v2.0.0",
        "raster/v1.1.0",
    )
]
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
DBASE, GEOPACKAGE, SAFETENSORS, XML = (
    "application/dbase",
    "application/geopackage+sqlite3",
    "application/octet-stream; application=safetensors",
    "application/xml",
)
# Names of tensors that are not learnt: statistics of the inputs, and of batch normalisation
BUFFER = re.compile(r"^(?!network\.)|\.(?:running_mean|running_var|num_batches_tracked)$")
SHA256 = "1220"  # how a multihash of SHA-256 begins
ROUNDED = 7  # decimals of degrees: a centimetre
Json = dict[str, Any]


def describe_map(
    map: Path,
    confidence: Path,
    style: Path,
    confidence_style: Path,
    attributes: Path,
    table: Path,
    layers: list[Path],
    weights: list[Path],
    listing: Path,
    item: Path,
    grid: Grid,
    area: str,
    aoi: str,
    legend: Legend,
    period: Period,
    model: str,
    attribution: str,
    window_pixels: int,
    vector: Path | None = None,
) -> None:
    """A STAC item of a map, with paths relative to it and nothing in it that changes from run to run.

    Parameters
    ----------
    map, confidence, layers : the rasters.
    style, confidence_style, attributes, table, vector : what lies beside the map.
    weights : of the networks whose probabilities were averaged; the first one's inputs are told of.
    listing : scenes of the area, for the years of the attribution.
    item : what is written.
    grid : of the rasters.
    area : outline, WKT in lon/lat.
    aoi, model : the names that make the item's.
    legend : classes, names and colours.
    period : first and last day.
    attribution : whose data the map contains.
    window_pixels : side of what the network saw at once.

    Raises
    ------
    ModelError
        The weights cannot be read.
    ProductError
        The list of scenes cannot be read.
    """
    outline = from_wkt(area)
    told = dated(attribution, read_listing(listing).values())
    named = {"map": map, "confidence": confidence, **{layer_of(path): path for path in layers}}
    assets = {name: raster_asset(path, item, name, legend) for name, path in named.items()}
    beside = {"style": style, "confidence_style": confidence_style, "attributes": attributes, "table": table}
    beside |= {"vector": vector} if vector else {}
    assets |= {name: file_asset(path, item, *ASSETS[name]) for name, path in beside.items()}
    assets |= dict(model_assets(weights, item))
    body = {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": EXTENSIONS,
        "id": f"{aoi}-{model}",
        "geometry": _rounded(mapping(_oriented(outline))),
        "bbox": _rounded(outline.bounds),
        "properties": {
            "title": f"Land cover of {title_of(aoi)}, {period.start} to {period.end}",
            "description": f"Classes and their confidence, mapped by covermap with the network {model}. {told}.",
            "datetime": None,
            "start_datetime": f"{period.start}T00:00:00Z",
            "end_datetime": f"{period.end}T23:59:59Z",
            "gsd": grid.pixel_m,
            **_projection(grid),
            "processing:software": {"covermap": __version__},
            "processing:lineage": told,
            **network(weights[0], model, legend, window_pixels),
        },
        "links": [],
        "assets": assets,
    }
    with whole(item) as part:
        part.write_text(json.dumps(body, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


ASSETS: dict[str, tuple[str, str, list[str]]] = {
    "style": ("QGIS style of the map", XML, ["metadata", "style"]),
    "confidence_style": ("QGIS style of the confidence", XML, ["metadata", "style"]),
    "attributes": ("Legend and attribute table for GDAL and QGIS", XML, ["metadata", "legend"]),
    "table": ("Legend and attribute table for ArcGIS", DBASE, ["metadata", "legend"]),
    "vector": ("Polygons of the classes", GEOPACKAGE, ["data"]),
}
RASTERS: dict[str, tuple[str, list[str]]] = {
    "map": ("Classes", ["data"]),
    "confidence": ("Confidence: probability of the class", ["data", "confidence"]),
    "margin": ("Margin to the probability of the second class", ["data", "confidence"]),
    "entropy": ("Entropy: 100 where all classes are alike", ["data", "confidence"]),
    "probabilities": ("Probabilities of all classes", ["data"]),
}


def layer_of(path: Path) -> str:
    """Name of the layer of a file such as ``demo.margin.tif``.

    Raises
    ------
    SettingError
        There is no layer of this name.
    """
    name = path.suffixes[-2][1:] if len(path.suffixes) > 1 else ""
    if name not in RASTERS:
        raise SettingError(f"{path} is no layer of a map: expected a name that ends in .{', .'.join(RASTERS)} and .tif")
    return name


def file_asset(path: Path, item: Path, title: str, kind: str, roles: Sequence[str]) -> Json:
    """A file, by its path from the item (STAC 1.1, "Asset Object"; file extension)."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "href": Path(os.path.relpath(path, item.parent)).as_posix(),
        "title": title,
        "type": kind,
        "roles": list(roles),
        "file:size": path.stat().st_size,
        "file:checksum": SHA256 + digest,
    }


def raster_asset(path: Path, item: Path, name: str, legend: Legend) -> Json:
    """A raster with its bands (raster extension) and, of the map, its classes (classification extension)."""
    title, roles = RASTERS[name]
    asset = file_asset(path, item, title, COG, roles)
    with rasterio.open(path) as raster:
        names, resolution = raster.descriptions, raster.transform.a
        known = {"nodata": int(raster.nodata), "data_type": raster.dtypes[0]}
        unit, scale = raster.units[0], raster.scales[0]
    stored = {"scale": scale, "offset": 0} if scale != 1 else {}
    asset["raster:bands"] = [
        {**known, **stored, **({"unit": unit} if unit else {}), "sampling": "area", "spatial_resolution": resolution}
        for _ in names
    ]
    asset["bands"] = [{"name": band} for band in names]
    asset |= known
    if name == "map":
        asset["classification:classes"] = class_objects(legend)
    return asset


def class_objects(legend: Legend) -> list[Json]:
    """Classes as the classification extension has them, and what stands for no data."""
    none = {"value": NO_LABEL, "name": "no_data", "title": "No data", "description": "No data", "nodata": True}
    return [none, *map(_class_object, legend.classes)]


def _class_object(entry: LegendClass) -> Json:
    return {
        "value": entry.id,
        "name": _word(entry.key),
        "title": entry.name,
        "description": entry.name,
        "color_hint": entry.colour[1:].upper(),
    }


def _word(key: str) -> str:
    """A key as the classification extension wants it: letters, digits, hyphens and underscores."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in key)


def model_assets(weights: Sequence[Path], item: Path) -> Iterator[tuple[str, Json]]:
    """The files of weights (MLM extension, "Model Asset")."""
    for number, path in enumerate(weights, 1):
        asset = file_asset(path, item, f"Weights of {path.parent.name}", SAFETENSORS, ["mlm:model", "mlm:weights"])
        name = "model" if number == 1 else f"model_{number}"
        yield name, {**asset, "mlm:artifact_type": "safetensors.torch.save_file"}


def network(weights: Path, name: str, legend: Legend, window_pixels: int) -> Json:
    """What the network is, sees and gives (MLM extension 1.4), and the names of the bands that it sees."""
    header, tensors = read_weights(weights)
    settings, classes = header["model"], len(header["classes"])
    source = settings.get("start_from")
    inputs = [_input(key, shape, header["meaning"], window_pixels) for key, shape in header["shapes"].items()]
    patch = {"shape": [-1, classes, window_pixels, window_pixels], "dim_order": ["batch", "class", "height", "width"]}
    result = {
        "name": "class",
        "tasks": ["semantic-segmentation"],
        "result": {**patch, "data_type": "float32"},
        "classification:classes": class_objects(legend)[1:],
        "description": "probabilities of the classes, of which the map has the likeliest",
    }
    return {
        "bands": [{"name": band} for band in dict.fromkeys(band for one in inputs for band in one["bands"])],
        "mlm:name": name if len(name) > 2 else f"network {name}",
        "mlm:architecture": settings["network"],
        "mlm:framework": "PyTorch",
        "mlm:tasks": ["semantic-segmentation"],
        "mlm:total_parameters": sum(tensor.numel() for name, tensor in tensors.items() if not BUFFER.search(name)),
        "mlm:pretrained": source is not None,
        "mlm:pretrained_source": source,
        "mlm:input": inputs,
        "mlm:output": [result],
    }


def _input(key: str, shape: Sequence[int], meaning: Mapping[str, Mapping[str, list[str]]], window_pixels: int) -> Json:
    """An input (T, C, y, x) of the network: bands of several steps in time."""
    steps, bands = shape
    names = meaning.get(key, {})
    told = [f"{axis} {', '.join(names[axis])}" for axis in (STEPS.get(key, ""),) if axis in names]
    structure = {
        "shape": [-1, steps, bands, window_pixels, window_pixels],
        "dim_order": ["batch", "time", "bands", "height", "width"],
        "data_type": DTYPE[key].__name__,
    }
    return {
        "name": key,
        "bands": list(names.get(CHANNELS[key], [])),
        "input": structure,
        "description": "; ".join([f"integers of {key}, normalised by the network itself", *told]),
    }


def _projection(grid: Grid) -> Json:
    """Where the rasters lie (projection extension)."""
    return {
        "proj:code": grid.crs,
        "proj:bbox": list(grid.bounds),
        "proj:shape": list(grid.shape),
        "proj:transform": list(grid.transform[:6]),
    }


def _oriented(outline: BaseGeometry) -> BaseGeometry:
    """Outer rings against the clock, as RFC 7946, section 3.1.6, wants them."""
    parts = [orient(part) for part in getattr(outline, "geoms", [outline])]
    return parts[0] if len(parts) == 1 else type(outline)(parts)


def _rounded(value: Any) -> Any:
    """Numbers in nested lists, rounded."""
    if isinstance(value, float):
        return round(value, ROUNDED)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value
