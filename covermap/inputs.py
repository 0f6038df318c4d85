"""What a stack holds for each sensor: its integers, what 'not observed' looks like, and what its axes mean."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from covermap.dates import step_names
from covermap.errors import ModelError
from covermap.models import INDICES
from covermap.stack import LAYERS, SCL, open_stack

KEYS = {"sentinel1": "s1", "sentinel2": "s2", "terrain": "terrain"}  # name of each input's array in stacks and tiles
DTYPE = {"s1": np.int16, "s2": np.uint16, "terrain": np.int16}
NODATA = {"s1": -32768, "s2": 0, "terrain": -32768}
CHANNELS = {"s1": "polarisation", "s2": "band", "terrain": "layer"}  # the axis of an input that names its channels
SATELLITES = ("s1", "s2")
DAY = "day"  # array of a stack beside s2: 0 where a step has no value of its own
STEPS = {"s1": "month", "s2": "step"}  # the axis of an input that names its steps
OF_S2 = ("s2", DAY, "clear", "observed")  # arrays of a stack that have the steps of s2

Meaning = dict[str, dict[str, list[str]]]
Steps = dict[str, list[int]]  # numbers of the steps that a model sees, by array; of others all
Pairs = dict[str, list[tuple[int, int]]]


def observed(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Where a satellite observed at least one input (T, C, y, x): bool (y, x). Terrain is there without any."""
    seen = np.zeros(next(iter(inputs.values())).shape[-2:], bool)
    for key in SATELLITES:
        for step, band in np.ndindex(inputs[key].shape[:2] if key in inputs else (0, 0)):
            seen |= inputs[key][step, band] != NODATA[key]
            if seen.all():
                return seen
    return seen


def is_filled(meaning: Meaning) -> bool:
    """Whether gaps of Sentinel-2 were filled in from other steps, so that its days are needed beside it."""
    return meaning.get("s2", {}).get("fill", ["none"]) != ["none"]


def categories_of(meaning: Meaning) -> dict[str, list[int]]:
    """Channels of each input that hold classes, not quantities."""
    layers = meaning.get("terrain", {}).get("layer", [])
    return {"terrain": [layers.index(SCL)]} if SCL in layers else {}


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


def chosen_steps(stack: Path, months: Sequence[int] = (), dates: Sequence[date] = ()) -> Steps:
    """Numbers of the steps of a stack that a model sees, for ``seen_steps``; pixels are not read.

    Parameters
    ----------
    months : calendar months of s1 (1 to 12), of whatever year; none: all.
    dates : first days of steps of s2; none: all.

    Raises
    ------
    ModelError
        The stack lacks one of them.
    ProductError
        The stack is missing or broken.
    """
    if not months and not dates:
        return {}
    with open_stack(stack) as opened:
        found = [int(str(month)[-2:]) for month in opened.month.values] if "s1" in opened else []
        firsts = [date.fromisoformat(str(day)[:10]) for day in opened.date.values] if "s2" in opened else []
    try:
        chosen = {"s1": numbers_of("month", months, found)} if months else {}
        return chosen | (dict.fromkeys(OF_S2, numbers_of("date", dates, firsts)) if dates else {})
    except ModelError as error:
        raise ModelError(f"stack {stack}: {error}") from None


def numbers_of(what: str, wanted: Collection[Any], found: Sequence[Any]) -> list[int]:
    """Places in ``found`` of all that is wanted, in the order of ``found``.

    Raises
    ------
    ModelError
        Something wanted is not there; ``what`` it is called.
    """
    if missing := sorted({*wanted} - {*found}):
        there = ", ".join(map(str, found)) or "none"
        raise ModelError(
            f"the model's {what}s have {missing[0]}, but there is only {there}: remove it there, or map an area with it"
        )
    return [number for number, each in enumerate(found) if each in wanted]


def seen_steps(arrays: Mapping[str, np.ndarray], steps: Steps) -> dict[str, np.ndarray]:
    """Arrays (T, ...) of a stack, of the chosen steps alone."""
    return {key: values[steps[key]] if key in steps else values for key, values in arrays.items()}


def meaning_of(stack: Path, steps: Steps | None = None) -> Meaning:
    """What the axes of a stack's inputs mean, in their order; pixels are not read.

    ``steps``: those that are chosen; steps that have no name but their number are numbered anew. None: all.

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
            months, polarisations = _of_steps(opened.month.values, "s1", steps), opened.polarisation.values
            meaning["s1"] = {
                "month": [str(month)[-2:] for month in months],
                "polarisation": list(map(str, polarisations)),
            }
            if "convention" in opened.s1.attrs:
                meaning["s1"]["convention"] = [str(opened.s1.attrs["convention"])]
        if "s2" in opened:
            meaning["s2"] = {"band": list(map(str, opened.band.values))}
            if "every" in opened.s2.attrs:
                firsts = (date.fromisoformat(str(day)[:10]) for day in _of_steps(opened.date.values, "s2", steps))
                meaning["s2"]["step"] = step_names(opened.s2.attrs["every"], firsts)
            meaning["s2"] |= {name: [opened.s2.attrs[name]] for name in ("level", "fill") if name in opened.s2.attrs}
        if layers := opened.attrs.get(LAYERS):
            meaning["terrain"] = {"layer": layers.split(",")}
    return meaning


def dates_of(stack: Path, steps: Steps | None = None) -> dict[str, list[Any]]:
    """Dates of the steps of a stack's inputs: months of s1 (YYYY-MM), first and last day of each step of s2."""
    with open_stack(stack) as opened:
        months = {"s1": [str(month) for month in _of_steps(opened.month.values, "s1", steps)]} if "s1" in opened else {}
        if "s2" not in opened:
            return months
        days = zip(*(_of_steps(axis.values, "s2", steps) for axis in (opened.date, opened.until)), strict=True)
        return {**months, "s2": [[str(day)[:10] for day in step] for step in days]}


def _of_steps(names: np.ndarray, key: str, steps: Steps | None) -> np.ndarray:
    return names[steps[key]] if steps and key in steps else names


def must_mean(expected: Meaning, found: Meaning, source: Path, other: str, any_steps: Iterable[str] = ()) -> None:
    """Refuse inputs of ``source`` that mean something else than ``other``, as the error calls it, has.

    The steps of inputs in ``any_steps`` may be of any number and name.

    Raises
    ------
    ModelError
        An input of ``expected`` is not in ``found``, or the names along one of its axes differ.
    """
    for key, axes in expected.items():
        given = found.get(key, {})
        told = [axis for axis in axes if axis in given or not given]  # a stack without any scene has no convention
        for axis in told:
            if given and key in any_steps and axis == STEPS.get(key):
                continue
            if axes[axis] != given.get(axis):
                names, wanted = (", ".join(each.get(axis, ["none"])) for each in (given, axes))
                raise ModelError(
                    f"{source} has {axis} {names} of {key}, {other} {wanted}: "
                    "use areas of the same sensors, calendar months, polarisations, bands, levels, steps, filling, "
                    "terrain layers and backscatter convention"
                )
