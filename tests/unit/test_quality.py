import json
from datetime import date
from itertools import permutations

import numpy as np
import pytest
from PIL import Image
from scipy.fft import fft2, fftfreq, ifft2
from scipy.ndimage import gaussian_filter

from covermap.area_settings import Masks, Period, Registration
from covermap.errors import ProductError
from covermap.grid import Grid
from covermap.masks import clear_mask
from covermap.quality import binned_mean, check_scene, median_without, middle_values, reference_block
from covermap.quicklook import (
    DB_RANGES,
    HATCH,
    INK,
    PAPER,
    TONE_SHARE,
    TONES,
    WHITE_REFLECTANCE,
    captioned,
    colour_key,
    draw_backscatter,
    draw_reflectance,
    round_below,
    scale_bar,
)
from covermap.raster import read_window, write_raster

GRID = Grid(crs="EPSG:32721", left=640_000, top=8_480_000, width=256, height=256)
YEAR = Period(start=date(2021, 1, 1), end=date(2021, 12, 31))
BANDS = ("B02", "B03", "B04", "B08")
MASKS = Masks(dilate_m=0)
SETTINGS = Registration(patch_pixels=128, patches=9)
EMPTY = {"type": "Feature", "geometry": None, "assets": {}}


def ground(side=256):
    noise = gaussian_filter(np.random.default_rng(7).normal(size=(side, side)), 1.2, mode="wrap")
    return noise / noise.std()


def displaced(image, right, down):
    turn = np.exp(-2j * np.pi * (fftfreq(len(image))[:, None] * down + fftfreq(image.shape[1])[None] * right))
    return ifft2(fft2(image) * turn).real


def optical(folder, month, shift=(0.0, 0.0), scl=4, grid=GRID, tile="21LYF", noise=0.1, **tags):
    """A scene of the ground, seen with a shift and some noise; B08 is the brightest band."""
    random = np.random.default_rng(month)
    seen = displaced(ground(), *shift) + random.normal(0, noise, (256, 256))
    nir = np.rint(3000 + 400 * seen)[: grid.height, : grid.width]
    classes = np.broadcast_to(np.asarray(scl), grid.shape)
    bands = np.stack([nir / 5, nir / 4, nir / 3, nir]) * (classes > 0)
    name = f"S2A_MSIL2A_2021{month:02d}10T135121_N0301_R024_T{tile}_2021{month:02d}10T170245"
    about = {"datetime": f"2021-{month:02d}-10T13:57:00Z", "platform": "sentinel-2a", "mgrs_tile": tile}
    path = folder / f"{name}.tif"
    layers = np.concatenate([np.rint(bands), classes[None]]).astype(np.uint16)
    write_raster(path, layers, grid, nodata=0, descriptions=(*BANDS, "SCL"), tags=about | tags)
    return path


def radar(folder, month, shift=(0.0, 0.0), state="descending", layover=None, db=-10.0):
    random = np.random.default_rng(100 + month)
    power = 10 ** ((db + 1.5 * displaced(ground(), *shift)) / 10) * random.gamma(40, 1 / 40, (256, 256))
    bands, names = [power, power / 4], ["VV", "VH"]
    if layover is not None:
        bands, names = [*bands, layover], [*names, "layover_shadow"]
    path = folder / f"S1A_IW_GRDH_1SDV_2021{month:02d}05T090942_{state}.tif"
    tags = {"datetime": f"2021-{month:02d}-05T09:09:42Z", "orbit_state": state, "relative_orbit": 68}
    write_raster(path, np.stack(bands).astype(np.float32), GRID, nodata=np.nan, descriptions=names, tags=tags)
    return path


def refer(folder, s1=(), s2=(), block=GRID, masks=MASKS, bands=BANDS):
    path = folder / f"reference_{block.left:.0f}_{block.top:.0f}.tif"
    reference_block(list(s1), list(s2), path, block, YEAR, bands, ("VV", "VH"), masks)
    return path


