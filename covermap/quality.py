"""Scenes one by one: where each lies against the composite of the others, what it shows, and a picture of it.

Steps ``reference_block`` and ``check_scene``. A scene is never compared with itself: of each pixel the reference keeps
the three values in the middle of all scenes, from which the median without any one of them follows exactly.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from covermap.area_settings import Composite, Masks, Period, Registration
from covermap.composite import NO_BACKSCATTER, STEP_DB, sorting_network, to_db_steps
from covermap.errors import ProductError
from covermap.files import whole
from covermap.grid import Grid
from covermap.masks import DEFECTIVE, NO_DATA
from covermap.observations import STEP_REFLECTANCE, Scene, open_scenes, passes_of, seen_by, why_left_out
from covermap.quicklook import (
    TRUE_COLOUR,
    Note,
    captioned,
    colour_key,
    draw_backscatter,
    draw_reflectance,
    tint,
)
from covermap.raster import grid_of, new_raster, read_window
from covermap.registration import Shift, combined, patch_places, patch_shift
from covermap.scenes import Item, platform_of, sensor_of, tile_of

WINDOW_ROWS, WINDOW_COLUMNS = 512, 2048  # of a reference in work at once: whole tiles of its file
BLENDED_PIXELS = 1.5  # images that are further apart do not blend in a median
MASKED = np.iinfo(np.uint16).max  # sorts behind every observation
PARTS = ("below", "middle", "above", "count")  # of a reference
FLOOR_DB, ZERO_STEPS = -40.0, 10_000  # backscatter is kept in 0.01 dB above -100 dB, since 0 is no data
BAND = "B08"  # of Sentinel-2, where there is one: fields, water and towns differ most in it
SCL = "SCL"
SHARES = ("no_data", "clear", "rim", "cloud", "shadow", "snow", "defective", "other")  # what a pixel is: one of these
SHARE_OF_CLASS = {1: "defective", 3: "shadow", 8: "cloud", 9: "cloud", 10: "cloud", 11: "snow"}  # others: other
SIDE_PIXELS = 960  # of a picture's longer side
STRIP_ROWS = 256
LEAST_SIDE = 64  # of a compared patch


# --- the reference


def reference_block(
    s1: list[Path],
    s2: list[Path],
    reference: Path,
    block: Grid,
    period: Period,
    bands: tuple[str, ...],
    polarisations: tuple[str, ...],
    masks: Masks,
) -> None:
    """Step: what the scenes of a block have in common, to compare each of them with.

    Writes uint16, four bands (see `middle_values`) of each of

    - B08, or else the first of ``bands``: clear pixels in steps of 0.0001 of reflectance;
    - each orbit direction of Sentinel-1: the first polarisation in steps of 0.01 dB above -100 dB;

    0 where there is none. Memory is 2 bytes a scene and pixel of a window of 512 x 2048 px and about 40 bytes a
    pixel of it besides, whatever the block.

    Parameters
    ----------
    s1, s2 : scenes as ``process_s1`` and ``clip_s2`` write them.
    reference : GeoTIFF to write.
    block : the block's grid.
    period : scenes of other days are left out.

    Raises
    ------
    ProductError
        A scene is broken or lacks a band.
    """
    with ExitStack() as opened:
        found = [scene for paths in (s2, s1) for scene in open_scenes(paths, period, opened)]
        groups = _groups(found, period, bands, polarisations)
        names = [f"{name} {part}" for name in groups for part in PARTS] or ["none"]
        tags = {f"{name} observations": len(passes) for name, passes in groups.items()}
        with new_raster(
            reference,
            block,
            count=len(names),
            dtype="uint16",
            nodata=0,
            descriptions=names,
            tags=tags,
            interleave="band",
        ) as raster:
            for window in _windows(block):
                row, column = window.offset_in(block)
                place = Window(column, row, window.width, window.height)
                for index, (name, passes) in enumerate(groups.items()):
                    first = 1 + index * len(PARTS)
                    middle = _middle_of(passes, window, name.split()[0], masks)
                    raster.write(middle, range(first, first + len(PARTS)), window=place)


def _groups(
    scenes: Sequence[Scene], period: Period, bands: Sequence[str], polarisations: Sequence[str]
) -> dict[str, list[list[Scene]]]:
    """Scenes that are compared with one another, by the name of their reference.

    Neighbouring tiles of one overflight show the same pixels: they are one observation, or a scene would be compared
    with itself.
    """
    groups: dict[str, list[Scene]] = {}
    for scene in scenes:
        groups.setdefault(_reference_name(scene, bands, polarisations), []).append(scene)
    whole_period = [(period.start, period.end)]
    return {
        name: [each.scenes for each in passes_of(group, whole_period, Composite())] for name, group in groups.items()
    }


def _reference_name(scene: Scene, bands: Sequence[str], polarisations: Sequence[str]) -> str:
    if SCL in scene.raster.descriptions:
        return BAND if BAND in bands else bands[0]
    return f"{polarisations[0]} {scene.tags.get('orbit_state', 'unknown')}"


def _windows(block: Grid) -> Iterator[Grid]:
    for row in range(0, block.height, WINDOW_ROWS):
        for column in range(0, block.width, WINDOW_COLUMNS):
            height, width = min(WINDOW_ROWS, block.height - row), min(WINDOW_COLUMNS, block.width - column)
            yield block.window(row, column, height, width)


def _middle_of(passes: Sequence[Sequence[Scene]], grid: Grid, band: str, masks: Masks) -> np.ndarray:
    observations = np.empty((len(passes), *grid.shape), np.uint16)
    for each, scenes in zip(observations, passes, strict=True):
        each[...] = _of_pass(scenes, grid, band, masks)
    return middle_values(observations)


def _of_pass(scenes: Sequence[Scene], grid: Grid, band: str, masks: Masks) -> np.ndarray:
    """The first observation of each pixel by the scenes of an overflight."""
    out = _compared(scenes[0], grid, band, masks)
    for scene in scenes[1:]:
        np.copyto(out, _compared(scene, grid, band, masks), where=out == 0)
    return out


def _compared(scene: Scene, grid: Grid, band: str, masks: Masks) -> np.ndarray:
    """What is compared of a scene: uint16 (y, x), 0 where it is masked or has no data."""
    if SCL in scene.raster.descriptions:
        return np.where(seen_by(scene, masks, grid)[1], scene.read(grid, [band], 0)[0], 0).astype(np.uint16)
    return _db_steps(scene.power(grid, [band])[0])


def _db_steps(power: np.ndarray) -> np.ndarray:
    """Backscatter uint16 in 0.01 dB above -100 dB from linear power; 0 where there is none."""
    steps = to_db_steps(power, FLOOR_DB)
    return np.where(steps == NO_BACKSCATTER, 0, steps.astype(np.int32) + ZERO_STEPS).astype(np.uint16)


def middle_values(observations: np.ndarray) -> np.ndarray:
    """The values around the middle of each pixel's sorted observations, and their number.

    Parameters
    ----------
    observations : uint16 (scene, y, x), 0 no data. They are overwritten.

    Returns
    -------
    uint16 (4, y, x). Of an odd number of observations the median and its neighbours; of an even one the two in the
    middle, and 0 between them; 0 for those that do not exist. Last the number of observations.
    """
    counts = np.count_nonzero(observations, axis=0)
    np.copyto(observations, MASKED, where=observations == 0)
    planes = list(observations)
    for first, second in sorting_network(len(planes)):
        low = np.minimum(planes[first], planes[second])
        np.maximum(planes[first], planes[second], out=planes[second])
        planes[first] = low
    out = np.zeros((len(PARTS), *observations.shape[1:]), np.uint16)
    out[3] = counts
    half, odd = counts // 2, counts % 2 == 1
    for index, plane in enumerate(planes):
        there = index < counts
        np.copyto(out[0], plane, where=there & (index == half - 1))
        np.copyto(out[1], plane, where=there & odd & (index == half))
        np.copyto(out[2], plane, where=there & (index == half + odd))
    return out


def median_without(middle: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Median of all observations of a pixel but one.

    Parameters
    ----------
    middle : uint16 (4, y, x) of `middle_values`.
    own : uint16 (y, x), the observation that is left out, one of those; 0 where there was none.

    Returns
    -------
    float32 (y, x), NaN where nothing is left, or where there was no own observation.
    """
    below, centre, above = middle[:3].astype(np.float32)
    of_odd = np.where(own < centre, centre + above, np.where(own > centre, below + centre, below + above)) / 2
    of_even = np.where(own <= below, above, below)
    left = (own > 0) & (above > 0)
    return np.where(left, np.where(centre > 0, of_odd, of_even), np.float32(np.nan))


