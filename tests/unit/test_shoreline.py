"""Shorelines against hand-made answers and the rule as Sefrin et al. (2021) wrote it, pixel by pixel."""

import csv
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import rasterio
import yaml
from hypothesis import given
from hypothesis import strategies as st

from covermap.area_settings import Composite, Masks, Period
from covermap.config import load
from covermap.errors import ProductError, SettingError
from covermap.grid import Grid
from covermap.masks import clear_mask
from covermap.raster import read_window, write_raster
from covermap.shoreline import (
    NEVER_CLEAR,
    draw_sweep,
    excluded_pixels,
    find_shoreline,
    lowest_ndwi,
    mask_shoreline,
    ndwi,
    shoreline_mask,
    sweep_shoreline,
)

FOREST, WATER, POND, EXCLUDED = 1, 2, 3, 255
SVG = "{http://www.w3.org/2000/svg}"


def test_ndwi_of_water_land_and_nothing():
    green, near_infrared = np.array([600, 400, 0, 0, 65535], np.uint16), np.array([200, 1200, 0, 500, 1], np.uint16)
    expected = np.array([0.5, -0.5, 0, -1, 65534 / 65536], np.float32)
    assert ndwi(green, near_infrared).dtype == np.float32
    assert (ndwi(green, near_infrared) == expected).all()


def excluded_by_the_book(classes, green, near_infrared, threshold, water):
    """(B3 - B8) / (B3 + B8) of raw numbers, 0 where the sum is 0; water needs at least the threshold on all dates."""
    out = classes.copy()
    for row, column in np.ndindex(classes.shape):
        if classes[row, column] == water:
            for number in range(len(green)):
                b3, b8 = int(green[number, row, column]), int(near_infrared[number, row, column])
                if ((b3 - b8) / (b3 + b8) if b3 + b8 else 0) < threshold:
                    out[row, column] = EXCLUDED
    return out


@given(st.integers(0, 10_000), st.sampled_from([-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.1, 1 / 3]))
def test_without_masks_the_rule_is_that_of_the_paper(seed, threshold):
    random = np.random.default_rng(seed)
    classes = random.integers(0, 4, (5, 6)).astype(np.uint8)
    high = int(random.choice([4, 12, 3000, 65536]))  # small numbers meet thresholds exactly, and are 0 together
    green, near_infrared = random.integers(0, high, (2, 10, 5, 6)).astype(np.uint16)
    clear = clear_mask(random.integers(1, 12, (5, 6)).astype(np.uint8), (), 0)
    lowest = lowest_ndwi(((b3, b8, clear) for b3, b8 in zip(green, near_infrared, strict=True)), (5, 6))
    expected = excluded_by_the_book(classes, green, near_infrared, threshold, WATER)
    assert (shoreline_mask(classes, lowest, [WATER], threshold) == expected).all()


def test_only_clear_dates_speak_and_water_never_seen_stays():
    green, dry, wet = (np.full((1, 4), value, np.uint16) for value in (500, 1500, 100))
    clear = np.array([[True, False, True, False]]), np.array([[True, True, False, False]])
    lowest = lowest_ndwi([(green, wet, clear[0]), (green, dry, clear[1])], (1, 4))
    assert lowest.tolist() == [[-0.5, -0.5, np.float32(2 / 3), NEVER_CLEAR]]
    water = np.full((1, 4), WATER, np.uint8)
    assert shoreline_mask(water, lowest, [WATER], 0).tolist() == [[EXCLUDED, EXCLUDED, WATER, WATER]]
    assert (shoreline_mask(water, lowest, [POND], 0) == water).all()
    assert shoreline_mask(water, lowest, [POND, WATER], 1).tolist() == [[EXCLUDED, EXCLUDED, EXCLUDED, WATER]]


