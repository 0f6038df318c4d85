"""What the splits of a model hold: classes by area, and how far the inputs of other places and years differ."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely

from covermap.errors import CoverageError
from covermap.files import whole
from covermap.grid import Grid
from covermap.inputs import CHANNELS, KEYS, NODATA
from covermap.legend import NO_LABEL
from covermap.model_settings import Tiles
from covermap.raster import read_window
from covermap.splits import SPLITS, cautions
from covermap.store import TileStore

log = logging.getLogger(__name__)

COMMON = 0.99  # share of the training values of a channel that counts as usual
MUCH = 0.1  # share beyond them that is told: ten times that of the training split itself
TOUCHING = 1e-6  # share of a tile that neighbours share in lon/lat, where their rims are rounded
SURVEYED = 256  # ASSUME: so many tiles, evenly out of all, tell how the values of a channel are distributed


def survey_split(
    index: Path,
    labels: list[Path],
    packed: list[Path],
    survey: Path,
    blocks: list[tuple[str, str, Grid]],
    tiles: Tiles,
    classes: list[str],
    sensors: tuple[str, ...],
    test_on: dict[str, list[str]],
    margin_pixels: int,
) -> None:
    """Step: what each split holds, as JSON for the report, with what a reader must know of it.

    Parameters
    ----------
    index : table of the model's tiles.
    labels : label rasters, one a block.
    packed : stores of the tiles, one a block; none where no area is held out whole.
    survey : output: split, folds, fold, cell and buffer [m], tiles, areas and hectares of each class by split, the
        share of the values of each channel ``beyond`` the usual ones of the training split by area, how each area's
        test ``leaks``, where it does, and notes.
    blocks : name of the area, name and grid of each block.
    tiles : settings of the split.
    classes : keys of the classes, in the order of their ids.
    sensors : of the model.
    test_on : areas held out whole, each with those that it shares a time with.
    margin_pixels : how far from a pixel the network looks.
    """
    frame = pd.read_parquet(index)
    pixel_m = blocks[0][2].pixel_m
    pixels = split_pixels(frame, labels, blocks, tiles, len(classes))
    drift = {}
    if test_on:
        stores = dict(zip([(aoi, name) for aoi, name, _ in blocks], packed, strict=True))
        drift = _drift(stores, index, [KEYS[sensor] for sensor in sensors], list(test_on))
    hectares = {split: dict(zip(classes, of.tolist(), strict=True)) for split, of in _hectares(pixels, pixel_m)}
    leaks, others = dict(_same_ground(frame, test_on)), cautions(tiles, margin_pixels)
    if tiles.split == "random":
        leaks, others = dict.fromkeys(frame.aoi, others[0]), []
    notes = [*others, *_absent(hectares), *_drifted(drift)]
    for note in [*dict.fromkeys(leaks.values()), *notes]:
        log.warning("%s", note)
    result = {
        "split": tiles.split,
        "folds": tiles.folds,
        "fold": tiles.fold,
        "cell_m": tiles.cell_pixels * pixel_m,
        "buffer_m": tiles.buffer_pixels * pixel_m,
        "tiles": {split: int((frame.split == split).sum()) for split in SPLITS},
        "areas": {split: list(dict.fromkeys(frame.aoi[frame.split == split])) for split in SPLITS},
        "hectares": hectares,
        "beyond": drift,
        "leaks": leaks,
        "notes": notes,
    }
    with whole(survey) as part:
        part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


# --- classes by area -------------------------------------------------------------------------------------------------


def split_pixels(
    frame: pd.DataFrame, labels: Sequence[Path], blocks: Sequence[tuple[str, str, Grid]], tiles: Tiles, classes: int
) -> dict[str, np.ndarray]:
    """Pixels of each class (K,) that the tiles of each split hold; where tiles overlap, a pixel counts once."""
    if tiles.spacing_pixels >= tiles.pixels:
        columns = [f"class_{i}" for i in range(1, classes + 1)]
        return {split: frame.loc[frame.split == split, columns].sum().to_numpy() for split in SPLITS}
    counts = {split: np.zeros(classes, np.int64) for split in SPLITS}
    groups = frame.groupby(["aoi", "block", "split"]).indices
    for path, (aoi, name, grid) in zip(labels, blocks, strict=True):
        label = read_window(path, grid, fill=NO_LABEL, indexes=[1])[0]
        for split in (split for split in SPLITS if (aoi, name, split) in groups):
            places = frame.iloc[groups[aoi, name, split]]
            covered = np.zeros(grid.shape, bool)
            for row, column in zip(places.row, places.column, strict=True):
                covered[row : row + tiles.pixels, column : column + tiles.pixels] = True
            counts[split] += np.bincount(label[covered], minlength=256)[1 : classes + 1]
    return counts


def _hectares(pixels: dict[str, np.ndarray], pixel_m: float) -> Iterator[tuple[str, np.ndarray]]:
    for split, of_class in pixels.items():
        yield split, of_class * pixel_m**2 / 10_000


def _absent(hectares: dict[str, dict[str, float]]) -> Iterator[str]:
    """What is missing in a split although another has it, or in all."""
    known = [key for key in hectares["train"] if any(of[key] for of in hectares.values())]
    for split, effect in (
        ("train", "so no map will show it"),
        ("validation", "so it does not help to choose the epoch"),
        ("test", "so nothing is known of how well it is found"),
    ):
        if absent := [key for key in known if not hectares[split][key]]:
            yield f"No {split} tile has a pixel of {', '.join(absent)}, {effect}."


def _same_ground(frame: pd.DataFrame, test_on: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Areas held out whole that lie where the model learns of another time, and what that means."""
    outlines = shapely.from_wkb(frame.geometry.to_numpy())
    for area, of_its_time in test_on.items():
        mine = outlines[(frame.aoi == area).to_numpy()]
        taught = outlines[((frame.split == "train") & ~frame.aoi.isin(of_its_time)).to_numpy()]
        tested, learnt = shapely.STRtree(taught).query(mine, predicate="intersects")
        shared = shapely.area(shapely.intersection(mine[tested], taught[learnt]))
        on_it = tested[shared > TOUCHING * shapely.area(mine[tested])]
        if share := len(np.unique(on_it)) / max(len(mine), 1):
            yield (
                area,
                f"{100 * share:.0f} % of the tiles of {area} lie on ground that was learnt from at another time: they "
                "test how the model carries over to that time, not to another place.",
            )


