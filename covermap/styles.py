"""How results look: the legend as colour table and as QGIS style, names of areas, templates of pages and charts."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree  # writes only; nothing is parsed here
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from covermap.files import whole
from covermap.legend import Legend

TRANSPARENT = (0, 0, 0, 0)
M2_OF_HECTARE = 10_000
INTEGER, REAL, TEXT = 0, 1, 2  # GDALRATFieldType
GENERIC, PIXEL_COUNT, NAME, MIN_MAX, RED, GREEN, BLUE = 0, 1, 2, 5, 6, 7, 8  # GDALRATFieldUsage
ATTRIBUTES = (
    ("value", INTEGER, MIN_MAX),
    ("class", TEXT, GENERIC),
    ("name", TEXT, NAME),
    ("red", INTEGER, RED),
    ("green", INTEGER, GREEN),
    ("blue", INTEGER, BLUE),
    ("pixels", REAL, PIXEL_COUNT),  # a large map has more of a class than GDAL's integers of 32 bits can count
    ("hectares", REAL, GENERIC),
)


def colour_table(legend: Legend) -> dict[int, tuple[int, int, int, int]]:
    """Red, green, blue, alpha (0 to 255) of all 256 values of a class map; transparent where there is no class."""
    table = dict.fromkeys(range(256), TRANSPARENT)
    table.update({entry.id: (*entry.rgb, 255) for entry in legend.classes})
    return table


def write_qml(output: Path, legend: Legend) -> None:
    """Style beside a class map: QGIS 3 shows its classes by name and colour (paletted renderer, band 1)."""
    root = ElementTree.Element("qgis", version="3.28", styleCategories="Symbology")
    pipe = ElementTree.SubElement(root, "pipe")
    renderer = ElementTree.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor=""
    )
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for entry in legend.classes:
        ElementTree.SubElement(
            palette, "paletteEntry", value=str(entry.id), color=entry.colour.lower(), label=entry.name, alpha="255"
        )
    ElementTree.SubElement(root, "blendMode").text = "0"
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    with whole(output) as part:
        part.write_text(f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{text}\n", encoding="utf-8")


def write_attributes(output: Path, legend: Legend, counts: np.ndarray, pixel_m: float) -> None:
    """Attribute table beside a class map: a row for each class, which QGIS and GDAL read with the map.

    Parameters
    ----------
    output : ``{map}.aux.xml``, as GDAL's persistent auxiliary metadata has it (GDAL, "PAM" and ``GDALRATFieldUsage``).
    legend : ids, keys, names and colours of the classes.
    counts : int (256,), pixels of each value of the map.
    pixel_m : side of a pixel [m].
    """
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    names = {entry.id: entry.name for entry in legend.classes}
    categories = ElementTree.SubElement(band, "CategoryNames")
    for value in range(max(names) + 1):
        ElementTree.SubElement(categories, "Category").text = names.get(value, "")
    table = ElementTree.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, attribute in enumerate(ATTRIBUTES):
        column = ElementTree.SubElement(table, "FieldDefn", index=str(index))
        for key, meaning in zip(("Name", "Type", "Usage"), attribute, strict=True):
            ElementTree.SubElement(column, key).text = str(meaning)
    for index, cells in enumerate(_attributes(legend, counts, pixel_m)):
        row = ElementTree.SubElement(table, "Row", index=str(index))
        for cell in cells:
            ElementTree.SubElement(row, "F").text = str(cell)
    ElementTree.indent(root)
    with whole(output) as part:
        part.write_text(ElementTree.tostring(root, encoding="unicode") + "\n", encoding="utf-8")


def _attributes(legend: Legend, counts: np.ndarray, pixel_m: float) -> Iterator[tuple[int | float | str, ...]]:
    """A row for each class, in the order of ATTRIBUTES."""
    for entry in legend.classes:
        pixels = int(counts[entry.id])
        yield entry.id, entry.key, entry.name, *entry.rgb, pixels, pixels * pixel_m**2 / M2_OF_HECTARE


def title_of(area: str) -> str:
    """An area's name as a title, such as 'Upper valley' for upper_valley."""
    return (area[:1].upper() + area[1:]).replace("_", " ")


def templates() -> Environment:
    """The templates of pages and charts, which escape what they are given."""
    return Environment(
        loader=PackageLoader("covermap"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
