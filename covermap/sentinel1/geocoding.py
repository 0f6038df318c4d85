"""Range-Doppler terrain correction: where a place on the ground lies in the radar image, and its value there.

Positions in a raster count from the centre of its first pixel: line 0 and sample 0 of the annotation are centres.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from covermap.sentinel1.orbit import Orbit, state

SPEED_OF_LIGHT_M_S = 299_792_458.0
WGS84_A_M = 6_378_137.0
WGS84_E2 = 0.0066943799901413165  # first eccentricity squared
NEWTON_STEPS = 20
TIME_TOLERANCE_S = 1e-10
RANGE_TOLERANCE_M = 0.1  # of a step of Newton's method, which leaves an error of 1e-8 m
ZENITH_DELAY_M, DELAY_HEIGHT_M = 2.3, 6_000.0  # of the atmosphere at the ellipsoid, and where it has fallen to 1 / e
OUTSIDE_M = 10_000.0  # range polynomials mean nothing far outside the image


def geodetic_to_ecef(longitude_deg: np.ndarray, latitude_deg: np.ndarray, height_m: np.ndarray | float) -> np.ndarray:
    """Earth-centred, Earth-fixed coordinates (..., 3) [m] of WGS 84 longitude, latitude and ellipsoidal height."""
    longitude, latitude = np.radians(longitude_deg), np.radians(latitude_deg)
    normal_m = WGS84_A_M / np.sqrt(1 - WGS84_E2 * np.sin(latitude) ** 2)
    flat = (normal_m + height_m) * np.cos(latitude)
    up = (normal_m * (1 - WGS84_E2) + height_m) * np.sin(latitude)
    return np.stack(np.broadcast_arrays(flat * np.cos(longitude), flat * np.sin(longitude), up), axis=-1)


def zero_doppler(orbit: Orbit, xyz_m: np.ndarray, start_s: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Time at which the satellite passes a place at right angles to its velocity, and its distance then.

    Newton's method on (x - P(t)) . V(t) = 0, the stop-and-go geometry of the annotated geolocation grid: no bistatic
    term, no atmospheric delay.

    Parameters
    ----------
    orbit : state vectors.
    xyz_m : float64 (..., 3), Earth-fixed; NaN stays NaN.
    start_s : times (...) near the answer, to be quicker.

    Returns
    -------
    time_s, slant_range_m : float64 (...). Times never leave the orbit's own span.
    """
    time_s = np.where(np.isnan(xyz_m[..., 0]), np.nan, orbit.time_s.mean() if start_s is None else start_s)
    for _ in range(NEWTON_STEPS):
        position, velocity, acceleration = state(orbit, time_s)
        sight = xyz_m - position
        slope = (sight * acceleration).sum(-1) - (velocity**2).sum(-1)
        better = np.clip(time_s - (sight * velocity).sum(-1) / slope, orbit.time_s[0], orbit.time_s[-1])
        change = np.abs(better - time_s)
        time_s = better
        if not (change > TIME_TOLERANCE_S).any():
            break
    return time_s, np.linalg.norm(xyz_m - state(orbit, time_s)[0], axis=-1)


def incidence_angle(orbit: Orbit, time_s: np.ndarray, xyz_m: np.ndarray) -> np.ndarray:
    """Angle [degrees] at a place (..., 3) between the direction away from the Earth's centre and that to the satellite.

    This is the incidence angle of the annotation; the one from the ellipsoid's normal differs by up to 0.04 degrees.
    """
    towards = state(orbit, time_s)[0] - xyz_m
    lengths = np.linalg.norm(towards, axis=-1) * np.linalg.norm(xyz_m, axis=-1)
    return np.degrees(np.arccos((towards * xyz_m).sum(-1) / lengths))


def bistatic_shift(slant_range_m: np.ndarray, reference_m: float) -> np.ndarray:
    """Seconds by which a place lies later in the image than its zero-Doppler time.

    The satellite flies on while a pulse is under way. An echo belongs to the place halfway between sending and
    receiving, range / c after sending, but all samples of a line carry one time; the processor has moved that time to
    suit one reference range. A place beyond it comes out too early: -(range - reference) / c. In IW that is at most
    0.3 ms (2 m) towards either edge of the swath.

    SNAP 14 adds such a term with the opposite sign and near range as reference. The sign here follows from the
    geometry, and is that of Schubert et al. 2015 (doi:10.3390/rs70709431) and Gisinger et al. 2021
    (doi:10.1109/TGRS.2019.2961248, equation 21), whose offset of each sub-swath, a few tenths of a millisecond, is left
    out.

    Parameters
    ----------
    slant_range_m : float64, any shape.
    reference_m : slant range in the middle of the swath.
    """
    return -(slant_range_m - reference_m) / SPEED_OF_LIGHT_M_S


