"""A map in headless QGIS, as a distribution brings it: palette, names, attribute table, styles and polygons."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio

from covermap.styles import CONFIDENCE_COLOURS
from covermap.vectorize import vectorize

from ._maps import LEGEND, made, mapped

PYTHON = "/usr/bin/python3"  # the one that Debian builds QGIS for
PLAIN = {"PATH": "/usr/bin:/bin", "QT_QPA_PLATFORM": "offscreen", "LANG": "C.UTF-8"}  # nothing of our own environment
COLOURS = [[entry.id, entry.name, entry.colour.lower()] for entry in LEGEND.classes]


def has_qgis():
    return not subprocess.run(
        [PYTHON, "-c", "import qgis.core"], env=PLAIN, capture_output=True, check=False
    ).returncode


@pytest.fixture(scope="module")
def map_and_shown(tmp_path_factory):
    """Classes (y, x), confidence (y, x), the places of a pixel of each and of one beyond, and what QGIS tells."""
    if os.getenv("COVERMAP_QGIS") != "required" and not has_qgis():
        pytest.skip("QGIS is not installed (apt install python3-qgis)")
    folder = tmp_path_factory.mktemp("maps")
    files = mapped(folder, made(tmp_path_factory.mktemp("predictions")))
    vectorize(files["map"], folder / "demo.gpkg", LEGEND, 20)
    classes, confidence = (rasterio.open(files[name]).read(1) for name in ("map", "confidence"))
    places = [np.argwhere(classes == number)[-1].tolist() for number in range(4)]
    line = [PYTHON, Path(__file__).with_name("_qgis.py"), folder, "demo", json.dumps(places)]
    done = subprocess.run(line, env={**PLAIN, "HOME": str(folder)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "JSON" in done.stdout, done.stdout + done.stderr
    return classes, confidence, places, json.loads(done.stdout.split("JSON", 1)[1])


def test_the_map_has_the_colours_and_names_of_the_legend(map_and_shown):
    shown = map_and_shown[-1]["map"]
    assert shown["valid"] and shown["bands"] == 1
    assert shown["auto"] == shown["type"] == "paletted" and shown["applied"]
    assert shown["palette"] == [[*colour, 255] for colour in COLOURS]


def test_without_its_style_the_map_has_them_too(map_and_shown):
    own = {int(value): [label, colour] for value, label, colour, _ in map_and_shown[-1]["map"]["own"]}
    assert [[number, *own[number]] for number in (1, 2, 3)] == COLOURS


def test_no_data_is_transparent_and_classes_are_not(map_and_shown):
    for name in ("map", "confidence"):
        alphas = [pixel[3] for pixel in map_and_shown[-1][name]["pixels"]]
        assert alphas == [0, 255, 255, 255]
    assert [pixel[:3] for pixel in map_and_shown[-1]["map"]["pixels"][1:]] == [list(one.rgb) for one in LEGEND.classes]


def test_the_attribute_table_is_read(map_and_shown):
    classes, table = map_and_shown[0], map_and_shown[-1]["map"]["table"]
    assert table["columns"] == ["value", "class", "name", "red", "green", "blue", "pixels", "hectares"]
    counts = np.bincount(classes.ravel())[1:]
    assert [row[:3] for row in table["rows"]] == [[str(one.id), one.key, one.name] for one in LEGEND.classes]
    assert [int(row[6]) for row in table["rows"]] == counts.tolist()
    assert table["categories"] == ["", *(one.name for one in LEGEND.classes)]


def test_confidence_has_its_ramp(map_and_shown):
    _, confidence, places, shown = map_and_shown
    assert shown["confidence"]["auto"] == shown["confidence"]["type"] == "singlebandpseudocolor"
    assert shown["confidence"]["applied"] and shown["confidence"]["nodata"] == [True, 255]
    assert shown["confidence"]["ramp"] == [list(item) for item in CONFIDENCE_COLOURS.items()]
    red = [int(colour[1:3], 16) for colour in CONFIDENCE_COLOURS.values()]
    for place, pixel in list(zip(places, shown["confidence"]["pixels"], strict=True))[1:]:
        assert abs(pixel[0] - np.interp(confidence[tuple(place)], list(CONFIDENCE_COLOURS), red)) <= 1


def test_polygons_come_with_their_style(map_and_shown):
    shown = map_and_shown[-1]["polygons"]
    assert shown["valid"] and shown["type"] == "categorizedSymbol" and shown["field"] == "class"
    assert [[int(number), *look] for number, *look in shown["classes"]] == COLOURS
    assert shown["fields"] == ["fid", "class", "key", "name", "colour", "hectares"] and shown["features"] > 3
