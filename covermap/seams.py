"""Whether lines that are not of the land show in a map: those of windows and blocks, and those of its inputs.

A seam is where classes change more often than elsewhere. The changes between the pixels on the two sides of a line are
counted and compared with those between all other neighbours: 1 is no seam. So are the steps of the confidence.

Three things are kept out of it. What is usual comes from the same cell of the map, so that the land does not count.
Networks that halve the resolution and double it again have a lattice of their own, on which classes change more often;
neighbours are compared with those at the same place of it. And copies of the lines a few pixels away, which cross the
same land, tell what chance may do.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rasterio.features import geometry_mask
from shapely import clip_by_rect, union_all
from shapely.geometry.base import BaseGeometry

from covermap.blend import CONFIDENCE_NODATA
from covermap.errors import CoverageError, ProductError
from covermap.files import whole
from covermap.grid import Grid, false_origin, project
from covermap.legend import NO_LABEL
from covermap.model_settings import Prediction
from covermap.raster import read_grid, read_window
from covermap.scenes import Item, footprint, read_listing, sensor_of, tile_of, track_of
from covermap.strips import strips_of

log = logging.getLogger(__name__)

CELL = 256  # side of the cells that are compared within themselves and drawn for intervals [px]
WIDE = 16 * CELL  # columns at once [px]
MOVES = (-7, -4), (-4, 7), (4, -7), (7, 4)  # copies of the lines, so many rows and columns away [px]
GAP_M = 200  # narrower gaps between the slices of one orbit are none: outlines are given in a few corners
REACH = max(rows for rows, _ in MOVES)
DRAWS = 2000
LEAST_CELLS = 2  # of which an interval can be drawn; it is too narrow below some thirty
AXES = (0, 1)  # neighbours across horizontal lines, and across vertical ones
MEASURES = ("class", "confidence")

Regions = Callable[[Grid], list[np.ndarray]]  # of any window: layers of numbers (y, x) that differ across the lines
Read = Callable[[Grid], tuple[np.ndarray, np.ndarray]]  # of any window: classes and confidence, uint8 (y, x)


class Tally(NamedTuple):
    """Changes across lines of one kind, M measures of them: changes of class, and steps of the confidence [%]."""

    pairs: np.ndarray  # float64 (cells, axes), neighbours on two sides of a line
    compared: np.ndarray  # float64 (found and expected, alike and plain, cells, M, axes)
    moved: np.ndarray  # float64 (copies, found and expected, M)


def measure_seams(
    map: Path,
    confidence: Path,
    listing: Path,
    seams: Path,
    settings: Prediction,
    block_pixels: int,
    network_pixels: int = 1,
    scenes: list[str] | None = None,
    seed: int = 0,
) -> None:
    """Step: the seam statistic of a finished map, along its windows, its blocks and the borders of its inputs.

    Parameters
    ----------
    map, confidence : of an area, on one grid.
    listing : scenes of the area.
    seams : output, JSON: of each kind of line ``class`` and ``confidence``, as ``told`` says; none, where the map has
        no such line.
    settings : windows and overlap that the map was made with.
    block_pixels : side of its blocks.
    network_pixels : what a side of the network's input must be a multiple of, the period of its own lattice.
    scenes : ids of those that the map is made of; none: the whole list.
    seed : of the intervals.

    Raises
    ------
    CoverageError
        No two neighbours of the map were observed.
    ProductError
        A raster or the list of scenes cannot be read.
    """
    grid = read_grid(map)
    if read_grid(confidence) != grid:
        raise ProductError(f"{confidence} is not on the grid of {map}: remove both and run again")
    items = [item for name, item in read_listing(listing).items() if scenes is None or name in scenes]
    kinds = lattices(settings, block_pixels, network_pixels) | input_borders(items, grid)
    tallies = tally(partial(_read, map, confidence), grid, kinds, network_pixels)
    lines = {kind: told(counts, seed) for kind, counts in tallies.items()}
    for kind, one in lines.items():
        if one:
            log.info("%s: changes of class over what is usual: %s", kind, one["class"])
    result = {"cell_pixels": CELL, "network_pixels": network_pixels, "lines": lines}
    with whole(seams) as part:
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


# --- lines -----------------------------------------------------------------------------------------------------------


def lattices(settings: Prediction, block_pixels: int, multiple: int = 1) -> dict[str, Regions]:
    """Lines of how a map is computed, each on multiples of its period.

    ``steps``: where the weight of a window ends; ``windows``: where windows without any overlap would meet;
    ``blocks``; ``network``: the network's own lattice, of ``multiple`` pixels, if it has one.
    """
    window, step = settings.window_pixels, settings.step_pixels
    own = {"network": partial(lattice, period=multiple)} if multiple > 1 else {}
    ends = [(window - step) // 2 % step] if settings.blend == "centre" else sorted({0, window % step})
    return {
        "steps": partial(lattice, period=step, phases=ends),
        "windows": partial(lattice, period=window),
        "blocks": partial(lattice, period=block_pixels),
        **own,
    }


def lattice(grid: Grid, period: int, phases: Sequence[int] = (0,)) -> list[np.ndarray]:
    """Regions between the lines before pixels ``phase + k * period`` of the lattice that the CRS's origin begins."""
    rows, columns = (np.sum([(along - phase) // period for phase in phases], 0) for along in lattice_places(grid))
    return [rows[:, None] + columns]


def lattice_places(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Rows, counted south, and columns, counted east, from the CRS's false origin on: int32 (height,) and (width,)."""
    east0, north0 = false_origin(grid.crs)
    top, left = round((north0 - grid.top) / grid.pixel_m), round((grid.left - east0) / grid.pixel_m)
    return np.arange(top, top + grid.height, dtype=np.int32), np.arange(left, left + grid.width, dtype=np.int32)


def input_borders(items: Iterable[Item], grid: Grid) -> dict[str, Regions]:
    """Borders of what scenes (STAC items) cover, which no blending of windows can cure.

    UTM zones, MGRS tiles and relative orbits of Sentinel-2, and tracks of Sentinel-1; each the outline of all its
    scenes together. A kind that no scene tells is left out.
    """
    groups: dict[str, dict[str, list[BaseGeometry]]] = {}
    for item in items:
        radar, tile = sensor_of(item) == "sentinel1", tile_of(item)
        named = (
            {"sentinel1_tracks": track_of(item)}
            if radar
            else {"utm_zones": tile[:-3], "sentinel2_tiles": tile, "sentinel2_orbits": track_of(item)}
        )
        for kind, name in named.items():
            if name:
                groups.setdefault(kind, {}).setdefault(name, []).append(footprint(item))
    return {
        kind: partial(covered, outlines=outlines_of(found.values(), grid)) for kind, found in sorted(groups.items())
    }


def outlines_of(groups: Iterable[Sequence[BaseGeometry]], grid: Grid) -> list[BaseGeometry]:
    """Each group of footprints (lon/lat) as one outline in the grid's CRS; narrow gaps within a group are closed."""
    near = grid.padded(WIDE).bounds  # so that no cut lies within the map
    unions = (project(union_all(group), "EPSG:4326", grid.crs) for group in groups)
    closed = (one.buffer(GAP_M / 2, join_style="mitre").buffer(-GAP_M / 2, join_style="mitre") for one in unions)
    return [clip_by_rect(one, *near) for one in closed]


def covered(grid: Grid, outlines: Sequence[BaseGeometry]) -> list[np.ndarray]:
    """Which pixels each outline holds, of those outlines that end within a window."""
    return [
        geometry_mask([outline], grid.shape, grid.transform, invert=True)
        for outline in outlines
        if not outline.is_empty and outline.boundary.intersects(grid.polygon)
    ]


# --- counts ----------------------------------------------------------------------------------------------------------


def tally(read: Read, grid: Grid, kinds: Mapping[str, Regions], multiple: int = 1) -> dict[str, Tally | None]:
    """Changes across lines of several kinds and what is expected of them, in one pass over a map.

    Memory is bounded by one row of cells of at most ``WIDE`` pixels, whatever the map.

    Parameters
    ----------
    read : gives classes (0 no data) and confidence of any window, no data beyond the map.
    grid : of the map.
    kinds : regions that are parted by the lines of each kind.
    multiple : period of the network's own lattice [px].

    Raises
    ------
    CoverageError
        No two neighbours were observed.
    """
    parts: dict[str, list[Tally]] = {kind: [] for kind in kinds}
    seen = False
    for rows, columns in product(strips_of(grid.height, CELL), strips_of(grid.width, WIDE)):
        shape = rows.stop - rows.start, columns.stop - columns.start
        window = grid.window(rows.start - 1, columns.start - 1, shape[0] + 1, shape[1] + 1)
        pairs = _pairs(*read(window), window.window(1, 1, *shape), multiple)
        seen = seen or any(one.both.any() for one in pairs)
        for kind, regions in kinds.items():
            parted = regions(window.padded(REACH))
            if any(layer.min() != layer.max() for layer in parted):
                parts[kind].append(_across(parted, pairs))
    if not seen:
        raise CoverageError("no two neighbouring pixels of the map were observed: check the scenes and their clouds")
    return {kind: _together(some) for kind, some in parts.items()}


class _Pairs(NamedTuple):
    """Every pixel and the one before it, along one axis."""

    axis: int
    both: np.ndarray  # bool (y, x), observed
    measures: tuple[np.ndarray, ...]  # (y * x,) each: bool, of another class; uint8, step of the confidence [%]
    strata: np.ndarray  # int32 (y * x,), number of the cell and of the place in the network's lattice
    total: np.ndarray  # float64 (cells, places in the lattice, 1 + M): all pairs, and the sums of their measures


def _pairs(classes: np.ndarray, confidence: np.ndarray, grid: Grid, multiple: int) -> list[_Pairs]:
    """Pairs of a row of cells along each axis; the layers have a row and a column before those of the grid."""
    cells = np.arange(grid.width, dtype=np.int32) // CELL
    rows, columns = (places % multiple for places in lattice_places(grid))
    strata = cells * multiple + rows[:, None], np.broadcast_to(cells * multiple + columns, grid.shape)
    pairs = []
    for axis in AXES:
        (class_a, class_b), (sure_a, sure_b) = (_before(layer, axis) for layer in (classes, confidence))
        both = (class_a != NO_LABEL) & (class_b != NO_LABEL)
        measures = class_a != class_b, np.maximum(sure_a, sure_b) - np.minimum(sure_a, sure_b)
        flat = tuple(measure.ravel() for measure in measures)
        stratum = strata[axis].ravel()
        total = _sums(both, flat, stratum, (int(cells[-1]) + 1, multiple))
        pairs.append(_Pairs(axis, both, flat, stratum, total))
    return pairs


def _before(layer: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels above, or to the left, and the pixels themselves; of a layer with one row and column more."""
    return (layer[:-1, 1:] if axis == 0 else layer[1:, :-1]), layer[1:, 1:]


def _across(layers: Sequence[np.ndarray], pairs: Sequence[_Pairs]) -> Tally:
    """The tally of one row of cells."""
    along, compared, moved = zip(*(_along(layers, one) for one in pairs), strict=True)
    return Tally(np.stack(along, -1), np.stack(compared, -1), np.stack(moved).sum(0))


def _along(layers: Sequence[np.ndarray], pairs: _Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one axis what :class:`Tally` has."""
    line = _parted(layers, pairs.axis, (0, 0))
    on = _by_stratum(line & pairs.both, pairs)
    off = pairs.total - on
    compared = [found_and_expected(on, off), found_and_expected(*(each.sum(1, keepdims=True) for each in (on, off)))]
    copies = [_by_stratum(_parted(layers, pairs.axis, move) & ~line & pairs.both, pairs) for move in MOVES]
    moved = [found_and_expected(copy, off).sum(1) for copy in copies]
    return on[..., 0].sum(1), np.stack(compared, 1), np.stack(moved)


def _parted(layers: Sequence[np.ndarray], axis: int, move: tuple[int, int]) -> np.ndarray:
    """Where a line, moved by some rows and columns, goes between two neighbours: bool (y, x)."""
    rows, columns = (slice(REACH - by, (-REACH - by) or None) for by in move)
    pairs = [_before(layer[rows, columns], axis) for layer in layers]
    different: np.ndarray = np.logical_or.reduce([before != after for before, after in pairs])
    return different


def _by_stratum(chosen: np.ndarray, pairs: _Pairs) -> np.ndarray:
    """Like the total, of the pairs that were chosen, bool (y, x)."""
    return _sums(chosen, pairs.measures, pairs.strata, pairs.total.shape[:2])


def _sums(chosen: np.ndarray, measures: Sequence[np.ndarray], strata: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    at = np.flatnonzero(chosen)
    count = partial(np.bincount, strata[at], minlength=math.prod(shape))
    sums = [count(), *(count(weights=measure[at]) for measure in measures)]
    return np.stack(sums, -1).reshape(*shape, -1).astype(np.float64)


def found_and_expected(on: np.ndarray, off: np.ndarray) -> np.ndarray:
    """Sums across lines, and as they would be if lines were like other pairs of their stratum: (2, cells, M).

    Parameters
    ----------
    on, off : pairs across lines, and the others, of each stratum: (cells, strata, 1 + M), their number and the sums of
        M measures. A stratum of lines alone is left out, since it tells nothing.
    """
    told = off[..., :1] > 0
    usual = off[..., 1:] / np.maximum(off[..., :1], 1)
    return np.stack([(on[..., 1:] * told).sum(1), (on[..., :1] * usual).sum(1)])


def _together(parts: Sequence[Tally]) -> Tally | None:
    if not parts:
        return None
    pairs, compared, moved = zip(*parts, strict=True)
    return Tally(np.concatenate(pairs), np.concatenate(compared, 2), np.stack(moved).sum(0))


# --- what is told ----------------------------------------------------------------------------------------------------


def told(counts: Tally | None, seed: int = 0) -> dict[str, Any] | None:
    """What a kind of line shows; none, where the map has no such line.

    ``pairs`` of neighbours, and for ``class`` and ``confidence`` each:

    - ``ratio`` of what was found across the lines to what is usual in the same cells and at the same places of the
      network's own lattice, ``low`` and ``high`` (95 %), ``horizontal_lines`` and ``vertical_lines`` apart;
    - ``moved_mean``, ``moved_low`` and ``moved_high``: mean, lowest and highest ratio of the copies of the lines;
    - ``plain``, ``plain_low`` and ``plain_high``: likewise over all other neighbours of the same cells.

    A ratio is none where nothing is to be expected.
    """
    if counts is None or not counts.pairs.sum():
        return None
    result: dict[str, Any] = {"pairs": int(counts.pairs.sum())}
    for number, measure in enumerate(MEASURES):
        (found, expected), (any_found, any_expected) = counts.compared[:, :, :, number].swapaxes(0, 1)  # (cells, axes)
        low, high = interval(found.sum(1), expected.sum(1), seed)
        plain_low, plain_high = interval(any_found.sum(1), any_expected.sum(1), seed)
        horizontal, vertical = (_ratio(*sums) for sums in zip(found.sum(0), expected.sum(0), strict=True))
        copies = [some for some in (_ratio(*copy) for copy in counts.moved[:, :, number]) if some is not None]
        result[measure] = {
            "ratio": _ratio(found.sum(), expected.sum()),
            "low": low,
            "high": high,
            "horizontal_lines": horizontal,
            "vertical_lines": vertical,
            "moved_mean": float(np.mean(copies)) if copies else None,
            "moved_low": min(copies, default=None),
            "moved_high": max(copies, default=None),
            "plain": _ratio(any_found.sum(), any_expected.sum()),
            "plain_low": plain_low,
            "plain_high": plain_high,
        }
    return result


def interval(found: np.ndarray, expected: np.ndarray, seed: int = 0) -> tuple[float | None, float | None]:
    """95 % percentile interval of the ratio of two sums over cells (n,), which are drawn with replacement.

    Cells without any line say nothing; of fewer than two others there is no interval.
    """
    found, expected = found[expected > 0], expected[expected > 0]
    cells = len(expected)
    if cells < LEAST_CELLS:
        return None, None
    times = np.random.default_rng(seed).multinomial(cells, np.full(cells, 1 / cells), size=DRAWS)
    low, high = np.percentile((times @ found) / (times @ expected), [2.5, 97.5])
    return float(low), float(high)


def _ratio(found: float, expected: float) -> float | None:
    return float(found / expected) if expected > 0 else None


# --- files -----------------------------------------------------------------------------------------------------------


def _read(map: Path, confidence: Path, window: Grid) -> tuple[np.ndarray, np.ndarray]:
    return read_window(map, window, fill=NO_LABEL)[0], read_window(confidence, window, fill=CONFIDENCE_NODATA)[0]
