"""Sentinel-1 IW GRDH scenes of the made-up land, written as SAFE folders with true names and structure.

A scene is a cut-out of about 27 km of what a real product holds, and its three sub-swaths are squeezed into it, so that
the borders between them lie inside the land.
"""

from __future__ import annotations

import binascii
import shutil
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from scipy import ndimage

from covermap.simulator import sentinel1_xml
from covermap.simulator.backscatter import backscatter, slope_factor
from covermap.simulator.landscape import Landscape
from covermap.simulator.orbit import INCIDENCE_DEG, Array, Floats, Orbit, earth_fixed, geographic, zero_doppler
from covermap.simulator.projection import bilinear, project
from covermap.simulator.radar_noise import Noise, speckle, sub_swaths, thermal_noise
from covermap.simulator.sentinel1_manifest import manifest
from covermap.simulator.viewing import (
    AZIMUTH_INTERVAL_S,
    AZIMUTH_SPACING_M,
    FIRST_DAY,
    FIRST_ORBIT,
    ORBITS_PER_REPEAT,
    RANGE_SPACING_M,
    REPEAT_DAYS,
    Acquisition,
    acquire,
    angles,
    incidence_deg,
    locate,
)

POLARISATIONS = ("VV", "VH")
LIGHT_M_S = 299_792_458.0
BETA_LUT = 474.0  # digital number of a beta nought of 1


def simulate_sentinel1_scene(landscape: Landscape, products: Path, day: date, seed: int) -> dict[str, Any]:
    """Write the IW GRDH product of one day, VV and VH, into ``products`` and return its STAC item.

    The folder appears under its true name only when it is whole. Same land, day and seed: same bytes.

    Parameters
    ----------
    landscape
        The land; slopes must stay below the incidence angle of 39 degrees (no layover).
    products
        Existing folder for ``<NAME>.SAFE``.
    day
        One of SCENE_DAYS, or any other multiple of twelve days from the first of them.
    seed
        Seed of the world; speckle and weather of the day are derived from it.

    Raises
    ------
    ValueError
        If the satellite does not pass on that day.
    """
    if (day - FIRST_DAY).days % REPEAT_DAYS:
        raise ValueError(
            f"S1A passes every {REPEAT_DAYS} days from {FIRST_DAY} on, not on {day}; take one of SCENE_DAYS"
        )
    pass_ = acquire(landscape, day, seed)
    grd = describe(pass_, landscape)
    angle = np.radians(incidence_deg(pass_, landscape))
    sigma_lut = BETA_LUT / np.sqrt(np.sin(angle))
    power = backscatter(landscape, day, seed) * slope_factor(pass_, landscape)
    image, seen = project(pass_, landscape, power)
    image *= (sigma_lut**2 * np.cos(angle) / np.cos(np.radians(INCIDENCE_DEG))).astype(np.float32)

    safe = products / f".S1A_{day:%Y%m%d}.part"
    shutil.rmtree(safe, ignore_errors=True)
    for folder in ("annotation/calibration", "measurement"):
        (safe / folder).mkdir(parents=True)
    for number, polarisation in enumerate(POLARISATIONS):
        rng = np.random.default_rng([seed, 23, day.toordinal(), number])
        noise = thermal_noise(pass_, polarisation, sigma_lut)
        clean = ndimage.gaussian_filter(image.real if polarisation == "VV" else image.imag, 0.8, truncate=3)
        digital = detect(clean + noise.image(grd.swaths), seen, rng)
        _write_polarisation(safe, grd, polarisation, f"{number + 1:03d}", digital, noise, angle)
    return _finish(safe, products, grd)


def detect(power: Floats, seen: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.uint16]:
    """Digital numbers (line, sample): root of speckled power, at least 1 where there is land, 0 elsewhere."""
    amplitude = np.sqrt(power * speckle(power.shape, rng))
    return np.where(seen, np.clip(np.rint(amplitude), 1, 65_535), 0).astype(np.uint16)


