"""What may follow the network: a conditional random field, Bayesian smoothing, majority and a minimum mapping unit.

The first works on the probabilities of a window, the second on those of a block, the others on finished classes. The
last three are the same wherever a map is cut, if the part has a rim of as many pixels as each of them says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from numba import njit
from torch import Tensor

from covermap.legend import NO_LABEL
from covermap.model_settings import ROUNDS, Bayes, Crf, Tidy, unit_pixels

LEAST = 1e-4  # of a probability, before its logarithm
KEPT = 1 << 27  # weights of pairs of pixels that are kept from one iteration to the next, 4 bytes each
STEPS = 10_000  # of a probability that is smoothed
LEVELS = 254  # of log-odds, by which the highest of a neighbourhood are told from the others
CHUNK = 256  # pixels of a row that are smoothed together: what they need stays in the processor's nearest memory
STRIP = 64  # rows of a thread's next piece of work


# --- conditional random field ----------------------------------------------------------------------------------------


def mean_field(probabilities: Tensor, look: Tensor, seen: Tensor, crf: Crf) -> Tensor:
    """Probabilities of a conditional random field whose pixels are drawn to the class of neighbours that look alike.

    Krähenbühl and Koltun 2011, arXiv:1210.5644, equations 3 and 4 and algorithm 1, with the Potts model, restricted to
    a neighbourhood as by Teichmann and Cipolla 2018, arXiv:1805.04777. The weight of a pair of pixels at distance d,
    with looks f and g of F bands, is ``exp(-d² / 2 distance²) (smoothness + likeness exp(-|f - g|² / 2 F contrast²))``,
    over the sum of its first factor in the neighbourhood, so that it does not grow with the radius.

    Parameters
    ----------
    probabilities : float32 (B, K, y, x).
    look : float32 (B, F, y, x), the bands in standard deviations.
    seen : bool (B, y, x); other pixels neither give nor take, and keep their probabilities.
    crf : the settings.
    """
    size = 1 if probabilities.device.type == "cpu" else len(probabilities)  # one window fits into the processor's cache
    parts = zip(probabilities.split(size), look.split(size), seen.split(size), strict=True)
    return torch.cat([_mean_field(*part, crf) for part in parts])


def _mean_field(probabilities: Tensor, look: Tensor, seen: Tensor, crf: Crf) -> Tensor:
    evidence = probabilities.clamp(min=LEAST).log()
    belief = torch.where(seen[:, None], probabilities, 0)
    kept = len(neighbours(crf.radius_pixels)) * seen.numel() <= KEPT
    pairs = list(pair_weights(look, crf)) if kept else []
    for _ in range(crf.iterations):
        message = evidence.clone()
        for here, there, weight in pairs or pair_weights(look, crf):
            message[here].addcmul_(weight, belief[there])
            message[there].addcmul_(weight, belief[here])
        belief = torch.where(seen[:, None], message.softmax(1), 0)
    return torch.where(seen[:, None], belief, probabilities)


def neighbours(radius: int) -> list[tuple[int, int]]:
    """Rows and columns to half of the neighbours of a pixel; the others lie opposite."""
    reach = range(-radius, radius + 1)
    return [(down, right) for down in reach for right in reach if (down, right) > (0, 0)]


Part = tuple[slice, slice, slice, slice]


def pair_weights(look: Tensor, crf: Crf) -> Iterator[tuple[Part, Part, Tensor]]:
    """Two parts of (B, K, y, x) whose pixels are neighbours, one after another, and the weight of each pair."""
    height, width = look.shape[-2:]
    every, spread = slice(None), 2 * crf.distance_pixels**2
    near = {to: math.exp(-(to[0] ** 2 + to[1] ** 2) / spread) for to in neighbours(crf.radius_pixels)}
    total = 2 * sum(near.values())
    for (down, right), share in near.items():
        rows, columns = max(height - down, 0), max(width - abs(right), 0)
        left, shifted = max(-right, 0), max(right, 0)
        here = every, every, slice(0, rows), slice(left, left + columns)
        there = every, every, slice(down, down + rows), slice(shifted, shifted + columns)
        apart = (look[here] - look[there]).square_().mean(1, keepdim=True)
        alike = apart.mul_(-1 / (2 * crf.contrast**2)).exp_()
        yield here, there, alike.mul_(crf.likeness).add_(crf.smoothness).mul_(share / total)


# --- Bayesian smoothing ----------------------------------------------------------------------------------------------


def smoothed(probabilities: Tensor, seen: Tensor, bayes: Bayes) -> Tensor:
    """Probabilities after Bayesian smoothing.

    Simoes et al. 2021, doi:10.3390/rs13132428, and Câmara et al. 2024, Remote Sensing 16(23), 4572. The log-odds x of a
    class have a normal prior, with the mean m and the variance v of the highest ``share`` of those of the neighbours
    that are seen, and are themselves known to a variance s, the smoothness; ``(v x + s m) / (v + s)`` is the mean of
    what follows. Probabilities come back by the logistic function, and are divided by their sum.

    Probabilities are taken in steps of 0.0001, of which each class has at least one and lacks at least one. Neighbours
    count as equally high where their log-odds differ by less than a 254th of the range (0.07): the mean of those at the
    limit stands for as many of them as are needed.

    Parameters
    ----------
    probabilities : float32 (K, y, x).
    seen : bool (y, x); other pixels neither give nor take, and keep their probabilities.
    bayes : the settings.

    Returns
    -------
    float32 (K, y, x), on the same device. Each pixel depends on those within ``bayes.pixels // 2`` alone, and its bytes
    do not on where it lies in the array.
    """
    height, leg = probabilities.shape[1], bayes.pixels // 2
    out = np.empty(probabilities.shape, np.float32)
    steps = np.where(seen.cpu().numpy(), _steps(probabilities.cpu().numpy()), 0)  # uint16 (K, y, x)
    steps = np.pad(steps, ((0, 0), (leg, leg), (leg, leg)))
    few = [math.ceil(round(bayes.share * count, 6)) for count in range(bayes.pixels**2 + 1)]
    tables = _log_odds(), _levels(), np.array(few, np.uint8)

    def smooth(first: int) -> None:
        last = min(first + STRIP, height)
        _smooth_rows(steps[:, first : last + 2 * leg], *tables, leg, np.float32(bayes.smoothness), out[:, first:last])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(smooth, range(0, height, STRIP)))
    return torch.where(seen, torch.from_numpy(out).to(probabilities.device), probabilities)


def _steps(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities in steps: uint16, 1 to STEPS - 1."""
    return np.clip(np.rint(probabilities * np.float32(STEPS)), 1, STEPS - 1).astype(np.uint16)