# --- one scene


def check_scene(
    scene: Path,
    reference: list[Path],
    quality: Path,
    quicklook: Path,
    item: dict[str, Any],
    grid: Grid,
    bands: tuple[str, ...],
    polarisations: tuple[str, ...],
    masks: Masks,
    settings: Registration,
) -> None:
    """Step: figures of a scene as JSON, and a picture of it with these figures.

    Shares are of the pixels of the area's window, and sum up to 1 for Sentinel-2: ``clear`` as composites use it, after
    masks are eroded and have grown; ``rim`` what they grow by; ``cloud``, ``shadow``, ``snow``, ``defective`` and
    ``other`` masked by their class; ``no_data``. ``shift`` is where the scene lies against the median of the others, of
    its sensor and, for Sentinel-1, of its orbit direction (see `covermap.registration`).

    Parameters
    ----------
    scene : as ``process_s1`` or ``clip_s2`` writes it.
    reference : of ``reference_block``, the blocks that the scene meets.
    quality, quicklook : JSON and PNG to write.
    item : STAC item of the scene.
    grid : the area's grid.

    Raises
    ------
    ProductError
        A raster is broken, or lacks a band or a tag.
    """
    optical, pixels = sensor_of(item) == "sentinel2", grid.width * grid.height
    with ExitStack() as opened:
        raster = Scene(scene, opened)
        window = grid.cropped(grid_of(raster.raster).bounds) or grid  # scenes reach beyond the area
        if optical:
            survey = _survey_optical(raster, window, bands, masks)
        else:
            survey = _survey_radar(raster, window, polarisations)
        name = _reference_name(raster, bands, polarisations)
        shift = _scene_shift(raster, window, name, _reference_blocks(reference, name), masks, settings)
        about = _identified(item, raster.tags) | {
            "shares": {name: round(count / pixels, 6) for name, count in survey.counts(pixels).items()},
            "shift": shift and shift._asdict(),
            "pixel_m": grid.pixel_m,
            "left_out": why_left_out(raster, masks) if optical else None,
            **survey.further,
        }
    drawn, about["picture_box"] = captioned(survey.picture, _notes(about, survey.tones), window.pixel_m * _step(window))
    with whole(quality) as part, whole(quicklook) as image:
        part.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
        drawn.save(image, compress_level=9)


