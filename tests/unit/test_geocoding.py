"""Range-Doppler geometry against closed forms, first principles and what must hold for any numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from covermap.sentinel1 import geocoding
from tests.unit.sentinel1_world import (
    INTERVAL_S,
    LATITUDE,
    LONGITUDE,
    RADIUS_M,
    RATE,
    START,
    angle,
    circle,
    make_orbit,
    place,
)


def test_ecef_of_known_places():
    np.testing.assert_allclose(place(0, 0, 10), [6_378_147, 0, 0], atol=1e-6)
    np.testing.assert_allclose(place(90, 0, 0), [0, 6_378_137, 0], atol=1e-6)
    np.testing.assert_allclose(place(0, 90, 0), [0, 0, 6_356_752.314245], atol=1e-5)


def test_zero_doppler_against_the_closed_form():
    longitude, latitude = np.meshgrid(LONGITUDE + np.linspace(-1, 1, 5), LATITUDE + np.linspace(-2, 2, 7))
    xyz = geocoding.geodetic_to_ecef(longitude, latitude, 300.0)
    time_s, slant_m = geocoding.zero_doppler(make_orbit(), xyz)
    expected_s = (angle(xyz) - START) / RATE
    np.testing.assert_allclose(time_s, expected_s, atol=1e-8)
    np.testing.assert_allclose(slant_m, np.linalg.norm(xyz - circle(expected_s), axis=-1), atol=1e-3)


def test_incidence_angle_below_and_beside_the_satellite():
    time_s = np.zeros(1)
    below = circle(time_s) * (6_371_000 / RADIUS_M)
    assert geocoding.incidence_angle(make_orbit(), time_s, below)[0] == pytest.approx(0, abs=1e-3)
    u = np.arccos(6_371_000 / RADIUS_M)  # the satellite stands on this place's horizon
    horizon = 6_371_000 * (np.cos(u) * circle(time_s) / RADIUS_M + np.sin(u) * np.array([[0, 1, 0]]))
    assert geocoding.incidence_angle(make_orbit(), time_s, horizon)[0] == pytest.approx(90, abs=1e-6)


def test_ground_range_is_linear_in_time_or_takes_the_nearest_record():
    records = geocoding.GroundToSlant(np.array([0.0, 1.0]), np.zeros(2), np.array([[8e5, 0.5], [8e5, 0.4]]), 20_000.0)
    time_s = np.array([-3.0, 0.0, 0.25, 0.75, 1.0, 9.0])
    slant_m = np.full(6, 8e5 + 1000)
    expected = 1000 / np.array([0.5, 0.5, 0.475, 0.425, 0.4, 0.4])
    np.testing.assert_allclose(geocoding.ground_range(records, time_s, slant_m), expected, atol=1e-6)
    nearest = 1000 / np.array([0.5, 0.5, 0.5, 0.4, 0.4, 0.4])
    np.testing.assert_allclose(geocoding.ground_range(records, time_s, slant_m, nearest=True), nearest, atol=1e-6)
    far = geocoding.ground_range(records, np.zeros(3), np.array([7e5, np.nan, 9e5]))
    np.testing.assert_allclose(far, [-10_000, np.nan, 30_000])


def test_geometry_between_nodes_errs_by_less_than_a_thousandth_of_a_pixel():
    step, orbit = 16, make_orbit()
    rng = np.random.default_rng(1)
    height_m = rng.uniform(0, 4000, (193, 193))
    row, column = np.mgrid[:193, :193]
    longitude, latitude = LONGITUDE + column / 11_131.9, LATITUDE - row / 11_057.0
    seen = geocoding.sight(orbit, longitude[::step, ::step], latitude[::step, ::step], 0, 4000)
    layers = geocoding.refine(seen.nodes, step, range(193), 193)
    time_s, slant_m = geocoding.time_and_range(layers, height_m, seen)
    dense_s, dense_m = geocoding.zero_doppler(orbit, geocoding.geodetic_to_ecef(longitude, latitude, height_m))
    assert abs(time_s - dense_s).max() / INTERVAL_S < 0.001
    assert abs(slant_m - dense_m).max() / 0.6 / 10 < 0.001


def test_refine_is_exact_for_planes_and_strips_fit_together():
    row, column = np.mgrid[:9, :11].astype(float)
    plane = (3 * row - 2 * column + 1)[None]
    nodes = np.array([[[3 * i - 2 * j + 1 for j in (0, 4, 8, 12)] for i in (0, 4, 8)]], float)
    whole = geocoding.refine(nodes, 4, range(9), 11)
    np.testing.assert_allclose(whole, plane)
    np.testing.assert_array_equal(geocoding.refine(nodes, 4, range(5, 9), 11), whole[:, 5:])


def test_bilinear_half_pixels_edges_and_no_data():
    image = np.array([[1, 2, 4], [3, 4, np.nan]], np.float32)
    row = np.array([0.0, 0.5, 0.0, -0.5, -0.51, 1.0, 0.4, 0.6, 1.49, np.nan])
    column = np.array([1.0, 0.5, 1.5, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0])
    expected = [2, 2.5, 3, 1, np.nan, np.nan, 4, np.nan, 3, np.nan]
    np.testing.assert_allclose(geocoding.bilinear(image, row, column), expected)


# ---- bistatic shift and path delay ----


def sent_at(target: np.ndarray) -> float:
    """When the pulse leaves whose echo is at zero Doppler: its way there and back, between moving ends, is shortest."""

    def way_m(sent: float) -> float:
        received = sent
        for _ in range(6):
            both = np.linalg.norm(target - circle(np.array(sent))) + np.linalg.norm(target - circle(np.array(received)))
            received = sent + both / geocoding.SPEED_OF_LIGHT_M_S
        return float(both)

    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if way_m(middle + 0.2) < way_m(middle - 0.2) else (low, middle)
    return middle


@pytest.mark.parametrize("longitude", [LONGITUDE - 0.5, LONGITUDE, LONGITUDE + 0.7])
def test_bistatic_shift_follows_from_pulses_sent_and_received(longitude):
    target = place(longitude, LATITUDE, 100.0)
    time_s, range_m = geocoding.zero_doppler(make_orbit(), target)
    reference_m = float(geocoding.zero_doppler(make_orbit(), place(LONGITUDE, LATITUDE, 0.0))[1])
    # all samples of a line carry the time of sending, moved by the processor to suit the reference range
    line_s = sent_at(target) + reference_m / geocoding.SPEED_OF_LIGHT_M_S
    shift_s = float(geocoding.bistatic_shift(range_m, reference_m))
    assert line_s - time_s == pytest.approx(shift_s, abs=2e-8)
    assert np.sign(shift_s) == -np.sign(round(longitude - LONGITUDE, 3)) or abs(shift_s) < 1e-6  # far places come early


def test_path_delay_has_its_known_values_and_lengthens_the_range():
    assert geocoding.path_delay(0, np.array(0.0)) == pytest.approx(2.3)
    assert geocoding.path_delay(6000, np.array(60.0)) == pytest.approx(4.6 / np.e)
    degrees = LONGITUDE + np.array([[0, 0.01], [0, 0.01]]), LATITUDE + np.array([[0.01, 0.01], [0, 0]])
    plain = geocoding.sight(make_orbit(), *degrees, 0, 4000)
    delayed = geocoding.sight(make_orbit(), *degrees, 0, 4000, delayed=True)
    for height_m in (0, 700, 2600, 4000):
        ranges = [geocoding.time_and_range(seen.nodes, height_m, seen)[1] for seen in (delayed, plain)]
        xyz = geocoding.geodetic_to_ecef(*degrees, height_m)
        angles = geocoding.incidence_angle(make_orbit(), geocoding.zero_doppler(make_orbit(), xyz)[0], xyz)
        np.testing.assert_allclose(ranges[0] - ranges[1], geocoding.path_delay(height_m, angles), atol=0.01)


def test_sight_moves_times_by_the_bistatic_shift_alone():
    degrees = LONGITUDE + np.array([[0, 0.5], [0, 0.5]]), LATITUDE + np.array([[0.01, 0.01], [0, 0]])
    plain = geocoding.sight(make_orbit(), *degrees, 0, 100)
    moved = geocoding.sight(make_orbit(), *degrees, 0, 100, bistatic_reference_m=700_000.0)
    np.testing.assert_array_equal(moved.nodes[3:], plain.nodes[3:])
    expected = geocoding.bistatic_shift(plain.nodes[3], 700_000.0)
    np.testing.assert_allclose(moved.nodes[0] - plain.nodes[0], expected, atol=1e-9)


@given(height_m=st.floats(-400, 8800), incidence_deg=st.floats(18, 47))
def test_path_delay_falls_with_height_and_grows_with_incidence(height_m, incidence_deg):
    delay = geocoding.path_delay(height_m, np.array(incidence_deg))
    assert 0 < geocoding.path_delay(height_m + 100, np.array(incidence_deg)) < delay
    assert geocoding.path_delay(height_m, np.array(incidence_deg + 1)) > delay
    assert delay < 2.3 * np.exp(400 / 6000) / np.cos(np.radians(48))


# ---- properties ----


@settings(deadline=None)
@given(longitude=st.floats(0.5, 6), latitude=st.floats(-3, 5), height_m=st.floats(-400, 8800))
def test_zero_doppler_is_the_nearest_approach(longitude, latitude, height_m):
    xyz = place(longitude, latitude, height_m)
    time_s, range_m = geocoding.zero_doppler(make_orbit(), xyz)
    for aside in (-0.05, 0.05):
        assert np.linalg.norm(xyz - circle(time_s + aside)) > range_m


@given(longitude=st.floats(-180, 180), latitude=st.floats(-90, 90), height_m=st.floats(-400, 8800))
def test_ecef_lies_on_the_ellipsoid_raised_along_its_normal(longitude, latitude, height_m):
    low, high = place(longitude, latitude, 0.0), place(longitude, latitude, height_m)
    polar_m = geocoding.WGS84_A_M * np.sqrt(1 - geocoding.WGS84_E2)
    assert (low[:2] @ low[:2]) / geocoding.WGS84_A_M**2 + (low[2] / polar_m) ** 2 == pytest.approx(1, abs=1e-12)
    assert np.linalg.norm(high - low) == pytest.approx(abs(height_m), abs=1e-6)


@given(ground_m=arrays(float, 20, elements=st.floats(0, 200_000)), time_s=arrays(float, 20, elements=st.floats(-2, 3)))
def test_ground_range_inverts_the_polynomials(ground_m, time_s):
    records = geocoding.GroundToSlant(
        np.array([-0.5, 0.5, 1.5]),
        np.zeros(3),
        np.array([[8e5, 0.5, 1.2e-6], [800_010.0, 0.4999, 1.21e-6], [800_020.0, 0.4998, 1.22e-6]]),
        200_000.0,
    )
    a, b, c = (np.interp(time_s, records.time_s, column) for column in records.coefficients.T)
    slant_m = a + b * ground_m + c * ground_m**2
    np.testing.assert_allclose(geocoding.ground_range(records, time_s, slant_m), ground_m, atol=1e-4)


@given(
    image=arrays(np.float32, (5, 6), elements=st.floats(-1, 1, width=32) | st.just(np.nan)),
    row=arrays(float, 30, elements=st.floats(-2, 7)),
    column=arrays(float, 30, elements=st.floats(-2, 8)),
)
def test_bilinear_keeps_within_the_values_and_has_data_where_the_nearest_pixel_has(image, row, column):
    out = geocoding.bilinear(image, row, column)
    nearest = np.floor(np.stack([row, column]) + 0.5).astype(int)
    inside = (nearest >= 0).all(axis=0) & (nearest < np.array(image.shape)[:, None]).all(axis=0)
    known = np.zeros(30, bool)
    known[inside] = ~np.isnan(image[tuple(nearest[:, inside])])
    np.testing.assert_array_equal(~np.isnan(out), known)
    if known.any():
        assert np.nanmin(image) - 1e-6 <= np.nanmin(out) and np.nanmax(out) <= np.nanmax(image) + 1e-6


@given(nodes=arrays(float, (2, 4, 5), elements=st.floats(-1e3, 1e3)), step=st.integers(1, 9))
def test_refine_has_the_nodes_at_the_nodes_and_keeps_between_them(nodes, step):
    out = geocoding.refine(nodes, step, range(3 * step + 1), 4 * step + 1)
    np.testing.assert_allclose(out[:, ::step, ::step], nodes, atol=1e-9)
    assert nodes.min() - 1e-9 <= out.min() and out.max() <= nodes.max() + 1e-9


def test_incidence_angle_between_nodes_and_heights():
    longitude, latitude = LONGITUDE + np.array([[0, 0.3], [0, 0.3]]), LATITUDE + np.array([[0.1, 0.1], [0, 0]])
    seen = geocoding.sight(make_orbit(), longitude, latitude, 0, 4000)
    layers = geocoding.incidence_nodes(make_orbit(), longitude, latitude, seen)
    for height_m in (0.0, 1300.0, 4000.0):
        xyz = geocoding.geodetic_to_ecef(longitude, latitude, height_m)
        expected = geocoding.incidence_angle(make_orbit(), geocoding.zero_doppler(make_orbit(), xyz)[0], xyz)
        np.testing.assert_allclose(geocoding.incidence_at(layers, height_m, seen), expected, atol=3e-4)
    assert (layers[0][:, 1] > layers[0][:, 0]).all()  # farther from the track
    assert (layers[1] > 0).all()
