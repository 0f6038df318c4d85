"""The stack of a block: all inputs of its pixels in one file, the scenes made composites by month and step.

A stack is a stored zip of a Zarr store (format 2, chunks of all dates and bands by 128 x 128 px, Blosc with byte
shuffle and LZ4): docs/stack.md says why. Plain xarray opens it, as dB and reflectance with NaN where there is no data::

    xarray.open_zarr(zarr.storage.ZipStore(path, mode="r"))

``open_stack(path)`` is the same in short, ``read_stack(path, rows, columns)`` a window of the integers that are kept.
The same scenes and settings give the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from covermap import __version__
from covermap.area_settings import Composite, Masks, Period
from covermap.composite import (
    NO_BACKSCATTER,
    STEP_DB,
    composite_power,
    composite_reflectance,
    fill_gaps,
    first_of,
    medoid,
    middle_of,
    to_db_steps,
)
from covermap.dates import Step, middle_day, steps_of
from covermap.errors import ProductError, SettingError
from covermap.files import whole
from covermap.grid import Grid
from covermap.observations import (
    STEP_REFLECTANCE,
    Pass,
    Scene,
    View,
    clear_enough,
    moves_of,
    open_scenes,
    passes_of,
    views_of,
)
from covermap.scenes import TREND

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger(__name__)

CHUNK_PIXELS = 128
ROWS = 2 * CHUNK_PIXELS  # in work at once: whole chunks, each written once
COLUMNS = 4 * CHUNK_PIXELS  # of them, where all bands are needed at once
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of all files in the zip
INCIDENCE_ANGLE = "incidence_angle"  # band of a scene [degrees]
SCL, SCENE_CLASSES = "scl", 11  # layer: the scene class, 1 to 11
DIRECTIONS = ("ascending", "descending")
NO_TERRAIN, STEPS_A_DEGREE = -32768, 100
LOCAL_HEADER_BYTES = 30  # before the name of a file in a zip

LAYERS = "layers"  # attribute: names of the layers, in the order in which they are an input
AXIS = {"until": "date"}  # coordinates along the axis of another
ARRAYS: dict[str, tuple[tuple[str, ...], str, int | None, dict[str, Any]]] = {  # axes, type, no data, attributes
    "s1": (
        ("month", "polarisation"),
        "<i2",
        NO_BACKSCATTER,
        {"long_name": "backscatter", "units": "dB", "scale_factor": STEP_DB},
    ),
    "distorted": ((), "|u1", None, {"long_name": "layover or shadow in a Sentinel-1 scene", "units": "1"}),
    "s2": (
        ("date", "band"),
        "<u2",
        0,
        {"long_name": "surface reflectance", "units": "1", "scale_factor": STEP_REFLECTANCE},
    ),
    "observed": (("date",), "|u1", None, {"long_name": "observations, clear or not", "units": "1"}),
    "clear": (("date",), "|u1", None, {"long_name": "clear observations", "units": "1"}),
    "unmasked": (("date",), "|u1", None, {"long_name": "masks overruled", "units": "1"}),
    "day": (("date",), "<i2", 0, {"long_name": "day of year of what was taken", "units": "1"}),
    "elevation": ((), "<i2", NO_TERRAIN, {"standard_name": "surface_altitude", "units": "m"}),
    "slope": ((), "<i2", NO_TERRAIN, {"long_name": "slope of the ground", "units": "degree", "scale_factor": 0.01}),
    "incidence_angle": (
        (),
        "<i2",
        NO_TERRAIN,
        {"long_name": "incidence angle of the radar", "units": "degree", "scale_factor": 0.01},
    ),
    SCL: ((), "<i2", NO_TERRAIN, {"long_name": "Sentinel-2 scene class that most observations have", "units": "1"}),
}
BY_AXIS = {"month": ("s1", "distorted"), "date": ("s2", "observed", "clear", "unmasked", "day")}
AXES = {
    "month": "calendar month",
    "polarisation": "polarisation, and orbit direction where they are kept apart",
    "date": "first day of the step",
    "until": "last day of the step",
    "band": "Sentinel-2 band",
}

Planes = Callable[[Grid], dict[str, np.ndarray]]


def stack_block(
    s1: list[Path],
    s2: list[Path],
    stack: Path,
    block: Grid,
    period: Period,
    sensors: tuple[str, ...],
    bands: tuple[str, ...],
    polarisations: tuple[str, ...],
    masks: Masks,
    composite: Composite,
    steps: list[Step] | None = None,
    dem: Path | None = None,
    quality: list[Path] | None = None,
) -> None:
    """Composites of a block's scenes as one file.

    - ``s1`` int16 (month, polarisation, y, x), 0.01 dB a step, -32768 no data: composite of linear power by month;
      orbit directions that are kept apart are further polarisations, ``VV ascending`` and so on;
    - ``distorted`` uint8 (y, x), 1 where a scene sees layover or shadow;
    - ``s2`` uint16 (date, band, y, x), 0.0001 of reflectance a step, 0 no data: composite of the step's clear
      observations; the tiles of one overflight are one observation;
    - ``observed`` and ``clear`` uint8 (date, y, x): number of observations that are neither missing nor saturated, and
      of the clear ones among them;
    - ``unmasked`` uint8 (date, y, x): 1 where masked ones were taken too, since the masks hold for more than
      ``masks.unmask_above`` of the pixel's observations, of which there are ``masks.unmask_from`` or more;
    - ``day`` int16 (date, y, x): day of the year of the observation that was taken, 0 none; of medians and means the
      middle one of those used;
    - of ``elevation`` [m], ``slope`` and ``incidence_angle`` (mean over the scenes) [0.01 degrees] and ``scl``, the
      class from 1 to 11 that most observations of all steps have, of equally many the lowest number, those that
      ``composite.layers`` names: int16 (y, x), -32768 no data.

    Values that ``composite.fill`` puts into gaps have neither ``clear`` nor ``unmasked`` nor ``day``.

    Works in bands of 256 rows: besides the rows of the result, memory is about 10 bytes a Sentinel-2 date and pixel of
    these rows (one band of all dates, their masks and what sorting needs; 250 MB for 24 dates of 4096 px), and 8 a step
    where gaps are filled, whatever the height. Medoids need all bands at once, and take 512 columns at a time.

    Parameters
    ----------
    s1, s2 : scenes on the block's lattice, as ``process_s1`` and ``clip_s2`` write them; they may lie beyond the block.
    stack : zip to write.
    block : the block's grid.
    period : scenes of other days are left out.
    sensors : ``sentinel1`` for ``s1`` and ``distorted``, ``sentinel2`` for ``s2`` and what belongs to it.
    steps : first and last day of each date, alike for all blocks of an area; None: told from ``s2`` alone.
    dem : heights, where ``composite.layers`` names elevation or slope.
    quality : files of ``check_scene`` by the names of scenes, which are moved back as these say; None: none is moved.

    Raises
    ------
    SettingError
        Scenes of two orbit directions or backscatter conventions, of two tracks whose incidence angles were not brought
        to one, of two levels, or on another lattice.
    ProductError
        A scene is missing, broken or lacks a band or a tag.
    """
    coordinates: dict[str, Any] = {}
    about: dict[str, dict[str, Any]] = {}
    makers: list[Planes] = []
    radar: list[Scene] = []
    with ExitStack() as opened:
        moves = moves_of(quality or [])
        if "sentinel1" in sensors:
            radar = open_scenes(s1, period, opened, moves)
            _must_be_alike(radar, composite.directions)
            coordinates |= {"month": period.months, "polarisation": _channels(polarisations, composite.directions)}
            about["s1"] = _about_backscatter(radar, composite)
            makers.append(partial(_backscatter, radar, period.months, polarisations, composite))
            makers.append(partial(_distorted, radar))
        if "sentinel2" in sensors:
            optical = open_scenes(s2, period, opened, moves)
            steps = steps or steps_of(period, composite, [scene.day for scene in optical])
            coordinates |= _step_coordinates(steps, bands)
            passes = passes_of(clear_enough(optical, masks), steps, composite)
            about["s2"] = _about_reflectance([scene for one in passes for scene in one.scenes], masks, composite)
            makers.append(partial(_reflectance, passes, steps, bands, masks, composite))
        if layers := [layer for layer in composite.layers if layer != SCL]:
            if dem is None and set(layers) != {INCIDENCE_ANGLE}:
                raise SettingError(f"composite.layers has {', '.join(layers)}: give heights, aois.X.dem")
            makers.append(partial(_terrain, layers, radar, dem))
        if SCL in composite.layers and "sentinel2" not in sensors:
            raise SettingError("composite.layers has scl, which Sentinel-2 alone has: remove it, or add sentinel2")
        unmasked = 0
        with whole(stack) as part, _new_stack(part, block, coordinates, composite.layers, about) as write:
            for row in range(0, block.height, ROWS):
                rows = block.window(row, 0, min(ROWS, block.height - row), block.width)
                arrays = {name: array for make in makers for name, array in make(rows).items()}
                write(row, arrays)
                unmasked += int(arrays["unmasked"].sum()) if "unmasked" in arrays else 0
                log.info("%s: %d of %d rows", stack.name, row + rows.height, block.height)
            if "sentinel2" in sensors:
                log.info("%s: masks overruled at %d pixels of its steps", stack.name, unmasked)
                about["unmasked"] = {"unmasked_pixels": unmasked}


def _must_be_alike(scenes: Sequence[Scene], directions: str) -> None:
    """Refuse what must never be averaged: backscatter seen from two sides, at other angles, or defined in two ways."""
    if directions == "one":
        _must_agree(scenes, "orbit_state", "pin scenes of one direction, or set composite.directions")
    _must_agree(scenes, "convention", "process all scenes alike")
    _must_agree(scenes, "processor", "process all scenes by one sentinel1.processor")
    _must_agree(scenes, "normalised_deg", "process all scenes alike")
    for state, group in _by_direction(scenes).items():
        if directions == "apart" and state not in DIRECTIONS:
            raise SettingError(
                f"scene {group[0].path} has the orbit direction {state}, expected ascending or descending, which "
                "composite.directions apart needs: set it to together, or leave the scene out"
            )
        if any(scene.tags.get("convention") in TREND for scene in group) and "normalised_deg" not in group[0].tags:
            _must_agree(group, "relative_orbit", "pin scenes of one track, or set sentinel1.normalise_deg")


def _must_agree(scenes: Sequence[Scene], tag: str, fix: str, sensor: str = "Sentinel-1") -> None:
    values = {scene.tags.get(tag, "unknown"): scene.path.name for scene in scenes}
    if len(values) > 1:
        both = " and ".join(f"{value} ({name})" for value, name in sorted(values.items()))
        raise SettingError(f"{sensor} scenes of one stack differ in {tag}, {both}: {fix}")


def _by_direction(scenes: Sequence[Scene]) -> dict[str, list[Scene]]:
    groups: dict[str, list[Scene]] = {}
    for scene in scenes:
        groups.setdefault(scene.tags.get("orbit_state", "unknown"), []).append(scene)
    return groups


# --- Sentinel-1 ------------------------------------------------------------------------------------------------------


def _channels(polarisations: Sequence[str], directions: str) -> list[str]:
    """Names along the axis ``polarisation``."""
    if directions != "apart":
        return list(polarisations)
    return [f"{polarisation} {direction}" for direction, polarisation in product(DIRECTIONS, polarisations)]


def _about_backscatter(scenes: Sequence[Scene], composite: Composite) -> dict[str, Any]:
    told = [scene.tags["convention"] for scene in scenes if "convention" in scene.tags]
    known = {"convention": told[0]} if told else {}
    return {"method": composite.sentinel1, "directions": composite.directions, "scenes": _listed(scenes), **known}


def _listed(scenes: Sequence[Scene]) -> str:
    return ",".join(sorted(scene.path.stem for scene in scenes))


def _backscatter(
    scenes: Sequence[Scene], months: Sequence[str], polarisations: Sequence[str], composite: Composite, rows: Grid
) -> dict[str, np.ndarray]:
    """``s1`` (month, polarisation, y, x) of some rows."""
    groups = [list(scenes)]
    if composite.directions == "apart":
        groups = [_by_direction(scenes).get(direction, []) for direction in DIRECTIONS]
    made = [_monthly(group, months, polarisations, composite, rows) for group in groups]
    return {"s1": np.concatenate(made, 1)}


def _monthly(
    scenes: Sequence[Scene], months: Sequence[str], polarisations: Sequence[str], composite: Composite, rows: Grid
) -> np.ndarray:
    """Backscatter int16 (month, polarisation, y, x) of scenes that are mixed."""
    out = np.full((len(months), len(polarisations), *rows.shape), NO_BACKSCATTER, np.int16)
    if composite.sentinel1 == "first":
        scenes = sorted(scenes, key=lambda scene: (scene.time, scene.path.name))
    if composite.multitemporal == "quegan_yu":
        by_month = _filtered(scenes, polarisations, composite.multitemporal_pixels, rows)
    else:
        by_month = partial(_of_month, scenes, polarisations, rows)
    for index, month in enumerate(months):
        power = by_month(month)
        if len(power):
            out[index] = to_db_steps(composite_power(power, composite.sentinel1), composite.floor_db)
    return out


def _of_month(scenes: Sequence[Scene], polarisations: Sequence[str], rows: Grid, month: str) -> np.ndarray:
    """Linear power (scene, polarisation, y, x) of a month."""
    return np.array([scene.power(rows, polarisations) for scene in scenes if f"{scene.day:%Y-%m}" == month])


def _filtered(
    scenes: Sequence[Scene], polarisations: Sequence[str], window_pixels: int, rows: Grid
) -> Callable[[str], np.ndarray]:
    """The same from scenes whose speckle all of them of one direction together have lessened."""
    from covermap.sentinel1.speckle import quegan_yu

    half = window_pixels // 2
    inner = np.s_[:, half : half + rows.height, half : half + rows.width]
    power = np.empty((len(scenes), len(polarisations), *rows.shape), np.float32)
    for group in _by_direction(scenes).values():
        chosen = [scenes.index(scene) for scene in group]
        for index, polarisation in enumerate(polarisations):
            wide = np.concatenate([scene.power(rows.padded(half), [polarisation]) for scene in group])
            power[chosen, index] = quegan_yu(wide, window_pixels)[inner]
    return lambda month: power[[f"{scene.day:%Y-%m}" == month for scene in scenes]]


def _distorted(scenes: Sequence[Scene], rows: Grid) -> dict[str, np.ndarray]:
    """``distorted`` (y, x) of some rows; scenes without the layer count as free of distortion."""
    out = np.zeros(rows.shape, np.uint8)
    for scene in scenes:
        out |= scene.distorted(rows)
    return {"distorted": out}


# --- terrain ---------------------------------------------------------------------------------------------------------


def _terrain(layers: Sequence[str], radar: Sequence[Scene], dem: Path | None, rows: Grid) -> dict[str, np.ndarray]:
    """The layers, each (y, x), of some rows."""
    made = {}
    if dem is not None and set(layers) != {INCIDENCE_ANGLE}:
        from covermap.terrain_layers import elevation_and_slope

        made = dict(zip(("elevation", "slope"), elevation_and_slope(dem, rows), strict=True))
    if INCIDENCE_ANGLE in layers:
        made[INCIDENCE_ANGLE] = _incidence_angle(radar, rows)
    return {layer: made[layer] for layer in layers}


def _incidence_angle(scenes: Sequence[Scene], rows: Grid) -> np.ndarray:
    """Mean over the scenes that have the layer, which one must, and see the pixel: int16 (y, x) [0.01 degrees].

    ASSUME: one angle a pixel; within a track it differs by hundredths of a degree between dates.
    """
    total, count = np.zeros(rows.shape), np.zeros(rows.shape, np.int32)
    for scene in [scene for scene in scenes if INCIDENCE_ANGLE in scene.raster.descriptions] or scenes:
        angle = scene.read(rows, [INCIDENCE_ANGLE], np.nan, nearest=True)[0]
        seen = np.isfinite(angle)
        total[seen] += angle[seen]
        count += seen
    steps = np.rint(STEPS_A_DEGREE * total / np.maximum(count, 1))
    return np.where(count > 0, steps, NO_TERRAIN).astype(np.int16)


# --- Sentinel-2 ------------------------------------------------------------------------------------------------------


def _step_coordinates(steps: Sequence[Step], bands: Sequence[str]) -> dict[str, Any]:
    first, last = np.array(steps, "datetime64[D]").astype("datetime64[ns]").T
    return {"date": first, "until": last, "band": list(bands)}


def _about_reflectance(scenes: Sequence[Scene], masks: Masks, composite: Composite) -> dict[str, Any]:
    _must_agree(scenes, "level", "clip all scenes at one sentinel2.level", "Sentinel-2")
    level = next((scene.tags["level"] for scene in scenes if "level" in scene.tags), None)
    surface = {"long_name": "top-of-atmosphere reflectance"} if level == "L1C" else {}
    season = {"season": " to ".join(composite.season)} if composite.season else {}
    told = {"method": composite.sentinel2, "every": "dates" if composite.dates else composite.every, **season}
    masked = f"SCL {' '.join(map(str, masks.classes))}, eroded by {masks.erode_m:g} m, dilated by {masks.dilate_m:g} m"
    known = {"fill": composite.fill, "masks": masked, "scenes": _listed(scenes)}
    return {**surface, **told, **known, **({"level": level} if level else {})}


def _reflectance(
    passes: Sequence[Pass], steps: Sequence[Step], bands: Sequence[str], masks: Masks, composite: Composite, rows: Grid
) -> dict[str, np.ndarray]:
    """``s2`` (date, band, y, x), ``observed``, ``clear``, ``unmasked`` and ``day`` (date, y, x) of some rows."""
    views, used, clear = views_of(passes, masks, rows)
    shape = (len(steps), *rows.shape)
    of_step = [[number for number, one in enumerate(passes) if one.step == step] for step in range(len(steps))]
    out: dict[str, np.ndarray] = {
        "s2": np.zeros((len(steps), len(bands), *rows.shape), np.uint16),
        "observed": _counts(used, of_step),
        "clear": _counts(clear, of_step),
        "unmasked": np.zeros(shape, np.uint8),
        "day": np.zeros(shape, np.int16),
    }
    seen = used.sum(0, dtype=np.int32)
    too_often = 100 * (seen - clear.sum(0, dtype=np.int32)) > masks.unmask_above * seen
    used &= clear | (too_often & (seen >= masks.unmask_from))
    if SCL in composite.layers:
        out[SCL] = _scene_classes(views, rows)
    for step, numbers in enumerate(of_step):
        if chosen := [number for number in numbers if used[number].any()]:
            part = [views[number] for number in chosen]
            taken = _compose(part, used[chosen], bands, masks, composite.sentinel2, rows, out["s2"][step])
            days = np.array([*(passes[number].day.timetuple().tm_yday for number in chosen), 0], np.int16)
            out["day"][step] = days[taken]
            for number in chosen:
                out["unmasked"][step] |= used[number] & ~clear[number]
    if composite.fill != "none":
        fill_gaps(out["s2"], out["day"] > 0, [middle_day(step, composite.season) for step in steps], composite.fill)
    return out


def _scene_classes(views: Sequence[View], rows: Grid) -> np.ndarray:
    """The SCL class, from 1 on, that most views have, of equally many the lowest: int16 (y, x), -32768 where none."""
    most, out = np.zeros(rows.shape, np.int32), np.full(rows.shape, NO_TERRAIN, np.int16)
    counts = np.zeros((SCENE_CLASSES + 1, *rows.shape), np.int32)
    for view in views:
        counts += view.read(rows, ["SCL"], nearest=True)[0] == np.arange(len(counts))[:, None, None]
    for number, count in enumerate(counts[1:], 1):
        out[count > most] = number
        np.maximum(most, count, out=most)
    return out


def _counts(flags: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """How many of each group are true, at most 255: uint8 (group, y, x) from bool (pass, y, x)."""
    return np.array([np.minimum(flags[group].sum(0, dtype=np.int16), 255) for group in groups], np.uint8)


def _compose(
    views: Sequence[View],
    used: np.ndarray,
    bands: Sequence[str],
    masks: Masks,
    method: str,
    rows: Grid,
    out: np.ndarray,
) -> np.ndarray:
    """Fill ``out`` uint16 (band, y, x) with the composite of views where ``used``, bool (view, y, x).

    Returns the number of the view that was taken, or that is the middle one of those taken: int16 (y, x), -1 none.
    """
    if method == "medoid":
        return _take_medoids(views, used, bands, rows, out)
    if method in ("first", "least_cloudy"):
        taken = first_of(used) if method == "first" else _least_cloudy(views, used, masks)
        for number in np.unique(taken[taken >= 0]):
            for band, plane in zip(bands, out, strict=True):
                np.copyto(plane, views[number].read(rows, [band])[0], where=taken == number)
        return taken
    observations = np.empty(used.shape, np.uint16)
    for band, plane in zip(bands, out, strict=True):
        for each, view in zip(observations, views, strict=True):
            each[...] = view.read(rows, [band])[0]
        plane[...] = composite_reflectance(observations, used, method)
    return middle_of(used)


def _least_cloudy(views: Sequence[View], used: np.ndarray, masks: Masks) -> np.ndarray:
    """Number of the view whose scene has the smallest masked share of those used; of equal ones the first."""
    scenes = [(number, index, scene) for number, view in enumerate(views) for index, scene in enumerate(view.scenes)]
    taken = np.full(used.shape[1:], -1, np.int16)
    for number, index, _ in sorted(scenes, key=lambda scene: scene[2].masked_share(masks.classes)):
        taken[(taken < 0) & used[number] & (views[number].taken == index)] = number
    return taken


def _take_medoids(
    views: Sequence[View], used: np.ndarray, bands: Sequence[str], rows: Grid, out: np.ndarray
) -> np.ndarray:
    taken = np.empty(rows.shape, np.int16)
    for start in range(0, rows.width, COLUMNS):
        part = rows.window(0, start, rows.height, min(COLUMNS, rows.width - start))
        columns = slice(start, start + part.width)
        observations = np.empty((len(views), len(bands), *part.shape), np.uint16)
        for each, view in zip(observations, views, strict=True):
            each[...] = view.read(part, bands, columns)
        here = medoid(observations, used[..., columns])
        chosen = np.take_along_axis(observations, np.maximum(here, 0)[None, None], 0)[0]
        out[..., columns] = np.where(here >= 0, chosen, 0)
        taken[:, columns] = here
    return taken


# --- the file --------------------------------------------------------------------------------------------------------


@contextmanager
def _new_stack(
    part: Path, block: Grid, coordinates: dict[str, Any], layers: Sequence[str], about: dict[str, dict[str, Any]]
) -> Iterator[Callable[[int, dict[str, np.ndarray]], None]]:
    """A function ``write(row, arrays)`` that puts the arrays' rows, from ``row`` on, into a new stack.

    Chunks go through memory into the zip row by row, so that the zip's order and times are always the same; behind them
    go the attributes, those of ``about`` included, which may change until the end.
    """
    import zarr

    files: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(files)
    _coordinates(block, coordinates, layers).to_zarr(store, zarr_format=2, consolidated=False)
    group = zarr.open_group(store, mode="r+")
    written = {name: group.create_array(name, **array) for name, array in _arrays(block, coordinates, layers).items()}
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:

        def write(row: int, arrays: dict[str, np.ndarray]) -> None:
            for name, array in arrays.items():
                written[name][..., row : row + array.shape[-2], :] = array
            _move(files, archive, [key for key in files if not _is_about(key)])

        yield write
        for name, attributes in about.items():
            written[name].attrs.update(attributes)
        zarr.consolidate_metadata(store)
        _move(files, archive, files)


def _is_about(key: str) -> bool:
    return key.rpartition("/")[2].startswith(".")


def _move(files: dict[str, Any], archive: zipfile.ZipFile, keys: Iterable[str]) -> None:
    """Move files of a store to a zip."""
    for key in sorted(keys):
        archive.writestr(zipfile.ZipInfo(key, EPOCH), files.pop(key).to_bytes())


def _coordinates(block: Grid, coordinates: dict[str, Any], layers: Sequence[str]) -> xr.Dataset:
    """Coordinates and attributes of a stack, by the CF conventions 1.11 (sections 5.6, 8.1)."""
    import xarray as xr
    from pyproj import CRS

    half = block.pixel_m / 2
    affine = " ".join(map(repr, block.transform.to_gdal()))
    reference = {**CRS.from_user_input(block.crs).to_cf(), "GeoTransform": affine}
    return xr.Dataset(
        coords={
            **{
                name: (AXIS.get(name, name), np.asarray(values), {"long_name": AXES[name]})
                for name, values in coordinates.items()
            },
            "y": ("y", block.top - half - block.pixel_m * np.arange(block.height), _axis("y")),
            "x": ("x", block.left + half + block.pixel_m * np.arange(block.width), _axis("x")),
            "spatial_ref": ((), np.int32(0), reference),
        },
        attrs={
            "Conventions": "CF-1.11",
            "title": "covermap stack of a block",
            "covermap": __version__,
            LAYERS: ",".join(layers),
        },
    )


def _axis(name: str) -> dict[str, str]:
    return {"standard_name": f"projection_{name}_coordinate", "units": "m", "axis": name.upper()}


def _arrays(block: Grid, coordinates: dict[str, Any], layers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arguments of zarr's ``create_array`` for each array of a stack."""
    blosc = _blosc()
    names = [name for axis, names in BY_AXIS.items() if axis in coordinates for name in names]
    kinds = {name: ARRAYS[name] for name in (*names, *layers)}
    return {
        name: {
            "shape": (*(len(coordinates[axis]) for axis in axes), *block.shape),
            "chunks": (*(len(coordinates[axis]) for axis in axes), CHUNK_PIXELS, CHUNK_PIXELS),
            "dtype": dtype,
            "fill_value": fill,
            "compressors": blosc.Blosc("lz4", 1, blosc.SHUFFLE),
            "attributes": {**attributes, "grid_mapping": "spatial_ref", "_ARRAY_DIMENSIONS": [*axes, "y", "x"]},
        }
        for name, (axes, dtype, fill, attributes) in kinds.items()
    }


