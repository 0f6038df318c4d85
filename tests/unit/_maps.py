"""A small map to make: predictions in blocks of any size, made by hand, and all that the steps take besides."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import median_filter
from shapely.geometry import Polygon, box, mapping

from covermap.area_settings import Period
from covermap.grid import area_blocks, area_grid, project
from covermap.legend import Legend, LegendClass
from covermap.mosaic import mosaic
from covermap.raster import write_raster

CRS = "EPSG:32721"
LEFT, TOP, SIDE = 600_000, 8_500_020, 600  # easting, northing [m], pixels
NAMES = ("Água", "Formação Florestal & Co.", "Campo <alagado>")
LEGEND = Legend(
    classes=tuple(
        LegendClass(id=number, key=key, name=name, colour=colour)
        for number, key, name, colour in zip(
            (1, 2, 3), ("water", "forest", "field"), NAMES, ("#2532E4", "#1F8D49", "#EDDE8E"), strict=True
        )
    ),
    codes={},
)
FILES = ("demo.tif", "demo.confidence.tif", "demo.qml", "demo.confidence.qml", "demo.tif.aux.xml", "demo.tif.vat.dbf")
LAYERS = ("class", "confidence", "margin", "entropy", *(f"probability of {entry.key}" for entry in LEGEND.classes))


def outline() -> Polygon:
    """A four-cornered area in metres, askew, so that it cuts pixels and blocks."""
    right, bottom = LEFT + 10 * SIDE, TOP - 10 * SIDE
    return Polygon(
        [(LEFT + 900, TOP - 20), (right - 20, TOP - 700), (right - 700, bottom + 20), (LEFT + 20, bottom + 500)]
    )


@cache
def everywhere() -> np.ndarray:
    """What is predicted, in patches, with holes that nobody observed: uint8 (7, y, x), repeated over the lattice."""
    classes = median_filter(np.random.default_rng(5).integers(1, 4, (SIDE + 512, SIDE + 512)), 5).astype(np.uint8)
    classes[200:230, 100:300] = 0
    shares = np.random.default_rng(6).integers(30, 84, classes.shape)
    bands = np.stack([classes, shares, shares + 1, shares + 2, 2 * shares, 2 * shares + 1, 2 * shares + 2])
    bands[1:, classes == 0] = 255
    return bands.astype(np.uint8)


def pixels(grid: Any) -> np.ndarray:
    """What is predicted on any grid of the lattice: uint8 (7, y, x)."""
    bands = everywhere()
    row, column = round((TOP + 2560 - grid.top) / 10), round((grid.left - LEFT + 2560) / 10)
    rows, columns = (np.arange(first, first + n) for first, n in ((row, grid.height), (column, grid.width)))
    return bands[:, (rows % bands.shape[1])[:, None], columns % bands.shape[2]]


def made(folder: Path, side: int = 256, **more: Any) -> dict[str, Any]:
    """Arguments of a step that reads predictions in blocks of ``side`` pixels, which are written to a folder."""
    area = project(outline(), CRS, "EPSG:4326")
    blocks = area_blocks(area, CRS, side)
    for name, block in blocks.items():
        write_raster(folder / f"{name}.tif", pixels(block), block, nodata=255, descriptions=LAYERS)
    shape = mapping(box(0, 0, 1, 1))
    items = [{"id": "a", "geometry": shape, "properties": {"datetime": "2021-06-01T10:00:00Z"}, "assets": {}}]
    (folder / "scenes.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return {
        "predictions": [folder / f"{name}.tif" for name in blocks],
        "listing": folder / "scenes.json",
        "grid": area_grid(area, CRS),
        "blocks": list(blocks.values()),
        "area": area.wkt,
        "legend": LEGEND,
        "period": Period(start="2021-01-01", end="2021-12-31"),
        "model": "unet",
        "attribution": "Contains modified Copernicus Sentinel data {years}",
        **more,
    }


def named(folder: Path) -> dict[str, Path]:
    """Outputs of the map."""
    names = ("map", "confidence", "style", "confidence_style", "attributes", "table")
    return dict(zip(names, (folder / file for file in FILES), strict=True))


def mapped(folder: Path, arguments: dict[str, Any]) -> dict[str, Path]:
    """Make the map; return its files."""
    mosaic(**named(folder), **arguments)
    return named(folder)