def check(scene, reference, grid=GRID, masks=MASKS, bands=BANDS, settings=SETTINGS, name="out"):
    item = {**EMPTY, "id": scene.stem, "properties": {"platform": f"sentinel-{scene.stem[1:3].lower()}"}}
    quality, quicklook = (scene.parent / name / f"{scene.stem}{suffix}" for suffix in (".json", ".png"))
    check_scene(scene, reference, quality, quicklook, item, grid, bands, ("VV", "VH"), masks, settings)
    return json.loads(quality.read_text())


def counted(scl):
    return ",".join(map(str, np.bincount(np.asarray(scl).ravel(), minlength=12)))


def shift_of(figures):
    return figures["shift"]["right_pixels"], figures["shift"]["down_pixels"]


# --- medians without one


@pytest.mark.parametrize("number", range(1, 8))
def test_the_median_of_the_others_follows_from_the_values_in_the_middle(number):
    values = np.random.default_rng(number).integers(1, 9, (number, 6, 50)).astype(np.uint16)
    middle = middle_values(values.copy())
    assert (middle[3] == number).all()
    for index, own in enumerate(values):
        others = np.delete(values, index, axis=0)
        expected = np.median(others, axis=0) if number > 1 else np.full(own.shape, np.nan)
        np.testing.assert_array_equal(median_without(middle, own), expected)


def test_masked_observations_do_not_count():
    values = np.array(list(permutations([0, 0, 30, 10, 20])), np.uint16).T.reshape(5, 1, -1)
    middle = middle_values(values.copy())
    assert (middle == np.array([10, 20, 30, 3]).reshape(4, 1, 1)).all()
    left = median_without(middle, values[0])
    assert {own: {*left[values[0] == own].tolist()} for own in (10, 20, 30)} == {10: {25.0}, 20: {20.0}, 30: {15.0}}
    assert np.isnan(left[values[0] == 0]).all()


def test_nothing_at_all_is_no_reference():
    assert not middle_values(np.zeros((3, 2, 2), np.uint16)).any()


# --- the reference


def test_blocks_are_parts_of_one_reference(tmp_path):
    scl = np.where(gaussian_filter(np.random.default_rng(1).normal(size=GRID.shape), 4) > 0.05, 9, 4)
    scenes = [optical(tmp_path, month, scl=np.roll(scl, 40 * month, 0)) for month in (1, 2, 3)]
    masks = Masks(dilate_m=60, erode_m=20)
    whole = read_window(refer(tmp_path, s2=scenes, masks=masks), GRID, fill=0)
    assert whole[3].min() < 3 == whole[3].max()
    for part in (GRID.window(0, 0, 256, 100), GRID.window(0, 100, 256, 156)):
        _, column = part.offset_in(GRID)
        pixels = read_window(refer(tmp_path, s2=scenes, block=part, masks=masks), part, fill=0)
        np.testing.assert_array_equal(pixels, whole[:, :, column : column + part.width])


def test_directions_and_sensors_have_references_of_their_own(tmp_path):
    import rasterio

    states = ["ascending", "descending", "descending"]
    s1 = [radar(tmp_path, month, state=state) for month, state in zip((1, 2, 3), states, strict=True)]
    with rasterio.open(refer(tmp_path, s1=s1, s2=[optical(tmp_path, 1)])) as raster:
        names, pixels = list(raster.descriptions), raster.read()
    assert names[::4] == ["B08 below", "VV ascending below", "VV descending below"]
    assert [pixels[index].max() for index in (3, 7, 11)] == [1, 1, 2]
    db = pixels[names.index("VV ascending middle")] / 100 - 100
    assert np.median(db) == pytest.approx(-10, abs=0.2)


def test_without_b08_the_first_band_is_compared(tmp_path):
    reference = refer(tmp_path, s2=[optical(tmp_path, 1)], bands=("B04", "B03"))
    assert 900 < read_window(reference, GRID, fill=0)[1].mean() < 1100


# --- where a scene lies

TRUTH = [(0.6, -0.3), (-0.5, 0.4), (0.1, 0.9), (-0.8, -0.2), (0.3, 0.0)]


