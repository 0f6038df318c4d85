"""Training tiles: where they lie, what their labels are, which split they belong to, and how often they are drawn.

A tile is a square of a block. Its split is that of the cell it lies in; cells are squares of the CRS's own lattice, so
a tile keeps its split when an area grows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import date
from itertools import pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from covermap.errors import CoverageError
from covermap.files import whole
from covermap.grid import Grid
from covermap.inputs import KEYS, SATELLITES, Steps, chosen_steps, observed, seen_steps
from covermap.legend import EXCLUDED, NO_LABEL
from covermap.model_settings import Tiles
from covermap.raster import read_window
from covermap.splits import (
    SPLITS,
    TEST,
    TRAIN,
    Cell,
    boxes,
    cautions,
    cells_of,
    drawing_weights,
    risky_pairs,
    shuffled,
    split_of_cell,
    stratified_cells,
    too_near,
)
from covermap.stack import ROWS, read_stack

if TYPE_CHECKING:
    import geopandas

log = logging.getLogger(__name__)

MAX_CLOUD = 15  # per cent of a tile, where nothing else is set
CACHED_ROWS = 16  # of a block: what is computed of them stays in the processor's cache
NAMES = {number: name for name, number in SPLITS.items()}

SplitOf = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of cells (x, y) of a lattice


# --- where tiles lie -------------------------------------------------------------------------------------------------


def tile_places(block: Grid, settings: Tiles, split_of: SplitOf) -> np.ndarray:
    """Row, column and split of the tiles of a block: int (n, 3).

    Tiles stand every stride from the corner of each cell, or of its core where it is held out, cell by cell in rows
    then columns. Those of a random split stand every stride from the corner of the block, and have no split yet.
    """
    if settings.split == "random":
        offsets = np.arange(0, max(block.shape) - settings.pixels + 1, settings.spacing_pixels)
        return _inside(block, settings, offsets, offsets, TRAIN)
    x, y, inner_x, inner_y = cells_of(block, settings.cell_pixels)
    tops = np.arange(-int(settings.cell_pixels - 1 - inner_y[0]), block.height, settings.cell_pixels)
    lefts = np.arange(-int(inner_x[0]), block.width, settings.cell_pixels)
    splits = split_of(x[np.maximum(lefts, 0)][None, :], y[np.maximum(tops, 0)][:, None])
    places = [np.empty((0, 3), np.int64)]
    for (i, j), split in np.ndenumerate(splits):
        rim = 0 if split == TRAIN else settings.buffer_pixels
        offsets = np.arange(rim, settings.cell_pixels - rim - settings.pixels + 1, settings.spacing_pixels)
        places.append(_inside(block, settings, tops[i] + offsets, lefts[j] + offsets, split))
    return np.concatenate(places)


def _inside(block: Grid, settings: Tiles, rows: np.ndarray, columns: np.ndarray, split: int) -> np.ndarray:
    """Tiles at all ``rows`` and ``columns`` that lie within a block, with their split."""
    rows = rows[(rows >= 0) & (rows <= block.height - settings.pixels)]
    columns = columns[(columns >= 0) & (columns <= block.width - settings.pixels)]
    row, column = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([row.ravel(), column.ravel(), np.full(row.size, split)], 1)


# --- what is in them -------------------------------------------------------------------------------------------------


def count_classes(label: np.ndarray, rows: np.ndarray, columns: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each class between the lines of a lattice: int64 (rows - 1, columns - 1, K + 2).

    Parameters
    ----------
    label : uint8 (y, x), class ids.
    rows, columns : first row and column of each piece, ascending, and the end of the last.
    classes : K; the first layer counts what has no label, the last what is excluded.
    """
    layers = classes + 2
    layer = np.zeros(256, np.int64)
    layer[: classes + 1], layer[EXCLUDED] = np.arange(classes + 1), classes + 1
    pieces = np.repeat(np.arange(len(columns) - 1) * layers, np.diff(columns))
    counts = np.zeros((len(rows) - 1, len(columns) - 1, layers), np.int64)
    for i, (top, bottom) in enumerate(pairwise(rows.tolist())):
        for row in range(top, bottom, CACHED_ROWS):
            codes = layer[label[row : min(row + CACHED_ROWS, bottom), columns[0] : columns[-1]]] + pieces
            counts[i] += np.bincount(codes.ravel(), minlength=counts[i].size).reshape(counts[i].shape)
    return counts


