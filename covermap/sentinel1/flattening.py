"""Backscatter flattened by terrain: gamma0 by the area that a radar pixel really illuminates (Small 2011).

The area of the ground in a radar pixel, seen from the satellite (projected onto the plane across the line of sight), is
summed over the facets of the DEM. Divided into the pixel's area in the slant range plane it replaces the tangent of the
ellipsoid's incidence angle: gamma0 = beta0 A_beta / A_gamma (doi:10.1109/TGRS.2011.2120616, equations 5 and 8).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from rasterio.windows import Window

from covermap.sentinel1.distortion import SHADOW, layover_shadow
from covermap.sentinel1.geocoding import Sight, bilinear, refine, time_and_range
from covermap.sentinel1.terrain import Terrain
from covermap.strips import in_order, strips_of

TILE = 256  # facets along a side that are in work at once
SPREAD = 2.0  # points of a facet to a radar pixel along each side: ripples of 0.02 dB on level ground
EDGE = 2  # lines and samples beyond the image, so that its outermost pixels get all of their facets
MOST = 24  # points along a side of a facet
LEAST_AREA = 0.05  # of the pixel's own area in the slant range plane: below it there is shadow
AROUND_M = 50.0  # of slant range, for the number of samples to a metre

Project = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def terrain_area(
    terrain: Terrain,
    seen: Sight,
    radii: np.ndarray,
    step: int,
    shape: tuple[int, int],
    project: Project,
    part: Window,
    margin: int,
    threads: int = 1,
) -> np.ndarray:
    """Illuminated area in each pixel of the radar image, A_gamma / A_beta.

    Facets are the squares between the pixels of a grid. In the plane of azimuth time t and look angle, a facet has the
    area that the satellite sees, since R d(look angle) is length across the line of sight; facets that face away from
    it or lie in shadow have none.

    Parameters
    ----------
    terrain, seen, radii, step : heights, geometry and :func:`distortion.distances` at the nodes of a grid, and pixels
        from node to node. The grid should reach beyond what is wanted, by layover and two pixels: radar pixels at its
        edge hold only a part of their facets, and come out too bright.
    shape : rows and columns of the grid.
    project : line and sample (of the whole image) of zero-Doppler time [s] and slant range [m].
    part : window of the image that is wanted.
    margin : pixels over which shadow is cast, see :func:`distortion.reach`.
    threads : tiles that are worked on at once.

    Returns
    -------
    float32 (line, sample) of ``part``: 1 / tan(incidence angle) on flat ground; 0 where no facet is seen.
    """
    area = np.zeros((part.height, part.width), np.float32)
    scales = np.stack([_samples_per_metre(seen, u, project) for u in (-1, 1)])
    nodes = np.concatenate([terrain.nodes, seen.nodes, radii, scales])
    turn = _orientation(seen)

    def strip(rows: slice) -> list[tuple[slice, slice, np.ndarray]]:
        parts: list[tuple[slice, slice, np.ndarray]] = []
        hidden = layover_shadow(terrain, seen, radii, step, range(rows.start, rows.stop), range(shape[1]), margin)
        for columns in strips_of(shape[1] - 1, TILE):
            line, sample, look, scale_m = _vertices(nodes, terrain, seen, step, rows, columns, project)
            line, sample = line - part.row_off, sample - part.col_off
            if not np.isfinite(line).any():
                continue
            (top, bottom), (left, right) = (
                (max(int(np.nanmin(at)) - 1, -EDGE), min(int(np.nanmax(at)) + 3, size + EDGE))
                for at, size in zip((line, sample), area.shape, strict=True)
            )
            if top >= bottom or left >= right:
                continue
            some = np.zeros((bottom - top, right - left), np.float32)
            dark = (hidden[:, columns.start : columns.stop] & SHADOW) != 0
            _spread(line - top, sample - left, look, scale_m, dark, turn, some)
            whole = some[max(-top, 0) :, max(-left, 0) :]
            parts.append((slice(max(top, 0), bottom), slice(max(left, 0), right), whole))
        return parts

    for parts in in_order(strip, strips_of(shape[0] - 1, TILE), threads):
        for lines, samples, whole in parts:  # summed in one order, so that the same bytes come out
            target = area[lines, samples]
            target += whole[: target.shape[0], : target.shape[1]]
    return area


def flatten(beta0: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Terrain-flattened gamma0 (float32) of beta0 and :func:`terrain_area`; NaN in shadow, where the image is noise."""
    seen = area >= LEAST_AREA
    return np.where(seen, beta0 / np.where(seen, area, 1), np.float32(np.nan)).astype(np.float32, copy=False)


