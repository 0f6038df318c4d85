"""What a Sentinel-2 product holds, from its metadata alone: a SAFE, or an item with rasters.

Offset and quantification are always the product's own (ESA, Sentinel-2 Products Specification Document; offsets exist
from processing baseline 04.00 on and in all of Collection 1): reflectance = (DN + offset) / quantification.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from affine import Affine
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from rasterio.transform import array_bounds

from covermap.errors import ProductError

STEPS = 10_000  # of reflectance 1
SCL = "SCL"
BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")  # by band_id
OFFSETS_SINCE = "04.00"  # processing baseline, in operation from the day below on
OFFSETS_FROM_DAY = "2022-01-25"
DECLARED = "declared in the item"
AGAIN = "mend its source and remove the stored file, so that it is fetched again"
COMMON_NAMES = {  # asset keys of Earth Search and eo:common_name, where it tells one band from all others
    "coastal": "B01",
    "blue": "B02",
    "green": "B03",
    "red": "B04",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "nir": "B08",
    "nir08": "B8A",
    "nir09": "B09",
    "swir16": "B11",
    "swir22": "B12",
}
BAND_FILE = re.compile(r"_(?P<band>B\d[\dA]|SCL)_(?P<pixel_m>10|20|60)m$")


@dataclass(frozen=True)
class Band:
    """Where a band lies and what its numbers mean: reflectance = (DN + offset) / quantification.

    ``offset_from`` says where the offset comes from, and is empty where nothing tells it (0 is no answer then).
    ``place`` is the CRS and bounds that the product's metadata give, for rasters that carry none.
    """

    path: str
    index: int = 1
    offset: float = 0
    quantification: float = STEPS
    nodata: float | None = None
    offset_from: str = ""
    place: tuple[str, tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Product:
    """The bands of a scene by name, SCL among them where there is one; ``name`` tells the stored file too."""

    name: str
    bands: Mapping[str, Band]
    baseline: str = ""


@dataclass(frozen=True)
class _Files:
    """The files of a product, in a zip or in a folder, by their path in it."""

    root: Path
    names: frozenset[str] = field(repr=False)

    def told(self, name: str) -> str:
        """Name of the product with the file that holds it, for messages."""
        return f"{name} (stored as {self.root})" if self.zipped else str(self.root)

    @property
    def zipped(self) -> bool:
        return self.root.is_file()

    def path(self, name: str) -> str:
        """Path for GDAL."""
        return f"/vsizip/{{{self.root}}}/{name}" if self.zipped else str(self.root / name)

    def read(self, name: str) -> bytes:
        if not self.zipped:
            return (self.root / name).read_bytes()
        try:
            with zipfile.ZipFile(self.root) as archive:
                return archive.read(name)
        except (zipfile.BadZipFile, OSError) as error:
            raise ProductError(f"product {self.root}: {name} is broken ({error}): {AGAIN}") from error


def open_product(product: Path) -> Product:
    """What a product holds, from its metadata alone; see ``clip_s2`` for the kinds.

    Raises
    ------
    ProductError
        The file is missing, broken or unsafe, or neither a Level-2A SAFE nor an item with rasters.
    """
    files = _files(product)
    if "item.json" in files.names:
        return _assets(files)
    for name in sorted(files.names, key=len):
        if PurePosixPath(name).name == "MTD_MSIL2A.xml":
            return _safe(files, name)
        if PurePosixPath(name).name == "MTD_MSIL1C.xml":
            raise ProductError(f"product {product} is Level-1C (top of atmosphere): expected Level-2A, {AGAIN}")
    raise ProductError(
        f"product {product} has neither MTD_MSIL2A.xml nor item.json: expected a Level-2A product, {AGAIN}"
    )


def _files(product: Path) -> _Files:
    if product.is_dir():
        names = [path.relative_to(product).as_posix() for path in product.rglob("*") if path.is_file()]
    else:
        try:
            with zipfile.ZipFile(product) as archive:
                names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        except FileNotFoundError:
            raise ProductError(f"product {product} does not exist: download it") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise ProductError(f"product {product} is no whole zip ({error}): {AGAIN}") from error
    for name in names:
        if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
            raise ProductError(f"product {product} holds the unsafe path {name!r}: do not use this file")
    if not names:
        raise ProductError(f"product {product} is empty: {AGAIN}")
    return _Files(product, frozenset(names))


def _safe(files: _Files, metadata: str) -> Product:
    """Product of a SAFE whose MTD_MSIL2A.xml is ``metadata``."""
    folder = PurePosixPath(metadata).parent
    name = files.told(folder.name or files.root.name)
    numbers, images, baseline = read_metadata(files.read(metadata), name)
    if not images:  # found by name, where the metadata list none
        images = [str(PurePosixPath(file).relative_to(folder)) for file in files.names if _in_granule(folder, file)]
    found: dict[str, tuple[int, str]] = {}
    for image in images:
        match = BAND_FILE.search(image.removesuffix(".jp2"))
        if match is None:
            continue
        band, pixel_m = match["band"], int(match["pixel_m"])
        known = found.get(band)
        if known and known[0] == pixel_m and known[1] != image:
            raise ProductError(
                f"product {name}, band {band}: two files, {known[1]} and {image}: expected one granule, {AGAIN}"
            )
        if (band == SCL and pixel_m == 20) or (band != SCL and (known is None or pixel_m < known[0])):
            found[band] = pixel_m, image
    bands = {}
    for band, (_, image) in found.items():
        path = str(folder / (image.removesuffix(".jp2") + ".jp2"))
        if path in files.names:
            offset, quantification = numbers.get(band, (0, 1))
            bands[band] = Band(files.path(path), 1, offset, quantification, offset_from="MTD_MSIL2A.xml")
    return Product(name, bands, baseline)


def _in_granule(folder: PurePosixPath, file: str) -> bool:
    path = PurePosixPath(file)
    return path.is_relative_to(folder) and path.match("GRANULE/*/IMG_DATA/R*m/*.jp2")


def read_metadata(metadata: bytes, product: str) -> tuple[dict[str, tuple[float, float]], list[str], str]:
    """Offset and quantification by band, image files and processing baseline out of an MTD_MSIL2A.xml.

    Raises
    ------
    ProductError
        The file is no XML, is of another level, or has no quantification.
    """
    try:
        root = ElementTree.fromstring(metadata)
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise ProductError(f"product {product}: MTD_MSIL2A.xml is no XML ({error}): {AGAIN}") from error
    kind = root.tag.rpartition("}")[2]
    if kind != "Level-2A_User_Product":
        raise ProductError(
            f"product {product}: MTD_MSIL2A.xml is of kind {kind!r}: expected 'Level-2A_User_Product', {AGAIN}"
        )
    # before baseline 02.07 the name was L2A_BOA_QUANTIFICATION_VALUE
    values = [node.text for node in root.iter() if node.tag.endswith("BOA_QUANTIFICATION_VALUE")]
    offsets = {node.get("band_id"): node.text for node in root.iter("BOA_ADD_OFFSET")}
    try:
        quantification = float(values[0] or "")
        listed = {BAND_IDS[int(key or "")]: float(value or "") for key, value in offsets.items()}
    except (IndexError, ValueError) as error:
        raise ProductError(
            f"product {product}: MTD_MSIL2A.xml has no usable quantification and offsets (BOA_QUANTIFICATION_VALUE "
            f"{values}, BOA_ADD_OFFSET {offsets}): {AGAIN}"
        ) from error
    if not quantification > 0:
        raise ProductError(
            f"product {product}: BOA_QUANTIFICATION_VALUE is {quantification}: expected more than 0, {AGAIN}"
        )
    if listed and (missing := set(BAND_IDS) - set(listed)):
        raise ProductError(
            f"product {product}, band {min(missing)}: no BOA_ADD_OFFSET, but other bands have one: {AGAIN}"
        )
    numbers = {band: (listed.get(band, 0.0), quantification) for band in BAND_IDS}
    images = [(node.text or "").strip() for node in root.iter() if node.tag.startswith("IMAGE_FILE")]
    return numbers, images, root.findtext(".//PROCESSING_BASELINE") or ""


def _assets(files: _Files) -> Product:
    """Product of an item with rasters: bands by asset key, or by the names that a multi-band asset gives them."""
    try:
        item = json.loads(files.read("item.json"))
        name, properties, assets = files.told(item["id"]), item["properties"], item["assets"]
    except (ValueError, KeyError, TypeError) as error:
        raise ProductError(f"product {files.root}: item.json is no STAC item ({error!r}): {AGAIN}") from error
    found: dict[str, tuple[float, Band]] = {}
    for key, asset in assets.items():
        file = str(PurePosixPath(asset.get("href", "")))
        if file not in files.names or {"visual", "overview", "thumbnail"} & {key, *asset.get("roles", ())}:
            continue
        for index, (band, numbers) in enumerate(_band_names(key, asset), 1):
            pixel_m = asset.get("gsd") or numbers.get("spatial_resolution") or 0
            if band is None or (band in found and found[band][0] <= pixel_m):
                continue
            offset, quantification, offset_from = _declared_numbers(f"{name}, band {band}", numbers, item)
            nodata = numbers.get("nodata")
            found[band] = (
                pixel_m,
                Band(
                    path=files.path(file),
                    index=index,
                    offset=offset,
                    quantification=quantification,
                    nodata=float(nodata) if nodata is not None else None,
                    offset_from=offset_from,
                    place=_declared_place(asset, properties),
                ),
            )
    return Product(name, {band: source for band, (_, source) in found.items()}, baseline_of(item))


def _declared_numbers(what: str, numbers: dict[str, Any], item: dict[str, Any]) -> tuple[float, float, str]:
    """Offset [DN] and quantification of an asset's band, and where the offset comes from (empty: nothing tells it)."""
    scale, offset = (numbers.get(f"raster:{word}", numbers.get(word)) for word in ("scale", "offset"))
    baseline = baseline_of(item)
    told = offset is not None or (scale is not None and not baseline)  # without offset, the declared one is 0
    if scale is None:
        scale = 1 / STEPS if offset is None else 1
    try:
        quantification, declared = 1 / float(scale), float(offset or 0) / float(scale)
    except (TypeError, ValueError, ZeroDivisionError):
        quantification, declared = math.nan, math.nan
    if not quantification > 0 or not math.isfinite(declared):
        raise ProductError(
            f"product {what}: scale {scale!r} and offset {offset!r} are declared: expected a scale above 0 and a number"
        )
    if item["properties"].get("earthsearch:boa_offset_applied"):  # the pixels hold it already, whatever is declared
        return 0, quantification, "earthsearch:boa_offset_applied"
    if told:
        return declared, quantification, DECLARED
    if baseline:
        return 0, quantification, f"baseline {baseline}" if baseline < OFFSETS_SINCE else ""
    taken = str(item["properties"].get("datetime") or item["properties"].get("start_datetime") or "9999")
    assumed = f"assumed: no baseline told, taken before {OFFSETS_FROM_DAY}"
    return 0, quantification, assumed if taken < OFFSETS_FROM_DAY else ""