def test_what_thresholds_exclude_is_counted_as_the_mask_excludes_it():
    lowest = np.array([[-0.5, 0.2, np.float32(0.2), 0.7], [np.nan, NEVER_CLEAR, -1, 1]], np.float32)
    assert excluded_pixels(lowest, [-1, -0.5, 0.2, 0.21, 1]).tolist() == [0, 1, 2, 4, 5]


# --- the settings

SHORELINE = {"water": ["water"]}


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"labels": {"shoreline": {"water": ["sea"]}}}, [".labels.shoreline.water has 'sea'", "forest", "water"]),
        ({"labels": {"shoreline": {"water": []}}}, [".labels.shoreline.water", "at least 1 item"]),
        ({"labels": {"shoreline": {**SHORELINE, "threshold": 1.2}}}, [".shoreline.threshold", "at most 1", "1.2"]),
        ({"reference": {"shoreline": SHORELINE}}, ["aois.demo.reference.shoreline is set", "remove it"]),
        (
            {"labels": {"shoreline": SHORELINE}, "sentinel2": {"bands": ["B04", "B08"]}},
            ["aois.demo.labels.shoreline needs the band B03", "sentinel2.bands"],
        ),
    ],
)
def test_a_shoreline_that_cannot_be_is_refused(edits, words):
    settings = yaml.safe_load(Path("config/config.yaml").read_text())
    demo = settings["aois"]["demo"]
    for key, values in edits.items():
        demo[key] = {**demo.get(key, {}), **values}
    with pytest.raises(SettingError) as told:
        load(settings)
    for word in words:
        assert word in str(told.value)


def test_a_shoreline_needs_sentinel_2():
    settings = yaml.safe_load(Path("config/config.yaml").read_text())
    settings["aois"]["demo"] |= {"sensors": ["sentinel1"]}
    settings["aois"]["demo"]["labels"]["shoreline"] = SHORELINE
    settings["models"]["unet_demo"]["sensors"] = ["sentinel1"]
    with pytest.raises(SettingError, match=r"labels\.shoreline needs Sentinel-2"):
        load(settings)


# --- the steps

BLOCK = Grid(crs="EPSG:32721", left=2560 * 300, top=10_000_000 - 2560 * 3000, width=600, height=600)
PERIOD = Period(start="2022-01-01", end="2022-12-31")
LAKE = np.s_[500:540, 490:530]  # across the border of two squares of 512 px


def write_scene(path, day, green, near_infrared, scl, block=BLOCK):
    bands = np.stack([near_infrared, green, scl]).astype(np.uint16)  # any order
    tags = {"datetime": f"{day}T14:00:00Z"}
    write_raster(path, bands, block, nodata=0, descriptions=("B08", "B03", "SCL"), tags=tags)
    return path


@pytest.fixture
def lake(tmp_path):
    """A lake whose first ten columns fall dry on the second date, under a cloud in the first rows."""
    classes = np.full(BLOCK.shape, FOREST, np.uint8)
    classes[LAKE] = WATER
    classes[0, 0] = 0
    weight = np.where(classes > 0, 80, 0).astype(np.uint8)
    labels = tmp_path / "labels.tif"
    write_raster(labels, np.stack([classes, weight]), BLOCK, nodata=None, descriptions=("class", "weight"))
    green, wet = np.full(BLOCK.shape, 500), np.full(BLOCK.shape, 2500)
    wet[LAKE] = 100
    dry = wet.copy()
    dry[500:540, 490:500] = 1500
    scl = np.full(BLOCK.shape, 6)
    cloudy = scl.copy()
    cloudy[500:510, 490:530] = 9
    scenes = [
        write_scene(tmp_path / "a.tif", "2022-02-01", green, wet, scl),
        write_scene(tmp_path / "b.tif", "2022-03-01", green, dry, cloudy),
    ]
    return labels, scenes


