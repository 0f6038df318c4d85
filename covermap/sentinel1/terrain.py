"""Heights above the ellipsoid around a window of the grid."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
from pyproj import CRS, Transformer
from rasterio.errors import RasterioError
from rasterio.windows import Window

from covermap.errors import CoverageError, ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel1.geocoding import refine
from covermap.sentinel1.geoid import Geoid, Model, open_geoid
from covermap.sentinel1.nodes import horizontal, part_around, positions_in

HEIGHTS_M = (-1_000.0, 9_500.0)
MODELS: tuple[tuple[str, Model], ...] = ((r"egm ?_?96", "egm96"), (r"egm ?_?(20)?08", "egm2008"))
GEOID_NODES = 256  # along the longer side of the DEM: about a kilometre apart, which errs by a centimetre at most
ROWS = 256  # of the DEM that are raised at once
AROUND = 2  # pixels of the DEM around the window


@dataclass(frozen=True)
class Terrain:
    """Ellipsoidal heights float32 (y, x), NaN = none, and where the nodes of the grid lie in them (2, y, x).

    ``geoid`` tells how heights above the sea became ellipsoidal ones.
    """

    name: str
    geoid: str
    height_m: np.ndarray
    nodes: np.ndarray
    lowest_m: float
    highest_m: float


def read_dem(
    dem: Path | None,
    window: Grid,
    geoid: Model | float | Path | None = None,
    gaps: Literal["error", "sea"] = "error",
) -> Terrain:
    """Heights above the ellipsoid around a window of the grid.

    What the DEM's heights refer to is never guessed: a 3D CRS has ellipsoidal heights; a compound CRS with EGM96 or
    EGM2008 heights names its geoid; any other CRS needs the setting.

    Parameters
    ----------
    dem : raster of heights in metres, in any CRS.
    window : part of the grid that needs heights.
    geoid : setting ``sentinel1.geoid``: model, grid file or undulation [m].
    gaps : ``sea``: where the DEM has no height, or ends, lies the geoid; ``error``: there is no height (NaN). A DEM
        that does not touch the window at all is an error either way.

    Raises
    ------
    SettingError
        Nothing says what the heights refer to, the setting contradicts the DEM's CRS, or the geoid is not installed.
    ProductError
        The DEM cannot be read, has no CRS, or its heights are no metres.
    CoverageError
        It does not touch the window, or has no height in it.
    """
    if dem is None:
        raise SettingError("a GRD scene needs heights for its terrain correction: set the area's dem")
    try:
        with rasterio.open(dem) as raster:
            if raster.crs is None:
                raise ProductError(f"DEM {dem} has no CRS: write it with the CRS of its coordinates")
            crs = CRS.from_wkt(raster.crs.to_wkt())
            above, sea = _references(dem, crs, geoid, gaps)
            nodes = positions_in(window, raster)
            part = _part(nodes, raster, gaps)
            if part is None:
                raise CoverageError(
                    f"DEM {dem} does not touch the area {window.bounds} in {window.crs}: expected one that covers it"
                )
            height_m = _read(raster, part)
            if gaps == "error" and np.isnan(height_m).all():
                raise CoverageError(f"DEM {dem} has no height in the area {window.bounds} in {window.crs}")
            _check_metres(dem, height_m)
            to_degrees = Transformer.from_crs(horizontal(crs), "EPSG:4326", always_xy=True)
            _raise_to_ellipsoid(height_m, part, raster, to_degrees, above, sea)
    except RasterioError as error:
        raise ProductError(
            f"DEM {dem} cannot be read ({error}): expected a whole raster of heights in metres"
        ) from error
    nodes -= np.array([part.row_off, part.col_off])[:, None, None]
    about = above.name if above else "none, the DEM has ellipsoidal heights"
    if sea:
        about += f"; gaps are sea at {sea.name}"
    return Terrain(dem.name, about, height_m, nodes, float(np.nanmin(height_m)), float(np.nanmax(height_m)))


def _references(
    dem: Path, crs: CRS, geoid: Model | float | Path | None, gaps: Literal["error", "sea"]
) -> tuple[Geoid | None, Geoid | None]:
    """Geoid that the DEM's heights count from (None: they are ellipsoidal), and geoid that fills its gaps, if any."""
    vertical = _vertical(crs)
    if vertical or len(crs.axis_info) == 3:
        axis = vertical.axis_info[0] if vertical else crs.axis_info[2]
        if axis.unit_conversion_factor != 1 or axis.direction != "up":
            raise ProductError(f"DEM {dem} counts heights {axis.direction} in {axis.unit_name}: expected up in metres")
    if not vertical and len(crs.axis_info) == 3:
        if gaps == "sea":
            if geoid is None:
                raise SettingError(
                    f"DEM {dem} has ellipsoidal heights ({crs.name}), and its gaps are sea: set sentinel1.geoid, so "
                    f"that it is known how high the sea lies"
                )
            return None, open_geoid(geoid)
        if geoid is not None:
            raise SettingError(
                f"DEM {dem} declares ellipsoidal heights ({crs.name}): remove sentinel1.geoid ({geoid}), which would "
                f"raise them twice"
            )
        return None, None
    _must_agree(dem, crs, geoid)
    declared = _declared(vertical) if vertical else None
    wanted = geoid if geoid is not None else declared
    if wanted is None:
        raise SettingError(
            f"DEM {dem} in {crs.name} does not declare what its heights refer to: set sentinel1.geoid to egm96, "
            f"egm2008 (Copernicus DEM), the file of a geoid grid or the undulation of the area in metres, or give the "
            f"DEM a 3D CRS such as EPSG:4979 if its heights are ellipsoidal"
        )
    found = open_geoid(wanted)
    return found, found if gaps == "sea" else None


