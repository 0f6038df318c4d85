"""Reflectance of the land by class, parcel and season, as the sensor mixes it at borders but without weather."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

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
    Landscape,
)
from covermap.simulator.overpass import Acquisition, sensing_time, sun_angles
from covermap.simulator.random_fields import Floats, fractal

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")

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

    inside = in_window(landscape.parcels, window, 4)
    wood = clumps + stocking
    wood = np.clip(0.5 + 1.3 * (in_window(wood, window, 4) - cover[inside]), 0, 1)
    grain = in_window(grain, window, 4) * texture[inside]
    drift, rows, light = (in_window(field, window, 4) for field in (drift, rows, light))
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
    zenith, azimuth = np.radians(sun_angles(sensing_time(acquisition)))
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


def in_window(field: NDArray[Any], window: tuple[slice, slice], more: int = 0) -> NDArray[Any]:
    """Part of ``field`` in ``window`` and ``more`` pixels around it."""
    rows, columns = window
    return field[rows.start - more : rows.stop + more, columns.start - more : columns.stop + more]
