"""Sentinel-2 L2A products of the made-up land: reflectance by class and season, clouds, and a fallible scene class.

The SAFE folders have the names, metadata and image files of real ones (PSD-14), with these cuts: a real granule has
10,980 x 10,980 pixels of 10 m, these end about 1 km beyond the world; there are no AOT, WVP, TCI and QI_DATA files
and no DATASTRIP folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import transform
from scipy import fft, ndimage, special

from covermap.simulator.landscape import (
    BARE,
    CROP,
    FOREST,
    GRASSLAND,
    PASTURE,
    PLANTATION,
    SAVANNA,
    URBAN,
    WATER,
    WETLAND,
    Floats,
    Landscape,
    fractal,
)

TILE = "T21LYF"
RELATIVE_ORBIT = 24
LONGITUDE, LATITUDE = -54.33, -13.5  # middle of the world [deg], for the sun
BEYOND_M = 1000  # how far the granule reaches beyond the world
COARSEST_M = 60  # granule corners lie on multiples of it, from the equator's false northing and from easting 0
FALSE_NORTHING_M = 10_000_000

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
BANDS_10M = ("B02", "B03", "B04", "B08")

# Reflectance x 10,000 in the order of BANDS: ground cover when dry and when green, and the trees that stand on it.
DRY = {
    FOREST: (250, 460, 330, 870, 2100, 2550, 2600, 2800, 2050, 1000),
    SAVANNA: (310, 560, 480, 1090, 2050, 2400, 2450, 2650, 2600, 1450),
    PLANTATION: (210, 440, 255, 800, 2700, 3250, 3300, 3500, 1350, 550),
    WETLAND: (290, 560, 420, 1000, 2000, 2350, 2400, 2550, 1850, 950),
    GRASSLAND: (355, 620, 620, 1220, 1950, 2200, 2250, 2450, 2850, 1750),
    PASTURE: (340, 660, 510, 1220, 2500, 2900, 2950, 3150, 2550, 1350),
    CROP: (380, 620, 850, 1200, 1600, 1850, 1950, 2100, 2750, 2150),
    URBAN: (830, 1020, 1180, 1430, 1800, 1950, 2080, 2150, 2500, 2150),
    BARE: (600, 880, 1230, 1570, 1880, 2050, 2200, 2350, 3350, 2900),
    WATER: (430, 520, 380, 340, 260, 230, 210, 190, 120, 80),
}
GREEN = {
    FOREST: (260, 480, 320, 850, 2300, 2750, 2850, 3050, 1850, 850),
    SAVANNA: (300, 590, 410, 1020, 2450, 2900, 2980, 3180, 2100, 1080),
    PLANTATION: (205, 430, 235, 780, 2850, 3450, 3500, 3700, 1300, 520),
    WETLAND: (260, 540, 320, 900, 2550, 3050, 3100, 3250, 1500, 640),
    GRASSLAND: (340, 650, 500, 1150, 2300, 2650, 2750, 2950, 2450, 1350),
    PASTURE: (300, 670, 360, 1080, 3000, 3650, 3700, 3900, 2050, 950),
    CROP: (255, 620, 290, 980, 3500, 4450, 4550, 4750, 1900, 820),
    URBAN: (820, 1020, 1150, 1420, 1850, 2030, 2150, 2230, 2450, 2080),
    BARE: (580, 870, 1220, 1580, 1900, 2100, 2250, 2400, 3250, 2800),
    WATER: (480, 620, 500, 450, 320, 280, 260, 230, 140, 90),
}
TREES_DRY = (240, 440, 310, 810, 2100, 2500, 2550, 2750, 1900, 930)
TREES_GREEN = (215, 420, 245, 710, 2350, 2900, 2980, 3200, 1500, 640)
TREE_COVER = {
    FOREST: 0.92, SAVANNA: 0.42, PLANTATION: 0.0, WETLAND: 0.10, GRASSLAND: 0.06,
    PASTURE: 0.04, CROP: 0.0, URBAN: 0.16, BARE: 0.04, WATER: 0.0,
}  # fmt: skip

# Greenness [0..1] in the middle of the months January to December; fields follow one of two calendars.
RAINS = (0.95, 1.0, 1.0, 0.9, 0.75, 0.55, 0.4, 0.25, 0.2, 0.35, 0.6, 0.85)
FLOODS = (0.9, 0.9, 0.95, 1.0, 0.95, 0.85, 0.7, 0.5, 0.4, 0.45, 0.6, 0.8)
SOY_AND_MAIZE = (0.95, 0.35, 0.6, 0.9, 0.7, 0.25, 0.05, 0.0, 0.0, 0.1, 0.4, 0.85)
COTTON = (0.45, 0.8, 0.95, 0.9, 0.6, 0.35, 0.15, 0.0, 0.0, 0.0, 0.05, 0.2)

# Spread between parcels of one class: greenness [1], brightness [log], and texture within a parcel [log].
SPREAD_GREEN = {
    FOREST: 0.12, SAVANNA: 0.14, PLANTATION: 0.12, WETLAND: 0.15, GRASSLAND: 0.15,
    PASTURE: 0.16, CROP: 0.14, URBAN: 0.10, BARE: 0.10, WATER: 0.30,
}  # fmt: skip
SPREAD_BRIGHT = {
    FOREST: 0.06, SAVANNA: 0.07, PLANTATION: 0.07, WETLAND: 0.09, GRASSLAND: 0.08,
    PASTURE: 0.08, CROP: 0.11, URBAN: 0.18, BARE: 0.18, WATER: 0.22,
}  # fmt: skip
TEXTURE = {
    FOREST: 0.10, SAVANNA: 0.08, PLANTATION: 0.05, WETLAND: 0.08, GRASSLAND: 0.06,
    PASTURE: 0.06, CROP: 0.04, URBAN: 0.22, BARE: 0.09, WATER: 0.05,
}  # fmt: skip
# Patterns over BANDS in which parcels vary besides brightness: pigment (visible), canopy (NIR) and moisture (SWIR).
PATTERNS = np.array(
    [
        [0.8, 0.6, 1.2, 0.7, 0, -0.1, -0.1, -0.1, 0.2, 0.4],
        [0, 0.1, -0.2, 0.1, 0.8, 1, 1, 1, 0.2, 0],
        [0.2, 0.2, 0.4, 0.3, 0.1, 0, 0, 0, 0.9, 1.3],
    ],
    np.float32,
)
SPREAD_PATTERN = 0.06  # deviation of the weight of each pattern [log]

CLOUDY = 0.35  # opacity from which a pixel counts as cloud


@dataclass(frozen=True)
class Acquisition:
    """One overpass: ``cloud`` is the cloudy share [1] and ``absolute_orbit`` the satellite's own count."""

    start: datetime
    satellite: str
    absolute_orbit: int
    baseline: str
    cloud: float