@cache
def _log_odds() -> np.ndarray:
    """Log-odds of each step of a probability: float32 (STEPS,); 0 means not seen."""
    share = np.arange(1, STEPS) / STEPS
    return np.concatenate([[0], np.log(share / (1 - share))]).astype(np.float32)


@cache
def _levels() -> np.ndarray:
    """Level of the log-odds of each step of a probability: uint8 (STEPS,), 1 to LEVELS; 0 means not seen."""
    odds = _log_odds()[1:].astype(np.float64)
    levels = 1 + np.rint((odds - odds[0]) / (odds[-1] - odds[0]) * (LEVELS - 1))
    return np.concatenate([[0], levels]).astype(np.uint8)


@njit(cache=True, nogil=True, error_model="numpy")
def _smooth_rows(steps, log_odds, level_of, few, leg, smoothness, out):  # type: ignore[no-untyped-def]
    """Write rows of all classes, whose steps have ``leg`` more pixels on all sides, where they are seen."""
    classes, rows, columns = out.shape
    odds = np.empty(steps.shape[1:], np.float32)
    levels = np.empty(steps.shape[1:], np.uint8)
    needed = np.empty((rows, columns), np.uint8)
    for k in range(classes):
        for row in range(steps.shape[1]):
            for column in range(steps.shape[2]):
                odds[row, column] = log_odds[steps[k, row, column]]
                levels[row, column] = level_of[steps[k, row, column]]
        for row in range(rows):
            for start in range(0, columns, CHUNK):
                stop = min(start + CHUNK, columns)
                many = needed[row][start:stop]
                square = 2 * leg + 1, row, start
                if k == 0:
                    _count(levels, square, np.ones(stop - start, np.uint8), many)
                    many[:] = few[many]
                if _any_likely(levels, square, stop - start):
                    _smooth_pixels(levels, odds, square, many, smoothness, out[k, row][start:stop])
                else:
                    out[k, row, start:stop] = np.float32(1 / STEPS)
    for row in range(rows):
        total = np.zeros(columns, np.float32)
        for k in range(classes):
            total += out[k, row]
        for k in range(classes):
            out[k, row] /= total


