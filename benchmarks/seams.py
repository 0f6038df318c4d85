"""How much the lines of windows show in a map, by the way that windows are blended, on the demo world.

``benchmarks/seams.py FOLDER PICTURE`` takes a folder where ``make demo`` has ended (this checkout, where none is
given) and, if asked to, draws a crop of some ways side by side.

The demo's area is mapped with the demo's network in several ways, four times each: the lattice of the windows is moved
by a quarter of its step. What changes across the lines of one lattice is compared with what changes at the very same
pixels where lines of another lattice are elsewhere, so that neither the land nor the network's own lattice is taken
for a seam. Intervals (95 %) draw cells of 256 px. Beside them stands what one map alone tells, as rule measure_seams
tells it: over neighbours alike in the network's lattice, and over all.

At last the demo's own borders of scenes, of which it has none within its area, and some that are made: half of the
months of Sentinel-1 are taken away in slanting strips, as where a track ends.

A simulated world: it checks the software, and accuracy is not that on the earth.

Figures, of each way: ``NAME`` (ratio for classes by moved lattices), ``NAME_low``, ``NAME_high``, ``NAME_confidence``,
``NAME_one_map``, ``NAME_plain``, ``NAME_network`` (changes on the network's own lattice over all others),
``NAME_accuracy`` (per cent of the truth's pixels) and ``NAME_s`` (seconds of one map); ``track`` and
``track_without`` (the same lines, nothing missing), with ``_low`` and ``_high``, and ``track_moved`` for the borders
that were made.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import yaml
from _peers import report
from PIL import Image
from shapely.geometry import Polygon

from covermap.blend import CONFIDENCE_NODATA, Region, blended, finished
from covermap.config import load, model_legend
from covermap.grid import Grid, area_blocks, read_area
from covermap.inputs import NODATA, chosen_steps
from covermap.legend import NO_LABEL
from covermap.model_settings import Prediction
from covermap.models.normalise import Normalised
from covermap.predict import Source, load_together, mean_probabilities, read_lattice, region_of, shapes_in
from covermap.raster import read_window
from covermap.scenes import read_listing
from covermap.seams import CELL, covered, input_borders, interval, lattices, tally, told

ROOT = Path(__file__).resolve().parents[1]
AREA, MODEL = "demo", "unet_demo"
MOVES = 4
NETWORK_PIXELS = 8  # period of the demo network's own lattice
WAYS = {  # window [px], overlap, blend
    "hann": (128, 0.5, "hann"),
    "hann_quarter": (128, 0.25, "hann"),
    "flat": (128, 0.5, "none"),
    "centre": (128, 0.5, "centre"),
    "none": (128, 0, "none"),
    "seed": (32, 0.5, "centre"),
    "hann_64": (64, 0.5, "hann"),
    "hann_256": (256, 0.5, "hann"),
}
STRIPS = 4
SHOWN = "none", "centre", "hann"
CROP, LARGER = 192, 2  # side of the picture's parts [px], and of a pixel in it

Maps = tuple[np.ndarray, np.ndarray]  # classes and confidence, uint8 (y, x)
Predict = Callable[..., Maps]


class World(NamedTuple):
    """What is mapped, and the truth."""

    grid: Grid
    inputs: dict[str, np.ndarray]
    truth: np.ndarray
    colours: np.ndarray  # uint8 (256, 3)


def world_of(folder: Path, nets: list[Normalised]) -> World:
    """The demo's inputs, all in memory."""
    results = folder / "results"
    settings = yaml.safe_load((folder / "config" / "config.yaml").read_text())
    os.chdir(folder)  # settings name files from here
    config = load(settings)
    blocks = area_blocks(read_area(config.aois[AREA].area), config.aois[AREA].crs, config.aois[AREA].block_pixels)
    paths = {name: results / "stacks" / AREA / f"{name}.zarr.zip" for name in blocks}
    sources = [Source(grid, paths[name], chosen_steps(paths[name], (), ())) for name, grid in blocks.items()]
    bounds = np.array([grid.bounds for grid in blocks.values()])
    (left, bottom), (right, top) = bounds[:, :2].min(0), bounds[:, 2:].max(0)
    pixel_m = sources[0].grid.pixel_m
    shape = {"width": round((right - left) / pixel_m), "height": round((top - bottom) / pixel_m)}
    grid = sources[0].grid.model_copy(update={"left": left, "top": top, **shape})
    truth = np.full(grid.shape, NO_LABEL, np.uint8)
    for name, block in blocks.items():
        row, column = block.offset_in(grid)
        part = read_window(results / "references" / AREA / f"{name}.tif", block, fill=NO_LABEL, indexes=[1])[0]
        truth[row : row + block.height, column : column + block.width] = part
    colours = np.full((256, 3), 255, np.uint8)
    for entry in model_legend(config, MODEL).classes:
        colours[entry.id] = [int(entry.colour[at : at + 2], 16) for at in (1, 3, 5)]
    return World(grid, read_lattice(sources, grid, shapes_in(nets, sources[0]), days=False), truth, colours)