def _sum_pieces(layers: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sums of layers (L, y, x) between the lines of a lattice: int64 (rows - 1, columns - 1, L)."""
    part = layers[:, rows[0] : rows[-1], columns[0] : columns[-1]]
    sums = np.add.reduceat(part, rows[:-1] - rows[0], axis=1, dtype=np.int64)
    return np.add.reduceat(sums, columns[:-1] - columns[0], axis=2).transpose(1, 2, 0)


class _Pieces:
    """The lattice of all lines that tiles start or end at, by which sums over tiles take four look-ups each."""

    def __init__(self, places: np.ndarray, pixels: int) -> None:
        self.rows, self.columns = (np.unique([places[:, axis], places[:, axis] + pixels]) for axis in (0, 1))
        self.tops, self.bottoms = (np.searchsorted(self.rows, places[:, 0] + end) for end in (0, pixels))
        self.lefts, self.rights = (np.searchsorted(self.columns, places[:, 1] + end) for end in (0, pixels))

    def over_tiles(self, sums: np.ndarray) -> np.ndarray:
        """Sums over each tile (n, L) from those over the pieces (rows - 1, columns - 1, L)."""
        table = np.zeros((sums.shape[0] + 1, sums.shape[1] + 1, sums.shape[2]), np.int64)
        table[1:, 1:] = sums.cumsum(0).cumsum(1)
        ends = table[self.bottoms, self.rights] - table[self.tops, self.rights]
        return ends - table[self.bottoms, self.lefts] + table[self.tops, self.lefts]


def tile_table(
    label: np.ndarray,
    block: Grid,
    settings: Tiles,
    seed: int,
    classes: int,
    clouds: np.ndarray | None = None,
    empty: np.ndarray | None = None,
    split_of: SplitOf | None = None,
) -> pd.DataFrame:
    """All tiles of a block with at least one labelled pixel, cell by cell in rows then columns.

    Parameters
    ----------
    label : uint8 (y, x), class ids of the block; 0 and 255 carry no label.
    block : grid of ``label``.
    settings, seed : of the split.
    classes : number of classes K.
    clouds : int (2, y, x), steps in which Sentinel-2 saw each pixel, but never clear, and in which it saw it at all;
        none: a model without it.
    empty : bool (y, x), where nothing was ever observed; none: not counted.
    split_of : splits of cells; none: those of ``blocks``.

    Returns
    -------
    One row a tile: row, column (first pixel within the block), split, easting_m, northing_m (upper left corner),
    labelled (share), cloudy (share of what was seen, over pixels and steps), empty (share; NaN where not counted),
    unlabelled (pixels without a label that are not excluded on purpose), class_1 ... class_K (pixels).
    """
    places = tile_places(block, settings, split_of or (lambda x, y: split_of_cell(x, y, settings, seed)))
    pieces = _Pieces(places, settings.pixels)

    def summed(layers: np.ndarray) -> np.ndarray:
        return pieces.over_tiles(_sum_pieces(layers, pieces.rows, pieces.columns)).T

    nothing = np.zeros((len(places), classes + 2), np.int64)
    counts = pieces.over_tiles(count_classes(label, pieces.rows, pieces.columns, classes)) if len(places) else nothing
    hidden, seen = summed(clouds) if clouds is not None and len(places) else (nothing[:, 0], nothing[:, 0])
    gaps = summed(empty[None])[0] if empty is not None and len(places) else np.full(len(places), np.nan)
    table = pd.DataFrame(
        {
            "row": places[:, 0],
            "column": places[:, 1],
            "split": pd.Series([NAMES[split] for split in places[:, 2].tolist()], dtype=str),
            "easting_m": block.left + places[:, 1] * block.pixel_m,
            "northing_m": block.top - places[:, 0] * block.pixel_m,
            "labelled": 1 - (counts[:, 0] + counts[:, -1]) / settings.pixels**2,
            "cloudy": hidden / np.maximum(seen, 1),
            "empty": gaps / settings.pixels**2,
            "unlabelled": counts[:, 0],
            **{f"class_{i}": counts[:, i] for i in range(1, classes + 1)},
        }
    )
    return table[table.labelled > 0]


def _clouds(stack: Path, block: Grid, steps: Steps) -> np.ndarray:
    """Steps in which Sentinel-2 saw each pixel of a block, but never clear, and all in which it saw it: (2, y, x)."""
    counts = np.empty((2, *block.shape), np.int16)
    for row in range(0, block.height, ROWS):
        rows = slice(row, min(row + ROWS, block.height))
        read = seen_steps(read_stack(stack, rows, slice(0, block.width), names=["observed", "clear"]), steps)
        seen = read["observed"] > 0
        counts[:, rows] = (seen & (read["clear"] == 0)).sum(0), seen.sum(0)
    return counts


def _gaps(stack: Path, block: Grid, sensors: Sequence[str], steps: Steps) -> np.ndarray:
    """Where none of the sensors has any value in the stack of a block: bool (y, x)."""
    empty = np.empty(block.shape, bool)
    keys = [key for key in map(KEYS.get, sensors) if key in SATELLITES]
    for row in range(0, block.height, ROWS):
        rows = slice(row, min(row + ROWS, block.height))
        empty[rows] = ~observed(seen_steps(read_stack(stack, rows, slice(0, block.width), names=keys), steps))
    return empty


# --- the index -------------------------------------------------------------------------------------------------------


def index_tiles(
    labels: list[Path],
    index: Path,
    blocks: list[tuple[str, str, Grid]],
    tiles: Tiles,
    seed: int,
    classes: list[str],
    stacks: list[Path] | None = None,
    sensors: tuple[str, ...] = ("sentinel2",),
    clouds: bool = True,
    test_on: dict[str, list[str]] | None = None,
    margin_pixels: int = 0,
    months: tuple[int, ...] = (),
    dates: tuple[date, ...] = (),
) -> None:
    """Step: table of all tiles of a model, as GeoParquet.

    Columns: aoi, block, row, column, split, easting_m, northing_m, labelled, cloudy, empty, class_1 ... class_K (see
    `tile_table`), sampling (how often training draws the tile, 1 on average) and the outline in lon/lat.

    Tiles of which more than ``tiles.max_cloud`` (none: 15 %) of what Sentinel-2 saw, over pixels and steps, was never
    clear are left out, as are those with too few labels or observations, and held-out ones too near to another
    split; all are counted in the log. What no scene reached is no cloud.

    Parameters
    ----------
    labels : label rasters, one a block.
    index : the table.
    blocks : name of the area, name and grid of each block, in the order of ``labels``.
    tiles, seed : of the split.
    classes : keys of the classes, in the order of their ids.
    stacks : stacks of the blocks, in their order; none where neither clouds nor gaps matter.
    sensors : of the model: where these observed nothing, a tile is empty.
    clouds : whether clouds in the stacks matter.
    test_on : areas held out whole, each with those that it shares a time with, of which it must keep away.
    margin_pixels : how far from a pixel the network looks.
    months, dates : of the stacks those that the model sees, by ``chosen_steps``; none: all.

    Raises
    ------
    CoverageError
        The labels of an area have no labelled pixel, or a split or an area of ``test_on`` has no tile.
    """
    import geopandas

    whole_areas = test_on or {}
    splits = _splits_by_area(labels, blocks, tiles, seed, len(classes), whole_areas)
    tables, labelled = [], dict.fromkeys(aoi for aoi, _, _ in blocks)
    for path, stack, (aoi, name, grid) in zip(labels, stacks or repeat(None, len(labels)), blocks, strict=True):
        label = _read_label(path, grid)
        labelled[aoi] = labelled[aoi] or bool(((label != NO_LABEL) & (label != EXCLUDED)).any())
        settings = tiles.model_copy(update={"buffer_pixels": 0}) if aoi in whole_areas else tiles
        steps = chosen_steps(stack, months, dates) if stack else {}
        hidden = _clouds(stack, grid, steps) if stack and clouds else None
        empty = _gaps(stack, grid, sensors, steps) if stack and tiles.count_gaps else None
        table = tile_table(label, grid, settings, seed, len(classes), hidden, empty, splits[aoi])
        table.insert(0, "aoi", aoi)
        table.insert(1, "block", name)
        tables.append(table)
    if bare := [aoi for aoi, any_label in labelled.items() if not any_label]:
        raise CoverageError(
            f"the labels of area {bare[0]} have no labelled pixel in it: check that aois.{bare[0]}.labels.path covers "
            "the area and that labels.legend has a class for the codes of the file"
        )
    crs = {aoi: grid.crs for aoi, _, grid in blocks}
    side_m = tiles.pixels * blocks[0][2].pixel_m
    frame, cloudy = suitable(pd.concat(tables, ignore_index=True), tiles)
    if tiles.split == "random":
        drawn = ~frame.aoi.isin(whole_areas)
        frame["split"] = "test"
        frame.loc[drawn, "split"] = [NAMES[split] for split in shuffled(drawn.sum(), tiles, seed)]
    pairs = risky_pairs(crs, whole_areas, lattice=tiles.split != "random")
    near = too_near(frame, pairs, crs, side_m, tiles.buffer_pixels * blocks[0][2].pixel_m)
    _tell(near, f"within {tiles.buffer_pixels} px of a tile of another area and split")
    frame = frame[~near].reset_index(drop=True)
    for caution in cautions(tiles, margin_pixels):
        log.warning("%s", caution)
    _check_splits(frame, tiles, classes, cloudy, int(near.sum()))
    if bare := [aoi for aoi in whole_areas if aoi not in {*frame.aoi}]:
        raise CoverageError(
            f"area {bare[0]} of test_on has no tile of {tiles.pixels} px that is kept, so nothing can be tested there: "
            "the log tells why its tiles were left out; lessen tiles.buffer_pixels, min_labelled or pixels, raise "
            "tiles.max_cloud, or choose an area or a time that the model does not learn from"
        )
    frame["sampling"] = _sampling(frame, tiles)
    with whole(index) as part:
        geopandas.GeoDataFrame(frame, geometry=_outlines(frame, crs, side_m)).to_parquet(part)


def _read_label(path: Path, grid: Grid) -> np.ndarray:
    label: np.ndarray = read_window(path, grid, fill=NO_LABEL, indexes=[1])[0]
    return label


def _splits_by_area(
    labels: Sequence[Path],
    blocks: Sequence[tuple[str, str, Grid]],
    tiles: Tiles,
    seed: int,
    classes: int,
    whole_areas: dict[str, list[str]],
) -> dict[str, SplitOf | None]:
    """How each area's cells are split; None: by their place alone."""

    def held_out_whole(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.full(np.broadcast_shapes(x.shape, y.shape), TEST, np.uint8)

    splits: dict[str, SplitOf | None] = dict.fromkeys((aoi for aoi, _, _ in blocks), None)
    splits |= dict.fromkeys(whole_areas, held_out_whole)
    if tiles.split == "stratified":
        taught = [(path, grid) for path, (aoi, _, grid) in zip(labels, blocks, strict=True) if aoi not in whole_areas]
        cells = stratified_cells(_pixels_by_cell(taught, tiles, classes), tiles, seed)
        for aoi, _, grid in blocks:
            splits[aoi] = splits[aoi] or _by_name(cells, grid.crs)
    return splits


def _by_name(cells: dict[Cell, int], crs: str) -> SplitOf:
    """Splits out of a table of cells."""

    def split_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.array([[cells[crs, column, row] for column in x.ravel().tolist()] for row in y.ravel().tolist()])

    return split_of


def _pixels_by_cell(parts: Sequence[tuple[Path, Grid]], tiles: Tiles, classes: int) -> dict[Cell, np.ndarray]:
    """Pixels of each class (K,) in every cell; areas of one ground count together, so that a cell has one split."""
    pixels: dict[Cell, np.ndarray] = {}
    side = tiles.cell_pixels
    for path, grid in parts:
        x, y, _, _ = cells_of(grid, side)
        tops, lefts = np.arange(0, grid.height, side), np.arange(0, grid.width, side)
        lines = np.append(tops, grid.height), np.append(lefts, grid.width)
        counts = count_classes(_read_label(path, grid), *lines, classes)
        for (i, j), _ in np.ndenumerate(counts[:, :, 0]):
            cell = grid.crs, int(x[lefts[j]]), int(y[tops[i]])
            pixels[cell] = pixels.get(cell, 0) + counts[i, j, 1:-1]
    return pixels


def suitable(frame: pd.DataFrame, tiles: Tiles) -> tuple[pd.DataFrame, int]:
    """The tiles that have labels and observations enough, and how many others were cloudy; all are told in the log.

    ASSUME: a tile is complete where every pixel has a label, be it one that is excluded on purpose, and an
    observation, as Sefrin et al. 2021 (doi:10.3390/rs13010078) took their tiles.

    Parameters
    ----------
    frame : of `tile_table`.
    tiles : settings that say how much is enough.
    """
    few = frame.labelled < tiles.min_labelled
    incomplete = (frame.unlabelled > 0) | (frame["empty"] > 0)
    whys = {
        f"labelled on less than {100 * tiles.min_labelled:g} %": few,
        "incomplete": ~few & incomplete & (tiles.incomplete == "drop"),
        f"more than {tiles.max_empty:g} % never observed": frame["empty"] > tiles.max_empty / 100,
    }
    left = np.zeros(len(frame), bool)
    for why, those in whys.items():
        _tell(those.to_numpy(), why)
        left |= those.to_numpy()
    frame = frame[~left]
    cloudy = frame.cloudy > _max_cloud(tiles) / 100
    log.info("%d of %d tiles left out: more than %g %% never clear", cloudy.sum(), len(frame), _max_cloud(tiles))
    return frame[~cloudy].drop(columns="unlabelled").reset_index(drop=True), int(cloudy.sum())


def _max_cloud(tiles: Tiles) -> float:
    return MAX_CLOUD if tiles.max_cloud is None else tiles.max_cloud


def _tell(those: np.ndarray, why: str) -> None:
    if those.any():
        log.info("%d of %d tiles left out: %s", those.sum(), len(those), why)


def _check_splits(frame: pd.DataFrame, tiles: Tiles, classes: Sequence[str], cloudy: int, near: int) -> None:
    """Refuse a split without tiles; warn of classes that it lacks."""
    for split in SPLITS:
        chosen = frame[frame["split"] == split]
        log.info("%s: %d tiles", split, len(chosen))
        if chosen.empty:
            places = "at random" if tiles.split == "random" else f"on cells of {tiles.cell_pixels} px"
            raise CoverageError(
                f"no {split} tile of {tiles.pixels} px: {len(frame)} tiles in all {places}, "
                f"besides {cloudy} of which more than {_max_cloud(tiles):g} % was never clear and {near} too near to "
                "tiles of another area; lessen "
                f"tiles.cell_pixels, buffer_pixels{', folds' if tiles.folds else ''} or min_labelled, raise "
                "tiles.max_cloud, or enlarge the area"
            )
    pixels = frame.groupby("split")[_class_columns(frame)].sum()
    for split, effect in (("train", "no map will show them"), ("test", "nothing is known of how well they are found")):
        lacking = (pixels.loc[split] == 0) & ((pixels > 0).any() | (split == "train"))
        if absent := [key for key, lacks in zip(classes, lacking, strict=True) if lacks]:
            log.warning("%s tiles have no pixel of %s: %s", split, ", ".join(absent), effect)


def _class_columns(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if name.startswith("class_")]


def _sampling(frame: pd.DataFrame, tiles: Tiles) -> np.ndarray:
    """How often each tile is drawn in training; those that are never drawn have 1 too."""
    weights = np.ones(len(frame), np.float32)
    taught = (frame["split"] == "train").to_numpy()
    weights[taught] = drawing_weights(frame.loc[taught, _class_columns(frame)].to_numpy(), tiles.balance)
    return weights


def _outlines(frame: pd.DataFrame, crs: dict[str, str], side_m: float) -> geopandas.GeoSeries:
    """Tiles as polygons in lon/lat."""
    import geopandas

    outlines = np.empty(len(frame), object)
    for aoi, numbers in frame.groupby("aoi").indices.items():
        tiles = frame.iloc[numbers]
        squares = boxes(tiles.easting_m.to_numpy(), tiles.northing_m.to_numpy(), side_m)
        outlines[numbers] = geopandas.GeoSeries(squares, crs=crs[str(aoi)]).to_crs("EPSG:4326").array
    return geopandas.GeoSeries(outlines, frame.index, "EPSG:4326")