def describe(pass_: Acquisition, landscape: Landscape) -> sentinel1_xml.Grd:
    """What the annotation of a pass says, beside the calibration and the noise."""
    turns = (pass_.epoch.date() - FIRST_DAY).days // REPEAT_DAYS
    orbit_number = FIRST_ORBIT + ORBITS_PER_REPEAT * turns
    first = pass_.at(pass_.first_line_s)
    start = first.replace(microsecond=0) - timedelta(seconds=65)
    times = [start + timedelta(seconds=10 * k) for k in range(16)]
    position, velocity = pass_.orbit.state(np.array([(time - pass_.epoch).total_seconds() for time in times]))
    node_s = -(pass_.orbit.argument_rad % (2 * np.pi)) / pass_.orbit.motion_rad_s
    return sentinel1_xml.Grd(
        first_line=first,
        last_line=pass_.at(pass_.first_line_s + (pass_.lines - 1) * AZIMUTH_INTERVAL_S),
        lines=pass_.lines,
        samples=pass_.samples,
        azimuth_interval_s=AZIMUTH_INTERVAL_S,
        range_spacing_m=RANGE_SPACING_M,
        azimuth_spacing_m=AZIMUTH_SPACING_M,
        absolute_orbit=orbit_number,
        relative_orbit=(orbit_number - 73) % ORBITS_PER_REPEAT + 1,
        cycle=238 + turns,
        data_take=302_937 + round(1353.3 * turns),
        ascending_node=pass_.at(node_s),
        heading_deg=_heading_deg(pass_.orbit),
        incidence_mid_swath_deg=float(incidence_deg(pass_, landscape)[pass_.samples // 2]),
        slant_range_time_s=2 * pass_.near_range_m / LIGHT_M_S,
        orbit_times=times,
        positions_m=np.round(position, 3),
        velocities_m_s=np.round(velocity, 6),
        record_times=[pass_.at(time) for time in pass_.record_s],
        near_range_m=pass_.near_range_m,
        srgr=pass_.srgr,
        grsr=pass_.grsr,
        terrain_height_m=pass_.terrain_height_m,
        grid=_grid(pass_, landscape),
        swaths=sub_swaths(pass_.samples),
    )


def _heading_deg(orbit: Orbit) -> float:
    """Direction of flight over the ground, clockwise from north, at time 0."""
    position, velocity = orbit.state(np.array(0.0))
    up = position / np.linalg.norm(position)
    east = np.cross([0, 0, 1], up)
    east /= np.linalg.norm(east)
    return float(np.degrees(np.arctan2(velocity @ east, velocity @ np.cross(up, east))))


def _grid(pass_: Acquisition, landscape: Landscape) -> sentinel1_xml.GridPoints:
    """Geolocation grid of 10 x 21 points on the terrain (its edge value outside the land)."""
    lines = np.linspace(0, pass_.lines - 1, 10).round().astype(int)
    pixels = np.linspace(0, pass_.samples - 1, 21).round().astype(int)
    line, pixel = (a.ravel() for a in np.meshgrid(lines, pixels, indexing="ij"))
    height = np.full(line.size, float(landscape.height_m.mean()))
    for _ in range(25):
        x, y = locate(pass_, landscape, line.astype(float), pixel.astype(float), height)
        row = (landscape.top - y) / landscape.pixel_m - 0.5
        column = (x - landscape.left) / landscape.pixel_m - 0.5
        height = bilinear(landscape.height_m.astype(float), row, column)
    point = (x, y, height)
    longitude, latitude = geographic(landscape.crs, x, y)
    time_s, slant_m = zero_doppler(pass_.orbit, earth_fixed(landscape.crs, point)[0])
    incidence, elevation = angles(pass_, point)
    return sentinel1_xml.GridPoints(
        azimuth_time=[pass_.at(time) for time in time_s],
        slant_range_time_s=2 * slant_m / LIGHT_M_S,
        line=line,
        pixel=pixel,
        latitude=latitude,
        longitude=longitude,
        height_m=height,
        incidence_deg=incidence,
        elevation_deg=elevation,
    )


def _write_polarisation(
    safe: Path,
    grd: sentinel1_xml.Grd,
    polarisation: str,
    number: str,
    digital: NDArray[np.uint16],
    noise: Noise,
    angle_rad: Array,
) -> None:
    """Measurement, annotation, calibration and noise of one polarisation."""
    times = f"{grd.first_line:%Y%m%dt%H%M%S}-{grd.last_line:%Y%m%dt%H%M%S}"
    orbit = f"{grd.absolute_orbit:06d}-{grd.data_take:06x}"
    stem = f"s1a-iw-grd-{polarisation.lower()}-{times}-{orbit}-{number}"
    _write_measurement(safe / f"measurement/{stem}.tiff", grd, digital)
    land = digital[digital > 0]
    (safe / f"annotation/{stem}.xml").write_bytes(
        sentinel1_xml.annotation(grd, polarisation, number, float(land.mean()), float(land.std()))
    )
    second = round(1 / grd.azimuth_interval_s)  # lines from vector to vector
    pixels = np.unique(np.append(np.arange(0, grd.samples, 40), grd.samples - 1))
    sine, cosine = np.sin(angle_rad[pixels]), np.cos(angle_rad[pixels])
    constant = np.full(pixels.size, BETA_LUT)
    luts = {"sigmaNought": BETA_LUT / np.sqrt(sine), "betaNought": constant}
    luts |= {"gamma": BETA_LUT * np.sqrt(cosine / sine), "dn": constant}
    (safe / f"annotation/calibration/calibration-{stem}.xml").write_bytes(
        # As in real products, the last vector lies beyond the last line.
        sentinel1_xml.calibration(grd, polarisation, number, np.arange(0, grd.lines + second, second), pixels, luts)
    )
    parts = (np.append(np.arange(s.first_sample, s.last_sample, 40), s.last_sample) for s in grd.swaths)
    noise_pixels = np.concatenate(list(parts))
    noise_lines = np.unique(np.append(np.arange(0, grd.lines, second), grd.lines - 1))
    azimuth_lines = np.unique(np.append(np.arange(0, grd.lines, 10), grd.lines - 1))
    (safe / f"annotation/calibration/noise-{stem}.xml").write_bytes(
        sentinel1_xml.noise(
            grd,
            polarisation,
            number,
            noise_lines,
            noise_pixels,
            np.outer(noise.drift[noise_lines], noise.range_power[noise_pixels]),
            azimuth_lines,
            noise.azimuth_factor[:, azimuth_lines],
        )
    )


def _write_measurement(path: Path, grd: sentinel1_xml.Grd, digital: NDArray[np.uint16]) -> None:
    """GeoTIFF in radar geometry whose ground control points are those of the geolocation grid."""
    grid = grd.grid
    points = zip(grid.line, grid.pixel, grid.longitude, grid.latitude, grid.height_m, strict=True)
    gcps = [GroundControlPoint(float(line), float(pixel), x, y, z) for line, pixel, x, y, z in points]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=grd.samples,
        height=grd.lines,
        count=1,
        dtype="uint16",
        gcps=gcps,
        crs="EPSG:4326",
    ) as dataset:
        dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION="Sentinel-1A IW GRD HR L1")
        dataset.write(digital, 1)


