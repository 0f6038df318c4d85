"""What the ground is like under a grid: elevation and slope from the area's DEM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from covermap.errors import ProductError
from covermap.grid import Grid, false_origin
from covermap.sentinel1.geocoding import bilinear, refine
from covermap.sentinel1.nodes import node_step, part_around, positions_in
from covermap.sentinel1.terrain import HEIGHTS_M

NO_TERRAIN = -32768
SLOPE_STEPS = 100  # a degree
FRACTIONS = 2**20  # positions in the DEM end on these parts of a pixel, so that moving its corner rounds nothing


def elevation_and_slope(dem: Path, grid: Grid) -> np.ndarray:
    """Elevation and slope of the ground on ``grid``.

    Each pixel is a function of its place alone, so blocks and rows never show. The DEM is sampled bilinearly: one that
    is finer than the grid is not averaged. Heights stay above whatever the DEM counts them from.

    Parameters
    ----------
    dem : raster of heights in metres, in any CRS.
    grid : where elevation and slope are wanted; slope looks one pixel further.

    Returns
    -------
    int16 (2, y, x): elevation [m] and slope [0.01 degrees]; -32768 where the DEM has no height, or none beside it.

    Raises
    ------
    ProductError
        The DEM cannot be read, has no CRS, or its heights are no metres.
    """
    height_m = _heights(dem, grid.padded(1))
    layers = np.stack([height_m[1:-1, 1:-1], SLOPE_STEPS * horn_slope(height_m, grid.pixel_m)])
    return np.where(np.isnan(layers), NO_TERRAIN, np.rint(layers)).astype(np.int16)


def horn_slope(height_m: np.ndarray, pixel_m: float) -> np.ndarray:
    """Slope [degrees] from the eight neighbours of each pixel (Horn 1981, doi:10.1109/PROC.1981.11918).

    Parameters
    ----------
    height_m : float (y + 2, x + 2), with a rim of one pixel; NaN = none.
    pixel_m : side of a pixel.

    Returns
    -------
    Float (y, x); NaN where one of the neighbours is.
    """
    down = height_m[:-2] + 2 * height_m[1:-1] + height_m[2:]  # (y, x + 2)
    along = height_m[:, :-2] + 2 * height_m[:, 1:-1] + height_m[:, 2:]  # (y + 2, x)
    rise = np.hypot(down[:, 2:] - down[:, :-2], along[2:] - along[:-2]) / (8 * pixel_m)
    return np.degrees(np.arctan(rise))


def _heights(dem: Path, grid: Grid) -> np.ndarray:
    """Heights [m] on ``grid``: float32 (y, x), NaN where the DEM has none."""
    try:
        with rasterio.open(dem) as raster:
            if raster.crs is None:
                raise ProductError(f"DEM {dem} has no CRS: write it with the CRS of its coordinates")
            rows, columns = _positions(grid, raster)
            part = part_around(np.stack([rows, columns]), raster.shape, 1)
            if part is None:
                return np.full(grid.shape, np.nan, np.float32)
            height_m = raster.read(1, window=part, masked=True, out_dtype="float32").filled(np.nan)
    except RasterioError as error:
        raise ProductError(
            f"DEM {dem} cannot be read ({error}): expected a whole raster of heights in metres"
        ) from error
    lowest, highest = np.nanmin(height_m, initial=0), np.nanmax(height_m, initial=0)
    if lowest < HEIGHTS_M[0] or highest > HEIGHTS_M[1]:
        raise ProductError(
            f"DEM {dem} has heights from {lowest:.0f} to {highest:.0f} m: expected metres and a declared no data value"
        )
    return bilinear(height_m, rows - part.row_off, columns - part.col_off)


def _positions(grid: Grid, raster: rasterio.DatasetReader) -> np.ndarray:
    """Row and column (2, y, x) of the pixels of ``grid`` in a raster, from the centre of its first pixel.

    Nodes lie on the CRS's own lattice, so that a pixel has the same ones however the grid is cut.
    """
    step, (east0, north0) = node_step(grid), false_origin(grid.crs)
    left, top = round((grid.left - east0) / grid.pixel_m) % step, round((north0 - grid.top) / grid.pixel_m) % step
    height, width = (-(-length // step) * step for length in (top + grid.height, left + grid.width))
    around = grid.window(-top, -left, height, width)
    found = refine(positions_in(around, raster), step, range(top, top + grid.height), left + grid.width)[..., left:]
    return np.round(found * FRACTIONS) / FRACTIONS
