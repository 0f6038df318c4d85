"""Heights above the ellipsoid around a window of the grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from pyproj import CRS
from rasterio.errors import RasterioError

from covermap.errors import CoverageError, ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel1.nodes import part_around, positions_in

HEIGHTS_M = (-1_000.0, 9_500.0)


@dataclass(frozen=True)
class Terrain:
    """Ellipsoidal heights float32 (y, x), NaN = none, and where the nodes of the grid lie in them (2, y, x)."""

    name: str
    height_m: np.ndarray
    nodes: np.ndarray
    lowest_m: float
    highest_m: float


def read_dem(dem: Path | None, window: Grid, geoid_m: float | None) -> Terrain:
    """The DEM around a window of the grid."""
    if dem is None:
        raise SettingError("a GRD scene needs heights for its terrain correction: set the area's dem")
    try:
        with rasterio.open(dem) as raster:
            if raster.crs is None:
                raise ProductError(f"DEM {dem} has no CRS: write it with the CRS of its coordinates")
            _check_heights(dem, CRS.from_wkt(raster.crs.to_wkt()), geoid_m)
            nodes = positions_in(window, raster)
            part = part_around(nodes, raster.shape, 2)
            if part is None:
                raise CoverageError(
                    f"DEM {dem} does not touch the area {window.bounds} in {window.crs}: expected one that covers it"
                )
            height_m = raster.read(1, window=part, masked=True, out_dtype="float32").filled(np.nan) + (geoid_m or 0.0)
    except RasterioError as error:
        raise ProductError(
            f"DEM {dem} cannot be read ({error}): expected a whole raster of heights in metres"
        ) from error
    if np.isnan(height_m).all():
        raise CoverageError(f"DEM {dem} has no height in the area {window.bounds} in {window.crs}")
    lowest, highest = float(np.nanmin(height_m)), float(np.nanmax(height_m))
    if lowest < HEIGHTS_M[0] or highest > HEIGHTS_M[1]:
        raise ProductError(
            f"DEM {dem} has heights from {lowest:.0f} to {highest:.0f} m: expected metres and a declared no data value"
        )
    nodes -= np.array([part.row_off, part.col_off])[:, None, None]
    return Terrain(dem.name, height_m, nodes, lowest, highest)


def _check_heights(dem: Path, crs: CRS, geoid_m: float | None) -> None:
    """Heights of an unknown kind would shift the scene by tens of metres: the user must say what they are."""
    ellipsoidal = len(crs.axis_info) == 3 and not crs.is_compound
    if not ellipsoidal and geoid_m is None:
        raise SettingError(
            f"DEM {dem} in {crs.name} does not declare ellipsoidal heights (a 3D CRS such as EPSG:4979): set "
            f"sentinel1.geoid_m to the geoid undulation of the area in metres"
        )
    if ellipsoidal and geoid_m is not None:
        raise SettingError(
            f"DEM {dem} declares ellipsoidal heights ({crs.name}): remove sentinel1.geoid_m ({geoid_m} m)"
        )
