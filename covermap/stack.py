"""The stack of a block: all inputs of its pixels in one file, the scenes made composites by month and period.

A stack is a stored zip of a Zarr store (format 2, Zstandard level 1, chunks of all dates and bands by 128 x 128 px).
Plain xarray opens it, as dB and reflectance with NaN where there is no data::

    xarray.open_zarr(zarr.storage.ZipStore(path, mode="r"))

``open_stack(path)`` is the same in short, ``read_stack(path, rows, columns)`` a window of the integers that are kept.
The same scenes and settings give the same bytes.
"""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from covermap import __version__
from covermap.composite import NO_BACKSCATTER, STEP_DB, composite_power, composite_reflectance, to_db_steps
from covermap.errors import ProductError, SettingError
from covermap.files import whole
from covermap.grid import Grid
from covermap.masks import clear_mask
from covermap.raster import read_pixels
from covermap.scenes import TREND
from covermap.settings import Composite, Masks, Period

if TYPE_CHECKING:
    import xarray as xr

log = logging.getLogger(__name__)

CHUNK_PIXELS = 128
ROWS = 2 * CHUNK_PIXELS  # in work at once: whole chunks, each written once
STEP_REFLECTANCE = 0.0001
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of all files in the zip
NEVER_OBSERVED = (0, 1)  # SCL: no data, saturated or defective
LAYOVER_SHADOW = "layover_shadow"  # band of a scene: 0 none, else its pixels do not show their place alone

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
) -> None:
    """Composites of a block's scenes as one file.

    - ``s1`` int16 (month, polarisation, y, x), 0.01 dB a step, -32768 no data: mean or median of linear power by month;
    - ``distorted`` uint8 (y, x), 1 where a scene sees layover or shadow;
    - ``s2`` uint16 (date, band, y, x), 0.0001 of reflectance a step, 0 no data: composite of the period's clear
      observations; where a pixel is never clear, of all its observations that are neither missing nor saturated;
    - ``clear`` uint8 (date, y, x): number of clear observations.

    Works in bands of 256 rows: besides the rows of the result, memory is about 6 bytes a date and pixel of these rows
    (one band of all dates, their masks and what sorting needs; 150 MB for 24 dates of 4096 px), whatever the height.

    Parameters
    ----------
    s1, s2 : scenes on the block's lattice, as ``process_s1`` and ``clip_s2`` write them; they may lie beyond the block.
    stack : zip to write.
    block : the block's grid.
    period : scenes of other days are left out.
    sensors : ``sentinel1`` for ``s1`` and ``distorted``, ``sentinel2`` for ``s2`` and ``clear``.

    Raises
    ------
    SettingError
        Scenes of two orbit directions or backscatter conventions, of two tracks whose incidence angles were not brought
        to one, or on another lattice.
    ProductError
        A scene is missing, broken or lacks a band.
    """
    coordinates: dict[str, Any] = {}
    about: dict[str, str] = {}
    makers: list[Planes] = []
    with ExitStack() as opened:
        if "sentinel1" in sensors:
            radar = _open_scenes(s1, period, opened)
            _must_be_alike(radar)
            coordinates |= {"month": period.months, "polarisation": list(polarisations)}
            told = [scene.tags["convention"] for scene in radar if "convention" in scene.tags]
            about = {"convention": told[0]} if told else {}
            makers.append(partial(_backscatter, radar, period.months, polarisations, composite))
            makers.append(partial(_distorted, radar))
        if "sentinel2" in sensors:
            optical = _open_scenes(s2, period, opened)
            coordinates |= {"date": [np.datetime64(period.start, "ns")], "band": list(bands)}
            makers.append(partial(_reflectance, optical, bands, masks, composite))
        with whole(stack) as part, _new_stack(part, block, coordinates, about) as write:
            for row in range(0, block.height, ROWS):
                rows = block.window(row, 0, min(ROWS, block.height - row), block.width)
                write(row, {name: array for make in makers for name, array in make(rows).items()})
                log.info("%s: %d of %d rows", stack.name, row + rows.height, block.height)


