"""Prediction of a block in overlapping windows of a lattice that does not know of blocks.

Windows lie on the CRS's own lattice and reach into the neighbours' stacks. Every pixel sums the same windows in the
same order wherever blocks are cut, so blocks never show.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from covermap.devices import reduced_precision, use_device
from covermap.errors import ModelError
from covermap.grid import Grid, false_origin
from covermap.inputs import (
    DAY,
    DTYPE,
    NODATA,
    Steps,
    chosen_steps,
    is_filled,
    meaning_of,
    must_mean,
    observed,
    seen_steps,
)
from covermap.loader import on_device
from covermap.model_settings import Prediction
from covermap.models.normalise import Normalised
from covermap.raster import write_raster
from covermap.stack import read_stack
from covermap.trained import load_weights

log = logging.getLogger(__name__)

CONFIDENCE_NODATA = 255


def predict_block(
    weights: list[Path],
    stacks: list[Path],
    prediction: Path,
    block: Grid,
    blocks: list[Grid],
    settings: Prediction,
    months: tuple[int, ...] = (),
    dates: tuple[date, ...] = (),
) -> None:
    """Classes and confidence of a block.

    Parameters
    ----------
    weights : of trained networks, whose probabilities are averaged.
    stacks : of the block and of its neighbours.
    prediction : GeoTIFF with class ids (0 without any observation) and confidence in per cent (255 without).
    block : grid of the block.
    blocks : grid of each stack.
    settings : windows, overlap, batch and torch threads.
    months, dates : of the stacks those that the networks see, by ``chosen_steps``; none: all.

    Raises
    ------
    ModelError
        Weights that cannot be read or that do not go together, a window that a network cannot take, or a stack that
        lacks a month or date, or whose inputs mean something else than those that the networks learned from.
    """
    device = use_device(settings.threads)
    nets, classes = load_together(weights, device)
    for net in nets:
        multiple = getattr(net.network, "multiple", 1)
        if settings.window_pixels % multiple:
            raise ModelError(f"prediction.window_pixels is {settings.window_pixels}: expected a multiple of {multiple}")
    sources = [Source(*source, chosen_steps(source[1], months, dates)) for source in zip(blocks, stacks, strict=True)]
    for source in sources:
        found = meaning_of(source.path, source.steps)
        must_mean(nets[0].meaning, found, source.path, "the network learned from", free_steps(nets))
    out = np.concatenate(list(predict_rows(nets, len(classes), sources, block, settings, device)), 1)  # (2, y, x)
    write_raster(prediction, out, block, nodata=CONFIDENCE_NODATA, descriptions=("class", "confidence"))


class Source(NamedTuple):
    """A stack that windows are read from."""

    grid: Grid
    path: Path
    steps: Steps  # those that the networks see


def load_together(weights: list[Path], device: torch.device) -> tuple[list[Normalised], list[str]]:
    """Trained networks whose probabilities may be averaged, and the keys of the classes of them all.

    Raises
    ------
    ModelError
        Weights that cannot be read, or two with other classes or inputs.
    """
    loaded = [load_weights(path, device) for path in weights]
    first, classes = loaded[0]
    for path, (net, found) in zip(weights, loaded, strict=True):
        if found != classes:
            raise ModelError(
                f"{path} has the classes {', '.join(found)}, {weights[0]} has {', '.join(classes)}: average models of "
                "one legend"
            )
        both = {*first.any_steps} & {*net.any_steps}
        must_mean(first.meaning, net.meaning, path, f"{weights[0]} has", both)
        must_mean(net.meaning, first.meaning, weights[0], f"{path} has", both)  # an input that the first lacks
    return [net for net, _ in loaded], classes


def free_steps(nets: Sequence[Normalised]) -> set[str]:
    """Inputs of which every one of the networks takes any number of steps."""
    return set.intersection(*({*net.any_steps} for net in nets))


def mean_probabilities(nets: Sequence[Normalised], batch: dict[str, Tensor], device: torch.device) -> Tensor:
    """Mean class probabilities (B, K, y, x), or (B, K) of patches, each network's in the precision it was taught in."""
    scored = []
    for net in nets:
        with reduced_precision(device, net.reduced):
            scored.append(net.probabilities(batch))
    return torch.stack(scored).mean(0)


def window_starts(first: int, length: int, window: int, step: int) -> range:
    """Starts, on multiples of ``step`` of the lattice, of all windows that meet pixels [first, first + length)."""
    return range(math.ceil((first - window + 1) / step) * step, first + length, step)


def blend_weights(window: int, step: int) -> np.ndarray:
    """Weight of a window's pixels along one axis: float32 (window,), a Hann bell, flat where windows do not overlap."""
    if step == window:
        return np.ones(window, np.float32)
    return (np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2).astype(np.float32)


