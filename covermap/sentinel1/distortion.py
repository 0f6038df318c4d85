"""Layover and shadow: where the radar sees several places at once, or none.

Both are found along lines of equal azimuth time on the ground, from near to far range: in layover the slant range of a
place also belongs to another one; a place in shadow lies behind one that the satellite sees under a larger look angle.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from covermap.grid import Grid
from covermap.sentinel1.geocoding import Sight, geodetic_to_ecef
from covermap.sentinel1.nodes import NODE_M, node_step
from covermap.sentinel1.orbit import Orbit, state
from covermap.sentinel1.terrain import Terrain

LAYOVER, SHADOW = 1, 2
WIDE = 2048  # columns that are looked at, and left out, at once
SURELY = 0.95  # of the steepest slope without distortion
LEAST_M = 1_000.0  # a peak just outside may be higher than all within
FARTHEST_M = 10_000.0  # relief of 5 km at incidence angles of IW


def distances(orbit: Orbit, longitude_deg: np.ndarray, latitude_deg: np.ndarray, seen: Sight) -> np.ndarray:
    """Distances (2, y, x) [m] from the Earth's centre at nodes: of the satellite that passes, and of the ellipsoid."""
    satellite = np.linalg.norm(state(orbit, seen.nodes[0])[0], axis=-1)
    ellipsoid = np.linalg.norm(geodetic_to_ecef(longitude_deg, latitude_deg, 0.0), axis=-1)
    return np.stack([satellite, ellipsoid])


def reach(relief_m: float, incidence_deg: np.ndarray, grid: Grid) -> int:
    """Pixels, whole nodes, over which relief can throw layover (height / tan) or shadow (height x tan)."""
    slope = np.tan(np.radians(incidence_deg[np.isfinite(incidence_deg)]))
    longest_m = np.clip(relief_m * max(1 / slope.min(), slope.max(), 0), LEAST_M, FARTHEST_M)
    return int(np.ceil(longest_m / NODE_M)) * node_step(grid) + node_step(grid)


def layover_shadow(
    terrain: Terrain, seen: Sight, radii: np.ndarray, step: int, rows: range, columns: range, margin: int
) -> np.ndarray:
    """Layover and shadow in a part of a grid: active (the slope itself) and passive (what it covers).

    Parameters
    ----------
    terrain, seen, radii : heights, geometry and :func:`distances` at the nodes of a grid that reaches ``margin``
        pixels beyond the part. Heights that are lacking there neither cover nor hide anything.
    step : pixels from node to node.
    rows, columns : the part, in pixels of that grid.
    margin : pixels around the part whose terrain counts, see :func:`reach`.

    Returns
    -------
    uint8 (row, column): 0 neither, 1 layover, 2 shadow, 3 both.
    """
    out = np.zeros((len(rows), len(columns)), np.uint8)
    wide = max(WIDE, 4 * margin)
    for first in range(columns.start, columns.stop, wide):
        some = range(first, min(first + wide, columns.stop))
        (above, own_rows), (before, own_columns) = (
            _around(pixels, margin, step, count)
            for pixels, count in zip((rows, some), seen.nodes.shape[1:], strict=True)
        )
        nodes = np.concatenate([layers[:, above, before] for layers in (terrain.nodes, seen.nodes, radii)])
        if _is_steep(terrain.height_m, nodes, step, seen.half_m):
            part = _marched(terrain.height_m, nodes, step, (seen.middle_m, seen.half_m), own_rows, own_columns, margin)
            out[:, some.start - columns.start : some.stop - columns.start] = part
    return out