@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("sensor", [optical, radar])
def test_scenes_lie_where_they_were_put_against_the_middle_of_all(tmp_path, number, sensor):
    truth = np.array(TRUTH[:number])
    scenes = [sensor(tmp_path, month, shift) for month, shift in enumerate(truth, 1)]
    given = {"s2" if sensor is optical else "s1": scenes}
    reference = [refer(tmp_path, **given)]
    found = np.array([shift_of(check(scene, reference)) for scene in scenes])
    # a median of displaced scenes is not quite their mean
    np.testing.assert_allclose(found, truth - truth.mean(0), atol=0.05 if number == 2 else 0.2)


def test_a_scene_does_not_hold_its_own_place(tmp_path):
    """One of six is off: compared with a composite that holds it, it would seem to lie closer."""
    scenes = [optical(tmp_path, month, (1.2, 0.0) if month == 1 else (0, 0)) for month in range(1, 7)]
    reference = [refer(tmp_path, s2=scenes)]
    assert shift_of(check(scenes[0], reference)) == pytest.approx((1.0, 0), abs=0.05)
    assert check(scenes[0], reference)["shift"]["trusted"]


@pytest.mark.parametrize(("count", "told"), [(2, (1.5, -1.0)), (3, (3, -2)), (6, (3, -2))])
def test_a_scene_that_is_far_off_comes_back_to_the_others(tmp_path, count, told):
    scenes = [optical(tmp_path, month, (3.0, -2.0) if month == 1 else (0, 0)) for month in range(1, count + 1)]
    reference = [refer(tmp_path, s2=scenes)]
    assert shift_of(check(scenes[0], reference)) == pytest.approx(told, abs=0.1)
    if count > 3:
        assert shift_of(check(scenes[1], reference)) == pytest.approx((0, 0), abs=0.1)


def test_a_scene_alone_is_compared_with_nothing(tmp_path):
    scene = optical(tmp_path, 1, (0.7, 0.7))
    assert check(scene, [refer(tmp_path, s2=[scene])])["shift"] is None
    assert check(scene, [])["shift"] is None


def test_neighbouring_tiles_of_one_overflight_are_not_compared_with_each_other(tmp_path):
    scenes = [optical(tmp_path, 1, (1.0, 0.0), tile=tile) for tile in ("21LYF", "21LYG")]
    assert check(scenes[0], [refer(tmp_path, s2=scenes)])["shift"] is None
    other = optical(tmp_path, 2)
    reference = [refer(tmp_path, s2=[*scenes, other])]
    assert shift_of(check(scenes[1], reference)) == pytest.approx((0.5, 0), abs=0.05)


def test_the_tiles_of_an_overflight_complete_each_other(tmp_path):
    west = np.where(np.arange(256) < 150, 4, 0)
    scenes = [optical(tmp_path, 1, scl=scl, tile=tile) for tile, scl in (("21LYF", west), ("21LYG", 4 - west))]
    count = read_window(refer(tmp_path, s2=scenes), GRID, fill=0)[3]
    assert (count == 1).all()


def test_the_reference_may_lie_on_several_blocks(tmp_path):
    scenes = [optical(tmp_path, month, (0.8 * month, 0)) for month in (1, 2)]
    parts = [GRID.window(row, column, 128, 128) for row in (0, 128) for column in (0, 128)]
    cut = [refer(tmp_path, s2=scenes, block=part) for part in parts]
    assert check(scenes[0], cut) == check(scenes[0], [refer(tmp_path, s2=scenes)], name="whole")


def test_scenes_smaller_than_a_patch_are_compared_as_they_are(tmp_path):
    small = GRID.window(0, 0, 100, 90)
    scenes = [optical(tmp_path, month, (0.4 * month, 0), grid=small) for month in (1, 2)]
    assert shift_of(check(scenes[1], [refer(tmp_path, s2=scenes)])) == pytest.approx((0.2, 0), abs=0.1)
    tiny = GRID.window(0, 0, 40, 90)
    scenes = [optical(tmp_path, month, (0.4 * month, 0), grid=tiny) for month in (3, 4)]
    assert check(scenes[1], [refer(tmp_path, s2=scenes)])["shift"] is None


