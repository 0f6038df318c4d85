"""What a stack holds for each sensor: its integers, what 'not observed' looks like, and what its axes mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from covermap.errors import ModelError
from covermap.stack import open_stack

KEYS = {"sentinel1": "s1", "sentinel2": "s2"}  # name of each sensor's array in stacks and tiles
DTYPE = {"s1": np.int16, "s2": np.uint16}
NODATA = {"s1": -32768, "s2": 0}

Meaning = dict[str, dict[str, list[str]]]


def observed(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where at least one input (T, C, y, x) was observed: bool (y, x)."""
    return np.any([(values != NODATA[key]).any((0, 1)) for key, values in inputs.items()], 0)


def meaning_of(stack: Path) -> Meaning:
    """What the axes of a stack's inputs mean, in their order; pixels are not read.

    Returns
    -------
    ``s1``: ``month`` (01 to 12, of whatever year), ``polarisation`` and, where the stack tells, ``convention`` of the
    backscatter; ``s2``: ``band``; those of the two that the stack has.

    Raises
    ------
    ProductError
        The stack is missing or broken.
    """
    meaning: Meaning = {}
    with open_stack(stack) as opened:
        if "s1" in opened:
            months, polarisations = opened.month.values, opened.polarisation.values
            meaning["s1"] = {
                "month": [str(month)[-2:] for month in months],
                "polarisation": list(map(str, polarisations)),
            }
            if "convention" in opened.s1.attrs:
                meaning["s1"]["convention"] = [str(opened.s1.attrs["convention"])]
        if "s2" in opened:
            meaning["s2"] = {"band": list(map(str, opened.band.values))}
    return meaning


def must_mean(expected: Meaning, found: Meaning, source: Path, other: str) -> None:
    """Refuse inputs of ``source`` that mean something else than ``other``, as the error calls it, has.

    Raises
    ------
    ModelError
        An input of ``expected`` is not in ``found``, or the names along one of its axes differ.
    """
    for key, axes in expected.items():
        given = found.get(key, {})
        told = [axis for axis in axes if axis in given or not given]  # a stack without any scene has no convention
        for axis in told:
            if axes[axis] != given.get(axis):
                names, wanted = (", ".join(each.get(axis, ["none"])) for each in (given, axes))
                raise ModelError(
                    f"{source} has {axis} {names} of {key}, {other} {wanted}: "
                    "use areas of the same sensors, calendar months, polarisations, bands and backscatter convention"
                )
