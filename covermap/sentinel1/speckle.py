"""Speckle filters in radar geometry, in linear power."""

from __future__ import annotations

import numpy as np
from numba import njit


def lee(power: np.ndarray, window_pixels: int, looks: float) -> np.ndarray:
    """Lee filter with a fixed number of looks.

    ``mean + w (centre - mean)``, ``w = max(0, 1 - mean^2 / (looks variance))``, with mean and variance (N-1) of
    the valid pixels of the window. Where the mean is zero or less there is no signal to preserve: the mean.

    Parameters
    ----------
    power : float32 (y, x), linear, may be negative, NaN = no data; outside the array lies no data.
    window_pixels : side of the window, odd.
    looks : equivalent number of looks of the product, never estimated from the image.

    Returns
    -------
    float32 (y, x), NaN exactly where ``power`` is NaN.

    Notes
    -----
    J.-S. Lee (1980), doi:10.1109/TPAMI.1980.4766994, with the minimum variance weight of SNAP and Orfeo ToolBox.
    """
    out = np.empty(power.shape, np.float32)
    _lee(np.ascontiguousarray(power, np.float32), window_pixels // 2, 1 / looks, out)
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _lee(power, half, speckle_variance, out):  # type: ignore[no-untyped-def]
    rows, columns = power.shape
    side = 2 * half + 1
    # sums down the window, then across: each of the loops over columns is one run of vector instructions
    down = np.empty((3, columns + 2 * half))
    across = np.empty((3, columns))
    for row in range(rows):
        down[:] = 0
        for near in range(max(0, row - half), min(rows, row + half + 1)):
            for column in range(columns):
                value = np.float64(power[near, column])
                valid = 1.0 if value == value else 0.0
                value = value if value == value else 0.0
                down[0, half + column] += valid
                down[1, half + column] += value
                down[2, half + column] += value * value
        across[:] = 0
        for shift in range(side):
            for column in range(columns):
                across[0, column] += down[0, shift + column]
                across[1, column] += down[1, shift + column]
                across[2, column] += down[2, shift + column]
        for column in range(columns):
            centre = np.float64(power[row, column])
            count = max(across[0, column], 1.0)
            mean = across[1, column] / count
            variance = max((across[2, column] - count * mean * mean) / max(count - 1.0, 1.0), 0.0)
            expected = speckle_variance * mean * mean
            signal = mean > 0.0 and variance > expected
            weight = 1.0 - expected / variance if signal else 0.0
            out[row, column] = mean + weight * (centre - mean) if centre == centre else np.nan
