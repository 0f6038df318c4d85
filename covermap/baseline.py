"""What a network must beat: a random forest that sees one pixel at a time, taught by the same tiles."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from covermap.grid import Grid
from covermap.inputs import KEYS, meaning_of, must_mean, observed
from covermap.legend import EXCLUDED, NO_LABEL
from covermap.raster import write_raster
from covermap.settings import Tiles
from covermap.splits import corners_of_tests, held_out
from covermap.stack import read_stack
from covermap.store import TileStore

log = logging.getLogger(__name__)

SAMPLES = 60_000  # training pixels: the forest's scores no longer rise beyond this on the demo
TREES = 100


def map_baseline(
    index: Path,
    packed: list[Path],
    stacks: list[Path],
    baseline: Path,
    packs: list[tuple[str, str]],
    grid: Grid,
    blocks: list[Grid],
    sensors: tuple[str, ...],
    tiles: Tiles,
    seed: int,
    tested: str | None = None,
    threads: int = 1,
) -> None:
    """Classes of the held-out test pixels by a per-pixel random forest (Breiman 2001, doi:10.1023/A:1010933404324).

    Parameters
    ----------
    index, packed, packs : tiles of the model, their stores, and the area and block of each store.
    stacks, blocks : stacks of the area, and their grids.
    baseline : class ids, uint8, 0 where nothing is held out; on the grid of the map.
    grid : of the map.
    sensors, tiles, seed : inputs and split of the model to compare with; its indices tell the forest nothing that is
        not in them.
    tested : area whose test tiles are what is held out; none: test cells are.

    Raises
    ------
    ModelError
        The inputs of two stores, or of the stores and a stack, mean different things.
    """
    stores = dict(zip([(aoi, block) for aoi, block in packs], packed, strict=True))
    training = TileStore(stores, index, "train")
    meaning = training.meaning(KEYS[sensor] for sensor in sensors)
    for path in stacks:
        must_mean(meaning, meaning_of(path), path, "the random forest learned from")
    pixels, labels = training_pixels(training, sensors, seed)
    forest = RandomForestClassifier(TREES, max_features="sqrt", min_samples_leaf=2, n_jobs=threads, random_state=seed)
    forest.fit(pixels, labels)
    log.info("forest of %d trees from %d pixels of %d classes", TREES, len(labels), len(forest.classes_))
    corners = corners_of_tests(index, tested) if tested else None
    out = np.zeros(grid.shape, np.uint8)
    for path, block in zip(stacks, blocks, strict=True):
        part = block.cropped(grid.bounds)
        if part is None:
            continue
        row, column = part.offset_in(block)
        keys = [KEYS[sensor] for sensor in sensors]
        read = read_stack(path, slice(row, row + part.height), slice(column, column + part.width), keys)
        inputs = {key: read[key] for key in keys}
        asked = held_out(part, tiles, seed, corners) & observed(inputs)
        if asked.any():
            row, column = part.offset_in(grid)
            place = out[row : row + part.height, column : column + part.width]
            place[asked] = forest.predict(features(inputs, asked))
    write_raster(baseline, out[None], grid, nodata=NO_LABEL, descriptions=("class",))


def training_pixels(store: TileStore, sensors: tuple[str, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, channels) and class ids (N,) of labelled training pixels, evenly out of all tiles."""
    random = np.random.default_rng(seed)
    a_tile = max(1, SAMPLES // len(store))
    chosen, labels = [], []
    for number in range(len(store)):
        tile = store[number]
        inputs = {KEYS[sensor]: tile[KEYS[sensor]] for sensor in sensors}
        usable = (tile["weight"] > 0) & (tile["label"] != NO_LABEL) & (tile["label"] != EXCLUDED)
        places = random.permutation(np.flatnonzero(usable))[:a_tile]
        mask = np.zeros(usable.size, bool)
        mask[places] = True
        mask = mask.reshape(usable.shape)
        chosen.append(features(inputs, mask))
        labels.append(tile["label"][mask])
    return np.concatenate(chosen), np.concatenate(labels)


def features(inputs: dict[str, np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Integers of the masked pixels as float32 (N, channels); no data keeps its own value, which trees can tell."""
    chosen = [values[:, :, mask].reshape(values.shape[0] * values.shape[1], -1) for values in inputs.values()]
    return np.concatenate(chosen).T.astype(np.float32)
