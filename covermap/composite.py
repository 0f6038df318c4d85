"""Several observations of a pixel made one: medians, means, one of them chosen, gaps closed in time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numba import njit

NO_BACKSCATTER = -32768
STEP_DB = 0.01
STRIP = 1024  # pixels that are sorted at once


def median_of(observations: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Median over the first axis of what is used.

    Parameters
    ----------
    observations : (date, ...), uint16, or float, NaN only where it is not used.
    used : bool of the same shape.

    Returns
    -------
    (...) of the same type; between two, their mean (of integers: rounded up); 0 where none is used.
    """
    shape, integer = observations.shape[1:], np.issubdtype(observations.dtype, np.integer)
    pairs = np.array(sorting_network(len(observations)), np.int64).reshape(-1, 2)
    planes = np.empty((len(observations), STRIP), np.float32 if integer else observations.dtype)
    out = np.empty(shape, observations.dtype)
    flat = observations.reshape(len(observations), -1), used.reshape(len(observations), -1)
    _median(flat[0], flat[1], pairs, planes, planes.dtype.type(np.inf), 0.5 if integer else 0.0, out.reshape(-1))
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _median(observations, used, pairs, planes, beyond, half, out):  # type: ignore[no-untyped-def]
    """By a sorting network over strips that stay in the processor's cache, in loops that become vector instructions.

    Whole numbers up to 65535 are exact in float32, whose minimum is such an instruction here, unlike that of uint16.
    """
    dates = len(planes)
    counts = np.empty(STRIP, np.int32)
    for start in range(0, out.size, STRIP):
        width = min(STRIP, out.size - start)
        counts[:] = 0
        for date in range(dates):
            plane = planes[date]
            for x in range(width):
                plane[x] = observations[date, start + x]
            for x in range(width):
                plane[x] = plane[x] if used[date, start + x] else beyond
            for x in range(width):
                counts[x] += used[date, start + x]
        for pair in range(len(pairs)):
            low, high = planes[pairs[pair, 0]], planes[pairs[pair, 1]]
            for x in range(STRIP):
                one, other = low[x], high[x]
                low[x] = one if one < other else other
                high[x] = other if one < other else one
        for x in range(width):
            lower, upper = planes[max(counts[x] - 1, 0) // 2, x], planes[min(counts[x] // 2, dates - 1), x]
            middle = lower / 2 + upper / 2
            if half:
                middle = np.floor(middle + half)
            out[start + x] = middle if counts[x] else 0


@cache
def sorting_network(size: int) -> tuple[tuple[int, int], ...]:
    """Comparisons (i < j) that sort ``size`` values: Batcher's merge exchange (Knuth, TAOCP 3, 5.2.2, algorithm M)."""
    comparisons = []
    step = 1 << max(size - 1, 0).bit_length() >> 1
    top, p = step, step
    while p > 0:
        q, r, d = top, 0, p
        while True:
            comparisons += [(i, i + d) for i in range(size - d) if i & p == r]
            if q == p:
                break
            q, r, d = q // 2, p, q - p
        p //= 2
    return tuple(comparisons)


def mean_of(observations: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Mean of uint16 (date, ...) where ``used``, rounded half up; 0 where none is."""
    counts = np.maximum(used.sum(0, dtype=np.uint32), 1)
    total = observations.sum(0, dtype=np.uint32, where=used)
    return ((total + counts // 2) // counts).astype(np.uint16)


def to_db_steps(power: np.ndarray, floor_db: float) -> np.ndarray:
    """Backscatter int16 in 0.01 dB a step from linear power, no less than the floor; NaN becomes -32768."""
    observed = np.isfinite(power)
    bounded = np.maximum(np.where(observed, power, 1), 10 ** (floor_db / 10))  # noise leaves some power below zero
    steps = np.rint(10 / STEP_DB * np.log10(bounded))
    return np.where(observed, steps, NO_BACKSCATTER).astype(np.int16)


def composite_power(power: np.ndarray, method: str) -> np.ndarray:
    """Mean, median or first of linear power (scene, ...) over what is finite; NaN where nothing is."""
    observed = np.isfinite(power)
    counts = observed.sum(0, dtype=np.int16)
    if method == "mean":
        total = power.sum(0, dtype=np.float64, where=observed)
        return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    if method == "first":
        return np.take_along_axis(power, observed.argmax(0)[None], 0)[0]
    return np.where(counts > 0, median_of(power, observed), np.nan)


def composite_reflectance(observations: np.ndarray, used: np.ndarray, method: str) -> np.ndarray:
    """Median or mean of uint16 (date, ...) where ``used`` (bool of the same shape); 0 where nothing is used."""
    return mean_of(observations, used) if method == "mean" else median_of(observations, used)


def middle_of(used: np.ndarray) -> np.ndarray:
    """Number of the observation in the middle of those that are used, of two the first: int16 (...), -1 where none is.

    ``used`` is bool (date, ...), dates in order of time.
    """
    middle = (used.sum(0, dtype=np.int16) + 1) // 2
    out, seen = np.full(used.shape[1:], -1, np.int16), np.zeros(used.shape[1:], np.int16)
    for number, here in enumerate(used):
        seen += here
        out[here & (seen == middle)] = number
    return out


def first_of(used: np.ndarray) -> np.ndarray:
    """Number of the first observation that is used: int16 (...), -1 where none of bool (date, ...) is."""
    return np.where(used.any(0), used.argmax(0), -1).astype(np.int16)


def medoid(observations: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Number of the observation that is nearest to all others: the smallest sum of Euclidean distances over the bands.

    Parameters
    ----------
    observations : uint16 (date, band, y, x).
    used : bool (date, y, x).

    Returns
    -------
    int16 (y, x), -1 where nothing is used; of several, and of two alone, the first.

    Notes
    -----
    N. Flood (2013), doi:10.3390/rs5126481, section 2.
    """
    out = np.empty(used.shape[1:], np.int16)
    _medoid(observations, used, out)
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _medoid(observations, used, out):  # type: ignore[no-untyped-def]
    dates, bands, rows, columns = observations.shape
    total, square = np.empty((dates, columns)), np.empty(columns)
    for row in range(rows):
        total[:] = 0
        for one in range(dates):
            for other in range(one):
                square[:] = 0
                for band in range(bands):
                    for x in range(columns):  # along a row, as vector instructions
                        apart = np.float64(observations[one, band, row, x]) - observations[other, band, row, x]
                        square[x] += apart * apart
                for x in range(columns):
                    both = used[one, row, x] and used[other, row, x]
                    distance = np.sqrt(square[x]) if both else 0.0
                    total[one, x] += distance
                    total[other, x] += distance
        for x in range(columns):
            best = -1
            for one in range(dates):
                if used[one, row, x] and (best < 0 or total[one, x] < total[best, x]):
                    best = one
            out[row, x] = best


def fill_gaps(values: np.ndarray, seen: np.ndarray, days: Sequence[float], method: str) -> None:
    """Close gaps in time, in place; a pixel that no step has seen stays as it is.

    Parameters
    ----------
    values : uint16 (step, band, y, x).
    seen : bool (step, y, x), false where there is a gap.
    days : place of the steps in time, ascending.
    method : ``nearest``: the nearest step that is seen, of two the earlier; ``linear``: on the line between the steps
        around (rounded half up), before the first and behind the last the nearest.
    """
    numbers = np.arange(len(seen), dtype=np.int16)[:, None, None]
    before = np.maximum.accumulate(np.where(seen, numbers, -1), 0)
    behind = np.minimum.accumulate(np.where(seen, numbers, len(seen))[::-1], 0)[::-1]
    place = np.asarray(days, np.float64)
    for step in range(len(seen)):
        row, column = np.nonzero(~seen[step] & ((before[step] >= 0) | (behind[step] < len(seen))))
        first, last = before[step, row, column], behind[step, row, column]
        first, last = np.where(first < 0, last, first), np.where(last == len(seen), first, last)
        share = _share(place[step], place[first], place[last], method)
        for band in range(values.shape[1]):
            low, high = (values[each, band, row, column].astype(np.float64) for each in (first, last))
            values[step, band, row, column] = np.floor(low + share * (high - low) + 0.5)


def _share(day: float, first: np.ndarray, last: np.ndarray, method: str) -> np.ndarray:
    """How far a day lies on the way between two others, 0 to 1; whole for the nearest."""
    way = np.clip((day - first) / np.maximum(last - first, 1e-9), 0, 1)
    return (way > 0.5).astype(np.float64) if method == "nearest" else way
