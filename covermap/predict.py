"""Prediction of a block in overlapping windows of a lattice that does not know of blocks.

Windows lie on the CRS's own lattice and reach into the neighbours' stacks, so blocks never show. Stacks are read, the
networks applied (:mod:`covermap.blend`) and finished rows written beside each other.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rasterio.io import DatasetWriter
from rasterio.windows import Window
from torch import Tensor
from tqdm import tqdm

from covermap.blend import COLUMNS, CONFIDENCE_NODATA, TURNS, Band, Region, blended, finished, layer_names
from covermap.devices import reduced_precision, use_device
from covermap.errors import ModelError
from covermap.grid import Grid, false_origin
from covermap.inputs import (
    DAY,
    DTYPE,
    NODATA,
    SATELLITES,
    Steps,
    chosen_steps,
    is_filled,
    meaning_of,
    must_mean,
    seen_steps,
)
from covermap.model_settings import Bayes, Crf, Prediction
from covermap.models.normalise import Normalised
from covermap.pictures import Pictures, as_images, bands_in
from covermap.raster import TILE, new_raster
from covermap.room import room_for
from covermap.stack import read_stack
from covermap.strips import in_order
from covermap.trained import load_weights

log = logging.getLogger(__name__)

PACKED = 0.3  # bytes of a pixel of a layer on the disk, about


def predict_block(
    weights: list[Path],
    stacks: list[Path],
    prediction: Path,
    block: Grid,
    blocks: list[Grid],
    settings: Prediction,
    months: tuple[int, ...] = (),
    dates: tuple[date, ...] = (),
    crf: Crf | None = None,
    bayes: Bayes | None = None,
    calibrations: tuple[Path, ...] = (),
    pictures: Pictures | None = None,
    threads: int | None = None,
) -> None:
    """Step: classes, confidence and further layers of a block.

    Parameters
    ----------
    weights : of trained networks, whose probabilities are averaged.
    stacks : of the block and of its neighbours.
    prediction : output: GeoTIFF with class ids (0 without any observation), confidence in per cent (255 without) and
        the layers of the settings, as :func:`covermap.blend.finished` gives them.
    block : grid of the block.
    blocks : grid of each stack.
    settings : windows, overlap, blend, symmetries, layers and batch.
    months, dates : of the stacks those that the networks see, by ``chosen_steps``; none: all.
    crf : random field in each window, before windows are blended; None: none.
    bayes : smoothing of the blended probabilities; None: none.
    calibrations : temperature of each network; none: as they are.
    pictures : what the images are that the networks learned from, where they are classifiers of patches.
    threads : batches at once, which change no byte; None: those of the settings.

    Raises
    ------
    ModelError
        Weights that cannot be read or that do not go together, a window that a network cannot take, or a stack that
        lacks a month or date, or whose inputs mean something else than those that the networks learned from.
    RoomError
        The disk is full.
    """
    settings = settings.model_copy(update={"threads": threads or settings.threads})
    device = use_device(settings.threads)
    nets, classes = load_together(weights, device, calibrations)
    sources = [Source(*source, chosen_steps(source[1], months, dates)) for source in zip(blocks, stacks, strict=True)]
    sources = [suited(source, nets, pictures) for source in sources]
    predict = predictor(nets, len(classes), sources, block, settings, crf, device)
    about = told(settings, crf, bayes, [net.temperature for net in nets])
    log.info("%s", "; ".join(f"{name} {value}" for name, value in about.items()))
    names = layer_names(settings.layers, classes)
    needed = PACKED * len(names) * block.width * block.height
    with (
        room_for(prediction, needed),
        new_raster(
            prediction,
            block,
            count=len(names),
            dtype="uint8",
            nodata=CONFIDENCE_NODATA,
            descriptions=names,
            tags=about,
        ) as raster,
    ):
        for _ in in_order(lambda part: write_part(raster, *part), parts_of(predict, block, settings, bayes), threads=1):
            pass


def predictor(
    nets: list[Normalised],
    classes: int,
    sources: list[Source],
    block: Grid,
    settings: Prediction,
    crf: Crf | None,
    device: torch.device,
) -> Callable[[Region], Iterator[Band]]:
    """What gives the probabilities of any region around a block.

    Raises
    ------
    ModelError
        A network cannot take the window.
    """
    for net in nets:
        multiple = getattr(net.network, "multiple", 1)
        if settings.window_pixels % multiple:
            raise ModelError(f"prediction.window_pixels is {settings.window_pixels}: expected a multiple of {multiple}")
    read = partial(read_lattice, sources, shapes=shapes_in(nets, sources[0]), days=is_filled(nets[0].meaning))
    return partial(
        blended,
        lambda region: read(grid_at(region, block)),
        lambda batch: mean_probabilities(nets, batch, device),
        classes=classes,
        settings=settings,
        device=device,
        refine=partial(refined, nets[0], crf) if crf else None,
    )


def told(settings: Prediction, crf: Crf | None, bayes: Bayes | None, temperatures: list[float]) -> dict[str, object]:
    """Tags that say how a prediction was made."""
    ways = {"crf": crf, "bayes": bayes}
    return {
        "window_pixels": settings.window_pixels,
        "step_pixels": settings.step_pixels,
        "blend": settings.blend,
        "symmetries": len(TURNS) if settings.symmetries else 1,
        "temperatures": ", ".join(f"{temperature:g}" for temperature in temperatures),
        **{name: way.model_dump_json() for name, way in ways.items() if way},
    }


class Source(NamedTuple):
    """A stack that windows are read from."""

    grid: Grid
    path: Path
    steps: Steps  # those that the networks see
    show: Callable[[np.ndarray], np.ndarray] | None = None  # reflectance (T, C, y, x) in the values of images


def suited(source: Source, nets: Sequence[Normalised], pictures: Pictures | None) -> Source:
    """A stack as networks take it, shown like the images that they learned from, where they did.

    Raises
    ------
    ModelError
        Its inputs mean something else than those that the networks learned from.
    """
    found = meaning_of(source.path, source.steps)
    if pictures:
        bands = bands_in(nets[0].meaning, found, source.path)
        return source._replace(show=partial(as_images, bands=bands, pictures=pictures))
    must_mean(nets[0].meaning, found, source.path, "the network learned from", free_steps(nets))
    return source


def load_together(
    weights: list[Path], device: torch.device, calibrations: Sequence[Path] = ()
) -> tuple[list[Normalised], list[str]]:
    """Trained networks whose probabilities may be averaged, and the keys of the classes of them all.

    Raises
    ------
    ModelError
        Weights that cannot be read, or two with other classes or inputs.
    """
    loaded = [load_weights(*given) for given in zip(weights, repeat(device), calibrations or repeat(None))]
    first, classes = loaded[0]
    for path, (net, found) in zip(weights, loaded, strict=True):
        if found != classes:
            raise ModelError(
                f"{path} has the classes {', '.join(found)}, {weights[0]} has {', '.join(classes)}: average models of "
                "one legend"
            )
        both = {*first.any_steps} & {*net.any_steps}
        must_mean(first.meaning, net.meaning, path, f"{weights[0]} has", both)
        must_mean(net.meaning, first.meaning, weights[0], f"{path} has", both)  # an input that the first lacks
    return [net for net, _ in loaded], classes


def free_steps(nets: Sequence[Normalised]) -> set[str]:
    """Inputs of which every one of the networks takes any number of steps."""
    return set.intersection(*({*net.any_steps} for net in nets))


def mean_probabilities(nets: Sequence[Normalised], batch: dict[str, Tensor], device: torch.device) -> Tensor:
    """Mean class probabilities (B, K, y, x), or (B, K) of patches, each network's in the precision it was taught in."""
    scored = []
    for net in nets:
        with reduced_precision(device, net.reduced):
            scored.append(net.probabilities(batch))
    return torch.stack(scored).mean(0)


