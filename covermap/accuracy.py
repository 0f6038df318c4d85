"""How well a map agrees with its label and, where there is one, with an independent reference map.

Agreement with a label is not accuracy: the label errs too, and its errors are learnt. Only pixels of held-out cells
of the spatial split count. In every confusion matrix the rows are the map and the columns what it is compared with
(Olofsson et al. 2014, https://doi.org/10.1016/j.rse.2014.02.015, section 4).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from covermap.errors import CoverageError, ProductError
from covermap.files import whole
from covermap.grid import Grid
from covermap.legend import EXCLUDED, Legend
from covermap.model_settings import MIN_PIXELS, Tiles
from covermap.raster import read_grid, read_window
from covermap.splits import cell_names, corners_of_tests, held_out

STRIP_PIXELS = 1024
DRAWS = 2000
AREAS_BASIS = "pixel count, not an area estimate"
# what is compared (rows) with what (columns)
PAIRS = {
    "map_vs_label": ("map", "label"),
    "baseline_vs_label": ("baseline", "label"),
    "map_vs_reference": ("map", "reference"),
    "label_vs_reference": ("label", "reference"),
    "baseline_vs_reference": ("baseline", "reference"),
}

Scores = dict[str, Any]


def confusion(reference: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Pixel counts int64 (K, K): rows what was predicted, columns the reference.

    Parameters
    ----------
    reference, predicted : integer arrays of one shape with classes 1..K; pixels where either is none of them are left.
    classes : K.
    """
    return confusion_by_group(reference, predicted, classes, np.zeros(reference.shape, int), 1)[0]


def confusion_by_group(
    reference: np.ndarray, predicted: np.ndarray, classes: int, group: np.ndarray, groups: int
) -> np.ndarray:
    """Confusion matrices int64 (groups, K, K) of the pixels of each group 0..groups-1; see `confusion`."""
    row, column = predicted.astype(np.int64) - 1, reference.astype(np.int64) - 1
    inside = (row >= 0) & (row < classes) & (column >= 0) & (column < classes)
    index = (group[inside] * classes + row[inside]) * classes + column[inside]
    return np.bincount(index, minlength=groups * classes**2).reshape(groups, classes, classes)