# In what follows a square is its side and the row and column of where it begins for the first of a row of pixels. Loops
# over ``column`` are runs of vector instructions, for which rows are cut out one by one.


@njit(cache=True, nogil=True, error_model="numpy")
def _any_likely(levels, square, pixels):  # type: ignore[no-untyped-def]
    """Whether a class has more than the least of probabilities anywhere about some pixels."""
    side, first, start = square
    highest = np.uint8(0)
    for row in range(side):
        near = levels[first + row][start : start + pixels + side - 1]
        for column in range(len(near)):
            highest = max(highest, near[column])
    return highest > 1


@njit(cache=True, nogil=True, error_model="numpy")
def _count(levels, square, limit, counts):  # type: ignore[no-untyped-def]
    """Neighbours of each pixel whose level is at least its limit."""
    side, first, start = square
    counts[:] = 0
    for row in range(side):
        for shift in range(start, start + side):
            near = levels[first + row][shift : shift + len(counts)]
            for column in range(len(counts)):
                counts[column] += np.uint8(near[column] >= limit[column])


@njit(cache=True, nogil=True, error_model="numpy")
def _sums(levels, odds, square, limit, centre):  # type: ignore[no-untyped-def]
    """Of the differences of neighbours to the centre: sum above a limit, sum at it, and of squares above it."""
    side, first, start = square
    pixels, nothing = len(limit), np.float32(0)
    above, at, squares = np.zeros(pixels, np.float32), np.zeros(pixels, np.float32), np.zeros(pixels, np.float32)
    for row in range(side):
        for shift in range(start, start + side):
            near = levels[first + row][shift : shift + pixels]
            value = odds[first + row][shift : shift + pixels]
            for column in range(pixels):
                apart = value[column] - centre[column]
                higher = apart if near[column] > limit[column] else nothing
                above[column] += higher
                squares[column] += higher * higher
                at[column] += apart if near[column] == limit[column] else nothing
    return above, at, squares


@njit(cache=True, nogil=True, error_model="numpy")
def _smooth_pixels(levels, odds, square, needed, smoothness, out):  # type: ignore[no-untyped-def]
    """Write the smoothed probabilities of one class, not yet divided by the sum of all."""
    side, first, start = square
    pixels, middle = len(needed), side // 2
    limit, tried, counts = np.zeros(pixels, np.uint8), np.empty(pixels, np.uint8), np.empty(pixels, np.uint8)
    for bit in (128, 64, 32, 16, 8, 4, 2, 1):  # the highest level that as many as are needed reach
        for column in range(pixels):
            tried[column] = limit[column] | np.uint8(bit)
        _count(levels, square, tried, counts)
        for column in range(pixels):
            limit[column] = tried[column] if counts[column] >= needed[column] else limit[column]
    centre = odds[first + middle][start + middle : start + middle + pixels]
    above, at, squares = _sums(levels, odds, square, limit, centre)
    _count(levels, square, limit, counts)
    reached = counts.astype(np.float32)
    tried[:] = limit + np.uint8(1)
    _count(levels, square, tried, counts)
    for column in range(pixels):
        count, more = np.float32(max(needed[column], 1)), np.float32(counts[column])
        equal = at[column] / max(reached[column] - more, np.float32(1))  # those at the limit, of which some count
        mean = (above[column] + (count - more) * equal) / count
        square_sum = squares[column] + (count - more) * equal * equal
        variance = max(square_sum - count * mean * mean, np.float32(0)) / max(count - 1, np.float32(1))
        result = centre[column] + mean * smoothness / (variance + smoothness)
        out[column] = 1 / (1 + math.exp(-result))


# --- finished classes ------------------------------------------------------------------------------------------------


