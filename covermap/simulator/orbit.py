"""The orbit of the radar, and when from it a point of the Earth is seen at zero Doppler.

A circular orbit turns with the Earth below it; a point is seen at the moment when its line of sight is square to the
velocity of the satellite in the Earth-fixed frame, without bistatic or atmospheric delay. Heights are above the WGS 84
ellipsoid. The satellite looks to its right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from scipy import optimize

Array = NDArray[Any]
Floats = NDArray[np.float32]
Point = tuple[Array, Array, Array]  # x [m], y [m] in the CRS of the land, ellipsoidal height [m]

EARTH_GM = 3.986004418e14  # [m^3 s^-2], WGS 84
EARTH_TURN = 7.292115e-5  # [rad/s], WGS 84
SEMI_MAJOR_M, FLATTENING = 6_378_137.0, 1 / 298.257223563  # WGS 84
ECCENTRICITY2 = FLATTENING * (2 - FLATTENING)

ORBIT_RADIUS_M, INCLINATION_RAD = 7_070_000.0, np.radians(98.18)
INCIDENCE_DEG = 39.0  # at the middle of the land


@dataclass(frozen=True)
class Orbit:
    """Circular orbit in the Earth-fixed frame; times are seconds after the moment that the angles belong to."""

    radius_m: float
    argument_rad: float  # from the ascending node to the satellite, along the orbit
    node_rad: float  # longitude of the ascending node

    @property
    def motion_rad_s(self) -> float:
        """Angular velocity along the orbit, Kepler's third law."""
        return float(np.sqrt(EARTH_GM / self.radius_m**3))

    def state(self, time_s: Array) -> tuple[Array, Array]:
        """Position [m] and velocity [m/s] in the Earth-fixed frame, both (..., 3)."""
        along = self.argument_rad + self.motion_rad_s * np.asarray(time_s, float)
        node = self.node_rad - EARTH_TURN * np.asarray(time_s, float)
        tilt_cos, tilt_sin = np.cos(INCLINATION_RAD), np.sin(INCLINATION_RAD)

        def place(cos: Array, sin: Array) -> Array:
            x = np.cos(node) * cos - np.sin(node) * tilt_cos * sin
            y = np.sin(node) * cos + np.cos(node) * tilt_cos * sin
            return self.radius_m * np.stack([x, y, tilt_sin * sin], -1)

        position = place(np.cos(along), np.sin(along))
        velocity = self.motion_rad_s * place(-np.sin(along), np.cos(along))
        velocity[..., 0] += EARTH_TURN * position[..., 1]
        velocity[..., 1] -= EARTH_TURN * position[..., 0]
        return position, velocity


def orbit_over(point_m: Array, up: Array) -> Orbit:
    """Southbound orbit that sees an Earth-fixed point, with its vertical ``up``, at time 0 on its right."""

    def misses(angles: Array) -> list[float]:
        position, velocity = Orbit(ORBIT_RADIUS_M, angles[0], angles[1]).state(np.array(0.0))
        sight = position - point_m
        doppler = float(sight @ velocity / np.linalg.norm(velocity))
        height = float(sight @ up - np.linalg.norm(sight) * np.cos(np.radians(INCIDENCE_DEG)))
        return [doppler / 1e6, height / 1e6]

    # The satellite stands east of what it sees on its right on the way south; from there the root is the nearest one.
    latitude, longitude = np.arcsin(up[2]), np.arctan2(up[1], up[0])
    argument = np.pi - np.arcsin(np.sin(latitude) / np.sin(INCLINATION_RAD))
    crossed = np.arctan2(np.cos(INCLINATION_RAD) * np.sin(argument), np.cos(argument))
    found = optimize.root(misses, [argument, longitude + np.radians(5) - crossed], tol=1e-13)
    return Orbit(ORBIT_RADIUS_M, float(found.x[0]), float(found.x[1]))


def earth_fixed(crs: str, point: Point) -> tuple[Array, Array]:
    """Earth-fixed coordinates [m] and upward normals of the ellipsoid, both (..., 3), of points of the land."""
    longitude, latitude = geographic(crs, point[0], point[1])
    longitude, latitude = np.radians(longitude), np.radians(latitude)
    up = np.stack([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], -1)
    across = SEMI_MAJOR_M / np.sqrt(1 - ECCENTRICITY2 * np.sin(latitude) ** 2)
    height = np.asarray(point[2], float)
    xyz = (across + height)[..., None] * up
    xyz[..., 2] -= ECCENTRICITY2 * across * np.sin(latitude)
    return xyz, up


def geographic(crs: str, x: Array, y: Array) -> tuple[Array, Array]:
    """Longitudes and latitudes [deg] of points of the land."""
    longitude, latitude = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    return np.asarray(longitude), np.asarray(latitude)


def zero_doppler(orbit: Orbit, xyz: Array) -> tuple[Array, Array]:
    """Time [s] at which Earth-fixed points (..., 3) lie square to the velocity, and slant range [m] then.

    Secant steps on the orbit itself; they end far below a nanosecond.
    """

    def ahead(time_s: Array) -> Array:
        position, velocity = orbit.state(time_s)
        return np.einsum("...i,...i", xyz - position, velocity)

    earlier, later = np.full(xyz.shape[:-1], -3.0), np.full(xyz.shape[:-1], 3.0)
    before, after = ahead(earlier), ahead(later)
    for _ in range(8):
        change = np.where(after == before, 1.0, after - before)
        earlier, later, before = later, later - after * (later - earlier) / change, after
        after = ahead(later)
    return later, np.linalg.norm(xyz - orbit.state(later)[0], axis=-1)
