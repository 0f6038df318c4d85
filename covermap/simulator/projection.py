"""The land resampled into the image of a pass, over its terrain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

from covermap.simulator.landscape import Landscape
from covermap.simulator.orbit import Array, Floats
from covermap.simulator.viewing import Acquisition, locate


def project(pass_: Acquisition, landscape: Landscape, power: NDArray[np.complex64]) -> tuple[Array, NDArray[np.bool_]]:
    """Resample the land into the image: power (line, sample), complex64, and whether there is land at a sample.

    For each sample the height is found at which the line of sight meets the terrain; with slopes below the incidence
    angle (no layover) there is exactly one. Done in bands of lines, which stay in the cache of the processor.
    """
    back = backward(pass_, landscape)
    image = np.empty((pass_.lines, pass_.samples), np.complex64)
    seen = np.empty(image.shape, bool)
    for rows, heights in _first_heights(back, landscape):
        terms = back.terms(np.arange(rows.start, rows.stop), np.arange(pass_.samples))
        row, column = _meet(terms, back, landscape.height_m, heights)
        seen[rows] = (row > -0.5) & (row < power.shape[0] - 0.5) & (column > -0.5) & (column < power.shape[1] - 0.5)
        image[rows] = bilinear(power, row, column)
    return image, seen


def _first_heights(back: Backward, landscape: Landscape) -> Iterator[tuple[slice, Array]]:
    """Bands of 64 lines with heights that are right on every 8th line and sample and interpolated between."""
    step, band = 8, 64
    lines, samples = (np.arange(0, n + step, step) for n in (back.lines, back.samples))
    terms = back.terms(lines, samples)
    height = np.full((lines.size, samples.size), back.height_m, np.float32)
    for _ in range(25):
        height = bilinear(landscape.height_m, *_place(terms, back, height))
    share = (np.arange(back.samples) % step / step).astype(np.float32)
    left = np.arange(back.samples) // step
    wide = height[:, left] * (1 - share) + height[:, left + 1] * share
    for first in range(0, back.lines, band):
        line = np.arange(first, min(first + band, back.lines))
        below = (line % step / step).astype(np.float32)[:, None]
        yield slice(first, int(line[-1]) + 1), wide[line // step] * (1 - below) + wide[line // step + 1] * below


def _place(terms: tuple[Floats, Floats], back: Backward, height: Floats) -> tuple[Floats, Floats]:
    """Row and column on the land of samples whose height is known."""
    h = (height - np.float32(back.height_m)) / np.float32(back.reach_m)
    rows, columns = terms
    return rows[0] + h * (rows[1] + h * rows[2]), columns[0] + h * (columns[1] + h * columns[2])


def _meet(terms: tuple[Floats, Floats], back: Backward, terrain: Floats, height: Array) -> tuple[Floats, Floats]:
    """Row and column where the line of sight of each sample meets the terrain, from a first guess of the height."""
    found = bilinear(terrain, *_place(terms, back, height))
    for _ in range(3):
        again = bilinear(terrain, *_place(terms, back, found))
        # Each turn shrinks the miss by the same share (Aitken): jump to where the turns would end.
        first, second = found - height, again - found
        share = np.clip(np.divide(second, first, out=np.zeros_like(first), where=np.abs(first) > 0.05), -0.8, 0.8)
        height, found = again, again + second * share / (1 - share)
    return _place(terms, back, found)


def bilinear(grid: Array, row: Array, column: Array) -> Array:
    """Values between pixel centres; places outside take the nearest edge."""
    rows, columns = grid.shape
    row = np.clip(row, 0, rows - 1.001)
    column = np.clip(column, 0, columns - 1.001)
    top, left = row.astype(np.int32), column.astype(np.int32)
    down, right = row - top, column - left
    flat, corner = grid.ravel(), top * columns + left
    upper = flat[corner] * (1 - right) + flat[corner + 1] * right
    lower = flat[corner + columns] * (1 - right) + flat[corner + columns + 1] * right
    return upper * (1 - down) + lower * down


@dataclass(frozen=True)
class Backward:
    """Where a sample of the image lies on the land if the height is known: polynomials fitted to the dense solution."""

    rows: Array  # (height order 3, line order, sample order), Chebyshev
    columns: Array
    lines: int
    samples: int
    height_m: float
    reach_m: float

    def terms(self, line: Array, sample: Array) -> tuple[Floats, Floats]:
        """Row and column as coefficients (3, line, sample) of powers of (height - height_m) / reach_m, float32."""
        across = chebyshev.chebvander(2 * line / self.lines - 1, self.rows.shape[1] - 1)
        along = chebyshev.chebvander(2 * sample / self.samples - 1, self.rows.shape[2] - 1)
        found = (np.einsum("la,hab,sb->hls", across, c, along, optimize=True) for c in (self.rows, self.columns))
        rows, columns = (terms.astype(np.float32) for terms in found)
        return rows, columns


def backward(pass_: Acquisition, landscape: Landscape) -> Backward:
    """Invert ``image_coordinates`` on a few hundred nodes by Newton's method and fit what lies between them."""
    order, heights = 6, 5
    low, high = float(landscape.height_m.min()) - 5, float(landscape.height_m.max()) + 5
    nodes = chebyshev.chebpts1(order + 5)
    h, a, b = np.meshgrid(chebyshev.chebpts1(heights), nodes, nodes, indexing="ij")
    height = (low + high) / 2 + h * (high - low) / 2
    x, y = locate(pass_, landscape, (a + 1) / 2 * pass_.lines, (b + 1) / 2 * pass_.samples, height)
    row = (landscape.top - y) / landscape.pixel_m - 0.5
    column = (x - landscape.left) / landscape.pixel_m - 0.5
    base = np.einsum(
        "ph,pa,pb->phab",
        np.polynomial.polynomial.polyvander(h.ravel(), 2),
        chebyshev.chebvander(a.ravel(), order),
        chebyshev.chebvander(b.ravel(), order),
    ).reshape(h.size, -1)
    fitted = np.linalg.lstsq(base, np.stack([row.ravel(), column.ravel()], -1), rcond=None)[0]
    rows, columns = fitted.T.reshape(2, 3, order + 1, order + 1)
    return Backward(rows, columns, pass_.lines, pass_.samples, (low + high) / 2, (high - low) / 2)