class Scene:
    """A processed scene: a raster whose bands have names, and tags that say where it comes from."""

    def __init__(self, path: Path, opened: ExitStack) -> None:
        try:
            self.raster = opened.enter_context(rasterio.open(path))
        except RasterioError as error:
            raise ProductError(f"scene {path} cannot be opened ({error}): remove it and run again") from error
        self.path, self.tags = path, self.raster.tags()
        try:
            self.day = datetime.fromisoformat(self.tags["datetime"]).date()
        except (KeyError, ValueError) as error:
            raise ProductError(
                f"scene {path} has no usable tag 'datetime' ({error}): remove it and run again"
            ) from error

    def read(self, grid: Grid, names: Sequence[str], fill: float) -> np.ndarray:
        """Bands (band, y, x) by name on ``grid``; ``fill`` where the scene has none."""
        known = list(self.raster.descriptions)
        if missing := [name for name in names if name not in known]:
            raise ProductError(f"scene {self.path} has no band {missing[0]}, only {known}: remove it and run again")
        try:
            return read_pixels(self.raster, grid, fill=fill, indexes=[known.index(name) + 1 for name in names])
        except RasterioError as error:
            raise ProductError(f"scene {self.path} cannot be read ({error}): remove it and run again") from error


def _open_scenes(paths: Sequence[Path], period: Period, opened: ExitStack) -> list[Scene]:
    """Scenes of the period, by name, so that no order of arguments changes a result."""
    scenes = [Scene(path, opened) for path in sorted(paths)]
    inside = [scene for scene in scenes if period.start <= scene.day <= period.end]
    for scene in scenes:
        if scene not in inside:
            log.warning("%s: %s is not in the period, left out", scene.path, scene.day)
    return inside


def _must_be_alike(scenes: Sequence[Scene]) -> None:
    """Refuse what must never be averaged: backscatter seen from two sides, at other angles, or defined in two ways."""
    _must_agree(scenes, "orbit_state", "pin scenes of one direction")
    _must_agree(scenes, "convention", "process all scenes alike")
    _must_agree(scenes, "processor", "process all scenes by one sentinel1.processor")
    _must_agree(scenes, "normalised_deg", "process all scenes alike")
    if any(scene.tags.get("convention") in TREND for scene in scenes) and "normalised_deg" not in scenes[0].tags:
        _must_agree(scenes, "relative_orbit", "pin scenes of one track, or set sentinel1.normalise_deg")


def _must_agree(scenes: Sequence[Scene], tag: str, fix: str) -> None:
    values = {scene.tags.get(tag, "unknown"): scene.path.name for scene in scenes}
    if len(values) > 1:
        both = " and ".join(f"{value} ({name})" for value, name in sorted(values.items()))
        raise SettingError(f"Sentinel-1 scenes of one stack differ in {tag}, {both}: {fix}")


def _power(scene: Scene, rows: Grid, polarisations: Sequence[str]) -> np.ndarray:
    """Linear power (polarisation, y, x) of a scene, whatever its unit."""
    values = scene.read(rows, polarisations, np.nan)
    return 10 ** (values / 10) if scene.tags.get("units") == "dB" else values


def _backscatter(
    scenes: Sequence[Scene], months: Sequence[str], polarisations: Sequence[str], composite: Composite, rows: Grid
) -> dict[str, np.ndarray]:
    """``s1`` (month, polarisation, y, x) of some rows."""
    out = np.full((len(months), len(polarisations), *rows.shape), NO_BACKSCATTER, np.int16)
    if composite.multitemporal == "quegan_yu":
        by_month = _filtered(scenes, polarisations, composite.multitemporal_pixels, rows)
    else:
        by_month = partial(_of_month, scenes, polarisations, rows)
    for index, month in enumerate(months):
        power = by_month(month)
        if len(power):
            out[index] = to_db_steps(composite_power(power, composite.sentinel1), composite.floor_db)
    return {"s1": out}


def _of_month(scenes: Sequence[Scene], polarisations: Sequence[str], rows: Grid, month: str) -> np.ndarray:
    """Linear power (scene, polarisation, y, x) of a month."""
    return np.array([_power(scene, rows, polarisations) for scene in scenes if f"{scene.day:%Y-%m}" == month])