def tidied(classes: np.ndarray, tidy: Tidy, pixel_m: float) -> np.ndarray:
    """Classes after the majority and the minimum mapping unit, where they are set.

    Parameters
    ----------
    classes : uint8 (y, x), 0 no data.
    tidy : the settings.
    pixel_m : side of a pixel.

    Returns
    -------
    uint8 (y, x). Farther than ``halo_pixels`` from the edge of the array it does not depend on where the map was cut.
    """
    if tidy.majority_pixels:
        classes = majority(classes, tidy.majority_pixels)
    if tidy.min_unit_ha:
        classes, _ = merged(classes, unit_pixels(tidy, pixel_m))
    return classes


def majority(classes: np.ndarray, pixels: int) -> np.ndarray:
    """The class of most of the pixels of a square about each pixel.

    Of classes with as many pixels it is the pixel's own, else the one with the lowest id. What has no data (0) does not
    count and does not change, and neither does what lies beyond the array.

    Parameters
    ----------
    classes : uint8 (y, x).
    pixels : side of the square, odd.
    """
    leg = pixels // 2
    return _majority(np.pad(classes, leg), np.flatnonzero(np.bincount(classes.ravel())).astype(np.uint8), leg)


@njit(cache=True, nogil=True)
def _majority(padded, present, leg):  # type: ignore[no-untyped-def]
    rows, columns = padded.shape[0] - 2 * leg, padded.shape[1] - 2 * leg
    out = np.zeros((rows, columns), np.uint8)
    down = np.zeros((256, columns + 2 * leg), np.uint16)  # pixels of each class in the square's part of each column
    most = np.empty(columns, np.uint16)
    for near in range(2 * leg):
        for column in range(padded.shape[1]):
            down[padded[near, column], column] += 1
    for row in range(rows):
        for column in range(padded.shape[1]):
            down[padded[row + 2 * leg, column], column] += 1
        most[:] = 0
        for k in present:
            if k:
                _most(down[k], k, padded[row + leg, leg : leg + columns], most, out[row])
        for column in range(padded.shape[1]):
            down[padded[row, column], column] -= 1
    return out


@njit(cache=True, nogil=True)
def _most(down, k, own, most, best):  # type: ignore[no-untyped-def]
    """Put class ``k`` where it has more pixels than those before it, or as many and is the pixel's own."""
    side, count = len(down) - len(best) + 1, 0
    for column in range(side - 1):
        count += down[column]
    for column in range(len(best)):
        count += down[column + side - 1]
        if own[column] and (count > most[column] or (count == most[column] and own[column] == k)):
            most[column], best[column] = count, k
        count -= down[column]


def merged(classes: np.ndarray, min_pixels: int) -> tuple[np.ndarray, int]:
    """Classes without patches that are smaller than a minimum mapping unit.

    Pixels of a class that share a side are a patch, as they are a polygon where the map is made one: those that only
    touch at a corner are two. A small patch joins the class that has the longest border with it among neighbours that
    are large enough, of equals the one with the lowest id. What has joined is large enough for its own neighbours in
    the next round, and so is a small patch that thereby has a large neighbour of its own class; there are at most
    ``ROUNDS``. No data (0) is no neighbour and no patch.

    Parameters
    ----------
    classes : uint8 (y, x), 0 no data.
    min_pixels : pixels of the smallest patch that stays.

    Returns
    -------
    uint8 (y, x), and how many pixels of too small patches are left: those too deep within others, or amid no data.
    Patches at the edge of the array are judged by what lies in it. Farther than ``(ROUNDS + 1) * min_pixels`` from it
    nothing depends on what lies beyond: a small patch reaches less than ``min_pixels`` from any of its pixels, a chain
    of ROUNDS of them leads to a large one, and whether that is large shows within as many pixels again.
    """
    framed = np.pad(classes, 1)  # so that every pixel has four neighbours
    patch = _patches(framed)
    left = _merge(framed.reshape(-1), patch, _sizes(patch), framed.shape[1], min_pixels)
    return framed[1:-1, 1:-1].copy(), int(left)


