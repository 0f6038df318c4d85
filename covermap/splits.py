"""Which tiles teach, which choose the epoch and which are compared: splits by place, so that none leaks into another.

Cells are squares of the CRS's own lattice. ``blocks`` gives each its split by a pure function of its place and the
seed; ``stratified`` shares out the classes as well, and may change when an area grows; ``random`` shuffles tiles, as
published systems did, and leaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import shapely

from covermap.grid import Grid, false_origin
from covermap.model_settings import Tiles

BUFFER, TRAIN, VALIDATION, TEST = range(4)
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
YIELDS = {"train": 0, "test": 1, "validation": 2}  # of two tiles that are too near, the one of the higher number goes

# Steps of Roberts' R2 sequence (the plane's golden ratio): its points are spread more evenly than random ones.
R2_EAST, R2_NORTH = 0.7548776662466927, 0.5698402909980532

SAMPLING_CAP = 20.0  # ASSUME: no tile is drawn more often than so many times another, else a few are learnt by heart
POWERS = {"inverse": 1.0, "inverse_sqrt": 0.5}
ZONES_DIFFER = 1.01  # a length in one zone's metres is this much longer at most in its neighbour's

Cell = tuple[str, int, int]  # CRS, and lattice index to the east and to the north


# --- cells ------------------------------------------------------------------------------------------------------------


def cells_of(grid: Grid, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lattice index of the cell of every column and row, and the pixel's place within it."""
    east0, north0 = false_origin(grid.crs)
    columns = round((grid.left - east0) / grid.pixel_m) + np.arange(grid.width)
    rows = round((grid.top - north0) / grid.pixel_m) - 1 - np.arange(grid.height)
    return columns // pixels, rows // pixels, columns % pixels, rows % pixels


def cell_names(grid: Grid, settings: Tiles) -> np.ndarray:
    """Number of the split cell of every pixel of ``grid``: int64 (y, x), the same for one cell everywhere."""
    x, y, _, _ = cells_of(grid, settings.cell_pixels)
    return (y[:, None] + 2**15) * 2**16 + (x[None, :] + 2**15)


def split_of_cell(x: np.ndarray, y: np.ndarray, settings: Tiles, seed: int) -> np.ndarray:
    """Split of cells (x, y), a pure function of their place: uint8.

    ASSUME: cells are held out evenly over the plane instead of at random, so that a small area has all splits and no
    region goes unseen; the seed moves the pattern.
    """
    return split_at(_place_of_cell(x, y, seed), settings)


