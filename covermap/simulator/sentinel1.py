"""Sentinel-1 IW GRDH scenes of the made-up land, written as SAFE folders with true names and structure.

The geometry is stated here once more, apart from any reader: a circular orbit turns with the Earth below it; a point is
seen at the moment when its line of sight is square to the velocity of the satellite in the Earth-fixed frame (zero
Doppler), without bistatic or atmospheric delay. Line 0 was seen at ``productFirstLineUtcTime`` and line l exactly
l x azimuthTimeInterval later; sample p lies at ground range p x spacing. Whole numbers are the *centres* of samples, so
the image reaches from -0.5 to lines - 0.5. Ground range follows from slant range by the polynomials of the product,
whose coefficients change linearly in azimuth time from record to record. Heights are above the WGS 84 ellipsoid. The
satellite looks to its right.

A scene is a cut-out of about 27 km of what a real product holds, and its three sub-swaths are squeezed into it, so that
the borders between them lie inside the land.
"""

from __future__ import annotations

import binascii
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.control import GroundControlPoint
from scipy import fft, ndimage, optimize

from covermap.simulator import safe_xml

if TYPE_CHECKING:
    from covermap.simulator.landscape import Landscape

Array = NDArray[Any]
Floats = NDArray[np.float32]

POLARISATIONS = ("VV", "VH")

# Relative orbit 68 of S1A passes over 13.5 S, 54.4 W southward; its node and its times are those of the real satellite
# to a minute and 70 km. Every twelfth day from FIRST_DAY on is an acquisition of the same orbit.
FIRST_DAY, FIRST_ORBIT, REPEAT_DAYS, ORBITS_PER_REPEAT = date(2021, 8, 10), 39165, 12, 175
PASS_OF_DAY_S = 9 * 3600 + 9 * 60 + 44.258466
SCENE_DAYS = tuple(FIRST_DAY + timedelta(k * REPEAT_DAYS) for k in (0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25, 28))
RAIN_DAY = SCENE_DAYS[9]  # a shower in the dry season, on 2022-05-13

LIGHT_M_S = 299_792_458.0
EARTH_GM = 3.986004418e14  # [m^3 s^-2], WGS 84
EARTH_TURN = 7.292115e-5  # [rad/s], WGS 84
SEMI_MAJOR_M, FLATTENING = 6_378_137.0, 1 / 298.257223563  # WGS 84
ECCENTRICITY2 = FLATTENING * (2 - FLATTENING)

ORBIT_RADIUS_M, INCLINATION_RAD = 7_070_000.0, np.radians(98.18)
BASELINE_M = 65.0  # deviation of the track from pass to pass, in each of two directions
INCIDENCE_DEG = 39.0  # at the middle of the land

RANGE_SPACING_M = AZIMUTH_SPACING_M = 10.0
AZIMUTH_INTERVAL_S = 1.499191837510891e-3
EDGE = 8  # samples without land on each side of the image
BETA_LUT = 474.0  # digital number of a beta nought of 1

Point = tuple[Array, Array, Array]  # x [m], y [m] in the CRS of the land, ellipsoidal height [m]


# ----------------------------------------------------------------------------------------------------------- the orbit


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


# ------------------------------------------------------------------------------------------------ from land to image


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
    x, y, height = _coarse(landscape)
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


def _coarse(landscape: Landscape, step: int = 16) -> Point:
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


@dataclass(frozen=True)
class Backward:
    """Where a sample of the image lies on the land if the height is known: polynomials fitted to the dense solution."""

    rows: Array  # (height order 3, line order, sample order), Chebyshev
    columns: Array
    lines: int
    samples: int
    height_m: float
    reach_m: float

    def terms(self, line: Array, sample: Array) -> tuple[Floats, Floats]:
        """Row and column as coefficients (3, line, sample) of powers of (height - height_m) / reach_m, float32."""
        across = chebyshev.chebvander(2 * line / self.lines - 1, self.rows.shape[1] - 1)
        along = chebyshev.chebvander(2 * sample / self.samples - 1, self.rows.shape[2] - 1)
        found = (np.einsum("la,hab,sb->hls", across, c, along, optimize=True) for c in (self.rows, self.columns))
        rows, columns = (terms.astype(np.float32) for terms in found)
        return rows, columns