@njit(cache=True, nogil=True)
def _patches(framed):  # type: ignore[no-untyped-def]
    """Number of the first pixel of each pixel's patch: int32 (y * x,), 0 without data."""
    rows, columns = framed.shape
    first = np.zeros(rows * columns, np.int32)
    for row in range(1, rows):
        above, line = framed[row - 1], framed[row]
        for column in range(1, columns):
            pixel = row * columns + column
            same_left, same_above = line[column] == line[column - 1], line[column] == above[column]
            if line[column] == NO_LABEL:
                continue
            if same_left and same_above and above[column - 1] != line[column]:
                one, other = _first_of(first, pixel - 1), _first_of(first, pixel - columns)
                first[max(one, other)] = first[pixel] = min(one, other)
            elif same_left:
                first[pixel] = first[pixel - 1]
            else:
                first[pixel] = first[pixel - columns] if same_above else pixel
    for pixel in range(len(first)):
        first[pixel] = first[first[pixel]]
    return first


@njit(cache=True, nogil=True)
def _first_of(first, pixel):  # type: ignore[no-untyped-def]
    """Follow a patch to its first pixel, on a way that is shortened."""
    while first[pixel] != pixel:
        first[pixel] = first[first[pixel]]
        pixel = first[pixel]
    return pixel


@njit(cache=True, nogil=True)
def _sizes(patch):  # type: ignore[no-untyped-def]
    """Pixels of each patch, at its first: int32 (y * x,), 0 without data."""
    sizes = np.zeros(len(patch), np.int32)
    for first in patch:
        sizes[first] += 1
    sizes[0] = 0
    return sizes


@njit(cache=True, nogil=True)
def _merge(classes, patch, sizes, columns, min_pixels):  # type: ignore[no-untyped-def]
    """Change the classes (y * x,) of small patches, and ``sizes`` with them: 0 is no neighbour, below it is small."""
    pixels, starts = _small(patch, sizes, min_pixels)
    waiting = np.arange(len(starts) - 1)
    borders = np.zeros(256, np.int64)
    for _ in range(ROUNDS):
        chosen = np.zeros(len(waiting), np.uint8)
        for number in range(len(waiting)):
            part = pixels[starts[waiting[number]] : starts[waiting[number] + 1]]
            chosen[number] = _longest(classes, patch, sizes, columns, part, borders)
        for number in np.flatnonzero(chosen):
            part = pixels[starts[waiting[number]] : starts[waiting[number] + 1]]
            classes[part] = chosen[number]
            sizes[part[0]] = min_pixels
        waiting = waiting[chosen == 0]
    left = 0
    for number in waiting:
        part = pixels[starts[number] : starts[number + 1]]
        if _longest(classes, patch, sizes, columns, part, borders) != classes[part[0]]:  # else it became part of one
            left += len(part)
    return left


@njit(cache=True, nogil=True)
def _small(patch, sizes, min_pixels):  # type: ignore[no-untyped-def]
    """Pixels of all small patches, one patch after another in the order of their first pixels, and where each starts.

    ``sizes`` become minus the number of the patch, from 1, where it is small.
    """
    count, total = 0, 0
    for size in sizes:
        if 0 < size < min_pixels:
            count, total = count + 1, total + size
    starts, number = np.zeros(count + 1, np.int64), 0
    for pixel in range(len(patch)):
        if 0 < sizes[pixel] < min_pixels:
            starts[number + 1] = starts[number] + sizes[pixel]
            number += 1
            sizes[pixel] = -number
    pixels, ends = np.empty(total, np.int32), starts.copy()
    for pixel in range(len(patch)):
        if sizes[patch[pixel]] < 0:
            number = -sizes[patch[pixel]] - 1
            pixels[ends[number]] = pixel
            ends[number] += 1
    return pixels, starts


@njit(cache=True, nogil=True)
def _longest(classes, patch, sizes, columns, pixels, borders):  # type: ignore[no-untyped-def]
    """The class that a patch joins; 0 where no neighbour is large enough."""
    own, highest = classes[pixels[0]], 0
    for pixel in pixels:
        for to in (pixel - columns, pixel - 1, pixel + 1, pixel + columns):
            if sizes[patch[to]] > 0:
                borders[classes[to]] += 1
                highest = max(highest, classes[to])
    best = own if borders[own] else np.argmax(borders[: highest + 1])
    found = borders[best] > 0
    borders[: highest + 1] = 0
    return best if found else 0
