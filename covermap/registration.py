"""How far an image lies from another, as found in pixels and as read from a scene's figures, and an image moved.

Shifts are in pixels, positive right and down: where the image lies against the reference.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.fft import fft2, fftfreq, ifft2
from scipy.ndimage import gaussian_filter

from covermap.errors import ProductError

CUTOFF = 0.35  # of the compared frequencies [cycles a pixel]; above it there is more noise than ground
LEAST_VALID = 0.15  # share of a patch
LEAST_RATIO = 1.3  # of the peak to the highest value outside of it; below it lies what noise alone reaches
PEAK_PIXELS = 5  # a peak has sunk at this distance
RIM_PIXELS = 3.0  # masks fade over this distance, since a sharp edge that both images share says 'no shift'
PRECISE_PIXELS = 0.01
LEAST_PATCHES = 4
LEAST_AGREEING = 0.5  # share of the patches with a peak
TRUSTED_PIXELS = 0.1  # highest standard error of a shift that is trusted
WORTH_PIXELS = 0.1  # below it the interpolation would harm more than the shift does


class Shift(NamedTuple):
    """Where a scene lies against its reference.

    ``spread_pixels`` is the standard deviation of one patch, from the median absolute deviation, along the axis where
    it is larger; ``patches`` is the number of those that agree.
    """

    right_pixels: float
    down_pixels: float
    spread_pixels: float
    patches: int
    trusted: bool


def patch_shift(image: np.ndarray, reference: np.ndarray, max_shift_pixels: float) -> tuple[float, float] | None:
    """Shift (right, down) of a patch against a reference by phase correlation, or None where they do not tell it.

    The cross-power spectrum is whitened (Kuglin and Hines 1975) up to a cutoff frequency; the peak is refined to
    0.01 px by a discrete Fourier transform of its surroundings (Guizar-Sicairos et al. 2008, doi:10.1364/OL.33.000156).
    The peak is looked for at all shifts: one that lies further off than may be is a mistake, and is no answer.

    Parameters
    ----------
    image, reference : float (y, x) of one square shape, NaN where masked.
    max_shift_pixels : along each axis.
    """
    valid = np.isfinite(image) & np.isfinite(reference)
    if valid.mean() < LEAST_VALID:
        return None
    weight = _faded(valid) * _hann(len(image))
    spectra = [fft2(_weighted(each, valid, weight)) for each in (image, reference)]
    cross = spectra[0] * spectra[1].conj()
    cross *= _low_pass(len(image)) / np.maximum(np.abs(cross), np.finfo(np.float32).tiny)
    surface = ifft2(cross).real
    peak = int(surface.argmax())
    if not _stands_out(surface, *divmod(peak, len(image))):
        return None
    down, right = (at - len(image) if 2 * at >= len(image) else at for at in divmod(peak, len(image)))
    if max(abs(right), abs(down)) > max_shift_pixels:
        return None
    return _refined(cross, right, down)


def _faded(valid: np.ndarray) -> np.ndarray:
    """Weight of valid pixels, which sinks to nearly 0 towards masked ones."""
    if valid.all():
        return np.ones(valid.shape, np.float32)
    inside = gaussian_filter(valid.astype(np.float32), RIM_PIXELS)
    return np.clip(2 * inside - 1, 0, 1) * valid


def _weighted(image: np.ndarray, valid: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The image less its mean, times the weight."""
    filled = np.where(valid, image, 0).astype(np.float32)
    mean = (filled * weight).sum(dtype=np.float64) / max(float(weight.sum(dtype=np.float64)), 1e-9)
    return (filled - np.float32(mean)) * weight


@cache
def _hann(size: int) -> np.ndarray:
    """Window (y, x) that sinks to 0 at the patch's border, which would else be compared too."""
    line = np.hanning(size + 2)[1:-1].astype(np.float32)
    return np.outer(line, line)


@cache
def _low_pass(size: int) -> np.ndarray:
    """Weight of each frequency: falls from 1 to 0 at the cutoff."""
    along = fftfreq(size)
    radius = np.hypot(along[:, None], along[None, :])
    weight = np.cos(np.pi / 2 * np.minimum(radius / CUTOFF, 1)) ** 2
    return weight.astype(np.float32)


def _stands_out(surface: np.ndarray, row: int, column: int) -> bool:
    """Whether the peak is clearly higher than all else."""
    around = np.arange(-PEAK_PIXELS, PEAK_PIXELS + 1)
    rest = surface.copy()
    rest[np.ix_((row + around) % len(surface), (column + around) % len(surface))] = -np.inf
    return bool(surface[row, column] > LEAST_RATIO * max(float(rest.max()), 1e-12))


def _refined(cross: np.ndarray, right: float, down: float) -> tuple[float, float]:
    """Place of the peak near (right, down): first to a tenth of a pixel, then to a hundredth."""
    frequency = 2j * np.pi * fftfreq(len(cross))
    for step in (10 * PRECISE_PIXELS, PRECISE_PIXELS):
        offsets = step * np.arange(-10, 11)
        rows = np.exp(np.outer(down + offsets, frequency)).astype(cross.dtype)
        columns = np.exp(np.outer(frequency, right + offsets)).astype(cross.dtype)
        fine = (rows @ cross @ columns).real
        row, column = divmod(int(fine.argmax()), len(offsets))
        right, down = right + float(offsets[column]), down + float(offsets[row])
    return right, down


