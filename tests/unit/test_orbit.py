"""Orbits: interpolation against a circle, orbit files, and which one a scene gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covermap.errors import ProductError, SettingError
from covermap.orbits import choose_orbit
from covermap.sentinel1 import safe
from covermap.sentinel1.orbit import Orbit, read_orbit_file, state
from tests.unit.sentinel1_world import (
    RADIUS_M,
    RATE,
    START,
    circle,
    make_orbit,
    write_eof,
    write_safe,
)


def sampled(time_s: np.ndarray) -> Orbit:
    u = START + RATE * time_s
    return Orbit(time_s, circle(time_s), RADIUS_M * RATE * np.stack([-np.sin(u), 0 * u, np.cos(u)], axis=-1))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> safe.Image:
    return safe.images(safe.open_product(write_safe(tmp_path_factory.mktemp("product"))))["VV"]


# ---- interpolation ----


def test_orbit_is_reproduced_between_its_state_vectors():
    times = np.linspace(-70, 70, 141)
    position, velocity, acceleration = state(make_orbit(), times)
    np.testing.assert_allclose(position, circle(times), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(velocity, axis=1), RADIUS_M * RATE, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(acceleration, axis=1), RADIUS_M * RATE**2, rtol=1e-6)


@given(spacing_s=st.floats(0.9, 60), start_s=st.floats(-60, 0), at=st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_interpolation_is_exact_to_a_tenth_of_a_millimetre_at_every_spacing(spacing_s, start_s, at):
    orbit = sampled(start_s + spacing_s * np.arange(16))
    times = orbit.time_s[3] + np.array(at) * 9 * spacing_s  # four state vectors or more on either side
    position, velocity, acceleration = state(orbit, times)
    exact = circle(times)
    speed = RATE * np.stack([-exact[:, 2], exact[:, 1], exact[:, 0]], axis=1)
    np.testing.assert_allclose(position, exact, atol=1e-4)
    np.testing.assert_allclose(velocity, speed, atol=1e-6)
    np.testing.assert_allclose(acceleration, -(RATE**2) * exact, atol=1e-5)


@given(st.integers(0, 15))
def test_state_vectors_are_reproduced_whatever_their_spacing(index):
    rng = np.random.default_rng(3)
    time_s = np.cumsum(rng.uniform(1, 10, 16))
    orbit = sampled(time_s)
    position, velocity, _ = state(orbit, time_s[index])
    np.testing.assert_allclose(position, orbit.position_m[index], atol=1e-5)
    np.testing.assert_allclose(velocity, orbit.velocity_m_s[index], atol=1e-8)


def test_rounding_of_state_vectors_a_second_apart_is_not_blown_up():
    orbit = sampled(np.arange(-20.0, 21.0))
    rounded = Orbit(orbit.time_s, orbit.position_m.round(3), orbit.velocity_m_s.round(6))
    times = np.linspace(-10, 10, 77)
    position, _, acceleration = state(rounded, times)
    np.testing.assert_allclose(position, circle(times), atol=1e-3)
    np.testing.assert_allclose(acceleration, -(RATE**2) * circle(times), atol=1e-4)


def test_no_time_has_no_place():
    assert all(np.isnan(part).all() for part in state(make_orbit(), np.array([np.nan])))


def test_too_few_state_vectors_are_an_error():
    orbit = make_orbit()
    with pytest.raises(ProductError, match="7 state vectors"):
        state(Orbit(orbit.time_s[:7], orbit.position_m[:7], orbit.velocity_m_s[:7]), np.zeros(1))


# ---- orbit files ----


@pytest.mark.parametrize(("spacing_s", "count"), [(10.0, 20), (1.0, 200)])
@pytest.mark.parametrize(("kind", "name"), [("AUX_POEORB", "precise"), ("AUX_RESORB", "restituted")])
def test_orbit_file_is_read_around_the_image(kind, name, spacing_s, count, image, tmp_path):
    orbit = read_orbit_file(write_eof(tmp_path / "file.EOF", kind, spacing_s), image)
    assert orbit.source == name
    assert len(orbit.time_s) == count
    np.testing.assert_allclose(np.diff(orbit.time_s), spacing_s, atol=1e-6)
    assert orbit.time_s[0] < -90
    assert orbit.time_s[-1] > 90
    times = np.linspace(0, 0.35, 9)
    np.testing.assert_allclose(state(orbit, times)[0], circle(times), atol=1e-4)


def test_the_annotated_orbit_says_so(image):
    assert image.orbit.source == "annotation"


def test_a_vector_within_a_leap_second_is_passed_over(image, tmp_path):
    path = write_eof(tmp_path / "file.EOF")
    text = path.read_text()
    assert text.count("UTC=2023-05-01T00:01:50.500000<") == 1
    path.write_text(text.replace("UTC=2023-05-01T00:01:50.500000<", "UTC=2023-05-01T00:01:60.500000<"))
    assert len(read_orbit_file(path, image).time_s) == 20  # it is farther than 100 s from the image


# ---- the choice ----

SCENE = "S1A_IW_GRDH_1SDV_20230823T140000_20230823T140025_049999_060000_ABCD"
PRECISE = "S1A_OPER_AUX_POEORB_OPOD_20230912T080000_V20230822T225942_20230824T005942.EOF"
PRECISE_AGAIN = "S1A_OPER_AUX_POEORB_OPOD_20240101T080000_V20230822T225942_20230824T005942.EOF"
RESTITUTED = "S1A_OPER_AUX_RESORB_OPOD_20240823T162050_V20230823T123139_20230823T154909.EOF"
OTHERS = [
    "S1B_OPER_AUX_POEORB_OPOD_20230912T080000_V20230822T225942_20230824T005942.EOF",
    "S1A_OPER_AUX_POEORB_OPOD_20230911T080000_V20230821T225942_20230823T005942.EOF",
    "S1A_OPER_AUX_PREORB_OPOD_20230823T080000_V20230823T063000_20230823T180000.EOF",
    "S1A_OPER_AUX_POEORB_OPOD_20230912T080000_V20239922T225942_20239924T005942.EOF",
    "S1A_OPER_AUX_POEORB_OPOD_20230912T080000_V20230822T225942_20230824T005942.EOF.zip",
    "notes.EOF",
]


@pytest.mark.parametrize(
    ("files", "best"),
    [
        ([], None),
        (OTHERS, None),
        ([*OTHERS, RESTITUTED], RESTITUTED),
        ([PRECISE, RESTITUTED, *OTHERS], PRECISE),
        ([PRECISE_AGAIN, PRECISE, RESTITUTED], PRECISE_AGAIN),
    ],
)
@pytest.mark.parametrize("scene", [SCENE, SCENE[:48], SCENE + "_COG"])
def test_the_best_orbit_file_is_chosen(files, best, scene, tmp_path):
    (tmp_path / "below").mkdir()
    for number, name in enumerate(files):
        (tmp_path / ("below" if number % 2 else ".") / name).touch()
    chosen = choose_orbit(tmp_path, scene)
    assert (chosen.name if chosen else None) == best


@given(
    st.integers(-7200, 7200),
    st.integers(0, 60),
)
def test_a_chosen_file_covers_the_scene_and_a_minute_around_it(tmp_path_factory, start_s, length_s):
    folder = tmp_path_factory.mktemp("orbits")
    (folder / RESTITUTED).touch()
    start = np.datetime64("2023-08-23T14:00:00") + np.timedelta64(start_s, "s")
    stop = start + np.timedelta64(length_s, "s")
    names = [str(time).replace("-", "").replace(":", "") for time in (start, stop)]
    chosen = choose_orbit(folder, f"S1A_EW_GRDM_1SDH_{names[0]}_{names[1]}_049999_060000_ABCD")
    minute = np.timedelta64(60, "s")
    covers = start - minute >= np.datetime64("2023-08-23T12:31:39") and stop + minute <= np.datetime64(
        "2023-08-23T15:49:09"
    )
    assert (chosen is not None) == covers


@pytest.mark.parametrize("scene", ["", "demo_1", "S2A_MSIL2A_20230823T140000", SCENE.replace("20230823", "20239999")])
def test_scenes_of_other_names_have_none(scene, tmp_path):
    (tmp_path / PRECISE).touch()
    assert choose_orbit(tmp_path, scene) is None


def test_a_folder_that_is_absent_is_named(tmp_path: Path):
    with pytest.raises(SettingError, match=r"sentinel1\.orbits is .*absent, which is no folder"):
        choose_orbit(tmp_path / "absent", SCENE)