# Days on which relative orbit 24 was flown; baseline 04.00 brought the offset of -1000 on 25 January 2022.
ACQUISITIONS = (
    Acquisition(datetime(2021, 8, 11, 13, 51, 21), "S2A", 32053, "03.01", 0.05),
    Acquisition(datetime(2021, 10, 5, 13, 51, 19), "S2B", 23931, "03.01", 0.18),
    Acquisition(datetime(2021, 12, 14, 13, 51, 19), "S2B", 24932, "03.01", 0.45),
    Acquisition(datetime(2022, 2, 17, 13, 51, 21), "S2A", 34770, "04.00", 0.40),
    Acquisition(datetime(2022, 4, 23, 13, 51, 19), "S2B", 26791, "04.00", 0.14),
    Acquisition(datetime(2022, 7, 2, 13, 51, 19), "S2B", 27792, "04.00", 0.07),
)


def simulate_sentinel2(landscape: Landscape, products: Path, acquisition: Acquisition, seed: int) -> dict[str, Any]:
    """Write one product below ``products`` and return its STAC item (href ``products/<NAME>.SAFE``).

    The folder appears whole or not at all; what an earlier run left is replaced.
    """
    name = product_name(acquisition)
    part = products / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    granule = _Granule.of(landscape, acquisition)
    images = part / granule.folder / "IMG_DATA"
    for resolution in (10, 20, 60):
        (images / f"R{resolution}m").mkdir(parents=True)

    rng = np.random.default_rng([seed, 4, acquisition.start.toordinal()])
    weather = _weather(rng, granule.shape, acquisition)
    seen: dict[str, Floats] = {}  # reflectance at 20 m, for the scene class
    for band, ground in zip(BANDS, ground_reflectance(landscape, granule.window, acquisition, seed), strict=True):
        reflectance = _through_weather(ground, band, weather)
        if band == "B02":  # the coastal band sees what blue sees, a little darker over land and brighter in haze
            granule.write(images, "B01", 60, _noisy(rng, _binned(0.88 * reflectance + 0.004, 6)), acquisition)
        if band not in BANDS_10M or band in ("B03", "B04", "B08"):
            seen[band] = _binned(reflectance, 2)
        if band in BANDS_10M:
            granule.write(images, band, 10, _noisy(rng, reflectance), acquisition)
        else:
            granule.write(images, band, 20, _noisy(rng, seen[band]), acquisition)
    classes = _window(landscape.classes, granule.window)[::2, ::2]
    parcels = _window(landscape.parcels, granule.window)[::2, ::2]
    scene_class = _scene_class(rng, seen, weather, classes, parcels)
    granule.write(images, "SCL", 20, scene_class, None)

    shares = np.bincount(scene_class.ravel(), minlength=12) / scene_class.size * 100
    (part / "MTD_MSIL2A.xml").write_text(_product_xml(granule, acquisition, part), "utf-8")
    (part / granule.folder / "MTD_TL.xml").write_text(_tile_xml(granule, acquisition, shares), "utf-8")
    (part / "manifest.safe").write_text(_manifest(granule, acquisition, part), "utf-8")
    whole = products / f"{name}.SAFE"
    shutil.rmtree(whole, ignore_errors=True)
    os.replace(part, whole)
    return _item(granule, acquisition, float(shares[8:11].sum()))


def product_name(acquisition: Acquisition) -> str:
    """Name of the product without ``.SAFE`` (Sentinel-2 Products Specification Document, naming convention)."""
    made = _made(acquisition)
    return (
        f"{acquisition.satellite}_MSIL2A_{acquisition.start:%Y%m%dT%H%M%S}_N{acquisition.baseline.replace('.', '')}"
        f"_R{RELATIVE_ORBIT:03d}_{TILE}_{made:%Y%m%dT%H%M%S}"
    )


