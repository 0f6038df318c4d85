import base64
import io
import json
import re
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import Resampling

from covermap.area_settings import Composite, Masks, Period
from covermap.errors import ProductError
from covermap.grid import Grid
from covermap.legend import Legend, LegendClass
from covermap.quicklook import HATCH, OVER_BRIGHT, OVER_DARK, tone_over
from covermap.raster import write_raster
from covermap.report import (
    CHART,
    THUMBNAILS,
    _chart,
    _degrees,
    _ground,
    _places,
    _reduced,
    _ticks,
    _tracks,
    composites_of,
    report,
    survey_stacks,
)
from covermap.stack import stack_block

LEGEND = Legend(
    classes=(
        LegendClass(id=1, key="forest", name="Forest <dense>", colour="#1F8D49"),
        LegendClass(id=2, key="water", name="Water", colour="#2532E4"),
        LegendClass(id=3, key="urban", name="Town", colour="#D4271E"),
    ),
    codes={},
)
GRID = Grid(crs="EPSG:32721", left=640_000, top=8_480_000, width=200, height=100)
YEAR = Period(start=date(2019, 1, 1), end=date(2019, 12, 31))
BANDS = ("B02", "B03", "B04")


class Page(HTMLParser):
    """What a browser would load, name and number in a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.skip = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.skip = tag in {"style", "script"}

    def handle_endtag(self, tag):
        self.skip = False

    def handle_data(self, data):
        if not self.skip:
            self.text.append(data)

    def all(self, *names):
        return [attributes for tag, attributes in self.tags if tag in names]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def make_stack(path: Path, block: Grid, values: np.ndarray) -> None:
    """A stack of one scene whose bands are 1, 2 and 3 times ``values``; 0 is no data."""
    scene = path.with_suffix(".tif")
    bands = np.stack([values, 2 * values, 3 * values, np.where(values > 0, 4, 0)]).astype(np.uint16)
    tags = {"datetime": "2019-06-01T14:00:00Z", "scene": "x"}
    write_raster(scene, bands, block, nodata=0, descriptions=(*BANDS, "SCL"), tags=tags)
    stack_block([], [scene], path, block, YEAR, ("sentinel2",), BANDS, (), Masks(dilate_m=0), Composite())


def scores_of(value):
    row = {"users": value, "producers": value, "f1": value, "iou": value, "support": 50, "mapped": 40}
    nothing = dict.fromkeys(("users", "producers", "f1", "iou")) | {"support": 0, "mapped": 0}
    return {
        "overall": value, "low": value - 0.05, "high": value + 0.05, "kappa": None, "macro_f1": value,
        "classes": {"forest": row, "water": row, "urban": nothing},
    }  # fmt: skip


FIGURES = {
    "held_out": {"cells": 7, "pixels": 12_345},
    "agreement": {"map_vs_label": scores_of(0.8123), "baseline_vs_label": scores_of(0.7)},
    "reference": {
        "cells": 7, "pixels": 12_000, "map": scores_of(0.9), "label": scores_of(0.75), "baseline": scores_of(0.8),
        "map_minus_label": {"difference": 0.15, "low": 0.101, "high": 0.202},
        "map_minus_baseline": {"difference": -0.02, "low": None, "high": None},
        "f1_gain_over_label": {"forest": 15.0, "water": 15.0, "urban": None},
    },
    "confusion": {
        "classes": ["forest", "water", "urban"],
        "map_vs_label": [[30, 10, 0], [0, 0, 0], [0, 0, 0]],
        "map_vs_reference": [[199, 1, 0], [0, 5, 0], [0, 0, 0]],
    },
    "areas_ha": {"forest": 1500.0, "water": 500.0, "urban": 0.0},
    "areas_basis": "pixel count, not an area estimate",
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    classes = np.ones((1, *GRID.shape), np.uint8)
    classes[0, 75:] = 2
    write_raster(
        folder / "map.tif", classes, GRID, nodata=0, tags={"weights": "<abc>", "TIFFTAG_COPYRIGHT": "Mine & yours"}
    )
    write_raster(folder / "confidence.tif", np.full((1, *GRID.shape), 80, np.uint8), GRID, nodata=255)
    outline = {"type": "Polygon", "coordinates": [[[-55, -14], [-54, -14], [-54, -13], [-55, -13], [-55, -14]]]}
    scenes = [
        ("S2A_MSIL2A_1", "2019-03-01", 20),
        ("S2B_MSIL2A_2", "2019-03-01", 40),
        ("S1A_IW_GRDH_3", "2019-07-02", None),
    ]
    items = [
        {
            "type": "Feature", "id": name, "geometry": outline, "assets": {},
            "properties": {"datetime": f"{day}T12:00:00Z", "platform": "sentinel-" + name[1:3].lower()}
            | ({"eo:cloud_cover": cloud} if cloud else {}),
        }
        for name, day, cloud in scenes
    ]  # fmt: skip
    (folder / "scenes.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    make_stack(folder / "stack.zarr.zip", GRID, 500 + np.arange(200 * 100).reshape(GRID.shape) % 97)
    (folder / "accuracy.json").write_text(json.dumps(FIGURES))
    training = {"best_epoch": 2, "parameters": 48_213, "validation": {"overall": 0.7, "macro_f1": 0.6, "f1": {}}}
    (folder / "metrics.json").write_text(json.dumps(training))
    (folder / "log.csv").write_text(
        "epoch,train_loss,val_loss,val_overall,val_macro_f1,learning_rate,seconds\n"
        "1,2.0,2.1,0.5,0.4,0.001,3\n2,1.0,1.5,0.7,,0.001,3\n"
    )
    return folder


def make(folder, name, **changes):
    arguments = {
        "map": folder / "map.tif", "confidence": folder / "confidence.tif", "listing": folder / "scenes.json",
        "stacks": [folder / "stack.zarr.zip"], "report": folder / name, "legend": LEGEND, "area": "Here & <there>",
        "period": YEAR, "model": "unet", "masks": Masks(),
        "notes": "never evidence of accuracy",
    }  # fmt: skip
    report(**{**arguments, **changes})
    return (folder / name).read_text()


@pytest.fixture(scope="module")
def text(files):
    return make(
        files,
        "full.html",
        accuracy=files / "accuracy.json",
        metrics=files / "metrics.json",
        training_log=files / "log.csv",
    )


def test_no_request_leaves_the_page(text):
    written = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert len(written) < len(text) and not re.search(r"//|url\(|@import", written)
    page = Page(text)
    assert not page.all("link", "iframe", "object")
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert all("src" not in script for script in page.all("script"))
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")


def test_every_picture_cell_and_control_has_a_name(text):
    page = Page(text)
    assert len(page.all("img")) == 3
    assert all(image["alt"] for image in page.all("img"))
    assert all(cell.get("scope") in {"row", "col"} for cell in page.all("th"))
    assert all(graphic.get("aria-label") or graphic.get("aria-hidden") for graphic in page.all("svg"))
    assert next(control for control in page.all("input") if control["type"] == "range")["aria-label"]
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    pointed = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert set(pointed) <= set(names)


def test_what_others_wrote_is_escaped(text):
    assert "Here &amp; &lt;there&gt;" in text
    assert "Forest &lt;dense&gt;" in text
    assert "&lt;abc&gt;" in text
    assert text.count("Mine &amp; yours") == 1


def test_figures_are_told_with_their_intervals_and_their_name(text):
    words = Page(text).words
    assert (
        "Agreement with the label on held-out cells: 12,345 pixels in 7 cells where the network saw no labels" in words
    )
    assert "not an accuracy of the map" in words
    assert "81.2 %" in words and "76.2 to 86.2 %" in words
    assert "Accuracy against the reference map" in words
    assert "+15.0 points" in words and "+10.1 to +20.2" in words
    assert "−2.0 points" in words and "no interval: one cell only" in words
    assert "never evidence of accuracy" in words
    assert "1,500 75.0 %" in words and "Not on this map: Town" in words
    assert "Half of the ground was seen clear by Sentinel-2 at least 1 time; 0.0 % of it never." in words


def test_the_random_forest_stands_beside_the_map_in_every_class(text):
    tables = re.findall(r'<table class="by-class" aria-labelledby="by-(label|reference)">(.*?)</table>', text, re.S)
    for name, table in tables:
        titles = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<th scope=\"col\">.*?</th>", table)]
        row = re.findall(r"<td[^>]*>([^<]*)</td>", table)[: len(titles) - 1]
        forest = row[titles.index("Random forest’s F1") - 1]
        assert (row[titles.index("F1") - 1], forest) == {"label": ("81.2", "70.0"), "reference": ("90.0", "80.0")}[name]
    assert len(tables) == 2


def test_the_colours_of_confidence_are_shown_with_its_layer_only(text):
    ramp = re.search(r'<div id="ramp" hidden>\s*<div class="ramp"', text)
    layer = re.search(r'<img id="layer-confidence"[^>]* hidden>', text)
    assert ramp and layer


def test_confusion_shows_shares_of_rows_and_only_classes_that_occur(text):
    tables = re.findall(r'<table class="heat".*?</table>', text, re.S)
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", table) for table in tables]
    assert cells[0] == ["75", "25", "·", "·"]
    assert cells[1] == ["100", "&lt;1", "·", "100"]


def test_an_area_without_labels_says_so(files):
    words = Page(make(files, "bare.html", stacks=[], notes="", training_log=None)).words
    assert "This map was not evaluated" in words
    assert "150 75.0 %" in words  # counted from the map
    assert "Opacity" not in words


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pictures_hold_the_map(files, text):
    sources = [image["src"] for image in Page(text).all("img")]
    assert sources[0].startswith("data:image/jpeg")
    for source, value, colour in ((sources[1], 1, (0x1F, 0x8D, 0x49, 255)), (sources[2], 80, None)):
        with rasterio.MemoryFile(base64.b64decode(source.partition(",")[2])) as file, file.open() as picture:
            assert picture.shape == GRID.shape
            assert picture.read(1)[0, 0] == value
            assert colour is None or picture.colormap(1)[value] == colour
            assert picture.colormap(1)[255][3] == 0


def test_a_broken_map_leaves_no_page(files, tmp_path):
    (tmp_path / "map.tif").write_bytes(b"II*")
    with pytest.raises(ProductError, match=r"map\.tif"):
        make(files, "broken.html", map=tmp_path / "map.tif")
    assert not (files / "broken.html").exists()


def test_a_reduced_class_map_takes_the_most_frequent_class(tmp_path):
    classes = np.ones((1, 4, 6), np.uint8)
    classes[0, :2, 2:4] = [[2, 2], [2, 1]]
    write_raster(tmp_path / "small.tif", classes, GRID.window(0, 0, 4, 6), nodata=0)
    assert _reduced(tmp_path / "small.tif", 2, Resampling.mode).tolist() == [[1, 2, 1], [1, 1, 1]]


def test_the_composite_is_the_mean_of_its_pixels_across_blocks(tmp_path):
    grid = GRID.window(0, 0, 7, 9)
    values = np.arange(1, 64).reshape(7, 9) * 10
    values[0, 0] = values[6, 8] = 0
    beyond = np.full((8, 8), 7777)  # a block may reach beyond the map on any side
    paths = []
    for name, (row, column) in {"west": (-1, -3), "east": (-1, 5)}.items():
        part = beyond.copy()
        block = grid.window(row, column, 8, 8)
        inside = block.cropped(grid.bounds)
        r, c = inside.offset_in(grid)
        at = inside.offset_in(block)
        part[at[0] : at[0] + inside.height, at[1] : at[1] + inside.width] = values[
            r : r + inside.height, c : c + inside.width
        ]
        paths.append(tmp_path / f"{name}.zarr.zip")
        make_stack(paths[-1], block, part)
    picture, clear = survey_stacks(paths, grid, 2)
    expected = np.full((4, 5), np.nan)
    for i in range(4):
        for j in range(5):
            cell = values[2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            expected[i, j] = cell[cell > 0].mean() if (cell > 0).any() else np.nan
    np.testing.assert_allclose(picture, np.stack([3 * expected, 2 * expected, expected]) / 10_000, rtol=1e-5)
    assert np.isnan(picture[:, 3, 4]).all()
    assert clear == {"median": 1, "never": pytest.approx(2 / 63), "overruled": 0}


def test_degrees_have_a_side():
    assert _degrees(-54.4, -13.5) == "13.500° S, 54.400° W"
    assert _degrees(7.25, 48.1) == "48.100° N, 7.250° E"


def test_gaps_of_the_area_are_hatched_and_its_surroundings_white():
    reflectance = np.full((3, 9, 9), 0.1, np.float32)
    reflectance[:, :5] = np.nan
    classes = np.ones((9, 9), np.uint8)
    classes[:2], classes[8] = 0, 0
    picture = _ground(reflectance, classes)
    assert (picture[:2] == 255).all() and set(np.unique(picture[2:5])) == set(HATCH)
    assert (picture[5:] == 115).all()  # 255 x 1.125 x 0.1 / 0.25


@pytest.mark.parametrize("top", [0.013, 0.9, 1.0, 1.99, 2.31, 7])
def test_ticks_reach_the_top(top):
    ticks = _ticks(top)
    assert ticks[0] == 0 and ticks[-1] >= top * (1 - 1e-9) and 3 <= len(ticks) <= 7


def test_a_chart_runs_from_corner_to_corner_and_skips_gaps():
    chart = _chart("Loss", [1, 2, 3], {"a": [2.0, float("nan"), 0.0], "b": [1.0, 1.0, 0.0]}, [0, 1, 2])
    first, second = chart["series"]
    assert first["points"] == f"{CHART['left']:.1f},{CHART['top']:.1f} {CHART['right']:.1f},{CHART['bottom']:.1f}"
    assert abs(first["label_y"] - second["label_y"]) >= 15


def test_scenes_of_a_day_are_one_mark(files):
    items = json.loads((files / "scenes.json").read_text())["features"]
    tracks = _tracks(items, YEAR, {})
    (day,) = tracks["sensors"]["Sentinel-2"]
    assert (day["scenes"], day["cloud"], day["platforms"]) == (2, 30, "sentinel-2a, sentinel-2b")
    assert day["at"] == pytest.approx(100 * 59.5 / 365)
    assert tracks["sensors"]["Sentinel-1"][0]["cloud"] is None
    assert [month["name"] for month in tracks["months"]] == YEAR.months


# --- scene by scene


def checked_scene(folder, name, day, **changes):
    """Figures and picture of a scene, as check_scene writes them: red, on a white sheet."""
    optical = name.startswith("S2")
    shares = {"no_data": 0.1, "clear": 0.5, "rim": 0.1, "cloud": 0.25, "shadow": 0.05, "snow": 0.0}
    shares |= {"defective": 0.0, "other": 0.0}
    figures = {
        "scene": name, "sensor": "sentinel2" if optical else "sentinel1", "datetime": f"{day}T12:00:00Z",
        "platform": f"sentinel-{name[1:3].lower()}", "pixel_m": 10.0, "left_out": None,
        "picture_box": [60, 0, 540, 240],
        "shares": shares if optical else {"no_data": 0.0, "distorted": 0.02},
        "shift": {"right_pixels": 0.3, "down_pixels": -0.4, "spread_pixels": 0.1, "patches": 40, "trusted": True},
    }  # fmt: skip
    of_sensor = {"tile": "21LYF", "baseline": "04.00", "below_zero": None} if optical else {
        "track": 68, "orbit_state": "descending", "polarisations": ["VV", "VH"], "median_db": {"VH": -16.5, "VV": -10.4}
    }  # fmt: skip
    quality, quicklook = folder / f"{name}.json", folder / f"{name}.png"
    quality.write_text(json.dumps(figures | of_sensor | changes))
    picture = np.full((300, 600, 3), 255, np.uint8)
    picture[:240, 60:540] = (200, 30, 30)
    Image.fromarray(picture).save(quicklook)
    return quality, quicklook


@pytest.fixture(scope="module")
def by_scene(files, tmp_path_factory):
    """A page about the three scenes of the list, of which one was left out, and a fourth that was never used."""
    folder = tmp_path_factory.mktemp("quality")
    doubtful = {"right_pixels": 1.5, "down_pixels": 0.0, "spread_pixels": 2.0, "patches": 2, "trusted": False}
    pairs = [
        checked_scene(folder, "S2A_MSIL2A_1", "2019-03-01"),
        checked_scene(folder, "S2B_MSIL2A_2", "2019-03-01", shift=doubtful, left_out="91.0 % masked, limit 60 %"),
        checked_scene(folder, "S1A_IW_GRDH_3", "2019-07-02", shift=None),
    ]
    quality, quicklooks = map(list, zip(*pairs, strict=True))
    unused = {"S1A_<other>": "another orbit direction or track"}
    return make(files, "scenes.html", quality=quality, quicklooks=quicklooks, unused=unused)


def test_every_scene_has_its_row(by_scene):
    page = Page(by_scene)
    assert "2019-03-01 Sentinel-2A 21LYF 50.0 10.0 25.0 5.0 0.0 0.0 10.0 04.00 +0.30, −0.40 5.0 yes" in page.words
    assert "+1.50, +0.00 15.0 ? no: 91.0 % masked, limit 60 %" in page.words
    assert "2019-07-02 Sentinel-1A 68 descending VV −10.4, VH −16.5 2.0 0.0 – – yes" in page.words
    assert "1 listed, but not used" in page.words and "S1A_&lt;other&gt;" in by_scene
    assert "No scene was moved." in page.words and "Scenes by date" not in page.words
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    pointed = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert len(names) == len(set(names)) and set(pointed) <= set(names)
    assert all(image["alt"] for image in page.all("img"))


def test_thumbnails_are_the_pictures_without_their_text(by_scene):
    sources = [image["src"] for image in Page(by_scene).all("img") if "width" in image]
    assert len(sources) == 3
    for source in sources:
        assert len(source) < 10_000
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as small:
            assert small.size == (200, 100)
            assert np.abs(np.asarray(small).astype(int) - (200, 30, 30)).max() < 12


def test_the_strip_shows_what_was_clear_in_the_area(files):
    items = json.loads((files / "scenes.json").read_text())["features"]
    shares = {"S2A_MSIL2A_1": {"clear": 0.3}, "S2B_MSIL2A_2": {"clear": 0.25}, "S1A_IW_GRDH_3": {}}
    tracks = _tracks(items, YEAR, {name: {"shares": {"no_data": 0.2} | each} for name, each in shares.items()})
    shown = {sensor: [day["shown"] for day in days] for sensor, days in tracks["sensors"].items()}
    assert shown == {"Sentinel-1": [0.8], "Sentinel-2": [0.55]}


def test_two_hundred_scenes_stay_one_small_page(files, tmp_path):
    days = [date(2019, 1, 1 + number % 28).replace(month=1 + number // 28) for number in range(200)]
    pairs = [checked_scene(tmp_path, f"S2A_MSIL2A_{number}", day) for number, day in enumerate(days)]
    quality, quicklooks = map(list, zip(*pairs, strict=True))
    text = make(files, "many.html", quality=quality, quicklooks=quicklooks, registration="correct")
    page = Page(text)
    small = [image["alt"] for image in page.all("img") if "width" in image]
    assert len(small) == THUMBNAILS and len(text) < 600_000
    assert "2019-01-01" in small[0] and "2019-08-04" in small[-1]
    assert text.count('<tr><th scope="row">2019-') == 200
    assert "were moved back by it" in page.words and f"{THUMBNAILS} of 200 scenes" in page.words
    assert f"at full size: {tmp_path.as_posix()}/*.png" in page.words


def test_the_swatches_are_those_of_the_pictures(by_scene):
    legend = re.search(r"Over the pictures:(.*?)</p>", by_scene, re.S)[1]
    swatches = re.findall(r"background:linear-gradient\(135deg, (#\w{6}) 50%, (#\w{6}) 50%\).*?></span>(\w+)", legend)
    assert [name for _, _, name in swatches] == ["rim", "cloud", "shadow"]  # those there are
    dark, bright = (tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in swatches[1][:2])
    assert dark == tone_over("cloud", OVER_DARK) and bright == tone_over("cloud", OVER_BRIGHT)


def test_free_places_go_to_the_other_sensor():
    assert _places(40, 40) == (16, 8)
    assert _places(6, 40) == (16, 18) and _places(40, 3)[0] == 21
    assert _places(40, 0)[0] == _places(0, 40)[1] == 24


def test_a_direction_is_told_where_there_are_two(files, tmp_path, by_scene):
    assert "descending" not in re.search(r'alt="Sentinel-1.*?</figcaption>', by_scene, re.S)[0]
    states = {"S1A_1": "ascending", "S1A_2": "descending"}
    pairs = [checked_scene(tmp_path, name, "2019-03-01", orbit_state=state) for name, state in states.items()]
    quality, quicklooks = map(list, zip(*pairs, strict=True))
    text = make(files, "sides.html", quality=quality, quicklooks=quicklooks)
    captions = re.findall(r"<figcaption>.*?</figcaption>", text, re.S)
    assert [state in caption for state, caption in zip(states.values(), captions[-2:], strict=True)] == [True, True]


def test_a_half_pixel_is_worth_moving(files, tmp_path, by_scene):
    assert "more than half a pixel" not in Page(by_scene).words  # half a pixel, and a doubtful one
    far = {"right_pixels": 0.3, "down_pixels": -0.41, "spread_pixels": 0.1, "patches": 40, "trusted": True}
    quality, quicklook = checked_scene(tmp_path, "S2A_MSIL2A_1", "2019-03-01", shift=far)
    words = [
        Page(make(files, f"{mode}.html", quality=[quality], quicklooks=[quicklook], registration=mode)).words
        for mode in ("report", "correct")
    ]
    assert "1 scene surely lies more than half a pixel off" in words[0] and "mode: correct" in words[0]
    assert "half a pixel" not in words[1]


# --- masks and shorelines


def test_overruled_masks_are_told(files, tmp_path):
    """A fifth of the area is cloud in its only scene."""
    scl = np.where(np.arange(200) < 40, 9, 4) * np.ones(GRID.shape, int)
    bands = np.stack([*[np.full(GRID.shape, 500)] * 3, scl]).astype(np.uint16)
    tags = {"datetime": "2019-06-01T14:00:00Z", "level": "L1C"}
    scene, stack = tmp_path / "S2X.tif", tmp_path / "cloudy.zarr.zip"
    write_raster(scene, bands, GRID, nodata=0, descriptions=(*BANDS, "SCL"), tags=tags)
    masks = Masks(dilate_m=0, unmask_above=90, unmask_from=1)
    stack_block([], [scene], stack, GRID, YEAR, ("sentinel2",), BANDS, (), masks, Composite())
    _, clear = survey_stacks([stack], GRID, 2)
    assert clear == {"median": 1, "never": 0.2, "overruled": 4000}
    words = Page(make(files, "cloudy.html", stacks=[stack], masks=masks)).words
    assert "At 4,000 pixels ( 20.0 % of the area) the masks were overruled" in words
    assert "With 1 to 10 observations of a pixel, this means that none was clear: cloud may be" in words
    for changes, few in (
        ({"unmask_above": 40}, "With 1 observation of"),
        ({"unmask_from": 10}, "With 10 observations of"),
    ):
        changed = masks.model_copy(update=changes)
        assert few in Page(make(files, "cloudy.html", stacks=[stack], masks=changed)).words
    many = masks.model_copy(update={"unmask_from": 11})
    assert "cloud may be" not in Page(make(files, "cloudy.html", stacks=[stack], masks=many)).words
    assert "Level-1C, top of atmosphere; median by period, 1 step; gaps left" in words
    assert "SCL 0 1 3 8 9 10 11, eroded by 0 m, dilated by 0 m" in words and "Scenes in use 1 Sentinel-2" in words
    assert composites_of([stack])["s2"]["scenes"] == {"S2X"}


def test_a_stack_without_true_colour_still_says_how_often_it_was_clear(tmp_path):
    scene, stack = tmp_path / "S2X.tif", tmp_path / "s.zarr.zip"
    bands = np.stack([np.full(GRID.shape, 500), np.full(GRID.shape, 4)]).astype(np.uint16)
    tags = {"datetime": "2019-06-01T14:00:00Z"}
    write_raster(scene, bands, GRID, nodata=0, descriptions=("B08", "SCL"), tags=tags)
    stack_block([], [scene], stack, GRID, YEAR, ("sentinel2",), ("B08",), (), Masks(dilate_m=0), Composite())
    assert survey_stacks([stack], GRID, 2) == (None, {"median": 1, "never": 0.0, "overruled": 0})


def test_the_page_tells_what_the_shoreline_left_out(files, tmp_path, text):
    table, chart = tmp_path / "here.csv", tmp_path / "here.svg"
    table.write_text(
        "threshold,excluded_ha,water_ha,share_of_water\n-0.2,12.00,1046.30,0.0115\n0.1,215.40,1046.30,0.2059\n"
    )
    chart.write_text("<svg/>")
    given = {"shoreline": table, "shoreline_chart": chart}
    page = Page(made := make(files, "shore.html", threshold=0.1, **given))
    assert "1,046.3 ha of labelled water that was seen clear, 215.4 ha ( 20.6 % ) had an NDWI below" in page.words
    assert "the threshold 0.1 on some clear date" in page.words
    source = next(image["src"] for image in page.all("img") if "svg" in image["src"])
    assert base64.b64decode(source.partition(",")[2]) == b"<svg/>"
    assert "comes and goes" not in Page(text).words and "//" not in re.sub(r"data:image/[^\"]+", "", made)
    with pytest.raises(ProductError, match=r"here\.csv or .*here\.svg cannot be read"):
        make(files, "never.html", threshold=0.3, **given)


def test_a_broken_picture_is_named(files, tmp_path):
    quality, quicklook = checked_scene(tmp_path, "S2A_MSIL2A_1", "2019-03-01")
    quicklook.write_bytes(b"\x89PNG")
    with pytest.raises(ProductError, match=r"S2A_MSIL2A_1\.png cannot be read as a picture"):
        make(files, "never.html", quality=[quality], quicklooks=[quicklook])
    assert not (files / "never.html").exists()


def split_survey(folder, **changed):
    """A survey of the split by hand."""
    hectares = {
        "train": {"forest": 75.0, "water": 25.0, "urban": 0.0},
        "validation": {"forest": 10.0, "water": 0.0, "urban": 0.0},
        "test": {"forest": 1500.0, "water": 500.0, "urban": 0.0},
    }
    kinds = ("train", "validation", "test")
    survey = {
        "split": "blocks", "folds": 5, "fold": 2, "cell_m": 2560, "buffer_m": 320, "hectares": hectares,
        "tiles": dict(zip(kinds, (4, 1, 1080), strict=True)), "areas": {kind: ["taught"] for kind in kinds},
        "beyond": {"here": {"s2 B04": 0.34}}, "leaks": {}, "notes": ["No validation tile has a pixel of <water>."],
    }  # fmt: skip
    path = folder / "survey.json"
    path.write_text(json.dumps(survey | changed))
    return path


def test_the_area_of_each_class_is_told_by_split(files, tmp_path):
    text = make(files, "split.html", survey=split_survey(tmp_path), accuracy=files / "accuracy.json")
    words = Page(text).words
    assert "Forest <dense> 75.0 75.0 10.0 100.0 1,500.0 75.0" in words
    assert "Water 25.0 25.0 0.0 0.0 500.0 25.0" in words
    assert "All 100.0 4 tiles 10.0 1 tile 2,000.0 1,080 tiles" in words
    assert "Cells of 2.56 km were split by their place alone; splits lie at least 320 m apart." in words
    assert "This is fold 3 of 5, each of which tests other cells." in words
    assert "s2 B04 34.0" in words
    assert "of &lt;water&gt;" in text
    assert "where the network saw no labels" in words


def test_figures_that_leak_say_so_above_all(files, tmp_path):
    leak = "Tiles were split at random, so the figures leak."
    given = {
        "survey": split_survey(tmp_path, split="random", leaks={"some_area": leak}),
        "accuracy": files / "accuracy.json",
    }
    words = Page(make(files, "leak.html", area="some_area", **given)).words
    assert leak in words and "where the network saw no labels" not in words
    assert words.index(leak) < words.index("Agreement with the label on held-out tiles")
    assert leak not in Page(make(files, "other.html", area="other", **given)).words
