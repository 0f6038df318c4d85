"""How well networks do on the validation and test tiles of a model, beside a random forest that learnt from the same.

Agreement with the label is not accuracy: the label errs too. A pixel counts where it has a label and a weight, by the
cell of the spatial split that it lies in, since neighbouring pixels err together; an image of a set of patches counts
by itself. Where tiles overlap, their common pixels count for each of them. Rows of every matrix are what was mapped.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ValidationError

from covermap.accuracy import Scores, agreement, block_bootstrap, confusion_by_group
from covermap.charts import draw_confusion
from covermap.devices import use_device
from covermap.errors import CoverageError, ModelError, ProductError
from covermap.files import whole
from covermap.grid import Grid
from covermap.inputs import must_mean
from covermap.legend import EXCLUDED, NO_LABEL, Legend
from covermap.loader import buffers_for, load
from covermap.model_settings import Tiles
from covermap.models.normalise import Normalised
from covermap.predict import free_steps, load_together, mean_probabilities
from covermap.section import first_sentence
from covermap.splits import cells_of
from covermap.store import LABEL, WEIGHT, TileStore

log = logging.getLogger(__name__)

HELD_OUT = ("validation", "test")

Counts = dict[str, np.ndarray]  # confusion matrix int64 (K, K) of each cell or image
Place = tuple[str, str]  # an area and a block of it


class Judged(NamedTuple):
    """A tile, or an image as arrays without an axis."""

    guess: np.ndarray  # integers (y, x), classes 1..K
    label: np.ndarray  # uint8 (y, x)
    weight: np.ndarray  # uint8 (y, x) [%]


def score_tiles(
    index: Path,
    packed: list[Path],
    weights: list[Path],
    calibrations: list[Path],
    forest: Path,
    scores: Path,
    confusion: Path,
    confusion_log: Path,
    blocks: list[Place],
    grids: list[Grid],
    tiles: Tiles,
    batch: int,
    min_pixels: int,
    seed: int,
    legend: Legend,
    threads: int = 1,
) -> None:
    """Step: agreement of networks with the labels of held-out tiles, as JSON and as pictures of the test tiles.

    Parameters
    ----------
    index, packed : table of the model's tiles and their stores, one a block.
    weights, calibrations : of trained networks, whose probabilities are averaged, and their temperatures; none: as
        they are.
    forest : what rule fit_forest wrote: its scores stand beside those of the networks.
    scores : output: ``network``, ``forest`` and ``network_minus_forest`` (with an interval) of each split.
    confusion, confusion_log : output, PNG: matrix of the test tiles, and with colours by the logarithm.
    blocks : name of the area and of the block of each store.
    grids : of the blocks; of a set of patches none.
    tiles : the cells of the model's split.
    batch : tiles at once.
    min_pixels : labelled pixels without which a class does not count in the macro F1.
    seed : of the intervals.
    legend : classes of the model.
    threads : torch threads.

    Raises
    ------
    CoverageError
        A split without a labelled pixel.
    ModelError
        Weights that cannot be read or that do not go together, of other classes, or of other inputs than the tiles.
    ProductError
        The scores of the forest cannot be read.
    """
    device = use_device(threads)
    nets, classes = load_together(weights, device, calibrations)
    keys = [entry.key for entry in legend.classes]
    if classes != keys:
        raise ModelError(
            f"{weights[0]} has the classes {', '.join(classes)}, the model's legend {', '.join(keys)}: use weights of "
            "this legend, or train again"
        )
    compared, network = _read_forest(forest), {}
    stores, places = dict(zip(blocks, packed, strict=True)), dict(zip(blocks, grids, strict=False))
    for split in HELD_OUT:
        store = TileStore(stores, index, split, list(nets[0].shapes))
        must_mean(nets[0].meaning, store.meaning(nets[0].shapes), index, "the network learned from", free_steps(nets))
        judged = guesses(nets, store, batch, device)
        counts = tally(store, judged, places, tiles.cell_pixels, len(keys), split)
        network[split] = told(counts, keys, seed, min_pixels)
        log.info("%s tiles: network %s; forest %s", split, in_short(network[split]), in_short(compared[split]))
    difference = {split: gain(network[split]["cells"], compared[split]["cells"], seed) for split in HELD_OUT}
    matrix = np.array(network["test"]["confusion"])
    draw_confusion(matrix, legend, confusion)
    draw_confusion(matrix, legend, confusion_log, log=True)
    told_of = {"network": network, "forest": compared, "network_minus_forest": difference}
    write_scores(scores, {"classes": keys, "rows": "mapped", **told_of})


@torch.inference_mode()
def guesses(nets: Sequence[Normalised], store: TileStore, batch: int, device: torch.device) -> Iterator[Judged]:
    """What networks together make of every tile of a store, in its order."""
    for arrays in load(store, np.arange(len(store)), buffers_for(store, batch, device)):
        best = mean_probabilities(nets, arrays, device).argmax(1) + 1  # (B, H, W), or (B,)
        yield from map(Judged, *(values.cpu().numpy() for values in (best, arrays[LABEL], arrays[WEIGHT])))


# --- counting ---------------------------------------------------------------------------------------------------------


def usable(label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Where there is a label that counts: bool, as the two."""
    return (weight > 0) & (label != NO_LABEL) & (label != EXCLUDED)