# --- figures


def test_shares_are_of_the_area_and_sum_up_to_it(tmp_path):
    scl = np.full(GRID.shape, 4)
    scl[:64], scl[64:80], scl[80:88], scl[88:90], scl[90:91], scl[91:94] = 0, 9, 3, 11, 1, 7
    wide = GRID.window(0, 0, 256, 512)
    masks = Masks(classes=(0, 1, 3, 7, 8, 9, 10, 11), dilate_m=0)
    figures = check(optical(tmp_path, 1, scl=scl, below_zero=0.07), [], grid=wide, masks=masks)
    shares = {name: share * 512 for name, share in figures["shares"].items()}  # in rows of the scene
    expected = {"cloud": 16, "shadow": 8, "snow": 2, "defective": 1, "other": 3, "rim": 0}
    expected |= {"no_data": 256 + 64, "clear": 256 - 94}
    assert shares == {name: pytest.approx(rows, abs=0.01) for name, rows in expected.items()}
    assert figures["below_zero"] == 0.07
    assert (figures["tile"], figures["platform"], figures["sensor"]) == ("21LYF", "sentinel-2a", "sentinel2")


def test_clear_is_what_composites_use(tmp_path):
    """Masks grow by two pixels, and specks of cloud are dropped: both change what is clear, and so does the rim."""
    scl = np.full(GRID.shape, 4)
    scl[64:128], scl[200, 200], scl[20, 20], scl[250:, :3] = 9, 9, 1, 10
    masks = Masks(classes=(0, 1, 3, 8, 9, 11), dilate_m=20, erode_m=10)
    shares = check(optical(tmp_path, 1, scl=scl), [], masks=masks)["shares"]
    pixels = {name: round(share * scl.size) for name, share in shares.items()}
    clear = clear_mask(scl.astype(np.uint8), masks.classes, 2, 1)
    grown = 13 - 1  # a disc of two pixels around the defective one
    assert pixels == {
        "no_data": 0, "clear": int(clear.sum()), "rim": 4 * 256 + grown, "cloud": 64 * 256, "shadow": 0, "snow": 0,
        "defective": 1, "other": 0,
    }  # fmt: skip
    assert clear[200, 200] and clear[250:, :3].all()  # a speck, and a class that is not masked


def test_only_the_area_counts_and_clouds_beyond_it_reach_in(tmp_path):
    scl = np.full(GRID.shape, 4)
    scl[:20], scl[:, :40] = 9, 9
    area = GRID.window(20, 41, 100, 200)
    figures = check(optical(tmp_path, 1, scl=scl), [], grid=area, masks=Masks(dilate_m=20))
    pixels = {name: round(share * 20_000) for name, share in figures["shares"].items() if share}
    assert pixels == {"rim": 2 * 200 + 98, "clear": 20_000 - 498}
    left, top, right, bottom = figures["picture_box"]
    assert (right - left, bottom - top) == (400, 200)
    beyond = check(optical(tmp_path, 2), [], grid=GRID.window(400, 400, 50, 50))
    assert {name for name, share in beyond["shares"].items() if share} == {"no_data"}


def test_pixels_that_no_mask_names_are_never_clear_when_defective(tmp_path):
    scl = np.where(np.arange(256)[:, None] < 64, 1, 4) * np.ones(GRID.shape, int)
    shares = check(optical(tmp_path, 1, scl=scl), [], masks=Masks(classes=(), dilate_m=0))["shares"]
    assert (shares["defective"], shares["clear"]) == (0.25, 0.75)


def test_a_scene_that_stacks_do_without_says_why(tmp_path):
    scl = np.where(np.arange(256)[:, None] < 64, 9, 4) * np.ones(GRID.shape, int)
    scene = optical(tmp_path, 1, scl=scl, scl_counts=counted(scl))
    assert check(scene, [], masks=Masks(dilate_m=0, max_scene=30))["left_out"] is None
    assert check(scene, [], masks=Masks(dilate_m=0, max_scene=20))["left_out"] == "25.0 % masked, limit 20 %"


