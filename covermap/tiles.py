"""Training tiles: where they lie, which split they belong to, and the store that training reads.

A tile is a square of a block. Its split is that of the cell it lies in; cells are squares of the CRS's own lattice, so
a tile keeps its split when an area grows.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file

from covermap.errors import CoverageError, ProductError
from covermap.files import whole
from covermap.grid import Grid, false_origin
from covermap.inputs import DAY, NODATA, Meaning, is_filled, meaning_of, must_mean, observed
from covermap.legend import EXCLUDED, NO_LABEL
from covermap.raster import read_window
from covermap.settings import Tiles
from covermap.stack import ROWS, read_stack

log = logging.getLogger(__name__)

BUFFER, TRAIN, VALIDATION, TEST = range(4)
MAX_CLOUD = 15  # per cent of a tile, where nothing else is set
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}

# Steps of Roberts' R2 sequence (the plane's golden ratio): its points are spread more evenly than random ones.
R2_EAST, R2_NORTH = 0.7548776662466927, 0.5698402909980532


def _cells(grid: Grid, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Lattice index of the cell of every column and row, and the pixel's place within it."""
    east0, north0 = false_origin(grid.crs)
    columns = round((grid.left - east0) / grid.pixel_m) + np.arange(grid.width)
    rows = round((grid.top - north0) / grid.pixel_m) - 1 - np.arange(grid.height)
    return columns // pixels, rows // pixels, columns % pixels, rows % pixels


def _split_of_cell(x: np.ndarray, y: np.ndarray, settings: Tiles, seed: int) -> np.ndarray:
    """Split of cells (x, y), a pure function of their place.

    ASSUME: cells are held out evenly over the plane instead of at random, so that a small area has all splits and no
    region goes unseen; the seed moves the pattern.
    """
    place = (x * R2_EAST + y * R2_NORTH + seed * (math.sqrt(5) - 1) / 2) % 1
    held_out = np.where(place < settings.test, TEST, VALIDATION)
    return np.where(place < settings.test + settings.validation, held_out, TRAIN).astype(np.uint8)


def split_of(grid: Grid, settings: Tiles, seed: int) -> np.ndarray:
    """Split of every pixel of ``grid``: uint8 (y, x), BUFFER, TRAIN, VALIDATION or TEST.

    The buffer is taken from the rims of held-out cells: training keeps all its pixels, and no held-out pixel lies
    nearer than ``buffer_pixels`` to another split.
    """
    x, y, inner_x, inner_y = _cells(grid, settings.cell_pixels)
    split = _split_of_cell(x[None, :], y[:, None], settings, seed)
    low, high = settings.buffer_pixels, settings.cell_pixels - settings.buffer_pixels
    core = ((inner_x >= low) & (inner_x < high))[None, :] & ((inner_y >= low) & (inner_y < high))[:, None]
    return np.where(core | (split == TRAIN), split, BUFFER).astype(np.uint8)


def cell_names(grid: Grid, settings: Tiles) -> np.ndarray:
    """Number of the split cell of every pixel of ``grid``: int64 (y, x), the same for one cell everywhere."""
    x, y, _, _ = _cells(grid, settings.cell_pixels)
    return (y[:, None] + 2**15) * 2**16 + (x[None, :] + 2**15)


def tile_table(
    label: np.ndarray, block: Grid, settings: Tiles, seed: int, classes: int, clouds: np.ndarray | None = None
) -> pd.DataFrame:
    """Tiles of a block, in rows then columns.

    Parameters
    ----------
    label : uint8 (y, x), class ids of the block; 0 and 255 carry no label.
    block : grid of ``label``.
    settings, seed : of the split.
    classes : number of classes K.
    clouds : int (2, y, x), steps in which Sentinel-2 saw each pixel, but never clear, and in which it saw it at all;
        none: a model without it.

    Returns
    -------
    One row a tile: row, column (first pixel within the block), split, easting_m, northing_m (upper left corner),
    labelled (share), cloudy (share of what was seen, over pixels and steps), class_1 ... class_K (pixels).
    """
    rows = []
    for row, column, split in _tile_places(block, settings, seed):
        place = np.s_[row : row + settings.pixels, column : column + settings.pixels]
        pixels = label[place]
        counts = np.bincount(pixels.ravel(), minlength=256)
        labelled = 1 - (counts[NO_LABEL] + counts[EXCLUDED]) / settings.pixels**2
        if labelled > 0 and labelled >= settings.min_labelled:
            corner = block.window(row, column, 1, 1)
            hidden, seen = (0, 0) if clouds is None else clouds[:, *place].sum((1, 2), dtype=np.int64)
            shares = labelled, hidden / max(seen, 1)
            rows.append((row, column, split, corner.left, corner.top, *shares, *counts[1 : classes + 1]))
    names = ["row", "column", "split", "easting_m", "northing_m", "labelled", "cloudy"]
    table = pd.DataFrame(rows, columns=names + [f"class_{i}" for i in range(1, classes + 1)])
    table["split"] = table["split"].map({number: name for name, number in SPLITS.items()})
    return table


