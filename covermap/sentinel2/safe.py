"""A Sentinel-2 SAFE, from its metadata alone: which file holds a band, its offset, its quantification, its clouds.

Offset and quantification are always the product's own (ESA, Sentinel-2 Products Specification Document):
reflectance = (DN + offset) / quantification.
"""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from typing import NamedTuple

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from covermap.errors import ProductError
from covermap.scenes import BY_HAND, OPTICAL_PRODUCT, parsed_baseline
from covermap.sentinel2.offsets import Rule, agreed_offset, offset_by_baseline
from covermap.sentinel2.product import AGAIN, BAND_IDS, SCL, Band, Files, Product

PIXELS_M = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 60, 20, 20)  # of Level-1C, in the order of BAND_IDS
BAND_FILE = {  # by level
    "L2A": re.compile(r"_(?P<band>B\d[\dA]|SCL)_(?P<pixel_m>10|20|60)m$"),
    "L1C": re.compile(r"_(?P<band>B\d[\dA])$"),
}
IMAGES = {"L2A": "GRANULE/*/IMG_DATA/R*m/*.jp2", "L1C": "GRANULE/*/IMG_DATA/*.jp2"}
CLOUD_MASK = re.compile(r"MSK_(CLASSI|CLOUDS)_\w*B00\w*\.(jp2|gml)$")  # layers since 04.00, polygons before


class Metadata(NamedTuple):
    """What a product's metadata tell: offset [DN] and quantification by band, image files, baseline and name."""

    numbers: dict[str, tuple[float, float]]
    images: list[str]
    baseline: str
    name: str


def product_of_safe(files: Files, metadata: str, level: str, offsets: Rule) -> Product:
    """Product of a SAFE whose MTD_MSIL2A.xml or MTD_MSIL1C.xml is ``metadata``.

    Raises
    ------
    ProductError
        The metadata are broken, of another product or level, or there are two granules; an offset contradicts the
        baseline.
    """
    folder = PurePosixPath(metadata).parent
    title = folder.name or files.root.name
    name = files.told(title)
    own = read_metadata(files.read(metadata), name, level)
    told = OPTICAL_PRODUCT.match(title)
    must_be_of_product(name, own, level, told, parsed_baseline(told["baseline"] or "") if told else "")
    inside = [path.relative_to(folder) for path in map(PurePosixPath, files.names) if path.is_relative_to(folder)]
    _must_be_one_granule(inside, name)
    # found by name, where the metadata list none
    images = own.images or [str(path) for path in sorted(inside) if path.match(IMAGES[level])]
    bands, absent = {}, {}
    for band, (pixel_m, image) in _finest(images, level, name).items():
        path = str(folder / (image.removesuffix(".jp2") + ".jp2"))
        if path in files.names:
            offset, quantification, source = _numbers(own, band, f"{name}, band {band}", level, offsets)
            bands[band] = Band(files.path(path), 1, offset, quantification, offset_from=source, pixel_m=pixel_m)
        else:
            absent[band] = path
    clouds = _cloud_mask(files, folder, images) if level == "L1C" else None
    return Product(name, level, bands, own.baseline, clouds, absent)


def must_be_of_product(what: str, own: Metadata, level: str, named: re.Match[str] | None, baseline: str) -> None:
    """Refuse metadata of another product or baseline than told; what either side leaves out is not compared.

    Parameters
    ----------
    what : product, for messages.
    named : name that the product should have, in its parts (OPTICAL_PRODUCT).
    baseline : the one that it should have; empty: untold.

    Raises
    ------
    ProductError
        They are of another product.
    """
    file, found = f"MTD_MSI{level}.xml", OPTICAL_PRODUCT.match(own.name)
    if named and own.name and not (found and _is_same(named, found)):
        raise ProductError(f"product {what}: {file} is of product {own.name}: expected {named[0]}, {AGAIN}")
    if own.baseline != baseline and {own.baseline, baseline}.isdisjoint({"", BY_HAND}):
        raise ProductError(f"product {what}: {file} is of baseline {own.baseline}: expected {baseline}, {AGAIN}")


