"""How results look: the legend as colour table and as QGIS style, names of areas, templates of pages and charts."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree  # writes only; nothing is parsed here
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from covermap.files import whole
from covermap.legend import Legend

TRANSPARENT = (0, 0, 0, 0)


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
