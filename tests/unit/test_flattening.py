"""Illuminated area: level ground, tilted planes in closed form, shadow, and what must hold for any terrain."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.windows import Window

from covermap.sentinel1 import distortion, flattening, geocoding
from tests.unit.terrain_world import Scene, grid_around, scene

INTERVAL_S, SPACING_M = 1.47e-3, 10.0


def area_of(world: Scene, threads: int = 1) -> tuple[np.ndarray, Callable[[np.ndarray, np.ndarray], tuple]]:
    """Area in a made-up ground range image of the whole grid, and the projection into it."""
    time_s, range_m = world.seen.nodes[0], world.seen.nodes[3]
    slant_spacing_m = SPACING_M * np.sin(np.radians(world.incidence[0].mean()))

    def project(t: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (t - time_s.min()) / INTERVAL_S + 50, (r - range_m.min()) / slant_spacing_m + 50

    lines, samples = (int(a.max()) + 51 for a in project(time_s, range_m))
    margin = min(distortion.reach(world.terrain.highest_m - world.terrain.lowest_m, world.incidence[0], world.grid), 64)
    area = flattening.terrain_area(
        world.terrain,
        world.seen,
        world.radii,
        world.step,
        world.grid.shape,
        project,
        Window(0, 0, samples, lines),  # with 50 around the grid
        margin,
        threads,
    )
    return area, project


def at_pixels(world: Scene) -> np.ndarray:
    """Area on the grid (y, x), read where each pixel lies in the image."""
    area, project = area_of(world)
    positions = project(*geocoding.time_and_range(world.dense(world.seen.nodes), world.height_m, world.seen))
    return geocoding.bilinear(area, *positions)


def decibels(ratio: np.ndarray) -> np.ndarray:
    return 10 * np.log10(ratio)


@pytest.mark.parametrize("azimuth", [78, 90, 283, 2])
def test_level_ground_has_gamma0_of_the_ellipsoid(azimuth):
    world = scene(azimuth, grid_around(200, 220), lambda along, across: np.full_like(along, 300.0))
    beta0 = np.float32(0.3)
    gamma0 = flattening.flatten(np.full(world.grid.shape, beta0), at_pixels(world))
    on_ellipsoid = beta0 * np.tan(np.radians(world.incidence_deg))
    inside = np.s_[45:-45, 45:-45]
    assert abs(decibels(gamma0[inside] / on_ellipsoid[inside])).max() < 0.05


@pytest.mark.parametrize("along_deg", [-35, -15, 10, 18])
@pytest.mark.parametrize("across_deg", [0, 20])
def test_tilted_plane_has_the_closed_form(along_deg, across_deg):
    def plane(along: np.ndarray, across: np.ndarray) -> np.ndarray:
        return np.tan(np.radians(along_deg)) * along + np.tan(np.radians(across_deg)) * across

    world = scene(78, grid_around(280, 280), plane)
    theta, tilt = np.radians(world.incidence_deg), np.tan(np.radians(along_deg))
    # normal n = (-tilt, -across, 1); line of sight l = (-sin, 0, cos), across it (cos, 0, sin): n.l / n.s
    expected = (np.cos(theta) + tilt * np.sin(theta)) / (np.sin(theta) - tilt * np.cos(theta))
    off = decibels(at_pixels(world) / expected)[110:-110, 110:-110]
    assert abs(off.mean()) < 0.05
    assert abs(off).max() < 0.2


def test_slope_that_faces_away_is_dark_and_noise_there_is_no_data():
    world = scene(90, grid_around(200, 240), lambda along, across: 500 - 2.5 * np.maximum(along, 0))
    area = at_pixels(world)
    mask = world.mask()
    hidden = (mask & distortion.SHADOW) != 0
    assert hidden[60:-60, 150:180].all()
    gamma0 = flattening.flatten(np.full(area.shape, np.float32(1e-3)), area)
    assert np.isnan(gamma0[60:-60, 150:180]).mean() > 0.9


def test_threads_agree():
    world = scene(78, grid_around(300, 270), lambda along, across: 80 * np.sin(along / 90) * np.cos(across / 70))
    np.testing.assert_array_equal(area_of(world, 1)[0], area_of(world, 2)[0])


@settings(deadline=None, max_examples=15)
@given(amplitude_m=st.floats(0, 60), length_m=st.floats(80, 150), azimuth=st.sampled_from([78, 282, 95]))
def test_hills_without_shadow_change_where_the_area_lies_but_not_its_sum(amplitude_m, length_m, azimuth):
    def hill(along: np.ndarray, across: np.ndarray) -> np.ndarray:
        return 100 + amplitude_m * np.exp(-(along**2 + across**2) / length_m**2)

    grid = grid_around(130, 130)
    level, hilly = (scene(azimuth, grid, height) for height in (lambda along, across: along * 0 + 100, hill))
    areas = [area_of(world)[0].sum() for world in (level, hilly)]
    assert areas[1] == pytest.approx(areas[0], rel=2e-3)  # seen from the satellite, the patch has the same outline


@given(
    power=arrays(np.float32, 12, elements=st.floats(-1, 10, width=32) | st.just(np.nan)),
    area=arrays(np.float32, 12, elements=st.floats(0, 8, width=32)),
)
def test_flattening_divides_by_the_area_and_has_no_data_in_shadow(power, area):
    out = flattening.flatten(power, area)
    seen = area >= flattening.LEAST_AREA
    assert out.dtype == np.float32
    assert np.isnan(out[~seen]).all()
    np.testing.assert_allclose(out[seen] * area[seen], power[seen], rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(flattening.flatten(2 * power, area), 2 * out, rtol=1e-6, atol=1e-30)
