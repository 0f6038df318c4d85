"""Layover and shadow of towers, planes and hills, against closed forms and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from covermap.sentinel1 import distortion, geocoding
from covermap.sentinel1.orbit import state
from tests.unit.terrain_world import Scene, grid_around, scene

LAYOVER, SHADOW = distortion.LAYOVER, distortion.SHADOW
SMALL = grid_around(60, 70)


@pytest.mark.parametrize("azimuth", [78, 90, 280, 3, 184])
def test_level_ground_has_neither(azimuth):
    assert not scene(azimuth, SMALL, lambda along, across: np.full_like(along, 250.0)).mask().any()


@pytest.mark.parametrize(("azimuth", "towards"), [(90, (0, 1)), (270, (0, -1)), (0, (-1, 0)), (180, (1, 0))])
def test_tower_lies_over_what_is_nearer_and_hides_what_is_farther(azimuth, towards):
    tall_m = 400.0
    grid = grid_around(301, 301)
    world = scene(azimuth, grid, lambda along, across: tall_m * (np.abs(along + 5) < 7))  # a wall across the look
    mask, theta = world.mask(), np.radians(world.incidence_deg[150, 150])
    far = np.arange(1, 140)
    nearer, farther = (mask[150 + side * far * towards[0], 150 + side * far * towards[1]] for side in (-1, 1))
    assert ((nearer & LAYOVER) != 0).sum() == pytest.approx(tall_m / np.tan(theta) / 10, abs=3)
    assert ((farther & SHADOW) != 0).sum() == pytest.approx(tall_m * np.tan(theta) / 10, abs=3)
    assert not ((nearer & SHADOW) != 0)[5:].any()
    assert not ((farther & LAYOVER) != 0)[5:].any()


@settings(deadline=None, max_examples=40)
@given(slope_deg=st.floats(-80, 80), azimuth=st.sampled_from([75, 105, 282, 10]))
def test_plane_is_all_layover_all_shadow_or_neither(slope_deg, azimuth):
    world = scene(azimuth, SMALL, lambda along, across: np.tan(np.radians(slope_deg)) * along)
    theta = world.incidence_deg.mean()
    inside = world.mask()[15:-15, 15:-15]
    if slope_deg > theta + 2:
        assert ((inside & LAYOVER) != 0).all()
    elif slope_deg < theta - 92:
        assert ((inside & SHADOW) != 0).all()
    elif theta - 88 < slope_deg < theta - 2:
        assert not inside.any()


def by_definition(world: Scene, row: int, column: int) -> tuple[bool, bool]:
    """Whether a pixel shares its slant range, and whether a nearer one hides it, on its line of equal time."""
    time_s = world.dense(world.seen.nodes[:1])[0]
    later = np.sign(time_s[1, 0] - time_s[0, 0])
    across = np.arange(world.grid.width)
    every = np.arange(len(time_s))
    rows = np.array([np.interp(later * time_s[row, column], later * time_s[:, c], every) for c in across])
    inside = (rows > 0) & (rows < world.grid.height - 1)
    rows, across = rows[inside], across[inside]
    heights = geocoding.bilinear(world.terrain.height_m, rows, across.astype(float)).astype(float)
    satellite = state(world.orbit, time_s[row, column])[0]
    x, y = world.grid.left + 10 * (across + 0.5), world.grid.top - 10 * (rows + 0.5)
    longitude, latitude = Transformer.from_crs(world.grid.crs, "EPSG:4326", always_xy=True).transform(x, y)
    place = geocoding.geodetic_to_ecef(longitude, latitude, heights)
    slant = np.linalg.norm(place - satellite, axis=1)
    look = np.arccos(-(place - satellite) @ satellite / slant / np.linalg.norm(satellite))
    me = int(np.flatnonzero(across == column)[0])
    order = np.argsort(across) if slant[-1] > slant[0] else np.argsort(-across)
    here = int(np.flatnonzero(order == me)[0])
    near, far = order[:here], order[here + 1 :]
    layover = (slant[near] > slant[me]).any() or (slant[far] < slant[me]).any()
    return bool(layover), bool((look[near] > look[me]).any())


@pytest.mark.parametrize("azimuth", [78, 283])
def test_hills_agree_with_the_definition(azimuth):
    def hills(along: np.ndarray, across: np.ndarray) -> np.ndarray:
        return 160 * np.sin(along / 130) * np.cos(across / 170) + 60 * np.sin((along + across) / 45)

    world = scene(azimuth, grid_around(150, 180), hills)
    mask = world.mask()
    rng = np.random.default_rng(3)
    pixels = np.column_stack([rng.integers(50, 100, 150), rng.integers(50, 130, 150)])
    expected = np.array([by_definition(world, *pixel) for pixel in pixels.tolist()])
    found = np.stack([(mask[tuple(pixels.T)] & bit) != 0 for bit in (LAYOVER, SHADOW)], axis=1)
    assert expected.mean(axis=0) == pytest.approx([0.5, 0.2], abs=0.3)  # both occur
    assert (found == expected).mean() > 0.96  # half a pixel on the borders


@settings(deadline=None, max_examples=30)
@given(height_m=st.floats(0, 90), length_m=st.floats(25, 120), azimuth=st.sampled_from([78, 281, 5]))
def test_gentle_terrain_is_left_out_only_where_there_is_nothing(height_m, length_m, azimuth):
    def waves(along: np.ndarray, across: np.ndarray) -> np.ndarray:
        return height_m * np.sin(along / length_m) * np.cos(across / length_m)

    world = scene(azimuth, SMALL, waves)
    rows, columns = range(SMALL.height), range(SMALL.width)
    found = distortion.layover_shadow(world.terrain, world.seen, world.radii, world.step, rows, columns, 64)
    nodes = np.concatenate([world.terrain.nodes, world.seen.nodes, world.radii])
    scale = world.seen.middle_m, world.seen.half_m
    everywhere = distortion._marched(world.terrain.height_m, nodes, world.step, scale, rows, columns, 64)
    np.testing.assert_array_equal(found, everywhere)
    if height_m / length_m < 0.2:  # 11 degrees, twice that across the corners of the bound
        assert not distortion._is_steep(world.terrain.height_m, nodes, world.step, world.seen.half_m)


def test_part_sees_the_hill_beside_it():
    world = scene(78, grid_around(200, 260), lambda along, across: 500 * np.exp(-((along**2 + across**2) / 150**2)))
    whole = world.mask()
    assert (whole & LAYOVER).any()
    beside = np.s_[80:120, 60:100]  # the hill's foot on the near side, without the hill
    part = world.mask(range(80, 120), range(60, 100))
    assert (part & LAYOVER).any()
    assert (part == whole[beside]).mean() > 0.98  # lines of equal time start elsewhere, half a pixel at most


def test_missing_heights_hide_nothing():
    world = scene(90, SMALL, lambda along, across: 400.0 * (np.abs(along + 5) < 7))
    world.terrain.height_m[:, :30] = np.nan
    mask = world.mask()
    assert not mask[:, :29].any()
    assert (mask[:, 40:] & SHADOW).any()


def test_reach_grows_with_relief_and_has_an_end():
    angles = np.array([[30.0, 45.0, np.nan]])
    assert distortion.reach(0, angles, SMALL) == distortion.reach(100, angles, SMALL) == 128
    assert distortion.reach(1000, angles, SMALL) * 10 >= 1000 / np.tan(np.radians(30)) > 1280
    assert distortion.reach(9000, angles, SMALL) * 10 <= distortion.FARTHEST_M + 320
