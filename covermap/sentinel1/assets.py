"""Analysis-ready backscatter: what a provider has terrain-corrected already, brought onto the grid."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

from covermap.area_settings import Sentinel1
from covermap.errors import ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel1 import geocoding, safe, speckle
from covermap.sentinel1.geocoded import Geocoded
from covermap.sentinel1.nodes import node_step, part_around, positions_in


def ready_assets(archive: safe.Archive, grid: Grid, settings: Sentinel1) -> Geocoded:
    """Analysis-ready backscatter on the grid: filtered on its own pixels, then bilinear in linear power."""
    _must_apply(archive, settings)
    bands: list[np.ndarray] = []
    window: Grid | None = None
    try:
        for name, band in _asset_bands(archive, settings.polarisations):
            with rasterio.open(archive.raster(name)) as raster:
                if raster.crs is None:
                    raise ProductError(f"{archive.path}: {name} has no CRS: expected backscatter on a map")
                if window is None:
                    window = grid.cropped(transform_bounds(raster.crs, grid.crs, *raster.bounds))
                if window is None:
                    raise safe.no_overlap(archive, grid)
                positions = positions_in(window, raster)
                part = part_around(positions, raster.shape, settings.window_pixels // 2 + 2)
                if part is None:
                    raise safe.no_overlap(archive, grid)
                values = raster.read(band, window=part, masked=True).astype(np.float64).filled(np.nan)
            power = (10 ** (values / 10) if settings.assets_unit == "dB" else values).astype(np.float32)
            power[~np.isfinite(power) | (power == 0)] = np.nan  # providers fill their rims with zeros
            power = speckle.despeckle(power, settings.speckle_filter, settings.window_pixels, settings.looks)
            positions -= np.array([part.row_off, part.col_off])[:, None, None]
            dense = geocoding.refine(positions, node_step(window), range(window.height), window.width)
            bands.append(geocoding.bilinear(power, *dense))
    except RasterioError as error:
        raise ProductError(f"{archive.path}: a raster cannot be read ({error}): {safe.DOWNLOAD_AGAIN}") from error
    assert window is not None  # there is a polarisation, the settings say so
    tags = {"convention": "as delivered", "assets_unit": settings.assets_unit, "noise_removed": "by the provider"}
    power, window = _cropped(np.stack(bands), window, archive)
    return Geocoded(window, settings.polarisations, [(0, power)], tags)


def _must_apply(archive: safe.Archive, settings: Sentinel1) -> None:
    """Refuse settings of the chain before the delivered backscatter: they would do nothing."""
    asked = {
        "processor": settings.processor == "snap",
        "convention": settings.convention == "gamma0_terrain",
        "normalise_deg": settings.normalise_deg is not None,
        "negative_power": settings.negative_power != "keep",
        "bistatic": settings.bistatic,
        "path_delay": settings.path_delay,
        "layers": "incidence_angle" in settings.layers,
    }
    if names := [f"sentinel1.{name}" for name, is_set in asked.items() if is_set]:
        raise SettingError(
            f"{archive.path} holds analysis-ready backscatter, to which {' and '.join(names)} cannot be applied any "
            f"more: unset for this area, or give GRD products"
        )


def _asset_bands(archive: safe.Archive, polarisations: tuple[str, ...]) -> list[tuple[str, int]]:
    """Raster and band number of each polarisation: a file named after it, else bands of the one raster, in order."""
    rasters = {
        PurePosixPath(name).stem.lower(): name for name in archive.names if name.lower().endswith((".tif", ".tiff"))
    }
    if all(name.lower() in rasters for name in polarisations):
        return [(rasters[name.lower()], 1) for name in polarisations]
    if len(rasters) == 1:
        (name,) = rasters.values()
        with rasterio.open(archive.raster(name)) as raster:
            described = [(text or "").upper() for text in raster.descriptions]
            if set(polarisations) <= set(described):
                return [(name, described.index(one) + 1) for one in polarisations]
            if raster.count == len(polarisations):
                return [(name, number + 1) for number in range(raster.count)]
    raise ProductError(
        f"{archive.path} has the rasters {sorted(rasters.values())}: expected "
        f"{' and '.join(name.lower() + '.tif' for name in polarisations)}, or one raster with a band for each"
    )


def _cropped(power: np.ndarray, grid: Grid, archive: safe.Archive) -> tuple[np.ndarray, Grid]:
    """The part that holds all pixels with data."""
    valid = np.isfinite(power).any(axis=0)
    if not valid.any():
        raise safe.no_overlap(archive, grid)
    rows, columns = (np.flatnonzero(valid.any(axis=axis))[[0, -1]] for axis in (1, 0))
    part = grid.window(int(rows[0]), int(columns[0]), int(rows[1] - rows[0] + 1), int(columns[1] - columns[0] + 1))
    return power[:, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1], part