def _blosc() -> Any:
    """Blosc without threads of its own, which put the parts of a chunk in the order in which they come."""
    from numcodecs import blosc

    blosc.use_threads = False
    return blosc


def open_stack(path: Path) -> xr.Dataset:
    """A stack as a lazy dataset: backscatter in dB and reflectance as floats, NaN where there is no data."""
    import xarray as xr
    import zarr

    try:
        return xr.open_zarr(zarr.storage.ZipStore(path, mode="r"), chunks=None)
    except (OSError, zipfile.BadZipFile) as error:
        raise ProductError(f"stack {path} cannot be opened ({error}): remove it and run again") from error


def read_stack(path: Path, rows: slice, columns: slice, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """A window of a stack as the integers that are kept.

    Chunks are read by their place in the zip, without zarr, which takes several times as long for a window. The file
    stays open for the next window of this process.

    Parameters
    ----------
    rows, columns : of the block; they end where it does.
    names : arrays that are wanted; None: all that there are. Those that the stack lacks are left out. The layers are
        one, ``terrain``.

    Returns
    -------
    Arrays of ``stack_block`` by name, its layers as ``terrain`` int16 (1, layer, y, x), so that they are an input like
    the others.

    Raises
    ------
    ProductError
        The stack is missing or broken.
    """
    arrays, layers = _stored(path, path.stat().st_mtime_ns if path.exists() else 0, os.getpid())
    groups = {**{name: [name] for name in arrays if name not in layers}, **({"terrain": layers} if layers else {})}
    wanted = {name: group for name, group in groups.items() if names is None or name in names}
    try:
        read = {name: [_window(arrays[part], rows, columns) for part in group] for name, group in wanted.items()}
    except (OSError, ValueError, RuntimeError) as error:
        raise ProductError(f"stack {path} cannot be read ({error}): remove it and run again") from error
    return {name: np.stack(parts)[None] if name == "terrain" else parts[0] for name, parts in read.items()}


class Stored(NamedTuple):
    """An array in a stack's zip."""

    archive: zipfile.ZipFile  # open as long as this is
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype
    fill: int
    codec: Any
    places: dict[tuple[int, int], tuple[int, int, int]]  # by row and column of the chunk: first byte, bytes, check sum


@lru_cache(maxsize=64)
def _stored(path: Path, changed_ns: int, process: int) -> tuple[dict[str, Stored], list[str]]:
    """Arrays of an open stack, and which are layers; a changed file is opened anew, and so is each after a fork."""
    from numcodecs import get_codec

    _blosc()
    try:
        archive = zipfile.ZipFile(path)
        members = {member.filename: member for member in archive.infolist()}
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
            raise zipfile.BadZipFile("its files are compressed, not stored")
        about = {name: json.loads(archive.read(f"{name}/.zarray")) for name in ARRAYS if f"{name}/.zarray" in members}
        layers = json.loads(archive.read(".zattrs"))[LAYERS].split(",")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ProductError(f"stack {path} cannot be opened ({error}): remove it and run again") from error
    arrays = {
        name: Stored(
            archive,
            tuple(array["shape"]),
            tuple(array["chunks"]),
            np.dtype(array["dtype"]),
            array["fill_value"] or 0,
            get_codec(array["compressor"]),
            {
                _number(key): _place(member)
                for key, member in members.items()
                if key.startswith(f"{name}/") and not _is_about(key)
            },
        )
        for name, array in about.items()
    }
    return arrays, [layer for layer in layers if layer]


def _number(key: str) -> tuple[int, int]:
    """Row and column of a chunk, the last two numbers of its name."""
    row, column = key.rpartition("/")[2].split(".")[-2:]
    return int(row), int(column)


def _place(member: zipfile.ZipInfo) -> tuple[int, int, int]:
    """First byte, bytes and check sum of a stored file (PKWARE, .ZIP File Format Specification 6.3.10, 4.3.7)."""
    return member.header_offset + LOCAL_HEADER_BYTES + len(member.filename), member.file_size, member.CRC


def _window(array: Stored, rows: slice, columns: slice) -> np.ndarray:
    """Pixels (..., y, x) of an array."""
    row, bottom, _ = rows.indices(array.shape[-2])
    column, right, _ = columns.indices(array.shape[-1])
    out = np.empty((*array.shape[:-2], max(bottom - row, 0), max(right - column, 0)), array.dtype)
    side, chunk = array.chunk[-1], np.empty(array.chunk, array.dtype)
    for i, j in product(range(row // side, -(-bottom // side)), range(column // side, -(-right // side))):
        top, left = i * side, j * side
        first_row, last_row = max(row, top), min(bottom, top + side)
        first_column, last_column = max(column, left), min(right, left + side)
        into = np.s_[..., first_row - row : last_row - row, first_column - column : last_column - column]
        of = np.s_[..., first_row - top : last_row - top, first_column - left : last_column - left]
        out[into] = _decoded(array, (i, j), chunk)[of]
    return out


def _decoded(array: Stored, number: tuple[int, int], chunk: np.ndarray) -> np.ndarray:
    """``chunk``, its pixels those of a chunk by row and column."""
    if number in array.places:
        start, size, checksum = array.places[number]
        assert array.archive.fp is not None
        kept = os.pread(array.archive.fp.fileno(), size, start)
        if zlib.crc32(kept) != checksum:
            raise OSError(f"chunk {number} is not what was written")
        array.codec.decode(kept, out=chunk)
    else:  # empty chunks are not kept
        chunk[...] = array.fill
    return chunk
