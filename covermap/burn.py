"""Polygons to pixels, exactly: integers alone, so that no class depends on where a block begins."""

from __future__ import annotations

import numpy as np
from numba import njit

from covermap.grid import Grid
from covermap.legend import NO_LABEL

BITS = 10  # corners count in 1/1024 pixel, 1 cm at 10 m
PIXEL, HALF = 1 << BITS, 1 << (BITS - 1)
INSIDE, TOUCHED = 1, 2


def burn(shapes: np.ndarray, ids: np.ndarray, grid: Grid, all_touched: bool = False) -> tuple[np.ndarray, int]:
    """Pixels of polygons: the later shape wins.

    A pixel is a shape's where its centre is inside (even-odd rule, so holes stay holes). A centre on the border between
    two shapes is of exactly one, as with GDAL: borders on the right and above are inside, those on the left and below
    are not.

    Parameters
    ----------
    shapes
        Polygons or multipolygons (n,) in the grid's CRS [m], within 2**20 pixels of the grid: products of two numbers
        of columns and rows then have less than 63 bits.
    ids
        uint8 (n,), the value of each.
    all_touched
        Whether a pixel is a shape's too where it shares more than a border with it.

    Returns
    -------
    Values uint8 (y, x), and the number of pixels of which shapes of several values had a part.
    """
    from shapely import get_coordinates, get_parts, get_rings

    parts, owner = get_parts(shapes, return_index=True)
    rings, part = get_rings(parts, return_index=True)
    corners, ring = get_coordinates(rings, return_index=True)
    x, y = (corners / grid.pixel_m * PIXEL).T
    columns = np.rint(x).astype(np.int64) - round(grid.left / grid.pixel_m * PIXEL)
    rows = round(grid.top / grid.pixel_m * PIXEL) - np.rint(y).astype(np.int64)
    joined = ring[1:] == ring[:-1]
    edges = np.stack([columns[:-1], rows[:-1], columns[1:], rows[1:]], 1)[joined]
    ends = np.searchsorted(owner[part[ring[:-1][joined]]], np.arange(len(shapes)), side="right")
    burnt = np.full(grid.shape, NO_LABEL, np.uint8)
    twice = _burn(burnt, edges, ends, ids.astype(np.uint8), all_touched)
    return burnt, twice


@njit(cache=True, nogil=True, error_model="numpy")
def _burn(burnt, edges, ends, ids, all_touched):  # type: ignore[no-untyped-def]
    """Edges (e, 4) as column, row, column, row of both ends, shape by shape; ``ends`` (n,) of each shape's edges."""
    height, width = burnt.shape
    buffer = np.zeros(burnt.size, np.uint8)  # for the marks of one shape at a time, so that small ones stay in cache
    several = np.zeros(burnt.shape, np.bool_)
    first = 0
    for shape in range(len(ends)):
        own = edges[first : ends[shape]]
        first = ends[shape]
        if len(own) == 0:
            continue
        top, bottom, left, right = _extent(own, height, width)
        if top >= bottom or left >= right:
            continue
        marks = buffer[: (bottom - top) * (right - left)].reshape(bottom - top, right - left)
        for edge in range(len(own)):
            _cross(marks, own[edge], top, left)
            if all_touched:
                _touch(marks, own[edge], top, left)
        _paint(burnt[top:bottom, left:right], several[top:bottom, left:right], marks, ids[shape])
    return several.sum()


@njit(cache=True, nogil=True, error_model="numpy")
def _extent(edges, height, width):  # type: ignore[no-untyped-def]
    """First and last + 1 of the rows and columns that edges meet; a column more, right of which a centre may lie."""
    low_x = high_x = edges[0, 0]
    low_y = high_y = edges[0, 1]
    for edge in range(len(edges)):
        low_x, high_x = min(low_x, edges[edge, 0]), max(high_x, edges[edge, 0])
        low_y, high_y = min(low_y, edges[edge, 1]), max(high_y, edges[edge, 1])
    top, bottom = max(low_y >> BITS, 0), min((high_y >> BITS) + 1, height)
    return top, bottom, max(low_x >> BITS, 0), min((high_x >> BITS) + 2, width)


@njit(cache=True, nogil=True, error_model="numpy")
def _paint(burnt, several, marks, value):  # type: ignore[no-untyped-def]
    """Give marked pixels a value, and take the marks away."""
    for row in range(marks.shape[0]):
        inside = 0
        for column in range(marks.shape[1]):
            mark = marks[row, column]
            marks[row, column] = 0
            inside ^= mark & INSIDE
            if inside or mark & TOUCHED:
                before = burnt[row, column]
                if before != NO_LABEL and before != value:
                    several[row, column] = True
                burnt[row, column] = value


@njit(cache=True, nogil=True, error_model="numpy")
def _cross(marks, edge, top, left):  # type: ignore[no-untyped-def]
    """Turn over, in each row whose centre an edge crosses, the first pixel with its centre right of the crossing."""
    x1, y1, x2, y2 = edge
    if y1 == y2:
        return
    if y1 > y2:
        x1, y1, x2, y2 = x2, y2, x1, y1
    height, width = marks.shape
    for row in range(max((y1 + HALF - 1) >> BITS, top), min((y2 + HALF - 1) >> BITS, top + height)):
        crossing = x1 + (row * PIXEL + HALF - y1) * (x2 - x1) // (y2 - y1)
        column = max((crossing + HALF) >> BITS, left)
        if column < left + width:
            marks[row - top, column - left] ^= INSIDE


@njit(cache=True, nogil=True, error_model="numpy")
def _touch(marks, edge, top, left):  # type: ignore[no-untyped-def]
    """Mark the pixels whose open square an edge meets: one along a border touches neither side."""
    x1, y1, x2, y2 = edge
    height, width = marks.shape
    if y1 > y2:
        x1, y1, x2, y2 = x2, y2, x1, y1
    for row in range(max(y1 >> BITS, top), min((y2 + PIXEL - 1) >> BITS, top + height)):
        above, below = max(row * PIXEL, y1), min((row + 1) * PIXEL, y2)
        if y1 == y2:
            low, high = min(x1, x2), max(x1, x2)
        elif x1 <= x2:
            low = x1 + (above - y1) * (x2 - x1) // (y2 - y1)
            high = x1 - (below - y1) * (x1 - x2) // (y2 - y1)
        else:
            low = x1 + (below - y1) * (x2 - x1) // (y2 - y1)
            high = x1 - (above - y1) * (x1 - x2) // (y2 - y1)
        for column in range(max(low >> BITS, left), min((high + PIXEL - 1) >> BITS, left + width)):
            marks[row - top, column - left] |= TOUCHED