def run(tmp_path, lake, **changed):
    labels, scenes = lake
    common = {
        "labels": labels,
        "lowest": tmp_path / "masked.ndwi.tif",
        "block": changed.pop("block", BLOCK),
        "water": changed.pop("water", (WATER,)),
    }
    arguments = {"s2": scenes, "period": PERIOD, "masks": Masks(dilate_m=0), "composite": Composite(), **changed}
    find_shoreline(**common, **arguments)
    mask_shoreline(**common, masked=tmp_path / "masked.tif", threshold=0.0)
    written = [read_window(path, common["block"], fill=0) for path in (tmp_path / "masked.tif", common["lowest"])]
    return (*written[0], written[1][0])


def test_a_dry_shore_is_excluded_where_it_was_seen(tmp_path, lake):
    classes, weight, lowest = run(tmp_path, lake)
    before = read_window(lake[0], BLOCK, fill=0)
    expected = before[0].copy()
    expected[510:540, 490:500] = EXCLUDED
    assert (classes == expected).all()
    assert (weight == np.where(expected == EXCLUDED, 0, before[1])).all()
    assert np.isnan(lowest[before[0] != WATER]).all()
    assert (lowest[510:540, 490:500] == -0.5).all()
    assert np.allclose(lowest[500:510, 490:530], 2 / 3)
    with rasterio.open(tmp_path / "masked.tif") as raster:
        assert raster.descriptions == ("class", "weight")
        assert raster.tags()["threshold"] == "0.0"
    with rasterio.open(tmp_path / "masked.ndwi.tif") as raster:
        assert raster.tags()["scenes"] == "2"


def test_clouds_grow_across_squares_and_are_eroded(tmp_path, lake):
    classes, _, _ = run(tmp_path, lake, masks=Masks(dilate_m=40))
    assert np.flatnonzero((classes == EXCLUDED).any(1)).tolist() == list(range(514, 540))
    classes, _, _ = run(tmp_path, lake, masks=Masks(dilate_m=40, erode_m=100))  # no disc of 10 px fits into the cloud
    assert np.flatnonzero((classes == EXCLUDED).any(1)).tolist() == list(range(500, 540))


def test_cutting_into_blocks_changes_nothing(tmp_path, lake):
    whole, _, lowest = run(tmp_path, lake, masks=Masks(dilate_m=70, erode_m=20))
    for row, column in ((0, 0), (0, 500), (505, 0), (505, 500)):
        block = BLOCK.window(row, column, 505 if row == 0 else 95, 500 if column == 0 else 100)
        part, _, part_lowest = run(tmp_path, lake, block=block, masks=Masks(dilate_m=70, erode_m=20))
        inside = np.s_[row : row + block.height, column : column + block.width]
        assert (part == whole[inside]).all()
        np.testing.assert_array_equal(part_lowest, lowest[inside])


def test_scenes_that_the_stack_does_not_use_do_not_speak(tmp_path, lake):
    labels, _ = lake
    before = read_window(labels, BLOCK, fill=0)[0]
    for changed in (
        {"period": Period(start="2022-01-01", end="2022-02-28")},
        {"composite": Composite(season=("01-01", "02-15"))},
        {"composite": Composite(dates=("2022-02-01",))},
        {"steps": [(date(2022, 1, 15), date(2022, 2, 15))]},
    ):
        classes, _, _ = run(tmp_path, lake, **changed)
        assert (classes == before).all(), changed


def test_missing_pixels_do_not_speak(tmp_path, lake):
    labels, _ = lake
    green = np.full(BLOCK.shape, 500)
    gone = np.where(np.arange(BLOCK.width) < 510, 0, green)
    scene = write_scene(tmp_path / "c.tif", "2022-04-01", gone, np.full(BLOCK.shape, 600), np.full(BLOCK.shape, 6))
    classes, _, lowest = run(tmp_path, (labels, [scene]))
    assert np.flatnonzero((classes == EXCLUDED).any(0)).tolist() == list(range(510, 530))
    assert (lowest[500:540, 490:510] == NEVER_CLEAR).all()


