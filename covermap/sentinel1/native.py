"""The chain of our own, from a GRD product to backscatter on the grid."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pyproj import Transformer
from rasterio.windows import Window

from covermap.config import Sentinel1
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel1 import geocoding, radiometry, safe, speckle
from covermap.sentinel1.nodes import node_step, nodes, part_around
from covermap.sentinel1.terrain import Terrain, read_dem

STRIP = 128  # rows worked on at once: they stay in the processor's cache
FOOTPRINT_MARGIN_M = 5_000.0  # terrain moves a pixel by up to twice its height
RADAR_MARGIN = 24  # lines and samples: conversion records bend the geometry between nodes


def native_chain(
    archive: safe.Archive, dem: Path | None, grid: Grid, settings: Sentinel1, threads: int
) -> tuple[np.ndarray, Grid, dict[str, Any]]:
    """The native chain: power (polarisation, y, x), its window of the grid, tags."""
    images = _wanted(archive, settings)
    image = images[0]
    paths = [safe.measurement(archive, one) for one in images]
    window = _near(image, grid, archive)
    terrain = read_dem(dem, window, settings.geoid_m)
    seen = geocoding.sight(image.orbit, *nodes(window, "EPSG:4326"), terrain.lowest_m, terrain.highest_m)
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
    raise safe.no_overlap(archive, grid)


def _radar_window(image: safe.Image, seen: geocoding.Sight, archive: safe.Archive, settings: Sentinel1) -> Window:
    """Part of the image that the nodes see at any height of the terrain, with room for the filter's window."""
    ends = [geocoding.time_and_range(seen.nodes, seen.middle_m + u * seen.half_m, seen) for u in (-1, 1)]
    positions = np.stack([_line_and_sample(image, *end) for end in ends], axis=1)
    part = part_around(positions, (image.lines, image.samples), settings.window_pixels // 2 + RADAR_MARGIN)
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
    terrain: Terrain,
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
    step, middle_m = node_step(window), (terrain.lowest_m + terrain.highest_m) / 2

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
