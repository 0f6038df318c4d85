"""Sentinel-1 backscatter on the grid of an area: the step ``process_s1``.

GRD products go through the whole chain (orbit, border and thermal noise, calibration, speckle filter, range-Doppler
terrain correction), ours or SNAP's; analysis-ready backscatter enters behind it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from covermap.area_settings import Sentinel1
from covermap.grid import Grid
from covermap.raster import new_raster
from covermap.sentinel1 import radiometry, safe, snap
from covermap.sentinel1.assets import ready_assets
from covermap.sentinel1.geocoded import Geocoded
from covermap.sentinel1.native import native_chain
from covermap.sentinel1.terrain import check_geoid


def process_s1(
    product: Path,
    dem: Path | None,
    processed: Path,
    item: dict[str, Any],
    grid: Grid,
    settings: Sentinel1,
    threads: int = 1,
    orbit: Path | None = None,
    geoid: Path | None = None,
    mem_mb: int = 8_000,
    runtime: int = 120,
) -> None:
    """Backscatter of one scene on the area's grid.

    Parameters
    ----------
    product : stored zip of a GRD SAFE, or SAFE folder; or a zip of ``item.json`` and rasters of analysis-ready
        backscatter: ``vv.tif`` and ``vh.tif``, or one raster with a band for each polarisation.
    dem : heights in metres in any CRS; not used for analysis-ready backscatter.
    processed : GeoTIFF float32, one band for each polarisation of the settings, on the part of ``grid`` that the scene
        covers, signed linear power or dB, then the layers of the settings: ``incidence_angle`` on the ellipsoid
        [degrees], ``layover_shadow`` (1 layover, 2 shadow, 3 both); NaN = no data. The tags say how it came about.
    item : STAC item of the scene.
    grid : the area's grid.
    settings : section ``sentinel1``.
    threads : strips of the image that are worked on at once.
    orbit : orbit file (.EOF) of the scene; None: the state vectors in the product.
    geoid : grid that the heights count from, in the place of the setting; None: as the settings and the DEM say.
    mem_mb, runtime : memory [MB] and minutes that SNAP may take.

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
    if geoid is not None and dem is not None:
        check_geoid(dem, settings.geoid)
        settings = settings.model_copy(update={"geoid": geoid})
    properties = item.get("properties", {})
    tags = {
        "scene": item.get("id", product.stem),
        "datetime": properties.get("datetime", "unknown"),
        "orbit_state": properties.get("sat:orbit_state", "unknown"),
        "relative_orbit": properties.get("sat:relative_orbit", "unknown"),
        "units": settings.units,
        "speckle_filter": settings.speckle_filter,
    }
    if settings.speckle_filter != "none":
        tags |= {"looks": settings.looks}
    if settings.speckle_filter == "lee":
        tags |= {"window_pixels": settings.window_pixels}
    size = {"mem_mb": mem_mb, "runtime": runtime, "threads": threads}
    with (
        _geocoded(archive, dem, processed, grid, settings, orbit, **size) as scene,
        new_raster(
            processed,
            scene.window,
            count=len(scene.bands),
            dtype="float32",
            nodata=np.nan,
            descriptions=scene.bands,
            tags=tags | scene.tags,
            interleave="band",
        ) as raster,
    ):
        seen = 0
        for row, pixels in scene.strips:
            power = pixels[: len(settings.polarisations)]
            seen += np.isfinite(power).sum()
            if settings.units == "dB" and scene.tags.get("units") != "dB":  # SNAP has done it already
                power[:] = radiometry.to_db(power, 10 ** (settings.floor_db / 10))
            raster.write(pixels, window=Window(0, row, pixels.shape[2], pixels.shape[1]))
        if not seen:
            raise safe.no_overlap(archive, grid)


def _geocoded(
    archive: safe.Archive,
    dem: Path | None,
    processed: Path,
    grid: Grid,
    settings: Sentinel1,
    orbit: Path | None,
    *,
    threads: int,
    mem_mb: int,
    runtime: int,
) -> AbstractContextManager[Geocoded]:
    """The scene by the chain that fits the product and the settings."""
    if not archive.is_safe:
        return nullcontext(ready_assets(archive, grid, settings))
    program = snap.choose_snap(settings, grid.crs)
    if program is None:
        return nullcontext(native_chain(archive, dem, orbit, grid, settings, threads))
    limit_s = 60 * runtime - 60  # so that SNAP is ended, and its log read, before a scheduler ends the job
    return snap.snap_chain(
        program,
        archive,
        dem,
        processed,
        grid,
        settings,
        orbit=orbit,
        threads=threads,
        mem_mb=mem_mb,
        time_limit_s=limit_s,
    )