def _finish(safe: Path, products: Path, grd: sentinel1_xml.Grd) -> dict[str, Any]:
    """Write the manifest, give the folder its true name and describe it as a STAC item."""
    grid = grd.grid
    corners = [0, 20, len(grid.line) - 1, len(grid.line) - 21]
    ring = [(float(grid.longitude[k]), float(grid.latitude[k])) for k in corners]
    content = manifest(grd, ring, safe)
    (safe / "manifest.safe").write_bytes(content)
    times = f"{grd.first_line:%Y%m%dT%H%M%S}_{grd.last_line:%Y%m%dT%H%M%S}"
    check = binascii.crc_hqx(content, 0xFFFF)  # the manifest holds the checksums of all other files
    name = f"S1A_IW_GRDH_1SDV_{times}_{grd.absolute_orbit:06d}_{grd.data_take:06X}_{check:04X}"
    final = products / f"{name}.SAFE"
    shutil.rmtree(final, ignore_errors=True)
    safe.rename(final)
    return _stac_item(name, grd, ring)


def _stac_item(name: str, grd: sentinel1_xml.Grd, ring: list[tuple[float, float]]) -> dict[str, Any]:
    """STAC 1.0.0 item; the footprint is that of the image, wider than the land in it."""
    longitudes, latitudes = zip(*ring, strict=True)
    # The grid runs from north to south and from east to west: reversed it turns counter-clockwise.
    outline = [[round(x, 6), round(y, 6)] for x, y in (*ring, ring[0])]
    start, stop = (f"{sentinel1_xml.utc(time)}Z" for time in (grd.first_line, grd.last_line))
    extensions = "https://stac-extensions.github.io"
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [f"{extensions}/sar/v1.0.0/schema.json", f"{extensions}/sat/v1.0.0/schema.json"],
        "id": name,
        "collection": "sentinel-1-grd",
        "geometry": {"type": "Polygon", "coordinates": [outline]},
        "bbox": [round(f, 6) for f in (min(longitudes), min(latitudes), max(longitudes), max(latitudes))],
        "properties": {
            "datetime": start,
            "start_datetime": start,
            "end_datetime": stop,
            "platform": "sentinel-1a",
            "constellation": "sentinel-1",
            "instruments": ["c-sar"],
            "sar:instrument_mode": "IW",
            "sar:frequency_band": "C",
            "sar:product_type": "GRD",
            "sar:polarizations": list(POLARISATIONS),
            "sat:orbit_state": "descending",
            "sat:relative_orbit": grd.relative_orbit,
            "sat:absolute_orbit": grd.absolute_orbit,
        },
        "links": [],
        "assets": {
            "product": {
                "href": f"products/{name}.SAFE",
                "type": "application/vnd.esa.safe",
                "title": "Sentinel-1 IW GRDH product",
                "roles": ["data"],
            }
        },
    }
