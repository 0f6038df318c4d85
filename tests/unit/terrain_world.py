"""A satellite that looks over a small grid in any direction, and heights that a test thinks up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from covermap.grid import Grid
from covermap.sentinel1 import distortion, geocoding
from covermap.sentinel1.nodes import node_step, nodes
from covermap.sentinel1.orbit import Orbit
from covermap.sentinel1.terrain import Terrain

RADIUS_M, RATE = 7_070_000.0, 1.06e-3
LONGITUDE, LATITUDE = 2.6, 1.0
AWAY_DEG = 3.2  # of the Earth's surface, from below the satellite to the middle of the grid: 29 degrees of incidence


def grid_around(height: int, width: int) -> Grid:
    return Grid(crs="EPSG:32631", left=455_500 - 5 * width, top=110_540 + 5 * height, width=width, height=height)


def orbit_looking(azimuth_deg: float) -> Orbit:
    """A circle over an Earth that stands still; at time 0 the satellite sees the middle of the grid at this azimuth."""
    longitude, latitude, azimuth, away = np.radians([LONGITUDE, LATITUDE, azimuth_deg, AWAY_DEG])
    up = np.array([np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)])
    east = np.array([-np.sin(longitude), np.cos(longitude), 0.0])
    look = np.sin(azimuth) * east + np.cos(azimuth) * np.cross(up, east)
    radial, ahead = np.cos(away) * up - np.sin(away) * look, np.cross(up, look)
    times = np.arange(-80.0, 81.0, 10.0)
    u = RATE * times[:, None]
    position = RADIUS_M * (np.cos(u) * radial + np.sin(u) * ahead)
    velocity = RADIUS_M * RATE * (-np.sin(u) * radial + np.cos(u) * ahead)
    return Orbit(times, position, velocity)


@dataclass(frozen=True)
class Scene:
    """Terrain and geometry at the nodes of a grid."""

    orbit: Orbit
    grid: Grid
    terrain: Terrain
    seen: geocoding.Sight
    radii: np.ndarray
    incidence: np.ndarray
    step: int

    def dense(self, layers: np.ndarray) -> np.ndarray:
        return geocoding.refine(layers, self.step, range(self.grid.height), self.grid.width)

    @property
    def incidence_deg(self) -> np.ndarray:
        return geocoding.incidence_at(self.dense(self.incidence), self.height_m, self.seen)

    @property
    def height_m(self) -> np.ndarray:
        return self.terrain.height_m[: self.grid.height, : self.grid.width].astype(float)

    def mask(self, rows: range | None = None, columns: range | None = None) -> np.ndarray:
        margin = distortion.reach(self.terrain.highest_m - self.terrain.lowest_m, self.incidence[0], self.grid)
        every = range(self.grid.height), range(self.grid.width)
        rows, columns = rows or every[0], columns or every[1]
        return distortion.layover_shadow(self.terrain, self.seen, self.radii, self.step, rows, columns, margin)


def scene(azimuth_deg: float, grid: Grid, height: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Scene:
    """``height`` [m] is a function of metres along the look direction and along track, from the grid's middle."""
    orbit, step = orbit_looking(azimuth_deg), node_step(grid)
    row, column = np.mgrid[: grid.height + step, : grid.width + step].astype(float)
    east, north = (column - grid.width / 2) * 10, (grid.height / 2 - row) * 10
    azimuth = np.radians(azimuth_deg)
    along, across = (
        east * np.sin(azimuth) + north * np.cos(azimuth),
        north * np.sin(azimuth) - east * np.cos(azimuth),
    )
    height_m = np.broadcast_to(height(along, across), row.shape).astype(np.float32)
    degrees = nodes(grid, "EPSG:4326")
    positions = np.mgrid[: degrees[0].shape[0], : degrees[0].shape[1]] * float(step)
    terrain = Terrain("made.tif", "none", height_m, positions, float(height_m.min()), float(height_m.max()))
    seen = geocoding.sight(orbit, *degrees, terrain.lowest_m, terrain.highest_m)
    radii = distortion.distances(orbit, *degrees, seen)
    return Scene(orbit, grid, terrain, seen, radii, geocoding.incidence_nodes(orbit, *degrees, seen), step)