@pytest.mark.parametrize("told", ["a,b", "1,2", "1,2,3,4,5,6,7,8,9,10,11,12,13", ",,,,,,,,,,,", ""])
def test_broken_counts_are_one_clear_error(tmp_path, told):
    scene = optical(tmp_path, 1, scl_counts=told)
    expected = (
        rf"S2A_.*\.tif has no usable tag 'scl_counts' \('{told}', expected 12 numbers joined by commas\): remove it"
    )
    with pytest.raises(ProductError, match=expected):
        check(scene, [], masks=Masks(dilate_m=0, max_scene=20))
    assert not (tmp_path / "out").exists()


def test_figures_of_radar(tmp_path):
    layover = np.zeros(GRID.shape)
    layover[:64] = 1
    figures = check(radar(tmp_path, 1, layover=layover), [])
    assert figures["shares"] == {"no_data": 0, "distorted": 0.25}
    assert figures["median_db"]["VV"] == pytest.approx(-10, abs=0.1)
    assert figures["median_db"]["VH"] == pytest.approx(-10 - 10 * np.log10(4), abs=0.1)
    assert (figures["track"], figures["orbit_state"], figures["sensor"]) == (68, "descending", "sentinel1")


def test_the_same_scene_gives_the_same_bytes(tmp_path):
    scenes = [optical(tmp_path, month) for month in (1, 2)]
    reference = [refer(tmp_path, s2=scenes)]
    for name in ("one", "two"):
        check(scenes[0], reference, name=name)
    for one in (tmp_path / "one").iterdir():
        assert one.read_bytes() == (tmp_path / "two" / one.name).read_bytes()
    assert len(list((tmp_path / "one").iterdir())) == 2


def test_a_broken_reference_is_named_and_leaves_nothing(tmp_path):
    scene, broken = optical(tmp_path, 1), tmp_path / "broken.tif"
    broken.write_bytes(b"II*")
    with pytest.raises(ProductError, match=r"broken\.tif cannot be opened"):
        check(scene, [broken])
    assert not (tmp_path / "out").exists()


# --- pictures


def test_a_picture_shows_what_is_masked_and_what_is_missing(tmp_path):
    scl = np.full(GRID.shape, 4)
    scl[:64], scl[64:128], scl[130:192] = 0, 9, 3
    scene = optical(tmp_path, 1, scl=scl, noise=0)
    figures = check(scene, [], masks=Masks(dilate_m=20))
    left, top, right, bottom = figures["picture_box"]
    with Image.open(tmp_path / "out" / f"{scene.stem}.png") as image:
        assert (right - left, top, bottom) == (256, 0, 256) and image.height > 300
        assert left == (image.width - 256) // 2 > 0
        sheet = np.asarray(image).astype(int)
    assert (sheet[:256, :left] == PAPER).all() and (sheet[:256, right:] == PAPER).all()
    picture = sheet[:256, left:right]
    assert set(np.unique(picture[:64])) == set(HATCH)
    plain = draw_reflectance(read_window(scene, GRID, fill=0, indexes=[3, 2, 1]) / np.float32(10_000)).astype(int)
    np.testing.assert_array_equal(picture[194:], plain[194:])
    for rows, kind in ((slice(64, 128), "cloud"), (slice(128, 130), "rim"), (slice(130, 192), "shadow")):
        mixed = (1 - TONE_SHARE) * plain[rows] + TONE_SHARE * np.array(TONES[kind])
        assert np.abs(picture[rows] - mixed).max() <= 1


def test_large_scenes_are_drawn_small(tmp_path):
    wide = GRID.window(0, 0, 256, 256).model_copy(update={"width": 2000})
    values = np.full((2, *wide.shape), 0.1, np.float32)
    path = tmp_path / "S1A_IW_GRDH_x.tif"
    tags = {"datetime": "2021-01-05T09:09:42Z"}
    write_raster(path, values, wide, nodata=np.nan, descriptions=("VV", "VH"), tags=tags)
    assert check(path, [], grid=wide)["picture_box"] == [0, 0, 667, 86]


