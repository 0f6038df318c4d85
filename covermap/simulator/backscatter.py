"""Backscatter of the land in C-band: by class, parcel, season and rain, and by the slope of the ground."""

from __future__ import annotations

from datetime import date

import numpy as np
from numpy.typing import NDArray

from covermap.simulator.landscape import Landscape
from covermap.simulator.orbit import Array, Floats, earth_fixed, zero_doppler
from covermap.simulator.viewing import SCENE_DAYS, Acquisition, coarse, image_coordinates

RAIN_DAY = SCENE_DAYS[9]  # a shower in the dry season, on 2022-05-13

# Sigma nought [dB] at 39 degrees on level ground, (VV, VH), at the driest and the wettest time of the year.
# Levels follow what C-band literature gives for these covers; crop is from bare soil to full canopy instead.
LEVELS_DB = {
    3: ((-7.6, -13.4), (-7.3, -13.0)),  # forest
    4: ((-9.9, -15.5), (-9.0, -14.1)),  # savanna
    9: ((-7.7, -14.1), (-7.3, -13.7)),  # plantation
    11: ((-10.8, -17.0), (-6.6, -13.4)),  # wetland: flooded stems and water reflect twice
    12: ((-13.0, -19.2), (-10.8, -15.4)),  # grassland
    15: ((-12.5, -18.4), (-10.8, -14.9)),  # pasture
    19: ((-13.0, -20.6), (-8.0, -13.4)),  # crop
    24: ((-4.2, -11.1), (-3.9, -10.8)),  # urban
    25: ((-14.4, -23.0), (-13.2, -21.6)),  # bare
    33: ((-20.0, -27.0), (-20.0, -27.0)),  # water
}
FOREST_LIKE, CROP, URBAN, WATER = (3, 9), 19, 24, 33
# January to December: wetness of the land (its shape is that of the twelve monthly means of the first paper's SAR
# stack) and canopy of two crop calendars, soya followed by maize and a single late crop such as cotton.
WETNESS = (1.0, 0.97, 0.92, 0.80, 0.62, 0.45, 0.28, 0.12, 0.0, 0.20, 0.45, 0.72)
CANOPY = (
    (0.95, 0.45, 0.55, 0.95, 0.80, 0.35, 0.10, 0.00, 0.00, 0.10, 0.50, 0.90),
    (0.50, 0.80, 1.00, 0.95, 0.70, 0.40, 0.15, 0.05, 0.00, 0.00, 0.10, 0.25),
)


def backscatter(landscape: Landscape, day: date, seed: int) -> NDArray[np.complex64]:
    """Sigma nought at 39 degrees on level ground (linear power) of each pixel, VV as real and VH as imaginary part.

    One complex array instead of two real ones lets both polarisations be resampled in one go.
    """
    count = int(landscape.parcels.max()) + 1
    lasting, today = np.random.default_rng([seed, 21]), np.random.default_rng([seed, 22, day.toordinal()])
    calendar, shift_months = lasting.integers(0, 2, count), lasting.normal(0, 0.35, count)
    common, own = lasting.normal(0, 0.7, count), lasting.normal(0, 0.4, (2, count))
    parcel_db = common + own + today.normal(0, 0.3, count) + today.normal(0, 0.27, (2, count))
    month = day.month - 1 + (day.day - 15) / 30
    canopy = _of_year(np.array(CANOPY), calendar, month + shift_months)
    (bare, full), wetness = np.array(LEVELS_DB[CROP]), _of_year(np.array([WETNESS]), 0, month)
    crop_db = bare[:, None] + (full - bare)[:, None] * canopy

    class_db = np.zeros((2, 256))
    for code, (dry, wet) in LEVELS_DB.items():
        class_db[:, code] = 0 if code == CROP else np.array(dry) + (np.array(wet) - dry) * wetness
        if day == RAIN_DAY and code not in (*FOREST_LIKE, WATER):
            class_db[:, code] += 1.5
    class_db[:, WATER] += today.normal(0, 1.5) * np.array([1, 0.6])  # wind

    code_of = np.zeros(count, np.uint8)
    code_of[landscape.parcels.ravel()] = landscape.classes.ravel()
    parcel_db += class_db[:, code_of] + np.where(code_of == CROP, crop_db, 0)
    power = 10 ** (parcel_db / 10)
    sigma = (power[0] + 1j * power[1]).astype(np.complex64)[landscape.parcels]
    houses = np.flatnonzero(landscape.classes.ravel() == URBAN)
    bright = lasting.exponential(1.0, houses.size) ** 3  # a few walls face the radar, most do not
    sigma.ravel()[houses] *= np.clip(0.45 + 0.16 * bright, 0, 60).astype(np.float32)
    return sigma


def _of_year(curves: Array, which: Array | int, month: Array | float) -> Array:
    """Value at a fractional month (0 = mid January, any number of turns) of one of some curves of twelve months."""
    before = np.floor(month).astype(int)
    share = month - before
    return curves[which, before % 12] * (1 - share) + curves[which, (before + 1) % 12] * share


def slope_factor(pass_: Acquisition, landscape: Landscape) -> Floats:
    """Sigma nought on the ellipsoid of sloping ground, over that of level ground, (y, x); 0 on slopes in shadow.

    Power returned is in proportion to the area that the beam meets square on (gamma nought of the facet constant), and
    it is spread over as much of the image as the facet takes up there; Small 2011, doi:10.1109/TGRS.2011.2120616.
    """
    x, y, height = (a[tuple(n // 2 for n in a.shape)] for a in coarse(landscape))
    step = np.array([0.0, 100.0, 0.0, 0.0]), np.array([0.0, 0.0, 100.0, 0.0]), np.array([0.0, 0.0, 0.0, 100.0])
    point = (x + step[0], y + step[1], height + step[2])
    line, sample = (np.diff(v[[0, 1, 0, 2, 0, 3]])[::2] / 100 for v in image_coordinates(pass_, point))
    slant = zero_doppler(pass_.orbit, earth_fixed(pass_.crs, point)[0])[1]
    sight = -np.diff(slant[[0, 1, 0, 2, 0, 3]])[::2] / 100  # unit vector to the satellite: east, north, up

    rise_row, rise_x = np.gradient(landscape.height_m, np.float32(landscape.pixel_m))
    rise_y = -rise_row  # rows run south
    met = (sight[2] - sight[0] * rise_x - sight[1] * rise_y) / sight[2]  # of the beam, over that on level ground
    taken = (line[0] + line[2] * rise_x) * (sample[1] + sample[2] * rise_y)
    taken -= (line[1] + line[2] * rise_y) * (sample[0] + sample[2] * rise_x)
    taken /= line[0] * sample[1] - line[1] * sample[0]
    return (np.clip(met, 0, None) / np.clip(taken, 0.1, None)).astype(np.float32)
