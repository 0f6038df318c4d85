"""What processed scenes observe: bands by name, the overflights that they belong to, and where these are clear."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from covermap.area_settings import Composite, Masks, Period
from covermap.dates import Step, step_of
from covermap.errors import ProductError
from covermap.grid import Grid
from covermap.masks import DEFECTIVE, NO_DATA, clear_mask, dilate
from covermap.raster import read_pixels
from covermap.registration import correction, moved

log = logging.getLogger(__name__)

LAYOVER_SHADOW = "layover_shadow"  # band of a scene: 0 none, else its pixels do not show their place alone
STEP_REFLECTANCE = 0.0001
ONE_PASS = timedelta(minutes=30)  # tiles of one overflight; the next of a satellite comes after 100 minutes
REACH_PIXELS = 3  # further than the interpolation of a scene that is moved looks

Moves = Mapping[str, tuple[float, float]]


class Scene:
    """A processed scene: a raster whose bands have names, and tags that say where it comes from."""

    def __init__(self, path: Path, opened: ExitStack, move: tuple[float, float] | None = None) -> None:
        try:
            self.raster = opened.enter_context(rasterio.open(path))
        except RasterioError as error:
            raise ProductError(f"scene {path} cannot be opened ({error}): remove it and run again") from error
        self.path, self.tags, self.move = path, self.raster.tags(), move
        try:
            time = datetime.fromisoformat(self.tags["datetime"])
        except (KeyError, ValueError) as error:
            raise ProductError(
                f"scene {path} has no usable tag 'datetime' ({error}): remove it and run again"
            ) from error
        self.time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
        self.day = self.time.date()

    def read(self, grid: Grid, names: Sequence[str], fill: float, nearest: bool = False) -> np.ndarray:
        """Bands (band, y, x) by name on ``grid``; ``fill`` where the scene has none.

        A scene that is to be moved is read moved, by cubic convolution, or by whole pixels if ``nearest``.
        """
        return self._in_place(grid, lambda wide: self._kept(wide, names, fill), fill, nearest)

    def power(self, grid: Grid, polarisations: Sequence[str]) -> np.ndarray:
        """Linear power (polarisation, y, x) on ``grid``, whatever unit is kept; NaN where there is none."""
        return self._in_place(grid, lambda wide: self._linear(wide, polarisations), np.nan, False)

    def _kept(self, grid: Grid, names: Sequence[str], fill: float) -> np.ndarray:
        known = list(self.raster.descriptions)
        if missing := [name for name in names if name not in known]:
            raise ProductError(f"scene {self.path} has no band {missing[0]}, only {known}: remove it and run again")
        try:
            return read_pixels(self.raster, grid, fill=fill, indexes=[known.index(name) + 1 for name in names])
        except RasterioError as error:
            raise ProductError(f"scene {self.path} cannot be read ({error}): remove it and run again") from error

    def _linear(self, grid: Grid, polarisations: Sequence[str]) -> np.ndarray:
        values = self._kept(grid, polarisations, np.nan)
        return 10 ** (values / 10) if self.tags.get("units") == "dB" else values

    def _in_place(self, grid: Grid, read: Callable[[Grid], np.ndarray], fill: float, nearest: bool) -> np.ndarray:
        if self.move is None:
            return read(grid)
        rim = self.rim_pixels
        return moved(read(grid.padded(rim)), *self.move, fill, nearest)[:, rim:-rim, rim:-rim]

    @property
    def rim_pixels(self) -> int:
        """How far from its place a pixel is looked for."""
        return 0 if self.move is None else math.ceil(max(map(abs, self.move))) + REACH_PIXELS

    @property
    def class_counts(self) -> list[int]:
        """Pixels of each SCL class, 0 to 11, that the scene has in the area, by its tag ``scl_counts``."""
        told = self.tags.get("scl_counts", "")
        if not re.fullmatch(r"\d+(,\d+){11}", told, re.ASCII):
            raise ProductError(
                f"scene {self.path} has no usable tag 'scl_counts' ({told!r}, expected 12 numbers joined by commas): "
                "remove it and run again"
            )
        return [int(count) for count in told.split(",")]

    def masked_share(self, classes: Collection[int]) -> float:
        """Share of masked pixels among those that the scene observes in the area, before masks grow."""
        counts = self.class_counts
        return sum(counts[number] for number in classes if number != NO_DATA) / max(sum(counts[1:]), 1)

    def distorted(self, grid: Grid) -> np.ndarray:
        """Layover or shadow, bool (y, x) on ``grid``; none where the scene has no such layer."""
        if LAYOVER_SHADOW not in self.raster.descriptions:
            return np.zeros(grid.shape, bool)
        return self.read(grid, [LAYOVER_SHADOW], 0, nearest=True)[0] > 0


def open_scenes(paths: Sequence[Path], period: Period, opened: ExitStack, moves: Moves | None = None) -> list[Scene]:
    """Scenes of the period, by name, so that no order of arguments changes a result.

    ``moves``: pixels (right, down) by which scenes are moved when they are read, by the name of their file.
    """
    scenes = [Scene(path, opened, (moves or {}).get(path.stem)) for path in sorted(paths)]
    inside = [scene for scene in scenes if period.start <= scene.day <= period.end]
    for scene in scenes:
        if scene not in inside:
            log.warning("%s: %s is not in the period, left out", scene.path, scene.day)
    return inside


def moves_of(quality: Sequence[Path]) -> Moves:
    """How scenes are to be moved, of those that are."""
    if not quality:
        return {}
    found = {path.stem: correction(path) for path in quality}
    return {name: move for name, move in found.items() if move is not None}


def clear_enough(scenes: Sequence[Scene], masks: Masks) -> list[Scene]:
    """Sentinel-2 scenes without those that are masked in a greater share of the area than ``masks.max_scene``."""
    reasons = {scene: why_left_out(scene, masks) for scene in scenes}
    for scene, reason in reasons.items():
        if reason:
            log.warning("%s: left out, %s", scene.path, reason)
    return [scene for scene, reason in reasons.items() if reason is None]


def why_left_out(scene: Scene, masks: Masks) -> str | None:
    """Why stacks do without a Sentinel-2 scene, such as '91.0 % masked, limit 60 %'; None: they do not."""
    if masks.max_scene >= 100:
        return None
    share = 100 * scene.masked_share(masks.classes)
    return f"{share:.1f} % masked, limit {masks.max_scene:g} %" if share > masks.max_scene else None


class Pass(NamedTuple):
    """Sentinel-2 scenes of one overflight, by name: neighbouring tiles, and one observation of each pixel."""

    step: int
    day: date
    scenes: list[Scene]


def passes_of(scenes: Sequence[Scene], steps: Sequence[Step], composite: Composite) -> list[Pass]:
    """Overflights in order of time, less the scenes that belong to no step.

    ASSUME: a scene's day is that of UTC, and one overflight that crosses midnight is two where a step ends there.
    """
    passes: list[Pass] = []
    for scene in sorted(scenes, key=lambda scene: (scene.time, scene.path.name)):
        step = step_of(scene.day, steps, composite.season)
        if step is None:
            log.info("%s: %s is in no step, left out", scene.path, scene.day)
            continue
        same = [one for one in passes if one.step == step and _together(one.scenes[0], scene)]
        if same:
            same[-1].scenes.append(scene)
        else:
            passes.append(Pass(step, scene.day, [scene]))
    for one in passes:
        one.scenes.sort(key=lambda scene: scene.path.name)
    return passes


def _together(first: Scene, later: Scene) -> bool:
    """Whether two scenes are of one overflight."""
    return later.time - first.time < ONE_PASS and first.tags.get("platform") == later.tags.get("platform")


class View(NamedTuple):
    """A pass over some rows."""

    scenes: list[Scene]
    taken: np.ndarray  # uint8 (y, x): which of them a pixel is from

    def read(self, part: Grid, names: Sequence[str], columns: slice = slice(None), nearest: bool = False) -> np.ndarray:
        """Bands uint16 (band, y, x) on ``part`` of the rows."""
        out = self.scenes[0].read(part, names, 0, nearest)
        for number, scene in enumerate(self.scenes[1:], 1):
            np.copyto(out, scene.read(part, names, 0, nearest), where=self.taken[:, columns] == number)
        return out


def views_of(passes: Sequence[Pass], masks: Masks, rows: Grid) -> tuple[list[View], np.ndarray, np.ndarray]:
    """How passes see some rows: views, and where each observes and is clear, bool (pass, y, x)."""
    shape, views = (len(passes), *rows.shape), []
    observed, clear = np.zeros(shape, bool), np.zeros(shape, bool)
    for one, there, free in zip(passes, observed, clear, strict=True):
        taken = np.zeros(rows.shape, np.uint8)
        for number, scene in enumerate(one.scenes):
            visible, cloudless = seen_by(scene, masks, rows)
            if number:
                taken[(cloudless & ~free) | (visible & ~there)] = number
            there |= visible
            free |= cloudless
        views.append(View(one.scenes, taken))
    return views, observed, clear


def seen_by(scene: Scene, masks: Masks, rows: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Where a scene observes, and where it is clear: bool (y, x) each."""
    reach, erode = masks.dilate_m / rows.pixel_m, masks.erode_m / rows.pixel_m
    rim = math.ceil(reach) + 2 * math.ceil(erode) + REACH_PIXELS  # clouds beyond these rows reach into them
    inner = np.s_[rim : rim + rows.height, rim : rim + rows.width]
    scl = scene.read(rows.padded(rim), ["SCL"], NO_DATA, nearest=True)[0].astype(np.uint8)
    if scene.move is not None:
        scl[dilate(scl <= DEFECTIVE, REACH_PIXELS)] = NO_DATA  # bands are interpolated, and end near such
    observed = scl[inner] > DEFECTIVE
    return observed, clear_mask(scl, masks.classes, reach, erode)[inner] & observed