def _samples_per_metre(seen: Sight, u: float, project: Project) -> np.ndarray:
    """Samples to a metre of slant range at the nodes (y, x), at the lowest (-1) or highest (1) height."""
    time_s, range_m = time_and_range(seen.nodes, seen.middle_m + u * seen.half_m, seen)
    near, far = (project(time_s, range_m + side * AROUND_M)[1] for side in (-1, 1))
    return (far - near) / (2 * AROUND_M)


def _orientation(seen: Sight) -> float:
    """Sign of the area of a square of level ground in the plane of time and look angle."""
    time_s, range_m = np.gradient(seen.nodes[0]), np.gradient(seen.nodes[3])
    return float(np.sign(np.nanmedian(time_s[0] * range_m[1] - time_s[1] * range_m[0])))


def _vertices(
    nodes: np.ndarray, terrain: Terrain, seen: Sight, step: int, rows: slice, columns: slice, project: Project
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Line, sample, look angle [rad] and slant range x samples per metre at the corners of facets (row, column)."""
    row, column = rows.start // step, columns.start // step
    some = np.ascontiguousarray(nodes[:, row : rows.stop // step + 2, column : columns.stop // step + 2])
    first = columns.start - column * step
    pixels = range(rows.start - row * step, rows.stop - row * step + 1)
    layers = refine(some, step, pixels, columns.stop - column * step + 1)[:, :, first:]
    height_m = bilinear(terrain.height_m, layers[0], layers[1]).astype(np.float64)
    u = (height_m - seen.middle_m) / seen.half_m
    time_s, range_m = time_and_range(layers[2:8], height_m, seen)
    line, sample = project(time_s, range_m)
    satellite_m, ground_m = layers[8], layers[9] + height_m
    look = np.arccos((satellite_m**2 + range_m**2 - ground_m**2) / (2 * satellite_m * range_m))
    return line, sample, look, range_m * (layers[10] * (1 - u) + layers[11] * (1 + u)) / 2


@njit(cache=True, nogil=True, error_model="numpy")
def _spread(line, sample, look, scale_m, dark, turn, out):  # type: ignore[no-untyped-def]
    """Area of each facet, spread over the radar pixels that it covers: points in it, each bilinear."""
    height, width = out.shape
    for i in range(line.shape[0] - 1):
        for j in range(line.shape[1] - 1):
            a, b, c, d = line[i, j], line[i, j + 1], line[i + 1, j], line[i + 1, j + 1]
            p, q, r, s = sample[i, j], sample[i, j + 1], sample[i + 1, j], sample[i + 1, j + 1]
            twice = (d - a) * (look[i + 1, j] - look[i, j + 1]) - (c - b) * (look[i + 1, j + 1] - look[i, j])
            facet = -turn * twice / 2 * scale_m[i, j]
            if not facet > 0 or dark[i, j]:
                continue
            long = max(max(a, b, c, d) - min(a, b, c, d), max(p, q, r, s) - min(p, q, r, s))
            if not (min(a, b, c, d) >= 0 and min(p, q, r, s) >= 0):
                continue
            if not (max(a, b, c, d) < height - 1 and max(p, q, r, s) < width - 1):
                continue
            points = min(max(int(np.ceil(SPREAD * long)), 1), MOST)
            share = facet / (points * points)
            for m in range(points):
                v = (m + 0.5) / points
                y0, y1, x0, x1 = a + (c - a) * v, b + (d - b) * v, p + (r - p) * v, q + (s - q) * v
                for n in range(points):
                    w = (n + 0.5) / points
                    y, x = y0 + (y1 - y0) * w, x0 + (x1 - x0) * w
                    top, left = int(y), int(x)
                    down, right = y - top, x - left
                    lower, upper = share * down, share * (1 - down)
                    out[top, left] += upper * (1 - right)
                    out[top, left + 1] += upper * right
                    out[top + 1, left] += lower * (1 - right)
                    out[top + 1, left + 1] += lower * right