def _filtered(
    scenes: Sequence[Scene], polarisations: Sequence[str], window_pixels: int, rows: Grid
) -> Callable[[str], np.ndarray]:
    """The same from scenes whose speckle all of them together have lessened."""
    from covermap.sentinel1.speckle import quegan_yu

    half = window_pixels // 2
    inner = np.s_[:, half : half + rows.height, half : half + rows.width]
    power = np.empty((len(scenes), len(polarisations), *rows.shape), np.float32)
    for index, polarisation in enumerate(polarisations if scenes else ()):
        wide = np.concatenate([_power(scene, rows.padded(half), [polarisation]) for scene in scenes])
        power[:, index] = quegan_yu(wide, window_pixels)[inner]
    return lambda month: power[[f"{scene.day:%Y-%m}" == month for scene in scenes]]


def _distorted(scenes: Sequence[Scene], rows: Grid) -> dict[str, np.ndarray]:
    """``distorted`` (y, x) of some rows; scenes without the layer count as free of distortion."""
    out = np.zeros(rows.shape, np.uint8)
    for scene in scenes:
        if LAYOVER_SHADOW in scene.raster.descriptions:
            out |= scene.read(rows, [LAYOVER_SHADOW], 0)[0] > 0
    return {"distorted": out}


def _reflectance(
    scenes: Sequence[Scene], bands: Sequence[str], masks: Masks, composite: Composite, rows: Grid
) -> dict[str, np.ndarray]:
    """``s2`` (date, band, y, x) and ``clear`` (date, y, x) of some rows."""
    shape = (len(scenes), *rows.shape)
    clear, used = np.empty(shape, bool), np.empty(shape, bool)
    reach = masks.dilate_m / rows.pixel_m
    rim = math.ceil(reach)  # clouds beyond these rows reach into them
    inner = np.s_[rim : rim + rows.height, rim : rim + rows.width]
    for index, scene in enumerate(scenes):
        scl = scene.read(rows.padded(rim), ["SCL"], 0)[0].astype(np.uint8)
        clear[index] = clear_mask(scl, masks.classes, reach)[inner]
        used[index] = ~np.isin(scl[inner], NEVER_OBSERVED)
    count = clear.sum(0)
    used &= clear | (count == 0)
    out = np.zeros((1, len(bands), *rows.shape), np.uint16)
    observations = np.empty(shape, np.uint16)
    for index, band in enumerate(bands if scenes else ()):
        for each, scene in zip(observations, scenes, strict=True):
            each[...] = scene.read(rows, [band], 0)[0]
        out[0, index] = composite_reflectance(observations, used, composite.sentinel2)
    return {"s2": out, "clear": np.minimum(count, 255).astype(np.uint8)[None]}


@contextmanager
def _new_stack(
    part: Path, block: Grid, coordinates: dict[str, Any], about: dict[str, str]
) -> Iterator[Callable[[int, dict[str, np.ndarray]], None]]:
    """A function ``write(row, arrays)`` that puts the arrays' rows, from ``row`` on, into a new stack.

    Chunks go through memory into the zip row by row, so that the zip's order and times are always the same.
    """
    import zarr

    files: dict[str, Any] = {}
    store = zarr.storage.MemoryStore(files)
    _coordinates(block, coordinates).to_zarr(store, zarr_format=2, consolidated=False)
    group = zarr.open_group(store, mode="r+")
    written = {name: group.create_array(name, **array) for name, array in _arrays(block, coordinates, about).items()}
    zarr.consolidate_metadata(store)
    with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        _move(files, archive)

        def write(row: int, arrays: dict[str, np.ndarray]) -> None:
            for name, array in arrays.items():
                written[name][..., row : row + array.shape[-2], :] = array
            _move(files, archive)

        yield write


def _move(files: dict[str, Any], archive: zipfile.ZipFile) -> None:
    """Append the files of a store to a zip, and drop those that hold pixels."""
    for key in sorted(set(files) - set(archive.namelist())):
        archive.writestr(zipfile.ZipInfo(key, EPOCH), files[key].to_bytes())
        if not key.rpartition("/")[2].startswith("."):
            del files[key]