def _identified(item: Item, tags: Mapping[str, str]) -> dict[str, Any]:
    """What a scene is, from its tags, or from its item where they do not say."""
    properties, sensor = item["properties"], sensor_of(item)
    about = {
        "scene": item["id"],
        "sensor": sensor,
        "datetime": tags["datetime"],
        "platform": tags.get("platform") or platform_of(item),
    }
    if sensor == "sentinel2":
        below = tags.get("below_zero")
        return {
            **about,
            "tile": tags.get("mgrs_tile") or tile_of(item),
            "baseline": tags.get("processing_baseline"),
            "below_zero": None if below is None else float(below),
        }
    track = tags.get("relative_orbit") or properties.get("sat:relative_orbit")
    state = tags.get("orbit_state") or properties.get("sat:orbit_state")
    return {**about, "track": track and int(track), "orbit_state": state}


# --- what it shows


class Survey(NamedTuple):
    """A picture with the names of its tones, pixels by what they show, and further figures."""

    picture: np.ndarray
    tones: list[str]
    observed: int
    shown: dict[str, int]
    further: dict[str, Any]

    def counts(self, pixels: int) -> dict[str, int]:
        """Pixels of an area by what they show, those that the scene does not reach among them."""
        return {"no_data": pixels - self.observed, **self.shown}


