"""Colours of maps: the legend as colour table, as QGIS style and as pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree  # writes only; nothing is parsed here
from pathlib import Path

import numpy as np

from covermap.files import whole
from covermap.legend import Legend

TRANSPARENT = (0, 0, 0, 0)
WHITE = 255
GAMMA = 0.7  # most ground is dark: lifts forest and water out of the black


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


def render_reflectance(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Picture of three bands, each stretched from its 2nd to its 98th percentile, brightened; white: no data.

    Parameters
    ----------
    red, green, blue : float or integer (y, x), any linear unit; not finite or <= 0 in any band: no data.

    Returns
    -------
    uint8 (y, x, 3)
    """
    bands = np.stack([red, green, blue], axis=-1).astype(np.float32)
    valid = (np.isfinite(bands) & (bands > 0)).all(axis=-1)
    picture = np.full(bands.shape, WHITE, np.uint8)
    if valid.any():
        low, high = np.percentile(bands[valid], [2, 98], axis=0)
        stretched = (bands[valid] - low) / np.maximum(high - low, 1e-6)
        picture[valid] = np.rint(np.clip(stretched, 0, 1) ** GAMMA * 255)
    return picture