def _coordinates(block: Grid, coordinates: dict[str, Any]) -> xr.Dataset:
    """Coordinates and attributes of a stack, by the CF conventions 1.11 (sections 5.6, 8.1)."""
    import xarray as xr
    from pyproj import CRS

    half = block.pixel_m / 2
    affine = " ".join(map(repr, block.transform.to_gdal()))
    reference = {**CRS.from_user_input(block.crs).to_cf(), "GeoTransform": affine}
    return xr.Dataset(
        coords={
            **{name: (name, np.asarray(values)) for name, values in coordinates.items()},
            "y": ("y", block.top - half - block.pixel_m * np.arange(block.height), _axis("y")),
            "x": ("x", block.left + half + block.pixel_m * np.arange(block.width), _axis("x")),
            "spatial_ref": ((), np.int32(0), reference),
        },
        attrs={"Conventions": "CF-1.11", "title": "covermap stack of a block", "covermap": __version__},
    )


def _axis(name: str) -> dict[str, str]:
    return {"standard_name": f"projection_{name}_coordinate", "units": "m", "axis": name.upper()}


def _arrays(block: Grid, coordinates: dict[str, Any], about: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Arguments of zarr's ``create_array`` for each array of a stack; ``about`` are attributes of ``s1``."""
    from numcodecs import Zstd

    kinds: dict[str, tuple[tuple[str, ...], str, int | None, dict[str, Any]]] = {}
    if "month" in coordinates:
        named = {"long_name": "backscatter", "units": "dB", "scale_factor": STEP_DB, **about}
        kinds["s1"] = ("month", "polarisation"), "<i2", NO_BACKSCATTER, named
        kinds["distorted"] = (), "|u1", None, {"long_name": "layover or shadow in a Sentinel-1 scene", "units": "1"}
    if "date" in coordinates:
        named = {"long_name": "surface reflectance", "units": "1", "scale_factor": STEP_REFLECTANCE}
        kinds["s2"] = ("date", "band"), "<u2", 0, named
        kinds["clear"] = ("date",), "|u1", None, {"long_name": "clear observations", "units": "1"}
    return {
        name: {
            "shape": (*(len(coordinates[axis]) for axis in axes), *block.shape),
            "chunks": (*(len(coordinates[axis]) for axis in axes), CHUNK_PIXELS, CHUNK_PIXELS),
            "dtype": dtype,
            "fill_value": fill,
            "compressors": Zstd(level=1),
            "attributes": {**attributes, "grid_mapping": "spatial_ref", "_ARRAY_DIMENSIONS": [*axes, "y", "x"]},
        }
        for name, (axes, dtype, fill, attributes) in kinds.items()
    }


def open_stack(path: Path) -> xr.Dataset:
    """A stack as a lazy dataset: backscatter in dB and reflectance as floats, NaN where there is no data."""
    import xarray as xr
    import zarr

    try:
        return xr.open_zarr(zarr.storage.ZipStore(path, mode="r"), chunks=None)
    except (OSError, zipfile.BadZipFile) as error:
        raise ProductError(f"stack {path} cannot be opened ({error}): remove it and run again") from error


def read_stack(path: Path, rows: slice, columns: slice) -> dict[str, np.ndarray]:
    """A window of a stack as the integers that are kept: ``s1``, ``distorted``, ``s2``, ``clear``, if it has them.

    The file stays open for the next window of this process.

    Raises
    ------
    ProductError
        The stack is missing or broken.
    """
    arrays = _arrays_of(path, path.stat().st_mtime_ns if path.exists() else 0, os.getpid())
    try:
        return {name: np.asarray(array[..., rows, columns]) for name, array in arrays.items()}
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise ProductError(f"stack {path} cannot be read ({error}): remove it and run again") from error


@lru_cache(maxsize=64)
def _arrays_of(path: Path, changed_ns: int, process: int) -> dict[str, Any]:
    """Arrays of an open stack; a changed file is opened anew, and so is each after a fork."""
    import zarr

    try:
        group = zarr.open_group(zarr.storage.ZipStore(path, mode="r"), mode="r")
        return {name: group[name] for name in ("s1", "distorted", "s2", "clear") if name in group}
    except (OSError, zipfile.BadZipFile) as error:
        raise ProductError(f"stack {path} cannot be opened ({error}): remove it and run again") from error