def path_delay(height_m: np.ndarray | float, incidence_deg: np.ndarray) -> np.ndarray:
    """Metres by which the atmosphere makes a slant range look longer: the image shows a place that much farther away.

    A standard atmosphere, 2.3 m at the zenith of the ellipsoid, falling by e every 6 km (Breit et al. 2010,
    doi:10.1109/TGRS.2009.2035497); the weather moves it by some decimetres.
    """
    return ZENITH_DELAY_M * np.exp(-np.asarray(height_m) / DELAY_HEIGHT_M) / np.cos(np.radians(incidence_deg))


@dataclass(frozen=True)
class GroundToSlant:
    """Records of the conversion of ground to slant range: polynomials in ground range, valid up to ``longest_m``.

    ``time_s`` and ``origin_m`` (n), ``coefficients`` (n, m) in ascending powers, in metres.
    """

    time_s: np.ndarray
    origin_m: np.ndarray
    coefficients: np.ndarray
    longest_m: float


def ground_range(
    conversion: GroundToSlant, time_s: np.ndarray, slant_range_m: np.ndarray, *, nearest: bool = False
) -> np.ndarray:
    """Ground range [m] from the first sample, by Newton's method on the annotated ground to slant range polynomials.

    Their coefficients are linear in azimuth time between records, as in SNAP and the ASAR handbook. ``nearest`` takes
    the nearest record alone: the rule of the annotated geolocation grid; it jumps by up to ten pixels between records.
    (The annotated inverse polynomials are fits to these, and deviate by up to 0.01 pixels.)

    Parameters
    ----------
    conversion : records in order of time.
    time_s, slant_range_m : float64, one shape.

    Returns
    -------
    float64 of that shape; places outside the image come out no farther than ``OUTSIDE_M`` from it.
    """
    out = np.empty(np.shape(slant_range_m))
    records = np.column_stack([conversion.coefficients, conversion.origin_m])
    seconds, ranges = np.ravel(time_s), np.ravel(slant_range_m)
    _ground_range(conversion.time_s, records, conversion.longest_m, nearest, seconds, ranges, out.reshape(-1))
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _ground_range(times, records, longest, nearest, seconds, slant_range, out):  # type: ignore[no-untyped-def]
    after, ground = 0, longest / 2
    record = np.empty(records.shape[1])
    for i in range(out.size):
        out[i] = np.nan
        if slant_range[i] != slant_range[i]:
            continue
        while after < times.size and times[after] <= seconds[i]:
            after += 1
        while after > 0 and times[after - 1] > seconds[i]:
            after -= 1
        a, b = max(after - 1, 0), min(after, times.size - 1)
        weight = (seconds[i] - times[a]) / (times[b] - times[a]) if b > a else 0.0
        if nearest:
            weight = np.round(weight)
        for k in range(record.size):
            record[k] = records[a, k] + weight * (records[b, k] - records[a, k])
        for _ in range(NEWTON_STEPS):  # mostly two, since the start is the solution of the pixel before
            x = ground - record[-1]
            value, slope = 0.0, 0.0
            for k in range(record.size - 2, -1, -1):
                slope = slope * x + value
                value = value * x + record[k]
            better = min(max(ground - (value - slant_range[i]) / slope, -OUTSIDE_M), longest + OUTSIDE_M)
            change = abs(better - ground)
            ground = better
            if change < RANGE_TOLERANCE_M:
                break
        out[i] = ground


@dataclass(frozen=True)
class Sight:
    """Time and slant range at nodes over the ground, as polynomials of height.

    ``nodes`` (6, y, x): three coefficients of zero-Doppler time [s], then three of slant range [m], in powers of
    ``(height - middle_m) / half_m``.
    """

    nodes: np.ndarray
    middle_m: float
    half_m: float


def sight(
    orbit: Orbit,
    longitude_deg: np.ndarray,
    latitude_deg: np.ndarray,
    lowest_m: float,
    highest_m: float,
    *,
    bistatic_reference_m: float | None = None,
    delayed: bool = False,
) -> Sight:
    """Geometry at nodes (y, x), exact at the lowest, middle and highest height.

    Between these the parabola errs by less than a millimetre over 4 km of relief. Between nodes 160 m apart linear
    interpolation errs by at most 5 mm in slant range, 1e-3 samples and 1e-5 lines (tested over whole real scenes).

    Parameters
    ----------
    orbit : state vectors.
    longitude_deg, latitude_deg : float64 (y, x).
    lowest_m, highest_m : ellipsoidal heights that occur.
    bistatic_reference_m : slant range for :func:`bistatic_shift`; None leaves the times of zero Doppler.
    delayed : lengthen slant ranges by :func:`path_delay`.
    """
    middle, half = (lowest_m + highest_m) / 2, max((highest_m - lowest_m) / 2, 1.0)

    def solved(height_m: float, near_s: np.ndarray | None = None) -> np.ndarray:
        place = geodetic_to_ecef(longitude_deg, latitude_deg, height_m)
        time_s, range_m = zero_doppler(orbit, place, near_s)
        delay_m = path_delay(height_m, incidence_angle(orbit, time_s, place)) if delayed else 0.0
        shift_s = 0.0 if bistatic_reference_m is None else bistatic_shift(range_m, bistatic_reference_m)
        return np.stack([time_s + shift_s, range_m + delay_m])

    at = solved(middle)
    below, above = (solved(middle + u * half, at[0]) for u in (-1, 1))
    curve = np.stack([at, (above - below) / 2, (above + below) / 2 - at], axis=1)
    return Sight(curve.reshape(6, *longitude_deg.shape), middle, half)