def predict_rows(
    nets: list[Normalised],
    classes: int,
    sources: list[Source],
    block: Grid,
    settings: Prediction,
    device: torch.device,
) -> Iterator[np.ndarray]:
    """Finished bands of rows of a block, from north to south: uint8 (2, rows, x), class and confidence.

    Memory is bounded by one row of windows: classes x window x block width.
    """
    window = settings.window_pixels
    step = window - int(window * settings.overlap)
    read = partial(read_lattice, sources, shapes=shapes_in(nets, sources[0]), days=is_filled(nets[0].meaning))
    east0, north0 = false_origin(block.crs)
    left, top = round((block.left - east0) / block.pixel_m), round((north0 - block.top) / block.pixel_m)
    bell = blend_weights(window, step)
    blend = torch.from_numpy(bell[:, None] * bell[None, :]).to(device)  # (window, window)
    starts = list(window_starts(top, block.height, window, step))
    columns = list(window_starts(left, block.width, window, step))
    # `total` holds the lattice rows [row, row + window) and the block's columns with a window's margin on both sides
    width = columns[-1] + window - columns[0]
    total = torch.zeros(classes + 1, window, width, device=device)
    for number, row in enumerate(tqdm(starts, "predict", disable=not sys.stderr.isatty())):
        for first in range(0, len(columns), settings.batch):
            chosen = columns[first : first + settings.batch]
            batch = [read(block.window(row - top, c - left, window, window)) for c in chosen]
            scored = window_probabilities(nets, batch, settings.batch, device)  # (batch, K, window, window)
            for place, values in zip(chosen, scored, strict=False):
                at = slice(place - columns[0], place - columns[0] + window)
                total[:-1, :, at] += values * blend
                total[-1, :, at] += blend
        done = step if number + 1 < len(starts) else window
        low, high = max(row, top), min(row + done, top + block.height)
        if low < high:
            part = total[:, low - row : high - row, left - columns[0] : left - columns[0] + block.width]
            inputs = read(block.window(low - top, 0, high - low, block.width))
            yield classify(part, observed(inputs))
        total = torch.cat([total[:, step:], torch.zeros_like(total[:, :step])], 1)
        log.info("window row %d of %d", number + 1, len(starts))


def shapes_in(nets: Sequence[Normalised], source: Source) -> dict[str, tuple[int, int]]:
    """Steps and bands (T, C) of each input of networks, with as many steps as a stack has where any number will do."""
    bare = seen_steps(read_stack(source.path, slice(0, 0), slice(0, 0), free_steps(nets)), source.steps)
    return {key: (len(bare[key]) if key in bare else steps, bands) for key, (steps, bands) in nets[0].shapes.items()}


def read_lattice(
    sources: list[Source], grid: Grid, shapes: dict[str, tuple[int, int]], days: bool
) -> dict[str, np.ndarray]:
    """Integers (T, C, y, x) of any window of the lattice, put together from the stacks that it meets.

    ``days``: those of s2 (T, y, x) come with it.
    """
    out = {key: np.full((*shape, *grid.shape), NODATA[key], DTYPE[key]) for key, shape in shapes.items()}
    if days:
        out[DAY] = np.zeros((shapes["s2"][0], *grid.shape), np.int16)
    for block, path, steps in sources:
        part = block.cropped(grid.bounds)
        if part is None:
            continue
        row, column = part.offset_in(block)
        place = slice(row, row + part.height), slice(column, column + part.width)
        read = seen_steps(read_stack(path, *place, list(out)), steps)
        row, column = part.offset_in(grid)
        for key, shape in shapes.items():
            if key not in read or read[key].shape[:2] != shape:
                found = read[key].shape[:2] if key in read else "none"
                raise ModelError(
                    f"stack {path} has {found} steps and bands of {key}, the network learned from {shape}: "
                    "map an area with the inputs, steps and bands of the training area"
                )
        for key, values in out.items():
            values[..., row : row + part.height, column : column + part.width] = read[key]
    return out


@torch.inference_mode()
def window_probabilities(
    nets: list[Normalised], windows: list[dict[str, np.ndarray]], size: int, device: torch.device
) -> Tensor:
    """Mean class probabilities (size, K, y, x); the batch is filled up, since kernels differ with its size."""
    full = windows + windows[:1] * (size - len(windows))
    batch = on_device({key: np.stack([window[key] for window in full]) for key in windows[0]}, device)
    return mean_probabilities(nets, batch, device)


def classify(total: Tensor, seen: np.ndarray) -> np.ndarray:
    """Class ids and confidence in per cent: uint8 (2, y, x) from summed probabilities and weights (K + 1, y, x)."""
    mean = total[:-1] / total[-1:]  # (K, y, x)
    confidence, best = mean.max(0)
    classes = np.where(seen, best.cpu().numpy() + 1, 0)
    per_cent = np.where(seen, (100 * confidence).round().cpu().numpy(), CONFIDENCE_NODATA)
    return np.stack([classes, per_cent]).astype(np.uint8)
