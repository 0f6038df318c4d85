"""Windows of an absolute lattice, scored and blended from north to south, in memory that does not grow with the raster.

A window's weights are a product of one curve along rows and one along columns. They are divided beforehand by the sum
of the weights that meet at a pixel, which recurs with the step of the lattice, so that no plane of sums is needed and
nothing is divided afterwards. Every pixel adds the same windows in the same order, however a region is cut. On the CPU
this is done by loops of our own: vector instructions of a library may round the end of a row in another way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from sys import getrefcount
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from covermap.errors import ModelError
from covermap.inputs import observed
from covermap.loader import on_device
from covermap.model_settings import Layer, Prediction
from covermap.stack import CHUNK_PIXELS
from covermap.strips import in_order

COLUMNS = 4096  # of a region at most, without its halo: what the memory is proportional to
CONFIDENCE_NODATA = 255  # of confidence and the other layers, where nothing was observed
PROBABILITY_STEPS = 250  # in which a probability of 1 is kept
HELD_BY_LIST = next(getrefcount(each) for each in [np.empty(0)])  # references that are counted where none is beside it
TURNS = tuple((quarters, flip) for flip in (False, True) for quarters in range(4))  # the symmetries of a square

Arrays = dict[str, np.ndarray]
Batch = dict[str, Tensor]


class Region(NamedTuple):
    """Pixels of the CRS's lattice, whose rows are counted south and columns east from the false origin."""

    row: int
    column: int
    height: int
    width: int


class Band(NamedTuple):
    """Some rows of a region, all of its columns."""

    row: int  # of the lattice
    probabilities: Tensor  # float32 (K, rows, width); 0 where no window was scored
    seen: np.ndarray  # bool (rows, width): where a satellite observed something


class Axis(NamedTuple):
    """Windows along one axis."""

    starts: range
    weights: np.ndarray  # float32 (window,)
    first: int  # pixel of a window that is the first with a weight
    last: int  # one more than the last


class Strip(NamedTuple):
    """Inputs of some rows, all columns that windows reach."""

    row: int
    inputs: Arrays
    seen: np.ndarray


class Row(NamedTuple):
    """A row of windows; the strips hold all that they see."""

    start: int
    strips: tuple[Strip, ...]


class Place(NamedTuple):
    """A window by its row and first column; without a column, the row has none to score."""

    row: Row
    column: int | None


