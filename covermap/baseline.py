"""What a network must beat: a random forest that sees one pixel at a time, taught by the same tiles.

Of images, which have one class each, it sees how the values of each band are distributed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from covermap.errors import CoverageError
from covermap.grid import Grid
from covermap.inputs import KEYS, NODATA, chosen_steps, meaning_of, must_mean, observed, seen_steps
from covermap.legend import NO_LABEL
from covermap.loader import batches
from covermap.model_settings import Tiles
from covermap.raster import write_raster
from covermap.score import HELD_OUT, Judged, Place, in_short, tally, told, usable, write_scores
from covermap.splits import corners_of_tests, held_out
from covermap.stack import read_stack
from covermap.store import LABEL, WEIGHT, TileStore

log = logging.getLogger(__name__)

SAMPLES = 60_000  # training pixels: the forest's scores no longer rise beyond this on the demo
TREES = 100
PART = 100_000  # samples that a thread tells apart at once


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
    months: tuple[int, ...] = (),
    dates: tuple[date, ...] = (),
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
    months, dates : of the stacks those that the model sees, by ``chosen_steps``; none: all.

    Raises
    ------
    ModelError
        The inputs of two stores, or of the stores and a stack, mean different things.
    """
    stores = dict(zip([(aoi, block) for aoi, block in packs], packed, strict=True))
    training = TileStore(stores, index, "train")
    meaning = training.meaning(KEYS[sensor] for sensor in sensors)
    for path in stacks:
        found = meaning_of(path, chosen_steps(path, months, dates))
        must_mean(meaning, found, path, "the random forest learned from")
    forest = taught(*training_pixels(training, sensors, seed), seed, threads)
    corners = corners_of_tests(index, tested) if tested else None
    out = np.zeros(grid.shape, np.uint8)
    for path, block in zip(stacks, blocks, strict=True):
        part = block.cropped(grid.bounds)
        if part is None:
            continue
        row, column = part.offset_in(block)
        keys = [KEYS[sensor] for sensor in sensors]
        place = slice(row, row + part.height), slice(column, column + part.width)
        read = seen_steps(read_stack(path, *place, keys), chosen_steps(path, months, dates))
        inputs = {key: read[key] for key in keys}
        asked = held_out(part, tiles, seed, corners) & observed(inputs)
        if asked.any():
            row, column = part.offset_in(grid)
            mapped = out[row : row + part.height, column : column + part.width]
            mapped[asked] = told_apart(forest, features(inputs, asked), threads)
    write_raster(baseline, out[None], grid, nodata=NO_LABEL, descriptions=("class",))


def fit_forest(
    index: Path,
    packed: list[Path],
    forest: Path,
    blocks: list[Place],
    grids: list[Grid],
    sensors: tuple[str, ...],
    tiles: Tiles,
    classes: list[str],
    min_pixels: int,
    seed: int,
    threads: int = 1,
) -> None:
    """Step: how a random forest that learnt from the training tiles does on the validation and test tiles, as JSON.

    Parameters
    ----------
    index, packed : table of the model's tiles and their stores, one a block.
    forest : output: its scores by split, as those of a network (:func:`covermap.score.score_tiles`).
    blocks : name of the area and of the block of each store.
    grids : of the blocks; of a set of patches none.
    sensors, tiles, seed : inputs and split of the model to compare with.
    classes : keys of the classes, in the order of their ids.
    min_pixels : labelled pixels without which a class does not count in the macro F1.

    Raises
    ------
    CoverageError
        A split without a labelled pixel.
    ModelError
        The inputs of two stores mean different things.
    """
    stores, places = dict(zip(blocks, packed, strict=True)), dict(zip(blocks, grids, strict=False))
    keys = [KEYS[sensor] for sensor in sensors]
    training = TileStore(stores, index, "train", keys)
    training.meaning(keys)
    samples = training_pixels(training, sensors, seed) if grids else training_images(training, sensors, seed)
    learnt = taught(*samples, seed, threads)
    result = {}
    for split in HELD_OUT:
        store = TileStore(stores, index, split, keys)
        counts = tally(store, judged(learnt, store, sensors, threads), places, tiles.cell_pixels, len(classes), split)
        result[split] = told(counts, classes, seed, min_pixels)
        log.info("%s tiles: %s", split, in_short(result[split]))
    write_scores(forest, result)


