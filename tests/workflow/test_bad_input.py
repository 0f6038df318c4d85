"""What a user can get wrong stops with one clear sentence, early, and leaves no half-written output."""

import copy
import json
import shutil
import zipfile

import numpy as np
import pytest
import rasterio

from ..conftest import run_snakemake, small_settings


def changed(folder, **edits):
    settings = copy.deepcopy(small_settings(folder))
    for path, value in edits.items():
        *parents, last = path.split("__")
        place = settings
        for name in parents:
            place = place[name]
        place[last] = value
    return settings


def fails(folder, settings, *words, targets=()):
    """Run, expect a failure, and return the lines of its output that hold the first word."""
    done = run_snakemake(folder, settings, *targets)
    output = done.stdout + done.stderr
    assert done.returncode != 0, output
    told = [line for line in output.splitlines() if words[0] in line]
    assert told, output
    for noise in ("Traceback", "InputFunctionException", "WorkflowError in", "function-"):
        assert noise not in output
    for word in words:
        assert any(word in line for line in told), (word, told)
    return told


BEFORE_ANYTHING = [
    ("targest", {"targest": ["demo"]}, ["targest", "no such setting"]),
    ("unknown model", {"aois__demo__model": "resnet"}, ["aois.demo.model", "'resnet'", "'unet_demo'"]),
    ("empty period", {"aois__demo__period": {"start": "2022-04-30", "end": "2021-12-01"}}, ["empty", "2022-04-30"]),
    ("no area", {"aois__demo__area": "none.geojson"}, ["none.geojson", "does not exist"]),
    ("empty box", {"aois__demo__area": [-54.4, -13.4, -54.5, -13.5]}, ["west < east"]),
    ("degrees as CRS", {"aois__demo__crs": "EPSG:4326"}, ["EPSG:4326", "metres"]),
    ("unknown CRS", {"aois__demo__crs": "EPSG:99999"}, ["covermap: aois.demo: crs EPSG:99999 is not known"]),
    ("CRS of another place", {"aois__demo__crs": "EPSG:32633"}, ["aois.demo: crs EPSG:32633", "such as EPSG:32721"]),
    ("three numbers", {"aois__demo__area": [-54, -13, -53]}, ["covermap: config: aois.demo.area: expected a polygon"]),
    (
        "no labels",
        {"aois__demo__labels__path": "none.tif"},
        ["covermap: aois.demo.labels.path is none.tif, which does"],
    ),
    ("no DEM", {"aois__demo__dem": "none.tif"}, ["covermap: aois.demo.dem is none.tif, which does not exist"]),
    ("no orbits", {"sentinel1": {"orbits": "none"}}, ["covermap: sentinel1.orbits is none, which does not exist"]),
    ("network's option", {"models__unet_demo__options": {"width": 12}}, ["options.width: expected a multiple of 8"]),
]


@pytest.mark.parametrize(("edits", "words"), [row[1:] for row in BEFORE_ANYTHING], ids=[r[0] for r in BEFORE_ANYTHING])
def test_before_any_job(tmp_path, edits, words):
    fails(tmp_path, changed(tmp_path, **edits), *words)
    assert not (tmp_path / "results").exists()