def baseline_of(item: dict[str, Any]) -> str:
    """Processing baseline of an item, such as ``05.09``, by its fields or else its product's name; empty: untold."""
    properties = item["properties"]
    for word in ("s2:processing_baseline", "processing:version"):
        if told := re.fullmatch(r"0?(\d)\.(\d\d?)", str(properties.get(word) or "")):
            return f"0{told[1]}.{told[2]:0<2}"
    named = re.search(r"_N(\d\d)(\d\d)_R\d{3}_", str(properties.get("s2:product_uri") or item["id"]))
    return f"{named[1]}.{named[2]}" if named else ""


def _band_names(key: str, asset: dict[str, Any]) -> list[tuple[str | None, dict[str, Any]]]:
    """Band (None: not one of ours) and its raster fields, for each layer of an asset's file."""
    bands: list[dict[str, Any]] = asset.get("bands") or asset.get("eo:bands") or [{}]
    numbers: Sequence[dict[str, Any]] = asset.get("raster:bands") or [{}] * len(bands)
    fields = {word: asset[word] for word in ("raster:scale", "raster:offset", "nodata", "gsd") if word in asset}
    layers = [{**fields, **number, **band} for band, number in zip(bands, numbers, strict=False)]
    if len(layers) == 1 and (band := band_of(key)):
        return [(band, layers[0])]
    names = ("name", "common_name", "eo:common_name")
    return [(next(filter(None, (band_of(str(layer.get(name))) for name in names)), None), layer) for layer in layers]


def band_of(name: str) -> str | None:
    """Band that an asset key or band name means (``B2``, ``b02``, ``B02_10m``, ``blue``), or None."""
    word = re.sub(r"[_-](10|20|60)m$", "", name.strip(), flags=re.IGNORECASE).lower()
    band = re.sub(r"^b(\d)(?=$|a$)", r"b0\1", word).upper().replace("B08A", "B8A")
    return band if band in {*BAND_IDS, SCL} else COMMON_NAMES.get(word)


def _declared_place(asset: dict[str, Any], properties: dict[str, Any]) -> tuple[str, tuple[float, ...]] | None:
    """CRS and bounds by the projection extension, from the asset or else the item."""
    fields = {**properties, **asset}
    code = fields.get("proj:code") or (f"EPSG:{fields['proj:epsg']}" if fields.get("proj:epsg") else None)
    if code is None:
        return None
    if "proj:transform" in asset and "proj:shape" in asset:
        (height, width), transform = asset["proj:shape"], Affine(*asset["proj:transform"][:6])
        return code, array_bounds(height, width, transform)
    return (code, tuple(fields["proj:bbox"])) if "proj:bbox" in fields else None