def digital_numbers(reflectance: Floats, baseline: str) -> NDArray[np.uint16]:
    """DN = reflectance * 10,000, plus 1,000 from processing baseline 04.00 on; 0 is left for 'no data'."""
    offset = 1000 if baseline >= "04.00" else 0
    return np.clip(np.rint(reflectance * 10_000) + offset, 1, 65_534).astype(np.uint16)


def sun_angles(moment: datetime) -> tuple[float, float]:
    """Zenith angle and azimuth (from north, clockwise) of the sun [deg] over the middle of the world, to about 0.5 deg.

    Declination and equation of time as in Spencer (1971), Fourier series representation of the position of the sun.
    """
    year = 2 * np.pi * (moment.timetuple().tm_yday - 1) / 365
    c, s = (np.array([f(k * year) for k in (1, 2, 3)]) for f in (np.cos, np.sin))
    declination = 0.006918 + np.dot([-0.399912, -0.006758, -0.002697], c) + np.dot([0.070257, 0.000907, 0.00148], s)
    late_min = 229.18 * (0.000075 + np.dot([0.001868, -0.014615], c[:2]) - np.dot([0.032077, 0.04089], s[:2]))
    hours = moment.hour + moment.minute / 60 + moment.second / 3600 + LONGITUDE / 15 + late_min / 60
    hour_angle, latitude = np.radians(15 * (hours - 12)), np.radians(LATITUDE)
    up = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour_angle)
    east = -np.cos(declination) * np.sin(hour_angle)
    north = np.cos(latitude) * np.sin(declination) - np.sin(latitude) * np.cos(declination) * np.cos(hour_angle)
    return float(np.degrees(np.arccos(up))), float(np.degrees(np.arctan2(east, north)) % 360)


# ------------------------------------------------------------------------------------------------ what the land shows


def ground_reflectance(
    landscape: Landscape, window: tuple[slice, slice], acquisition: Acquisition, seed: int
) -> Iterator[Floats]:
    """Cloud-free surface reflectance (y, x) at 10 m in ``window`` of the landscape, one band of BANDS after another.

    Mixed at borders by the point spread and displaced by the misregistration of the date (0.3 to 1 pixel).
    """
    always = np.random.default_rng([seed, 3])  # the same for all dates: parcels keep their character
    today = np.random.default_rng([seed, 5, acquisition.start.toordinal()])
    ground, trees, cover, texture = _parcel_tables(always, today, landscape, acquisition)
    shape = landscape.classes.shape
    clumps = fractal(always, shape, 12, 2.4, 3)
    stocking = 0.25 * fractal(always, shape, 130, 2.6, 8)
    drift = fractal(always, shape, 80, 2.6, 5)
    grain = fractal(always, shape, 3, 2.0, 1.5)
    rows = _rows(always, landscape)
    light = _illumination(landscape, acquisition)
    kernels = _point_spread(today)

    inside = _window(landscape.parcels, window, 4)
    wood = clumps + stocking
    wood = np.clip(0.5 + 1.3 * (_window(wood, window, 4) - cover[inside]), 0, 1)
    grain = _window(grain, window, 4) * texture[inside]
    drift, rows, light = (_window(field, window, 4) for field in (drift, rows, light))
    for k in range(len(BANDS)):
        reflectance = ground[k][inside]
        reflectance += wood * (trees[k][inside] - reflectance)
        depth = np.float32(0.9 if k in (0, 1, 2, 8, 9) else 1.1)
        reflectance *= 1 + depth * grain + np.float32(0.035 * (1 - 1.6 * (3 < k < 8))) * drift + rows
        reflectance *= light
        for axis, kernel in enumerate(kernels):
            reflectance = ndimage.convolve1d(reflectance, kernel, axis=axis, mode="nearest")
        yield np.maximum(reflectance[4:-4, 4:-4], np.float32(1e-4))


def _parcel_tables(
    always: np.random.Generator, today: np.random.Generator, landscape: Landscape, acquisition: Acquisition
) -> tuple[Floats, Floats, Floats, Floats]:
    """By parcel: reflectance of ground and of trees (band, parcel), clump noise from which trees stand, grain."""
    count = int(landscape.parcels.max()) + 1
    code = np.zeros(count, np.intp)
    code[landscape.parcels.ravel()] = landscape.classes.ravel()

    def by_class(table: Mapping[int, Any]) -> Floats:
        values = np.zeros((256, np.size(table[FOREST])), np.float32)
        values[list(table)] = np.reshape(list(table.values()), (len(table), -1))
        return np.squeeze(values[code].T)

    days = acquisition.start.timetuple().tm_yday + 14 * always.standard_normal(count)
    calendar = np.where(code == CROP, 2 + (always.uniform(size=count) < 0.3), (code == WETLAND).astype(int))
    calendars = (RAINS, FLOODS, SOY_AND_MAIZE, COTTON)
    middles = 365 / 12 * (np.arange(12) + 0.5)
    season = np.choose(calendar, [np.interp(days, middles, months, period=365) for months in calendars])
    own, passing = always.standard_normal(count), today.standard_normal(count)
    green = np.clip(season + by_class(SPREAD_GREEN) * (0.85 * own + 0.5 * passing), 0, 1).astype(np.float32)
    ground: Floats = (by_class(DRY) * (1 - green) + by_class(GREEN) * green) / 10_000

    evergreen = np.where(code == FOREST, 0.7, 0.35)  # gallery and rain forest keep their leaves, savanna trees do not
    leafy = np.clip(evergreen + (1 - evergreen) * season + 0.12 * own, 0, 1).astype(np.float32)
    trees: Floats = np.outer(TREES_DRY, 1 - leafy) + np.outer(TREES_GREEN, leafy)
    bright = by_class(SPREAD_BRIGHT) * (0.9 * always.standard_normal(count) + 0.45 * today.standard_normal(count))
    weights = 0.85 * always.standard_normal((count, 3)) + 0.5 * today.standard_normal((count, 3))
    shift = np.exp(bright + SPREAD_PATTERN * (PATTERNS.T @ weights.T)).astype(np.float32)

    share = np.clip(by_class(TREE_COVER) + 0.10 * always.standard_normal(count) * (by_class(TREE_COVER) > 0), 0, 0.99)
    start = -special.ndtri(np.maximum(share, 1e-6)) * np.hypot(1, 0.25)  # 1e-6 puts it beyond all clumps
    ground, trees = ground * shift, (trees / 10_000 * shift).astype(np.float32)
    return ground, trees, start.astype(np.float32), by_class(TEXTURE)