def _tile_places(block: Grid, settings: Tiles, seed: int) -> Iterator[tuple[int, int, int]]:
    """Row, column and split of the tiles of a block: every stride from the corner of each cell, or of its core."""
    x, y, inner_x, inner_y = _cells(block, settings.cell_pixels)
    for top in range(-int(settings.cell_pixels - 1 - inner_y[0]), block.height, settings.cell_pixels):
        for left in range(-int(inner_x[0]), block.width, settings.cell_pixels):
            split = int(_split_of_cell(x[max(left, 0)], y[max(top, 0)], settings, seed))
            rim = 0 if split == TRAIN else settings.buffer_pixels
            offsets = range(rim, settings.cell_pixels - rim - settings.pixels + 1, settings.stride_pixels)
            for row, column in ((top + down, left + along) for down in offsets for along in offsets):
                inside = 0 <= row <= block.height - settings.pixels and 0 <= column <= block.width - settings.pixels
                if inside:
                    yield row, column, split


def _clouds(stack: Path, block: Grid) -> np.ndarray:
    """Steps in which Sentinel-2 saw each pixel of a block, but never clear, and all in which it saw it: (2, y, x)."""
    counts = np.empty((2, *block.shape), np.int16)
    for row in range(0, block.height, ROWS):
        rows = slice(row, min(row + ROWS, block.height))
        read = read_stack(stack, rows, slice(0, block.width), names=["observed", "clear"])
        seen = read["observed"] > 0
        counts[:, rows] = (seen & (read["clear"] == 0)).sum(0), seen.sum(0)
    return counts


def index_tiles(
    labels: list[Path],
    index: Path,
    blocks: list[tuple[str, str, Grid]],
    tiles: Tiles,
    seed: int,
    classes: int,
    stacks: list[Path] | None = None,
) -> None:
    """Table of all tiles of a model: aoi, block, row, column, split, place and class counts, as GeoParquet.

    Tiles of which more than ``tiles.max_cloud`` (none: 15 %) of what Sentinel-2 saw, over pixels and steps, was never
    clear are left out and counted in the log. What no scene reached is no cloud.

    Parameters
    ----------
    labels : label rasters, one a block.
    index : the table.
    blocks : name of the area, name and grid of each block, in the order of ``labels``.
    tiles, seed : of the split.
    classes : number of classes.
    stacks : stacks of the blocks, in their order; none for a model that clouds do not matter to.

    Raises
    ------
    CoverageError
        The labels of an area have no labelled pixel, or a split has no tile.
    """
    import geopandas
    from shapely.geometry import box

    tables, labelled = [], dict.fromkeys(aoi for aoi, _, _ in blocks)
    for path, stack, (aoi, name, grid) in zip(labels, stacks or repeat(None, len(labels)), blocks, strict=True):
        label = read_window(path, grid, fill=NO_LABEL, indexes=[1])[0]
        labelled[aoi] = labelled[aoi] or bool(((label != NO_LABEL) & (label != EXCLUDED)).any())
        table = tile_table(label, grid, tiles, seed, classes, _clouds(stack, grid) if stack else None)
        table.insert(0, "aoi", aoi)
        table.insert(1, "block", name)
        side = tiles.pixels * grid.pixel_m
        outlines = [box(e, n - side, e + side, n) for e, n in zip(table.easting_m, table.northing_m, strict=True)]
        tables.append(geopandas.GeoDataFrame(table, geometry=outlines, crs=grid.crs).to_crs("EPSG:4326"))
    if bare := [aoi for aoi, any_label in labelled.items() if not any_label]:
        raise CoverageError(
            f"the labels of area {bare[0]} have no labelled pixel in it: check that aois.{bare[0]}.labels.path covers "
            "the area and that labels.legend has a class for the codes of the file"
        )
    frame = pd.concat(tables, ignore_index=True)
    limit = MAX_CLOUD if tiles.max_cloud is None else tiles.max_cloud
    cloudy = frame.cloudy > limit / 100
    log.info("%d of %d tiles left out: more than %g %% never clear", cloudy.sum(), len(frame), limit)
    frame = frame[~cloudy].reset_index(drop=True)
    for split in SPLITS:
        chosen = frame[frame.split == split]
        log.info("%s: %d tiles", split, len(chosen))
        if chosen.empty:
            raise CoverageError(
                f"no {split} tile of {tiles.pixels} px: {len(frame)} tiles in all on cells of {tiles.cell_pixels} px, "
                f"besides {cloudy.sum()} of which more than {limit:g} % was never clear; lessen "
                "tiles.cell_pixels, buffer_pixels or min_labelled, raise tiles.max_cloud, or enlarge the area"
            )
    with whole(index) as part:
        frame.to_parquet(part)