def backward(pass_: Acquisition, landscape: Landscape) -> Backward:
    """Invert ``image_coordinates`` on a few hundred nodes by Newton's method and fit what lies between them."""
    order, heights = 6, 5
    low, high = float(landscape.height_m.min()) - 5, float(landscape.height_m.max()) + 5
    nodes = chebyshev.chebpts1(order + 5)
    h, a, b = np.meshgrid(chebyshev.chebpts1(heights), nodes, nodes, indexing="ij")
    height = (low + high) / 2 + h * (high - low) / 2
    x, y = locate(pass_, landscape, (a + 1) / 2 * pass_.lines, (b + 1) / 2 * pass_.samples, height)
    row = (landscape.top - y) / landscape.pixel_m - 0.5
    column = (x - landscape.left) / landscape.pixel_m - 0.5
    base = np.einsum(
        "ph,pa,pb->phab",
        np.polynomial.polynomial.polyvander(h.ravel(), 2),
        chebyshev.chebvander(a.ravel(), order),
        chebyshev.chebvander(b.ravel(), order),
    ).reshape(h.size, -1)
    fitted = np.linalg.lstsq(base, np.stack([row.ravel(), column.ravel()], -1), rcond=None)[0]
    rows, columns = fitted.T.reshape(2, 3, order + 1, order + 1)
    return Backward(rows, columns, pass_.lines, pass_.samples, (low + high) / 2, (high - low) / 2)


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