def _place_of_cell(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    place: np.ndarray = (x * R2_EAST + y * R2_NORTH + seed * (math.sqrt(5) - 1) / 2) % 1
    return place


def split_at(place: np.ndarray, settings: Tiles) -> np.ndarray:
    """Split of what stands at ``place`` (0 to 1) of a pattern: uint8. Each place is test in exactly one fold."""
    if settings.folds is None:
        held_out = np.where(place < settings.test, TEST, VALIDATION)
        return np.where(place < settings.test + settings.validation, held_out, TRAIN).astype(np.uint8)
    tested = (place * settings.folds).astype(int) % settings.folds == settings.fold
    after = (place - (settings.fold + 1) / settings.folds) % 1  # the validation cells follow those of the fold
    return np.where(tested, TEST, np.where(after < settings.validation, VALIDATION, TRAIN)).astype(np.uint8)


def split_of(grid: Grid, settings: Tiles, seed: int) -> np.ndarray:
    """Split ``blocks`` of every pixel of ``grid``: uint8 (y, x), BUFFER, TRAIN, VALIDATION or TEST.

    The buffer is taken from the rims of held-out cells: training keeps all its pixels, and no held-out pixel lies
    nearer than ``buffer_pixels`` to another split.
    """
    x, y, inner_x, inner_y = cells_of(grid, settings.cell_pixels)
    split = split_of_cell(x[None, :], y[:, None], settings, seed)
    low, high = settings.buffer_pixels, settings.cell_pixels - settings.buffer_pixels
    core = ((inner_x >= low) & (inner_x < high))[None, :] & ((inner_y >= low) & (inner_y < high))[:, None]
    return np.where(core | (split == TRAIN), split, BUFFER).astype(np.uint8)


def held_out(grid: Grid, settings: Tiles, seed: int, corners: np.ndarray | None = None) -> np.ndarray:
    """Pixels of ``grid`` that a map may be compared at: bool (y, x).

    Parameters
    ----------
    grid : of the map, or of a part of it.
    settings, seed : of the split.
    corners : easting and northing [m] of the upper left corners of the area's test tiles (n, 2), where these alone
        tell what is held out; none: the test cells of ``blocks``, less their rims.
    """
    if corners is None:
        core: np.ndarray = split_of(grid, settings, seed) == TEST
        return core
    inside = np.zeros(grid.shape, bool)
    columns = np.rint((corners[:, 0] - grid.left) / grid.pixel_m).astype(int)
    rows = np.rint((grid.top - corners[:, 1]) / grid.pixel_m).astype(int)
    for row, column in zip(rows, columns, strict=True):
        inside[max(row, 0) : max(row + settings.pixels, 0), max(column, 0) : max(column + settings.pixels, 0)] = True
    return inside


def corners_of_tests(index: Path, area: str) -> np.ndarray:
    """Easting and northing [m] of the upper left corners of an area's test tiles (n, 2), from the table of tiles."""
    table = pd.read_parquet(index, columns=["aoi", "split", "easting_m", "northing_m"])
    return table.loc[(table.aoi == area) & (table.split == "test"), ["easting_m", "northing_m"]].to_numpy()


# --- ways to split ----------------------------------------------------------------------------------------------------


def stratify(pixels: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Part of each cell, such that every class has its share in each part as far as whole cells allow: int (n,).

    Iterative stratification (Sechidis et al. 2011, doi:10.1007/978-3-642-23808-6_10, algorithm 1) with pixels in place
    of labels: the rarest class that is left comes first, and its cells go to the parts that lack most. As cells hold
    several classes, what a part lacks is the sum of squares of the lacking shares of all of them; but parts without
    the rarest class take turns first. ASSUME: the larger of its cells come first, since small ones can still make up
    for them; which are equally large (to a factor of two), the order of ``pixels`` decides.

    Parameters
    ----------
    pixels : int (n, K), of each class in each cell.
    shares : of the parts, 1 together.
    """
    sizes = pixels / np.maximum(pixels.sum(0), 1)  # (n, K), each class 1 in all
    lacking = np.repeat(np.array(shares)[:, None], pixels.shape[1], 1)  # (parts, K)
    parts = np.full(len(pixels), int(np.argmax(shares)))
    without = np.ones(lacking.shape, bool)
    left = np.asarray(pixels.any(1))
    while left.any():
        totals = pixels[left].sum(0)
        rarest = int(np.argmin(np.where(totals > 0, totals, np.iinfo(np.int64).max)))
        cells = np.flatnonzero(left & (pixels[:, rarest] > 0))
        for cell in cells[np.argsort(-np.log2(pixels[cells, rarest]).astype(int), kind="stable")]:
            worse = (sizes[cell] * (sizes[cell] - 2 * lacking)).sum(1) / shares
            worse[~without[:, rarest] & without[:, rarest].any()] = np.inf
            parts[cell] = part = int(np.argmin(worse.round(12)))
            lacking[part] -= sizes[cell]
            without[part] &= pixels[cell] == 0
        left[cells] = False
    return parts


def stratified_cells(pixels: Mapping[Cell, np.ndarray], settings: Tiles, seed: int) -> dict[Cell, int]:
    """Split of each cell such that every class has its share in each split.

    Cells are taken in the order of the pattern of ``blocks``, so the seed counts here too. Unlike there, a cell's
    split depends on all the others: it may change when an area grows, or its labels do.

    Parameters
    ----------
    pixels : of each class (K,), by cell.
    settings, seed : of the split; with folds, each cell is in one fold whichever of them is ``fold``.
    """
    cells = sorted(pixels, key=lambda cell: (float(_place_of_cell(np.array(cell[1]), np.array(cell[2]), seed)), cell))
    counts = np.array([pixels[cell] for cell in cells], np.int64)
    if settings.folds is None:
        shares = {TEST: settings.test, VALIDATION: settings.validation}
        chosen = stratify(counts, [1 - sum(shares.values()), *shares.values()])
        splits = np.array([TRAIN, *shares])[chosen]
    else:
        tested = stratify(counts, [1 / settings.folds] * settings.folds) == settings.fold
        validation = settings.validation / (1 - 1 / settings.folds)  # of the cells that are left
        splits = np.full(len(cells), TEST)
        splits[~tested] = np.array([TRAIN, VALIDATION])[stratify(counts[~tested], [1 - validation, validation])]
    return dict(zip(cells, splits.tolist(), strict=True))


def shuffled(count: int, settings: Tiles, seed: int) -> np.ndarray:
    """Split of each of ``count`` tiles, whatever their place: uint8. Neighbours land in different splits."""
    place = np.empty(count)
    place[np.random.default_rng(seed).permutation(count)] = np.arange(count) / max(count, 1)
    return split_at(place, settings)


# --- distances --------------------------------------------------------------------------------------------------------


def risky_pairs(
    crs: Mapping[str, str], test_on: Mapping[str, Sequence[str]], lattice: bool = True
) -> list[tuple[str, str]]:
    """Pairs of areas, both ways round, whose tiles the lattice of cells does not keep apart.

    Parameters
    ----------
    crs : of each area: cells of two lattices do not match.
    test_on : areas held out whole, each with those that it shares a time with. Where the time is another, the same
        ground is what is to be tested.
    lattice : whether cells are what is split; where tiles are, only areas that are held out whole are kept apart.
    """

    def at_risk(one: str, other: str) -> bool:
        if one in test_on or other in test_on:
            return other in test_on.get(one, ()) or one in test_on.get(other, ())
        return lattice and crs[one] != crs[other]

    return [pair for pair in permutations(crs, 2) if at_risk(*pair)]


def too_near(
    frame: pd.DataFrame, pairs: Iterable[tuple[str, str]], crs: Mapping[str, str], side_m: float, buffer_m: float
) -> np.ndarray:
    """Held-out tiles that lie within the buffer of another area's tile of another split: bool (n,).

    As within one lattice, training keeps its tiles, and a test tile is kept before one of validation.

    Parameters
    ----------
    frame : aoi, split, easting_m and northing_m of all tiles.
    pairs : areas whose tiles are to be apart.
    crs : of each area.
    side_m, buffer_m : of a tile, and between two.
    """
    near = np.zeros(len(frame), bool)
    yields = frame.split.map(YIELDS).to_numpy()
    east, north = frame.easting_m.to_numpy(), frame.northing_m.to_numpy()
    places = frame.groupby("aoi").indices
    for one, other in pairs:
        mine, theirs = places.get(one, np.empty(0, int)), places.get(other, np.empty(0, int))
        alike = crs[one] == crs[other]
        reach = buffer_m - 1e-3 if alike else buffer_m * ZONES_DIFFER
        rims = boxes(east[mine], north[mine], side_m, reach)
        outlines = boxes(east[theirs], north[theirs], side_m)
        tree = shapely.STRtree(outlines if alike else _moved(outlines, crs[other], crs[one]))
        first, second = tree.query(rims, predicate="intersects")
        near[mine[first[yields[mine[first]] > yields[theirs[second]]]]] = True
    return near


def boxes(east: np.ndarray, north: np.ndarray, side_m: float, reach_m: float = 0) -> np.ndarray:
    """Squares by their upper left corners, widened on every side: polygons (n,)."""
    squares: np.ndarray = shapely.box(
        east - reach_m, north - side_m - reach_m, east + side_m + reach_m, north + reach_m
    )
    return squares


def _moved(outlines: np.ndarray, source: str, target: str) -> np.ndarray:
    """Polygons in another CRS; those that have no place in it are left empty."""
    from pyproj import Transformer

    transformer = Transformer.from_crs(source, target, always_xy=True)
    moved: np.ndarray = shapely.transform(outlines, transformer.transform, interleaved=False)
    return np.where(np.isfinite(shapely.bounds(moved)).all(-1), moved, shapely.from_wkt("POLYGON EMPTY"))


def cautions(settings: Tiles, margin_pixels: int) -> list[str]:
    """What a reader of the figures must know of the split.

    Parameters
    ----------
    settings : of the split.
    margin_pixels : how far from a pixel the network looks. ASSUME: a smaller buffer is told, but no error: what then
        reaches a test pixel are inputs of training ground at the rim of its view, which weigh little (Luo et al. 2016,
        arXiv:1701.04128), and never its labels.
    """
    if settings.split == "random":
        return [
            "Tiles were split at random: neighbours of test tiles were learnt from, so the figures leak and flatter "
            "the map. They are for comparison with systems that were split this way."
        ]
    if settings.buffer_pixels < margin_pixels:
        return [
            f"The network looks {margin_pixels} px far, but splits are {settings.buffer_pixels} px apart: at the rims "
            "of held-out cells it sees inputs, not labels, of training ground."
        ]
    return []


# --- balance ----------------------------------------------------------------------------------------------------------


def drawing_weights(pixels: np.ndarray, balance: str) -> np.ndarray:
    """How often each training tile is drawn: float32 (n,), 1 on average.

    Classes are drawn with a probability in proportion to n^q for a class of n pixels (Kang et al. 2020,
    arXiv:1910.09217, equation 1), q being 0 for ``inverse`` and 1/2 for ``inverse_sqrt``, hence a pixel with n^(q-1);
    a tile is drawn as its labelled pixels are on average. No weight is more than `SAMPLING_CAP` times another.

    Parameters
    ----------
    pixels : int (n, K), of each class in each training tile.
    balance : ``none``, ``inverse`` or ``inverse_sqrt``.
    """
    if balance == "none" or not pixels.any():
        return np.ones(len(pixels), np.float32)
    of_class = np.maximum(pixels.sum(0), 1) ** -POWERS[balance]
    weights = pixels @ of_class / np.maximum(pixels.sum(1), 1)
    weights = np.minimum(weights, SAMPLING_CAP * weights[weights > 0].min())
    return (weights / weights.mean()).astype(np.float32)
