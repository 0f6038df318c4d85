"""What a second sensor, a sequence of dates and class weights bring on a larger simulated world.

A check of the software: the world has 60 km a side. The models of a pair share tiles, split and seed, five seeds
each, and are compared on the truth of held-out tiles, by cell of the spatial split. Intervals draw seeds and cells.
Tiles have 64 px and training is short: what comes out tells how this software learns from this simulator, and nothing
about satellites. A sequence's network begins with the weights of one that sees each date alone; it is compared with
that one, trained on for as long.

``benchmarks/learning.py FOLDER`` works in a folder, where a later run goes on. ``benchmarks/learning.py FOLDER 1024 1``
takes a world of 1024 px and one seed.

Figures, of each pair: ``NAME`` (gain of overall accuracy in points), ``NAME_low`` and ``NAME_high`` (95 %),
``NAME_seeds`` (the gain of each seed) and ``NAME_CLASS`` (gain in F1 of a class in points, the mean over the seeds); of
each model ``overall_MODEL`` and ``macro_f1_MODEL``, means over the seeds, in per cent.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import rasterio
import torch
import yaml
from _peers import report
from rasterio.windows import Window

from covermap.accuracy import scores
from covermap.config import load, model_legend
from covermap.grid import Grid, area_blocks, read_area
from covermap.predict import load_together
from covermap.score import Counts, guesses, tally
from covermap.simulator.catalog import world_polygon
from covermap.store import TileStore

ROOT = Path(__file__).resolve().parents[1]
PIXELS, SEEDS, CORES, THREADS = 6144, 5, 2, 2
BLOCK = 1024
TILES = {"pixels": 64, "buffer_pixels": 32, "max_cloud": 100, "test": 0.25, "seed": 0}
RECIPE = {"epochs": 6, "steps": 100, "batch": 8, "learning_rate": 1e-3, "threads": THREADS}
DRAWS = 2000
BOTH, OPTICAL = ["sentinel1", "sentinel2"], ["sentinel2"]
MODELS = {
    "optical": {"network": "deepforest_1b", "sensors": OPTICAL, "options": {"width": 16}},
    "fused": {"network": "deepforest_1b", "sensors": BOTH, "options": {"width": 16}},
    "fcn": {"network": "fcn", "sensors": OPTICAL, "options": {"width": 16}},
    "longer": {"network": "fcn", "sensors": OPTICAL, "options": {"width": 16}, "start_from": "fcn"},
    "lstm": {"network": "fcn_lstm", "sensors": OPTICAL, "options": {"width": 16}, "start_from": "fcn"},
    "even": {"network": "unet", "sensors": BOTH, "options": {"width": 16}, "class_weights": "none"},
    "weighted": {"network": "unet", "sensors": BOTH, "options": {"width": 16}, "class_weights": "inverse_sqrt"},
}
OTHERS_TILES = {"even": "fused", "weighted": "fused", "longer": "fcn", "lstm": "fcn"}
PAIRS = {"fusion": ("fused", "optical"), "sequence": ("lstm", "longer"), "weighting": ("weighted", "even")}
OF_DATES = {"fcn", "longer", "lstm"}


def cell_pixels(pixels: int) -> int:
    """Side of the split's cells in a world of so many pixels: twelve by twelve of them, down to two tiles."""
    return max(128, pixels // 12)


def configuration(folder: Path, pixels: int, seeds: int) -> dict:
    """The demo on a larger world, once with a composite and once with every date, and all models for each seed."""
    (folder / "area.geojson").write_text(json.dumps(world_polygon(pixels)))
    settings = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    world = settings["aois"]["demo"]
    legend = str(ROOT / "resources" / "legends" / "mapbiomas.csv")
    world["labels"]["legend"] = world["reference"]["legend"] = legend
    world |= {"area": "area.geojson", "block_pixels": min(BLOCK, pixels // 2), "model": "fused_0"}
    dates = {**copy.deepcopy(world), "sensors": OPTICAL, "composite": {"every": "scene"}, "model": "fcn_0"}
    del dates["dem"]
    tiles = {**TILES, "stride_pixels": max(64, pixels // 32), "cell_pixels": cell_pixels(pixels)}
    models = {}
    for name, shared in MODELS.items():
        for seed in range(seeds):
            entry = copy.deepcopy(shared)
            weights = entry.pop("class_weights", "inverse_sqrt")
            if "start_from" in entry:
                entry["start_from"] += f"_{seed}"
            area = "dates" if name in OF_DATES else "world"
            own, first = f"{name}_{seed}", f"{OTHERS_TILES.get(name, name)}_0"
            cut = {"tiles": tiles} if own == first else {"tiles_of": first}
            training = {**RECIPE, "class_weights": weights}
            models[own] = {**entry, **cut, "train_on": [area], "seed": seed, "training": training}
    return {
        "targets": ["world"],
        "aois": {"world": world, "dates": dates},
        "models": models,
        "registration": {"mode": "off"},
        "simulator": {"pixels": pixels, "seed": 1},
    }


def make(folder: Path, settings: dict, blocks: list[str]) -> None:
    """Train all models by the ordinary rules, and bring the truth onto the grid."""
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    targets = [f"results/models/{model}/weights.safetensors" for model in settings["models"]]
    targets += [f"results/references/world/{block}.tif" for block in blocks]
    line = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    line += ["--configfile", folder / "config.yaml", "--cores", CORES, "--quiet", "rules", "--"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*map(str, line), *targets], check=True, cwd=folder, env=environment)


def true_counts(folder: Path, model: str, area: str, grids: dict[str, Grid], cell: int, classes: int) -> Counts:
    """Confusion with the truth of the test tiles of a model, by cell of so many pixels a side."""
    results, name = folder / "results", model.rsplit("_", 1)[0]
    tiles = results / "tiles" / f"{OTHERS_TILES.get(name, name)}_0"
    packed = {(area, block): tiles / area / f"{block}.safetensors" for block in grids}
    nets, _ = load_together([results / "models" / model / "weights.safetensors"], torch.device("cpu"))
    store = TileStore(packed, tiles / "index.parquet", "test", list(nets[0].shapes))
    places = {place: grids[place[1]] for place in packed}
    judged = (
        one._replace(label=truth_of(results / "references" / "world" / f"{row.block}.tif", row.row, row.column))
        for row, one in zip(store.table.itertuples(), guesses(nets, store, 16, torch.device("cpu")), strict=True)
    )
    return tally(store, judged, places, cell, classes, "test")


def truth_of(path: Path, row: int, column: int) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read(1, window=Window(column, row, TILES["pixels"], TILES["pixels"]))


def paired(first: list[Counts], second: list[Counts]) -> dict[str, float | list[float]]:
    """Gain of overall accuracy in points, with a 95 % interval that draws seeds and cells, and that of each seed."""
    cells = sorted(first[0])
    pairs = zip(first, second, strict=True)
    gained = np.array([[np.trace(one[cell]) - np.trace(other[cell]) for cell in cells] for one, other in pairs])
    pixels = np.array([counts[cell].sum() for counts in first for cell in cells]).reshape(gained.shape)
    random = np.random.default_rng(0)
    rows = random.integers(len(first), size=(DRAWS, len(first), 1))
    columns = random.integers(len(cells), size=(DRAWS, 1, len(cells)))
    drawn = gained[rows, columns].sum((1, 2)) / pixels[rows, columns].sum((1, 2))
    low, high = np.percentile(100 * drawn, [2.5, 97.5])
    seeds = 100 * gained.sum(1) / pixels.sum(1)
    return {"": 100 * gained.sum() / pixels.sum(), "_low": low, "_high": high, "_seeds": seeds.round(2).tolist()}


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    pixels, seeds = (int(sys.argv[2]), int(sys.argv[3])) if len(sys.argv) > 3 else (PIXELS, SEEDS)
    folder.mkdir(parents=True, exist_ok=True)
    settings = configuration(folder, pixels, seeds)
    os.chdir(folder)
    config = load(copy.deepcopy(settings))
    world = config.aois["world"]
    grids = area_blocks(read_area(Path("area.geojson")), world.crs, world.block_pixels)
    make(folder, settings, sorted(grids))
    torch.set_num_threads(THREADS)
    keys = [entry.key for entry in model_legend(config, "fused_0").classes]
    counts: dict[str, list[Counts]] = {}
    for name in MODELS:
        area = "dates" if name in OF_DATES else "world"
        runs = [f"{name}_{seed}" for seed in range(seeds)]
        counts[name] = [true_counts(folder, run, area, grids, cell_pixels(pixels), len(keys)) for run in runs]
    figures: dict[str, float | list[float]] = {}
    scored = {name: [scores(sum(run.values())) for run in runs] for name, runs in counts.items()}
    for name, runs in scored.items():
        figures[f"overall_{name}"] = round(100 * np.mean([run["overall"] for run in runs]), 2)
        figures[f"macro_f1_{name}"] = round(100 * np.mean([run["macro_f1"] or 0 for run in runs]), 2)
    for name, (first, second) in PAIRS.items():
        for key, value in paired(counts[first], counts[second]).items():
            figures[name + key] = value if isinstance(value, list) else round(float(value), 2)
        for number, key in enumerate(keys):
            f1 = [[run["classes"][number]["f1"] for run in scored[model]] for model in (first, second)]
            if None not in f1[0] + f1[1]:
                figures[f"{name}_{key}"] = round(100 * float(np.mean(np.subtract(*f1))), 1)
    report("learning", **figures)


if __name__ == "__main__":
    main()