# --- from bands of probabilities to tiles of a raster ----------------------------------------------------------------

Part = tuple[int, int, np.ndarray]  # row and column in the raster, and its bands (bands, y, x)


def parts_of(
    predict: Callable[[Region], Iterator[Band]], block: Grid, settings: Prediction, bayes: Bayes | None
) -> Iterator[Part]:
    """What is written of a block: whole tiles of the raster, in strips of columns that bound the memory."""
    place = region_of(block)
    for column in range(0, block.width, COLUMNS):
        width = min(COLUMNS, block.width - column)
        region = Region(place.row, place.column + column, block.height, width)
        bands = smoothed_bands(predict, region, bayes) if bayes else predict(region)
        done = (finished(band.probabilities, band.seen, settings.layers) for band in bands)
        row = 0
        for part in regrouped(tqdm(done, "predict", disable=not sys.stderr.isatty()), TILE):
            log.info("rows %d to %d of %d, from column %d", row, row + part.shape[1], block.height, column)
            yield row, column, part
            row += part.shape[1]


def smoothed_bands(predict: Callable[[Region], Iterator[Band]], region: Region, bayes: Bayes) -> Iterator[Band]:
    """Bands of a region after Bayesian smoothing; what lies around it is predicted with it."""
    from covermap.postprocess import smoothed

    halo = bayes.pixels // 2
    row, column, height, width = region
    inside = slice(halo, halo + width)
    held: list[Band] = []
    for band in predict(Region(row - halo, column - halo, height + 2 * halo, width + 2 * halo)):
        held.append(band)
        seen = np.concatenate([each.seen for each in held])
        rows = slice(halo, len(seen) - halo)
        if rows.start < rows.stop:
            probabilities = torch.cat([each.probabilities for each in held], 1)
            found = smoothed(probabilities, torch.from_numpy(seen).to(probabilities.device), bayes)
            top = held[0].row + halo
            yield Band(top, found[:, rows, inside], seen[rows, inside])
            last = slice(len(seen) - 2 * halo, None)
            held = [Band(top - 2 * halo + rows.stop, probabilities[:, last], seen[last])]