def taught(samples: np.ndarray, labels: np.ndarray, seed: int, threads: int) -> RandomForestClassifier:
    """A random forest that learnt the labels (N,) of samples (N, channels).

    Raises
    ------
    CoverageError
        There is none.
    """
    if not len(labels):
        raise CoverageError("no training tile has a labelled pixel with a weight: check the labels and their weights")
    forest = RandomForestClassifier(TREES, max_features="sqrt", min_samples_leaf=2, n_jobs=threads, random_state=seed)
    forest.fit(samples, labels)
    log.info("forest of %d trees from %d samples of %d classes", TREES, len(labels), len(forest.classes_))
    return forest.set_params(n_jobs=1)  # its own threads add up the votes of trees in any order, which decides ties


def told_apart(forest: RandomForestClassifier, samples: np.ndarray, threads: int) -> np.ndarray:
    """Class ids uint8 (N,) of samples (N, channels), the same by any number of threads."""
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(forest.predict, np.array_split(samples, -(-len(samples) // PART)))
        return np.concatenate(list(parts)).astype(np.uint8)


def judged(
    forest: RandomForestClassifier, store: TileStore, sensors: tuple[str, ...], threads: int
) -> Iterator[Judged]:
    """What a forest makes of every tile of a store, in its order; 0 where nothing is asked."""

    def judge(number: int) -> Judged:
        tile = store[number]
        inputs, asked = {KEYS[sensor]: tile[KEYS[sensor]] for sensor in sensors}, usable(tile[LABEL], tile[WEIGHT])
        guess = np.zeros(tile[LABEL].shape, np.uint8)
        if asked.any():
            samples = features(inputs, asked) if guess.ndim else spread(inputs)[None]
            guess[asked] = forest.predict(samples)
        return Judged(guess, tile[LABEL], tile[WEIGHT])

    with ThreadPoolExecutor(threads) as pool:
        for part in batches(np.arange(len(store)), 4 * threads):
            yield from pool.map(judge, part.tolist())


def training_pixels(store: TileStore, sensors: tuple[str, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, channels) and class ids (N,) of labelled training pixels, evenly out of all tiles."""
    random = np.random.default_rng(seed)
    a_tile = max(1, SAMPLES // len(store))
    chosen, labels = [], []
    for number in range(len(store)):
        tile = store[number]
        inputs = {KEYS[sensor]: tile[KEYS[sensor]] for sensor in sensors}
        places = random.permutation(np.flatnonzero(usable(tile[LABEL], tile[WEIGHT])))[:a_tile]
        mask = np.zeros(tile[LABEL].shape, bool)
        mask.flat[places] = True
        chosen.append(features(inputs, mask))
        labels.append(tile[LABEL][mask])
    return np.concatenate(chosen), np.concatenate(labels)


def features(inputs: dict[str, np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Integers of the masked pixels as float32 (N, channels); no data keeps its own value, which trees can tell."""
    chosen = [values[:, :, mask].reshape(values.shape[0] * values.shape[1], -1) for values in inputs.values()]
    return np.concatenate(chosen).T.astype(np.float32)


def training_images(store: TileStore, sensors: tuple[str, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, channels) and class ids (N,) of training images, by chance which if there are many."""
    chosen, labels = [], []
    for number in np.random.default_rng(seed).permutation(len(store))[:SAMPLES].tolist():
        image = store[number]
        if usable(image[LABEL], image[WEIGHT]):
            chosen.append(spread({KEYS[sensor]: image[KEYS[sensor]] for sensor in sensors}))
            labels.append(image[LABEL])
    return np.array(chosen), np.array(labels)


def spread(inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Mean, standard deviation and percentiles 10, 50 and 90 of each step and band of an image: float32 (channels,).

    Of a band without any data all are what stands for no data.
    """
    measures = []
    for key, values in inputs.items():
        for plane in values.reshape(-1, *values.shape[-2:]):
            seen = plane[plane != NODATA[key]]
            if not seen.size:
                seen = plane.ravel()
            measures += [seen.mean(), seen.std(), *np.percentile(seen, (10, 50, 90))]
    return np.array(measures, np.float32)
