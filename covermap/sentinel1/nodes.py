"""Nodes of a grid: places some pixels apart where coordinates are transformed; between them they are interpolated."""

from __future__ import annotations

import numpy as np
import rasterio
from pyproj import CRS, Transformer
from rasterio.windows import Window

from covermap.grid import Grid

NODE_M = 160.0  # distance of the places where geometry is solved; between them it is interpolated


def node_step(grid: Grid) -> int:
    return max(1, round(NODE_M / grid.pixel_m))


def nodes(grid: Grid, crs: str | CRS) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x, y (y, x) in ``crs`` of the grid's nodes: centres of every ``node_step``-th pixel."""
    step = node_step(grid)
    rows, columns = (
        np.arange(0, length - 1 + step, step) if length > 1 else np.array([0, step]) for length in grid.shape
    )
    x = grid.left + (columns + 0.5) * grid.pixel_m
    y = grid.top - (rows + 0.5) * grid.pixel_m
    return Transformer.from_crs(grid.crs, crs, always_xy=True).transform(*np.meshgrid(x, y))


def horizontal(crs: CRS) -> CRS:
    """The CRS of x and y alone: transforming them must not ask for a model of the heights."""
    return crs.sub_crs_list[0] if crs.is_compound else crs.to_2d()


def positions_in(grid: Grid, raster: rasterio.DatasetReader) -> np.ndarray:
    """Row and column (2, y, x) of the grid's nodes in a raster, from the centre of its first pixel."""
    crs = horizontal(CRS.from_wkt(raster.crs.to_wkt()))
    x, y = nodes(grid, crs)
    if crs.is_geographic:
        x = _unwrapped(x, (raster.bounds.left + raster.bounds.right) / 2)
    to_pixel = ~raster.transform
    column = to_pixel.a * x + to_pixel.b * y + to_pixel.c
    row = to_pixel.d * x + to_pixel.e * y + to_pixel.f
    return np.round(np.stack([row, column]) - 0.5, 6)  # so that a raster on the grid's own lattice is copied exactly


def _unwrapped(longitude_deg: np.ndarray, middle_deg: float) -> np.ndarray:
    """Longitudes without a step across the antimeridian, in the turn that is nearest to a raster's middle."""
    known = longitude_deg[np.isfinite(longitude_deg)]
    if not len(known):
        return longitude_deg
    one_turn = (longitude_deg - known[0] + 180) % 360 + known[0] - 180
    return one_turn + 360 * np.round((middle_deg - np.nanmean(one_turn)) / 360)


def part_around(positions: np.ndarray, shape: tuple[int, int], margin: int) -> Window | None:
    """Smallest window of a raster that holds the positions and a margin, or None where they do not meet."""
    edges = []
    for position, length in zip(positions, shape, strict=True):
        position = position[np.isfinite(position)]
        if not len(position):
            return None
        start, stop = np.floor(position.min()) - margin, np.ceil(position.max()) + margin + 1
        edges.append((int(np.clip(start, 0, length)), int(np.clip(stop, 0, length))))
    if any(start >= stop for start, stop in edges):
        return None
    return Window.from_slices(*edges)
