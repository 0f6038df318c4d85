"""Sentinel-2 as a STAC item with one raster a band: Earth Search v1, Planetary Computer, CDSE and their like."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from affine import Affine
from rasterio.transform import array_bounds

from covermap.errors import ProductError
from covermap.scenes import baseline_of, level_of, product_name
from covermap.sentinel2.offsets import (
    OFFSETS_FROM_DAY,
    OFFSETS_SINCE,
    Rule,
    agreed_offset,
    offset_by_baseline,
)
from covermap.sentinel2.product import AGAIN, BAND_IDS, SCL, STEPS, Band, Files, Product, must_be_of_level
from covermap.sentinel2.safe import Metadata, must_be_of_product, read_metadata

DECLARED = "declared in the item"
OWN = "the product's metadata"
APPLIED = "earthsearch:boa_offset_applied"
METADATA_KEYS = ("product-metadata", "product_metadata")
ORIGINAL = re.compile(r"-jp2$", re.IGNORECASE)  # asset keys of Earth Search: files as delivered, beside its COGs
# Planetary Computer names its items after the product, less the baseline; it declares no offset and applies none
AS_DELIVERED = re.compile(r"S2[A-D]_MSIL2A_\d{8}T\d{6}_R\d{3}_T\w{5}_\d{8}T\d{6}")
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
    "cirrus": "B10",
    "swir16": "B11",
    "swir22": "B12",
}


def product_of_item(files: Files, level: str, offsets: Rule) -> Product:
    """Product of an item with rasters: bands by asset key, or by the names that a multi-band asset gives them.

    Raises
    ------
    ProductError
        It is no item, is of another level, has metadata of another product, or an offset contradicts the baseline.
    """
    try:
        item = json.loads(files.read("item.json"))
        name, assets, baseline = files.told(item["id"]), item["assets"], baseline_of(item)
        must_be_of_level(name, level_of(item), level)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProductError(f"product {files.root}: item.json is no STAC item ({error!r}): {AGAIN}") from error
    own = _own_metadata(files, item, name, level)
    found: dict[str, tuple[float, Band]] = {}
    for key, asset in assets.items():
        file = str(PurePosixPath(asset.get("href", "")))
        if file not in files.names or {"visual", "overview", "thumbnail"} & {key, *asset.get("roles", ())}:
            continue
        for index, (band, numbers) in enumerate(_band_names(key, asset), 1):
            pixel_m = asset.get("gsd") or numbers.get("spatial_resolution") or _told_pixel(key)
            if band is None or (band in found and found[band][0] <= pixel_m):
                continue
            what = f"{name}, band {band}"
            applied = _applied(key, file, item["properties"])
            offset, quantification, source = _band_numbers(what, band, numbers, item, own, applied, offsets)
            nodata = numbers.get("nodata")
            found[band] = (
                pixel_m,
                Band(
                    path=files.path(file),
                    index=index,
                    offset=offset,
                    quantification=quantification,
                    nodata=float(nodata) if nodata is not None else None,
                    offset_from=source,
                    place=_declared_place(asset, item["properties"]),
                    pixel_m=_told_pixel(key) or None,
                    meant_quantification=_meant_quantification(band, item, own, offsets),
                ),
            )
    return Product(name, level, {band: source for band, (_, source) in found.items()}, baseline)


def _own_metadata(files: Files, item: dict[str, Any], product: str, level: str) -> Metadata | None:
    """The metadata of the product, where the item brings them."""
    for key in METADATA_KEYS:
        file = str(PurePosixPath(item["assets"].get(key, {}).get("href", "")))
        if file in files.names:
            own = read_metadata(files.read(file), product, level)
            must_be_of_product(product, own, level, product_name(item), baseline_of(item))
            return own
    return None


def _applied(key: str, file: str, properties: dict[str, Any]) -> bool | None:
    """Whether the pixels of an asset hold the offset already; None: untold. What the item tells is of its COGs."""
    if APPLIED not in properties:
        return None
    return bool(properties[APPLIED]) and not ORIGINAL.search(key) and not file.lower().endswith(".jp2")


def _band_numbers(
    what: str,
    band: str,
    numbers: dict[str, Any],
    item: dict[str, Any],
    own: Metadata | None,
    applied: bool | None,
    rule: Rule,
) -> tuple[float, float, str]:
    """Offset [DN] and quantification of an asset's band, and where the offset comes from (empty: nothing tells it)."""
    by_default = own.numbers[band][1] if own and band != SCL else STEPS
    offset, quantification = _declared_numbers(what, numbers, item, by_default)
    if band == SCL or (offset is not None and quantification == 1):  # classes, or reflectance: no digital numbers
        return offset or 0, quantification, DECLARED
    meant = _meant_offset(what, band, item, own, rule)
    if applied and (rule != "baseline" or meant is None):
        return 0, quantification, APPLIED  # the pixels hold it already, whatever is declared
    if offset is None:
        offset, source = _undeclared(item, meant, applied, rule)
        return offset, quantification, source
    settled = agreed_offset(what, (offset, DECLARED), meant, rule)
    return settled[0], quantification, settled[1]


