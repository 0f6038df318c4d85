import json
import math

import numpy as np
import pytest
from scipy.fft import fft2, fftfreq, ifft2
from scipy.ndimage import gaussian_filter

from covermap.errors import ProductError
from covermap.registration import Shift, combined, correction, moved, patch_places, patch_shift

SIDE = 192


def texture(seed, side=SIDE):
    """Smooth noise without an edge: its far sides meet."""
    noise = np.random.default_rng(seed).normal(size=(side, side))
    return gaussian_filter(noise, 1.2, mode="wrap").astype(np.float32)


def displaced(image, right, down):
    """The image moved exactly, by the shift theorem of the Fourier transform."""
    turn = np.exp(-2j * np.pi * (fftfreq(len(image))[:, None] * down + fftfreq(image.shape[1])[None] * right))
    return ifft2(fft2(image.astype(np.float64)) * turn).real.astype(np.float32)


SHIFTS = [(0, 0), (0.3, -0.7), (0.05, 0.05), (1.25, 2.5), (-3.4, 0.01), (-0.49, 3.9)]


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_is_found_to_a_twentieth_of_a_pixel(shift):
    image = texture(1)
    assert patch_shift(displaced(image, *shift), image, 4) == pytest.approx(shift, abs=0.05)


@pytest.mark.parametrize("shift", SHIFTS)
def test_it_is_found_through_noise_and_another_contrast(shift):
    random, image = np.random.default_rng(2), texture(1)
    noise = random.normal(0, 0.3 * image.std(), (2, SIDE, SIDE))
    seen = 900 + 70 * displaced(image, *shift) + 70 * noise[0]
    assert patch_shift(seen, image + noise[1], 4) == pytest.approx(shift, abs=0.1)


def test_clouds_that_both_images_share_do_not_hold_it_back():
    image = texture(1, 256)
    clear = gaussian_filter(np.random.default_rng(3).normal(size=image.shape), 10) > 0.01
    assert 0.2 < clear.mean() < 0.5
    seen, known = (np.where(clear, each, np.nan) for each in (displaced(image, 1.3, -0.6), image))
    assert patch_shift(seen, known, 4) == pytest.approx((1.3, -0.6), abs=0.05)
    assert patch_shift(seen, image, 4) == pytest.approx((1.3, -0.6), abs=0.05)


def test_noise_and_bare_patches_tell_nothing():
    random = np.random.default_rng(4)
    answers = [patch_shift(*random.normal(size=(2, 64, 64)), 4) for _ in range(50)]
    assert sum(answer is not None for answer in answers) <= 1
    assert patch_shift(np.ones((64, 64)), np.ones((64, 64)), 4) is None
    image = texture(1)
    mostly_cloudy = np.where(np.indices(image.shape)[0] < 0.9 * SIDE, np.nan, image)
    assert patch_shift(mostly_cloudy, image, 4) is None


def test_a_shift_that_is_too_far_is_no_answer():
    image = texture(1)
    assert patch_shift(displaced(image, 5.5, 0), image, 4) is None
    assert patch_shift(displaced(image, 5.5, 0), image, 6) == pytest.approx((5.5, 0), abs=0.05)


def test_the_shift_of_a_scene_is_the_median_of_its_patches():
    shifts = [(0.1, -0.2), (0.12, -0.21), (0.08, -0.19), (0.1, -0.2), (3.0, 2.0)]
    right, down, spread, patches, trusted = combined(shifts)
    assert (right, down, patches, trusted) == (0.1, -0.2, 4, True)
    assert spread == pytest.approx(1.4826 * 0.02, abs=1e-3)
    assert combined([]) is None


@pytest.mark.parametrize(
    ("shifts", "trusted"),
    [
        ([(1.0, 0.0)] * 4, True),
        ([(1.0, 0.0)] * 3, False),  # too few
        ([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)] * 3, False),  # each says something else
        ([(float(k) / 4, 0.0) for k in range(-4, 5)] * 40, True),  # wide, but so many that the median is sure
    ],
)
def test_few_or_quarrelling_patches_are_not_trusted(shifts, trusted):
    assert combined(shifts).trusted is trusted