def _is_same(one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether two names agree in all parts that both have."""
    parts = zip(one.groups(), other.groups(), strict=True)
    return all(mine == yours for mine, yours in parts if mine and yours)


def _must_be_one_granule(inside: list[PurePosixPath], product: str) -> None:
    granules = sorted({path.parts[1] for path in inside if path.parts[0] == "GRANULE" and len(path.parts) > 2})
    if len(granules) > 1:
        raise ProductError(f"product {product} has the granules {', '.join(granules)}: expected one granule, {AGAIN}")


def _finest(images: list[str], level: str, product: str) -> dict[str, tuple[int, str]]:
    """Pixel [m] and image of each band in its finest resolution; SCL always at 20 m."""
    found: dict[str, tuple[int, str]] = {}
    for image in images:
        match = BAND_FILE[level].search(image.removesuffix(".jp2"))
        if match is None or (level == "L1C" and match["band"] not in BAND_IDS):
            continue
        band = match["band"]
        pixel_m = int(match["pixel_m"]) if level == "L2A" else PIXELS_M[BAND_IDS.index(band)]
        known = found.get(band)
        if known and known[0] == pixel_m and known[1] != image:
            raise ProductError(
                f"product {product}, band {band}: two files, {known[1]} and {image}: expected one granule, {AGAIN}"
            )
        if (band == SCL and pixel_m == 20) or (band != SCL and (known is None or pixel_m < known[0])):
            found[band] = pixel_m, image
    return found


def _numbers(own: Metadata, band: str, what: str, level: str, offsets: Rule) -> tuple[float, float, str]:
    """Offset [DN], quantification and source of the offset of a band of a SAFE."""
    if band == SCL:
        return 0, 1, f"MTD_MSI{level}.xml"
    offset, quantification = own.numbers[band]
    offset, source = agreed_offset(what, (offset, f"MTD_MSI{level}.xml"), offset_by_baseline(own.baseline), offsets)
    return offset, quantification, source


def _cloud_mask(files: Files, folder: PurePosixPath, images: list[str]) -> str | bytes | None:
    """Cloud mask of a Level-1C granule: the path of its raster of layers, or else its polygons; None: it has none."""
    granules = {str(folder.joinpath(*PurePosixPath(image).parts[:2])) for image in images}
    masks = [
        name
        for name in sorted(files.names)
        if CLOUD_MASK.search(name) and any(name.startswith(f"{granule}/QI_DATA/") for granule in granules)
    ]
    for name in masks:
        if name.endswith(".jp2"):
            return files.path(name)
    return files.read(masks[0]) if masks else None


def read_metadata(metadata: bytes, product: str, level: str = "L2A") -> Metadata:
    """Offset and quantification by band, image files, processing baseline and name out of a product's metadata.

    Raises
    ------
    ProductError
        The file is no XML, is of another level, or has no quantification or an offset that is no number.
    """
    file, word = f"MTD_MSI{level}.xml", "BOA" if level == "L2A" else "RADIO"
    try:
        root = ElementTree.fromstring(metadata)
    except (ElementTree.ParseError, DefusedXmlException, LookupError, ValueError) as error:
        raise ProductError(f"product {product}: {file} is no XML ({error}): {AGAIN}") from error
    kind, expected = root.tag.rpartition("}")[2], f"Level-{level[1:]}_User_Product"
    if kind != expected:
        raise ProductError(f"product {product}: {file} is of kind {kind!r}: expected {expected!r}, {AGAIN}")
    # of Level-2A before baseline 02.07 the name was L2A_BOA_QUANTIFICATION_VALUE, of Level-1C it has no prefix
    key = "BOA_QUANTIFICATION_VALUE" if level == "L2A" else "QUANTIFICATION_VALUE"
    values = [node.text for node in root.iter() if node.tag.endswith(key)]
    offsets = {node.get("band_id"): node.text for node in root.iter(f"{word}_ADD_OFFSET")}
    try:
        quantification = float(values[0] or "")
        listed = {BAND_IDS[int(number or "")]: float(value or "") for number, value in offsets.items()}
    except (IndexError, ValueError) as error:
        raise ProductError(
            f"product {product}: {file} has no usable quantification and offsets ({key} {values}, {word}_ADD_OFFSET "
            f"{offsets}): {AGAIN}"
        ) from error
    if not 0 < quantification < math.inf:
        raise ProductError(f"product {product}: {key} is {quantification}: expected a number above 0, {AGAIN}")
    for band, offset in listed.items():
        if not math.isfinite(offset):
            raise ProductError(
                f"product {product}, band {band}: {word}_ADD_OFFSET is {offset}: expected a finite number, {AGAIN}"
            )
    if listed and (missing := set(BAND_IDS) - set(listed)):
        raise ProductError(
            f"product {product}, band {min(missing)}: no {word}_ADD_OFFSET, but other bands have one: {AGAIN}"
        )
    numbers = {band: (listed.get(band, 0.0), quantification) for band in BAND_IDS}
    images = [(node.text or "").strip() for node in root.iter() if node.tag.startswith("IMAGE_FILE")]
    name = root.findtext(".//PRODUCT_URI") or root.findtext(".//PRODUCT_URI_2A") or ""  # the latter before 02.07
    baseline = parsed_baseline(root.findtext(".//PROCESSING_BASELINE") or "")
    return Metadata(numbers, images, baseline, name.strip())
