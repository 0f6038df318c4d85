"""Sentinel-1 backscatter on the grid of an area: the step ``process_s1``.

GRD products go through the whole chain (annotated orbit, thermal noise, calibration, speckle filter, range-Doppler
terrain correction); analysis-ready backscatter enters behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from covermap.config import Sentinel1
from covermap.errors import CoverageError
from covermap.grid import Grid
from covermap.raster import write_raster
from covermap.sentinel1 import safe
from covermap.sentinel1.assets import ready_assets
from covermap.sentinel1.native import native_chain


def process_s1(
    product: Path,
    dem: Path | None,
    processed: Path,
    item: dict[str, Any],
    grid: Grid,
    settings: Sentinel1,
    threads: int = 1,
) -> None:
    """Backscatter of one scene on the area's grid.

    Parameters
    ----------
    product : stored zip of a GRD SAFE, or SAFE folder; or a zip of ``item.json`` and rasters of analysis-ready
        backscatter: ``vv.tif`` and ``vh.tif``, or one raster with a band for each polarisation.
    dem : heights in metres in any CRS; not used for analysis-ready backscatter.
    processed : GeoTIFF float32, one band for each polarisation of the settings, on the part of ``grid`` that the scene
        covers: signed linear power, NaN = no data. The tags say how it came about.
    item : STAC item of the scene.
    grid : the area's grid.
    settings : section ``sentinel1``.
    threads : strips of the image that are worked on at once.

    Raises
    ------
    ProductError
        The product or the DEM is broken, incomplete or not what it claims to be.
    CoverageError
        The scene does not touch the grid.
    SettingError
        A polarisation is asked for that the scene lacks; nothing says what the DEM's heights refer to.
    """
    archive = safe.open_product(product)
    if archive.is_safe:
        power, window, tags = native_chain(archive, dem, grid, settings, threads)
    else:
        power, window, tags = ready_assets(archive, grid, settings)
    power, window = _cropped(power, window, safe.no_overlap(archive, grid))
    properties = item.get("properties", {})
    about = {
        "scene": item.get("id", product.stem),
        "datetime": properties.get("datetime", "unknown"),
        "orbit_state": properties.get("sat:orbit_state", "unknown"),
        "relative_orbit": properties.get("sat:relative_orbit", "unknown"),
        "units": "power",
        "speckle_filter": settings.speckle_filter,
    }
    if settings.speckle_filter != "none":
        about |= {"window_pixels": settings.window_pixels, "looks": settings.looks}
    write_raster(processed, power, window, nodata=np.nan, descriptions=settings.polarisations, tags=about | tags)


def _cropped(power: np.ndarray, grid: Grid, nothing: CoverageError) -> tuple[np.ndarray, Grid]:
    """The part that holds all pixels with data."""
    valid = np.isfinite(power).any(axis=0)
    if not valid.any():
        raise nothing
    rows, columns = (np.flatnonzero(valid.any(axis=axis))[[0, -1]] for axis in (1, 0))
    inside = np.s_[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]
    part = np.ascontiguousarray(power[:, inside[0], inside[1]])
    return part, grid.window(int(rows[0]), int(columns[0]), *part.shape[1:])
