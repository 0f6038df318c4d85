"""Weak labels as a Landsat-based yearly map gives them: wrong in whole patches and at borders, a year late.

No error is drawn for a single pixel. Like a real map of this kind, the labels are wrong where the land changed since
the last image, where a patch was taken for its look-alike, where a border is off, and where an object is too small.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import sieve
from rasterio.warp import Resampling, reproject, transform_bounds
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
    Landscape,
)
from covermap.simulator.random_fields import cells, fractal

PIXEL_DEG = 0.000269494585  # pixel of the MapBiomas collections
SMALLEST_PX = 50  # patches below 0.5 ha vanish

# Share of each true class that is taken for another one, patch by patch. The right class stays the likeliest.
CONFUSION = {
    FOREST: {SAVANNA: 0.10},
    SAVANNA: {FOREST: 0.08, GRASSLAND: 0.08},
    PLANTATION: {FOREST: 0.14},
    WETLAND: {GRASSLAND: 0.15, FOREST: 0.03},
    GRASSLAND: {PASTURE: 0.15, SAVANNA: 0.08},
    PASTURE: {GRASSLAND: 0.08, CROP: 0.05},
    CROP: {PASTURE: 0.10},
    URBAN: {PASTURE: 0.10},
    BARE: {PASTURE: 0.08, CROP: 0.05},
    WATER: {WETLAND: 0.12},
}
THIN_FIRST = (URBAN, WATER)  # confused where it is sparse, not at random


def weak_labels(landscape: Landscape, seed: int) -> NDArray[np.uint8]:
    """Weak labels on the 10 m grid of ``landscape``, uint8 (y, x) MapBiomas codes, before they become 30 m pixels."""
    rng = np.random.default_rng([seed, 2])
    labels = _confused(rng, landscape.previous, landscape.parcels)
    labels = sieve(labels, SMALLEST_PX, connectivity=8)
    dy, dx = (1.7 * fractal(rng, labels.shape, 60, 2.5, 15) for _ in range(2))  # 24 m in all, root mean square
    y, x = np.indices(labels.shape, np.float32)
    return ndimage.map_coordinates(labels, [y + dy, x + dx], order=0, mode="nearest")


def write_labels(path: Path, landscape: Landscape, seed: int) -> None:
    """Write the weak labels as a GeoTIFF of ``PIXEL_DEG`` in EPSG:4326, by majority; 0 outside the landscape."""
    labels = weak_labels(landscape, seed)
    size = labels.shape[0] * landscape.pixel_m
    left, bottom, right, top = transform_bounds(
        landscape.crs, "EPSG:4326", landscape.left, landscape.top - size, landscape.left + size, landscape.top
    )
    column, row = np.floor(left / PIXEL_DEG), np.ceil(top / PIXEL_DEG)
    width, height = int(np.ceil(right / PIXEL_DEG) - column), int(row - np.floor(bottom / PIXEL_DEG))
    transform = Affine(PIXEL_DEG, 0, column * PIXEL_DEG, 0, -PIXEL_DEG, row * PIXEL_DEG)
    coarse = np.zeros((height, width), np.uint8)
    reproject(
        labels,
        coarse,
        src_transform=Affine(landscape.pixel_m, 0, landscape.left, 0, -landscape.pixel_m, landscape.top),
        src_crs=landscape.crs,
        dst_transform=transform,
        dst_crs="EPSG:4326",
        src_nodata=0,
        dst_nodata=0,
        resampling=Resampling.mode,
    )
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 0, "crs": "EPSG:4326", "compress": "deflate"}
    with rasterio.open(path, "w", width=width, height=height, transform=transform, tiled=True, **profile) as raster:
        raster.write(coarse, 1)


def _confused(rng: np.random.Generator, cover: NDArray[np.uint8], parcels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """``cover`` with whole patches given to look-alikes, in the shares of ``CONFUSION``.

    A patch is a field, stand or pasture as a whole, or what lies of one class in one coherent cell.
    """
    whole = np.isin(cover, (PASTURE, CROP, PLANTATION))
    places = np.where(whole, parcels, cells(rng, cover.shape, 38, 7) + parcels.max() + 1)
    _, patches = np.unique(places.astype(np.int64) * 64 + cover, return_inverse=True)
    patches = patches.ravel()
    areas = np.bincount(patches)
    code = np.zeros(areas.size, np.uint8)
    code[patches] = cover.ravel()
    density = np.zeros(areas.size)
    for thin in THIN_FIRST:
        around = ndimage.uniform_filter((cover == thin).astype(np.float32), 21)
        density += (code == thin) * np.bincount(patches, around.ravel()) / areas
    order = 1.5 * density + rng.uniform(size=areas.size)
    given = code.copy()
    for true, shares in CONFUSION.items():
        own = np.flatnonzero(code == true)
        own = own[np.argsort(order[own], kind="stable")]
        reached = (np.cumsum(areas[own]) - areas[own] / 2) / max(areas[own].sum(), 1)
        taken = np.digitize(reached, np.cumsum(list(shares.values())))
        given[own] = np.array([*shares, true], np.uint8)[taken]
    return given[patches].reshape(cover.shape)