def _survey_optical(scene: Scene, window: Grid, bands: Sequence[str], masks: Masks) -> Survey:
    step = _step(window)
    colours = TRUE_COLOUR if set(TRUE_COLOUR) <= set(bands) else bands[:1]
    means, samples, counts = [], [], np.zeros(len(SHARES), np.int64)
    for strip in _strips(window, step):
        steps = scene.read(strip, colours, 0)
        means.append(binned_mean(steps * np.float32(STEP_REFLECTANCE), np.all(steps > 0, axis=0), step))
        shown = _shown(scene, strip, masks)
        samples.append(shown[step // 2 :: step, step // 2 :: step])
        counts += np.bincount(shown.ravel(), minlength=len(SHARES))
    picture, sampled = draw_reflectance(np.concatenate(means, axis=1)), np.concatenate(samples)
    for number, name in enumerate(SHARES[2:], 2):
        tint(picture, sampled == number, name)
    tones = [name for number, name in enumerate(SHARES[2:], 2) if (sampled == number).any()]
    by_name = dict(zip(SHARES, counts.tolist(), strict=True))
    return Survey(picture, tones, sum(by_name.values()) - by_name.pop("no_data"), by_name, {})


def _shown(scene: Scene, grid: Grid, masks: Masks) -> np.ndarray:
    """What the pixels of a Sentinel-2 scene show: numbers of SHARES, uint8 (y, x)."""
    names = np.full(256, SHARES.index("rim"), np.uint8)
    for number in (*masks.classes, DEFECTIVE):
        names[number] = SHARES.index(SHARE_OF_CLASS.get(number, "other"))
    names[NO_DATA] = SHARES.index("no_data")
    shown = names[scene.read(grid, [SCL], NO_DATA)[0].astype(np.uint8)]
    shown[seen_by(scene, masks, grid)[1]] = SHARES.index("clear")
    return shown


def _survey_radar(scene: Scene, window: Grid, polarisations: Sequence[str]) -> Survey:
    step = _step(window)
    levels = [np.zeros(0, np.int64)] * len(polarisations)
    powers, layers, seen, hidden = [], [], 0, 0
    for strip in _strips(window, step):
        power = scene.power(strip, polarisations)
        observed: np.ndarray = np.isfinite(power).all(axis=0)
        distorted: np.ndarray = observed & scene.distorted(strip)
        powers.append(binned_mean(power, observed, step))
        layers.append(binned_mean(distorted[None], observed, step)[0] > 0.5)
        seen, hidden = seen + int(observed.sum()), hidden + int(distorted.sum())
        steps = _db_steps(power)[:, observed]
        levels = [_added(known, np.bincount(new)) for known, new in zip(levels, steps, strict=True)]
    mean = np.concatenate(powers, axis=1)
    picture = draw_backscatter(10 * np.log10(np.maximum(mean, 1e-10)))
    tint(picture, np.concatenate(layers), "layover, shadow")
    medians = {name: _median_db(level) for name, level in zip(polarisations, levels, strict=True)}
    further = {"polarisations": list(polarisations), "median_db": medians}
    return Survey(picture, [], seen, {"distorted": hidden}, further)


def _added(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Sum of two counts of which one may reach further."""
    size = max(len(known), len(new))
    total: np.ndarray = np.pad(known, (0, size - len(known))) + np.pad(new, (0, size - len(new)))
    return total


def _median_db(counts: np.ndarray) -> float | None:
    """Median backscatter from the number of pixels of each step."""
    if not counts.any():
        return None
    return round((int(np.searchsorted(counts.cumsum(), counts.sum() / 2)) - ZERO_STEPS) * STEP_DB, 2)


def _step(window: Grid) -> int:
    """Pixels of a scene, a side, for one of its picture."""
    return math.ceil(max(window.shape) / SIDE_PIXELS)


def _strips(window: Grid, step: int) -> Iterator[Grid]:
    """Parts of a window, whose sides are whole pixels of the picture; the last ones may reach beyond it."""
    height, width = (math.ceil(extent / step) * step for extent in window.shape)
    rows = max(STRIP_ROWS // step, 1) * step
    for row in range(0, height, rows):
        yield window.window(row, 0, min(rows, height - row), width)


def binned_mean(values: np.ndarray, valid: np.ndarray, step: int) -> np.ndarray:
    """Means float32 of ``step`` x ``step`` pixels of (band, y, x) where ``valid`` (y, x); NaN where none is."""
    height, width = valid.shape
    shape = (-1, height // step, step, width // step, step)
    sums = np.where(valid, values, np.float32(0)).reshape(shape).sum((2, 4), dtype=np.float32)
    counts = valid.reshape(shape[1:]).sum((1, 3), dtype=np.int32)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.float32(np.nan)).astype(np.float32)


# --- where it lies


class ReferenceBlock(NamedTuple):
    """A block that has what a scene is compared with, and its bands of it."""

    path: Path
    grid: Grid
    bands: list[int]


def _reference_blocks(reference: Sequence[Path], name: str) -> list[ReferenceBlock]:
    wanted = [f"{name} {part}" for part in PARTS]
    blocks = []
    for path in reference:
        try:
            with rasterio.open(path) as raster:
                known, grid = list(raster.descriptions), grid_of(raster)
        except RasterioError as error:
            raise ProductError(f"reference {path} cannot be opened ({error}): remove it and run again") from error
        if wanted[0] in known:
            blocks.append(ReferenceBlock(path, grid, [known.index(band) + 1 for band in wanted]))
    return blocks


def _scene_shift(
    scene: Scene,
    window: Grid,
    name: str,
    blocks: Sequence[ReferenceBlock],
    masks: Masks,
    settings: Registration,
) -> Shift | None:
    """Where a scene lies against the others.

    Small shifts blend in a median as in a mean: against that of the n - 1 others a scene lies n / (n - 1) times as far
    as against that of all, which is what is told, so that scenes which are moved back meet in the middle. A scene that
    is further off does not blend: of three and more the median is where the others lie, and it is to come all the way.
    """
    side = min(settings.patch_pixels, *window.shape) // 2 * 2
    if side < LEAST_SIDE:
        return None
    shifts = []
    for row, column in patch_places(*window.shape, side, settings.patches):
        patch = window.window(row, column, side, side)
        own = _compared(scene, patch, name.split()[0], masks)
        middle = _read_reference(blocks, patch)
        others = median_without(middle, own)
        shift = patch_shift(np.where(own > 0, own, np.float32(np.nan)), others, settings.max_shift_pixels)
        if shift is not None:
            counts = middle[3][np.isfinite(others)]
            alone = math.hypot(*shift) > BLENDED_PIXELS and np.median(counts) > 2
            share = 1.0 if alone else 1 - float((1 / counts).mean())
            shifts.append((share * shift[0], share * shift[1]))
    return combined(shifts)


def _read_reference(blocks: Sequence[ReferenceBlock], patch: Grid) -> np.ndarray:
    """Middle values (4, y, x) of a patch, which may lie on several blocks."""
    out = np.zeros((len(PARTS), *patch.shape), np.uint16)
    for block in blocks:
        if block.grid.cropped(patch.bounds):
            np.maximum(out, read_window(block.path, patch, fill=0, indexes=block.bands), out=out)
    return out


# --- what is said under the picture


def _notes(about: dict[str, Any], tones: Sequence[str]) -> list[list[Note]]:
    """Paragraphs: which scene, what it shows, where it lies, its id."""
    shown = _notes_of_optics(about, tones) if about["sensor"] == "sentinel2" else _notes_of_radar(about)
    return [
        [(None, words) for words in _identity(about)],
        *shown,
        [(None, shift_in_words(about))],
        [(None, about["scene"])],
    ]


def satellite_name(platform: str | None) -> str:
    """Such as Sentinel-2A for sentinel-2a."""
    found = re.fullmatch(r"sentinel-?([12])([a-d]?)", (platform or "").lower())
    return f"Sentinel-{found[1]}{found[2].upper()}" if found else platform or "unknown satellite"


def _identity(about: dict[str, Any]) -> list[str]:
    named = [f"{about['datetime'][:16].replace('T', ' ')} UTC", satellite_name(about["platform"])]
    if about["sensor"] == "sentinel2":
        return [*named, f"tile {about['tile'] or 'unknown'}", f"baseline {about['baseline'] or 'unknown'}"]
    return [*named, f"track {about['track'] or 'unknown'}", about["orbit_state"] or "unknown direction"]


def _notes_of_optics(about: dict[str, Any], tones: Sequence[str]) -> list[list[Note]]:
    shares = about["shares"]
    notes: list[Note] = [(None, f"of the area: clear {_percent(shares['clear'])}")]
    for name in SHARES[2:]:
        if shares[name] > 0:
            notes.append((name if name in tones else None, f"{name} {_percent(shares[name])}"))
    if shares["no_data"] > 0:
        notes.append((None, f"no data {_percent(shares['no_data'])}"))
    if about["below_zero"] is not None:
        notes.append((None, f"below zero {_percent(about['below_zero'])}"))
    return [notes]


def _notes_of_radar(about: dict[str, Any]) -> list[list[Note]]:
    shares = about["shares"]
    medians = [f"{name} {value:.1f} dB" for name, value in about["median_db"].items() if value is not None]
    notes: list[Note] = [(None, "median " + ", ".join(medians).replace("-", "−"))] if medians else []
    if shares["distorted"] > 0:
        notes.append(("layover, shadow", f"layover, shadow {_percent(shares['distorted'])} of the area"))
    if shares["no_data"] > 0:
        notes.append((None, f"no data {_percent(shares['no_data'])}"))
    return [colour_key(about["polarisations"]), notes]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0 else "<0.1 %"


def shift_in_words(about: Mapping[str, Any]) -> str:
    """Such as 'shift 0.12 px right, 0.05 px up (1 m, 1 m) by 43 patches', from the figures of a scene."""
    shift = about["shift"]
    if shift is None:
        return "shift not found: too few scenes, clear pixels or contrasts, or further off than max_shift_pixels"
    right, down = shift["right_pixels"], shift["down_pixels"]
    sides = f"{abs(right):.2f} px {'left' if right < 0 else 'right'}, {abs(down):.2f} px {'up' if down < 0 else 'down'}"
    metres = f"{math.hypot(right, down) * about['pixel_m']:.1f} m"
    doubt = "" if shift["trusted"] else "uncertain "
    return f"{doubt}shift {sides} ({metres}), {shift['patches']} patches agree"
