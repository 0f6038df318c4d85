"""Sentinel-1 backscatter on the grid of an area: the step ``process_s1``.

GRD products go through the whole chain (annotated orbit, thermal noise, calibration, speckle filter, range-Doppler
terrain correction); analysis-ready backscatter enters behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import rasterio
from pyproj import CRS, Transformer
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from covermap.config import Sentinel1
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.grid import Grid
from covermap.raster import write_raster
from covermap.sentinel1 import geocoding, radiometry, safe, speckle

NODE_M = 160.0  # distance of the places where geometry is solved; between them it is interpolated
STRIP = 128  # rows worked on at once: they stay in the processor's cache
FOOTPRINT_MARGIN_M = 5_000.0  # terrain moves a pixel by up to twice its height
RADAR_MARGIN = 24  # lines and samples: conversion records bend the geometry between nodes
HEIGHTS_M = (-1_000.0, 9_500.0)


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
        power, window, tags = _from_safe(archive, dem, grid, settings, threads)
    else:
        power, window, tags = _from_assets(archive, grid, settings)
    power, window = _cropped(power, window, _apart(archive, grid))
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


def _from_safe(
    archive: safe.Archive, dem: Path | None, grid: Grid, settings: Sentinel1, threads: int
) -> tuple[np.ndarray, Grid, dict[str, Any]]:
    """The native chain: power (polarisation, y, x), its window of the grid, tags."""
    images = _wanted(archive, settings)
    image = images[0]
    paths = [safe.measurement(archive, one) for one in images]
    window = _near(image, grid, archive)
    terrain = _read_dem(dem, window, settings.geoid_m)
    seen = geocoding.sight(image.orbit, *_nodes(window, "EPSG:4326"), terrain.lowest_m, terrain.highest_m)
    part = _radar_window(image, seen, archive, settings)
    radar = [
        _sigma_nought(archive, one, path, part, settings, threads) for one, path in zip(images, paths, strict=True)
    ]
    tags = {
        "convention": "sigma0_ellipsoid",
        "orbit_source": "annotation",
        "noise_removed": "by the processor" if image.noise_already_removed else "yes",
        "dem": terrain.name,
        "geoid": "none, the DEM has ellipsoidal heights" if settings.geoid_m is None else f"{settings.geoid_m} m",
        "datetime": f"{image.first_line}Z",
        "orbit_state": image.orbit_state,
        "relative_orbit": safe.relative_orbit(archive),
    }
    return _geocode(image, radar, part, seen, terrain, window, threads), window, tags


def _wanted(archive: safe.Archive, settings: Sentinel1) -> list[safe.Image]:
    """Annotations of the polarisations of the settings, known to share one geometry."""
    found = safe.images(archive)
    lacking = [name for name in settings.polarisations if name not in found]
    if lacking:
        raise SettingError(
            f"{archive.path} has no {' and '.join(lacking)}, only {' and '.join(sorted(found))}: set "
            f"sentinel1.polarisations to what the scenes have, or remove the scene from the list"
        )
    images = [found[name] for name in settings.polarisations]
    shapes = {(image.lines, image.samples, image.first_line) for image in images}
    if len(shapes) > 1:
        raise ProductError(
            f"{archive.path}: its polarisations differ in size or first line, expected one image geometry"
        )
    return images


def _near(image: safe.Image, grid: Grid, archive: safe.Archive) -> Grid:
    """Window of the grid around the annotated footprint."""
    column = {name: image.grid_points[:, i] for i, name in enumerate(safe.GRID_POINT_FIELDS)}
    transform = Transformer.from_crs("EPSG:4326", grid.crs, always_xy=True)
    x, y = transform.transform(column["longitude"], column["latitude"])
    finite = np.isfinite(x) & np.isfinite(y)
    margin = FOOTPRINT_MARGIN_M
    if finite.any():
        x, y = x[finite], y[finite]
        window = grid.cropped((x.min() - margin, y.min() - margin, x.max() + margin, y.max() + margin))
        if window is not None:
            return window
    raise _apart(archive, grid)


def _apart(archive: safe.Archive, grid: Grid) -> CoverageError:
    return CoverageError(
        f"scene {archive.path} does not touch the area {grid.bounds} in {grid.crs}: remove it from the list of scenes"
    )


@dataclass(frozen=True)
class _Terrain:
    """Ellipsoidal heights float32 (y, x), NaN = none, and where the nodes of the grid lie in them (2, y, x)."""

    name: str
    height_m: np.ndarray
    nodes: np.ndarray
    lowest_m: float
    highest_m: float


def _read_dem(dem: Path | None, window: Grid, geoid_m: float | None) -> _Terrain:
    """The DEM around a window of the grid."""
    if dem is None:
        raise SettingError("a GRD scene needs heights for its terrain correction: set the area's dem")
    try:
        with rasterio.open(dem) as raster:
            if raster.crs is None:
                raise ProductError(f"DEM {dem} has no CRS: write it with the CRS of its coordinates")
            _check_heights(dem, CRS.from_wkt(raster.crs.to_wkt()), geoid_m)
            nodes = _positions(window, raster)
            part = _part(nodes, raster.shape, 2)
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
    return _Terrain(dem.name, height_m, nodes, lowest, highest)


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


def _node_step(grid: Grid) -> int:
    return max(1, round(NODE_M / grid.pixel_m))


def _nodes(grid: Grid, crs: str | CRS) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x, y (y, x) in ``crs`` of the grid's nodes: centres of every ``_node_step``-th pixel."""
    step = _node_step(grid)
    rows, columns = (
        np.arange(0, length - 1 + step, step) if length > 1 else np.array([0, step]) for length in grid.shape
    )
    x = grid.left + (columns + 0.5) * grid.pixel_m
    y = grid.top - (rows + 0.5) * grid.pixel_m
    return Transformer.from_crs(grid.crs, crs, always_xy=True).transform(*np.meshgrid(x, y))


