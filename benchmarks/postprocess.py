"""What random field, smoothing, majority and minimum unit bring to the demo's map, what they cost, and across blocks.

Probabilities of a finished run's network are computed once more, in its windows; each step is then applied by itself
and compared with the simulator's truth on held-out cells. All but the random field are applied to the probabilities of
a random forest too, which sees each pixel by itself. A check of the software: the world is simulated.

``benchmarks/postprocess.py FOLDER`` takes the folder of a run of the demo; without one the demo is run first.

Figures, of each step: ``overall_STEP``, ``macro_f1_STEP`` and ``f1_STEP_CLASS`` in per cent; ``s_per_mpx_STEP``,
processor seconds a megapixel of the map, and ``share_STEP``, that over the network's; ``blocks_equal``, whether every
step gave the same bytes in blocks of 300 px as in one piece.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _peers import ROOT, report
from demo import run

from covermap.accuracy import confusion, scores
from covermap.baseline import features, taught, training_pixels
from covermap.blend import blended, finished
from covermap.devices import use_device
from covermap.grid import Grid
from covermap.inputs import SATELLITES, chosen_steps, is_filled, observed
from covermap.model_settings import Bayes, Crf, Model, Tidy, halo_pixels
from covermap.postprocess import smoothed, tidied
from covermap.predict import (
    Source,
    grid_at,
    load_together,
    mean_probabilities,
    read_lattice,
    refined,
    region_of,
    shapes_in,
    suited,
)
from covermap.raster import grid_of, read_window
from covermap.splits import held_out
from covermap.store import TileStore
from covermap.trained import read_weights

NAME, THREADS, BLOCK = "unet_demo", 1, 300
PARTS = 8  # in which the forest sees the area
CRF, BAYES = Crf(), Bayes()
TIDY = {"majority": Tidy(majority_pixels=5), "unit": Tidy(min_unit_ha=0.25)}


class Run(NamedTuple):
    """A finished run of the demo."""

    network: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    refine: Callable[[torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]
    read: Callable[[Grid], dict[str, np.ndarray]]
    model: Model
    classes: list[str]
    grid: Grid
    truth: np.ndarray  # uint8 (y, x) of held-out cells; 0 elsewhere
    store: TileStore  # training tiles


def opened(folder: Path) -> Run:
    results, device = folder / "results", use_device(THREADS)
    weights = results / "models" / NAME / "weights.safetensors"
    model = Model(**read_weights(weights)[0]["model"])
    calibration = weights.with_name("calibration.json")
    nets, classes = load_together([weights], device, [calibration] if calibration.exists() else ())
    references = sorted((results / "references/demo").glob("*.tif"))
    grids = [grid_of_file(path) for path in references]
    stacks = [results / "stacks/demo" / f"{path.stem}.zarr.zip" for path in references]
    sources = [
        suited(Source(grid, stack, chosen_steps(stack, (), ())), nets, None)
        for grid, stack in zip(grids, stacks, strict=True)
    ]
    read = partial(read_lattice, sources, shapes=shapes_in(nets, sources[0]), days=is_filled(nets[0].meaning))
    whole = grid_of_file(results / "maps/demo.tif")
    truth = np.zeros(whole.shape, np.uint8)
    for path in references:
        truth = np.maximum(truth, read_window(path, whole, fill=0, indexes=[1])[0])
    truth[~held_out(whole, model.tiles, model.split_seed)] = 0
    tiles = results / "tiles" / NAME
    stores = {("demo", path.stem): path for path in (tiles / "demo").glob("*.safetensors")}
    store = TileStore(stores, tiles / "index.parquet", "train")
    network = partial(mean_probabilities, nets, device=device)
    return Run(network, partial(refined, nets[0], CRF), read, model, classes, whole, truth, store)


def grid_of_file(path: Path) -> Grid:
    import rasterio

    with rasterio.open(path) as raster:
        return grid_of(raster)


def timed(function: Callable, spent: list[float]) -> Callable:
    """The same function, which adds the processor seconds of each call to a list."""

    def call(*arguments: object) -> object:
        start = time.process_time()
        result = function(*arguments)
        spent.append(time.process_time() - start)
        return result

    return call


def predicted(one: Run, grid: Grid, spent: dict[str, list[float]], crf: bool) -> tuple[torch.Tensor, np.ndarray]:
    """Probabilities (K, y, x) and where anything was seen."""
    bands = list(
        blended(
            lambda region: one.read(grid_at(region, grid)),
            timed(one.network, spent.setdefault("network", [])),
            region_of(grid),
            classes=len(one.classes),
            settings=one.model.prediction,
            device=torch.device("cpu"),
            refine=timed(one.refine, spent.setdefault("crf", [])) if crf else None,
        )
    )
    return torch.cat([band.probabilities for band in bands], 1), np.concatenate([band.seen for band in bands])


def of_forest(one: Run) -> tuple[torch.Tensor, np.ndarray]:
    """The same of a random forest, on held-out cells."""
    seed, sensors = one.model.split_seed, one.model.sensors
    forest = taught(*training_pixels(one.store, sensors, seed), seed, THREADS)
    out, seen = np.zeros((len(one.classes), *one.grid.shape), np.float32), np.zeros(one.grid.shape, bool)
    for rows in np.array_split(np.arange(one.grid.height), PARTS):
        part = slice(rows[0], rows[-1] + 1)
        inputs = one.read(one.grid.window(int(rows[0]), 0, len(rows), one.grid.width))
        seen[part] = observed(inputs) & (one.truth[part] > 0)
        if seen[part].any():
            shares = forest.predict_proba(features({key: inputs[key] for key in SATELLITES}, seen[part]))
            for k, share in zip(forest.classes_, shares.T, strict=True):
                out[int(k) - 1, part][seen[part]] = share
    return torch.from_numpy(out), seen


def in_blocks(work: Callable[..., np.ndarray], arrays: list[np.ndarray], halo: int) -> np.ndarray:
    """What a function of arrays (..., y, x) gives, block by block, each with its rim."""
    height, width = arrays[0].shape[-2:]
    framed = [np.pad(array, [(0, 0)] * (array.ndim - 2) + [(halo, halo)] * 2) for array in arrays]
    rows = []
    for row in range(0, height, BLOCK):
        parts = []
        for column in range(0, width, BLOCK):
            place = np.s_[..., row : row + BLOCK + 2 * halo, column : column + BLOCK + 2 * halo]
            found = work(*(np.ascontiguousarray(array[place]) for array in framed))
            parts.append(found[..., halo : found.shape[-2] - halo, halo : found.shape[-1] - halo])
        rows.append(np.concatenate(parts, -1))
    return np.concatenate(rows, -2)


def maps_of(one: Run) -> tuple[dict[str, np.ndarray], dict[str, float], bool]:
    """The map of each step, seconds of each, and whether blocks gave the same."""
    spent: dict[str, list[float]] = {}
    given = predicted(one, one.grid, {}, False)
    field, seen = predicted(one, one.grid, spent, True)
    found = {"crf": finished(field, seen, ())[0]}
    block = one.grid.window(BLOCK // 2, BLOCK // 2, BLOCK, BLOCK)  # beside the lattice of windows
    again, there = predicted(one, block, {}, True)
    inside = slice(BLOCK // 2, BLOCK // 2 + BLOCK)
    equal = torch.equal(again[:, there], field[:, inside, inside][:, there])
    for name, (probabilities, seen) in (("network", given), ("forest", of_forest(one))):
        before = finished(probabilities, seen, ())[0]
        for step, work, arrays, halo in steps_of(one, probabilities, seen, before):
            work(*(array[..., :64, :64] for array in arrays))  # compiled once
            after = timed(work, spent.setdefault(step if name == "network" else f"{name}_{step}", []))(*arrays)
            equal &= np.array_equal(in_blocks(work, arrays, halo), after)
            found[step if name == "network" else f"{name}_{step}"] = after
        found[name] = before
    return found, {name: sum(times) for name, times in spent.items()}, bool(equal)


Step = tuple[str, Callable[..., np.ndarray], list[np.ndarray], int]


def steps_of(one: Run, probabilities: torch.Tensor, seen: np.ndarray, classes: np.ndarray) -> Iterator[Step]:
    """Name, function, what it is given, and its halo: each gives classes (y, x)."""

    def smooth(values: np.ndarray, there: np.ndarray) -> np.ndarray:
        result = smoothed(torch.from_numpy(values), torch.from_numpy(there), BAYES)
        return finished(result, there, ())[0]

    yield "bayes", smooth, [probabilities.numpy(), seen], BAYES.pixels // 2
    for name, tidy in TIDY.items():
        work = partial(tidied, tidy=tidy, pixel_m=one.grid.pixel_m)
        yield name, work, [classes], halo_pixels(tidy, one.grid.pixel_m)


def main(folder: Path) -> None:
    one = opened(folder)
    found, spent, equal = maps_of(one)
    figures: dict[str, object] = {"blocks_equal": equal}
    for name, map_ in found.items():
        result = scores(confusion(one.truth, map_, len(one.classes)))
        figures[f"overall_{name}"] = round(100 * result["overall"], 2)
        figures[f"macro_f1_{name}"] = round(100 * result["macro_f1"], 2)
        for key, entry in zip(one.classes, result["classes"], strict=True):
            if entry["support"]:
                figures[f"f1_{name}_{key}"] = round(100 * entry["f1"], 2)
        if name in spent and not name.startswith("forest"):
            figures[f"s_per_mpx_{name}"] = round(spent[name] / one.truth.size * 1e6, 3)
            figures[f"share_{name}"] = round(spent[name] / spent["network"], 4)
        print(
            name, figures[f"overall_{name}"], figures[f"macro_f1_{name}"], figures.get(f"s_per_mpx_{name}"), flush=True
        )
    report("postprocess", **figures)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            for part in ("config", "resources/aois", "resources/legends"):
                (Path(name) / part).parent.mkdir(parents=True, exist_ok=True)
                (Path(name) / part).symlink_to(ROOT / part)
            run(Path(name))
            main(Path(name))
