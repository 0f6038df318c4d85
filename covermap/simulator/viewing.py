"""From the land to the image of one pass: which line and sample sees a place, at which angle, and which place they see.

The geometry is stated here once more, apart from any reader. Line 0 was seen at ``productFirstLineUtcTime`` and line l
exactly l x azimuthTimeInterval later; sample p lies at ground range p x spacing. Whole numbers are the *centres* of
samples, so the image reaches from -0.5 to lines - 0.5. Ground range follows from slant range by the polynomials of the
product, whose coefficients change linearly in azimuth time from record to record.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

import numpy as np

from covermap.simulator.landscape import Landscape
from covermap.simulator.orbit import INCIDENCE_DEG, Array, Orbit, Point, earth_fixed, orbit_over, zero_doppler

# Relative orbit 68 of S1A passes over 13.5 S, 54.4 W southward; its node and its times are those of the real satellite
# to a minute and 70 km. Every twelfth day from FIRST_DAY on is an acquisition of the same orbit.
FIRST_DAY, FIRST_ORBIT, REPEAT_DAYS, ORBITS_PER_REPEAT = date(2021, 8, 10), 39165, 12, 175
PASS_OF_DAY_S = 9 * 3600 + 9 * 60 + 44.258466
SCENE_DAYS = tuple(FIRST_DAY + timedelta(k * REPEAT_DAYS) for k in (0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28))

BASELINE_M = 65.0  # deviation of the track from pass to pass, in each of two directions
RANGE_SPACING_M = AZIMUTH_SPACING_M = 10.0
AZIMUTH_INTERVAL_S = 1.499191837510891e-3
EDGE = 8  # samples without land on each side of the image


@dataclass(frozen=True)
class Acquisition:
    """One pass: its orbit and the frame of its image. Seconds count from ``epoch``, the nominal moment of the pass."""

    crs: str
    orbit: Orbit
    epoch: datetime
    first_line_s: float
    lines: int
    samples: int
    near_range_m: float
    record_s: Array  # (record,)
    srgr: Array  # (record, 9)
    grsr: Array  # (record, 9)
    terrain_height_m: Array  # (record,)

    def at(self, time_s: float) -> datetime:
        """UTC of a time of this pass, to the microsecond."""
        return self.epoch + timedelta(microseconds=round(time_s * 1e6))


def image_coordinates(pass_: Acquisition, point: Point) -> tuple[Array, Array]:
    """Line and sample, both real numbers with whole ones at sample centres, at which points of the land are seen."""
    time_s, slant_m = zero_doppler(pass_.orbit, earth_fixed(pass_.crs, point)[0])
    place = np.interp(time_s, pass_.record_s, np.arange(len(pass_.record_s)))
    record = np.minimum(place.astype(int), len(pass_.record_s) - 2)
    share = place - record
    coefficients = pass_.srgr[record] * (1 - share)[..., None] + pass_.srgr[record + 1] * share[..., None]
    ground_m = np.zeros(slant_m.shape)
    for power in reversed(range(9)):
        ground_m = ground_m * (slant_m - pass_.near_range_m) + coefficients[..., power]
    return (time_s - pass_.first_line_s) / AZIMUTH_INTERVAL_S, ground_m / RANGE_SPACING_M


def acquire(landscape: Landscape, day: date, seed: int) -> Acquisition:
    """Pass of one day: the orbit with its small offset of that day and the frame that just holds the land."""
    rng = np.random.default_rng([seed, 20, day.toordinal()])
    x, y, height = coarse(landscape)
    middle = np.array(x.mean()), np.array(y.mean()), np.array(height.mean())
    orbit = orbit_over(*earth_fixed(landscape.crs, middle))
    aside, above = rng.normal(0, BASELINE_M, 2)
    orbit = replace(orbit, radius_m=orbit.radius_m + above, node_rad=orbit.node_rad + aside / orbit.radius_m)

    xyz, up = earth_fixed(landscape.crs, (x, y, height))
    time_s, slant_m = zero_doppler(orbit, xyz)
    first_s = round(float(time_s.min()) - EDGE * AZIMUTH_INTERVAL_S, 6)
    lines = int(np.ceil((float(time_s.max()) - first_s) / AZIMUTH_INTERVAL_S)) + EDGE
    near_m = round(float(slant_m.min()) - EDGE * RANGE_SPACING_M * np.sin(np.radians(INCIDENCE_DEG)), 3)

    # Ground range is the arc on a sphere through the ground; its radius follows the track and the mean terrain.
    record_s = first_s - 1.25 + np.arange(np.ceil(lines * AZIMUTH_INTERVAL_S) + 3)
    terrain_m = np.polyval(np.polyfit(time_s.ravel(), height.ravel(), 1), record_s)
    at_sea = np.linalg.norm(xyz - height[..., None] * up, axis=-1)
    radius_m = np.polyval(np.polyfit(time_s.ravel(), at_sea.ravel(), 2), record_s) + terrain_m
    far_m = float(slant_m.max()) + 500
    fits = [_ground_range(orbit.radius_m, radius, near_m, far_m) for radius in radius_m]
    epoch = datetime(day.year, day.month, day.day) + timedelta(seconds=PASS_OF_DAY_S)
    made = Acquisition(
        crs=landscape.crs,
        orbit=orbit,
        epoch=epoch,
        first_line_s=first_s,
        lines=lines,
        samples=1,
        near_range_m=near_m,
        record_s=record_s,
        srgr=np.array([fit[0] for fit in fits]),
        grsr=np.array([fit[1] for fit in fits]),
        terrain_height_m=terrain_m,
    )
    samples = int(np.ceil(float(image_coordinates(made, (x, y, height))[1].max()))) + EDGE
    return replace(made, samples=samples)


def coarse(landscape: Landscape, step: int = 16) -> Point:
    """Every ``step``-th pixel centre of the land, and the last one, with its height, each (y, x)."""
    size = landscape.height_m.shape
    rows, columns = (np.unique(np.append(np.arange(0, n, step), n - 1)) for n in size)
    row, column = np.meshgrid(rows, columns, indexing="ij")
    x, y = _from_pixels(landscape, row, column)
    return x, y, landscape.height_m[row, column].astype(float)


def _from_pixels(landscape: Landscape, row: Array, column: Array) -> tuple[Array, Array]:
    """Map coordinates [m] of places given as row and column, whole numbers being pixel centres."""
    step = landscape.pixel_m
    return landscape.left + (column + 0.5) * step, landscape.top - (row + 0.5) * step


def _ground_range(orbit_m: float, earth_m: float, near_m: float, far_m: float) -> tuple[Array, Array]:
    """Polynomials of 8th order, (9,) each: ground range from slant range less ``near_m``, and slant from ground range.

    Law of cosines in the triangle of the Earth's centre, the satellite and the ground.
    """
    slant = np.linspace(near_m - 500, far_m, 400)
    angle = np.arccos((orbit_m**2 + earth_m**2 - slant**2) / (2 * orbit_m * earth_m))
    ground = earth_m * (angle - np.interp(near_m, slant, angle))

    def fit(x: Array, y: Array) -> Array:
        scale = np.abs(x).max()  # keeps the powers of a range of 20 km within the digits of a float
        return np.polynomial.polynomial.polyfit(x / scale, y, 8) / scale ** np.arange(9)

    return fit(slant - near_m, ground), fit(ground, slant)


def locate(
    pass_: Acquisition, landscape: Landscape, line: Array, sample: Array, height_m: Array
) -> tuple[Array, Array]:
    """Map coordinates [m] of what is seen at a line and sample if it lies at ``height_m`` (Newton's method)."""
    size = np.array(landscape.height_m.shape) * landscape.pixel_m
    x = np.full(np.shape(line), landscape.left + size[1] / 2)
    y = np.full(np.shape(line), landscape.top - size[0] / 2)
    for _ in range(6):
        l0, s0 = image_coordinates(pass_, (x, y, height_m))
        lx, sx = image_coordinates(pass_, (x + 50, y, height_m))
        ly, sy = image_coordinates(pass_, (x, y + 50, height_m))
        a, b, c, d = (lx - l0) / 50, (ly - l0) / 50, (sx - s0) / 50, (sy - s0) / 50
        miss_line, miss_sample = line - l0, sample - s0
        x = x + (d * miss_line - b * miss_sample) / (a * d - b * c)
        y = y + (a * miss_sample - c * miss_line) / (a * d - b * c)
    return x, y


def incidence_deg(pass_: Acquisition, landscape: Landscape) -> Array:
    """Incidence angle on the ellipsoid at each sample (sample,) of the middle line, at the mean height."""
    nodes = np.linspace(0, pass_.samples - 1, 33)
    height = np.full(nodes.size, float(landscape.height_m.mean()))
    x, y = locate(pass_, landscape, np.full(nodes.size, pass_.lines / 2), nodes, height)
    angle = angles(pass_, (x, y, height))[0]
    return np.polynomial.Polynomial.fit(nodes, angle, 4)(np.arange(pass_.samples))


def angles(pass_: Acquisition, point: Point) -> tuple[Array, Array]:
    """Angles [deg] of the line of sight: to the vertical at the point, and to the Earth's centre at the satellite."""
    xyz, up = earth_fixed(pass_.crs, point)
    position = pass_.orbit.state(zero_doppler(pass_.orbit, xyz)[0])[0]
    sight = position - xyz
    sight /= np.linalg.norm(sight, axis=-1, keepdims=True)
    down = position / np.linalg.norm(position, axis=-1, keepdims=True)
    cosines = np.einsum("...i,...i", sight, up), np.einsum("...i,...i", sight, down)
    return np.degrees(np.arccos(cosines[0])), np.degrees(np.arccos(cosines[1]))
