"""Noise, calibration and border noise against hand-made answers, and what must hold of them for any numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from covermap.sentinel1 import radiometry, safe
from covermap.sentinel1.radiometry import Noise, NoiseBlock, Vectors
from tests.unit.sentinel1_world import INTERVAL_S, LINES, SAMPLES, at, write_safe

powers = arrays(np.float32, st.integers(1, 30), elements=st.floats(-1, 1, width=32) | st.just(np.nan))
floors = st.floats(1e-5, 0.1)
LINE = np.arange(40)
PIXEL = np.arange(30)


def constant(value: float, count: int = 1) -> Vectors:
    times = np.arange(float(count))
    return Vectors(times, (np.array([0.0, 29.0]),) * count, (np.full(2, value),) * count)


@st.composite
def tables(draw: st.DrawFn, largest: float = 1e6) -> Vectors:
    """Vectors of positive values at increasing times and pixels, not all at the same pixels."""
    times = sorted(draw(st.sets(st.integers(-20, 60), min_size=1, max_size=5)))
    pixels = [sorted(draw(st.sets(st.integers(0, 29), min_size=1, max_size=6))) for _ in times]
    values = [draw(arrays(float, len(pixel), elements=st.floats(0.01, largest))) for pixel in pixels]
    return Vectors(np.array(times, float), tuple(np.array(pixel, float) for pixel in pixels), tuple(values))


# ---- tables ----


def test_table_is_bilinear_in_time_and_pixel_and_constant_beyond():
    pixel = np.array([0.0, 10.0])
    vectors = Vectors(np.array([0.0, 2.0]), (pixel, pixel), (np.array([1.0, 2.0]), np.array([3.0, 6.0])))
    lut = radiometry.calibration_lut(vectors, np.array([-1.0, 0.5, 2.0, 5.0]), np.array([0, 5, 10, 20]))
    np.testing.assert_allclose(lut, [[1, 1.5, 2, 2], [1.5, 2.25, 3, 3], [3, 4.5, 6, 6], [3, 4.5, 6, 6]])
    one = Vectors(np.array([1.0]), (pixel,), (np.array([1.0, 2.0]),))
    np.testing.assert_allclose(radiometry.calibration_lut(one, np.array([0.0, 3.0]), np.array([5])), [[1.5], [1.5]])


@given(vectors=tables())
def test_table_keeps_within_its_values_and_has_them_at_its_own_positions(vectors):
    lut = radiometry.calibration_lut(vectors, LINE.astype(float), PIXEL)
    values = np.concatenate(vectors.value)
    assert lut.shape == (40, 30) and lut.dtype == np.float32
    rounding = 1e-6 * values.max()
    assert values.min() - rounding <= lut.min() and lut.max() <= values.max() + rounding
    for time, pixel, value in zip(vectors.time_s, vectors.pixel, vectors.value, strict=True):
        own = radiometry.calibration_lut(vectors, np.array([time]), pixel)[0]
        np.testing.assert_allclose(own, value, rtol=1e-6, atol=rounding)


@given(vectors=tables(), start=st.integers(0, 39))
def test_table_of_a_part_of_the_lines_is_a_part_of_the_table(vectors, start):
    times = LINE.astype(float)
    whole = radiometry.calibration_lut(vectors, times, PIXEL)
    np.testing.assert_array_equal(radiometry.calibration_lut(vectors, times[start:], PIXEL), whole[start:])


# ---- thermal noise ----


def test_noise_is_the_range_table_times_the_azimuth_factor_of_each_block():
    pixel = np.array([0.0, 3.0])
    table = Vectors(np.array([0.0, 4.0]), (pixel, pixel), (np.array([10.0, 40.0]), np.array([30.0, 60.0])))
    blocks = (
        NoiseBlock(0, 5, 0, 1, np.array([3.0]), np.array([2.0])),  # one value: constant
        NoiseBlock(0, 5, 2, 3, np.array([0.0, 4.0]), np.array([1.0, 3.0])),
        NoiseBlock(6, 7, 0, 3, np.array([6.0]), np.array([1.0])),  # no vector of its own: the last one
    )
    power = radiometry.noise_power(Noise(table, blocks), np.array([2, 5, 6, 8]), np.arange(4), 1.0)
    np.testing.assert_allclose(
        power, [[40, 60, 40 * 2, 50 * 2], [60, 80, 50 * 3, 60 * 3], [30, 40, 50, 60], [0, 0, 0, 0]], rtol=1e-6
    )


def test_lines_after_the_last_range_vector_have_its_noise_and_their_own_azimuth_factor():
    table = Vectors(np.array([0.0, 10.0]), (np.array([0.0, 29.0]),) * 2, (np.full(2, 8.0), np.full(2, 12.0)))
    block = NoiseBlock(0, 39, 0, 29, np.array([0.0, 39.0]), np.array([1.0, 40.0]))
    power = radiometry.noise_power(Noise(table, (block,)), LINE, PIXEL, 1.0)
    np.testing.assert_allclose(power[[5, 10, 25, 39], 7], [10 * 6, 12 * 11, 12 * 26, 12 * 40], rtol=1e-6)


def test_range_vectors_of_one_block_do_not_reach_into_the_next():
    table = Vectors(
        np.array([0.0, 10.0, 20.0, 30.0]),
        (np.array([0.0, 29.0]),) * 4,
        tuple(np.full(2, value) for value in (1.0, 1.0, 5.0, 5.0)),
    )
    blocks = NoiseBlock(0, 15, 0, 29, np.zeros(1), np.ones(1)), NoiseBlock(16, 39, 0, 29, np.zeros(1), np.ones(1))
    power = radiometry.noise_power(Noise(table, blocks), LINE, PIXEL, 1.0)
    np.testing.assert_array_equal(power[:16], 1)
    np.testing.assert_array_equal(power[16:], 5)


@pytest.mark.parametrize("azimuth", [np.zeros(2), np.ones(2)])
@pytest.mark.parametrize("range_value", [0.0, 3.0])
def test_tables_of_zeros_leave_the_power_as_it_is(azimuth, range_value):
    noise = Noise(constant(range_value, 3), (NoiseBlock(0, 39, 0, 29, np.array([0.0, 39.0]), azimuth),))
    power = radiometry.noise_power(noise, LINE, PIXEL, 1.0)
    np.testing.assert_array_equal(power, range_value * azimuth[0])
    dn = np.full(power.shape, 20, np.uint16)
    sigma0 = radiometry.backscatter(dn, power, np.full(power.shape, 10, np.float32))
    np.testing.assert_allclose(sigma0, (400 - range_value * azimuth[0]) / 100)


@given(table=tables(1e4), cut=st.integers(1, 39), split=st.integers(1, 29))
def test_noise_of_blocks_with_one_factor_is_the_range_table_scaled(table, cut, split):
    times = np.array([-20.0, 60.0])
    table = Vectors(times, (table.pixel[0],) * 2, (table.value[0],) * 2)  # constant in time
    ends = [(0, cut - 1, 0, split - 1), (0, cut - 1, split, 29), (cut, 39, 0, 29)]
    blocks = tuple(NoiseBlock(*end, np.array([0.0]), np.array([i + 1.0])) for i, end in enumerate(ends))
    power = radiometry.noise_power(Noise(table, blocks), LINE, PIXEL, 1.0)
    factor = np.full(power.shape, 3.0)
    factor[:cut, :split], factor[:cut, split:] = 1, 2
    np.testing.assert_allclose(power, radiometry.calibration_lut(table, LINE.astype(float), PIXEL) * factor, rtol=1e-6)


def test_noise_vectors_of_processors_before_2_90_are_read_and_bilinear(tmp_path):
    product = write_safe(tmp_path)
    vectors = "".join(
        f"<noiseVector><azimuthTime>{at(line * INTERVAL_S)}</azimuthTime><line>{line}</line>"
        f"<pixel>0 100 {SAMPLES - 1}</pixel><noiseLut>{low} {low + 50} {low + 50}</noiseLut></noiseVector>"
        for line, low in ((0, 100), (200, 300))
    )
    (path,) = product.glob("annotation/calibration/noise-*vv*")
    path.write_text(f"<noise><noiseVectorList>{vectors}</noiseVectorList></noise>")
    archive = safe.open_product(product)
    noise = safe.noise(archive, safe.images(archive)["VV"])
    line, pixel = np.arange(LINES), np.arange(SAMPLES)
    power = radiometry.noise_power(noise, line, pixel, INTERVAL_S)
    np.testing.assert_allclose(power[0, [0, 20, 100, 200]], [100, 110, 150, 150], rtol=1e-5)
    np.testing.assert_allclose(power[50, [0, 20, 100, 200]], [150, 160, 200, 200], rtol=1e-5)  # a quarter of the way
    np.testing.assert_allclose(power[220, [0, 20]], [300, 310], rtol=1e-5)  # after the last vector


# ---- backscatter ----


def test_power_below_the_noise_stays_negative_and_zero_is_no_data():
    dn, lut = np.array([[0, 10, 20]], np.uint16), np.full((1, 3), 2, np.float32)
    sigma0 = radiometry.backscatter(dn, np.float32(144), lut)
    np.testing.assert_allclose(sigma0, [[np.nan, -11, 64]])
    assert sigma0.dtype == np.float32


@given(
    dn=arrays(np.uint16, (3, 5)),
    noise=arrays(np.float32, (3, 5), elements=st.floats(0, 1e6, width=32)),
    lut=arrays(np.float32, (3, 5), elements=st.floats(50, 2000, width=32)),
)
def test_backscatter_is_that_of_the_formula(dn, noise, lut):
    exact = (dn.astype(float) ** 2 - noise) / lut.astype(float) ** 2
    scale = (dn.astype(float) ** 2 + noise) / lut.astype(float) ** 2
    sigma0 = radiometry.backscatter(dn, noise, lut)
    np.testing.assert_array_equal(np.isnan(sigma0), dn == 0)
    assert (np.abs(sigma0 - exact) <= 1e-6 * scale)[dn > 0].all()


def test_limit_power_by_hand():
    power = np.array([np.nan, -0.5, 0, 1e-5, 0.2], np.float32)
    kept, low = radiometry.limit_power(power, "keep", 1e-4)
    np.testing.assert_array_equal(kept, power)
    np.testing.assert_array_equal(low, [False, True, True, False, False])
    floored, low = radiometry.limit_power(power, "floor", 1e-4)
    np.testing.assert_allclose(floored, [np.nan, 1e-4, 1e-4, 1e-4, 0.2])
    np.testing.assert_array_equal(low, [False, True, True, True, False])
    removed, low = radiometry.limit_power(power, "nodata", 1e-4)
    np.testing.assert_array_equal(removed, np.array([np.nan, np.nan, np.nan, 1e-5, 0.2], np.float32))
    np.testing.assert_array_equal(low, [False, True, True, False, False])


@given(power=powers, how=st.sampled_from(["keep", "floor", "nodata"]), floor=floors)
def test_limit_power_touches_only_what_it_marks(power, how, floor):
    limited, low = radiometry.limit_power(power, how, floor)
    assert limited.dtype == np.float32
    np.testing.assert_array_equal(limited[~low], power[~low])
    assert not low[np.isnan(power)].any()
    if how == "floor":
        assert not (limited < np.float32(floor)).any()
        np.testing.assert_array_equal(np.isnan(limited), np.isnan(power))
    if how == "nodata":
        assert not (limited <= 0).any()


@given(power=powers, floor=floors)
def test_decibels_have_the_floor_and_no_minus_100(power, floor):
    db = radiometry.to_db(power, floor)
    np.testing.assert_array_equal(np.isnan(db), np.isnan(power))
    assert db.dtype == np.float32
    above = power > floor
    np.testing.assert_allclose(db[above], 10 * np.log10(power[above]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(db[~above & ~np.isnan(power)], 10 * np.log10(floor), rtol=1e-5)


def test_normalise_by_hand():
    power, incidence = np.array([0.1, -0.1, np.nan], np.float32), np.array([60.0, 60.0, 60.0], np.float32)
    np.testing.assert_allclose(radiometry.normalise(power, incidence, 0, 2), [0.4, -0.4, np.nan], rtol=1e-6)
    np.testing.assert_allclose(radiometry.normalise(power, incidence, 0, 1), [0.2, -0.2, np.nan], rtol=1e-6)


@given(power=powers, angle=st.floats(18, 47), reference=st.floats(20, 46), exponent=st.sampled_from([1, 2]))
def test_normalise_keeps_the_reference_and_is_undone_by_its_inverse(power, angle, reference, exponent):
    incidence = np.full(power.shape, angle, np.float32)
    there = radiometry.normalise(power, incidence, reference, exponent)
    assert there.dtype == np.float32
    back = radiometry.normalise(there, np.full(power.shape, reference, np.float32), angle, exponent)
    np.testing.assert_allclose(back, power, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(radiometry.normalise(power, incidence, angle, exponent), power, rtol=1e-6, atol=1e-30)
    farther = np.abs(there) - np.abs(power)  # backscatter falls with the angle
    assert not (farther * (angle - reference) < -1e-6 * np.abs(power)).any()


# ---- border noise ----

BORDER = {"top": 130, "bottom": 70, "left": 90, "right": 210}
HEIGHT, WIDTH = 1400, 1600


def framed() -> np.ndarray:
    """Land of DN 200 and a lake of DN 20 near its edge, in a frame of border noise of DN 1 to 25 and a rim of zeros."""
    dn = np.random.default_rng(0).integers(1, 26, (HEIGHT, WIDTH)).astype(np.uint16)
    inside = np.s_[BORDER["top"] : HEIGHT - BORDER["bottom"], BORDER["left"] : WIDTH - BORDER["right"]]
    dn[inside] = np.random.default_rng(1).integers(150, 250, dn[inside].shape)
    dn[200:300, 150:250] = 20
    dn[:5] = 0
    return dn


def cut(image: np.ndarray, window: object) -> np.ndarray:
    rows, columns = window.toslices()  # type: ignore[attr-defined]
    return image[rows, columns]


def test_border_noise_is_found_in_its_frame_and_dark_land_behind_it_is_kept():
    dn = framed()
    inner = radiometry.inner_part([cut(dn, one) for one in radiometry.border_windows(*dn.shape)], *dn.shape)
    right = WIDTH - 500 + int(0.8 * (500 - BORDER["right"] - 1))
    assert inner == (BORDER["top"], HEIGHT - BORDER["bottom"] - 1, BORDER["left"], right)
    mask = radiometry.border_noise(dn, np.arange(HEIGHT), np.arange(WIDTH), inner, np.full(WIDTH, 30.0))
    kept = np.zeros_like(mask)
    kept[BORDER["top"] : HEIGHT - BORDER["bottom"], BORDER["left"] : WIDTH - BORDER["right"]] = True
    np.testing.assert_array_equal(mask[~kept], np.True_)
    assert not mask[kept].any()


@settings(max_examples=25, deadline=None)
@given(frame=st.tuples(*[st.integers(0, 450)] * 4), sides=st.tuples(*[st.integers(950, 1100)] * 2))
def test_an_even_frame_of_any_width_is_found(frame, sides):
    top, bottom, left, right = frame
    lines, samples = sides
    dn = np.full(sides, 5, np.uint16)
    dn[top : lines - bottom, left : samples - right] = 200
    inner = radiometry.inner_part([cut(dn, one) for one in radiometry.border_windows(lines, samples)], lines, samples)
    inward = int(0.8 * (499 - right)) - 499 if right else 0
    assert inner == (top, lines - bottom - 1, left, samples - 1 + inward)


def test_without_a_step_there_is_no_border_noise():
    dn = np.random.default_rng(3).integers(10, 400, (700, 620)).astype(np.uint16)
    inner = radiometry.inner_part([cut(dn, one) for one in radiometry.border_windows(*dn.shape)], *dn.shape)
    assert inner == (0, 699, 0, 619)
    assert not radiometry.border_noise(dn, np.arange(700), np.arange(620), inner, np.full(620, 30.0)).any()


def test_border_windows_of_a_small_image_are_the_image():
    assert [cut(np.ones((12, 7)), one).shape for one in radiometry.border_windows(12, 7)] == [(12, 7)] * 4
    assert radiometry.inner_part([np.ones((1, 1))] * 4, 1, 1) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("version", "mode", "scale"),
    [
        ((2, 33), "IW", 75088.7 * 0.3),
        ((2, 34), "IW", 75088.7 * 0.09),
        ((2, 36), "EW", 56065.87 * 0.09),
        ((2, 36), "S3", 1),
        ((2, 50), "IW", 1),
        ((2, 84), "EW", 1),
    ],
)
def test_border_floor_scales_the_middle_noise_vector_by_the_processor_s_generation(version, mode, scale):
    pixel = np.array([0.0, 10.0])
    values = np.zeros(2), np.array([1.0, 2.0]), np.full(2, 9e9)
    noise = Noise(Vectors(np.arange(3.0), (pixel,) * 3, values), ())
    floor = radiometry.border_floor(noise, version, mode, constant(0.3, 2), np.array([0, 5, 10]))
    expected = np.maximum(30, np.sqrt(scale * np.array([1, 1.5, 2]) + 0.25))
    np.testing.assert_allclose(floor, expected, rtol=1e-12)


@given(table=tables(1e4), scale=tables(10), version=st.sampled_from([(2, 33), (2, 36), (2, 84)]))
def test_pixels_at_the_border_s_floor_stand_out_of_the_noise_by_the_threshold(table, scale, version):
    floor = radiometry.border_floor(Noise(table, ()), version, "IW", scale, PIXEL)
    factor = {(2, 33): 75088.7 * scale.value[0][0], (2, 36): 75088.7 * scale.value[0][0] ** 2, (2, 84): 1}[version]
    middle = len(table.time_s) // 2
    level = factor * np.interp(PIXEL, table.pixel[middle], table.value[middle])
    assert (floor >= 30).all()
    left = np.sqrt(np.maximum(floor**2 - level, 0))
    np.testing.assert_allclose(left[floor > 30], 0.5, atol=1e-3 * floor.max())
    assert (left[floor == 30] >= 0.5 - 1e-9).all()


@given(
    dn=arrays(np.uint16, (12, 9), elements=st.integers(0, 100)),
    inner=st.tuples(st.integers(0, 5), st.integers(6, 11), st.integers(0, 4), st.integers(5, 8)),
    floor=st.floats(30, 80),
)
def test_border_noise_is_dark_outside_and_a_part_is_masked_as_the_whole(dn, inner, floor):
    line, pixel, floors = np.arange(12), np.arange(9), np.full(9, floor)
    mask = radiometry.border_noise(dn, line, pixel, inner, floors)
    assert not mask[dn >= floor].any()
    assert not mask[inner[0] : inner[1] + 1, inner[2] : inner[3] + 1].any()
    outside = np.ones_like(mask)
    outside[inner[0] : inner[1] + 1, inner[2] : inner[3] + 1] = False
    assert mask[outside & (dn < floor)].all()
    part = radiometry.border_noise(dn[3:8, 2:], line[3:8], pixel[2:], inner, floors[2:])
    np.testing.assert_array_equal(part, mask[3:8, 2:])
