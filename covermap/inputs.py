"""What a stack holds for each sensor: its integers, what 'not observed' looks like, and what its axes mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import numpy as np

from covermap.dates import step_names
from covermap.errors import ModelError
from covermap.models import INDICES
from covermap.stack import LAYERS, open_stack

KEYS = {"sentinel1": "s1", "sentinel2": "s2", "terrain": "terrain"}  # name of each input's array in stacks and tiles
DTYPE = {"s1": np.int16, "s2": np.uint16, "terrain": np.int16}
NODATA = {"s1": -32768, "s2": 0, "terrain": -32768}
CHANNELS = {"s1": "polarisation", "s2": "band", "terrain": "layer"}  # the axis of an input that names its channels
SATELLITES = ("s1", "s2")
DAY = "day"  # array of a stack beside s2: 0 where a step has no value of its own

Meaning = dict[str, dict[str, list[str]]]
Pairs = dict[str, list[tuple[int, int]]]


def observed(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where a satellite observed at least one input (T, C, y, x): bool (y, x). Terrain is there without any."""
    return np.any([(inputs[key] != NODATA[key]).any((0, 1)) for key in SATELLITES if key in inputs], 0)


def is_filled(meaning: Meaning) -> bool:
    """Whether gaps of Sentinel-2 were filled in from other steps, so that its days are needed beside it."""
    return meaning.get("s2", {}).get("fill", ["none"]) != ["none"]


def index_pairs(indices: Sequence[str], meaning: Meaning) -> Pairs:
    """Numbers of the channels a and b of each index, by input, in the order of ``indices``.

    Backscatter of two orbit directions ("VV ascending") has an index for each.

    Raises
    ------
    ModelError
        An index needs a channel that the inputs do not have.
    """
    pairs: Pairs = {}
    for index in indices:
        sensor, first, second = INDICES[index]
        key = KEYS[sensor]
        names = meaning.get(key, {}).get(CHANNELS[key], [])
        places = [name.removeprefix(first) for name in names if name.split()[0] == first]
        wanted = [(first + place, second + place) for place in places or [""]]
        if missing := [name for pair in wanted for name in pair if name not in names]:
            raise ModelError(
                f"index {index} needs {missing[0]} of {key}, which has {', '.join(names) or 'none'}: add it to the "
                "areas, or remove the index from the model"
            )
        pairs.setdefault(key, []).extend((names.index(a), names.index(b)) for a, b in wanted)
    return pairs


def meaning_of(stack: Path) -> Meaning:
    """What the axes of a stack's inputs mean, in their order; pixels are not read.

    Returns
    -------
    ``s1``: ``month`` (01 to 12, of whatever year), ``polarisation`` and, where the stack tells, ``convention`` of the
    backscatter; ``s2``: ``band`` and, where the stack tells, ``step`` (month 01 to 12, quarter Q1 to Q4, or a number),
    ``level`` and ``fill``; ``terrain``: ``layer``; those of the three that the stack has.

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
            if "every" in opened.s2.attrs:
                firsts = [date.fromisoformat(str(day)[:10]) for day in opened.date.values]
                meaning["s2"]["step"] = step_names(opened.s2.attrs["every"], firsts)
            meaning["s2"] |= {name: [opened.s2.attrs[name]] for name in ("level", "fill") if name in opened.s2.attrs}
        if layers := opened.attrs.get(LAYERS):
            meaning["terrain"] = {"layer": layers.split(",")}
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
                    "use areas of the same sensors, calendar months, polarisations, bands, levels, steps, filling, "
                    "terrain layers and backscatter convention"
                )