def _positions(grid: Grid, raster: rasterio.DatasetReader) -> np.ndarray:
    """Row and column (2, y, x) of the grid's nodes in a raster, from the centre of its first pixel."""
    x, y = _nodes(grid, CRS.from_wkt(raster.crs.to_wkt()))
    to_pixel = ~raster.transform
    column = to_pixel.a * x + to_pixel.b * y + to_pixel.c
    row = to_pixel.d * x + to_pixel.e * y + to_pixel.f
    return np.round(np.stack([row, column]) - 0.5, 6)  # so that a raster on the grid's own lattice is copied exactly


def _part(positions: np.ndarray, shape: tuple[int, int], margin: int) -> Window | None:
    """Smallest window of a raster that holds the positions and a margin, or None where they do not meet."""
    edges = []
    for position, length in zip(positions, shape, strict=True):
        position = position[np.isfinite(position)]
        if not len(position):
            return None
        start, stop = np.floor(position.min()) - margin, np.ceil(position.max()) + margin + 1
        edges.append((int(np.clip(start, 0, length)), int(np.clip(stop, 0, length))))
    if any(start >= stop for start, stop in edges):
        return None
    return Window.from_slices(*edges)


def _radar_window(image: safe.Image, seen: geocoding.Sight, archive: safe.Archive, settings: Sentinel1) -> Window:
    """Part of the image that the nodes see at any height of the terrain, with room for the filter's window."""
    ends = [geocoding.time_and_range(seen.nodes, seen.middle_m + u * seen.half_m, seen) for u in (-1, 1)]
    positions = np.stack([_line_and_sample(image, *end) for end in ends], axis=1)
    part = _part(positions, (image.lines, image.samples), settings.window_pixels // 2 + RADAR_MARGIN)
    if part is None:
        raise CoverageError(
            f"scene {archive.path} passes near the area but does not cover any of it: remove it from the list of scenes"
        )
    return part


def _line_and_sample(image: safe.Image, time_s: np.ndarray, slant_range_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position in the image, from the centre of its first pixel."""
    ground_m = geocoding.ground_range(image.ground_to_slant, time_s, slant_range_m)
    return time_s / image.line_interval_s, ground_m / image.range_spacing_m


def _sigma_nought(
    archive: safe.Archive, image: safe.Image, path: str, part: Window, settings: Sentinel1, threads: int
) -> np.ndarray:
    """Filtered backscatter float32 (line, sample) of a window of the image."""
    vectors = safe.sigma_nought(archive, image)
    noise = None if image.noise_already_removed else safe.noise(archive, image)
    dn = safe.read_raster(path, part)
    lines = np.arange(part.height) + part.row_off
    samples = np.arange(part.width) + part.col_off
    half = settings.window_pixels // 2 if settings.speckle_filter == "lee" else 0
    out = np.empty(dn.shape, np.float32)

    def strip(rows: slice) -> None:
        wide = slice(max(rows.start - half, 0), min(rows.stop + half, part.height))
        line = lines[wide]
        lut = radiometry.calibration_lut(vectors, line * image.line_interval_s, samples)
        noise_power = radiometry.noise_power(noise, line, samples, image.line_interval_s) if noise else 0.0
        power = radiometry.sigma_nought(dn[wide], noise_power, lut)
        if half:
            power = speckle.lee(power, settings.window_pixels, settings.looks)
        out[rows] = power[rows.start - wide.start : rows.stop - wide.start]

    _in_strips(strip, part.height, threads)
    return out


def _geocode(
    image: safe.Image,
    radar: list[np.ndarray],
    part: Window,
    seen: geocoding.Sight,
    terrain: _Terrain,
    window: Grid,
    threads: int,
) -> np.ndarray:
    """Radar images brought onto a window of the grid: float32 (image, y, x), NaN = no data.

    Raises
    ------
    CoverageError
        The scene has data where the DEM has no height.
    """
    out = np.empty((len(radar), *window.shape), np.float32)
    unknown = np.zeros(window.height, np.int64)
    step, middle_m = _node_step(window), (terrain.lowest_m + terrain.highest_m) / 2

    def strip(rows: slice) -> None:
        pixels = range(rows.start, rows.stop)
        height_m = geocoding.bilinear(terrain.height_m, *geocoding.refine(terrain.nodes, step, pixels, window.width))
        missing = np.isnan(height_m)
        height_m[missing] = middle_m
        layers = geocoding.refine(seen.nodes, step, pixels, window.width)
        line, sample = _line_and_sample(image, *geocoding.time_and_range(layers, height_m, seen))
        line -= part.row_off
        sample -= part.col_off
        for band, power in zip(out, radar, strict=True):
            band[rows] = geocoding.bilinear(power, line, sample)
        unknown[rows] = (missing & np.isfinite(out[:, rows]).any(axis=0)).sum(axis=1)

    _in_strips(strip, window.height, threads)
    if unknown.any():
        first = np.flatnonzero(unknown)[[0, -1]]
        north, south = window.top - first * window.pixel_m
        raise CoverageError(
            f"DEM {terrain.name} has no height at {unknown.sum()} pixels that the scene sees in the area, between "
            f"northings {south:.0f} and {north:.0f} m in {window.crs}: expected a DEM that covers it without gaps"
        )
    return out


def _in_strips(work: Callable[[slice], None], height: int, threads: int) -> None:
    strips = [slice(start, min(start + STRIP, height)) for start in range(0, height, STRIP)]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, strips):
            pass


def _from_assets(archive: safe.Archive, grid: Grid, settings: Sentinel1) -> tuple[np.ndarray, Grid, dict[str, Any]]:
    """Analysis-ready backscatter on the grid: filtered on its own pixels, then bilinear in linear power."""
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
                    raise _apart(archive, grid)
                positions = _positions(window, raster)
                part = _part(positions, raster.shape, settings.window_pixels // 2 + 2)
                if part is None:
                    raise _apart(archive, grid)
                values = raster.read(band, window=part, masked=True).astype(np.float64).filled(np.nan)
            power = (10 ** (values / 10) if settings.assets_unit == "dB" else values).astype(np.float32)
            power[~np.isfinite(power)] = np.nan
            if settings.speckle_filter == "lee":
                power = speckle.lee(power, settings.window_pixels, settings.looks)
            positions -= np.array([part.row_off, part.col_off])[:, None, None]
            dense = geocoding.refine(positions, _node_step(window), range(window.height), window.width)
            bands.append(geocoding.bilinear(power, *dense))
    except RasterioError as error:
        raise ProductError(f"{archive.path}: a raster cannot be read ({error}): {safe.DOWNLOAD_AGAIN}") from error
    assert window is not None  # there is a polarisation, the settings say so
    tags = {"convention": "as delivered", "assets_unit": settings.assets_unit, "noise_removed": "by the provider"}
    return np.stack(bands), window, tags


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


def _cropped(power: np.ndarray, grid: Grid, nothing: CoverageError) -> tuple[np.ndarray, Grid]:
    """The part that holds all pixels with data."""
    valid = np.isfinite(power).any(axis=0)
    if not valid.any():
        raise nothing
    rows, columns = (np.flatnonzero(valid.any(axis=axis))[[0, -1]] for axis in (1, 0))
    inside = np.s_[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1]
    part = np.ascontiguousarray(power[:, inside[0], inside[1]])
    return part, grid.window(int(rows[0]), int(columns[0]), *part.shape[1:])
