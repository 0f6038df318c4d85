"""The nearest pixel of a raster in another CRS, the same for each pixel of a grid however the grid is cut.

Centres are projected exactly at nodes of the grid's own lattice and interpolated between them, but one by one wherever
that would be wrong. GDAL interpolates along each row of what it is given, so that a block's borders move pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from affine import Affine
from pyproj import CRS, Transformer
from rasterio.windows import Window

from covermap.grid import Grid

NODE_PIXELS = 32  # distance of nodes: a power of two, so that places between them are exact
TOLERANCE = 0.005  # of a raster's pixel, at the middle of each side of a cell of nodes; within it twice that at most
NUDGE = 1e-6  # of a raster's pixel: centres on a border are of the right and lower pixel, whatever the rounding
BEYOND = -2.0  # row and column of what has no place in the raster's CRS
MOST_PIXELS = 1 << 24  # of a raster that are read at once

Place = Callable[[np.ndarray, np.ndarray], np.ndarray]  # metres x, y -> rows and columns (2, ...) in a raster


class _Axis(NamedTuple):
    """Pixels of a grid along one axis, and the nodes about them."""

    centres_m: np.ndarray  # of the pixels
    nodes_m: np.ndarray  # and the middles between them: 2 n + 1
    cell: np.ndarray  # number of the node before each pixel
    share: np.ndarray  # of the way to the next node


def nearest_pixels(block: Grid, crs: CRS, transform: Affine, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the pixel of a raster that holds the centre of each pixel of a block.

    A centre is at most 0.01 pixels of the raster off: by Taylor, bilinear interpolation errs by the sum of what it does
    at the middles of two sides of a cell, and cells where that is too much, such as on the antimeridian and near a
    pole, are projected pixel by pixel. Whether a cell is one of these depends on its place alone.

    Parameters
    ----------
    block
        The grid.
    crs, transform, shape
        Of the raster, north up; the CRS without heights.

    Returns
    -------
    Rows and columns, int32 (y, x) each; -1, or the length of the axis or more, outside the raster.

    Raises
    ------
    pyproj.exceptions.ProjError
        There is no way from one CRS to the other.
    """
    place = _placer(block.crs, crs, transform, shape)
    down, across = (
        _axis(start, block.pixel_m, n) for start, n in ((-block.top, block.height), (block.left, block.width))
    )
    nodes = place(across.nodes_m[None, :], -down.nodes_m[:, None])
    doubtful = _far_from_straight(nodes)
    found = np.empty((2, *block.shape), np.int32)
    limits = np.array(shape)[:, None, None]
    for i in range(len(doubtful)):
        rows = slice(*np.searchsorted(down.cell, (i, i + 1)))
        where = _between(nodes[:, 2 * i], nodes[:, 2 * i + 2], down.share[rows], across)
        exact = doubtful[i][across.cell]
        if exact.any():
            where[..., exact] = place(across.centres_m[None, exact], -down.centres_m[rows, None])
        found[:, rows] = np.floor(np.clip(where + NUDGE, -1, limits))
    return found[0], found[1]


def _placer(grid_crs: str, crs: CRS, transform: Affine, shape: tuple[int, int]) -> Place:
    """Row and column in a raster, from its upper left corner, of places in a grid's CRS."""
    project = Transformer.from_crs(grid_crs, crs, always_xy=True).transform
    middle = transform.c + transform.a * shape[1] / 2

    def place(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        xs, ys = np.broadcast_arrays(x, y)
        east, north = project(xs, ys)
        known = np.isfinite(east) & np.isfinite(north)
        east, north = np.where(known, east, middle), np.where(known, north, transform.f)
        if crs.is_geographic:
            east = east + 360 * np.round((middle - east) / 360)  # in the turn of the raster
        rows, columns = (north - transform.f) / transform.e, (east - transform.c) / transform.a
        return np.where(known, np.stack([rows, columns]), BEYOND)

    return place


def _axis(start_m: float, pixel_m: float, count: int) -> _Axis:
    """Whole numbers of the lattice, not distances from the block, so that no block rounds otherwise than another."""
    first = math.floor(round(start_m / pixel_m, 6))
    origin_m = start_m - first * pixel_m
    pixels = first + np.arange(count)
    cells = pixels // NODE_PIXELS
    middles = np.arange(2 * cells[0], 2 * cells[-1] + 3)
    return _Axis(
        centres_m=origin_m + (pixels + 0.5) * pixel_m,
        nodes_m=origin_m + middles * (NODE_PIXELS // 2 * pixel_m),
        cell=cells - cells[0],
        share=(pixels % NODE_PIXELS + 0.5) / NODE_PIXELS,
    )


def _far_from_straight(nodes: np.ndarray) -> np.ndarray:
    """Cells of nodes and middles (2, 2 n + 1, 2 m + 1) in which the nodes alone do not tell places: bool (n, m)."""
    corners = nodes[:, ::2, ::2]
    sides = np.abs((corners[:, :, :-1] + corners[:, :, 1:]) / 2 - nodes[:, ::2, 1::2]).max(0)
    flanks = np.abs((corners[:, :-1] + corners[:, 1:]) / 2 - nodes[:, 1::2, ::2]).max(0)
    worst: np.ndarray = np.maximum.reduce([sides[:-1], sides[1:], flanks[:, :-1], flanks[:, 1:]])
    return worst > TOLERANCE


def _between(above: np.ndarray, below: np.ndarray, share: np.ndarray, across: _Axis) -> np.ndarray:
    """Rows and columns (2, y, x) of a strip of pixels between two lines (2, 2 m + 1) of nodes."""
    down = share[:, None]
    nodes = above[:, None, ::2] * (1 - down) + below[:, None, ::2] * down
    return nodes[..., across.cell] * (1 - across.share) + nodes[..., across.cell + 1] * across.share


def gather(
    read: Callable[[Window], np.ndarray], rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Values uint8 (y, x) of a raster at ``rows`` and ``columns``; 0 outside it.

    No more than 16 million pixels are read at once: else the places are taken in two parts, first those to each side
    of the raster's middle where they reach so far, as on the antimeridian in a map of the world.

    Parameters
    ----------
    read
        Gives the values uint8 (y, x) of a window.
    rows, columns
        Of `nearest_pixels`, int32 (y, x).
    shape
        Of the raster.
    """
    window = _window(rows, columns, shape)
    if window is None:
        return np.zeros(rows.shape, np.uint8)
    top, left, height, width = window.row_off, window.col_off, window.height, window.width
    if height * width <= MOST_PIXELS or rows.size == 1:
        rimmed = np.pad(read(window), 1)
        values: np.ndarray = rimmed[np.clip(rows - top + 1, 0, height + 1), np.clip(columns - left + 1, 0, width + 1)]
        return values
    middle = shape[1] // 2
    if width > shape[1] - middle:
        west, east = (np.where(side, columns, -1) for side in (columns < middle, columns >= middle))
        return np.maximum(gather(read, rows, west, shape), gather(read, rows, east, shape))
    axis = int(np.argmax(rows.shape))
    halves = zip(np.array_split(rows, 2, axis), np.array_split(columns, 2, axis), strict=True)
    return np.concatenate([gather(read, *half, shape) for half in halves], axis)


def _window(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Window | None:
    """The smallest window of a raster with all pixels that are asked for."""
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    if not inside.any():
        return None
    spans = [
        (int(n.min(initial=2**31 - 1, where=inside)), int(n.max(initial=-1, where=inside)) + 1) for n in (rows, columns)
    ]
    return Window.from_slices(*spans)