def _declared_numbers(
    what: str, numbers: dict[str, Any], item: dict[str, Any], by_default: float
) -> tuple[float | None, float]:
    """Offset [DN] (None: not declared) and quantification that an asset declares."""
    scale, offset = (numbers.get(f"raster:{word}", numbers.get(word)) for word in ("scale", "offset"))
    told = offset is not None or (scale is not None and not baseline_of(item))  # without offset, the declared one is 0
    if scale is None:
        scale = 1 / by_default if offset is None else 1
    try:
        quantification, declared = 1 / float(scale), float(offset or 0) / float(scale)
    except (TypeError, ValueError, ZeroDivisionError):
        quantification, declared = math.nan, math.nan
    if not quantification > 0 or not math.isfinite(declared):
        raise ProductError(
            f"product {what}: scale {scale!r} and offset {offset!r} are declared: expected a scale above 0 and a number"
        )
    return declared if told else None, quantification


def _meant_offset(
    what: str, band: str, item: dict[str, Any], own: Metadata | None, rule: Rule
) -> tuple[float, str] | None:
    """Offset [DN] that the product's metadata or else its baseline mean, and which of them; None: they tell none."""
    by_baseline = offset_by_baseline(baseline_of(item) or (own.baseline if own else ""))
    return agreed_offset(what, (own.numbers[band][0], OWN), by_baseline, rule) if own else by_baseline


def _meant_quantification(band: str, item: dict[str, Any], own: Metadata | None, rule: Rule) -> float | None:
    """Quantification that whole numbers must have; None: any, since nobody tells it or the declared one counts."""
    if band == SCL or rule == "declared":
        return None
    if own:
        return own.numbers[band][1]
    return STEPS if offset_by_baseline(baseline_of(item)) else None


def _undeclared(
    item: dict[str, Any], meant: tuple[float, str] | None, applied: bool | None, rule: Rule
) -> tuple[float, str]:
    """Offset [DN] where the item declares none, and its source; empty: nobody tells it.

    A baseline with offsets does not tell whether somebody applied them, except where the item says that nobody did
    (``applied`` is False) or is known to be as delivered, or where ``rule`` lets the baseline decide.
    """
    if meant is None:
        properties = item["properties"]
        taken = str(properties.get("datetime") or properties.get("start_datetime") or "9999")
        old = not baseline_of(item) and taken < OFFSETS_FROM_DAY
        return 0, f"assumed: no baseline told, taken before {OFFSETS_FROM_DAY}" if old else ""
    as_delivered = applied is False or AS_DELIVERED.fullmatch(item["id"])
    return meant if as_delivered or meant[0] == 0 or meant[1] == OWN or rule == "baseline" else (0, "")


def untold(product: Product, band: str) -> ProductError:
    """The error of a band whose offset nobody tells."""
    return ProductError(
        f"product {product.name}, band {band}: baseline {product.baseline or 'untold'} and no declared offset, which "
        f"products have since {OFFSETS_SINCE}: expected scale and offset in the item's raster:bands, or {APPLIED} "
        "where the pixels hold it already, or sentinel2.offsets 'baseline' where nobody applied it"
    )


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
    """Band that an asset key or band name means (``B2``, ``b02``, ``B02_10m``, ``blue``, ``blue-jp2``), or None."""
    word = re.sub(r"[_-](10|20|60)m$", "", ORIGINAL.sub("", name.strip()), flags=re.IGNORECASE).lower()
    band = re.sub(r"^b(\d)(?=$|a$)", r"b0\1", word).upper().replace("B08A", "B8A")
    return band if band in {*BAND_IDS, SCL} else COMMON_NAMES.get(word)


def _told_pixel(key: str) -> int:
    """Pixel that an asset key tells, as of ``B02_10m`` [m]; 0: none."""
    told = re.search(r"[_-](10|20|60)m$", key, flags=re.IGNORECASE)
    return int(told[1]) if told else 0


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