def _around(pixels: range, margin: int, step: int, count: int) -> tuple[slice, range]:
    """Nodes, of ``count``, around pixels and their margin, and the pixels counted from the first of these nodes."""
    first = min(max(pixels.start - margin - 1, 0) // step, count - 2)
    return slice(first, (pixels.stop + margin + 1) // step + 2), range(
        pixels.start - first * step, pixels.stop - first * step
    )


def _is_steep(height_m: np.ndarray, nodes: np.ndarray, step: int, half_m: float) -> bool:
    """Whether a slope at these nodes may reach the incidence angle, or its complement, in any direction.

    Where none does, no place is laid over or hidden. All slopes are heights to a pixel of the grid.
    """
    dem_row, dem_column, range_m, raised_m = nodes[[0, 1, 5, 6]]
    if not (np.isfinite(dem_row).all() and np.isfinite(range_m).all()):
        return True
    to_pixel = (np.hypot(*np.gradient(layer)) / step for layer in (dem_row, dem_column, range_m))
    rows_to_pixel, columns_to_pixel, level_m = to_pixel
    cosine = np.clip(np.abs(raised_m) / half_m, 1e-3, 1)  # metres nearer for a metre higher
    sine = np.sqrt(np.maximum(1 - cosine**2, 1e-6))
    least = SURELY * np.nanmin(np.minimum(level_m / cosine, level_m * cosine / sine**2))
    (top, bottom), (left, right) = (
        (max(int(np.nanmin(at)), 0), max(int(np.nanmax(at)) + 2, 0)) for at in (dem_row, dem_column)
    )
    cells = height_m[top:bottom, left:right]
    return bool(_reaches(cells, float(np.nanmax(rows_to_pixel)), float(np.nanmax(columns_to_pixel)), float(least)))


@njit(cache=True, nogil=True, error_model="numpy")
def _reaches(heights, rows_to_pixel, columns_to_pixel, least):  # type: ignore[no-untyped-def]
    for i in range(heights.shape[0] - 1):
        for j in range(heights.shape[1] - 1):
            a, b, c, d = heights[i, j], heights[i, j + 1], heights[i + 1, j], heights[i + 1, j + 1]
            down, right = max(abs(c - a), abs(d - b)), max(abs(b - a), abs(d - c))
            if down * rows_to_pixel + right * columns_to_pixel > least:
                return True
    return False


def _marched(
    height_m: np.ndarray,
    nodes: np.ndarray,
    step: int,
    scale: tuple[float, float],
    rows: range,
    columns: range,
    margin: int,
) -> np.ndarray:
    """Layover and shadow of a part from its nodes (10, y, x): place in the DEM, time, slant range, distances."""
    time_s, range_m = nodes[2], nodes[5]
    nodes = nodes[[0, 1, 5, 6, 7, 8, 9]]
    here = min(len(rows) // 2 + rows.start, (time_s.shape[0] - 1) * step) // step
    down, across = (np.gradient(layer) for layer in (time_s, range_m))
    along_rows = abs(np.nanmean(down[0][here])) > abs(np.nanmean(down[1][here]))
    if not along_rows:  # the satellite looks north or south: the same with rows and columns exchanged
        nodes, down, across = nodes.swapaxes(1, 2), [d.T for d in down[::-1]], [d.T for d in across[::-1]]
        rows, columns = columns, rows
        here = min(len(rows) // 2 + rows.start, (nodes.shape[1] - 1) * step) // step
    slope = -down[1][here] / down[0][here]
    outwards = bool(np.nanmean(across[1][here] + across[0][here] * slope) > 0)
    start, stop = max(columns.start - margin, 0), min(columns.stop + margin, (nodes.shape[2] - 1) * step + 1)
    known = np.isfinite(slope)
    slopes = np.interp(np.arange(start, stop) / step, np.flatnonzero(known), slope[known])
    shift = np.cumsum(slopes) - slopes.sum() / 2
    beside = int(np.ceil(margin * np.abs(slopes).max())) + 1
    lines = (max(rows.start - beside, 0), min(rows.stop + beside, (nodes.shape[1] - 1) * step + 1))
    out = np.zeros((len(rows), len(columns)), np.uint8)
    _march(
        height_m, np.ascontiguousarray(nodes), step, scale, shift, start, lines, (rows.start, columns.start),
        outwards, out,
    )  # fmt: skip
    return out if along_rows else out.T


@njit(cache=True, nogil=True, error_model="numpy")
def _height(heights, row, column):  # type: ignore[no-untyped-def]
    """Bilinear; NaN outside and beside a missing height."""
    if not (0 <= row <= heights.shape[0] - 1 and 0 <= column <= heights.shape[1] - 1):
        return np.nan
    i, j = min(int(row), heights.shape[0] - 2), min(int(column), heights.shape[1] - 2)
    down, right = row - i, column - j
    upper = heights[i, j] + right * (heights[i, j + 1] - heights[i, j])
    lower = heights[i + 1, j] + right * (heights[i + 1, j + 1] - heights[i + 1, j])
    return upper + down * (lower - upper)


@njit(cache=True, nogil=True, error_model="numpy")
def _march(heights, nodes, step, scale, shift, start, lines, first, outwards, out):  # type: ignore[no-untyped-def]
    """One line of equal time after the other; line ``i`` crosses column ``start + k`` at row ``i + shift[k]``."""
    slant, cosine = np.empty(shift.size), np.empty(shift.size)
    place = np.empty((shift.size, 2), np.int64)
    at = np.empty(nodes.shape[0])
    middle, half = scale
    for i in range(int(np.floor(lines[0] - shift.max())), int(np.ceil(lines[1] - shift.min())) + 1):
        count = 0
        for n in range(shift.size):
            k = n if outwards else shift.size - 1 - n
            row = i + shift[k]
            if not lines[0] <= row <= lines[1] - 1:
                continue
            y, x = min(int(row) // step, nodes.shape[1] - 2), min((start + k) // step, nodes.shape[2] - 2)
            down, right = row / step - y, (start + k) / step - x
            for layer in range(at.size):
                upper = nodes[layer, y, x] + right * (nodes[layer, y, x + 1] - nodes[layer, y, x])
                lower = nodes[layer, y + 1, x] + right * (nodes[layer, y + 1, x + 1] - nodes[layer, y + 1, x])
                at[layer] = upper + down * (lower - upper)
            height = _height(heights, at[0], at[1])
            if height != height:
                continue
            u = (height - middle) / half
            distance = (at[4] * u + at[3]) * u + at[2]
            satellite, ground = at[5], at[6] + height
            slant[count] = distance
            cosine[count] = (satellite * satellite + distance * distance - ground * ground) / (2 * satellite * distance)
            place[count, 0], place[count, 1] = int(np.floor(row + 0.5)) - first[0], start + k - first[1]
            count += 1
        farthest, steepest = -np.inf, np.inf
        for n in range(count):
            y, x = place[n]
            inside = 0 <= y < out.shape[0] and 0 <= x < out.shape[1]
            if slant[n] < farthest and inside:
                out[y, x] |= 1
            if cosine[n] > steepest and inside:
                out[y, x] |= 2
            farthest, steepest = max(farthest, slant[n]), min(steepest, cosine[n])
        nearest = np.inf
        for n in range(count - 1, -1, -1):
            y, x = place[n]
            if slant[n] > nearest and 0 <= y < out.shape[0] and 0 <= x < out.shape[1]:
                out[y, x] |= 1
            nearest = min(nearest, slant[n])
