"""Weather over the land: clouds, cirrus and shadows, what is seen through them, and a fallible scene class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from covermap.simulator.landscape import BARE, URBAN, WATER
from covermap.simulator.overpass import Acquisition, sensing_time, sun_angles
from covermap.simulator.random_fields import Floats, fractal

CLOUDY = 0.35  # opacity from which a pixel counts as cloud


@dataclass(frozen=True)
class Weather:
    """Opacity of clouds and of cirrus and depth of cloud shadow, each 0..1, float32 (y, x) at 10 m."""

    cloud: Floats
    cirrus: Floats
    shadow: Floats


def make_weather(rng: np.random.Generator, shape: tuple[int, int], acquisition: Acquisition) -> Weather:
    """Ragged clouds with a rim of haze, their shadows away from the sun, and thin veils on half of the dates."""
    zenith, azimuth = np.radians(sun_angles(sensing_time(acquisition)))
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
    return Weather(cloud.astype(np.float32), cirrus, (np.clip(1.3 * shadow, 0, 1) * (1 - cloud)).astype(np.float32))


def through_weather(ground: Floats, band: str, weather: Weather) -> Floats:
    """Reflectance as the product gives it: shaded, veiled and covered by cloud."""
    visible, infrared = band in ("B02", "B03", "B04"), band in ("B11", "B12")
    dark = 0.50 if visible else 0.62  # blue sky still lights a shadow
    top = 0.30 if infrared else 0.62
    seen = ground * (1 - np.float32(dark) * weather.shadow)
    seen += weather.cirrus * (np.float32(0.12 if infrared else 0.42) - seen)
    return seen + weather.cloud * (np.float32(top) * (0.72 + np.float32(0.28) * weather.cloud) - seen)


def classify_scene(
    rng: np.random.Generator,
    seen: Mapping[str, Floats],
    weather: Weather,
    classes: NDArray[np.uint8],
    parcels: NDArray[np.int32],
) -> NDArray[np.uint8]:
    """Scene classification (y, x) at 20 m, uint8, with the kinds of error of the real one (Sen2Cor codes 2 to 11).

    Whole roofs and pits become cloud, whole stretches of water become shadow, haze at cloud rims and clouds under
    about 1 ha are missed, a few patches of cloud become snow.
    """
    cloud, cirrus, shadow = (binned(field, 2) for field in (weather.cloud, weather.cirrus, weather.shadow))
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


def binned(field: Floats, factor: int) -> Floats:
    """Means of squares of ``factor`` pixels."""
    height, width = (size // factor for size in field.shape)
    return field.reshape(height, factor, width, factor).mean((1, 3), dtype=np.float32)