def test_a_self_crossing_area(tmp_path):
    settings = small_settings(tmp_path)
    ring = [[-54.4, -13.4], [-54.3, -13.3], [-54.3, -13.4], [-54.4, -13.3], [-54.4, -13.4]]
    (tmp_path / "area.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    fails(tmp_path, settings, "area.geojson", "Self-intersection")


def test_what_a_search_cannot_find(copied_world):
    listing = copied_world / "results/scenes/demo.json"
    for edits, words in (
        ({"aois__demo__period": {"start": "2019-01-01", "end": "2019-12-31"}}, ["2019-01-01", "period"]),
        ({"aois__demo__area": [-50.1, -10.1, -50.0, -10.0], "aois__demo__crs": "EPSG:32722"}, ["area"]),
        ({"sentinel2": {"max_cloud": 1}}, ["cloud"]),
    ):
        before = listing.read_bytes() if listing.exists() else None
        settings = changed(copied_world, **edits)
        fails(copied_world, settings, "search_scenes", *words, targets=["results/scenes/demo.json"])
        assert (listing.read_bytes() if listing.exists() else None) in (before, None)


def edit_listing(folder, **properties):
    """Change properties of the first Sentinel-1 scene that the search found."""
    path = folder / "results/scenes/demo.json"
    listing = json.loads(path.read_text())
    first = next(item for item in listing["features"] if item["id"].startswith("S1"))
    first["properties"].update(properties)
    path.write_text(json.dumps(listing))


@pytest.mark.parametrize(
    ("properties", "edits", "words"),
    [
        ({"sat:orbit_state": "ascending"}, {}, ["ascending (1 scene) and descending", "sentinel1.orbit_state"]),
        ({"sat:relative_orbit": 150}, {}, ["aois.demo: its Sentinel-1 scenes are of the tracks", "150 (1 scene)"]),
        ({}, {"aois__demo__dem": None}, ["aois.demo.dem is not set", "GRD products"]),
    ],
)
def test_radar_scenes_that_no_stack_can_average_stop_before_they_are_fetched(copied_world, properties, edits, words):
    edit_listing(copied_world, **properties)
    fails(copied_world, changed(copied_world, **edits), *words, targets=["--dry-run"])


def test_a_direction_without_scenes_stops_before_they_are_fetched(copied_world):
    """The search runs again, since directions are among what it looks for."""
    settings = changed(copied_world, sentinel1={"orbit_state": "ascending"})
    fails(copied_world, settings, "none is of sentinel1.orbit_state ascending")
    assert not list((copied_world / "resources/scenes").rglob("*.zip"))


def test_labels_elsewhere(copied_world):
    labels = copied_world / "elsewhere.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:4326", "height": 10, "width": 10}
    with rasterio.open(labels, "w", transform=rasterio.Affine(0.1, 0, 10, 0, -0.1, 50), **profile) as raster:
        raster.write(np.full((1, 10, 10), 3, np.uint8))
    settings = changed(copied_world, aois__demo__labels__path=str(labels))
    fails(copied_world, settings, "search_scenes", "elsewhere.tif", targets=["results/scenes/demo.json"])


@pytest.mark.parametrize(
    ("sensor", "damage", "rule", "words"),
    [
        ("S2", "B04_10m.jp2", "download_scene", ["B04"]),
        ("S1", "-vh-", "download_scene", ["vh"]),
        ("S1", "annotation", "process_s1", ["annotation"]),
    ],
)
def test_a_broken_product(copied_world, sensor, damage, rule, words):
    product = sorted((copied_world / "resources/demo/products").glob(f"{sensor}*"))[-4 if sensor == "S1" else -2]
    victim = next(
        path
        for path in sorted(product.rglob("*"))
        if path.is_file()
        and damage in str(path.relative_to(product))
        and ("measurement" in str(path)) == (damage == "-vh-")
    )
    content = victim.read_bytes()
    if damage == "annotation":
        victim.unlink()
    else:
        victim.write_bytes(content[: len(content) // 3])
    output = copied_world / "results" / sensor.lower() / "demo" / f"{product.stem}.tif"
    output.unlink()
    target = str(output.relative_to(copied_world))
    told = fails(copied_world, small_settings(copied_world), rule, product.stem, targets=[target, "--retries", "0"])
    assert any(word in line for word in words for line in told)
    assert not output.exists()
    assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]
    victim.write_bytes(content)  # mended, it is fetched again by itself
    done = run_snakemake(copied_world, small_settings(copied_world), target)
    assert done.returncode == 0 and output.exists(), done.stdout + done.stderr


def test_a_zip_that_climbs_out(copied_world):
    product = next(iter(sorted((copied_world / "resources/demo/products").glob("S2*"))[-2:]))
    archive = product.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"{product.name}/../../evil.txt", "x")
    listing = json.loads((copied_world / "resources/demo/catalog.json").read_text())
    shutil.rmtree(product)
    for item in listing["features"]:
        if item["id"] == product.stem:
            item["assets"]["product"]["href"] = f"products/{archive.name}"
    (copied_world / "resources/demo/catalog.json").write_text(json.dumps(listing))
    (copied_world / "results/scenes/demo.json").unlink()
    target = f"results/s2/demo/{product.stem}.tif"
    fails(copied_world, small_settings(copied_world), product.stem, "..", targets=[target])
    assert not list(copied_world.parent.rglob("evil.txt"))
