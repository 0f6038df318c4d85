"""Random fields that the made-up land is drawn from: smooth noise of a given spectrum, and irregular cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Floats = NDArray[np.floating[Any]]  # float32 where it is large
Mask = NDArray[np.bool_]
Ids = NDArray[np.int32]


def fractal(
    rng: np.random.Generator, shape: tuple[int, int], longest_px: float, beta: float, shortest_px: float = 6
) -> Floats:
    """Gaussian noise (y, x), float32, mean 0 and deviation 1, with power falling as frequency ** -beta.

    Waves longer than ``longest_px`` are no stronger than that wave, waves shorter than ``shortest_px`` fade out.
    """
    spectrum = fft.rfft2(rng.standard_normal(shape, np.float32))
    rows, columns = fft.fftfreq(shape[0]).astype(np.float32), fft.rfftfreq(shape[1]).astype(np.float32)
    frequency = np.hypot(rows[:, None], columns[None])
    gain = (frequency**2 + np.float32(longest_px) ** -2) ** np.float32(-beta / 4)
    gain *= np.exp(-0.5 * (frequency * np.float32(shortest_px)) ** 2)
    gain[0, 0] = 0
    field = fft.irfft2(spectrum * gain, shape)
    return (field / field.std()).astype(np.float32)


def cells(rng: np.random.Generator, shape: tuple[int, int], spacing_px: float, warp_px: float) -> Ids:
    """Ids (y, x), int32, of irregular cells about ``spacing_px`` wide whose borders wander by ``warp_px``.

    Each pixel belongs to the nearest of jittered lattice points; found on every second pixel, for speed.
    """
    half = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    spacing, warp = spacing_px / 2, warp_px / 2
    dy, dx = (warp * fractal(rng, half, 2 * spacing, 3, 4) for _ in range(2))
    y = (np.arange(half[0], dtype=np.float32)[:, None] + dy) / np.float32(spacing)
    x = (np.arange(half[1], dtype=np.float32)[None] + dx) / np.float32(spacing)
    y, x = y - y.min() + 1, x - x.min() + 1  # no pixel lies in the outermost row or column of lattice points
    columns = int(x.max()) + 2
    jitter = rng.uniform(0.1, 0.9, (2, (int(y.max()) + 2) * columns)).astype(np.float32)
    first = np.floor(y).astype(np.int32) * columns + np.floor(x).astype(np.int32)
    y, x = y - np.floor(y), x - np.floor(x)
    nearest, found = np.full(half, np.inf, np.float32), np.zeros(half, np.int32)
    for step_y in (-1, 0, 1):
        for step_x in (-1, 0, 1):
            cell = first + (step_y * columns + step_x)
            away = (jitter[0][cell] + step_y - y) ** 2 + (jitter[1][cell] + step_x - x) ** 2
            np.copyto(found, cell, where=away < nearest)
            np.minimum(nearest, away, out=nearest)
    return found.repeat(2, 0).repeat(2, 1)[: shape[0], : shape[1]]
