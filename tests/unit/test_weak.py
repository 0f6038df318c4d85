"""Weak labels: what each rule takes away, and that it says so."""

import logging

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from covermap.label_settings import LabelMap, Labels, Polygons, Weak
from covermap.labels import rasterize_labels
from covermap.weak import Reading, map_pixel_m, near_borders, weaken_labels

from .test_labels import BLOCK, CODES, square, write_polygons, write_raster

READING = Reading(source="raster", codes=CODES)
CODE = {0: 0, 1: 3, 2: 15, 255: 33}


def weakened(folder, classes, block=BLOCK, name="a.tif", reading=READING, **changes):
    """Class and weight of a block of a map of class ids."""
    labels = folder / name
    if not labels.exists():
        write_raster(labels, np.vectorize(CODE.get)(classes).astype(np.uint8))
    rasterize_labels(labels, folder / "whole.tif", block, reading.codes, reading.source, reading.attribute)
    given = {
        "stable": [],
        "agreeing": None,
        "reading_agreeing": None,
        "erode_pixels": 0,
        "ignored": [],
        "weights": {},
        **changes,
    }
    weaken_labels(labels, folder / "whole.tif", weakened=folder / "weak.tif", block=block, reading=reading, **given)
    with rasterio.open(folder / "weak.tif") as raster:
        assert raster.descriptions == ("class", "weight")
        return raster.read()


def halves(column=4):
    classes = np.ones(BLOCK.shape, np.uint8)
    classes[:, column:] = 2
    return classes


