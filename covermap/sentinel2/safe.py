"""A Sentinel-2 SAFE, from its metadata alone: which file holds a band, its offset, its quantification, its clouds.

Offset and quantification are always the product's own (ESA, Sentinel-2 Products Specification Document):
reflectance = (DN + offset) / quantification.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from covermap.errors import ProductError
from covermap.sentinel2.offsets import Rule, agreed_offset, offset_by_baseline
from covermap.sentinel2.product import AGAIN, BAND_IDS, SCL, Band, Files, Product

PIXELS_M = (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 60, 20, 20)  # of Level-1C, in the order of BAND_IDS
BAND_FILE = {  # by level
    "L2A": re.compile(r"_(?P<band>B\d[\dA]|SCL)_(?P<pixel_m>10|20|60)m$"),
    "L1C": re.compile(r"_(?P<band>B\d[\dA])$"),
}
IMAGES = {"L2A": "GRANULE/*/IMG_DATA/R*m/*.jp2", "L1C": "GRANULE/*/IMG_DATA/*.jp2"}
CLOUD_MASK = re.compile(r"MSK_(CLASSI|CLOUDS)_\w*B00\w*\.(jp2|gml)$")  # layers since 04.00, polygons before


def product_of_safe(files: Files, metadata: str, level: str, offsets: Rule) -> Product:
    """Product of a SAFE whose MTD_MSIL2A.xml or MTD_MSIL1C.xml is ``metadata``.

    Raises
    ------
    ProductError
        The metadata are broken, of another level, or list two granules; an offset contradicts the baseline.
    """
    folder = PurePosixPath(metadata).parent
    name = files.told(folder.name or files.root.name)
    numbers, images, baseline = read_metadata(files.read(metadata), name, level)
    if not images:  # found by name, where the metadata list none
        inside = [PurePosixPath(file) for file in files.names if PurePosixPath(file).is_relative_to(folder)]
        images = [str(path.relative_to(folder)) for path in sorted(inside) if path.match(IMAGES[level])]
    bands = {}
    for band, image in _finest(images, level, name).items():
        path = str(folder / (image.removesuffix(".jp2") + ".jp2"))
        if path in files.names:
            offset, quantification, source = _numbers(numbers, band, baseline, f"{name}, band {band}", level, offsets)
            bands[band] = Band(files.path(path), 1, offset, quantification, offset_from=source)
    return Product(name, level, bands, baseline, _cloud_mask(files, folder, images) if level == "L1C" else None)


def _finest(images: list[str], level: str, product: str) -> dict[str, str]:
    """The image of each band in its finest resolution; SCL always at 20 m."""
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
    return {band: image for band, (_, image) in found.items()}


def _numbers(
    numbers: dict[str, tuple[float, float]], band: str, baseline: str, what: str, level: str, offsets: Rule
) -> tuple[float, float, str]:
    """Offset [DN], quantification and source of the offset of a band of a SAFE."""
    if band == SCL:
        return 0, 1, f"MTD_MSI{level}.xml"
    offset, quantification = numbers[band]
    meant = offset_by_baseline(baseline)
    by_baseline = None if meant is None else (meant, f"baseline {baseline}")
    offset, source = agreed_offset(what, (offset, f"MTD_MSI{level}.xml"), by_baseline, offsets)
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


def read_metadata(
    metadata: bytes, product: str, level: str = "L2A"
) -> tuple[dict[str, tuple[float, float]], list[str], str]:
    """Offset and quantification by band, image files and processing baseline out of a product's metadata.

    Raises
    ------
    ProductError
        The file is no XML, is of another level, or has no quantification.
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
    if not 0 < quantification < float("inf"):
        raise ProductError(f"product {product}: {key} is {quantification}: expected more than 0, {AGAIN}")
    if listed and (missing := set(BAND_IDS) - set(listed)):
        raise ProductError(
            f"product {product}, band {min(missing)}: no {word}_ADD_OFFSET, but other bands have one: {AGAIN}"
        )
    numbers = {band: (listed.get(band, 0.0), quantification) for band in BAND_IDS}
    images = [(node.text or "").strip() for node in root.iter() if node.tag.startswith("IMAGE_FILE")]
    return numbers, images, root.findtext(".//PROCESSING_BASELINE") or ""
