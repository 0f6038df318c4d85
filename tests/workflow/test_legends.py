"""One legend to every output, and a change of its looks or language trains nothing again."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import rasterio

from ..conftest import ROOT, run_snakemake, small_settings

LEGEND = ROOT / "resources" / "legends" / "mapbiomas.csv"
LOOKS = {"mosaic", "describe_map", "evaluate", "report", "all"}  # evaluate reads the new map, which is the old one


def rules_of(small_world, settings):
    done = run_snakemake(small_world, settings, "-n", "--quiet", "rules")
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"^(\w+)\s+\d+$", done.stdout, re.MULTILINE)) - {"total"}


def test_the_attribute_table_tells_the_area_of_every_class(small_world):
    with rasterio.open(small_world / "results/maps/demo.tif") as raster:
        counts = np.bincount(raster.read(1).ravel(), minlength=13)
    table = ElementTree.parse(small_world / "results/maps/demo.tif.aux.xml")
    rows = [[cell.text for cell in row.iter("F")] for row in table.iter("Row")]
    assert [row[:3] for row in rows[:2]] == [["1", "forest", "Forest formation"], ["2", "savanna", "Savanna formation"]]
    assert [int(row[6]) for row in rows] == counts[1:].tolist() and sum(counts[1:]) > 0
    assert [float(row[7]) for row in rows] == (counts[1:] / 100).tolist()  # pixels of 10 m


def test_another_language_or_looks_train_nothing(small_world, tmp_path):
    settings = small_settings(small_world)
    settings["aois"]["demo"]["language"] = "pt"
    assert rules_of(small_world, settings) == LOOKS
    other = tmp_path / "other.csv"
    other.write_text(LEGEND.read_text().replace("#1F8D49", "#00FF00").replace("Forest formation", "Wood"))
    settings = small_settings(small_world)
    for key in ("labels", "reference"):
        settings["aois"]["demo"][key]["legend"] = str(other)
    assert rules_of(small_world, settings) == LOOKS


def test_names_of_a_map_come_in_the_language_of_its_area(copied_world):
    settings = small_settings(copied_world)
    settings["aois"]["demo"]["language"] = "pt"
    before = (copied_world / "results/models/unet_demo/weights.safetensors").stat().st_mtime_ns
    with rasterio.open(copied_world / "results/maps/demo.tif") as raster:
        classes = raster.read(1)
    done = run_snakemake(copied_world, settings)
    assert done.returncode == 0, done.stdout + done.stderr
    with rasterio.open(copied_world / "results/maps/demo.tif") as raster:
        np.testing.assert_array_equal(raster.read(1), classes)
        assert "Formação florestal" in raster.tags()["classes"]
    for name in ("maps/demo.qml", "maps/demo.tif.aux.xml", "reports/demo.html"):
        assert "Formação florestal" in (copied_world / "results" / name).read_text(encoding="utf-8"), name
    assert (copied_world / "results/models/unet_demo/weights.safetensors").stat().st_mtime_ns == before
