"""The chain of our own, from a GRD product to backscatter on the grid."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pyproj import Transformer
from rasterio.windows import Window

from covermap.area_settings import Sentinel1
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel1 import distortion, flattening, geocoding, radiometry, safe, speckle
from covermap.sentinel1.flattening import Project
from covermap.sentinel1.geocoded import Geocoded
from covermap.sentinel1.nodes import node_step, nodes, part_around
from covermap.sentinel1.orbit import own_name, read_orbit_file
from covermap.sentinel1.terrain import Terrain, read_dem
from covermap.strips import in_order, strips_of

log = logging.getLogger(__name__)

LINES = 128  # of the radar image in work at once: they stay in the processor's cache
ROWS = 512  # of the result that are written at once: whole tiles of the file
ROWS_AT_ONCE = 64  # of these that are in work: with some columns they stay in the cache
NODES_AT_ONCE = 64  # columns of nodes in work
FOOTPRINT_MARGIN_M = 5_000.0  # terrain moves a pixel by up to twice its height
RADAR_MARGIN = 24  # lines and samples: conversion records bend the geometry between nodes

# calibration table of each convention; terrain flattening starts from beta0
TABLES: dict[str, Literal["sigmaNought", "betaNought", "gamma"]] = {
    "sigma0": "sigmaNought",
    "beta0": "betaNought",
    "gamma0": "gamma",
    "gamma0_terrain": "betaNought",
}

COSINES = {"sigma0": 2, "gamma0": 1}  # of the incidence angle in backscatter that is normalised


def native_chain(
    archive: safe.Archive, dem: Path | None, orbit: Path | None, grid: Grid, settings: Sentinel1, threads: int
) -> Geocoded:
    """Signed linear power of a GRD product on the grid, and the layers of the settings.

    In memory lie the filtered radar image (4 bytes a pixel and polarisation), the DEM and a few strips of the result.

    Raises
    ------
    ProductError, CoverageError, SettingError
        As :func:`covermap.sentinel1.process_s1`; some only while the strips are drawn.
    """
    images = [
        replace(one, orbit=read_orbit_file(orbit, one)) if orbit else one for one in wanted_images(archive, settings)
    ]
    image = images[0]
    window = footprint_window(image, grid, archive)
    places = _places(image, window, dem, settings, archive)
    part = _radar_window(places.inner_nodes(places.positions), image, archive, settings)
    border = _border(archive, safe.images(archive))
    radar, below = zip(*(calibrated(archive, one, part, settings, threads, border) for one in images), strict=True)
    if settings.convention == "gamma0_terrain":
        _flatten(radar, places, part, threads)
    tags: dict[str, Any] = {
        "processor": "covermap",
        "convention": settings.convention,
        "orbit_source": f"{image.orbit.source} ({own_name(orbit)})" if orbit else image.orbit.source,
        "noise_removed": "by the processor" if image.noise_already_removed else "yes",
        "border_noise": "masked" if border else "masked by the processor",
        "negative_power": settings.negative_power,
        "below_noise_percent": " ".join(f"{100 * share:.3f}" for share in below),
        "dem": places.terrain.name,
        "geoid": places.terrain.geoid,
        "ground_range": settings.ground_range,
        "bistatic": settings.bistatic,
        "path_delay": settings.path_delay,
        "datetime": f"{image.first_line}Z",
        "orbit_state": image.orbit_state,
        "relative_orbit": safe.relative_orbit(archive),
    }
    if settings.normalise_deg is not None:
        tags["normalised_deg"] = settings.normalise_deg
    bands = (*settings.polarisations, *settings.layers)
    return Geocoded(places.covered_grid, bands, _geocoded(radar, part, places, settings, threads), tags)


def wanted_images(archive: safe.Archive, settings: Sentinel1) -> list[safe.Image]:
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


def footprint_window(image: safe.Image, grid: Grid, archive: safe.Archive) -> Grid:
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


def _radar_window(positions: np.ndarray, image: safe.Image, archive: safe.Archive, settings: Sentinel1) -> Window:
    """Part of the image that the nodes see at any height of the terrain, with room for the filter's window."""
    part = part_around(positions, (image.lines, image.samples), settings.window_pixels // 2 + RADAR_MARGIN)
    if part is None:
        raise CoverageError(
            f"scene {archive.path} passes near the area but does not cover any of it: remove it from the list of scenes"
        )
    return part


@dataclass(frozen=True)
class _Border:
    """What is border noise in products of processors before 2.90: raster of the co-polarised image, inner part, DN."""

    path: str
    inner: tuple[int, int, int, int]
    floor_dn: np.ndarray


def _border(archive: safe.Archive, images: dict[str, safe.Image]) -> _Border | None:
    """The border noise of a product, None where its processor has removed it."""
    image = images.get("VV") or images.get("HH") or next(iter(images.values()))
    if image.processor_version >= (2, 90):
        return None
    path = safe.measurement(archive, image)
    margins = [safe.read_raster(path, window) for window in radiometry.border_windows(image.lines, image.samples)]
    floor_dn = radiometry.border_floor(
        safe.noise(archive, image),
        image.processor_version,
        image.mode,
        safe.calibration(archive, image, "dn"),
        np.arange(image.samples),
    )
    return _Border(path, radiometry.inner_part(margins, image.lines, image.samples), floor_dn)


def calibrated(
    archive: safe.Archive, image: safe.Image, part: Window, settings: Sentinel1, threads: int, border: _Border | None
) -> tuple[np.ndarray, float]:
    """Filtered backscatter float32 (line, sample) of a window of the image, and the share that is below the noise.

    Parameters
    ----------
    archive, image : product and annotation of one polarisation.
    part : lines and samples.
    settings : section ``sentinel1``.
    threads : strips worked on at once.
    border : border noise to mask, if any.
    """
    vectors = safe.calibration(archive, image, TABLES[settings.convention])
    noise = None if image.noise_already_removed else safe.noise(archive, image)
    samples = np.arange(part.width) + part.col_off
    half = speckle.margin(settings.speckle_filter, settings.window_pixels)
    floor = 10 ** (settings.floor_db / 10)
    out = np.empty((part.height, part.width), np.float32)

    def strip(read: tuple[slice, slice, np.ndarray, np.ndarray | None]) -> tuple[int, int]:
        rows, wide, dn, dn_co = read
        line = np.arange(wide.start, wide.stop) + part.row_off
        if border and dn_co is not None:
            dn[radiometry.border_noise(dn_co, line, samples, border.inner, border.floor_dn[samples])] = 0
        lut = radiometry.calibration_lut(vectors, line * image.line_interval_s, samples)
        noise_power = radiometry.noise_power(noise, line, samples, image.line_interval_s) if noise else 0.0
        power = radiometry.backscatter(dn, noise_power, lut)
        power, low = radiometry.limit_power(power, settings.negative_power, floor)
        power = speckle.despeckle(power, settings.speckle_filter, settings.window_pixels, settings.looks)
        own = slice(rows.start - wide.start, rows.stop - wide.start)
        out[rows] = power[own]
        return int(low[own].sum()), int((dn[own] > 0).sum())

    counts = list(in_order(strip, _read_strips(safe.measurement(archive, image), part, half, border), threads))
    low, valid = (sum(column) for column in zip(*counts, strict=True))
    return out, low / max(valid, 1)


def _read_strips(
    path: str, part: Window, half: int, border: _Border | None
) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray | None]]:
    """Lines of a window of the image; those with ``half`` more on both sides, and the digital numbers of the latter.

    The last is the same of the co-polarised image, where there is border noise to find.
    """
    for rows in strips_of(part.height, LINES):
        wide = slice(max(rows.start - half, 0), min(rows.stop + half, part.height))
        lines = Window(part.col_off, part.row_off + wide.start, part.width, wide.stop - wide.start)
        dn = safe.read_raster(path, lines)
        yield rows, wide, dn, safe.read_raster(border.path, lines) if border else None


