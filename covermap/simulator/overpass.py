"""Overpasses of Sentinel-2: when, by which satellite, under which sun and how much cloud."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

RELATIVE_ORBIT = 24
LONGITUDE, LATITUDE = -54.33, -13.5  # middle of the world [deg], for the sun


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


def sensing_time(acquisition: Acquisition) -> datetime:
    """When the middle of the granule was seen; the datatake starts six minutes earlier, further north."""
    return acquisition.start + timedelta(minutes=6, seconds=18)


def generation_time(acquisition: Acquisition) -> datetime:
    """When the product was made."""
    return acquisition.start + timedelta(hours=3, minutes=acquisition.start.day, seconds=acquisition.start.month * 3)


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