# -------------------------------------------------------------------------------------------------------- backscatter

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
    x, y, height = (a[tuple(n // 2 for n in a.shape)] for a in _coarse(landscape))
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


# --------------------------------------------------------------------------------------------------- from land to image


def project(pass_: Acquisition, landscape: Landscape, power: NDArray[np.complex64]) -> tuple[Array, NDArray[np.bool_]]:
    """Resample the land into the image: power (line, sample), complex64, and whether there is land at a sample.

    For each sample the height is found at which the line of sight meets the terrain; with slopes below the incidence
    angle (no layover) there is exactly one. Done in bands of lines, which stay in the cache of the processor.
    """
    back = backward(pass_, landscape)
    image = np.empty((pass_.lines, pass_.samples), np.complex64)
    seen = np.empty(image.shape, bool)
    for rows, heights in _first_heights(back, landscape):
        terms = back.terms(np.arange(rows.start, rows.stop), np.arange(pass_.samples))
        row, column = _meet(terms, back, landscape.height_m, heights)
        seen[rows] = (row > -0.5) & (row < power.shape[0] - 0.5) & (column > -0.5) & (column < power.shape[1] - 0.5)
        image[rows] = _bilinear(power, row, column)
    return image, seen


def _first_heights(back: Backward, landscape: Landscape) -> Iterator[tuple[slice, Array]]:
    """Bands of 64 lines with heights that are right on every 8th line and sample and interpolated between."""
    step, band = 8, 64
    lines, samples = (np.arange(0, n + step, step) for n in (back.lines, back.samples))
    terms = back.terms(lines, samples)
    height = np.full((lines.size, samples.size), back.height_m, np.float32)
    for _ in range(25):
        height = _bilinear(landscape.height_m, *_place(terms, back, height))
    share = (np.arange(back.samples) % step / step).astype(np.float32)
    left = np.arange(back.samples) // step
    wide = height[:, left] * (1 - share) + height[:, left + 1] * share
    for first in range(0, back.lines, band):
        line = np.arange(first, min(first + band, back.lines))
        below = (line % step / step).astype(np.float32)[:, None]
        yield slice(first, int(line[-1]) + 1), wide[line // step] * (1 - below) + wide[line // step + 1] * below


def _place(terms: tuple[Floats, Floats], back: Backward, height: Floats) -> tuple[Floats, Floats]:
    """Row and column on the land of samples whose height is known."""
    h = (height - np.float32(back.height_m)) / np.float32(back.reach_m)
    rows, columns = terms
    return rows[0] + h * (rows[1] + h * rows[2]), columns[0] + h * (columns[1] + h * columns[2])


def _meet(terms: tuple[Floats, Floats], back: Backward, terrain: Floats, height: Array) -> tuple[Floats, Floats]:
    """Row and column where the line of sight of each sample meets the terrain, from a first guess of the height."""
    found = _bilinear(terrain, *_place(terms, back, height))
    for _ in range(3):
        again = _bilinear(terrain, *_place(terms, back, found))
        # Each turn shrinks the miss by the same share (Aitken): jump to where the turns would end.
        first, second = found - height, again - found
        share = np.clip(np.divide(second, first, out=np.zeros_like(first), where=np.abs(first) > 0.05), -0.8, 0.8)
        height, found = again, again + second * share / (1 - share)
    return _place(terms, back, found)


def _bilinear(grid: Array, row: Array, column: Array) -> Array:
    """Values between pixel centres; places outside take the nearest edge."""
    rows, columns = grid.shape
    row = np.clip(row, 0, rows - 1.001)
    column = np.clip(column, 0, columns - 1.001)
    top, left = row.astype(np.int32), column.astype(np.int32)
    down, right = row - top, column - left
    flat, corner = grid.ravel(), top * columns + left
    upper = flat[corner] * (1 - right) + flat[corner + 1] * right
    lower = flat[corner + columns] * (1 - right) + flat[corner + columns + 1] * right
    return upper * (1 - down) + lower * down


# -------------------------------------------------------------------------------------------------- speckle and noise

# Width of the band of each look in cycles a sample. With the taper of a raised cosine the intensity of a point is half
# at 20 m in range and 22 m in azimuth, as in IW GRDH products.
RANGE_BAND, AZIMUTH_BAND = 0.72, 0.655
LOOK_WEIGHTS = (0.5, 1.0, 1.3, 1.0, 0.5)  # five looks of unequal weight count as 4.4


def speckle(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Speckle of detected, multi-looked samples (line, sample): factor of power with mean 1, float32.

    Each look is white complex Gaussian noise limited to the band of the processor, made in the frequency domain.
    """
    size = tuple(fft.next_fast_len(n) for n in shape)
    band = [
        np.flatnonzero(np.abs(fft.fftfreq(n)) < b / 2) for n, b in zip(size, (AZIMUTH_BAND, RANGE_BAND), strict=True)
    ]
    tapers = [
        0.5 + 0.5 * np.cos(2 * np.pi * fft.fftfreq(n)[k] / b)
        for n, k, b in zip(size, band, (AZIMUTH_BAND, RANGE_BAND), strict=True)
    ]
    gain = np.outer(*tapers)
    gain = (gain * size[0] * size[1] / np.sqrt(2 * (gain**2).sum())).astype(np.float32)  # mean power 1
    total = np.zeros(shape, np.float32)
    for weight in LOOK_WEIGHTS:
        noise = rng.standard_normal((*gain.shape, 2), np.float32).view(np.complex64)[..., 0] * gain
        half = np.zeros((band[0].size, size[1]), np.complex64)
        half[:, band[1]] = noise
        half = fft.ifft(half, axis=1, overwrite_x=True)[:, : shape[1]]
        look = np.zeros((size[0], shape[1]), np.complex64)
        look[band[0]] = half
        look = fft.ifft(look, axis=0, overwrite_x=True)[: shape[0]]
        total += np.float32(weight / sum(LOOK_WEIGHTS)) * (look.real**2 + look.imag**2)
    return total


# Noise-equivalent sigma nought [dB] in the middle of each sub-swath, and how much more it is at the edges; VH is lower.
NOISE_DB = {"IW1": (-24.6, 2.0), "IW2": (-26.6, 2.2), "IW3": (-28.6, 5.0)}
SWATH_STARTS = (0.0, 0.28, 0.63)  # as shares of the width of the image
BURST_S = 2.75


@dataclass(frozen=True)
class Noise:
    """Thermal noise in squared digital numbers: azimuth_factor(sub-swath, line) x range_power(line, sample)."""

    range_power: Array  # (sample,) at the first line
    azimuth_factor: Array  # (sub-swath, line)
    drift: Array  # (line,), factor of range_power

    def image(self, swaths: tuple[safe_xml.Swath, ...]) -> Floats:
        """Noise of each sample (line, sample), float32."""
        made = np.empty((self.drift.size, self.range_power.size), np.float32)
        for swath, factor in zip(swaths, self.azimuth_factor, strict=True):
            part = slice(swath.first_sample, swath.last_sample + 1)
            made[:, part] = np.outer(factor * self.drift, self.range_power[part])
        return made


def thermal_noise(pass_: Acquisition, polarisation: str, sigma_lut: Array) -> Noise:
    """Noise of the instrument: a bowl in each sub-swath, scalloping along the bursts, a slow drift in time."""
    level_db = np.empty(pass_.samples)
    for swath in sub_swaths(pass_.samples):
        middle_db, edge_db = NOISE_DB[swath.name]
        place = np.linspace(-1, 1, swath.last_sample - swath.first_sample + 1)
        level_db[swath.first_sample : swath.last_sample + 1] = middle_db + edge_db * place**2
    level_db -= 0.4 * (polarisation == "VH")
    time_s = np.arange(pass_.lines) * AZIMUTH_INTERVAL_S
    phase = 2 * np.pi * (time_s / BURST_S + np.array([0.1, 0.4, 0.7])[:, None])
    return Noise(10 ** (level_db / 10) * sigma_lut**2, 1.03 + 0.03 * np.cos(phase), 1 + 0.004 * time_s)


def sub_swaths(samples: int) -> tuple[safe_xml.Swath, ...]:
    """The three sub-swaths of an image so many samples wide."""
    starts = [round(share * samples) for share in SWATH_STARTS]
    ends = [*(start - 1 for start in starts[1:]), samples - 1]
    return tuple(safe_xml.Swath(*s) for s in zip(NOISE_DB, starts, ends, strict=True))


def incidence_deg(pass_: Acquisition, landscape: Landscape) -> Array:
    """Incidence angle on the ellipsoid at each sample (sample,) of the middle line, at the mean height."""
    nodes = np.linspace(0, pass_.samples - 1, 33)
    height = np.full(nodes.size, float(landscape.height_m.mean()))
    x, y = locate(pass_, landscape, np.full(nodes.size, pass_.lines / 2), nodes, height)
    angle = _angles(pass_, (x, y, height))[0]
    return np.polynomial.Polynomial.fit(nodes, angle, 4)(np.arange(pass_.samples))


def _angles(pass_: Acquisition, point: Point) -> tuple[Array, Array]:
    """Angles [deg] of the line of sight: to the vertical at the point, and to the Earth's centre at the satellite."""
    xyz, up = earth_fixed(pass_.crs, point)
    position = pass_.orbit.state(zero_doppler(pass_.orbit, xyz)[0])[0]
    sight = position - xyz
    sight /= np.linalg.norm(sight, axis=-1, keepdims=True)
    down = position / np.linalg.norm(position, axis=-1, keepdims=True)
    cosines = np.einsum("...i,...i", sight, up), np.einsum("...i,...i", sight, down)
    return np.degrees(np.arccos(cosines[0])), np.degrees(np.arccos(cosines[1]))


# ---------------------------------------------------------------------------------------------------------- the product


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


def describe(pass_: Acquisition, landscape: Landscape) -> safe_xml.Grd:
    """What the annotation of a pass says, beside the calibration and the noise."""
    turns = (pass_.epoch.date() - FIRST_DAY).days // REPEAT_DAYS
    orbit_number = FIRST_ORBIT + ORBITS_PER_REPEAT * turns
    first = pass_.at(pass_.first_line_s)
    start = first.replace(microsecond=0) - timedelta(seconds=65)
    times = [start + timedelta(seconds=10 * k) for k in range(16)]
    position, velocity = pass_.orbit.state(np.array([(time - pass_.epoch).total_seconds() for time in times]))
    node_s = -(pass_.orbit.argument_rad % (2 * np.pi)) / pass_.orbit.motion_rad_s
    return safe_xml.Grd(
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


def _grid(pass_: Acquisition, landscape: Landscape) -> safe_xml.GridPoints:
    """Geolocation grid of 10 x 21 points on the terrain (its edge value outside the land)."""
    lines = np.linspace(0, pass_.lines - 1, 10).round().astype(int)
    pixels = np.linspace(0, pass_.samples - 1, 21).round().astype(int)
    line, pixel = (a.ravel() for a in np.meshgrid(lines, pixels, indexing="ij"))
    height = np.full(line.size, float(landscape.height_m.mean()))
    for _ in range(25):
        x, y = locate(pass_, landscape, line.astype(float), pixel.astype(float), height)
        row = (landscape.top - y) / landscape.pixel_m - 0.5
        column = (x - landscape.left) / landscape.pixel_m - 0.5
        height = _bilinear(landscape.height_m.astype(float), row, column)
    point = (x, y, height)
    longitude, latitude = geographic(landscape.crs, x, y)
    time_s, slant_m = zero_doppler(pass_.orbit, earth_fixed(landscape.crs, point)[0])
    incidence, elevation = _angles(pass_, point)
    return safe_xml.GridPoints(
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
    grd: safe_xml.Grd,
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
        safe_xml.annotation(grd, polarisation, number, float(land.mean()), float(land.std()))
    )
    second = round(1 / grd.azimuth_interval_s)  # lines from vector to vector
    pixels = np.unique(np.append(np.arange(0, grd.samples, 40), grd.samples - 1))
    sine, cosine = np.sin(angle_rad[pixels]), np.cos(angle_rad[pixels])
    constant = np.full(pixels.size, BETA_LUT)
    luts = {"sigmaNought": BETA_LUT / np.sqrt(sine), "betaNought": constant}
    luts |= {"gamma": BETA_LUT * np.sqrt(cosine / sine), "dn": constant}
    (safe / f"annotation/calibration/calibration-{stem}.xml").write_bytes(
        # As in real products, the last vector lies beyond the last line.
        safe_xml.calibration(grd, polarisation, number, np.arange(0, grd.lines + second, second), pixels, luts)
    )
    parts = (np.append(np.arange(s.first_sample, s.last_sample, 40), s.last_sample) for s in grd.swaths)
    noise_pixels = np.concatenate(list(parts))
    noise_lines = np.unique(np.append(np.arange(0, grd.lines, second), grd.lines - 1))
    azimuth_lines = np.unique(np.append(np.arange(0, grd.lines, 10), grd.lines - 1))
    (safe / f"annotation/calibration/noise-{stem}.xml").write_bytes(
        safe_xml.noise(
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


def _write_measurement(path: Path, grd: safe_xml.Grd, digital: NDArray[np.uint16]) -> None:
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


def _finish(safe: Path, products: Path, grd: safe_xml.Grd) -> dict[str, Any]:
    """Write the manifest, give the folder its true name and describe it as a STAC item."""
    grid = grd.grid
    corners = [0, 20, len(grid.line) - 1, len(grid.line) - 21]
    ring = [(float(grid.longitude[k]), float(grid.latitude[k])) for k in corners]
    manifest = safe_xml.manifest(grd, ring, safe)
    (safe / "manifest.safe").write_bytes(manifest)
    times = f"{grd.first_line:%Y%m%dT%H%M%S}_{grd.last_line:%Y%m%dT%H%M%S}"
    check = binascii.crc_hqx(manifest, 0xFFFF)  # the manifest holds the checksums of all other files
    name = f"S1A_IW_GRDH_1SDV_{times}_{grd.absolute_orbit:06d}_{grd.data_take:06X}_{check:04X}"
    final = products / f"{name}.SAFE"
    shutil.rmtree(final, ignore_errors=True)
    safe.rename(final)
    return _stac_item(name, grd, ring)


def _stac_item(name: str, grd: safe_xml.Grd, ring: list[tuple[float, float]]) -> dict[str, Any]:
    """STAC 1.0.0 item; the footprint is that of the image, wider than the land in it."""
    longitudes, latitudes = zip(*ring, strict=True)
    # The grid runs from north to south and from east to west: reversed it turns counter-clockwise.
    outline = [[round(x, 6), round(y, 6)] for x, y in (*ring, ring[0])]
    start, stop = (f"{safe_xml.utc(time)}Z" for time in (grd.first_line, grd.last_line))
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