@dataclass(frozen=True)
class _Places:
    """Geometry at the nodes of a grid that reaches ``margin`` pixels beyond the window that is wanted.

    ``positions`` (2, 2, y, x): line and sample of the nodes at the lowest and at the highest terrain;
    ``incidence`` (2, y, x) and ``radii`` (2, y, x) only where something needs them.
    """

    grid: Grid
    margin: int
    terrain: Terrain
    seen: geocoding.Sight
    project: Project
    positions: np.ndarray
    near: np.ndarray  # bool (y, x): the image may reach the node, at some height
    incidence: np.ndarray | None
    radii: np.ndarray | None

    @property
    def step(self) -> int:
        """Pixels from node to node."""
        return node_step(self.grid)

    def inner_nodes(self, layers: np.ndarray) -> np.ndarray:
        """Nodes (..., y, x) of the window that is wanted."""
        first = self.margin // self.step
        rows, columns = (-(-(size - 2 * self.margin) // self.step) + 1 for size in self.grid.shape)
        return layers[..., first : first + rows, first : first + columns]

    @property
    def covered(self) -> tuple[slice, slice]:
        """Rows and columns of the grid that are wanted and that the image may reach."""
        return self._pixels(0, slice(None)), self._pixels(1, slice(None))

    @property
    def covered_grid(self) -> Grid:
        """The grid of these pixels."""
        rows, columns = self.covered
        return self.grid.window(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)

    def columns(self, rows: slice) -> slice:
        """Columns that the image may reach in some rows; they start at a node."""
        return self._pixels(1, slice(rows.start // self.step, -(-rows.stop // self.step) + 1))

    def _pixels(self, axis: int, rows: slice) -> slice:
        """Pixels along an axis between the near nodes of some rows of nodes, and from these to the next ones."""
        found = np.nonzero(self.near[rows])[axis]
        if not len(found):
            return slice(0, 0)
        first, last = (int(found.min()) - 1) * self.step, (int(found.max()) + 1) * self.step
        return slice(max(first, self.margin), min(last, self.grid.shape[axis] - self.margin))

    def at(self, layers: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Layers of the nodes at pixels (layer, row, column); the columns start at a node."""
        row, column = rows.start // self.step, columns.start // self.step
        part = layers[:, row : -(-rows.stop // self.step) + 2, column : -(-columns.stop // self.step) + 2]
        pixels = range(rows.start - row * self.step, rows.stop - row * self.step)
        return geocoding.refine(np.ascontiguousarray(part), self.step, pixels, columns.stop - columns.start)


def _places(image: safe.Image, window: Grid, dem: Path | None, settings: Sentinel1, archive: safe.Archive) -> _Places:
    """Terrain and geometry of a window of the grid, and as far around it as slopes throw layover and shadow."""
    terrain = read_dem(dem, window, settings.geoid, settings.dem_gaps)
    column = dict(zip(safe.GRID_POINT_FIELDS, image.grid_points.T, strict=True))
    distorts = "layover_shadow" in settings.layers or settings.convention == "gamma0_terrain"
    margin = 0
    if distorts:
        margin = distortion.reach(terrain.highest_m - terrain.lowest_m, column["incidence"], window)
        terrain = read_dem(dem, window.padded(margin), settings.geoid, settings.dem_gaps)
    grid = window.padded(margin)
    longitude, latitude = nodes(grid, "EPSG:4326")
    middle_m = (column["slant_range_m"].min() + column["slant_range_m"].max()) / 2
    seen = geocoding.sight(
        image.orbit,
        longitude,
        latitude,
        terrain.lowest_m,
        terrain.highest_m,
        bistatic_reference_m=middle_m if settings.bistatic else None,
        delayed=settings.path_delay,
    )

    def project(time_s: np.ndarray, slant_range_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position in the image, from the centre of its first pixel."""
        ground_m = geocoding.ground_range(
            image.ground_to_slant, time_s, slant_range_m, nearest=settings.ground_range == "nearest"
        )
        return time_s / image.line_interval_s, ground_m / image.range_spacing_m

    ends = [geocoding.time_and_range(seen.nodes, seen.middle_m + u * seen.half_m, seen) for u in (-1, 1)]
    positions = np.stack([project(*end) for end in ends], axis=1)
    size = np.array([image.lines, image.samples])[:, None, None]
    lowest, highest = positions.min(axis=1), positions.max(axis=1)
    near = ((highest > -RADAR_MARGIN) & (lowest < size + RADAR_MARGIN)).all(axis=0)
    angles = "incidence_angle" in settings.layers or settings.normalise_deg is not None
    incidence = geocoding.incidence_nodes(image.orbit, longitude, latitude, seen) if angles else None
    radii = distortion.distances(image.orbit, longitude, latitude, seen) if distorts else None
    places = _Places(grid, margin, terrain, seen, project, positions, near, incidence, radii)
    if not places.inner_nodes(near).any():
        raise safe.no_overlap(archive, window)
    if distorts:
        _must_see_slopes(places, settings)
    return places


def _must_see_slopes(places: _Places, settings: Sentinel1) -> None:
    """Say where the DEM ends before the slopes that could throw layover and shadow, or their area, into the window."""
    height_m = geocoding.bilinear(places.terrain.height_m, *places.terrain.nodes)
    if not np.isnan(height_m[places.near]).any():
        return
    reach = (
        f"DEM {places.terrain.name} does not reach {places.margin * places.grid.pixel_m:.0f} m beyond the area, from "
        f"where slopes can throw layover and shadow into it"
    )
    if settings.convention == "gamma0_terrain":
        raise CoverageError(
            f"{reach}, and gamma0_terrain sums the area of these slopes: give a DEM that reaches so far"
        )
    log.warning("%s: the layer layover_shadow lacks what lies outside", reach)


def _flatten(radar: Sequence[np.ndarray], places: _Places, part: Window, threads: int) -> None:
    """Turn beta0 into terrain-flattened gamma0, in place."""
    assert places.radii is not None
    area = flattening.terrain_area(
        places.terrain, places.seen, places.radii, places.step, places.grid.shape, places.project, part,
        places.margin, threads,
    )  # fmt: skip
    for power in radar:
        for lines in strips_of(part.height, LINES):
            power[lines] = flattening.flatten(power[lines], area[lines])


def _geocoded(
    radar: Sequence[np.ndarray], part: Window, places: _Places, settings: Sentinel1, threads: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Strips of the covered grid: first row, float32 (band, y, x), NaN = no data.

    Raises
    ------
    CoverageError
        The scene has data where the DEM has no height.
    """
    covered_rows, covered_columns = places.covered
    height, width = places.covered_grid.shape

    def strip(place: slice) -> tuple[int, np.ndarray]:
        out = np.full((len(radar) + len(settings.layers), place.stop - place.start, width), np.nan, np.float32)
        rows = slice(covered_rows.start + place.start, covered_rows.start + place.stop)
        for some in strips_of(place.stop - place.start, ROWS_AT_ONCE):
            own = slice(rows.start + some.start, rows.start + some.stop)
            near = places.columns(own)
            for at in strips_of(near.stop - near.start, NODES_AT_ONCE * places.step):
                columns = slice(near.start + at.start, near.start + at.stop)
                inside = slice(columns.start - covered_columns.start, columns.stop - covered_columns.start)
                _geocode(radar, part, places, settings, own, columns, out[:, some, inside])
        if "layover_shadow" in settings.layers:
            _mark_distortion(out[len(radar) + settings.layers.index("layover_shadow")], places, rows)
        return place.start, out

    return in_order(strip, strips_of(height, ROWS), threads)


def _geocode(
    radar: Sequence[np.ndarray],
    part: Window,
    places: _Places,
    settings: Sentinel1,
    rows: slice,
    columns: slice,
    out: np.ndarray,
) -> None:
    """Fill ``out`` (band, row, column) at some pixels of the grid; ``layover_shadow`` is 0 where there is data."""
    terrain, seen = places.terrain, places.seen
    height_m = geocoding.bilinear(terrain.height_m, *places.at(terrain.nodes, rows, columns))
    missing = np.isnan(height_m)
    height_m[missing] = seen.middle_m
    line, sample = places.project(*geocoding.time_and_range(places.at(seen.nodes, rows, columns), height_m, seen))
    line -= part.row_off
    sample -= part.col_off
    for band, power in zip(out, radar, strict=False):
        band[:] = geocoding.bilinear(power, line, sample)
    valid = np.isfinite(out[: len(radar)]).any(axis=0)
    if unknown := int((missing & valid).sum()):
        north, south = (places.grid.top - row * places.grid.pixel_m for row in (rows.start, rows.stop))
        raise CoverageError(
            f"DEM {terrain.name} has no height at {unknown} pixels that the scene sees in the area, between northings "
            f"{south:.0f} and {north:.0f} m in {places.grid.crs}: expected a DEM that covers it without gaps, or "
            f"sentinel1.dem_gaps: sea where they are sea"
        )
    layers: dict[str, Any] = {"layover_shadow": 0}
    if places.incidence is not None:
        angle = geocoding.incidence_at(places.at(places.incidence, rows, columns), height_m, seen)
        layers["incidence_angle"] = angle
        if settings.normalise_deg is not None:
            exponent = COSINES[settings.convention]
            for band in out[: len(radar)]:
                band[:] = radiometry.normalise(band, angle, settings.normalise_deg, exponent)
    for band, name in zip(out[len(radar) :], settings.layers, strict=True):
        band[:] = np.where(valid, layers[name], np.nan)


def _mark_distortion(layer: np.ndarray, places: _Places, rows: slice) -> None:
    """Layover and shadow into a strip of the covered grid, where there is data."""
    assert places.radii is not None
    columns = places.covered[1]
    found = distortion.layover_shadow(
        places.terrain, places.seen, places.radii, places.step, range(rows.start, rows.stop),
        range(columns.start, columns.stop), places.margin,
    )  # fmt: skip
    np.copyto(layer, found, where=np.isfinite(layer))