def predicted(nets: list[Normalised], classes: int, grid: Grid, inputs: dict, settings: Prediction, move: int) -> Maps:
    """Classes and confidence, the lattice of the windows lying ``move`` pixels further north and west."""
    device, place = torch.device("cpu"), region_of(grid)
    moved = Region(place.row + move, place.column + move, *grid.shape)

    def read(region: Region) -> dict[str, np.ndarray]:
        return cut(inputs, region.row - moved.row, region.column - moved.column, region.height, region.width)

    score = partial(mean_probabilities, nets, device=device)
    bands = blended(read, score, moved, classes=classes, settings=settings, device=device)
    made = [finished(band.probabilities, band.seen) for band in bands]
    layers = np.concatenate(made, 1)
    return layers[0], layers[1]


def cut(inputs: dict[str, np.ndarray], row: int, column: int, height: int, width: int) -> dict[str, np.ndarray]:
    """Part of arrays (..., y, x) that may lie beyond them."""
    out = {}
    for key, values in inputs.items():
        out[key] = np.full((*values.shape[:-2], height, width), NODATA[key], values.dtype)
        y, x = slice(max(row, 0), max(row + height, 0)), slice(max(column, 0), max(column + width, 0))
        part = values[..., y, x]
        top, left = max(-row, 0), max(-column, 0)
        out[key][..., top : top + part.shape[-2], left : left + part.shape[-1]] = part
    return out


def reader(grid: Grid, maps: Maps) -> Callable[[Grid], Maps]:
    """Any window of maps in memory, or one pixel beyond them."""
    fills = NO_LABEL, CONFIDENCE_NODATA
    classes, sure = (np.pad(one, 1, constant_values=fill) for one, fill in zip(maps, fills, strict=True))

    def read(window: Grid) -> Maps:
        row, column = window.offset_in(grid)
        part = np.s_[row + 1 : row + 1 + window.height, column + 1 : column + 1 + window.width]
        return classes[part], sure[part]

    return read


def moves_of(settings: Prediction) -> list[int]:
    """How far the lattice is moved: about quarters of its step, and whole periods of the network's lattice [px]."""
    quarter = max(NETWORK_PIXELS, round(settings.step_pixels / MOVES / NETWORK_PIXELS) * NETWORK_PIXELS)
    return [move for move in range(0, MOVES * quarter, quarter) if move < settings.step_pixels]


