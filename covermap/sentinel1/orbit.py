"""Where the satellite was: state vectors of an orbit file, and their interpolation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element

import numpy as np
from numba import njit

from covermap.errors import ProductError
from covermap.sentinel1 import xml

if TYPE_CHECKING:
    from covermap.sentinel1.safe import Image

POINTS = 8  # of the Lagrange polynomial
LONGEST_SPACING_S = 60.0  # the polynomial still errs by less than a millimetre here; 1 s and 10 s are in use
MARGIN_S = 100.0  # on either side of the image: places beside it are looked for too
FARTHEST_M = 1_000.0  # from the annotated orbit; quick orbits differ by metres, one second is 7.6 km
OWN_NAME = re.compile(rb"<File_Name>\s*(S1[A-Z]_OPER_AUX_[A-Z]+ORB_OPOD_\d{8}T\d{6}_V\d{8}T\d{6}_\d{8}T\d{6})\s*</")
KINDS = {"AUX_POEORB": "precise", "AUX_RESORB": "restituted"}


@dataclass(frozen=True)
class Orbit:
    """Earth-fixed state vectors: ``time_s`` (n), ``position_m`` and ``velocity_m_s`` (n, 3), float64.

    ``source`` says where they are from: annotation, restituted or precise.
    """

    time_s: np.ndarray
    position_m: np.ndarray
    velocity_m_s: np.ndarray
    source: str = "annotation"


def read_orbit_file(path: Path, image: Image) -> Orbit:
    """State vectors of an Earth Observation CFI orbit file (``.EOF``) around an image.

    Parameters
    ----------
    path : AUX_POEORB (precise) or AUX_RESORB (restituted).
    image : annotation of the image that the orbit is for.

    Returns
    -------
    State vectors from 100 s before the image to 100 s behind it, on its time axis (UTC, seconds since its first line).

    Raises
    ------
    ProductError
        The file is broken; it is of another satellite, or does not cover the image with half of the polynomial's
        points on either side; a state vector around it is not NOMINAL, as beside a manoeuvre; or the orbit is another
        one than annotated.

    Notes
    -----
    File format: Sentinel-1 Precise Orbit Determination File Format Specification, GMES-GSEG-EOPG-FS-10-0075. Of the
    three times of a state vector (TAI, UTC, UT1) UTC is the one of the annotation; TAI tells of a leap second, and a
    file with one around the image is refused. A vector within a leap second is passed over.
    """
    source = f"orbit file {path}"
    try:
        xml.check_size(path.stat().st_size, source)
        root = xml.parse(path.read_bytes(), source)
    except OSError as error:
        raise ProductError(f"{source} cannot be read ({error}): {xml.DOWNLOAD_AGAIN}") from error
    kind = _kind(root, image, source)
    duration_s = image.lines * image.line_interval_s
    vectors = [
        vector
        for vector in xml.every(root, "Data_Block/List_of_OSVs/OSV", source)
        if not xml.text(vector, "UTC", source)[:23].endswith(":60")
    ]
    utc = np.array([xml.time(xml.text(vector, "UTC", source).removeprefix("UTC="), source) for vector in vectors])
    time_s = (utc - image.first_line) / np.timedelta64(1, "s")
    near = np.flatnonzero((time_s > -MARGIN_S) & (time_s < duration_s + MARGIN_S))
    half = POINTS // 2
    if (time_s[near] <= 0).sum() < half or (time_s[near] >= duration_s).sum() < half:
        raise ProductError(
            f"{source} has state vectors from {utc.min()} to {utc.max()} UTC, expected {half} of them before and "
            f"{half} behind the {duration_s:.1f} s from {image.first_line}: remove it from sentinel1.orbits"
        )
    vectors = [vectors[i] for i in near]
    if bad := [vector for vector in vectors if xml.text(vector, "Quality", source) != "NOMINAL"]:
        raise ProductError(
            f"{source} has {len(bad)} state vectors around {image.first_line} of quality "
            f"{xml.text(bad[0], 'Quality', source)}, expected NOMINAL: remove it from sentinel1.orbits"
        )
    tai = np.array([xml.time(xml.text(vector, "TAI", source).removeprefix("TAI="), source) for vector in vectors])
    if np.ptp(tai - utc[near]) > np.timedelta64(1, "ms"):
        raise ProductError(f"{source} has a leap second around {image.first_line}: remove it from sentinel1.orbits")
    position, velocity = (
        np.stack([xml.column(vectors, prefix + axis, source) for axis in "XYZ"], axis=1) for prefix in ("", "V")
    )
    orbit = Orbit(time_s[near], position, velocity, kind)
    check(orbit, duration_s, source)
    _check_place(orbit, image, source)
    return orbit


def own_name(path: Path) -> str:
    """Name that an orbit file tells in its header, by which SNAP looks for it, whatever it is called here."""
    with path.open("rb") as file:
        told = OWN_NAME.search(file.read(4096))
    return f"{told[1].decode()}.EOF" if told else path.name


def check(orbit: Orbit, duration_s: float, source: str) -> None:
    """That an orbit can be interpolated from the first line to ``duration_s`` behind it; ProductError where not."""
    count, steps = len(orbit.time_s), np.diff(orbit.time_s)
    if count < POINTS or not (steps > 0).all():
        raise ProductError(f"{source} has {count} state vectors, expected at least {POINTS} in order of time")
    if steps.max() > LONGEST_SPACING_S:
        raise ProductError(
            f"{source} has state vectors {steps.max():.0f} s apart, expected at most {LONGEST_SPACING_S:.0f} s: "
            f"{xml.DOWNLOAD_AGAIN}"
        )
    first, last = orbit.time_s[[0, -1]]
    if first > 0 or last < duration_s:
        raise ProductError(
            f"{source} has state vectors from {first:.0f} to {last:.0f} s after the first line, which does not cover "
            f"the {duration_s:.1f} s of the image: {xml.DOWNLOAD_AGAIN}"
        )


def _kind(root: Element, image: Image, source: str) -> str:
    """Kind of an orbit file, once its header is known to fit the image."""
    header = "Earth_Explorer_Header/"
    kind = xml.text(root, header + "Fixed_Header/File_Type", source)
    if kind not in KINDS:
        raise ProductError(f"{source} is of type {kind!r}, expected one of {', '.join(KINDS)}: remove it")
    satellite = xml.text(root, header + "Fixed_Header/Mission", source).replace("Sentinel-", "S")
    if satellite != image.mission:
        raise ProductError(
            f"{source} is of {satellite}, but the scene {image.name} of {image.mission}: expected an orbit file of the "
            f"same satellite"
        )
    for tag, expected in (("Ref_Frame", "EARTH_FIXED"), ("Time_Reference", "UTC")):
        if (found := xml.text(root, header + "Variable_Header/" + tag, source)) != expected:
            raise ProductError(f"{source} has {tag} {found!r}, expected {expected}: remove it from sentinel1.orbits")
    return KINDS[kind]


def _check_place(orbit: Orbit, image: Image, source: str) -> None:
    """A file with a wrong satellite or time scale in it is far from where the annotation says the satellite was."""
    middle = np.array([image.lines * image.line_interval_s / 2])
    apart_m = np.linalg.norm(state(orbit, middle)[0] - state(image.orbit, middle)[0])
    if apart_m > FARTHEST_M:
        raise ProductError(
            f"{source} is {apart_m / 1000:.0f} km from the orbit in the annotation of {image.name}, expected less than "
            f"{FARTHEST_M / 1000:.0f} km: remove it from sentinel1.orbits"
        )


def state(orbit: Orbit, time_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position, velocity and acceleration of the satellite by 8-point Lagrange interpolation.

    Position and velocity are interpolated each on its own, over the eight state vectors around the time, whatever
    their spacing (1 s and 10 s are in use); the acceleration is the derivative of the velocity's polynomial.

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
    polynomials = [_polynomial(orbit, slice(start, start + POINTS)) for start in range(count - POINTS + 1)]
    middle, scale, coefficients = (np.array(column) for column in zip(*polynomials, strict=True))
    out = np.empty((*times.shape, 9))
    _evaluate(times.reshape(-1), first.reshape(-1), middle, scale, coefficients, out.reshape(-1, 9))
    return out[..., :3], out[..., 3:6], out[..., 6:]


def _polynomial(orbit: Orbit, nodes: slice) -> tuple[float, float, np.ndarray]:
    """Middle and half length [s] of the state vectors ``nodes``, and the polynomials through them in ascending powers.

    The coefficients (8, 9) are of position, velocity and acceleration, of time from the middle in half lengths.
    """
    times = orbit.time_s[nodes]
    middle, scale = (times[0] + times[-1]) / 2, (times[-1] - times[0]) / 2
    values = np.concatenate([orbit.position_m[nodes], orbit.velocity_m_s[nodes]], axis=1)
    coefficients = np.linalg.solve(np.vander((times - middle) / scale, increasing=True), values)
    velocity = coefficients[:, 3:]
    derivative = np.concatenate([velocity[1:] * np.arange(1, POINTS)[:, None] / scale, np.zeros((1, 3))])
    return middle, scale, np.concatenate([coefficients, derivative], axis=1)


@njit(cache=True, nogil=True, error_model="numpy")
def _evaluate(times, first, middle, scale, coefficients, out):  # type: ignore[no-untyped-def]
    """Horner's rule; NaN stays NaN."""
    for i in range(times.size):
        which = first[i]
        u = (times[i] - middle[which]) / scale[which]
        for column in range(out.shape[1]):
            value = 0.0
            for power in range(coefficients.shape[1] - 1, -1, -1):
                value = value * u + coefficients[which, power, column]
            out[i, column] = value