def test_stretches_are_fixed():
    grey = draw_reflectance(np.array([[[-0.01, 0.0, 0.03, 0.3, 0.6, WHITE_REFLECTANCE, 2.0]]]))[0, :, 0].tolist()
    assert grey == [0, 0, 48, 191, 229, 255, 255]  # 255 r (1 + 0.15 / 1.2) / (r + 0.15): roofs are darker than clouds
    (low, high), *_ = DB_RANGES
    assert draw_backscatter(np.array([[[low, high]]]))[0].tolist() == [[0] * 3, [255] * 3]
    colours = draw_backscatter(np.array([[[-10.0]], [[-17.0]]]))[0, 0]
    assert colours.tolist() == [128, 128, 106]  # (7 - 2) / 12 of blue


def test_the_key_says_what_the_colours_of_radar_are():
    assert colour_key(["VV", "VH"]) == [
        ("red", "VV −20 to 0 dB"), ("green", "VH −27 to −7 dB"), ("blue", "VV − VH 2 to 14 dB"),
    ]  # fmt: skip
    assert colour_key(["HH"]) == [("grey", "HH −20 to 0 dB")]


def test_long_lines_are_broken_between_notes():
    picture = np.zeros((300, 480, 3), np.uint8)
    (short, box), (long, _) = (captioned(picture, [[(None, "some words")] * number], 10) for number in (2, 20))
    assert box == (0, 0, 480, 300)
    assert short.width == long.width == 480 and long.height > short.height > 300


def test_a_sheet_is_as_wide_as_its_longest_note_and_the_picture_stands_in_the_middle():
    picture = np.full((480, 20, 3), 7, np.uint8)
    (narrow, box), (wide, _) = (captioned(picture, [[(None, words)]], 10) for words in ("ab", "a long note" * 9))
    assert box[2] - box[0] == 20 < narrow.width < 100 < wide.width
    assert box[0] == (narrow.width - 20) // 2


def test_the_scale_bar_is_as_long_as_it_says():
    sheet, _ = captioned(np.full((500, 500, 3), 255, np.uint8), [[(None, "")]], 10)
    below = np.asarray(sheet)[500:, :200]
    dark = np.flatnonzero((below == INK).all(-1).any(0))
    assert (dark[0], dark[99]) == (12, 111)  # 1 km of 10 m, behind the margin; then come the words
    enlarged, box = captioned(np.full((100, 100, 3), 255, np.uint8), [[(None, "")]], 20)
    below = np.asarray(enlarged)[box[3] :, :200]
    assert np.flatnonzero((below == INK).all(-1).any(0))[39] == 12 + 39  # 200 m: ten pixels, four times as large
    assert scale_bar(5000, 0.2) == (1000, "1 km") and scale_bar(2000, 0.2) == (200, "200 m")


@pytest.mark.parametrize(("value", "expected"), [(5120, 5000), (4999, 2000), (1, 1), (0.3, 0.2), (1000, 1000)])
def test_round_lengths(value, expected):
    assert round_below(value) == pytest.approx(expected)


def test_a_minus_is_a_line():
    """The font has none, and would draw a box."""
    sheet, box = captioned(np.zeros((480, 480, 3), np.uint8), [[(None, "")], [(None, "−")]], 10)
    inked = (np.asarray(sheet)[box[3] + 12 + 23 :] != PAPER).any(-1)
    assert inked.any(1).sum() == 1 and 5 <= inked.any(0).sum() <= 9


def test_means_of_squares_leave_out_what_is_missing():
    values = np.array([[[1, 3, 5, 9], [5, 7, 5, 9]]], np.float32)
    valid = np.array([[True, True, False, False], [False, False, False, False]])
    mean = binned_mean(values, valid, 2)
    assert mean[0, 0, 0] == 2 and np.isnan(mean[0, 0, 1])