def combined(shifts: list[tuple[float, float]]) -> Shift | None:
    """The shift of a scene from those of its patches (right, down): their median.

    It is trusted where at least four patches, and half of those with a peak, lie within three spreads of it, and its
    standard error (1.2533 spread / sqrt(patches), that of a median) is at most 0.1 px. None without patches.
    """
    if not shifts:
        return None
    every = np.array(shifts)
    median = np.median(every, axis=0)
    distance = np.abs(every - median)
    spread = float(1.4826 * np.median(distance, axis=0).max())
    agreeing = int((distance <= max(3 * spread, 3 * PRECISE_PIXELS)).all(axis=1).sum())
    error = 1.2533 * spread / math.sqrt(max(agreeing, 1))
    trusted = agreeing >= max(LEAST_PATCHES, LEAST_AGREEING * len(every)) and error <= TRUSTED_PIXELS
    right, down = (round(float(value), 3) + 0.0 for value in median)
    return Shift(right, down, round(spread, 3), agreeing, trusted)


def patch_places(height: int, width: int, side: int, count: int) -> list[tuple[int, int]]:
    """First row and column of at most ``count`` square patches, evenly over an image; they overlap by half at most."""
    most_down, most_across = max(2 * height // side - 1, 0), max(2 * width // side - 1, 0)
    if not most_down * most_across:
        return []
    down = min(max(round(math.sqrt(count * height / width)), 1), most_down, count)
    across = min(max(count // down, 1), most_across)
    down = min(max(count // across, 1), most_down)
    rows, columns = (
        np.rint(np.linspace(0, extent - side, number) if number > 1 else [(extent - side) / 2]).astype(int)
        for extent, number in ((height, down), (width, across))
    )
    return [(int(row), int(column)) for row in rows for column in columns]


def correction(quality: Path) -> tuple[float, float] | None:
    """Pixels (right, down) by which the scene of a file of ``check_scene`` is moved back; None where it stays.

    It stays where its shift is not trusted, or below 0.1 px, which an interpolation would not mend.

    Raises
    ------
    ProductError
        The file cannot be read.
    """
    try:
        shift = json.loads(quality.read_text())["shift"]
        if not shift or not shift["trusted"] or math.hypot(shift["right_pixels"], shift["down_pixels"]) < WORTH_PIXELS:
            return None
        return -float(shift["right_pixels"]), -float(shift["down_pixels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProductError(
            f"{quality} cannot be read as figures of a scene ({error}): remove it and run again"
        ) from error


def moved(
    pixels: np.ndarray, right_pixels: float, down_pixels: float, nodata: float, nearest: bool = False
) -> np.ndarray:
    """An image moved right and down, by cubic convolution with a = -1/2 (Keys 1981, doi:10.1109/TASSP.1981.1163711).

    Parameters
    ----------
    pixels : (band, y, x), integers or floats.
    right_pixels, down_pixels : negative: left, up. Whole numbers copy pixels.
    nodata : value without data, NaN for floats.
    nearest : move by the nearest whole numbers, for classes.

    Returns
    -------
    Array of the same shape and type. ``nodata`` where any pixel that counts (four along each axis) has no data or lies
    outside: up to ``ceil(abs(shift)) + 1`` px from there. Integers are rounded, and never become ``nodata``.
    """
    if nearest:
        right_pixels, down_pixels = math.floor(right_pixels + 0.5), math.floor(down_pixels + 0.5)
    return np.stack([_moved_band(band, right_pixels, down_pixels, nodata) for band in pixels])


def _moved_band(band: np.ndarray, right_pixels: float, down_pixels: float, nodata: float) -> np.ndarray:
    empty = np.isnan(band) if math.isnan(nodata) else band == nodata
    values = np.where(empty, 0, band).astype(np.float64 if band.dtype.itemsize > 2 else np.float32)
    for axis, shift in ((0, down_pixels), (1, right_pixels)):
        taps = _taps(shift)
        empty = np.logical_or.reduce([_slid(empty, by, axis, True) for by, _ in taps])
        values = sum(np.asarray(weight, values.dtype) * _slid(values, by, axis, 0) for by, weight in taps)
    if np.issubdtype(band.dtype, np.integer):
        kind = np.iinfo(band.dtype)
        values = np.clip(np.rint(values), kind.min + (nodata == kind.min), kind.max - (nodata == kind.max))
    return np.where(empty, nodata, values).astype(band.dtype)


def _taps(shift: float) -> list[tuple[int, float]]:
    """Whole shifts and their weights, whose sum is the shift."""
    whole = math.floor(shift)
    t = shift - whole
    if t == 0:
        return [(whole, 1.0)]
    weights = (
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (t**3 - t**2) / 2,
    )
    return [(whole + by, weight) for by, weight in zip((-1, 0, 1, 2), weights, strict=True)]


def _slid(array: np.ndarray, by: int, axis: int, fill: float) -> np.ndarray:
    """The array with its content ``by`` further along an axis."""
    out = np.full_like(array, fill)
    size = array.shape[axis]
    if abs(by) < size:
        to, source = slice(max(by, 0), size + min(by, 0)), slice(max(-by, 0), size + min(-by, 0))
        place = (slice(None),) * axis
        out[(*place, to)] = array[(*place, source)]
    return out