def regrouped(arrays: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows of arrays (bands, y, x), so many at once, which the last may have fewer of."""
    held: list[np.ndarray] = []
    for array in arrays:
        held.append(array)
        if sum(each.shape[1] for each in held) >= rows:
            whole = np.concatenate(held, 1)
            full = whole.shape[1] // rows * rows
            yield from np.split(whole[:, :full], range(rows, full, rows), 1)
            held = [whole[:, full:]]
    if rest := [each for each in held if each.shape[1]]:
        yield np.concatenate(rest, 1)


def write_part(raster: DatasetWriter, row: int, column: int, part: np.ndarray) -> None:
    """Write bands (bands, y, x) of a part of a raster."""
    raster.write(part, window=Window(column, row, part.shape[2], part.shape[1]))


# --- a block on the lattice, and what windows see of stacks ----------------------------------------------------------


def region_of(grid: Grid) -> Region:
    """Where a grid lies on the lattice of its CRS."""
    east0, north0 = false_origin(grid.crs)
    row, column = round((north0 - grid.top) / grid.pixel_m), round((grid.left - east0) / grid.pixel_m)
    return Region(row, column, grid.height, grid.width)


def grid_at(region: Region, grid: Grid) -> Grid:
    """Grid of a region, on the lattice of another grid."""
    place = region_of(grid)
    return grid.window(region.row - place.row, region.column - place.column, region.height, region.width)


def refined(net: Normalised, crf: Crf, probabilities: Tensor, integers: dict[str, Tensor]) -> Tensor:
    """Probabilities (B, K, y, x) of windows after a random field that is guided by what was seen there.

    Raises
    ------
    ModelError
        There is one class to a window.
    """
    from covermap.postprocess import mean_field

    if probabilities.shape[2:] != next(iter(integers.values())).shape[3:]:
        raise ModelError("postprocess.crf needs a class of each pixel, and the network gives one to a patch: remove it")
    return mean_field(probabilities, *look_of(net, integers), crf)


def look_of(net: Normalised, integers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What a random field compares: the bands of satellites, each the mean of its steps, and where any was seen.

    Parameters
    ----------
    net : whose statistics normalise the bands.
    integers : (B, T, C, y, x) of each input.

    Returns
    -------
    float32 (B, F, y, x), in standard deviations, 0 where a band was never seen; bool (B, y, x).
    """
    bands, there = [], []
    for key in (key for key in SATELLITES if key in net.shapes):
        values, steps = integers[key], integers[key].shape[2]
        mean, std = (net.get_buffer(f"{key}_{name}")[None, :, :steps, None, None] for name in ("mean", "std"))
        seen = values != NODATA[key]
        total = torch.where(seen, (values - mean) / std, 0).sum(1)
        bands.append(total / seen.sum(1).clamp(min=1))
        there.append(seen.any(2).any(1))
    return torch.cat(bands, 1), torch.stack(there).any(0)


def shapes_in(nets: Sequence[Normalised], source: Source) -> dict[str, tuple[int, int]]:
    """Steps and bands (T, C) of each input of networks, with as many steps as a stack has where any number will do."""
    bare = seen_steps(read_stack(source.path, slice(0, 0), slice(0, 0), free_steps(nets)), source.steps)
    return {key: (len(bare[key]) if key in bare else steps, bands) for key, (steps, bands) in nets[0].shapes.items()}


def read_lattice(
    sources: list[Source], grid: Grid, shapes: dict[str, tuple[int, int]], days: bool
) -> dict[str, np.ndarray]:
    """Integers (T, C, y, x) of any window of the lattice, put together from the stacks that it meets.

    ``days``: those of s2 (T, y, x) come with it.
    """
    out = {key: np.full((*shape, *grid.shape), NODATA[key], DTYPE[key]) for key, shape in shapes.items()}
    if days:
        out[DAY] = np.zeros((shapes["s2"][0], *grid.shape), np.int16)
    for block, path, steps, show in sources:
        part = block.cropped(grid.bounds)
        if part is None:
            continue
        row, column = part.offset_in(block)
        place = slice(row, row + part.height), slice(column, column + part.width)
        read = seen_steps(read_stack(path, *place, list(out)), steps)
        if show:
            read = {key: show(values) for key, values in read.items()}
        row, column = part.offset_in(grid)
        for key, shape in shapes.items():
            if key not in read or read[key].shape[:2] != shape:
                found = read[key].shape[:2] if key in read else "none"
                raise ModelError(
                    f"stack {path} has {found} steps and bands of {key}, the network learned from {shape}: "
                    "map an area with the inputs, steps and bands of the training area"
                )
        for key, values in out.items():
            values[..., row : row + part.height, column : column + part.width] = read[key]
    return out
