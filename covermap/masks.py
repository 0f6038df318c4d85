"""Which pixels of a Sentinel-2 scene are clear."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

NO_DATA, DEFECTIVE = 0, 1  # SCL


def clear_mask(scl: np.ndarray, classes: Sequence[int], dilate_pixels: float, erode_pixels: float = 0) -> np.ndarray:
    """Pixels that are neither masked nor close to a masked one.

    Pixels up to ``dilate_pixels`` and twice ``erode_pixels`` away decide on a pixel, so a window needs a rim of their
    sum; beyond the window counts as no data.

    Parameters
    ----------
    scl : uint8 (y, x), scene classification of Sentinel-2 L2A (ESA, Sentinel-2 Products Specification Document): 0 no
        data, 1 saturated or defective, 2 dark, 3 cloud shadow, 4 vegetation, 5 bare, 6 water, 7 unclassified, 8 and 9
        cloud, 10 cirrus, 11 snow.
    classes : SCL classes that are masked; no data (0) always is, and does not grow: the rim of a clip is no cloud.
    dilate_pixels : masked areas grow to all pixels whose centre is within this distance of a masked centre [px].
    erode_pixels : before that, masked areas into which no disc of this radius fits are dropped [px]: bright roofs and
        sand look like small clouds. Defective pixels are kept, however few, and so is what a disc covers together with
        missing pixels: a cloud at the rim of a swath is as large as we cannot see.

    Returns
    -------
    bool (y, x), true where clear.
    """
    listed = np.zeros(256, bool)
    listed[list(classes)] = True
    listed[NO_DATA] = False
    masked = listed[scl]
    if erode_pixels > 0:
        masked &= _opened(masked | (scl == NO_DATA), erode_pixels) | (scl == DEFECTIVE)
    return ~(dilate(masked, dilate_pixels) | (scl == NO_DATA))


def _opened(mask: np.ndarray, radius_pixels: float) -> np.ndarray:
    """All discs that fit into a mask (y, x) which goes on, true, beyond its edges."""
    rim = math.floor(radius_pixels)
    wide = np.pad(mask, rim, constant_values=True)
    eroded = ~dilate(~wide, radius_pixels)  # beyond the edge nothing is outside the mask
    return dilate(eroded, radius_pixels)[rim : rim + mask.shape[0], rim : rim + mask.shape[1]]


def dilate(mask: np.ndarray, radius_pixels: float) -> np.ndarray:
    """Dilation of a bool mask (y, x) with a disc: true within ``radius_pixels`` of a true pixel (centre to centre).

    A disc is a stack of rows, so each row of the disc is one shift of the mask grown sideways: four passes a pixel of
    radius, each far cheaper than a distance transform.
    """
    out = mask.copy()
    wide, half = mask.copy(), 0  # the mask grown sideways by half
    tip = min(math.floor(radius_pixels), len(mask) - 1)
    for up in range(tip, -1, -1):  # from the tip of the disc to its middle, rows get wider
        reach = math.isqrt(math.floor(radius_pixels**2 - up**2))
        while half < reach:
            half += 1
            wide[:, half:] |= mask[:, :-half]
            wide[:, :-half] |= mask[:, half:]
        out[up:] |= wide[: len(wide) - up]
        out[: len(out) - up] |= wide[up:]
    return out