def window_starts(first: int, length: int, window: int, step: int) -> range:
    """Starts, on multiples of ``step`` of the lattice, of all windows that meet pixels [first, first + length)."""
    return range(-((window - 1 - first) // step) * step, first + length, step)


def blend_weights(window: int, step: int, kind: str = "hann") -> np.ndarray:
    """Weights of a window's pixels along one axis; those of all windows of the lattice add up to 1 at every pixel.

    Parameters
    ----------
    window, step : length of the windows and distance of their starts [px].
    kind : ``hann``, a bell (Pielawski and Wählby 2020, doi:10.1371/journal.pone.0229839); ``none``, all windows alike;
        ``centre``, the middle ``step`` pixels alone.

    Returns
    -------
    float32 (window,).
    """
    pixels = np.arange(window)
    first = (window - step) // 2
    curve = {
        "hann": np.sin(np.pi * (pixels + 0.5) / window) ** 2,
        "none": np.ones(window),
        "centre": ((pixels >= first) & (pixels < first + step)).astype(float),
    }[kind]
    sums = np.bincount(pixels % step, curve, step)
    return (curve / sums[pixels % step]).astype(np.float32)


def blended(
    read: Callable[[Region], Arrays],
    score: Callable[[Batch], Tensor],
    region: Region,
    *,
    classes: int,
    settings: Prediction,
    device: torch.device,
    refine: Callable[[Tensor, Batch], Tensor] | None = None,
) -> Iterator[Band]:
    """Probabilities of a region, from north to south, while the next rows are read.

    Parameters
    ----------
    read : gives integers (T, C, y, x) of any part of the lattice, NODATA beyond the data. Called from a thread, from
        north to south.
    score : called from threads; gives probabilities float32 (B, K, w, w), or (B, K) where there is one class to a
        window, of integers (B, T, C, w, w), uint16 as int32, on the device. B is always the setting, since kernels
        differ with it.
    region : of any shape; what it takes of memory is proportional to its width.
    classes : K.
    settings : windows, overlap, blend, symmetries, batch and threads: so many batches are scored at a time, each by one
        thread of torch, so that their number changes no byte.
    device : of the batches and of the probabilities that come back.
    refine : changes what ``score`` gives of windows, given their integers, before they are blended.

    Raises
    ------
    ModelError
        ``score`` gives something of another shape.
    """
    if settings.symmetries:
        score = partial(symmetric, score)
    window, step = settings.window_pixels, settings.step_pixels
    down, across = windows_of(region.row, region.height, settings), windows_of(region.column, region.width, settings)
    strips = in_order(partial(_read_strip, read, across, window), _strip_rows(down, window), threads=1)
    batches = _batches(_places(strips, down, across, window), settings.batch)
    sizes = settings.batch, classes, window
    work = partial(_scored, sizes=sizes, left=across.starts[0], score=score, refine=refine, device=device)
    totals: deque[Tensor] = deque()
    kept: list[np.ndarray] = []
    current: Row | None = None
    for batch, scores in in_order(work, batches, settings.threads):
        done = 0
        for row, group in groupby(batch, lambda place: place.row):
            if current is not None and row is not current:
                yield from _finished_row(current, totals.popleft(), down, across, region, step)
            current = row
            while len(totals) < -(-(down.last - down.first) // step):
                totals.append(_zeros(kept, classes, step, region.width, device))
            columns = [place.column - region.column for place in group if place.column is not None]
            add(totals, scores[done : done + len(columns)], columns, down, across)
            done += len(columns)
    if current is not None:
        yield from _finished_row(current, totals.popleft(), down, across, region, step)


def _zeros(kept: list[np.ndarray], classes: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """Zeros (K, y, x); on the CPU in memory that was used before and that nobody holds but this list.

    Fresh memory would have to be asked of the system page by page, which takes longer than the sums.
    """
    if device.type != "cpu":
        return torch.zeros(classes, rows, columns, device=device)
    free = next((each for each in kept if getrefcount(each) == HELD_BY_LIST), None)
    if free is None:
        free = np.empty((classes, rows, columns), np.float32)
        kept.append(free)
    free.fill(0)
    return torch.from_numpy(free)


# --- windows and what they see ---------------------------------------------------------------------------------------


def windows_of(first: int, length: int, settings: Prediction) -> Axis:
    """Windows along one axis whose weights meet pixels [first, first + length)."""
    weights = blend_weights(settings.window_pixels, settings.step_pixels, settings.blend)
    inside = np.flatnonzero(weights)
    begin, end = int(inside[0]), int(inside[-1]) + 1
    return Axis(window_starts(first - begin, length, end - begin, settings.step_pixels), weights, begin, end)


def _strip_rows(down: Axis, window: int) -> Iterator[range]:
    """Rows that are read at once: those of a row of chunks of a stack, each once."""
    first, end = down.starts[0], down.starts[-1] + window
    for start in range(first // CHUNK_PIXELS * CHUNK_PIXELS, end, CHUNK_PIXELS):
        yield range(max(start, first), min(start + CHUNK_PIXELS, end))


def _read_strip(read: Callable[[Region], Arrays], across: Axis, window: int, rows: range) -> Strip:
    first, last = across.starts[0], across.starts[-1] + window
    inputs = read(Region(rows.start, first, len(rows), last - first))
    return Strip(rows.start, inputs, observed(inputs))


def _places(strips: Iterator[Strip], down: Axis, across: Axis, window: int) -> Iterator[Place]:
    """Windows in their order, but for those whose pixels that count were all unobserved."""
    held: deque[Strip] = deque()
    for start in down.starts:
        while held and held[0].row + len(held[0].seen) <= start:
            held.popleft()
        while not held or held[-1].row + len(held[-1].seen) < start + window:
            held.append(next(strips))
        row = Row(start, tuple(held))
        counts = np.cumsum(np.r_[0, _joined(_parts(row, down.first, down.last)).sum(0)])  # seen, up to each column
        left = across.starts[0]
        columns = [at for at in across.starts if counts[at - left + across.last] > counts[at - left + across.first]]
        yield from (Place(row, column) for column in columns or (None,))


def _parts(row: Row, first: int, last: int, key: str | None = None) -> Iterator[np.ndarray]:
    """What the strips have of rows [first, last) of a row of windows: of an input, or where it was observed."""
    for strip in row.strips:
        top, bottom = (min(max(row.start + at - strip.row, 0), len(strip.seen)) for at in (first, last))
        if top < bottom:
            yield (strip.seen if key is None else strip.inputs[key])[..., top:bottom, :]


def _batches(places: Iterator[Place], size: int) -> Iterator[list[Place]]:
    """Lists of ``size`` windows, of one row or more; fewer at the end, and where a row without any is met."""
    batch: list[Place] = []
    for place in places:
        batch.append(place)
        if len(batch) == size or place.column is None:
            yield batch
            batch = []
    if batch:
        yield batch


def _gathered(batch: list[Place], size: int, window: int, left: int, device: torch.device) -> Batch:
    """Integers of the windows of a batch, which is filled up with its first."""
    windows = [(row, column - left) for row, column in batch if column is not None]
    windows += windows[:1] * (size - len(windows))
    arrays = {}
    for key, values in batch[0].row.strips[0].inputs.items():
        wide = np.dtype(np.int32) if values.dtype == np.uint16 and device.type == "cpu" else values.dtype
        arrays[key] = np.empty((size, *values.shape[:-2], window, window), wide)
        for target, (row, column) in zip(arrays[key], windows, strict=True):
            _copy(target, _parts(row, 0, window, key), column)
    return on_device(arrays, device)


def _copy(target: np.ndarray, parts: Iterable[np.ndarray], column: int) -> None:
    row = 0
    for part in parts:
        height = part.shape[-2]
        target[..., row : row + height, :] = part[..., column : column + target.shape[-1]]
        row += height


# --- scores ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def _scored(
    batch: list[Place],
    sizes: tuple[int, int, int],
    left: int,
    score: Callable[[Batch], Tensor],
    refine: Callable[[Tensor, Batch], Tensor] | None,
    device: torch.device,
) -> tuple[list[Place], Tensor]:
    """A batch and its probabilities (B, K, w, w); those of a patch are the same in all of its window."""
    size, classes, window = sizes
    if all(place.column is None for place in batch):
        return batch, torch.empty(0, classes, window, window, device=device)
    torch.set_num_threads(1)  # of this thread; several would wait for one another
    integers = _gathered(batch, size, window, left, device)
    scores = score(integers).float()
    if tuple(scores.shape) not in ((size, classes), (size, classes, window, window)):
        raise ModelError(
            f"the model gives an array of shape {tuple(scores.shape)} for {size} windows of {window} px: expected "
            f"{(size, classes, window, window)}, or {(size, classes)} of patches"
        )
    if refine:
        scores = refine(scores, integers)
    if scores.ndim == 2:
        scores = scores[..., None, None].expand(-1, -1, window, window)
    return batch, scores.contiguous()


def symmetric(score: Callable[[Batch], Tensor], integers: Batch) -> Tensor:
    """Mean scores of windows turned and mirrored in all eight ways, turned back."""
    total: Tensor | None = None
    for quarters, flip in TURNS:
        turned = {key: _turned(values, quarters, flip) for key, values in integers.items()}
        scores = score(turned)
        back = scores if scores.ndim == 2 else _turned_back(scores, quarters, flip)
        total = back.float().contiguous() if total is None else total + back
    assert total is not None
    return total / len(TURNS)


def _turned(values: Tensor, quarters: int, flip: bool) -> Tensor:
    return torch.rot90(values.flip(-1) if flip else values, quarters, (-2, -1)).contiguous()


def _turned_back(values: Tensor, quarters: int, flip: bool) -> Tensor:
    values = torch.rot90(values, -quarters, (-2, -1))
    return values.flip(-1) if flip else values


def add(totals: deque[Tensor], scores: Tensor, columns: list[int], down: Axis, across: Axis) -> None:
    """Add weighted scores (n, K, w, w) of windows of one row, by their columns, to totals (K, step, width) below."""
    step = totals[0].shape[1]
    for number, total in enumerate(totals):
        first = down.first + number * step
        rows = first, min(first + step, down.last)
        if total.device.type == "cpu":
            places, limits = np.array(columns, np.int64), (across.first, across.last)
            _add(total.numpy(), scores.numpy(), down.weights, across.weights, rows, limits, places)
        else:
            add_on_device(total, scores[:, :, slice(*rows)], down.weights[slice(*rows)], columns, across)


@njit(cache=True, nogil=True)
def _add(total, values, down, across, rows, limits, columns):  # type: ignore[no-untyped-def]
    """Windows in the order of the columns."""
    width = total.shape[2]
    for k in range(total.shape[0]):
        for number in range(len(columns)):
            column = columns[number]
            begin, end = max(limits[0], -column), min(limits[1], width - column)
            for y in range(rows[0], rows[1]):
                into, one, weight = total[k, y - rows[0]], values[number, k, y], down[y]
                for x in range(begin, end):
                    into[column + x] += one[x] * (weight * across[x])


def add_on_device(total: Tensor, values: Tensor, rows: np.ndarray, columns: list[int], across: Axis) -> None:
    """The same by the kernels of torch: values (n, K, rows, w) whose rows have the weights ``rows``."""
    weights = torch.from_numpy(rows[:, None] * across.weights).to(total.device)
    for one, column in zip(values, columns, strict=True):
        begin, end = max(across.first, -column), min(across.last, total.shape[2] - column)
        part = total[:, : len(weights), column + begin : column + end]
        part.addcmul_(one[:, :, begin:end], weights[:, begin:end])


def _finished_row(row: Row, total: Tensor, down: Axis, across: Axis, region: Region, step: int) -> Iterator[Band]:
    """The part of the region to which no further window adds anything; none above its first row."""
    top = row.start + down.first
    low, high = max(top, region.row), min(top + step, region.row + region.height)
    if low >= high:
        return
    rows = low - row.start, high - row.start
    left = region.column - across.starts[0]
    here = np.s_[..., left : left + region.width]
    yield Band(low, total[:, low - top : high - top], _joined(_parts(row, *rows))[here])


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    first, *others = parts
    return np.concatenate([first, *others], -2) if others else first


# --- what is kept ----------------------------------------------------------------------------------------------------


def finished(probabilities: Tensor, seen: np.ndarray, layers: tuple[Layer, ...] = ()) -> np.ndarray:
    """What is kept of probabilities.

    Parameters
    ----------
    probabilities : float32 (K, y, x).
    seen : bool (y, x), where something was observed.
    layers : what is kept beside class and confidence.

    Returns
    -------
    uint8 (bands, y, x): class 1..K, 0 where nothing was observed; confidence, the probability of this class, in per
    cent; then each layer as the settings describe it, in their order: ``margin`` and ``entropy`` in per cent,
    ``probabilities`` of all classes in steps of 0.004. 255 where nothing was observed, but for the class.
    """
    best, first, second = ranked(probabilities)
    there = torch.from_numpy(seen).to(probabilities.device)
    parts = [torch.where(there, best + 1, 0)[None], _kept(first, 100, there)]
    for layer in layers:
        if layer == "margin":
            parts.append(_kept(first - second, 100, there))
        elif layer == "entropy":
            parts.append(_kept(entropy(probabilities), 100, there))
        else:
            parts.append(_kept(probabilities, PROBABILITY_STEPS, there))
    return torch.cat(parts).cpu().numpy()


def layer_names(layers: tuple[Layer, ...], classes: list[str]) -> tuple[str, ...]:
    """Names of the bands that ``finished`` gives."""
    names = [[f"probability of {key}" for key in classes] if layer == "probabilities" else [layer] for layer in layers]
    return "class", "confidence", *(name for group in names for name in group)


def _kept(share: Tensor, steps: int, there: Tensor) -> Tensor:
    """Shares (y, x) or (n, y, x) of 1 as uint8 (n, y, x)."""
    share = share if share.ndim == 3 else share[None]
    return torch.where(there, (share * steps).round_().clamp_(0, steps).to(torch.uint8), CONFIDENCE_NODATA)


def ranked(probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best class uint8 0..K-1, the first of equal ones, its probability, and the second highest, of (K, y, x)."""
    if probabilities.device.type == "cpu":
        shape = tuple(probabilities.shape[1:])
        best, first, second = (np.empty(shape, dtype) for dtype in (np.uint8, np.float32, np.float32))
        _rank(np.ascontiguousarray(probabilities.numpy()), best, first, second)
        return torch.from_numpy(best), torch.from_numpy(first), torch.from_numpy(second)
    return ranked_on_device(probabilities)


def ranked_on_device(probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the kernels of torch."""
    first, second = torch.cat([probabilities, torch.zeros_like(probabilities[:1])]).topk(2, 0).values
    return probabilities.argmax(0).to(torch.uint8), first, second


@njit(cache=True, nogil=True)
def _rank(probabilities, best, first, second):  # type: ignore[no-untyped-def]
    """A row at a time, without a branch, so that it becomes vector instructions."""
    for y in range(best.shape[0]):
        for x in range(best.shape[1]):
            best[y, x], first[y, x], second[y, x] = 0, probabilities[0, y, x], 0
        for k in range(1, probabilities.shape[0]):
            for x in range(best.shape[1]):
                value, top = probabilities[k, y, x], first[y, x]
                second[y, x] = max(min(value, top), second[y, x])
                best[y, x] = np.uint8(k) if value > top else best[y, x]
                first[y, x] = max(value, top)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy (y, x) of probabilities (K, y, x) over that of classes that are all alike."""
    total = torch.zeros_like(probabilities[0])
    for share in probabilities:
        total += torch.special.entr(share)
    return total / np.log(max(len(probabilities), 2))