def _rows(always: np.random.Generator, landscape: Landscape) -> Floats:
    """Relative brightness (y, x) of the rows of crops and plantations, in the direction of each field."""
    count = int(landscape.parcels.max()) + 1
    direction = always.uniform(-np.pi, np.pi, count)
    wave = 2 * np.pi / always.uniform(3.0, 5.0, count)
    y, x = (np.arange(size, dtype=np.float32) for size in landscape.parcels.shape)
    step_y = (wave * np.sin(direction)).astype(np.float32)[landscape.parcels]
    step_x = (wave * np.cos(direction)).astype(np.float32)[landscape.parcels]
    depth = np.zeros(256, np.float32)
    depth[[CROP, PLANTATION]] = 0.05, 0.07
    return depth[landscape.classes] * np.sin(step_y * y[:, None] + step_x * x)


def _illumination(landscape: Landscape, acquisition: Acquisition) -> Floats:
    """Sunlight on the slope relative to flat ground (y, x), half of which is left by the L2A processing."""
    zenith, azimuth = np.radians(sun_angles(_sensed(acquisition)))
    down_y, right_x = np.gradient(landscape.height_m, np.float32(landscape.pixel_m))
    east, north = np.sin(azimuth) * np.sin(zenith), np.cos(azimuth) * np.sin(zenith)
    cosine = (np.cos(zenith) - east * right_x + north * down_y) / np.sqrt(1 + right_x**2 + down_y**2)
    return (0.5 + 0.5 * cosine / np.cos(zenith)).astype(np.float32)


def _point_spread(today: np.random.Generator, sigma_px: float = 0.6) -> list[Floats]:
    """Kernels along y and x that blur by ``sigma_px`` and displace by the misregistration of the date."""
    length, direction = today.uniform(0.3, 1.0), today.uniform(0, 2 * np.pi)
    at = np.arange(-4, 5)
    kernels = []
    for shift in (length * np.sin(direction), length * np.cos(direction)):
        kernel = np.exp(-0.5 * ((at - shift) / sigma_px) ** 2)
        kernels.append((kernel / kernel.sum()).astype(np.float32))
    return kernels


# ------------------------------------------------------------------------------------------- clouds and scene class


@dataclass(frozen=True)
class _Weather:
    """Opacity of clouds and of cirrus and depth of cloud shadow, each 0..1, float32 (y, x) at 10 m."""

    cloud: Floats
    cirrus: Floats
    shadow: Floats


def _weather(rng: np.random.Generator, shape: tuple[int, int], acquisition: Acquisition) -> _Weather:
    """Ragged clouds with a rim of haze, their shadows away from the sun, and thin veils on half of the dates."""
    zenith, azimuth = np.radians(sun_angles(_sensed(acquisition)))
    pad = 260
    size = fft.next_fast_len(shape[0] + 2 * pad, real=True)
    field = fractal(rng, (size, size), 260, 3.3, 12) + 0.10 * fractal(rng, (size, size), 40, 2.6, 7)
    here = slice(pad, pad + shape[0]), slice(pad, pad + shape[1])
    start = np.quantile(field[here][::5, ::5], 1 - acquisition.cloud)
    cloud = 1 - np.exp(np.minimum(0.30 - 0.73 * np.exp(3.0 * (field - start)), 0))  # CLOUDY at start
    reach = rng.uniform(900, 1900) * np.tan(zenith) / 10  # height of the clouds [m] to pixels of 10 m
    down, right = round(reach * np.cos(azimuth)), round(-reach * np.sin(azimuth))
    shadow = cloud[pad - down : pad - down + shape[0], pad - right : pad - right + shape[1]]
    cloud = cloud[here]
    cirrus = np.zeros(shape, np.float32)
    if rng.uniform() < 0.5:
        veil = fractal(rng, shape, 600, 3.4, 30)
        cirrus = np.clip(0.12 * (veil - 1.2), 0, 0.25).astype(np.float32)
    return _Weather(cloud.astype(np.float32), cirrus, (np.clip(1.3 * shadow, 0, 1) * (1 - cloud)).astype(np.float32))


