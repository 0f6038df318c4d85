"""Weak labels: what of a map of labels is trusted, when a model learns from it."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import rasterio
from rasterio.warp import transform
from scipy.ndimage import maximum_filter, minimum_filter

from covermap.grid import Grid
from covermap.label_settings import POLYGONS, Polygons
from covermap.labels import LABEL_SOURCES
from covermap.legend import EXCLUDED, NO_LABEL
from covermap.raster import read_window, write_raster
from covermap.section import Section

log = logging.getLogger(__name__)

NEARLY = 0.1  # of a pixel: 30.3 m are three pixels of 10 m


class Reading(Section):
    """How a file of labels becomes class ids, as `rasterize_labels` has it."""

    source: str
    codes: dict[str, int]
    attribute: str | None = None
    polygons: Polygons = POLYGONS

    def classes(self, labels: Path, block: Grid) -> np.ndarray:
        """Class ids uint8 (y, x) of a block."""
        read: np.ndarray = LABEL_SOURCES[self.source](labels, block, self.codes, self.attribute, self.polygons)
        return read


def weaken_labels(
    labels: Path,
    rasterized: Path,
    stable: list[Path],
    agreeing: Path | None,
    weakened: Path,
    block: Grid,
    reading: Reading,
    reading_agreeing: Reading | None,
    erode_pixels: int,
    ignored: list[int],
    weights: dict[int, int],
) -> None:
    """Write the labels of a block that a model learns from, and count in the log what each rule took away.

    Parameters
    ----------
    labels, reading
        The map, and how it is read: for what lies around the block.
    rasterized
        Of `rasterize_labels`.
    stable
        The same map of other years.
    agreeing, reading_agreeing
        Another map; none: there is none.
    weakened
        Output, like ``rasterized``: uint8 bands ``class`` (0 where a label is not trusted, 255 where its class is
        ignored) and ``weight`` in per cent.
    erode_pixels
        So far from another class there is no label, in pixels of the map.
    ignored, weights
        Ids of classes that are excluded, and weights of classes that have another one than 100 %.

    Raises
    ------
    SettingError, ProductError
        As `rasterize_labels` does, of any of the maps.
    """
    classes, weight = read_window(rasterized, block, fill=NO_LABEL)
    doubtful = np.zeros(block.shape, bool)
    if erode_pixels:
        doubtful |= _told(_near_borders(labels, block, reading, erode_pixels), classes, "near another class")
    for other in stable:
        doubtful |= _unlike(other, reading.classes(other, block), classes)
    if agreeing is not None and reading_agreeing is not None:
        doubtful |= _unlike(agreeing, reading_agreeing.classes(agreeing, block), classes)
    out = np.isin(classes, ignored)
    _told(out, classes, "in a class that is ignored")
    _told(doubtful | out, classes, "without a label for the model, in all")
    kept = np.where(out, EXCLUDED, np.where(doubtful & is_label(classes), NO_LABEL, classes)).astype(np.uint8)
    of_class = np.full(256, 100)
    of_class[list(weights)] = list(weights.values())
    weight = np.where(is_label(kept), np.minimum(weight, of_class[kept]), 0).astype(np.uint8)
    names = ("class", "weight")
    write_raster(weakened, np.stack([kept, weight]), block, nodata=None, descriptions=names, tags={"source": labels})


def is_label(classes: np.ndarray) -> np.ndarray:
    """Where there is a class, bool (y, x)."""
    return (classes != NO_LABEL) & (classes != EXCLUDED)


def _told(mask: np.ndarray, classes: np.ndarray, what: str) -> np.ndarray:
    """The mask, its share of all labels told in the log."""
    labelled = is_label(classes)
    count = int((mask & labelled).sum())
    log.info("%d pixels, %.1f %% of the labels, are %s", count, 100 * count / max(int(labelled.sum()), 1), what)
    return mask


def _unlike(other: Path, seen: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Where another map has another class.

    ASSUME: a map that has no label there, or excludes the pixel, says nothing against it.
    """
    both = is_label(seen) & is_label(classes)
    if not both.any():
        log.warning("%s has no label where this block has one, so it is compared with nothing", other)
    return _told(both & (seen != classes), classes, f"of another class in {other}")


def _near_borders(labels: Path, block: Grid, reading: Reading, erode_pixels: int) -> np.ndarray:
    """Where another class is near, in the block or beyond it."""
    distance_pixels = erode_pixels * map_pixel_m(labels, block, reading.source) / block.pixel_m
    radius = max(1, math.ceil(distance_pixels - NEARLY))  # a map finer than the grid mixes classes in its pixels too
    around = reading.classes(labels, block.padded(radius))
    return near_borders(around, radius)[radius:-radius, radius:-radius]


def near_borders(classes: np.ndarray, radius: int) -> np.ndarray:
    """Where the square of ``2 radius + 1`` pixels around a pixel has more than one value.

    ASSUME: where labels end is no border, since nothing is mixed up there; what is excluded has one.

    Parameters
    ----------
    classes : uint8 (y, x), class ids.
    radius : pixels.

    Returns
    -------
    bool (y, x).
    """
    side, values = 2 * radius + 1, classes.astype(np.int16)
    nothing = classes == NO_LABEL
    low = minimum_filter(np.where(nothing, np.int16(EXCLUDED + 1), values), side, mode="nearest")
    high = maximum_filter(values, side, mode="nearest")
    near: np.ndarray = (low < high) & ~nothing
    return near


def map_pixel_m(labels: Path, block: Grid, source: str) -> float:
    """The longer side of a map's pixels near a block [m]; polygons have those of the block.

    Raises
    ------
    rasterio.errors.RasterioError
        The map is no raster, which whoever read it before has told.
    """
    if source in ("vector", "urban_atlas"):
        return block.pixel_m
    with rasterio.open(labels) as raster:
        crs, across, down = raster.crs, raster.transform.a, raster.transform.e
    left, bottom, right, top = block.bounds
    (x,), (y,) = transform(block.crs, crs, [(left + right) / 2], [(bottom + top) / 2])
    east, north = transform(crs, block.crs, [x, x + across, x], [y, y, y + down])
    return max(math.hypot(east[i] - east[0], north[i] - north[0]) for i in (1, 2))