def check_geoid(dem: Path, geoid: Model | float | Path | None) -> None:
    """Refuse a setting that contradicts what the CRS of a DEM declares, before a grid takes its place.

    Raises
    ------
    SettingError
        The setting names another model.
    """
    with suppress(RasterioError), rasterio.open(dem) as raster:  # what is broken is told when it is read
        if raster.crs is not None:
            _must_agree(dem, CRS.from_wkt(raster.crs.to_wkt()), geoid)


def _must_agree(dem: Path, crs: CRS, geoid: Model | float | Path | None) -> None:
    vertical = _vertical(crs)
    if vertical and isinstance(geoid, str) and geoid != _declared(vertical):
        raise SettingError(
            f"DEM {dem} declares heights above {vertical.name} ({crs.name}), but sentinel1.geoid is {geoid}: remove "
            f"the setting, or give the grid file or the undulation that belongs to the DEM"
        )


def _vertical(crs: CRS) -> CRS | None:
    """The part of a compound CRS that heights are in."""
    return next((part for part in crs.sub_crs_list if part.is_vertical), None)


def _declared(vertical: CRS) -> Model | None:
    datum = vertical.datum.name if vertical.datum else ""
    for pattern, model in MODELS:
        if re.search(pattern, f"{vertical.name} {datum}", re.IGNORECASE):
            return model
    return None


def _part(nodes: np.ndarray, raster: rasterio.DatasetReader, gaps: Literal["error", "sea"]) -> Window | None:
    """Rows and columns of the DEM that the nodes need; beyond its edges only where gaps are sea."""
    part = part_around(nodes, raster.shape, AROUND)
    if gaps == "error" or part is None:
        return part
    known = nodes[:, np.isfinite(nodes).all(axis=0)]
    low, high = np.floor(known.min(axis=1)).astype(int) - AROUND, np.ceil(known.max(axis=1)).astype(int) + AROUND + 1
    (top, left), (bottom, right) = low.tolist(), high.tolist()
    return Window(left, top, right - left, bottom - top)  # starts may be negative


def _read(raster: rasterio.DatasetReader, part: Window) -> np.ndarray:
    """Heights float32 of a part that may reach beyond the raster, NaN = none."""
    out = np.full((part.height, part.width), np.nan, np.float32)
    rows, columns = (
        slice(max(start, 0), min(start + size, length))
        for start, size, length in (
            (part.row_off, part.height, raster.height),
            (part.col_off, part.width, raster.width),
        )
    )
    if rows.start < rows.stop and columns.start < columns.stop:
        inside = Window.from_slices((rows.start, rows.stop), (columns.start, columns.stop))
        values = raster.read(1, window=inside, masked=True, out_dtype="float32")
        top, left = rows.start - part.row_off, columns.start - part.col_off
        out[top : top + values.shape[0], left : left + values.shape[1]] = values.filled(np.nan)
    return out


def _check_metres(dem: Path, height_m: np.ndarray) -> None:
    if np.isnan(height_m).all():
        return
    lowest, highest = float(np.nanmin(height_m)), float(np.nanmax(height_m))
    if lowest < HEIGHTS_M[0] or highest > HEIGHTS_M[1]:
        raise ProductError(
            f"DEM {dem} has heights from {lowest:.0f} to {highest:.0f} m: expected metres and a declared no data value"
        )


def _raise_to_ellipsoid(
    height_m: np.ndarray,
    part: Window,
    raster: rasterio.DatasetReader,
    to_degrees: Transformer,
    above: Geoid | None,
    sea: Geoid | None,
) -> None:
    """Add the geoid to the heights and put it into their gaps, in place."""
    geoid = above or sea
    if geoid is None:
        return
    step = max(1, max(height_m.shape) // GEOID_NODES)
    rows, columns = (np.arange(0, max(length - 1, 1) + step, step) for length in height_m.shape)
    x, y = raster.transform * np.meshgrid(columns + part.col_off + 0.5, rows + part.row_off + 0.5)
    undulation = geoid.undulation(*to_degrees.transform(x, y))[None]
    for start in range(0, len(height_m), ROWS):
        some = height_m[start : start + ROWS]
        here = refine(undulation, step, range(start, start + len(some)), some.shape[1])[0].astype(np.float32)
        gaps = np.isnan(some)
        if above:
            some += here
        if sea:
            some[gaps] = here[gaps]
