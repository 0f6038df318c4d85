"""What a stack holds for each sensor, as integers, and what 'not observed' looks like."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

KEYS = {"sentinel1": "s1", "sentinel2": "s2"}  # name of each sensor's array in stacks and tiles
DTYPE = {"s1": np.int16, "s2": np.uint16}
NODATA = {"s1": -32768, "s2": 0}


def observed(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where at least one input (T, C, y, x) was observed: bool (y, x)."""
    return np.any([(values != NODATA[key]).any((0, 1)) for key, values in inputs.items()], 0)