def by_moves(maps: list[Maps], grid: Grid, settings: Prediction, moves: list[int]) -> list[tuple[float, ...]]:
    """Ratio, low and high for class and confidence: across the lines of one lattice, over the same pixels in others."""
    sums = np.zeros((2, 2, -(-grid.height // CELL), -(-grid.width // CELL)))  # measure, found and expected
    regions = lattices(settings, CELL)["steps"]
    for axis in (0, 1):
        changes = [changes_along(one, axis) for one in maps]
        for own, move in enumerate(moves):
            (parted,) = regions(grid.window(move, move, *grid.shape))
            at = np.flatnonzero(np.diff(parted[:, 0] if axis == 0 else parted[0]))
            across = np.stack([np.take(one, at, 1) for one in changes])  # (maps, measure, lines, pixels)
            for kind, part in enumerate((across[own], np.delete(across, own, 0).mean(0))):
                by_cell = np.add.reduceat(part, np.arange(0, part.shape[2], CELL), 2)  # (measure, lines, cells)
                for measure in (0, 1):
                    target = sums[measure, kind] if axis == 0 else sums[measure, kind].T
                    np.add.at(target, (at + 1) // CELL, by_cell[measure])
    told_of = [(found.ravel(), expected.ravel()) for found, expected in sums]
    return [(found.sum() / expected.sum(), *interval(found, expected)) for found, expected in told_of]


def changes_along(maps: Maps, axis: int) -> np.ndarray:
    """Change of class and step of the confidence from each pixel to the next of an axis, which comes first."""
    classes, sure = (one.astype(np.int16) if axis == 0 else one.astype(np.int16).T for one in maps)
    return np.stack([(np.diff(classes, axis=0) != 0).astype(np.int16), np.abs(np.diff(sure, axis=0))])


def measured(way: str, world: World, predict: Predict, settings: Prediction) -> tuple[dict[str, float], Maps]:
    """Figures of a way, and its map."""
    start = time.perf_counter()
    moves = moves_of(settings)
    maps = [predict(world.inputs, settings, moves[0])]
    seconds = time.perf_counter() - start
    maps += [predict(world.inputs, settings, move) for move in moves[1:]]
    classes, confidence = by_moves(maps, world.grid, settings, moves)
    kinds = lattices(settings, CELL, NETWORK_PIXELS)
    counts = tally(reader(world.grid, maps[0]), world.grid, kinds, NETWORK_PIXELS)
    one_map, network = (told(counts[kind])["class"] for kind in ("steps", "network"))
    known = world.truth != NO_LABEL
    figures = {
        way: classes[0],
        f"{way}_low": classes[1],
        f"{way}_high": classes[2],
        f"{way}_confidence": confidence[0],
        f"{way}_one_map": one_map["ratio"] or float("nan"),
        f"{way}_plain": one_map["plain"],
        f"{way}_network": network["plain"],
        f"{way}_accuracy": 100 * float((maps[0][0] == world.truth)[known].mean()),
        f"{way}_s": seconds,
    }
    print(
        f"{way:12} {settings.window_pixels:4} px, step {settings.step_pixels:4}, {settings.blend:6} "
        f"{classes[0]:6.3f} [{classes[1]:.3f}, {classes[2]:.3f}]  confidence {confidence[0]:6.3f}  "
        f"one map {one_map['ratio'] or float('nan'):6.3f} [{one_map['low'] or float('nan'):.3f}, "
        f"{one_map['high'] or float('nan'):.3f}]  plain {one_map['plain']:6.3f}  network {network['plain']:6.3f}  "
        f"accuracy {figures[f'{way}_accuracy']:6.2f} %  {seconds:6.1f} s",
        flush=True,
    )
    return figures, maps[0]


def track_borders(world: World, predict: Predict, settings: Prediction) -> dict[str, float]:
    """The statistic along slanting borders of strips in which half of the months of Sentinel-1 are missing."""
    left, bottom, right, top = world.grid.padded(CELL).bounds
    width, slant = (right - left) / (2 * STRIPS), (right - left) / 8
    corners = [left + 2 * number * width for number in range(STRIPS)]
    strips = [Polygon([(x, bottom), (x + width, bottom), (x + width + slant, top), (x + slant, top)]) for x in corners]
    inputs = {key: values.copy() for key, values in world.inputs.items()}
    inputs["s1"][::2, :, np.any(covered(world.grid, strips), 0)] = NODATA["s1"]
    kinds = {"track": partial(covered, outlines=strips)}
    figures = {}
    for name, given in (("track_without", world.inputs), ("track", inputs)):
        counts = tally(reader(world.grid, predict(given, settings, 0)), world.grid, kinds, NETWORK_PIXELS)
        one = told(counts["track"])
        print(f"{name}: {json.dumps(one)}")
        of_class = one["class"]
        figures |= {name: of_class["ratio"], f"{name}_low": of_class["low"], f"{name}_high": of_class["high"]}
    return figures | {"track_moved": one["class"]["moved_mean"]}


def draw(path: Path, layers: list[np.ndarray], colours: np.ndarray) -> None:
    """The crop in which the first and the last map but one differ most, of all layers side by side."""
    differ = layers[0] != layers[-2]
    rows, columns = (length // CROP for length in differ.shape)
    by_crop = differ[: rows * CROP, : columns * CROP].reshape(rows, CROP, columns, CROP).sum((1, 3))
    row, column = np.unravel_index(by_crop.argmax(), by_crop.shape)
    part = np.s_[row * CROP : (row + 1) * CROP, column * CROP : (column + 1) * CROP]
    tiles = [np.pad(colours[layer[part]], ((0, 0), (0, 4), (0, 0)), constant_values=255) for layer in layers]
    image = Image.fromarray(np.concatenate(tiles, 1)[:, :-4])
    image.resize((image.width * LARGER, image.height * LARGER), Image.Resampling.NEAREST).save(path, optimize=True)


def main() -> None:
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT
    picture = Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
    torch.set_num_threads(int(os.getenv("OMP_NUM_THREADS", "2")))
    nets, keys = load_together([folder / "results" / "models" / MODEL / "weights.safetensors"], torch.device("cpu"))
    world = world_of(folder, nets)

    def predict(inputs: dict[str, np.ndarray], settings: Prediction, move: int) -> Maps:
        return predicted(nets, len(keys), world.grid, inputs, settings, move)

    figures: dict[str, float] = {}
    shown: dict[str, np.ndarray] = {}
    for way, (window, overlap, blend) in WAYS.items():
        batch = max(1, 8 * 128**2 // window**2)
        settings = Prediction(window_pixels=window, overlap=overlap, blend=blend, batch=batch)
        more, maps = measured(way, world, predict, settings)
        figures |= more
        if way in SHOWN:
            shown[way] = maps[0]
    if picture:
        draw(picture, [*(shown[way] for way in SHOWN), world.truth], world.colours)
    borders = input_borders(read_listing(folder / "results" / "scenes" / f"{AREA}.json").values(), world.grid)
    counts = tally(reader(world.grid, (world.truth, world.truth)), world.grid, borders)
    for kind, one in counts.items():
        print(f"{kind}: {'no such border within the area' if one is None else told(one)}")
    figures |= track_borders(world, predict, Prediction(window_pixels=128, batch=8))
    report("seams", **{name: round(float(value), 3) for name, value in figures.items()})


if __name__ == "__main__":
    main()
