"""Speckle filters, in linear power: of one scene in radar geometry, and of a series of scenes on one grid."""

from __future__ import annotations

import numpy as np
from numba import njit

SIDE = 7  # of the refined filter's window
HALF = SIDE // 2
CHUNK = 512  # columns of the refined filter worked on at once: their sums stay in the processor's cache
BELOW = 0.25  # of the power in a window may lie below zero where a scene still tells something


def margin(name: str, window_pixels: int) -> int:
    """Pixels around an image that a filter of the settings looks at."""
    return {"none": 0, "lee": window_pixels // 2, "refined_lee": HALF}[name]


def despeckle(power: np.ndarray, name: str, window_pixels: int, looks: float) -> np.ndarray:
    """Power after a filter of the settings: ``none``, ``lee`` or ``refined_lee``; see these."""
    if name == "lee":
        return lee(power, window_pixels, looks)
    return refined_lee(power, looks) if name == "refined_lee" else power


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


def refined_lee(power: np.ndarray, looks: float) -> np.ndarray:
    """Refined Lee filter: statistics of the half of a 7 x 7 window that lies on the centre's side of an edge.

    The steepest of four gradients between the means of 3 x 3 pixels gives the edge's direction; the half window (28
    pixels, the edge's line included) is the one on the side whose mean is nearer to that of the centre. Then
    ``mean + w (centre - mean)``, ``w = max(0, (variance - mean^2 / looks) / (1 + 1 / looks)) / variance`` with its mean
    and variance (N-1). A window that is not wholly valid has no direction: all its valid pixels count. Where the mean
    is zero or less, or the variance is zero, the mean.

    Parameters
    ----------
    power : float32 (y, x), linear, may be negative, NaN = no data; outside the array lies no data.
    looks : equivalent number of looks of the product, never estimated from the image.

    Returns
    -------
    float32 (y, x), NaN exactly where ``power`` is NaN.

    Notes
    -----
    J.-S. Lee (1981), doi:10.1016/S0146-664X(81)80018-4. Directions, halves and weight are those of SNAP, which takes
    the speckle's variance from the five most even 3 x 3 areas of each window in place of the number of looks.
    """
    padded = np.full((power.shape[0] + 2 * HALF, power.shape[1] + 2 * HALF), np.nan, np.float32)
    padded[HALF:-HALF, HALF:-HALF] = power
    out = np.empty(power.shape, np.float32)
    _refined_lee(padded, 1 / looks, out)
    return out


def quegan_yu(powers: np.ndarray, window_pixels: int) -> np.ndarray:
    """Multitemporal filter: the local mean of a scene, times the mean over the scenes of power over local mean.

    Parameters
    ----------
    powers : float32 (scene, y, x), linear, may be negative, NaN = no data; one polarisation, one track, one grid.
    window_pixels : side of the window of the local means, odd.

    Returns
    -------
    float32 (scene, y, x), NaN exactly where ``powers`` is NaN. The expectation of each scene is kept; with M scenes of
    independent speckle its variance falls to about 1 / M + 1 / N of what it was, N being the pixels of the window.

    Notes
    -----
    S. Quegan and J. J. Yu (2001), doi:10.1109/36.964973, equation for uncorrelated scenes of equal looks, with local
    means over the valid pixels of the window. A scene tells nothing about a pixel, and is left out of the mean over the
    scenes, where it has no data, where its local mean is zero or less, or where the values below zero sum to more than
    a quarter of the window's power (a signal of 0.4 times the thermal noise at 4.4 looks): a ratio to noise would have
    no bound. Where no scene tells anything the local means remain.
    """
    powers = np.ascontiguousarray(powers, np.float32)
    out = np.empty(powers.shape, np.float32)
    total = np.zeros(powers.shape[1:])
    seen = np.zeros(powers.shape[1:])
    for power, mean in zip(powers, out, strict=True):
        _ratios(power, window_pixels // 2, mean, total, seen)
    out *= np.where(seen > 0, total / np.maximum(seen, 1), 1).astype(np.float32)
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _window_sums(power, row, half, squares, down, across):  # type: ignore[no-untyped-def]
    """Of the valid pixels in the windows around a row's: number, sum, and sum of squares, else of what is negative."""
    rows, columns = power.shape
    # down the window, then across: each of the loops over columns is one run of vector instructions
    down[:] = 0
    for near in range(max(0, row - half), min(rows, row + half + 1)):
        for column in range(columns):
            value = np.float64(power[near, column])
            valid = 1.0 if value == value else 0.0
            value = value if value == value else 0.0
            down[0, half + column] += valid
            down[1, half + column] += value
            down[2, half + column] += value * value if squares else min(value, 0.0)
    across[:] = 0
    for shift in range(2 * half + 1):
        for column in range(columns):
            across[0, column] += down[0, shift + column]
            across[1, column] += down[1, shift + column]
            across[2, column] += down[2, shift + column]


@njit(cache=True, nogil=True, error_model="numpy")
def _lee(power, half, speckle_variance, out):  # type: ignore[no-untyped-def]
    rows, columns = power.shape
    down = np.empty((3, columns + 2 * half))
    across = np.empty((3, columns))
    for row in range(rows):
        _window_sums(power, row, half, True, down, across)
        for column in range(columns):
            centre = np.float64(power[row, column])
            count = max(across[0, column], 1.0)
            mean = across[1, column] / count
            variance = max((across[2, column] - count * mean * mean) / max(count - 1.0, 1.0), 0.0)
            expected = speckle_variance * mean * mean
            signal = mean > 0.0 and variance > expected
            weight = 1.0 - expected / variance if signal else 0.0
            out[row, column] = mean + weight * (centre - mean) if centre == centre else np.nan


@njit(cache=True, nogil=True, error_model="numpy")
def _ratios(power, half, out, total, seen):  # type: ignore[no-untyped-def]
    """Local means into ``out``, and the ratios to them added to ``total``, their number to ``seen``."""
    rows, columns = power.shape
    down = np.empty((3, columns + 2 * half))
    across = np.empty((3, columns))
    for row in range(rows):
        _window_sums(power, row, half, False, down, across)
        for column in range(columns):
            centre = np.float64(power[row, column])
            count = max(across[0, column], 1.0)
            mean = across[1, column] / count
            signal = centre == centre and mean > 0.0 and -across[2, column] <= BELOW * across[1, column]
            total[row, column] += centre / mean if signal else 0.0
            seen[row, column] += 1.0 if signal else 0.0
            out[row, column] = mean if centre == centre else np.nan


@njit(cache=True, nogil=True, error_model="numpy")
def _refined_lee(padded, speckle_variance, out):  # type: ignore[no-untyped-def]
    for start in range(0, out.shape[1], CHUNK):
        stop = min(start + CHUNK, out.shape[1])
        _refined_columns(padded[:, start : stop + 2 * HALF], speckle_variance, out[:, start:stop])


@njit(cache=True, nogil=True, error_model="numpy")
def _refined_columns(padded, speckle_variance, out):  # type: ignore[no-untyped-def]
    rows, columns = out.shape
    wide = columns + 2 * HALF
    # three kinds: number of valid pixels, values, squares; of each row, and of the first and of the last 1 to 7 rows
    row_of = np.zeros((3, SIDE, wide))
    first, last = np.zeros((3, SIDE, wide)), np.zeros((3, SIDE, wide))
    area, middle = np.zeros((3, wide)), np.zeros(wide)
    side = np.zeros(columns)
    chosen, half, whole = np.zeros((3, columns)), np.zeros((3, columns)), np.zeros((3, columns))
    for newest in range(rows + 2 * HALF):
        _read(padded[newest], row_of[:, newest % SIDE])
        row = newest - 2 * HALF
        if row < 0:
            continue
        for kind in range(3):
            for count in range(SIDE):
                top, bottom = row_of[kind, (row + count) % SIDE], row_of[kind, (newest - count) % SIDE]
                _plus(first[kind, max(count - 1, 0)], top, count > 0, first[kind, count])
                _plus(last[kind, max(count - 1, 0)], bottom, count > 0, last[kind, count])
        _plus(row_of[1, (row + 2) % SIDE], row_of[1, (row + 3) % SIDE], True, middle)
        _plus(middle, row_of[1, (row + 4) % SIDE], True, middle)
        _three(first[1, 2], area[0])
        _three(middle, area[1])
        _three(last[1, 2], area[2])
        _sides(area, side)
        whole[:] = 0
        for kind in range(3):
            for shift in range(SIDE):
                _add(first[kind, SIDE - 1, shift:], whole[kind])
        for number in range(8):
            half[:] = 0
            edge = first if number < 5 else last
            for shift in range(SIDE):
                height = _height(number, shift)
                for kind in range(1, 3 if height else 1):
                    _add(edge[kind, height - 1, shift:], half[kind])
            _choose(side, number, half, chosen)
        for column in range(columns):
            centre = np.float64(padded[row + HALF, column + HALF])
            complete = whole[0, column] == SIDE * SIDE
            count = float(SIDE * (HALF + 1)) if complete else max(whole[0, column], 1.0)
            total = chosen[1, column] if complete else whole[1, column]
            squares = chosen[2, column] if complete else whole[2, column]
            mean = total / count
            variance = (squares - count * mean * mean) / max(count - 1.0, 1.0)
            excess = variance - speckle_variance * mean * mean
            signal = mean > 0.0 and excess > 0.0
            weight = excess / (variance * (1.0 + speckle_variance)) if signal else 0.0
            out[row, column] = mean + weight * (centre - mean) if centre == centre else np.nan


@njit(cache=True, nogil=True, error_model="numpy")
def _read(power, sums):  # type: ignore[no-untyped-def]
    for column in range(len(power)):
        value = np.float64(power[column])
        valid = 1.0 if value == value else 0.0
        value = value if value == value else 0.0
        sums[0, column] = valid
        sums[1, column] = value
        sums[2, column] = value * value


@njit(cache=True, nogil=True, error_model="numpy")
def _plus(a, b, both, out):  # type: ignore[no-untyped-def]
    for column in range(len(out)):
        out[column] = a[column] + b[column] if both else b[column]


@njit(cache=True, nogil=True, error_model="numpy")
def _add(row, out):  # type: ignore[no-untyped-def]
    for column in range(len(out)):
        out[column] += row[column]


@njit(cache=True, nogil=True, error_model="numpy")
def _three(row, out):  # type: ignore[no-untyped-def]
    for column in range(len(row) - 2):
        out[column] = row[column] + row[column + 1] + row[column + 2]


@njit(cache=True, nogil=True, error_model="numpy")
def _sides(area, side):  # type: ignore[no-untyped-def]
    """Number of the half window of each pixel, anticlockwise from the right, by the sums of nine 3 x 3 areas."""
    for column in range(len(side)):
        west, centre, east = area[1, column], area[1, column + 2], area[1, column + 4]
        north_west, north, north_east = area[0, column], area[0, column + 2], area[0, column + 4]
        south_west, south, south_east = area[2, column], area[2, column + 2], area[2, column + 4]
        steepest = abs(west - east)
        number = 4.0 if abs(west - centre) < abs(centre - east) else 0.0
        gradient = abs(north_east - south_west)
        other = 1.0 if abs(north_east - centre) < abs(centre - south_west) else 5.0
        number = other if gradient > steepest else number
        steepest = max(steepest, gradient)
        gradient = abs(north - south)
        other = 2.0 if abs(north - centre) < abs(centre - south) else 6.0
        number = other if gradient >= steepest else number  # the same for both across a level edge
        steepest = max(steepest, gradient)
        gradient = abs(north_west - south_east)
        other = 3.0 if abs(north_west - centre) < abs(centre - south_east) else 7.0
        side[column] = other if gradient > steepest else number


@njit(cache=True, nogil=True, error_model="numpy")
def _height(number, shift):  # type: ignore[no-untyped-def]
    """Rows of a half window in one of its columns: from the window's top up to number 4, else from its bottom."""
    if number == 0:
        return SIDE if shift >= HALF else 0
    if number == 4:
        return SIDE if shift <= HALF else 0
    if number == 2 or number == 6:
        return HALF + 1
    return shift + 1 if number == 1 or number == 7 else SIDE - shift


@njit(cache=True, nogil=True, error_model="numpy")
def _choose(side, number, half, chosen):  # type: ignore[no-untyped-def]
    for column in range(len(side)):
        chosen[1, column] = half[1, column] if side[column] == number else chosen[1, column]
        chosen[2, column] = half[2, column] if side[column] == number else chosen[2, column]
