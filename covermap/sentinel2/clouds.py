"""Clouds of Level-1C products in codes of the scene classification: the product's own mask, and a second opinion.

The product's mask are three layers since processing baseline 04.00 (MSK_CLASSI_B00.jp2: opaque clouds, cirrus, snow)
and polygons before (MSK_CLOUDS_B00.gml: opaque clouds, cirrus; ESA, Sentinel-2 Products Specification Document). The
second opinion is s2cloudless, here by ten bands in 60 m pixels (compared with others in Skakun et al. 2022,
doi:10.1016/j.rse.2022.112990).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.warp import transform_geom

from covermap.errors import ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel2.product import AGAIN, STEPS, Band
from covermap.sentinel2.reading import Layout, read_strip

CLEAR, CLOUD, OPAQUE, CIRRUS, SNOW = 7, 8, 9, 10, 11  # SCL: unclassified, clouds of medium and high probability, ...
MASK = "cloud mask"  # in messages, where a band would stand
LAYERS = (OPAQUE, CIRRUS, SNOW)  # of MSK_CLASSI, in order; the first one counts
KINDS = {"OPAQUE": OPAQUE, "CIRRUS": CIRRUS}  # of MSK_CLOUDS
ROOT = re.compile(r"\{[^}]*/eop/[^}]*\}Mask")  # of MSK_CLOUDS
CELL = 6  # pixels of 10 m along a pixel of the model
MODEL_ROWS = 64  # of cells at once

Polygons = list[tuple[dict[str, Any], int]]  # geometry and class, later ones on top


def classes_of_layers(product: str, band: Band, layout: Layout, grid: Grid) -> np.ndarray:
    """Classes uint8 (y, x) on ``grid`` by nearest neighbour from the layers of a MSK_CLASSI raster."""
    classes = np.full(grid.shape, CLEAR, np.uint8)
    for index in reversed(range(len(LAYERS))):
        layer = replace(band, index=index + 1)
        flags = read_strip(product, MASK, layer, layout, grid, Resampling.nearest, lambda numbers, _: numbers > 0)
        classes[flags.astype(bool)] = LAYERS[index]
    return classes


def read_polygons(content: bytes, product: str, crs: str, target: str) -> Polygons:
    """Polygons of a MSK_CLOUDS GML in ``target``, opaque clouds last, so that they lie on top.

    Parameters
    ----------
    crs : that of the product, where the file names none.

    Raises
    ------
    ProductError
        The file is no XML or no mask, or a polygon is none.
    """
    try:
        root = ElementTree.fromstring(content)
        if not _all(root, "MaskFeature") and not ROOT.fullmatch(root.tag):  # a clear scene's is empty
            raise ValueError(f"its root is {root.tag} and it has no MaskFeature")
        polygons = [
            (_polygon(feature), KINDS[kind])
            for feature in _all(root, "MaskFeature")
            if (kind := "".join(node.text or "" for node in _all(feature, "maskType")).strip()) in KINDS
        ]
        names = [node.get("srsName") for node in _all(root, "Envelope") if node.get("srsName")]
        source = CRS.from_user_input(f"EPSG:{names[0].rpartition(':')[2]}") if names else CRS.from_string(crs)
    except (ElementTree.ParseError, DefusedXmlException, CRSError, LookupError, ValueError) as error:
        raise ProductError(f"product {product}, {MASK}: MSK_CLOUDS_B00.gml is no mask ({error}): {AGAIN}") from error
    polygons.sort(key=lambda entry: entry[1], reverse=True)
    if source == CRS.from_string(target):
        return polygons
    return [(transform_geom(source, target, polygon), code) for polygon, code in polygons]


def _all(root: Any, name: str) -> list[Any]:
    """Elements of a name in any namespace."""
    return [node for node in root.iter() if node.tag.rpartition("}")[2] == name]


def _polygon(feature: Any) -> dict[str, Any]:
    """GeoJSON polygon of a mask feature: its outer ring, then its holes."""
    rings = []
    for place in _all(feature, "posList"):
        numbers = np.array((place.text or "").split(), float)
        ring = numbers.reshape(-1, int(place.get("srsDimension") or 2))[:, :2]
        if len(ring) < 4 or not np.isfinite(ring).all():
            raise ValueError(f"a ring of {len(ring)} points")
        rings.append(ring.tolist())
    if not rings:
        raise ValueError("a feature without a ring")
    return {"type": "Polygon", "coordinates": rings}


def classes_of_polygons(polygons: Polygons, grid: Grid) -> np.ndarray:
    """Classes uint8 (y, x) on ``grid``: that of the last polygon that holds a pixel's centre."""
    if not polygons:
        return np.full(grid.shape, CLEAR, np.uint8)
    drawn: np.ndarray = rasterize(
        polygons, out_shape=grid.shape, transform=grid.transform, fill=CLEAR, dtype="uint8", all_touched=False
    )
    return drawn


def cell_means(steps: np.ndarray) -> np.ndarray:
    """Mean reflectance float32 (ceil(y / 6), ceil(x / 6)) of cells of 6 by 6 pixels, NaN where none has data."""
    rows, columns = (-(-side // CELL) for side in steps.shape)
    cells = np.zeros((rows * CELL, columns * CELL), np.uint16)
    cells[: steps.shape[0], : steps.shape[1]] = steps
    cells = cells.reshape(rows, CELL, columns, CELL)
    count = np.count_nonzero(cells, axis=(1, 3))
    total = cells.sum(axis=(1, 3), dtype=np.uint32)
    with np.errstate(invalid="ignore"):
        return (total / (count * np.float64(STEPS))).astype(np.float32)


def cloud_probability(means: np.ndarray, threads: int) -> np.ndarray:
    """Probability of cloud float32 (y, x) by s2cloudless; 0 where a band has no data.

    Parameters
    ----------
    means : float32 (band, y, x), top-of-atmosphere reflectance of scenes.CLOUD_BANDS, NaN without data.

    Raises
    ------
    SettingError
        The package is not installed.
    """
    try:
        from s2cloudless import S2PixelCloudDetector
    except ImportError as error:
        raise SettingError(
            f"sentinel2.cloud_model is s2cloudless, which is not installed ({error}): pip install 'covermap[clouds]', "
            "or set it to none"
        ) from error
    detector = S2PixelCloudDetector(all_bands=False)
    probability = np.zeros(means.shape[1:], np.float32)
    for start in range(0, means.shape[1], MODEL_ROWS):
        rows = np.moveaxis(means[:, start : start + MODEL_ROWS], 0, -1)
        seen = np.isfinite(rows).all(-1)
        if seen.any():
            found = detector.get_cloud_probability_maps(rows[seen][None, None], num_threads=threads)
            probability[start : start + MODEL_ROWS][seen] = found[0, 0]
    return probability


def with_second_opinion(classes: np.ndarray, cloudy: np.ndarray, row: int) -> np.ndarray:
    """Classes (y, x), with clouds of medium probability where the product has none and cells of ``cloudy`` do.

    Parameters
    ----------
    cloudy : bool (y, x) of all cells.
    row : first row of ``classes`` in pixels from the first cell's.
    """
    rows, columns = (row + np.arange(classes.shape[0])) // CELL, np.arange(classes.shape[1]) // CELL
    return np.where((classes == CLEAR) & cloudy[np.ix_(rows, columns)], CLOUD, classes).astype(np.uint8)


def mask_band(path: str, like: Layout) -> Band:
    """A MSK_CLASSI raster as a band, placed as the bands are where it does not tell it."""
    return Band(path, len(LAYERS), nodata=0, place=(like.crs.to_string(), like.bounds))