def _through_weather(ground: Floats, band: str, weather: _Weather) -> Floats:
    """Reflectance as the product gives it: shaded, veiled and covered by cloud."""
    visible, infrared = band in ("B02", "B03", "B04"), band in ("B11", "B12")
    dark = 0.50 if visible else 0.62  # blue sky still lights a shadow
    top = 0.30 if infrared else 0.62
    seen = ground * (1 - np.float32(dark) * weather.shadow)
    seen += weather.cirrus * (np.float32(0.12 if infrared else 0.42) - seen)
    return seen + weather.cloud * (np.float32(top) * (0.72 + np.float32(0.28) * weather.cloud) - seen)


def _scene_class(
    rng: np.random.Generator,
    seen: Mapping[str, Floats],
    weather: _Weather,
    classes: NDArray[np.uint8],
    parcels: NDArray[np.int32],
) -> NDArray[np.uint8]:
    """Scene classification (y, x) at 20 m, uint8, with the kinds of error of the real one (Sen2Cor codes 2 to 11).

    Whole roofs and pits become cloud, whole stretches of water become shadow, haze at cloud rims and clouds under
    about 1 ha are missed, a few patches of cloud become snow.
    """
    cloud, cirrus, shadow = (_binned(field, 2) for field in (weather.cloud, weather.cirrus, weather.shadow))
    red, green, infrared = seen["B04"], seen["B03"], seen["B8A"]
    ndvi = (infrared - red) / (infrared + red)
    result = np.where(ndvi > 0.42, 4, 5).astype(np.uint8)
    result[(ndvi > 0.30) & (ndvi < 0.34) & (seen["B11"] > 0.24)] = 7
    result[(infrared < 0.13) & (seen["B11"] < 0.13)] = 2
    water = (green > infrared) & (infrared < 0.12)
    result[water] = 6
    fickle = rng.uniform(size=int(parcels.max()) + 1)[parcels]
    result[(classes == WATER) & (result == 6) & (fickle < 0.25)] = 3
    result[(shadow > 0.35) & (cloud < CLOUDY)] = 3
    bright = (red > 0.125) & (green > 0.10)
    roofs = bright & ((classes == URBAN) & (fickle < 0.35) | (classes == BARE) & (fickle < 0.12))
    result[roofs] = np.where(red[roofs] > 0.15, 9, 8)
    result[(cirrus > 0.03) & (cloud < CLOUDY)] = 10
    cloudy = cloud > CLOUDY
    number, _ = ndimage.label(cloudy)
    cloudy &= (np.bincount(number.ravel()) > 25)[number]
    result[cloudy] = np.where(cloud[cloudy] > 0.7, 9, 8)
    result[cloudy & (cloud > 0.7) & (fractal(rng, cloud.shape, 30, 2.6, 5) > 2.6)] = 11
    return result


# --------------------------------------------------------------------------------------------------- product on disk


