"""Water that comes and goes: a label of water stays where every clear date agrees, by its NDWI.

The rule of Sefrin, Riese and Keller (2021, doi:10.3390/rs13010078), with clouds left out and the threshold a setting.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from covermap.area_settings import Composite, Masks, Period
from covermap.dates import Step, steps_of
from covermap.errors import ProductError
from covermap.files import whole
from covermap.grid import Grid
from covermap.legend import EXCLUDED, NO_LABEL
from covermap.models import INDICES
from covermap.observations import Scene, clear_enough, moves_of, open_scenes, passes_of, seen_by
from covermap.raster import TILE, grid_of, new_raster, read_pixels, read_window
from covermap.styles import templates, title_of

log = logging.getLogger(__name__)

NEVER_CLEAR = 2.0  # above every NDWI, so that no threshold excludes it
CHART = {"width": 640, "height": 416, "left": 72, "right": 616, "top": 84, "bottom": 336}
TICK_GAP = 36  # between the names of two thresholds on the chart


def ndwi(green: np.ndarray, near_infrared: np.ndarray) -> np.ndarray:
    """Normalised difference water index (McFeeters 1996, doi:10.1080/01431169608948714): float32, -1 to 1.

    Of integers it is the nearest float32 to the true quotient; 0 where both are 0.
    """
    green, near_infrared = green.astype(np.float32), near_infrared.astype(np.float32)
    total = green + near_infrared
    return np.divide(green - near_infrared, total, out=np.zeros_like(total), where=total != 0)


def lowest_ndwi(
    observations: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], shape: tuple[int, int]
) -> np.ndarray:
    """Lowest NDWI of the clear dates: float32 (y, x), 2 where no date is clear.

    Parameters
    ----------
    observations : green, near infrared and bool clear, each (y, x), one date after the other; none is kept.
    shape : rows and columns.
    """
    lowest = np.full(shape, NEVER_CLEAR, np.float32)
    for green, near_infrared, clear in observations:
        np.minimum(lowest, ndwi(green, near_infrared), out=lowest, where=clear)
    return lowest


def shoreline_mask(classes: np.ndarray, lowest: np.ndarray, water: Sequence[int], threshold: float) -> np.ndarray:
    """Classes uint8 (y, x), in which water that was below the threshold on a clear date is excluded (255).

    ASSUME: water that no clear date shows stays, since nothing speaks against its label.

    Parameters
    ----------
    classes : uint8 (y, x), class ids.
    lowest : of ``lowest_ndwi``.
    water : ids of the classes that are water.
    threshold : NDWI that water has at least.
    """
    return np.where(np.isin(classes, water) & (lowest < threshold), np.uint8(EXCLUDED), classes)


def find_shoreline(
    labels: Path,
    s2: list[Path],
    lowest: Path,
    block: Grid,
    period: Period,
    water: tuple[int, ...],
    masks: Masks,
    composite: Composite,
    steps: list[Step] | None = None,
    quality: list[Path] | None = None,
) -> None:
    """Lowest NDWI of the labelled water of a block, over the clear dates of its stack.

    Works in squares of 512 px, and one scene after the other: memory does not grow with their number. Where no label
    says water, no scene is read.

    Parameters
    ----------
    labels : of ``rasterize_labels``.
    s2 : scenes on the block's lattice, with the bands B03, B08 and SCL.
    lowest : output, float32: lowest NDWI of the clear dates, 2 where none is clear, NaN where no label says water.
    block : the block's grid.
    period, composite, steps, quality : which scenes are used and how they are moved, as for ``stack_block``.
    water : ids of the classes that are water.
    masks : what is clear. ASSUME: the masks are never overruled here, as the composite does where hardly any date is
        clear; a false date would exclude good water.

    Raises
    ------
    ProductError
        Labels or a scene are missing, broken or lack a band.
    """
    with ExitStack() as opened:
        found = open_scenes(s2, period, opened, moves_of(quality or []))
        steps = steps or steps_of(period, composite, [scene.day for scene in found])
        scenes = [scene for one in passes_of(clear_enough(found, masks), steps, composite) for scene in one.scenes]
        tags = {"source": labels, "scenes": len(scenes)}
        raster = opened.enter_context(
            new_raster(lowest, block, count=1, dtype="float32", nodata=np.nan, descriptions=("lowest_ndwi",), tags=tags)
        )
        for part, window in _parts(block):
            is_water = np.isin(read_window(labels, part, fill=NO_LABEL, indexes=[1])[0], water)
            ndwis = lowest_ndwi(_observations(scenes, part, masks) if is_water.any() else (), part.shape)
            raster.write(np.where(is_water, ndwis, np.nan).astype(np.float32), 1, window=window)


def mask_shoreline(
    labels: Path, lowest: Path, masked: Path, block: Grid, water: tuple[int, ...], threshold: float
) -> None:
    """Labels of a block whose water was water on every clear date; the rest of it is excluded.

    Parameters
    ----------
    labels : of ``rasterize_labels``.
    lowest : of ``find_shoreline``.
    masked : output, like ``labels``: uint8 bands ``class`` (255 where excluded) and ``weight`` (0 there).
    block : the block's grid.
    water : ids of the classes that are water.
    threshold : NDWI that water has at least on every clear date.

    Raises
    ------
    ProductError
        Labels or NDWI are missing or broken.
    """
    counts = {"excluded": 0, "of water": 0, "never clear and kept": 0}
    profile: dict[str, Any] = {"count": 2, "dtype": "uint8", "nodata": None, "descriptions": ("class", "weight")}
    with new_raster(masked, block, **profile, tags={"source": labels, "threshold": threshold}) as raster:
        for part, window in _parts(block):
            classes, weight = read_window(labels, part, fill=NO_LABEL)
            ndwis = read_window(lowest, part, fill=np.nan)[0]
            kept = shoreline_mask(classes, ndwis, water, threshold)
            raster.write(np.stack([kept, np.where(kept == EXCLUDED, 0, weight)]), window=window)
            counts["excluded"] += int((kept != classes).sum())
            counts["of water"] += int(np.isin(classes, water).sum())
            counts["never clear and kept"] += int((ndwis == NEVER_CLEAR).sum())
    log.info("%s: %s pixels", masked.name, ", ".join(f"{count} {what}" for what, count in counts.items()))


def _parts(grid: Grid) -> Iterator[tuple[Grid, Window]]:
    """Tiles of a raster on ``grid``, and their window in it."""
    for row, column in product(range(0, grid.height, TILE), range(0, grid.width, TILE)):
        height, width = min(TILE, grid.height - row), min(TILE, grid.width - column)
        yield grid.window(row, column, height, width), Window(column, row, width, height)


def _observations(
    scenes: Sequence[Scene], part: Grid, masks: Masks
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Green, near infrared and what is clear on ``part``, scene by scene."""
    for scene in scenes:
        _, clear = seen_by(scene, masks, part)
        green, near_infrared = scene.read(part, INDICES["ndwi"][1:], 0)
        yield green, near_infrared, clear & (green > 0) & (near_infrared > 0)


