"""How results look: the legend as colour table and as QGIS style, names of areas, templates of pages and charts."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ElementTree  # writes only; nothing is parsed here
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from covermap.files import whole
from covermap.legend import Legend

TRANSPARENT = (0, 0, 0, 0)
M2_OF_HECTARE = 10_000
INTEGER, REAL, TEXT = 0, 1, 2  # GDALRATFieldType
GENERIC, PIXEL_COUNT, NAME, MIN_MAX, RED, GREEN, BLUE = 0, 1, 2, 5, 6, 7, 8  # GDALRATFieldUsage
CONFIDENCE_COLOURS = {0: "#00224e", 25: "#434e6c", 50: "#7d7c78", 75: "#bcae6c", 100: "#fee838"}  # cividis
TABLE = (  # name, type, width and decimals of the columns of a table for ArcGIS (dBASE III)
    ("Value", "N", 4, 0),
    ("Count", "N", 15, 0),
    ("Class", "C", 80, 0),
    ("Red", "N", 4, 0),
    ("Green", "N", 4, 0),
    ("Blue", "N", 4, 0),
    ("Hectares", "N", 19, 2),
)
LATIN = 87  # how dBASE says that its text is in Windows' Latin letters
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


def write_qml(output: Path, renderer: ElementTree.Element) -> None:
    """Style beside a raster, by which QGIS 3 shows it."""
    root = ElementTree.Element("qgis", version="3.22", styleCategories="Symbology")
    ElementTree.SubElement(root, "pipe").append(renderer)
    ElementTree.SubElement(root, "blendMode").text = "0"
    with whole(output) as part:
        part.write_text(_qml(root), encoding="utf-8")


def _qml(root: ElementTree.Element) -> str:
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f"<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n{text}\n"


def class_style(legend: Legend) -> ElementTree.Element:
    """Classes by name and colour (paletted renderer, band 1)."""
    renderer = _renderer("paletted", band="1")
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for entry in legend.classes:
        ElementTree.SubElement(
            palette, "paletteEntry", value=str(entry.id), color=entry.colour.lower(), label=entry.name, alpha="255"
        )
    return renderer


def confidence_style_of() -> ElementTree.Element:
    """Confidence from 0 to 100 per cent, dark where the network is unsure: the same colours on every map."""
    renderer = _renderer("singlebandpseudocolor", band="1", classificationMin="0", classificationMax="100")
    ramp = {"colorRampType": "INTERPOLATED", "classificationMode": "1", "clip": "0"}
    limits = {"minimumValue": "0", "maximumValue": "100", "labelPrecision": "0"}
    shader = ElementTree.SubElement(ElementTree.SubElement(renderer, "rastershader"), "colorrampshader", ramp | limits)
    for value, colour in CONFIDENCE_COLOURS.items():
        ElementTree.SubElement(shader, "item", value=str(value), color=colour, label=f"{value} %", alpha="255")
    return renderer


def _renderer(kind: str, **more: str) -> ElementTree.Element:
    return ElementTree.Element(
        "rasterrenderer", {"type": kind, "opacity": "1", "alphaBand": "-1", "nodataColor": "", **more}
    )


def polygon_style(legend: Legend) -> str:
    """Style of polygons of classes, as QGIS 3 reads it out of a GeoPackage: filled by class, without outlines."""
    root = ElementTree.Element("qgis", version="3.22", styleCategories="Symbology")
    renderer = ElementTree.SubElement(root, "renderer-v2", type="categorizedSymbol", attr="class", forceraster="0")
    categories, symbols = (ElementTree.SubElement(renderer, name) for name in ("categories", "symbols"))
    for number, entry in enumerate(map(str, range(len(legend.classes)))):
        found = legend.classes[number]
        ElementTree.SubElement(
            categories, "category", value=str(found.id), label=found.name, symbol=entry, render="true", type="integer"
        )
        symbol = ElementTree.SubElement(symbols, "symbol", type="fill", name=entry, alpha="1", clip_to_extent="1")
        layer = ElementTree.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0"})
        fill = {"color": ",".join(map(str, (*found.rgb, 255))), "style": "solid", "outline_style": "no"}
        for key, value in fill.items():
            ElementTree.SubElement(layer, "prop", k=key, v=value)
    return _qml(root)


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


def write_table(output: Path, legend: Legend, counts: np.ndarray, pixel_m: float) -> None:
    """Attribute table beside a class map for ArcGIS: ``{map}.vat.dbf``, a row for each class.

    It is a bare dBASE III table (the format that ESRI's Shapefile Technical Description, July 1998, refers to), dated
    1900-01-01. A name that has other than Latin letters stands there by its key.

    Parameters
    ----------
    output : what is written.
    legend, counts, pixel_m : as for ``write_attributes``.
    """
    rows = []
    for entry in legend.classes:
        pixels = int(counts[entry.id])
        hectares = pixels * pixel_m**2 / M2_OF_HECTARE
        rows.append((entry.id, pixels, _latin(entry.name, entry.key), *entry.rgb, hectares))
    with whole(output) as part:
        part.write_bytes(_dbf(rows))


def _latin(name: str, key: str) -> bytes:
    try:
        return name.encode("cp1252")
    except UnicodeEncodeError:
        return key.encode("cp1252", "replace")


def _dbf(rows: Sequence[tuple[int | float | bytes, ...]]) -> bytes:
    """A dBASE III table with the columns of TABLE."""
    length = 1 + sum(width for _, _, width, _ in TABLE)
    head = struct.pack("<4BIHH17xB2x", 3, 0, 1, 1, len(rows), 32 * len(TABLE) + 33, length, LATIN)
    for name, kind, width, decimals in TABLE:
        head += struct.pack("<11sc4xBB14x", name.encode(), kind.encode(), width, decimals)
    return head + b"\r" + b"".join(map(_record, rows)) + b"\x1a"


def _record(cells: tuple[int | float | bytes, ...]) -> bytes:
    """A row: text on the left, numbers on the right of their columns."""
    record = b" "
    for cell, (_, _, width, decimals) in zip(cells, TABLE, strict=True):
        text = cell[:width].ljust(width) if isinstance(cell, bytes) else f"{cell:{width}.{decimals}f}".encode()
        record += text
    return record


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