@dataclass(frozen=True)
class _Granule:
    """Where the granule lies: corner [m], pixels of 10 m a side, window in the landscape, folder and image prefix."""

    crs: str
    left: int
    top: int
    size: int
    window: tuple[slice, slice]
    folder: str
    prefix: str

    @classmethod
    def of(cls, landscape: Landscape, acquisition: Acquisition) -> _Granule:
        """Granule that reaches at least BEYOND_M past the world, from a corner on the lattice of 60 m."""
        pixel, world = landscape.pixel_m, landscape.classes.shape[0] - 2 * landscape.margin
        inset = landscape.margin * pixel - BEYOND_M
        left = int((landscape.left + inset) // COARSEST_M) * COARSEST_M
        top = FALSE_NORTHING_M - int((FALSE_NORTHING_M - landscape.top + inset) // COARSEST_M) * COARSEST_M
        column, row = round((left - landscape.left) / pixel), round((landscape.top - top) / pixel)
        most = landscape.classes.shape[0] - max(row, column) - 4
        size = min((world + 2 * BEYOND_M / pixel + 12) // 6, most // 6) * 6
        window = slice(row, row + int(size)), slice(column, column + int(size))
        sensed = acquisition.start + timedelta(seconds=4)
        folder = f"GRANULE/L2A_{TILE}_A{acquisition.absolute_orbit:06d}_{sensed:%Y%m%dT%H%M%S}"
        return cls(landscape.crs, left, top, int(size), window, folder, f"{TILE}_{acquisition.start:%Y%m%dT%H%M%S}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    @property
    def footprint(self) -> list[list[float]]:
        """Closed ring of corners, [longitude, latitude]."""
        right, bottom = self.left + 10 * self.size, self.top - 10 * self.size
        x = [self.left, self.left, right, right, self.left]
        y = [self.top, bottom, bottom, self.top, self.top]
        longitude, latitude = transform(self.crs, "EPSG:4326", x, y)
        return [[round(lon, 7), round(lat, 7)] for lon, lat in zip(longitude, latitude, strict=True)]

    def write(
        self, images: Path, band: str, resolution: int, values: NDArray[Any], acquisition: Acquisition | None
    ) -> None:
        """Write reflectance of ``acquisition`` (or codes, where it is None) as lossless JPEG 2000."""
        numbers = values if acquisition is None else digital_numbers(values, acquisition.baseline)
        path = images / f"R{resolution}m" / f"{self.prefix}_{band}_{resolution}m.jp2"
        corner = Affine(resolution, 0, self.left, 0, -resolution, self.top)
        profile = {"driver": "JP2OpenJPEG", "count": 1, "dtype": numbers.dtype.name, "crs": self.crs}
        lossless = {"QUALITY": "100", "REVERSIBLE": "YES", "BLOCKXSIZE": 1024, "BLOCKYSIZE": 1024}
        height, width = numbers.shape
        with rasterio.open(path, "w", width=width, height=height, transform=corner, **profile, **lossless) as raster:
            raster.write(numbers, 1)


def _window(field: NDArray[Any], window: tuple[slice, slice], more: int = 0) -> NDArray[Any]:
    """Part of ``field`` in ``window`` and ``more`` pixels around it."""
    rows, columns = window
    return field[rows.start - more : rows.stop + more, columns.start - more : columns.stop + more]


def _binned(field: Floats, factor: int) -> Floats:
    """Means of squares of ``factor`` pixels."""
    height, width = (size // factor for size in field.shape)
    return field.reshape(height, factor, width, factor).mean((1, 3), dtype=np.float32)


def _noisy(rng: np.random.Generator, reflectance: Floats) -> Floats:
    """Reflectance with the noise of the detectors."""
    return reflectance + (0.0012 + 0.008 * reflectance) * rng.standard_normal(reflectance.shape, np.float32)


def _sensed(acquisition: Acquisition) -> datetime:
    """When the middle of the granule was seen; the datatake starts six minutes earlier, further north."""
    return acquisition.start + timedelta(minutes=6, seconds=18)


def _made(acquisition: Acquisition) -> datetime:
    """When the product was made."""
    return acquisition.start + timedelta(hours=3, minutes=acquisition.start.day, seconds=acquisition.start.month * 3)


def _stamp(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.024Z"


def _footprint_text(granule: _Granule) -> str:
    return " ".join(f"{latitude} {longitude}" for longitude, latitude in granule.footprint)


def _product_xml(granule: _Granule, acquisition: Acquisition, part: Path) -> str:
    """MTD_MSIL2A.xml: what readers take from it, in the structure of the real one."""
    name, made, baseline = product_name(acquisition), _made(acquisition), acquisition.baseline
    images = sorted(path.relative_to(part).with_suffix("").as_posix() for path in part.rglob("*.jp2"))
    listed = "\n".join(f"            <IMAGE_FILE>{image}</IMAGE_FILE>" for image in images)
    offsets = ""
    if baseline >= "04.00":
        rows = "\n".join(f'        <BOA_ADD_OFFSET band_id="{k}">-1000</BOA_ADD_OFFSET>' for k in range(13))
        offsets = f"\n      <BOA_ADD_OFFSET_VALUES_LIST>\n{rows}\n      </BOA_ADD_OFFSET_VALUES_LIST>"
    strip = f"{acquisition.satellite}_OPER_MSI_L2A_DS_VGS1_{made:%Y%m%dT%H%M%S}"
    datastrip = f"{strip}_S{granule.folder[-15:]}_N{baseline}"
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>{_stamp(acquisition.start)}</PRODUCT_START_TIME>
      <PRODUCT_STOP_TIME>{_stamp(acquisition.start)}</PRODUCT_STOP_TIME>
      <PRODUCT_URI>{name}.SAFE</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-2A</PROCESSING_LEVEL>
      <PRODUCT_TYPE>S2MSI2A</PRODUCT_TYPE>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
      <GENERATION_TIME>{_stamp(made)}</GENERATION_TIME>
      <PREVIEW_IMAGE_URL>Not applicable</PREVIEW_IMAGE_URL>
      <PREVIEW_GEO_INFO>Not applicable</PREVIEW_GEO_INFO>
      <Datatake datatakeIdentifier="G{name[:3]}_{name[11:26]}_{acquisition.absolute_orbit:06d}_N{baseline}">
        <SPACECRAFT_NAME>Sentinel-{acquisition.satellite[1:]}</SPACECRAFT_NAME>
        <DATATAKE_TYPE>INS-NOBS</DATATAKE_TYPE>
        <DATATAKE_SENSING_START>{_stamp(acquisition.start)}</DATATAKE_SENSING_START>
        <SENSING_ORBIT_NUMBER>{RELATIVE_ORBIT}</SENSING_ORBIT_NUMBER>
        <SENSING_ORBIT_DIRECTION>DESCENDING</SENSING_ORBIT_DIRECTION>
      </Datatake>
      <Query_Options completeSingleTile="true">
        <PRODUCT_FORMAT>SAFE_COMPACT</PRODUCT_FORMAT>
      </Query_Options>
      <Product_Organisation>
        <Granule_List>
          <Granule datastripIdentifier="{datastrip}" granuleIdentifier="{_tile_id(acquisition)}" imageFormat="JPEG2000">
{listed}
          </Granule>
        </Granule_List>
      </Product_Organisation>
    </Product_Info>
    <Product_Image_Characteristics>
      <Special_Values>
        <SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT>
        <SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX>
      </Special_Values>
      <Special_Values>
        <SPECIAL_VALUE_TEXT>SATURATED</SPECIAL_VALUE_TEXT>
        <SPECIAL_VALUE_INDEX>65535</SPECIAL_VALUE_INDEX>
      </Special_Values>
      <Image_Display_Order>
        <RED_CHANNEL>3</RED_CHANNEL>
        <GREEN_CHANNEL>2</GREEN_CHANNEL>
        <BLUE_CHANNEL>1</BLUE_CHANNEL>
      </Image_Display_Order>
      <QUANTIFICATION_VALUES_LIST>
        <BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>
        <AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE>
        <WVP_QUANTIFICATION_VALUE unit="cm">1000.0</WVP_QUANTIFICATION_VALUE>
      </QUANTIFICATION_VALUES_LIST>{offsets}
    </Product_Image_Characteristics>
  </n1:General_Info>
  <n1:Geometric_Info>
    <Product_Footprint>
      <Product_Footprint>
        <Global_Footprint>
          <EXT_POS_LIST>{_footprint_text(granule)} </EXT_POS_LIST>
        </Global_Footprint>
      </Product_Footprint>
      <RASTER_CS_TYPE>POINT</RASTER_CS_TYPE>
      <PIXEL_ORIGIN>1</PIXEL_ORIGIN>
    </Product_Footprint>
    <Coordinate_Reference_System>
      <GEO_TABLES version="1">EPSG</GEO_TABLES>
      <HORIZONTAL_CS_TYPE>GEOGRAPHIC</HORIZONTAL_CS_TYPE>
    </Coordinate_Reference_System>
  </n1:Geometric_Info>
</n1:Level-2A_User_Product>
"""


def _tile_id(acquisition: Acquisition) -> str:
    made, orbit = _made(acquisition), acquisition.absolute_orbit
    owner = f"{acquisition.satellite}_OPER_MSI_L2A_TL_VGS1"
    return f"{owner}_{made:%Y%m%dT%H%M%S}_A{orbit:06d}_{TILE}_N{acquisition.baseline}"


def _tile_xml(granule: _Granule, acquisition: Acquisition, shares: NDArray[np.float64]) -> str:
    """MTD_TL.xml: geocoding, mean angles and the shares [%] of the scene classes by code."""
    sizes = "\n".join(
        f'      <Size resolution="{m}">\n        <NROWS>{granule.size * 10 // m}</NROWS>\n'
        f"        <NCOLS>{granule.size * 10 // m}</NCOLS>\n      </Size>"
        for m in (10, 20, 60)
    )
    corners = "\n".join(
        f'      <Geoposition resolution="{m}">\n        <ULX>{granule.left}</ULX>\n        <ULY>{granule.top}</ULY>\n'
        f"        <XDIM>{m}</XDIM>\n        <YDIM>-{m}</YDIM>\n      </Geoposition>"
        for m in (10, 20, 60)
    )
    zenith, azimuth = sun_angles(_sensed(acquisition))
    views = "\n".join(
        f'        <Mean_Viewing_Incidence_Angle bandId="{k}">\n          <ZENITH_ANGLE unit="deg">3.1</ZENITH_ANGLE>\n'
        '          <AZIMUTH_ANGLE unit="deg">107.5</AZIMUTH_ANGLE>\n        </Mean_Viewing_Incidence_Angle>'
        for k in range(13)
    )
    names = {
        "NODATA_PIXEL": 0, "SATURATED_DEFECTIVE_PIXEL": 1, "DARK_FEATURES": 2, "CLOUD_SHADOW": 3, "VEGETATION": 4,
        "NOT_VEGETATED": 5, "WATER": 6, "UNCLASSIFIED": 7, "MEDIUM_PROBA_CLOUDS": 8, "HIGH_PROBA_CLOUDS": 9,
        "THIN_CIRRUS": 10, "SNOW_ICE": 11,
    }  # fmt: skip
    quality = "\n".join(
        f"      <{name}_PERCENTAGE>{shares[code]:.6f}</{name}_PERCENTAGE>" for name, code in names.items()
    )
    epsg = granule.crs.split(":")[1]
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-2A_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_Level-2A_Tile_Metadata.xsd">
  <n1:General_Info>
    <TILE_ID metadataLevel="Brief">{_tile_id(acquisition)}</TILE_ID>
    <SENSING_TIME metadataLevel="Standard">{_stamp(_sensed(acquisition))}</SENSING_TIME>
  </n1:General_Info>
  <n1:Geometric_Info>
    <Tile_Geocoding metadataLevel="Brief">
      <HORIZONTAL_CS_NAME>WGS84 / UTM zone {epsg[3:]}{"S" if epsg[2] == "7" else "N"}</HORIZONTAL_CS_NAME>
      <HORIZONTAL_CS_CODE>{granule.crs}</HORIZONTAL_CS_CODE>
{sizes}
{corners}
    </Tile_Geocoding>
    <Tile_Angles metadataLevel="Standard">
      <Mean_Sun_Angle>
        <ZENITH_ANGLE unit="deg">{zenith:.6f}</ZENITH_ANGLE>
        <AZIMUTH_ANGLE unit="deg">{azimuth:.6f}</AZIMUTH_ANGLE>
      </Mean_Sun_Angle>
      <Mean_Viewing_Incidence_Angle_List>
{views}
      </Mean_Viewing_Incidence_Angle_List>
    </Tile_Angles>
  </n1:Geometric_Info>
  <n1:Quality_Indicators_Info metadataLevel="Standard">
    <Image_Content_QI>
      <CLOUDY_PIXEL_PERCENTAGE>{shares[8:11].sum():.6f}</CLOUDY_PIXEL_PERCENTAGE>
      <DEGRADED_MSI_DATA_PERCENTAGE>0.000000</DEGRADED_MSI_DATA_PERCENTAGE>
{quality}
    </Image_Content_QI>
  </n1:Quality_Indicators_Info>
</n1:Level-2A_Tile_ID>
"""


def _manifest(granule: _Granule, acquisition: Acquisition, part: Path) -> str:
    """manifest.safe: the platform, the orbit, the footprint, and every file with its size and MD5 sum."""
    objects = []
    for path in sorted(path for path in part.rglob("*") if path.is_file()):
        kind = "text/xml" if path.suffix == ".xml" else "application/octet-stream"
        content = path.read_bytes()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        name = {"MTD_MSIL2A.xml": "S2_Level-2A_Product_Metadata", "MTD_TL.xml": "S2_Level-2A_Tile1_Metadata"}
        key = name.get(path.name, f"{path.stem.removeprefix(granule.prefix + '_')}_Tile1_Data")
        objects.append(
            f'    <dataObject ID="{key}">\n      <byteStream mimeType="{kind}" size="{len(content)}">\n'
            f'        <fileLocation locatorType="URL" href="./{path.relative_to(part).as_posix()}"/>\n'
            f'        <checksum checksumName="MD5">{digest}</checksum>\n'
            "      </byteStream>\n    </dataObject>"
        )
    listed = "\n".join(objects)

    def section(key: str, text: str, body: str) -> str:
        return (
            f'    <metadataObject ID="{key}" classification="DESCRIPTION" category="DMD">\n'
            f'      <metadataWrap mimeType="text/xml" vocabularyName="Sentinel-SAFE" textInfo="{text}">\n'
            f"        <xmlData>{body}</xmlData>\n      </metadataWrap>\n    </metadataObject>"
        )

    start, orbit = _stamp(acquisition.start), acquisition.absolute_orbit
    body = "\n".join(
        [
            section(
                "acquisitionPeriod",
                "Acquisition Period",
                f"<safe:acquisitionPeriod><safe:startTime>{start}</safe:startTime></safe:acquisitionPeriod>",
            ),
            section(
                "measurementOrbitReference",
                "Orbit Reference",
                '<safe:orbitReference><safe:orbitNumber groundTrackDirection="descending" type="start">'
                f'{orbit:06d}</safe:orbitNumber><safe:relativeOrbitNumber type="start">{RELATIVE_ORBIT:03d}'
                "</safe:relativeOrbitNumber></safe:orbitReference>",
            ),
            section(
                "platform",
                "Platform Description",
                f"<safe:platform><safe:familyName>SENTINEL</safe:familyName><safe:number>{acquisition.satellite[1:]}"
                '</safe:number><safe:instrument><safe:familyName abbreviation="MSI">Multi-Spectral Instrument'
                "</safe:familyName></safe:instrument></safe:platform>",
            ),
            section(
                "measurementFrameSet",
                "Frame Set",
                '<safe:frameSet><safe:footPrint srsName="http://www.opengis.net/gml/srs/epsg.xml#4326">'
                f"<gml:coordinates>{_footprint_text(granule)}</gml:coordinates></safe:footPrint></safe:frameSet>",
            ),
        ]
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<xfdu:XFDU xmlns:gml="http://www.opengis.net/gml" xmlns:safe="http://www.esa.int/safe/sentinel/1.1"
 xmlns:xfdu="urn:ccsds:schema:xfdu:1" version="esa/safe/sentinel/1.1/sentinel-2/msi/archive_l2a_user_product">
  <informationPackageMap>
    <xfdu:contentUnit unitType="Product_Level-2A" textInfo="SENTINEL-2 MSI Level-2A User Product" pdiID="processing"/>
  </informationPackageMap>
  <metadataSection>
{body}
  </metadataSection>
  <dataObjectSection>
{listed}
  </dataObjectSection>
</xfdu:XFDU>
"""


def _item(granule: _Granule, acquisition: Acquisition, cloud_percent: float) -> dict[str, Any]:
    """STAC item of the product."""
    name, ring = product_name(acquisition), granule.footprint
    longitudes, latitudes = zip(*ring, strict=True)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
            "https://stac-extensions.github.io/sat/v1.0.0/schema.json",
            "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
        ],
        "id": name,
        "collection": "sentinel-2-l2a",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [min(longitudes), min(latitudes), max(longitudes), max(latitudes)],
        "properties": {
            "datetime": _stamp(_sensed(acquisition)),
            "platform": f"sentinel-{acquisition.satellite[1:].lower()}",
            "constellation": "sentinel-2",
            "instruments": ["msi"],
            "eo:cloud_cover": round(cloud_percent, 6),
            "s2:mgrs_tile": TILE[1:],
            "s2:processing_baseline": acquisition.baseline,
            "sat:orbit_state": "descending",
            "sat:relative_orbit": RELATIVE_ORBIT,
            "sat:absolute_orbit": acquisition.absolute_orbit,
            "proj:code": granule.crs,
        },
        "links": [],
        "assets": {
            "product": {
                "href": f"products/{name}.SAFE",
                "type": "application/vnd.esa.safe",
                "roles": ["data"],
            }
        },
    }