def test_borders_of_classes_are_eroded_and_those_of_the_map_are_not(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    classes = halves()
    classes[0] = 0
    found, weight = weakened(tmp_path, classes, erode_pixels=1)
    expected = classes.copy()
    expected[:, 3:5] = 0
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(weight, np.where(expected, 100, 0))
    assert "10 pixels, 25.0 % of the labels, are near another class" in caplog.text


def test_what_is_excluded_has_a_border_and_stays_excluded():
    classes = np.uint8([[1, 1, 1, 255, 255, 0, 2]])
    near = near_borders(classes, 1)
    np.testing.assert_array_equal(near, [[False, False, True, True, False, False, False]])


def test_erosion_looks_beyond_the_block(tmp_path):
    classes = halves()
    whole, _ = weakened(tmp_path, classes, erode_pixels=2)
    for column in (0, 3, 4, 5):
        block = BLOCK.window(0, column, 6, 3)
        part, _ = weakened(tmp_path, classes, block, erode_pixels=2)
        np.testing.assert_array_equal(part, whole[:, column : column + 3])


@pytest.mark.parametrize("times", [1, 3])
def test_pixels_of_the_map_count_for_rasters(tmp_path, times):
    coarse = BLOCK.model_copy(update={"pixel_m": 10.0 * times, "width": 3, "height": 2})
    path = write_raster(tmp_path / "a.tif", np.uint8([[3, 3, 15]] * 2), coarse)
    assert map_pixel_m(path, BLOCK, "raster") == pytest.approx(10 * times)
    if times == 3:
        found, _ = weakened(tmp_path, None, erode_pixels=1)
        assert (found[:, :3] == 1).all() and not found[:, 3:].any()


@pytest.mark.parametrize(("pixel_m", "columns"), [(1, 2), (5, 2), (30.3, 6)])
def test_a_map_that_is_finer_or_hardly_coarser_than_the_grid(tmp_path, pixel_m, columns):
    """One pixel of the grid at least on each side of the border; 30.3 m are three pixels, not four."""
    width = round(80 / pixel_m) if pixel_m < 10 else 4
    codes = np.where(np.arange(width) < width / 2, 3, 15).astype(np.uint8)[None].repeat(width, 0)
    map_transform = from_origin(BLOCK.left + 40 - width / 2 * pixel_m, BLOCK.top, pixel_m, pixel_m)
    path = write_raster(tmp_path / "a.tif", codes, transform=map_transform, width=width, height=width)
    rasterize_labels(path, tmp_path / "r.tif", BLOCK, CODES, "raster", None)
    weaken_labels(path, tmp_path / "r.tif", [], None, tmp_path / "w.tif", BLOCK, READING, None, 1, [], {})
    with rasterio.open(tmp_path / "w.tif") as raster:
        kept = raster.read(1)
    assert (kept == 0).all(axis=0).sum() == columns and (kept == 0).any(axis=0).sum() == columns


def test_a_map_in_degrees_has_pixels_of_thirty_metres(tmp_path):
    step = 0.000269494585
    transform = rasterio.Affine(step, 0, -54.42, 0, -step, -13.5)
    path = write_raster(tmp_path / "a.tif", np.full((9, 9), 3, np.uint8), crs="EPSG:4326", transform=transform)
    assert map_pixel_m(path, BLOCK, "mapbiomas") == pytest.approx(29.8, abs=0.3)


def test_polygons_are_eroded_by_pixels_of_the_grid(tmp_path):
    write_polygons(tmp_path / "a.gpkg", [square(0, 0, 4, 6), square(4, 0, 4, 6)], [3, 15])
    reading = Reading(source="vector", codes=CODES, attribute="code")
    found, _ = weakened(tmp_path, None, name="a.gpkg", reading=reading, erode_pixels=2)
    assert (found[:, :2] == 1).all() and not found[:, 2:6].any() and (found[:, 6:] == 2).all()


def test_other_years_and_another_map_take_away_what_they_contradict(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    year, other = np.full(BLOCK.shape, 3, np.uint8), np.full(BLOCK.shape, 3, np.uint8)
    year[0], year[1] = 15, 0  # another class; no label, which says nothing
    other[2], other[3] = 15, 33  # another class; excluded, which says nothing
    years = [write_raster(tmp_path / "year.tif", year)]
    agreeing = write_raster(tmp_path / "other.tif", np.where(other == 15, 7, other).astype(np.uint8))
    reading = Reading(source="raster", codes={"3": 1, "7": 2, "33": 255})
    classes = np.ones(BLOCK.shape, np.uint8)
    found, weight = weakened(tmp_path, classes, stable=years, agreeing=agreeing, reading_agreeing=reading)
    classes[[0, 2]] = 0
    np.testing.assert_array_equal(found, classes)
    np.testing.assert_array_equal(weight, 100 * classes)
    assert f"8 pixels, 16.7 % of the labels, are of another class in {years[0]}" in caplog.text
    assert f"8 pixels, 16.7 % of the labels, are of another class in {agreeing}" in caplog.text
    assert "16 pixels, 33.3 % of the labels, are without a label for the model, in all" in caplog.text


def test_a_map_that_lies_elsewhere_is_told(tmp_path, caplog):
    other = write_raster(tmp_path / "other.tif", np.full((2, 2), 3, np.uint8), BLOCK.window(99, 99, 2, 2))
    found, _ = weakened(tmp_path, halves(), stable=[other])
    np.testing.assert_array_equal(found, halves())
    assert "other.tif has no label where this block has one, so it is compared with nothing" in caplog.text


def test_ignored_classes_are_excluded_and_weights_are_of_classes(tmp_path):
    found, weight = weakened(tmp_path, halves(), ignored=[1], weights={2: 60})
    assert (found[:, :4] == 255).all() and (found[:, 4:] == 2).all()
    assert (weight[:, :4] == 0).all() and (weight[:, 4:] == 60).all()


# --- settings ---

MAP = {"source": "raster", "path": "a.tif", "legend": "a.csv"}
AUTO = {"source": "mapbiomas", "path": "auto", "collection": "8", "year": 2018, "legend": "a.csv"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({**MAP, "weak": {"stable_with": [2017]}}, "weak.stable_with has 2017: expected files, since path is one"),
        ({**AUTO, "weak": {"stable_with": ["b.tif"]}}, "expected years, since path is auto"),
        ({**MAP, "weak": {"stable_with": ["a.tif"]}}, "which is path itself: name the map of another year"),
        (
            {**MAP, "source": "vector", "attribute": "CODE_18", "weak": {"stable_with": ["b.gpkg"]}},
            "source is vector, .* set weak.agree_with to the map of the other year",
        ),
        (
            {"source": "urban_atlas", "path": "a.gpkg", "weak": {"stable_with": ["b.gpkg"]}},
            "source is urban_atlas, .* set weak.agree_with",
        ),
        (
            {"source": "urban_atlas", "path": "a.gpkg", "polygons": {"layer": "b"}},
            "polygons.layer is b, but source is urban_atlas",
        ),
        ({**AUTO, "weak": {"stable_with": [2018]}}, "which is year itself: name other years"),
        ({**AUTO, "weak": {"stable_with": [2023]}}, "collection 8 has 1985 to 2022"),
        ({**MAP, "weak": {"agree_with": MAP}}, "which is path itself: name another map"),
        (
            {**MAP, "weak": {"agree_with": {"source": "urban_atlas", "path": "auto", "year": 2018}}},
            "ordered for labels alone: give the file",
        ),
        (
            {"source": "urban_atlas", "path": "auto", "year": 2018, "weak": {"stable_with": [2012]}},
            "set weak.agree_with to the file of another one",
        ),
        ({**MAP, "weak": {"ignore": ["x"], "class_weights": {"x": 50}}}, "remove it from one of the two"),
        ({**MAP, "weak": {"class_weights": {"x": 0}}}, "greater than or equal to 1"),
        ({**MAP, "polygons": {"all_touched": True}}, "source is raster, which has pixels: remove it"),
    ],
)
def test_settings_that_make_no_sense(changes, words):
    with pytest.raises(ValueError, match=words):
        Labels(**changes)


def test_labels_are_trusted_by_default():
    assert not Labels(**MAP).is_weak and Labels(**MAP, weak={"erode_pixels": 1}).is_weak
    assert Labels(**MAP).weak == Weak() and LabelMap(**MAP).polygons == Polygons()
