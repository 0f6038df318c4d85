"""The demo world as Level-1C products, of which a program in Sen2Cor's place makes Level-2A: the same reflectance."""

import json

import numpy as np
import pytest
import rasterio

from tests.conftest import run_snakemake, small_settings
from tests.sen2cor import install


def level_1c(item, folder):
    """A product of Level-1C in the place of one of Level-2A: nobody but the stand-in reads it."""
    name = item["id"].replace("MSIL2A", "MSIL1C")
    safe = folder / f"{name}.SAFE"
    (safe / "DATASTRIP").mkdir(parents=True)
    for file in ("MTD_MSIL1C.xml", "manifest.safe", "DATASTRIP/MTD_DS.xml"):
        (safe / file).write_text("<a/>")
    return {**item, "id": name, "collection": "sentinel-2-l1c", "assets": {"product": {"href": str(safe)}}}


@pytest.fixture
def world(small_world, tmp_path):
    """Folder and settings of the demo world whose catalogue has Level-1C alone."""
    demo, folder = small_world / "resources" / "demo", tmp_path / "world"
    folder.mkdir()
    items = []
    for item in json.loads((demo / "catalog.json").read_text())["features"]:
        product = {"product": {**item["assets"]["product"], "href": str(demo / "products" / f"{item['id']}.SAFE")}}
        is_optical = item["collection"] == "sentinel-2-l2a"
        items.append(level_1c(item, tmp_path / "l1c") if is_optical else {**item, "assets": product})
    (folder / "catalog.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    settings = small_settings(folder)
    demo_area = settings["aois"]["demo"]
    demo_area |= {"provider": {"name": "stac", "catalog": "catalog.json"}, "dem": str(demo / "dem.tif")}
    for key in ("labels", "reference"):
        demo_area[key]["path"] = str(small_world / demo_area[key]["path"])
    settings["sentinel2"] = {"processor": "sen2cor"}
    return folder, settings


def test_the_reflectance_is_that_of_level_2a(small_world, world, tmp_path, snakemake, monkeypatch):
    folder, settings = world
    program = install(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("STAND_IN_PRODUCTS", str(small_world / "resources" / "demo" / "products"))
    clipped = sorted((small_world / "results" / "s2" / "demo").glob("*.tif"))[0]
    target = f"results/s2/demo/{clipped.name.replace('MSIL2A', 'MSIL1C')}"
    snakemake(folder, settings, target)
    with rasterio.open(clipped) as delivered, rasterio.open(folder / target) as made:
        np.testing.assert_array_equal(made.read(), delivered.read())
        assert made.tags()["level"] == "L2A" and made.tags()["processing_baseline"] == "99.99"
        assert made.tags()["offset"] == delivered.tags()["offset"]
    assert not [path for path in (folder / "resources").rglob("*") if path.is_file()]
    again = run_snakemake(folder, settings, target, "-n")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_without_sen2cor_nothing_begins(world, monkeypatch):
    folder, settings = world
    done = run_snakemake(folder, settings, "results/scenes/demo.json")
    assert done.returncode
    assert "covermap: sentinel2.processor is sen2cor, but there is no L2A_Process on the PATH" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "results").exists()