def test_no_scene_keeps_all_water_and_a_block_without_water_reads_none(tmp_path, lake):
    labels, _ = lake
    before = read_window(labels, BLOCK, fill=0)[0]
    classes, _, _ = run(tmp_path, (labels, []))
    assert (classes == before).all()
    classes, _, lowest = run(tmp_path, lake, water=(POND,))
    assert (classes == before).all() and np.isnan(lowest).all()


def test_a_scene_without_green_is_named_and_leaves_nothing(tmp_path, lake):
    path = tmp_path / "d.tif"
    bands = np.ones((2, *BLOCK.shape), np.uint16)
    tags = {"datetime": "2022-04-01T14:00:00Z"}
    write_raster(path, bands, BLOCK, nodata=0, descriptions=("B08", "SCL"), tags=tags)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ProductError, match=r"d\.tif has no band B03"):
        run(tmp_path, (lake[0], [path]))
    assert sorted(tmp_path.iterdir()) == before


def test_the_sweep_sums_blocks_and_marks_the_threshold_in_use(tmp_path, lake):
    run(tmp_path, lake)
    lowest, table, chart = tmp_path / "masked.ndwi.tif", tmp_path / "here.csv", tmp_path / "here.svg"
    sweep_shoreline([lowest, lowest], table, chart, "here", 0.1, (-0.6, 0.9, 0.3))
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["threshold"] for row in rows] == ["-0.6", "0.1", "0.3", "0.9"]
    assert [row["excluded_ha"] for row in rows] == ["0.00", "6.00", "6.00", "32.00"]  # 300 px a block, then all 1600
    assert [row["share_of_water"] for row in rows] == ["0.0000", "0.1875", "0.1875", "1.0000"]
    assert {row["water_ha"] for row in rows} == {"32.00"}
    drawing = ElementTree.fromstring(chart.read_text())
    told = " ".join("".join(text.itertext()) for text in drawing.iter(f"{SVG}text"))
    assert "Water excluded as shoreline: Here" in told
    assert "threshold 0.1 in use: 6.0 ha, 18.8 % of the water" in told


def test_an_area_without_water_is_told_and_has_a_shoreline_of_nothing(tmp_path, lake, caplog):
    run(tmp_path, lake, water=(POND,))
    sweep_shoreline([tmp_path / "masked.ndwi.tif"], tmp_path / "t.csv", tmp_path / "c.svg", "here", 0, (0, 1))
    assert "aois.here.labels.shoreline.water" in caplog.text
    assert (tmp_path / "t.csv").read_text().splitlines()[1:] == ["0,0.00,0.00,0.0000", "1,0.00,0.00,0.0000"]
    ElementTree.parse(tmp_path / "c.svg")


def test_the_chart_places_what_it_says():
    curve = {-0.5: 0.0, 0.0: 40.0, 0.25: 60.0, 0.5: 100.0}
    drawing = ElementTree.fromstring(draw_sweep(curve, [-0.5, 0.0, 0.5], 0.25, "a < b", 200.0, 3.0))
    line = [tuple(map(float, point.split(","))) for point in drawing.find(f"{SVG}polyline").get("points").split()]
    ticks = {
        text.text: float(text.get("y")) - 4 for text in drawing.iter(f"{SVG}text") if text.get("text-anchor") == "end"
    }
    assert line[0][1] == pytest.approx(ticks["0"], abs=0.1)
    assert line[3][1] == pytest.approx(ticks["100"], abs=0.1)
    water = next(each for each in drawing.iter(f"{SVG}line") if each.get("class") == "all")
    assert float(water.get("y1")) == pytest.approx(ticks["200"], abs=0.1)
    unit_y = ticks.pop("ha")
    assert unit_y + 15 < ticks["200"]
    assert line[1][0] - line[0][0] == pytest.approx(2 * (line[2][0] - line[1][0]), abs=0.2)
    dot = next(circle for circle in drawing.iter(f"{SVG}circle") if circle.get("class") == "dot")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == line[2]
    assert len(list(drawing.iter(f"{SVG}circle"))) == 4
