"""A real restituted orbit file: as a whole, at its ends, and against scenes that are not its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from covermap.errors import ProductError
from covermap.orbits import choose_orbit
from covermap.sentinel1 import geocoding, safe
from covermap.sentinel1.orbit import Orbit, own_name, read_orbit_file, state

FIRST, LAST = np.datetime64("2023-08-23T12:31:39.035127"), np.datetime64("2023-08-23T15:49:09.035127")


@pytest.fixture
def eof(data: Path) -> Path:
    (path,) = (data / "s1_orbits").glob("*RESORB*.EOF")
    return path


@pytest.fixture
def image(data: Path) -> safe.Image:
    """Annotation of a real scene of the same satellite, two years before."""
    (product,) = (data / "s1_grd").glob("S1A*.SAFE")
    return safe.images(safe.open_product(product))["VV"]


def moved(image: safe.Image, first_line: np.datetime64, orbit: Orbit) -> safe.Image:
    """The same image at another time, with the orbit of that time as its annotation."""
    return replace(image, first_line=first_line, orbit=orbit)


def by_hand(eof: Path, first_line: np.datetime64) -> Orbit:
    """State vectors of the file, read line by line."""
    rows: dict[str, list[str]] = {tag: [] for tag in ("UTC", "X", "Y", "Z", "VX", "VY", "VZ")}
    for line in eof.read_text().splitlines():
        tag, _, text = line.strip().removeprefix("<").partition(">")
        if tag.split()[0:1] and tag.split()[0] in rows:
            rows[tag.split()[0]].append(text.partition("<")[0])
    time_s = (np.array([np.datetime64(text[4:], "us") for text in rows["UTC"]]) - first_line) / np.timedelta64(1, "s")
    vectors = np.array([rows[tag] for tag in ("X", "Y", "Z", "VX", "VY", "VZ")], float).T
    return Orbit(time_s, vectors[:, :3], vectors[:, 3:])


def test_a_renamed_file_still_tells_its_own_name(eof, tmp_path):
    assert own_name(Path(shutil.copy(eof, tmp_path / "scene.EOF"))) == eof.name


@pytest.mark.parametrize("after_s", [100.0, 3600.25, 11_700.0])
def test_vectors_around_an_image_are_those_of_the_file(after_s, eof, image):
    first_line = FIRST + np.timedelta64(round(after_s * 1e6), "us")
    whole = by_hand(eof, first_line)
    assert len(whole.time_s) == 1186
    orbit = read_orbit_file(eof, moved(image, first_line, whole))
    assert orbit.source == "restituted"
    near = (whole.time_s > -100) & (whole.time_s < image.lines * image.line_interval_s + 100)
    assert near.sum() == len(orbit.time_s)
    np.testing.assert_allclose(orbit.time_s, whole.time_s[near], atol=1e-9)
    np.testing.assert_array_equal(orbit.position_m, whole.position_m[near])
    np.testing.assert_array_equal(orbit.velocity_m_s, whole.velocity_m_s[near])


@pytest.mark.parametrize(("every", "error_m"), [(2, 5e-5), (4, 5e-4), (6, 2e-3)])
def test_interpolation_finds_vectors_that_are_left_out(every, error_m, eof):
    """State vectors 20, 40 and 60 s apart give back those between them."""
    whole = by_hand(eof, FIRST)
    coarse = Orbit(whole.time_s[::every], whole.position_m[::every], whole.velocity_m_s[::every])
    inside = slice(8 * every + every // 2, -8 * every, every)
    position, velocity, _ = state(coarse, whole.time_s[inside])
    assert np.abs(position - whole.position_m[inside]).max() < error_m
    assert np.abs(velocity - whole.velocity_m_s[inside]).max() < error_m


def test_velocity_is_the_derivative_of_position(eof):
    whole = by_hand(eof, FIRST)
    times = np.linspace(100, 11_000, 200)
    ahead, behind = (state(whole, times + sign)[0] for sign in (0.05, -0.05))
    velocity, acceleration = state(whole, times)[1:]
    np.testing.assert_allclose((ahead - behind) / 0.1, velocity, atol=1e-3)
    ahead, behind = (state(whole, times + sign)[1] for sign in (0.05, -0.05))
    np.testing.assert_allclose((ahead - behind) / 0.1, acceleration, atol=1e-4)


def test_geometry_by_the_file_is_that_of_its_vectors(eof, image):
    """A place 850 km beside the track at the middle of the image is found there, whichever part of the file is read."""
    first_line = FIRST + np.timedelta64(3_000_000_000, "us")
    whole = by_hand(eof, first_line)
    orbit = read_orbit_file(eof, moved(image, first_line, whole))
    middle = np.array([image.lines * image.line_interval_s / 2])
    position, velocity, _ = state(whole, middle)
    beside = np.cross(velocity, position)
    place = position - 650_000 * position / np.linalg.norm(position) - 540_000 * beside / np.linalg.norm(beside)
    at_right_angles = place - ((place - position) * velocity).sum() / (velocity**2).sum() * velocity
    time_s, slant_m = geocoding.zero_doppler(orbit, at_right_angles)
    assert time_s == pytest.approx(middle, abs=1e-7)
    assert slant_m == pytest.approx(np.linalg.norm(at_right_angles - position), abs=1e-3)


def test_a_scene_of_another_day_and_another_satellite_is_refused(eof, image, data):
    with pytest.raises(ProductError, match=r"has state vectors from 2023-08-23T12:31:39\.035127 to .* 2021-08-09"):
        read_orbit_file(eof, image)
    (other,) = (data / "s1_grd").glob("S1B*.SAFE")
    with pytest.raises(ProductError, match=r"is of S1A, but the scene .* of S1B"):
        read_orbit_file(eof, safe.images(safe.open_product(other))["VV"])


@pytest.mark.parametrize("first_line", [FIRST + np.timedelta64(20, "s"), LAST - np.timedelta64(50, "s")])
def test_an_image_at_the_end_of_the_file_is_refused(first_line, eof, image):
    with pytest.raises(ProductError, match="expected 4 of them before and 4 behind"):
        read_orbit_file(eof, moved(image, first_line, by_hand(eof, first_line)))


def test_an_orbit_elsewhere_than_annotated_is_refused(eof, image):
    """Two years before: the annotated positions are of another place."""
    with pytest.raises(ProductError, match="km from the orbit in the annotation"):
        read_orbit_file(eof, replace(image, first_line=FIRST + np.timedelta64(3000, "s")))


def test_the_file_is_chosen_for_a_scene_within_it(eof, tmp_path):
    shutil.copy(eof, tmp_path)
    inside = "S1A_IW_GRDH_1SDV_20230823T140000_20230823T140025_049999_060000_ABCD"
    assert choose_orbit(tmp_path, inside) == tmp_path / eof.name
    assert choose_orbit(tmp_path, inside.replace("S1A", "S1B")) is None
    assert choose_orbit(tmp_path, "S1A_IW_GRDH_1SDV_20210809T173953_20210809T174018_039156_049F13_6FF8") is None