@pytest.mark.parametrize(
    ("height", "width", "count"), [(2052, 2052, 64), (300, 4000, 64), (512, 512, 64), (256, 256, 9)]
)
def test_patches_are_spread_evenly_and_lie_inside(height, width, count):
    places = patch_places(height, width, 256, count)
    assert 1 <= len(places) <= count and len(set(places)) == len(places)
    assert all(0 <= row <= height - 256 and 0 <= column <= width - 256 for row, column in places)
    for extent, starts in ((height, {row for row, _ in places}), (width, {column for _, column in places})):
        gaps = np.diff(sorted(starts))
        assert len(starts) == 1 or (min(starts) == 0 and max(starts) == extent - 256)
        assert len(gaps) == 0 or (gaps.min() >= 128 and gaps.max() - gaps.min() <= 1)


def test_an_image_smaller_than_a_patch_has_none():
    assert patch_places(200, 4000, 256, 64) == []


# --- moving


def test_whole_pixels_are_copied():
    pixels = np.arange(1, 21, dtype=np.uint16).reshape(1, 4, 5)
    out = moved(pixels, 2, -1, nodata=0)
    assert out.dtype == np.uint16
    assert out[0].tolist() == [[0, 0, 6, 7, 8], [0, 0, 11, 12, 13], [0, 0, 16, 17, 18], [0, 0, 0, 0, 0]]
    assert moved(pixels, 0, 0, nodata=0).tolist() == pixels.tolist()


def test_half_a_pixel_has_the_weights_of_keys():
    line = np.zeros((1, 9, 9))
    line[0, :, 4] = 16
    out = moved(line, 0.5, 0, nodata=math.nan)[0, 4]
    assert out[2:7].tolist() == [0, -1, 9, 9, -1]
    assert np.isnan(out[[0, 1, 8]]).all()


def test_no_data_spreads_as_far_as_it_counts():
    pixels = np.full((1, 9, 9), 500, np.uint16)
    pixels[0, 4, 4] = 0
    out = moved(pixels, 0.3, 0, nodata=0)[0]
    assert np.flatnonzero(out[4] == 0).tolist() == [0, 1, 3, 4, 5, 6, 8]
    assert np.flatnonzero(out[3] == 0).tolist() == [0, 1, 8]
    assert set(np.unique(out)) == {0, 500}


def test_an_overshoot_never_becomes_no_data():
    pixels = np.ones((1, 8, 8), np.uint16)
    pixels[0, :, 4:] = 9000
    assert (moved(pixels, 0.5, 0, nodata=0)[0, :, 2:7] >= 1).all()
    high = np.full((1, 8, 8), 65535, np.uint16)
    high[0, :, 4:] = 1
    assert moved(high, 0.5, 0, nodata=0)[0, 0, 3] == 65535


def test_classes_move_by_whole_pixels():
    scl = np.array([[[4, 4, 9, 9], [4, 4, 9, 9]]], np.uint8)
    assert moved(scl, 0.6, -0.4, nodata=0, nearest=True)[0].tolist() == [[0, 4, 4, 9]] * 2
    assert moved(scl, -0.5, 0.4, nodata=0, nearest=True)[0].tolist() == scl[0].tolist()


@pytest.mark.parametrize("shift", SHIFTS)
def test_moving_by_what_was_found_brings_an_image_back(shift):
    image = texture(1)
    seen = displaced(image, *shift)
    back = moved(seen[None], *(-part for part in shift), nodata=math.nan)[0]
    inside = np.isfinite(back)
    assert inside.mean() > 0.9
    assert np.std((back - image)[inside]) < 0.1 * image.std()
    assert patch_shift(back, image, 4) == pytest.approx((0, 0), abs=0.05)


# --- what a stack does with it


def write(path, **shift):
    path.write_text(json.dumps({"shift": shift or None}))
    return path


def test_a_scene_is_moved_back_if_its_shift_is_trusted_and_worth_it(tmp_path):
    told = Shift(0.4, -0.3, 0.1, 30, True)._asdict()
    assert correction(write(tmp_path / "a.json", **told)) == (-0.4, 0.3)
    assert correction(write(tmp_path / "b.json", **{**told, "trusted": False})) is None
    assert correction(write(tmp_path / "c.json", **{**told, "right_pixels": 0.05, "down_pixels": 0.05})) is None
    assert correction(write(tmp_path / "d.json")) is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"shift": {"trusted": true}}'])
def test_a_broken_file_of_figures_is_named(tmp_path, text):
    (tmp_path / "scene.json").write_text(text)
    with pytest.raises(ProductError, match=r"scene\.json cannot be read as figures"):
        correction(tmp_path / "scene.json")
