"""Parcels of farmland: straight-edged fields, bent pastures and plantation stands, ranked by where they suit best."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from covermap.simulator.random_fields import Floats, Ids, cells, fractal


def fields(rng: np.random.Generator, score: Floats) -> Ids:
    """Fields of 30 to 200 ha, straight-edged; some hold the circle of a centre pivot."""
    straight = rectangles(rng, score.shape, 3000, 20_000)
    ranks = _ranked(straight, score, rng, 0.35, 1500)
    for number, window in enumerate(ndimage.find_objects(ranks + 1)):
        if window is None or rng.uniform() > 0.3:
            continue
        inside = ranks[window] == number
        away = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        if 22 < away.max() < 60:  # a circle of 15 to 110 ha
            row, column = np.unravel_index(away.argmax(), away.shape)
            y, x = np.ogrid[: inside.shape[0], : inside.shape[1]]
            ranks[window][inside & (np.hypot(y - row, x - column) > away.max() - 1)] = -1
    return ranks


def pastures(rng: np.random.Generator, score: Floats) -> Ids:
    """Pastures with irregular edges: rectangles seen through a smooth displacement."""
    straight = rectangles(rng, score.shape, 4000, 24_000)
    dy, dx = (9 * fractal(rng, score.shape, 90, 2.6) for _ in range(2))
    y, x = np.indices(score.shape, np.float32)
    bent = ndimage.map_coordinates(straight, [y + dy, x + dx], order=0, mode="nearest")
    return _ranked(bent, score, rng, 0.45, 1500)


def stands(rng: np.random.Generator, score: Floats) -> Ids:
    """Plantation stands of 10 to 38 ha in loose groups all over the country."""
    straight = rectangles(rng, score.shape, 1000, 3800)
    estates = 1.1 * fractal(rng, score.shape, 160, 2.4, 60)
    return _ranked(straight, 0.4 * score + estates, rng, 0.6, 600)


def rectangles(rng: np.random.Generator, shape: tuple[int, int], smallest_px: float, largest_px: float) -> Ids:
    """Ids (y, x), int32, of rectangular parcels; the direction of their edges changes from district to district.

    ``smallest_px`` and ``largest_px`` bound the area of a parcel that no district border cuts.
    """
    districts = cells(rng, shape, 420, 6)
    parcels, first = np.zeros(shape, np.int32), 0
    for number, window in enumerate(ndimage.find_objects(districts + 1)):
        if window is None:
            continue
        inside = districts[window] == number
        rows, columns = np.nonzero(inside)
        angle = rng.uniform(-0.6, 0.6)
        u = rows * np.cos(angle) + columns * np.sin(angle)
        v = columns * np.cos(angle) - rows * np.sin(angle)
        u, v = (u - u.min()).astype(np.int32), (v - v.min()).astype(np.int32)
        plan = np.zeros((u.max() + 1, v.max() + 1), np.int32)
        for k, part in enumerate(_cut(rng, (0, plan.shape[0], 0, plan.shape[1]), smallest_px, largest_px)):
            plan[part] = first + k
        parcels[window][inside] = plan[u, v]
        first = int(plan.max()) + 1
    return parcels


def _cut(
    rng: np.random.Generator, box: tuple[int, int, int, int], smallest_px: float, largest_px: float
) -> Iterator[tuple[slice, slice]]:
    """Cut a box (top, bottom, left, right) across its longer side until the parts have the wanted area."""
    top, bottom, left, right = box
    high, wide = bottom - top, right - left
    wanted = smallest_px * (largest_px / smallest_px) ** rng.uniform(0.15, 1)
    if high * wide <= wanted or high * wide < 2 * smallest_px:
        yield slice(top, bottom), slice(left, right)
        return
    share = rng.uniform(0.38, 0.62)
    if high * rng.uniform(0.8, 1.25) > wide:
        middle = top + round(share * high)
        boxes = (top, middle, left, right), (middle, bottom, left, right)
    else:
        middle = left + round(share * wide)
        boxes = (top, bottom, left, middle), (top, bottom, middle, right)
    for half in boxes:
        yield from _cut(rng, half, smallest_px, largest_px)


def _ranked(parcels: Ids, score: Floats, rng: np.random.Generator, jitter: float, smallest_px: float) -> Ids:
    """Parcels as ranks from 0 = best mean ``score``; those under ``smallest_px`` (cut off at borders) become -1."""
    sizes = np.bincount(parcels.ravel())
    means = np.bincount(parcels.ravel(), score.ravel()) / np.maximum(sizes, 1)
    means = means + jitter * rng.standard_normal(means.size)
    means[sizes < smallest_px] = -np.inf
    rank = np.empty(means.size, np.int32)
    rank[np.argsort(-means, kind="stable")] = np.arange(means.size, dtype=np.int32)
    rank[sizes < smallest_px] = -1
    return rank[parcels]