def sweep_shoreline(
    lowest: list[Path], table: Path, chart: Path, area: str, threshold: float, sweep: tuple[float, ...]
) -> None:
    """What each threshold would exclude of an area's water, as a table and a picture.

    Parameters
    ----------
    lowest : of ``find_shoreline``, one a block.
    table : CSV of threshold, excluded_ha, water_ha and share_of_water, for ``threshold`` and all of ``sweep``. Water is
        what was labelled so and seen clear at least once; without any, all are 0.
    chart : SVG of the excluded area over the threshold.
    area : its name.
    threshold : the one that is used.
    sweep : the others.

    Raises
    ------
    ProductError
        A raster is broken.
    """
    listed = sorted({threshold, *sweep})
    between = (hundredth / 100 for hundredth in range(math.ceil(listed[0] * 100), math.floor(listed[-1] * 100) + 1))
    thresholds = sorted({*listed, *between})
    blocks = [_areas_ha(path, thresholds) for path in lowest]
    excluded_ha = np.sum([excluded for excluded, _, _ in blocks], axis=0)
    water_ha, unseen_ha = sum(seen for _, seen, _ in blocks), sum(unseen for _, _, unseen in blocks)
    if not water_ha:
        log.warning(
            "area %s has %.2f ha of labelled water, none of it seen clear on any date, so there is no shoreline: check "
            "aois.%s.labels.shoreline.water and the masks",
            area,
            unseen_ha,
            area,
        )
    curve = dict(zip(thresholds, excluded_ha, strict=True))
    with whole(table) as part, open(part, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["threshold", "excluded_ha", "water_ha", "share_of_water"])
        for each in listed:
            share = curve[each] / water_ha if water_ha else 0
            rows.writerow([f"{each:g}", f"{curve[each]:.2f}", f"{water_ha:.2f}", f"{share:.4f}"])
    drawing = draw_sweep(curve, listed, threshold, area, water_ha, unseen_ha)
    with whole(chart) as part:
        part.write_text(drawing, encoding="utf-8")


