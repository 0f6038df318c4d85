"""Several observations of a pixel made one: medians, means, and backscatter as integers of decibels."""

from __future__ import annotations

from functools import cache

import numpy as np

NO_BACKSCATTER = -32768
STEP_DB = 0.01
MASKED = np.iinfo(np.uint16).max  # sorts behind every observation


def median_of(observations: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Median over the first axis of what is not masked.

    Parameters
    ----------
    observations : (date, ...), uint16 or float; masked ones are the highest value of the type (infinity). They are
        overwritten.
    counts : int (...), observations that are not masked.

    Returns
    -------
    (...) of the same type; between two, their mean (of integers: rounded up); the masking value where there is none.
    """
    planes, spare = list(observations), np.empty_like(observations[0])
    for first, second in sorting_network(len(planes)):
        low, high = planes[first], planes[second]
        np.minimum(low, high, out=spare)
        np.maximum(low, high, out=high)
        planes[first], spare = spare, low
    lower, upper = planes[0].copy(), planes[0].copy()
    below, above = (counts - 1) // 2, counts // 2
    for index, plane in enumerate(planes[1:], 1):
        np.copyto(lower, plane, where=below == index)
        np.copyto(upper, plane, where=above == index)
    if np.issubdtype(observations.dtype, np.integer):
        return lower + (upper - lower + 1) // 2
    return lower / 2 + upper / 2


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
    """Mean or median of linear power (scene, ...) over what is finite; NaN where nothing is."""
    observed = np.isfinite(power)
    counts = observed.sum(0, dtype=np.int16)
    if method == "mean":
        total = power.sum(0, dtype=np.float64, where=observed)
        return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    median = median_of(np.where(observed, power, np.inf), counts)
    return np.where(counts > 0, median, np.nan)


def composite_reflectance(observations: np.ndarray, used: np.ndarray, method: str) -> np.ndarray:
    """Median or mean of uint16 (date, ...) where ``used`` (bool of the same shape); 0 where nothing is used.

    The observations are overwritten.
    """
    if method == "mean":
        return mean_of(observations, used)
    counts = used.sum(0, dtype=np.int16)
    np.copyto(observations, MASKED, where=~used)
    return np.where(counts > 0, median_of(observations, counts), 0).astype(np.uint16)
