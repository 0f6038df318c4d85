"""Speckle filters against loops over the pixels, and what must hold of them for any image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from covermap.sentinel1.speckle import lee, quegan_yu, refined_lee

LOOKS = 4.4
FILTERS = {
    "lee": partial(lee, window_pixels=7, looks=LOOKS),
    "refined_lee": partial(refined_lee, looks=LOOKS),
    "quegan_yu": lambda power: quegan_yu(power[None], 7)[0],
}
each_filter = pytest.mark.parametrize("smooth", FILTERS.values(), ids=FILTERS)
Filter = Callable[[np.ndarray], np.ndarray]

LEVELS = st.floats(-0.5, 50, width=32) | st.just(np.nan) | st.just(0.0)
images = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=LEVELS)
series = arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=9), elements=LEVELS)
unhurried = settings(deadline=None)  # the first call of a filter may compile it
scales = st.sampled_from([2.0**-20, 0.25, 8.0])


def speckled(seed: int, level: np.ndarray, looks: float = LOOKS) -> np.ndarray:
    """Multiplicative speckle of unit mean on a level."""
    return (level * np.random.default_rng(seed).gamma(looks, 1 / looks, level.shape)).astype(np.float32)


def patchwork() -> np.ndarray:
    """Speckle on stripes, some means below zero, a bright point, holes."""
    row, column = np.mgrid[:31, :43]
    power = speckled(5, np.where(column // 14 % 2, 0.05, 1.0) * np.where(row > 15, 3, 1)) - 0.06
    power[(row * 43 + column) % 197 == 0] = np.nan
    power[4, 4] = 300
    return power.astype(np.float32)


def around(power: np.ndarray, row: int, column: int, half: int) -> np.ndarray:
    padded = np.pad(power.astype(float), half, constant_values=np.nan)
    return padded[row : row + 2 * half + 1, column : column + 2 * half + 1]


def lee_by_loops(power: np.ndarray, window: int, looks: float) -> np.ndarray:
    out = np.full(power.shape, np.nan)
    for row, column in np.argwhere(~np.isnan(power)):
        values = around(power, row, column, window // 2)
        values = values[~np.isnan(values)]
        mean, variance = values.mean(), values.var(ddof=1) if len(values) > 1 else 0.0
        weight = 1 - mean**2 / looks / variance if mean > 0 and variance > mean**2 / looks else 0.0
        out[row, column] = mean + weight * (power[row, column] - mean)
    return out


Y, X = np.mgrid[:7, :7]
# half windows by the 3 x 3 area (row, column) that they hold: right, upper right, top, ... anticlockwise
HALVES = {
    (1, 2): X >= 3,
    (0, 2): X >= Y,
    (0, 1): Y <= 3,
    (0, 0): X + Y <= 6,
    (1, 0): X <= 3,
    (2, 0): X <= Y,
    (2, 1): Y >= 3,
    (2, 2): X + Y >= 6,
}
PAIRS = [((1, 0), (1, 2)), ((0, 2), (2, 0)), ((0, 1), (2, 1)), ((0, 0), (2, 2))]


def refined_by_loops(power: np.ndarray, looks: float) -> np.ndarray:
    out = np.full(power.shape, np.nan)
    for row, column in np.argwhere(~np.isnan(power)):
        window = around(power, row, column, 3)
        values = window[~np.isnan(window)]
        if len(values) == 49:
            means = np.array(
                [[window[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].mean() for j in range(3)] for i in range(3)]
            )
            one, other = max(PAIRS, key=lambda pair: abs(means[pair[0]] - means[pair[1]]))
            nearer = one if abs(means[one] - means[1, 1]) < abs(means[1, 1] - means[other]) else other
            values = window[HALVES[nearer]]
        mean, variance = values.mean(), values.var(ddof=1) if len(values) > 1 else 0.0
        signal = max(0.0, (variance - mean**2 / looks) / (1 + 1 / looks)) if mean > 0 else 0.0
        out[row, column] = mean + (signal / variance if signal else 0.0) * (power[row, column] - mean)
    return out


@pytest.mark.parametrize("window", [3, 7])
def test_lee_equals_the_loop_over_pixels(window):
    power = patchwork()
    np.testing.assert_allclose(lee(power, window, LOOKS), lee_by_loops(power, window, LOOKS), rtol=1e-5, atol=1e-7)


def test_refined_lee_equals_the_loop_over_pixels():
    power = patchwork()
    np.testing.assert_allclose(refined_lee(power, LOOKS), refined_by_loops(power, LOOKS), rtol=1e-5, atol=1e-7)


def test_refined_lee_does_not_depend_on_where_its_columns_are_cut():
    power = np.tile(patchwork(), (1, 14))  # 602 columns: more than are worked on at once
    whole = refined_lee(power, LOOKS)
    np.testing.assert_array_equal(refined_lee(power[:, 490:540], LOOKS)[:, 3:-3], whole[:, 493:537])


def beyond_edge(turn: int) -> np.ndarray:
    """Distance beyond an edge through the middle of 61 x 61 pixels, in one of eight directions."""
    row, column = np.mgrid[:61, :61] - 30.0
    return row * np.sin(np.pi / 4 * turn) + column * np.cos(np.pi / 4 * turn)


@pytest.mark.parametrize("turn", range(8))
def test_refined_lee_keeps_edges_of_all_directions(turn):
    edge = np.where(beyond_edge(turn) > 0.1, 1, 0.02).astype(np.float32)
    inside = np.s_[3:-3, 3:-3]
    np.testing.assert_allclose(refined_lee(edge, LOOKS)[inside], edge[inside], rtol=1e-5)


def test_refined_lee_has_less_speckle_along_edges_than_lee():
    errors = np.zeros(2)
    for turn in range(8):
        beyond = beyond_edge(turn)
        power = speckled(turn, np.where(beyond > 0.1, 1, 0.02))
        dark = (beyond < 0.1) & (beyond > -3)
        errors += [
            np.mean(np.log(smooth(power)[dark] / 0.02) ** 2) for smooth in (FILTERS["refined_lee"], FILTERS["lee"])
        ]
    assert errors[0] < 0.75 * errors[1]


@each_filter
@unhurried
@given(power=images)
def test_no_data_stays_where_it_is_and_the_rest_is_finite(smooth: Filter, power: np.ndarray):
    np.testing.assert_array_equal(np.isnan(smooth(power)), np.isnan(power))


@each_filter
@unhurried
@given(power=images, scale=scales)
def test_the_unit_of_power_does_not_matter(smooth: Filter, power: np.ndarray, scale: float):
    power = np.where(np.abs(power) < 1e-6, 0, power)  # far from the smallest numbers of the type
    np.testing.assert_array_equal(smooth((power * scale).astype(np.float32)), smooth(power) * np.float32(scale))


@each_filter
@unhurried
@given(level=st.floats(-1, 1000, width=32), rows=st.integers(1, 12), columns=st.integers(1, 12))
def test_a_constant_field_is_kept(smooth: Filter, level: float, rows: int, columns: int):
    field = np.full((rows, columns), level, np.float32)
    np.testing.assert_allclose(smooth(field), field, rtol=2e-6)


@pytest.mark.parametrize("smooth", [FILTERS["lee"], FILTERS["refined_lee"]], ids=["lee", "refined_lee"])
@unhurried
@given(power=images)
def test_results_lie_between_the_values_of_the_window(smooth: Filter, power: np.ndarray):
    out = smooth(power)
    for row, column in np.argwhere(~np.isnan(power)):
        values = around(power, row, column, 3)
        tolerance = 1e-6 * np.nanmax(np.abs(values))
        assert np.nanmin(values) - tolerance <= out[row, column] <= np.nanmax(values) + tolerance


@pytest.mark.parametrize("smooth", [FILTERS["lee"], FILTERS["refined_lee"]], ids=["lee", "refined_lee"])
def test_points_are_kept_and_speckle_is_not(smooth: Filter):
    level = np.ones((60, 60))
    smoothed = smooth(speckled(3, level))
    assert smoothed.mean() == pytest.approx(1, abs=0.02)
    assert smoothed.var() < 0.3 / LOOKS
    level[30, 30] = 1000
    assert smooth(level.astype(np.float32))[30, 30] > 800


def test_where_the_mean_is_below_zero_the_mean_is_taken():
    below = np.random.default_rng(2).normal(-0.01, 0.02, (40, 40)).astype(np.float32)
    smooth = lee(below, 7, LOOKS)
    assert smooth[10:30, 10:30].mean() == pytest.approx(below[10:30, 10:30].mean(), abs=0.002)
    lowered = np.where(np.arange(9)[:, None] < 8, -1, 2) * np.ones((9, 9), np.float32)
    assert refined_lee(lowered.astype(np.float32), LOOKS)[4, 4] == -1


# ---- over a series of scenes ----


def test_quegan_yu_by_hand():
    powers = np.array([[[2.0, 4.0, 6.0]], [[10.0, 10.0, np.nan]], [[-1.0, -1.0, -1.0]]], np.float32)
    means = np.array([[3, 4, 5], [10, 10, np.nan], [-1, -1, -1]])
    ratios = [(2 / 3 + 1) / 2, (1 + 1) / 2, 6 / 5]  # the third scene is below the noise, the second ends early
    np.testing.assert_allclose(quegan_yu(powers, 3)[:, 0], means * ratios, rtol=1e-6)


def test_a_scene_whose_mean_is_not_above_its_noise_says_nothing_about_the_others():
    power = speckled(1, np.ones((3, 15, 15)))
    noise = np.random.default_rng(4).normal(1e-3, 0.1, (1, 15, 15)).astype(np.float32)
    alone, together = quegan_yu(power, 7), quegan_yu(np.concatenate([power, noise]), 7)[:3]
    inside = np.s_[:, 3:-3, 3:-3]
    np.testing.assert_array_equal(together[inside], alone[inside])


def test_quegan_yu_keeps_each_scene_s_mean_and_lessens_its_variance_by_the_number_of_scenes():
    levels = np.array([0.02, 0.1, 0.3, 1, 2])[:, None, None]
    power = speckled(6, levels * np.ones((5, 150, 150)))
    smooth = quegan_yu(power, 9)[:, 9:-9, 9:-9] / levels
    np.testing.assert_allclose(smooth.mean(axis=(1, 2)), 1, atol=0.01)
    expected = (1 / 5 + 1 / 81) / LOOKS
    np.testing.assert_allclose(smooth.var(axis=(1, 2)), expected, rtol=0.1)


@unhurried
@given(powers=series, window=st.sampled_from([1, 3, 5]), order=st.randoms(use_true_random=False))
def test_quegan_yu_keeps_no_data_and_ignores_the_order_of_scenes(powers, window, order):
    smooth = quegan_yu(powers, window)
    np.testing.assert_array_equal(np.isnan(smooth), np.isnan(powers))
    shuffled = list(range(len(powers)))
    order.shuffle(shuffled)
    np.testing.assert_allclose(quegan_yu(powers[shuffled], window), smooth[shuffled], rtol=1e-5, atol=1e-6)


@unhurried
@given(powers=series)
def test_quegan_yu_of_rows_with_a_margin_is_that_of_the_whole(powers):
    half, cut = 1, powers.shape[1] // 2
    upper = quegan_yu(powers[:, : cut + half], 3)[:, :cut]
    lower = quegan_yu(powers[:, max(cut - half, 0) :], 3)[:, min(half, cut) :]
    np.testing.assert_array_equal(np.concatenate([upper, lower], axis=1), quegan_yu(powers, 3))