def tally(
    store: TileStore, judged: Iterable[Judged], grids: Mapping[Place, Grid], cell_pixels: int, classes: int, split: str
) -> Counts:
    """Confusion matrices of all tiles of a store, by cell of the split (``EPSG:32721 x66y823``) or image (its file).

    Parameters
    ----------
    store, judged : tiles in the same order.
    grids : of the blocks; none: the tiles are images.
    cell_pixels : side of a cell.
    classes : K.
    split : what the tiles are of, for the error.

    Raises
    ------
    CoverageError
        Not one pixel has a label that counts.
    """
    counts: Counts = {}
    for row, one in zip(store.table.itertuples(), judged, strict=True):
        if grids:
            tile = grids[row.aoi, row.block].window(row.row, row.column, *one.label.shape)
            names, group = cells_of_tile(tile, cell_pixels)
        else:
            names, group = [str(row.file)], np.zeros(one.label.shape, np.int64)
        used = usable(one.label, one.weight)
        matrices = confusion_by_group(one.label[used], one.guess[used], classes, group[used], len(names))
        for name, matrix in zip(names, matrices, strict=True):
            if matrix.any():
                counts[name] = counts.get(name, 0) + matrix
    if not counts:
        raise CoverageError(
            f"no {split} tile has a labelled pixel with a weight: check the labels, their weights and the split"
        )
    return dict(sorted(counts.items()))


def cells_of_tile(grid: Grid, cell_pixels: int) -> tuple[list[str], np.ndarray]:
    """Names of the cells of the spatial split that a tile meets, and which of them each pixel is in: int64 (y, x)."""
    x, y, _, _ = cells_of(grid, cell_pixels)
    across, column = np.unique(x, return_inverse=True)
    down, row = np.unique(y, return_inverse=True)
    names = [f"{grid.crs} x{i}y{j}" for j in down.tolist() for i in across.tolist()]
    return names, row[:, None] * len(across) + column[None, :]


# --- telling ----------------------------------------------------------------------------------------------------------


def told(counts: Counts, keys: Sequence[str], seed: int, min_pixels: int) -> Scores:
    """Scores of a split, ready for JSON, with the ``confusion`` and the counts of each cell or image in ``cells``.

    A cell's counts are lists of class mapped, class of the label (1..K) and pixels, so that any two runs can be paired.
    """
    matrices = np.stack(list(counts.values()))
    cells = {name: _sparse(matrix) for name, matrix in counts.items()}
    return {
        "pixels": int(matrices.sum()),
        **agreement(matrices, keys, seed, min_pixels=min_pixels),
        "confusion": matrices.sum(0).tolist(),
        "cells": cells,
    }


def _sparse(matrix: np.ndarray) -> list[list[int]]:
    return [[row + 1, column + 1, int(matrix[row, column])] for row, column in np.argwhere(matrix).tolist()]


def gain(first: Mapping[str, list[list[int]]], second: Mapping[str, list[list[int]]], seed: int) -> Scores:
    """How much better the first agrees with the label than the second, by `block_bootstrap` over their common cells."""
    common = [name for name in first if name in second]
    hits = [[sum(n for a, b, n in one[name] if a == b) for name in common] for one in (first, second)]
    pixels = [sum(n for _, _, n in first[name]) for name in common]
    return block_bootstrap(np.array(hits[0]), np.array(hits[1]), np.array(pixels), seed=seed)


def write_scores(path: Path, result: Mapping[str, Any]) -> None:
    """JSON with every list of numbers on one line, so that it can be read and compared."""
    text = json.dumps(result, indent=1, allow_nan=False)
    text = re.sub(r"\[[\s\d.,\[\]]+\]", lambda found: re.sub(r"\n\s*", "", found[0]), text)
    with whole(path) as part:
        part.write_text(text + "\n")


class _Compared(BaseModel):
    """What is used of the scores of a forest."""

    overall: float
    low: float | None
    high: float | None
    macro_f1: float | None
    cells: dict[str, list[tuple[int, int, int]]]


def _read_forest(path: Path) -> dict[str, Scores]:
    try:
        found = json.loads(path.read_text())
        for split in HELD_OUT:
            _Compared.model_validate(found[split])
        return {split: found[split] for split in HELD_OUT}
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = first_sentence(error) if isinstance(error, ValidationError) else repr(error)
        raise ProductError(f"forest {path} cannot be read ({fault}): remove it and run again") from error


def in_short(scored: Scores) -> str:
    """Overall agreement with its interval, and macro F1, for the log."""
    interval = "" if scored["low"] is None else f" ({scored['low']:.3f} to {scored['high']:.3f})"
    macro = scored["macro_f1"]
    return f"overall {scored['overall']:.3f}{interval}, macro F1 {'none' if macro is None else f'{macro:.3f}'}"
