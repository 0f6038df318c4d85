"""Legends against the official styles and code lists, and against the codes of real maps."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio

from covermap.legend import NO_LABEL, read_legend

from ..conftest import DATA

LEGENDS = Path("resources/legends")
LABELS = DATA / "labels"

pytestmark = pytest.mark.skipif(not LABELS.exists(), reason=f"no real labels in {LABELS}")


def colours_of(legend):
    return {code: legend.classes[id - 1].colour for code, id in legend.codes.items() if id != NO_LABEL}


def palette(path: Path) -> dict[str, str]:
    """Colour of every value of a QGIS style."""
    entries = ElementTree.fromstring(path.read_text().strip()).iter("paletteEntry")
    return {entry.get("value"): entry.get("color").upper() for entry in entries}


def test_mapbiomas_has_the_official_colours():
    legend = read_legend(LEGENDS / "mapbiomas_full.csv", "8")
    official = palette(LABELS / "mapbiomas/legend/mapbiomas-legend-qgis.qml")
    groups = {"1", "10", "14", "22", "26"}  # of level 1: no map holds them
    ours = colours_of(legend)
    assert set(legend.codes) == (set(official) - groups) | {"75"}  # solar farms came with collection 10
    assert all(official[code] == colour for code, colour in ours.items() if code != "75")


def sheet(path: Path) -> list[list[str]]:
    """Cells of the sheet of collection 4 in three languages."""
    with zipfile.ZipFile(path) as book:
        texts = re.findall(r"<si>(.*?)</si>", book.read("xl/sharedStrings.xml").decode(), re.DOTALL)
        shared = ["".join(re.findall(r"<t[^>]*>(.*?)</t>", text, re.DOTALL)) for text in texts]
        rows = re.findall(r"<row.*?</row>", book.read("xl/worksheets/sheet2.xml").decode(), re.DOTALL)
    cells = [re.findall(r'<c [^>]*?t="(\w)"[^>]*><v>(.*?)</v>|<c [^>]*><v>(.*?)</v>', row) for row in rows]
    return [[shared[int(text)] if kind == "s" else number for kind, text, number in row] for row in cells]


def test_collection_4_has_the_codes_of_its_official_table():
    rows = [row for row in sheet(LABELS / "mapbiomas/legend/mapbiomas-legend-excel.xlsx") if len(row) > 8]
    official = {row[3]: row[1] for row in rows if row[5] == "1"}
    assert len(official) == 21
    for name in ("mapbiomas", "mapbiomas_full", "mapbiomas_deepforest12", "mapbiomas_deepforest13"):
        assert set(official) <= set(read_legend(LEGENDS / f"{name}.csv", "4").codes)
    thirteen = read_legend(LEGENDS / "mapbiomas_deepforest13.csv", "4", "pt")
    portuguese = {row[3]: re.sub(r"^\s*[\d.]+\s+", "", row[0]) for row in rows}
    for code, id in thirteen.codes.items():
        if code in official and id != NO_LABEL:
            assert thirteen.classes[id - 1].name.lower() == portuguese[code].strip().lower().replace(
                "savanica", "savânica"
            )


def test_urban_atlas_has_the_official_codes_and_colours():
    steps = json.loads((LABELS / "urban_atlas/ua2018.product_definition.json").read_text())["steps"]
    codes = next(step["parameters"]["column_defs"][0][1] for step in steps if step["check_ident"].endswith("enum"))
    legend = read_legend(LEGENDS / "urban_atlas.csv", "2018")
    assert set(legend.codes) == set(codes)
    official = palette(LABELS / "styles/Urban2018_geotiff.qml")
    assert {str(entry.id): entry.colour for entry in legend.classes} == official
    assert set(read_legend(LEGENDS / "urban_atlas_10.csv", "2018").codes) == set(codes)


def test_corine_has_the_official_codes_and_the_colours_of_the_first_of_each_group():
    text = (LABELS / "styles/corine.sld").read_text(encoding="latin-1")
    official = dict(re.findall(r'Literal>(\d+)</ogc.*?"fill">\s*(#\w+)<', text, re.DOTALL))
    legend = read_legend(LEGENDS / "corine_level2.csv")
    assert {code for code, id in legend.codes.items() if id != NO_LABEL} == set(official) and len(official) == 44
    for code, colour in colours_of(legend).items():
        assert colour == official[f"{code[:2]}1"].upper()
        assert legend.codes[code] == legend.codes[f"{code[:2]}1"]


@pytest.mark.parametrize("year", [2018, 2022])
@pytest.mark.parametrize("name", ["mapbiomas", "mapbiomas_full", "mapbiomas_deepforest12", "mapbiomas_deepforest13"])
def test_every_code_of_a_real_map_is_known(name, year):
    with rasterio.open(LABELS / f"mapbiomas/MapBiomas_8_{year}.tif") as raster:
        codes = np.unique(raster.read(1, masked=True).compressed())
    assert {f"{code:.0f}" for code in codes} <= set(read_legend(LEGENDS / f"{name}.csv", "8").codes)


@pytest.mark.parametrize(
    ("file", "layer", "attribute", "legend"),
    [
        ("clc_malta/clc2012_mt.gdb.zip", "clc12_MT", "CODE_12", "corine_level2"),
        ("clc_malta/clc2018_mt.gpkg.zip", "clc18_mt", "CODE_18", "corine_level2"),
        ("urban_atlas/EE003L1_NARVA_UA2012.gpkg", None, "CODE_2012", "urban_atlas"),
        ("urban_atlas/EE003L1_NARVA_UA2012.gpkg", None, "CODE_2012", "urban_atlas_10"),
    ],
)
def test_every_code_of_real_polygons_is_known(file, layer, attribute, legend):
    frame = pyogrio.read_dataframe(LABELS / file, layer=layer, columns=[attribute], read_geometry=False)
    codes = read_legend(LEGENDS / f"{legend}.csv").codes
    assert set(frame[attribute]) <= set(codes) and len(frame)


def test_the_folders_of_eurosat_are_its_codes():
    with zipfile.ZipFile(DATA / "eurosat/EuroSAT.zip") as archive:
        folders = {name.split("/")[1] for name in archive.namelist() if name.count("/") == 2}
    assert folders == set(read_legend(LEGENDS / "eurosat.csv").codes)