def excluded_pixels(lowest: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Number of pixels that each threshold excludes: int64 (threshold,), from ``lowest`` of any shape, NaN no water."""
    seen = np.sort(lowest[lowest < NEVER_CLEAR])
    return np.searchsorted(seen, np.asarray(thresholds, np.float32))


def _areas_ha(path: Path, thresholds: Sequence[float]) -> tuple[np.ndarray, float, float]:
    """Of a block: water that each threshold excludes, water that was seen, and water that never was [ha]."""
    excluded, seen, unseen = np.zeros(len(thresholds), np.int64), 0, 0
    try:
        with rasterio.open(path) as raster:
            grid = grid_of(raster)
            for part, _ in _parts(grid):
                lowest = read_pixels(raster, part, fill=np.nan)
                excluded += excluded_pixels(lowest, thresholds)
                seen += int((lowest < NEVER_CLEAR).sum())
                unseen += int((lowest == NEVER_CLEAR).sum())
    except RasterioError as error:
        raise ProductError(f"{path} cannot be read as a raster ({error}): remove it and run again") from error
    pixel_ha = grid.pixel_m**2 / 1e4
    return excluded * pixel_ha, seen * pixel_ha, unseen * pixel_ha


def draw_sweep(
    curve: Mapping[float, float],
    listed: Sequence[float],
    threshold: float,
    area: str,
    water_ha: float,
    unseen_ha: float,
) -> str:
    """SVG of the excluded area over the NDWI threshold, which stands alone and prints in black and white.

    Parameters
    ----------
    curve : excluded area [ha] by threshold.
    listed : thresholds that are marked.
    threshold : the one that is named; it and ``listed`` are in ``curve``.
    area : its name.
    water_ha, unseen_ha : water that was seen clear, and water that never was [ha].
    """
    first, last = min(curve), max(curve)
    top = water_ha or 1.0
    step = next(m * 10.0**power for power in range(-6, 12) for m in (1, 2, 5) if top <= 5 * m * 10.0**power)
    steps = math.ceil(top / step)
    across, up = (CHART["right"] - CHART["left"]) / (last - first), (CHART["bottom"] - CHART["top"]) / (steps * step)

    def place(at: float) -> tuple[float, float]:
        return CHART["left"] + (at - first) * across, CHART["bottom"] - curve[at] * up

    template = templates().get_template("shoreline.svg.j2")
    return template.render(
        **CHART,
        area=title_of(area),
        water_ha=water_ha,
        water_y=CHART["bottom"] - water_ha * up,
        unseen_ha=unseen_ha,
        line=[place(at) for at in sorted(curve)],
        marks=[place(at) for at in listed],
        x_ticks=[(_plain(at), place(at)[0]) for at in _apart(listed, TICK_GAP / across)],
        y_ticks=[(f"{number * step:,.10g}", CHART["bottom"] - number * step * up) for number in range(steps + 1)],
        chosen={"at": _plain(threshold), "x": place(threshold)[0], "y": place(threshold)[1], "ha": curve[threshold]},
    )


def _plain(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Those of ascending values that are at least ``gap`` behind the last one kept."""
    kept = [values[0]]
    for value in values:
        if value - kept[-1] >= gap:
            kept.append(value)
    return kept