def pack_tiles(index: Path, stack: Path, labels: Path, packed: Path, aoi: str, name: str, tiles: Tiles) -> None:
    """Contiguous integers of a block's tiles, in the order of the index: s1, s2, terrain, label and weight.

    The file is safetensors: a header and raw arrays (tile, ..., y, x), of which training reads one tile at a time.
    A pixel without any observation gets weight 0, and so does one in radar layover or shadow. Where gaps of s2 were
    filled, its days come with it. The header says what the axes of the inputs mean.
    """
    table = pd.read_parquet(index, columns=["aoi", "block", "row", "column"])
    table = table[(table.aoi == aoi) & (table.block == name)]
    parts: dict[str, list[np.ndarray]] = {}
    meaning = meaning_of(stack)
    keys = [*NODATA, *([DAY] if is_filled(meaning) else [])]
    for row, column in zip(table.row, table.column, strict=True):
        place = slice(row, row + tiles.pixels), slice(column, column + tiles.pixels)
        tile = _cut(stack, labels, *place, keys)
        for key, values in tile.items():
            parts.setdefault(key, []).append(values)
    log.info("%d tiles of block %s", len(table), name)
    with whole(packed) as part:
        header = {"meaning": json.dumps(meaning)}
        save_file({key: np.stack(values) for key, values in parts.items()}, part, header)


def _cut(stack: Path, labels: Path, rows: slice, columns: slice, keys: list[str]) -> dict[str, np.ndarray]:
    import rasterio
    from rasterio.windows import Window

    tile = read_stack(stack, rows, columns, (*keys, "distorted"))
    with rasterio.open(labels) as raster:
        label, weight = raster.read(window=Window.from_slices(rows, columns))
    inputs = {key: tile[key] for key in keys if key in tile}
    trusted = observed(inputs) & (tile.get("distorted", 0) == 0)
    return {**inputs, "label": label, "weight": np.where(trusted, weight, 0).astype(np.uint8)}


class TileStore:
    """Tiles of one split of a packed store, each read by itself; files are opened by the process that reads them."""

    def __init__(self, packed: dict[tuple[str, str], Path], index: Path, split: str) -> None:
        table = pd.read_parquet(index).drop(columns="geometry")
        table["position"] = table.groupby(["aoi", "block"]).cumcount()
        self.table = table[table.split == split].reset_index(drop=True)
        self.packed = packed
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """s1 int16 (T, P, H, W), s2 uint16 (D, B, H, W), terrain int16 (1, L, H, W), day int16 (D, H, W), label uint8
        (H, W), weight uint8 (H, W) in per cent; of the inputs those that were packed."""
        tile = self.table.iloc[number]
        file = self._file(self.packed[tile.aoi, tile.block])
        return {key: file.get_slice(key)[tile.position] for key in file.keys()}  # noqa: SIM118 (no iterator)

    def meaning(self, keys: Iterable[str]) -> Meaning:
        """What the axes of the inputs ``keys`` mean, in all stores alike; ModelError where two stores differ."""
        meanings = {path: _meaning_in(self._file(path), path) for path in self.packed.values()}
        first, expected = next(iter(meanings.items()))
        expected = {key: expected.get(key, {}) for key in keys}
        for path, found in meanings.items():
            must_mean(expected, found, path, f"{first} has")
        return expected

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, "numpy")
            except Exception as error:
                raise ProductError(f"tile store {path} is broken ({error}): remove it and run again") from error
        return self._open[path]

    def batch(self, numbers: Iterator[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Tiles stacked on a new first axis."""
        tiles = [self[int(number)] for number in numbers]
        return {key: np.stack([tile[key] for tile in tiles]) for key in tiles[0]}


def _meaning_in(file: Any, path: Path) -> Meaning:
    try:
        meaning: Meaning = json.loads(file.metadata()["meaning"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProductError(f"tile store {path} does not say what its inputs mean: remove it and run again") from error
    return meaning
