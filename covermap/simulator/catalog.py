"""What stands around the products: the elevation model, the true map, the catalogue and the area of the demo."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from pyproj import Transformer
from rasterio.warp import transform_bounds
from scipy import ndimage

from covermap.simulator.landscape import (
    BARE,
    CROP,
    FOREST,
    GRASSLAND,
    PASTURE,
    PLANTATION,
    SAVANNA,
    URBAN,
    WATER,
    WETLAND,
    WORLD_LEFT,
    WORLD_TOP,
    Landscape,
)

DEM_BEYOND_M = 2000.0
COLOURS = {
    FOREST: (31, 141, 73), SAVANNA: (125, 201, 117), PLANTATION: (122, 89, 0), WETLAND: (81, 151, 153),
    GRASSLAND: (214, 188, 116), PASTURE: (237, 222, 142), CROP: (233, 116, 237), URBAN: (212, 39, 30),
    BARE: (219, 77, 79), WATER: (37, 50, 228),
}  # fmt: skip


def write_dem(path: Path, landscape: Landscape) -> None:
    """Write heights above the WGS 84 ellipsoid on a grid of one arc second (EPSG:4979, float32).

    Pixel centres lie on whole arc seconds. Bilinear from the landscape, whose outermost heights go on beyond it.
    """
    size_m = landscape.height_m.shape[0] * landscape.pixel_m
    left, top = landscape.left - DEM_BEYOND_M, landscape.top + DEM_BEYOND_M
    bounds = transform_bounds(
        landscape.crs, "EPSG:4326", left, top - size_m - 2 * DEM_BEYOND_M, left + size_m + 2 * DEM_BEYOND_M, top
    )
    west, south, east, north = (round(edge * 3600) for edge in bounds)
    longitude, latitude = np.meshgrid(np.arange(west, east + 1) / 3600, np.arange(north, south - 1, -1) / 3600)
    x, y = Transformer.from_crs("EPSG:4326", landscape.crs, always_xy=True).transform(longitude, latitude)
    rows = (landscape.top - y) / landscape.pixel_m - 0.5
    columns = (x - landscape.left) / landscape.pixel_m - 0.5
    height = ndimage.map_coordinates(landscape.height_m, [rows, columns], order=1, mode="nearest")
    corner = Affine(1 / 3600, 0, (west - 0.5) / 3600, 0, -1 / 3600, (north + 0.5) / 3600)
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "crs": "EPSG:4979", "compress": "deflate"}
    with rasterio.open(
        path, "w", width=height.shape[1], height=height.shape[0], transform=corner, tiled=True, predictor=3, **profile
    ) as raster:
        raster.write(height.astype(np.float32), 1)


def write_truth(path: Path, landscape: Landscape) -> None:
    """Write the true classes of the world (without margin) as a Cloud Optimised GeoTIFF of MapBiomas codes."""
    inside = slice(landscape.margin, -landscape.margin)
    truth, beyond_m = landscape.classes[inside, inside], landscape.margin * landscape.pixel_m
    corner = Affine(landscape.pixel_m, 0, landscape.left + beyond_m, 0, -landscape.pixel_m, landscape.top - beyond_m)
    profile = {"driver": "COG", "count": 1, "dtype": "uint8", "nodata": 0, "crs": landscape.crs}
    overviews = {"compress": "deflate", "blocksize": 512, "overview_resampling": "mode"}
    height, width = truth.shape
    with rasterio.open(path, "w", width=width, height=height, transform=corner, **profile, **overviews) as raster:
        raster.write(truth, 1)
        raster.write_colormap(1, COLOURS)


def write_catalog(path: Path, items: Sequence[dict[str, Any]]) -> None:
    """Write a static STAC ItemCollection, items sorted by id, and their collections to ``collections`` beside it."""
    (path.parent / "collections").mkdir(exist_ok=True)
    linked = []
    for name in sorted({item["collection"] for item in items}):
        own = [item for item in items if item["collection"] == name]
        document = path.parent / "collections" / f"{name}.json"
        document.write_text(json.dumps(_collection(name, own), indent=1) + "\n", "utf-8")
        link = {"rel": "collection", "href": f"collections/{name}.json", "type": "application/json"}
        linked += [{**item, "links": [link]} for item in own]
    catalog = {"type": "FeatureCollection", "features": sorted(linked, key=lambda item: item["id"])}
    path.write_text(json.dumps(catalog, indent=1) + "\n", "utf-8")


def _collection(name: str, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """STAC collection of ``items``."""
    west, south, east, north = zip(*(item["bbox"] for item in items), strict=True)
    times = sorted(item["properties"]["datetime"] for item in items)
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": "Simulated products of a made-up world: a check of software, not observations",
        "license": "BSD-3-Clause",
        "extent": {
            "spatial": {"bbox": [[min(west), min(south), max(east), max(north)]]},
            "temporal": {"interval": [[times[0], times[-1]]]},
        },
        "links": [],
    }


def world_polygon(pixels: int, inset_m: float = 20.0, points_a_side: int = 8) -> dict[str, Any]:
    """GeoJSON FeatureCollection of the square world in longitude and latitude, ``inset_m`` inside its edges.

    The sides carry points so that they stay straight in the projection to a metre.
    """
    step = np.linspace(0, 1, points_a_side, endpoint=False)
    nought = np.zeros(points_a_side)
    across = np.concatenate([nought, step, nought + 1, 1 - step])  # from the upper left corner down: counter-clockwise
    down = np.concatenate([step, nought + 1, 1 - step, nought])
    side_m = pixels * 10.0 - 2 * inset_m
    x, y = WORLD_LEFT + inset_m + across * side_m, WORLD_TOP - inset_m - down * side_m
    longitude, latitude = Transformer.from_crs("EPSG:32721", "EPSG:4326", always_xy=True).transform(x, y)
    ring = [[round(float(lon), 7), round(float(lat), 7)] for lon, lat in zip(longitude, latitude, strict=True)]
    geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    feature = {"type": "Feature", "properties": {"name": "demo"}, "geometry": geometry}
    return {"type": "FeatureCollection", "features": [feature]}