# --- inputs ----------------------------------------------------------------------------------------------------------


def value_counts(values: np.ndarray, nodata: int) -> np.ndarray:
    """How often each value of 16 bits stands in each channel: int64 (T, C, 65536), from the lowest on.

    Parameters
    ----------
    values : int16 or uint16 (T, C, y, x).
    nodata : the value that is none.
    """
    lowest = np.iinfo(values.dtype).min
    planes = values.reshape(-1, values.shape[-2] * values.shape[-1]).astype(np.int64) - lowest
    counts = np.stack([np.bincount(plane, minlength=2**16) for plane in planes])
    counts[:, nodata - lowest] = 0
    return counts.reshape(*values.shape[:2], 2**16)


def beyond(taught: np.ndarray, met: np.ndarray, common: float = COMMON) -> np.ndarray:
    """Share of the values met that lie beyond the usual ones of the training split: float (T, C), NaN without any.

    Usual are those from its 0.5th to its 99.5th percentile, so at most 0.01 of the training values lie beyond.

    Parameters
    ----------
    taught, met : how often each value occurs, of :func:`value_counts`.
    common : share of the training values that is usual.
    """
    below, total = taught.cumsum(-1), taught.sum(-1, keepdims=True)
    rare = (1 - common) / 2 * total
    usual = (below > rare) & (below - taught < total - rare)
    outside = np.where(usual, 0, met).sum(-1) / np.maximum(met.sum(-1), 1)
    return np.where((met.sum(-1) > 0) & (total[..., 0] > 0), outside, np.nan)


def _drift(
    packed: dict[tuple[str, str], Path], index: Path, keys: list[str], areas: list[str]
) -> dict[str, dict[str, float]]:
    """Share of the values of each channel beyond the usual ones of the training split, by area."""
    training, tests = (TileStore(packed, index, split, keys) for split in ("train", "test"))
    meaning = training.meaning(keys)
    taught = _counted(training, np.arange(len(training)), keys)
    result = {}
    for area in areas:
        met = _counted(tests, np.flatnonzero(tests.table.aoi == area), keys)
        shares = [beyond(taught[key], met[key]) for key in keys]
        names = [name for key, of in zip(keys, shares, strict=True) for name in _channels(key, meaning, len(of))]
        values = np.concatenate([of.ravel() for of in shares])
        result[area] = {
            name: round(float(share), 4) for name, share in zip(names, values, strict=True) if share == share
        }
    return result


def _counted(store: TileStore, numbers: np.ndarray, keys: list[str]) -> dict[str, np.ndarray]:
    """Values of each input in at most `SURVEYED` of these tiles, of which there must be one."""
    if not len(numbers):
        raise CoverageError("an area of test_on has no tile in the index: remove the index and run again")
    counts: dict[str, Any] = dict.fromkeys(keys, 0)
    for place in np.unique(np.linspace(0, len(numbers) - 1, SURVEYED).astype(int)):
        tile = store[int(numbers[place])]
        counts = {key: of + value_counts(tile[key], NODATA[key]) for key, of in counts.items()}
    return counts


def _channels(key: str, meaning: dict[str, dict[str, list[str]]], steps: int) -> list[str]:
    """Names of the channels of an input, its steps counted from 1 where there are several."""
    names = meaning[key][CHANNELS[key]]
    return [f"{key} {name}{f' step {step + 1}' if steps > 1 else ''}" for step in range(steps) for name in names]


def _drifted(drift: dict[str, dict[str, float]]) -> Iterator[str]:
    for area, shares in drift.items():
        far = {name: share for name, share in shares.items() if share > MUCH}
        if far:
            worst = max(far, key=lambda name: far[name])
            yield (
                f"The inputs of {area} leave what the model was taught: of {len(far)} of {len(shares)} channels more "
                f"than {100 * MUCH:.0f} % of the values lie beyond the central {100 * COMMON:.0f} % of the training "
                f"values, of {worst} {100 * far[worst]:.0f} %."
            )