def scores(matrix: np.ndarray, *, min_pixels: int = MIN_PIXELS) -> Scores:
    """Agreement measures of a confusion matrix (K, K), rows map, columns reference, ready for JSON.

    Returns
    -------
    ``overall``, ``kappa`` and ``macro_f1`` (mean F1 of the classes with at least ``min_pixels`` of reference), 0 to 1
    (kappa -1 to 1), and ``classes``: for each of the K classes ``users`` (share of the mapped pixels that are right),
    ``producers`` (share of the reference pixels that are found), ``f1``, ``iou``, ``support`` (reference pixels) and
    ``mapped`` (mapped pixels). None where a ratio has no denominator.
    """
    matrix = np.asarray(matrix, np.float64)
    hits, mapped, support, total = matrix.diagonal(), matrix.sum(1), matrix.sum(0), matrix.sum()
    measures = {
        "users": _ratio(hits, mapped),
        "producers": _ratio(hits, support),
        "f1": _ratio(2 * hits, mapped + support),
        "iou": _ratio(hits, mapped + support - hits),
    }
    overall = _ratio(hits.sum(), total)
    chance = _ratio((mapped * support).sum(), total**2)
    counted = measures["f1"][support >= max(min_pixels, 1)]
    return {
        "overall": _plain(overall),
        "kappa": _plain(_ratio(overall - chance, 1 - chance)),
        "macro_f1": _plain(counted.mean()) if counted.size else None,
        "classes": [
            {name: _plain(values[k]) for name, values in measures.items()}
            | {"support": int(support[k]), "mapped": int(mapped[k])}
            for k in range(len(matrix))
        ],
    }


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _plain(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def block_bootstrap(
    first: np.ndarray, second: np.ndarray, pixels: np.ndarray, *, seed: int, draws: int = DRAWS
) -> dict[str, float | None]:
    """Difference of overall agreement between two maps with its 95 % percentile interval over spatial cells.

    Neighbouring pixels err together, so whole cells are drawn with replacement, the same ones for both maps.

    Parameters
    ----------
    first, second : pixels of each cell (n,) where the first and the second map agree with the reference.
    pixels : pixels of each cell (n,), > 0.

    Returns
    -------
    ``difference`` (first minus second), ``low`` and ``high``, 0 to 1; no interval from fewer than two cells.
    """
    gain, pixels = np.asarray(first, np.float64) - second, np.asarray(pixels, np.float64)
    difference = float(gain.sum() / pixels.sum())
    cells = len(pixels)
    if cells < 2:
        return {"difference": difference, "low": None, "high": None}
    times = np.random.default_rng(seed).multinomial(cells, np.full(cells, 1 / cells), size=draws)
    low, high = np.percentile((times @ gain) / (times @ pixels), [2.5, 97.5])
    return {"difference": difference, "low": float(low), "high": float(high)}


def class_areas(map: Path, legend: Legend) -> dict[str, float]:
    """Hectares of each class of a map by counting its pixels, read strip by strip."""
    counts = np.zeros(256, np.int64)
    grid = read_grid(map)
    for strip in _strips(grid):
        counts += np.bincount(read_window(map, strip, fill=0)[0].ravel(), minlength=256)
    return {entry.key: float(counts[entry.id] * grid.pixel_m**2 / 10_000) for entry in legend.classes}


def evaluate(
    map: Path,
    labels: list[Path],
    reference: list[Path],
    baseline: Path,
    accuracy: Path,
    legend: Legend,
    tiles: Tiles,
    seed: int,
    index: Path | None = None,
    tested: str | None = None,
) -> None:
    """Step: agreement of a map, and of a per-pixel baseline, on the held-out cells of the spatial split, as JSON.

    All are compared on the same pixels: those of test cells where the label, the map and the baseline have a class
    and, for what is compared with the reference map, the reference map too.

    Parameters
    ----------
    map, baseline : uint8 class maps; 0 where there is none.
    labels, reference : a raster a block, its first band the class, under the same names; no reference: an empty list.
    accuracy : output.
    legend, tiles, seed : classes and split of the model.
    index, tested : table of the model's tiles, and the area whose test tiles are what is held out; none: test cells

    Raises
    ------
    CoverageError
        No held-out pixel to compare, or a block of labels without its reference.
    ProductError
        A raster cannot be read or has a class that the legend lacks.
    """
    corners = corners_of_tests(index, tested) if index and tested else None
    cells = _confusion_by_cell(map, labels, reference, baseline, legend, tiles, seed, corners)
    counts = {pair: np.stack([cell[k] for cell in cells.values()]) for k, pair in enumerate(PAIRS)} if cells else {}
    if not counts:
        raise CoverageError(
            f"no held-out pixel has a class in {map}, {baseline} and a label: "
            "choose a larger area or lessen tiles.cell_pixels, so that a labelled cell is held out"
        )
    if reference and not counts["map_vs_reference"].any():
        raise CoverageError(f"{reference[0]} and its like have no class at a held-out pixel: check the reference map")
    keys = [entry.key for entry in legend.classes]
    result = {
        "held_out": _held_out(counts["map_vs_label"]),
        "agreement": {pair: agreement(counts[pair], keys, seed) for pair in ("map_vs_label", "baseline_vs_label")},
        "reference": _against_reference(counts, keys, seed) if reference else None,
        "confusion": {
            "classes": keys,
            "rows": "the first named",
            **{pair: matrices.sum(0).tolist() for pair, matrices in counts.items() if matrices.any()},
        },
        "areas_ha": class_areas(map, legend),
        "areas_basis": AREAS_BASIS,
    }
    with whole(accuracy) as part:
        part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


def _held_out(matrices: np.ndarray) -> dict[str, int]:
    pixels = matrices.sum((1, 2))
    return {"cells": int((pixels > 0).sum()), "pixels": int(pixels.sum())}


def agreement(matrices: np.ndarray, keys: Sequence[str], seed: int, *, min_pixels: int = MIN_PIXELS) -> Scores:
    """Scores of all cells together, classes by key, with the interval of the overall agreement over the cells.

    Parameters
    ----------
    matrices : confusion matrices int64 (n, K, K) of the cells, rows map.
    keys : of the classes.
    seed : of the bootstrap.
    min_pixels : see :func:`scores`.
    """
    result = scores(matrices.sum(0), min_pixels=min_pixels)
    pixels = matrices.sum((1, 2))
    hits = matrices.trace(axis1=1, axis2=2)[pixels > 0]
    interval = block_bootstrap(hits, np.zeros_like(hits), pixels[pixels > 0], seed=seed)
    by_key = dict(zip(keys, result["classes"], strict=True))
    return result | {"low": interval["low"], "high": interval["high"], "classes": by_key}


def _against_reference(counts: Mapping[str, np.ndarray], keys: Sequence[str], seed: int) -> dict[str, Any]:
    pixels = counts["map_vs_reference"].sum((1, 2))
    seen = pixels > 0
    matrices = {name: counts[f"{name}_vs_reference"] for name in ("map", "label", "baseline")}
    hits = {name: cells.trace(axis1=1, axis2=2)[seen] for name, cells in matrices.items()}
    result: dict[str, Any] = _held_out(counts["map_vs_reference"])
    result |= {name: agreement(cells, keys, seed) for name, cells in matrices.items()}
    for other in ("label", "baseline"):
        result[f"map_minus_{other}"] = block_bootstrap(hits["map"], hits[other], pixels[seen], seed=seed)
    f1 = {name: {key: row["f1"] for key, row in result[name]["classes"].items()} for name in ("map", "label")}
    result["f1_gain_over_label"] = {
        key: None if None in (value, f1["label"][key]) else 100 * (value - f1["label"][key])
        for key, value in f1["map"].items()
    }
    return result


def _confusion_by_cell(
    map: Path,
    labels: list[Path],
    reference: list[Path],
    baseline: Path,
    legend: Legend,
    tiles: Tiles,
    seed: int,
    corners: np.ndarray | None,
) -> dict[int, np.ndarray]:
    """Confusion matrices int64 (pair, K, K) of every held-out cell, gathered strip by strip."""
    by_name = {path.name: path for path in reference}
    cells: dict[int, np.ndarray] = {}
    for path in labels:
        if reference and path.name not in by_name:
            raise CoverageError(f"labels {path} have no reference block {path.name}: make the reference of every block")
        for strip in _strips(read_grid(path)):
            test = held_out(strip, tiles, seed, corners)
            if not test.any():
                continue
            files = {"map": map, "label": path, "baseline": baseline}
            if reference:
                files["reference"] = by_name[path.name]
            classes = {name: _held_out_classes(file, strip, test, legend) for name, file in files.items()}
            _gather(cells, classes, cell_names(strip, tiles)[test], len(legend.classes))
    return cells


def _strips(grid: Grid) -> Iterator[Grid]:
    for row in range(0, grid.height, STRIP_PIXELS):
        yield grid.window(row, 0, min(STRIP_PIXELS, grid.height - row), grid.width)


def _held_out_classes(path: Path, grid: Grid, test: np.ndarray, legend: Legend) -> np.ndarray:
    """Classes uint8 (n,) of the held-out pixels, 0 where there is none."""
    classes = read_window(path, grid, fill=0, indexes=[1])[0][test]
    classes[classes == EXCLUDED] = 0
    if classes.size and classes.max() > len(legend.classes):
        raise ProductError(
            f"{path} has class {classes.max()}, but the legend ends at {len(legend.classes)}: make it with this legend"
        )
    return classes


def _gather(cells: dict[int, np.ndarray], classes: Mapping[str, np.ndarray], names: np.ndarray, count: int) -> None:
    common = (classes["map"] > 0) & (classes["label"] > 0) & (classes["baseline"] > 0)
    present, group = np.unique(names[common], return_inverse=True)
    for k, (predicted, reference) in enumerate(PAIRS.values()):
        if reference not in classes:
            continue
        # a pixel without reference is of no class there and drops out of all three comparisons alike
        matrices = confusion_by_group(
            classes[reference][common], classes[predicted][common], count, group, len(present)
        )
        for name, matrix in zip(present.tolist(), matrices, strict=True):
            cells.setdefault(name, np.zeros((len(PAIRS), count, count), np.int64))[k] += matrix
