"""A picture of an area's labels, with their legend."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np

from covermap.files import whole
from covermap.grid import Grid
from covermap.legend import EXCLUDED, NO_LABEL, Legend
from covermap.quicklook import HATCHED, Mark, Note, captioned, hatched
from covermap.raster import read_window

log = logging.getLogger(__name__)

LONGEST_PIXELS = 1600  # of a picture's sides
EXCLUDED_GREY = (128, 128, 128)


def draw_labels(labels: list[Path], picture: Path, blocks: list[Grid], grid: Grid, legend: Legend) -> None:
    """Draw the labels of an area, every n-th pixel of them, with the share of each class.

    Parameters
    ----------
    labels
        Rasters of ``blocks``, in their order; band 1 has class ids.
    picture
        Output, PNG.
    grid
        The area's.
    legend
        Names and colours.

    Raises
    ------
    ProductError
        A raster cannot be read.
    """
    step = math.ceil(max(grid.shape) / LONGEST_PIXELS)
    shown = np.zeros((math.ceil(grid.height / step), math.ceil(grid.width / step)), np.uint8)
    counts = np.zeros(256, np.int64)
    for path, block in zip(labels, blocks, strict=True):
        part = grid.cropped(block.bounds)
        if part is None:
            continue
        classes = read_window(path, part, fill=NO_LABEL, indexes=[1])[0]
        counts += np.bincount(classes.ravel(), minlength=256)
        row, column = part.offset_in(grid)
        first = -row % step, -column % step
        thinned = classes[first[0] :: step, first[1] :: step]
        top, left = math.ceil(row / step), math.ceil(column / step)
        shown[top : top + thinned.shape[0], left : left + thinned.shape[1]] = thinned
    absent = [entry.name for entry in legend.classes if not counts[entry.id]]
    if absent:
        log.warning("no pixel of the area is of %s", ", ".join(absent))
    sheet, _ = captioned(in_colour(shown, legend), [[], shares(counts, legend)], grid.pixel_m * step)
    with whole(picture) as part_file:
        sheet.save(part_file, "PNG")


def in_colour(classes: np.ndarray, legend: Legend) -> np.ndarray:
    """Picture uint8 (y, x, 3) of class ids: colours of the legend, grey where excluded, hatched without a label."""
    table = np.zeros((256, 3), np.uint8)
    table[EXCLUDED] = EXCLUDED_GREY
    for entry in legend.classes:
        table[entry.id] = entry.rgb
    return np.where((classes == NO_LABEL)[..., None], hatched(classes.shape)[..., None], table[classes])


def shares(counts: np.ndarray, legend: Legend) -> list[Note]:
    """The classes that occur, with their shares of all pixels, and what else there is; ``counts`` int (256,)."""
    marks: list[tuple[int, Mark, str]] = [(entry.id, entry.rgb, entry.name) for entry in legend.classes]
    marks += [(EXCLUDED, EXCLUDED_GREY, "excluded"), (NO_LABEL, HATCHED, "no label")]
    return [(mark, f"{name} {_percent(counts[id] / counts.sum())}") for id, mark, name in marks if counts[id]]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"
