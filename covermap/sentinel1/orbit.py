"""Where the satellite was: interpolation of state vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from covermap.errors import ProductError

POINTS = 8  # of the Lagrange polynomial: millimetres at the 10 s spacing of annotated state vectors


@dataclass(frozen=True)
class Orbit:
    """Earth-fixed state vectors: ``time_s`` (n), ``position_m`` and ``velocity_m_s`` (n, 3), float64."""

    time_s: np.ndarray
    position_m: np.ndarray
    velocity_m_s: np.ndarray


def state(orbit: Orbit, time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position, velocity and acceleration of the satellite by 8-point Lagrange interpolation.

    Position and velocity are interpolated each on its own, over the eight state vectors around the time; the
    acceleration is the derivative of the velocity's polynomial.

    Parameters
    ----------
    orbit : at least eight state vectors in order of time.
    time_s : float64, any shape, on the orbit's time axis.

    Returns
    -------
    float64 (..., 3) each: metres, m/s, m/s2.

    Raises
    ------
    ProductError
        There are fewer than eight state vectors, or they are not in order of time.
    """
    count = len(orbit.time_s)
    if count < POINTS or not (np.diff(orbit.time_s) > 0).all():
        raise ProductError(f"the orbit has {count} state vectors: expected at least {POINTS} in order of time")
    times = np.asarray(time_s, np.float64)
    first = np.clip(np.searchsorted(orbit.time_s, times) - POINTS // 2, 0, count - POINTS)
    out = np.full((*times.shape, 9), np.nan)
    for start in np.unique(first):
        here = (first == start) & np.isfinite(times)
        out[here] = _polynomial(orbit, slice(start, start + POINTS), times[here])
    return out[..., :3], out[..., 3:6], out[..., 6:]


def _polynomial(orbit: Orbit, nodes: slice, time_s: np.ndarray) -> np.ndarray:
    """Position, velocity and acceleration (n, 9) of the one polynomial through the state vectors ``nodes``."""
    times = orbit.time_s[nodes]
    middle, scale = (times[0] + times[-1]) / 2, (times[-1] - times[0]) / 2
    values = np.concatenate([orbit.position_m[nodes], orbit.velocity_m_s[nodes]], axis=1)
    coefficients = np.linalg.solve(np.vander((times - middle) / scale, increasing=True), values)
    velocity = coefficients[:, 3:]
    derivative = np.concatenate([velocity[1:] * np.arange(1, POINTS)[:, None] / scale, np.zeros((1, 3))])
    powers = np.vander((time_s - middle) / scale, POINTS, increasing=True)
    return powers @ np.concatenate([coefficients, derivative], axis=1)