def incidence_nodes(orbit: Orbit, longitude_deg: np.ndarray, latitude_deg: np.ndarray, seen: Sight) -> np.ndarray:
    """Incidence angle on the ellipsoid (2, y, x) [degrees] at nodes: at ``seen.middle_m``, and its change to
    ``seen.half_m`` above; linear in height in between (see :func:`incidence_at`), which errs by 3e-4 over 4 km."""

    def solved(height_m: float) -> np.ndarray:
        place = geodetic_to_ecef(longitude_deg, latitude_deg, height_m)
        return incidence_angle(orbit, zero_doppler(orbit, place)[0], place)

    below, above = (solved(seen.middle_m + u * seen.half_m) for u in (-1, 1))
    return np.stack([(below + above) / 2, (above - below) / 2])


def incidence_at(layers: np.ndarray, height_m: np.ndarray | float, seen: Sight) -> np.ndarray:
    """Incidence angle on the ellipsoid [degrees] at heights, from the two layers of :func:`incidence_nodes` there."""
    return layers[0] + layers[1] * ((height_m - seen.middle_m) / seen.half_m)


def time_and_range(layers: np.ndarray, height_m: np.ndarray | float, seen: Sight) -> tuple[np.ndarray, np.ndarray]:
    """Zero-Doppler time [s] and slant range [m] at heights, from the six layers of a :class:`Sight` at those places."""
    u = (height_m - seen.middle_m) / seen.half_m
    return (layers[2] * u + layers[1]) * u + layers[0], (layers[5] * u + layers[4]) * u + layers[3]


def refine(nodes: np.ndarray, step: int, rows: range, columns: int) -> np.ndarray:
    """Values at pixels from nodes at every ``step``-th pixel, bilinear.

    Parameters
    ----------
    nodes : float64 (layer, y, x); node (i, j) is pixel (i step, j step); the last nodes reach the last pixels.
    step : pixels from node to node.
    rows : rows of pixels that are wanted.
    columns : number of pixels in a row.

    Returns
    -------
    float64 (layer, row, column).
    """
    out = np.empty((len(nodes), len(rows), columns))
    _refine(nodes, step, rows.start, out)
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _refine(nodes, step, start, out):  # type: ignore[no-untyped-def]
    layers, rows, columns = out.shape
    last_y, last_x = nodes.shape[1] - 2, nodes.shape[2] - 2
    for layer in range(layers):
        for row in range(rows):
            y = min((start + row) // step, last_y)
            down = (start + row - y * step) / step
            line = nodes[layer, y] + down * (nodes[layer, y + 1] - nodes[layer, y])
            for column in range(columns):
                x = min(column // step, last_x)
                out[layer, row, column] = line[x] + (column - x * step) / step * (line[x + 1] - line[x])


def bilinear(image: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Values of an image between its pixels.

    A position has data where its nearest pixel has data; the other neighbours count as far as they have data, so no
    data neither bleeds nor grows or shrinks.

    Parameters
    ----------
    image : float32 (y, x), NaN = no data.
    row, column : float64, one shape; 0 is the centre of the first pixel. NaN or outside the image: NaN.

    Returns
    -------
    float32 of the shape of ``row``.
    """
    out = np.empty(row.shape, np.float32)
    _bilinear(image, row.ravel(), column.ravel(), out.reshape(-1))
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _bilinear(image, row, column, out):  # type: ignore[no-untyped-def]
    rows, columns = image.shape
    for i in range(out.size):
        y, x = row[i], column[i]
        out[i] = np.nan
        if not (-0.5 <= y < rows - 0.5 and -0.5 <= x < columns - 0.5):
            continue
        nearest = image[min(int(y + 0.5), rows - 1), min(int(x + 0.5), columns - 1)]
        if nearest != nearest:
            continue
        top, left = int(np.floor(y)), int(np.floor(x))
        down, right = y - top, x - left
        total, weights = 0.0, 0.0
        for dy in range(2):
            for dx in range(2):
                if 0 <= top + dy < rows and 0 <= left + dx < columns:
                    value = image[top + dy, left + dx]
                    if value == value:
                        weight = (down if dy else 1.0 - down) * (right if dx else 1.0 - right)
                        total += weight * value
                        weights += weight
        out[i] = total / weights
