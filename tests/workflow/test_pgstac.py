"""The demo world by stac-fastapi-pgstac: Sentinel-1 as zipped products, Sentinel-2 as windows of COGs, the same map."""

import json
import os
import re
import shutil
import zipfile
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pystac_client import Client
from rasterio.shutil import copy
from shapely.affinity import translate
from shapely.geometry import mapping, shape

from covermap.area_settings import Period, Provider
from covermap.grid import read_area
from covermap.providers import Query, stac, stac_api
from tests.conftest import small_settings
from tests.servers.pgstac import missing, serve_pgstac
from tests.servers.stac import serve_stac

pytestmark = pytest.mark.skipif(bool(missing()) and "COVERMAP_SERVERS" not in os.environ, reason=missing())

BAND = re.compile(r"_(B\d[\dA]|SCL)_(\d\d)m\.jp2$")
EAST_DEG = 2.0
PERIOD = Period(start="2021-12-01", end="2022-04-30")  # of the small world
BOTH = ("sentinel1", "sentinel2")


def class_band(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read(1)


def remote_item(item, safe: Path, folder: Path):
    """The item as an API would have it, with its files in ``folder``."""
    make = zipped if "sentinel-1" in item["properties"]["platform"] else cogs
    return {**item, "links": [], "assets": make(item, safe, folder)}


def zipped(item, safe, folder):
    with zipfile.ZipFile(folder / f"{safe.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(safe.rglob("*")):
            archive.write(path, f"{safe.name}/{path.relative_to(safe)}")
    return {"product": {"href": f"{safe.name}.zip", "type": "application/zip"}}


def cogs(item, safe, folder):
    finest: dict[str, Path] = {}
    for path in sorted(safe.rglob("*.jp2")):  # 10 m before 20 m
        if found := BAND.search(path.name):
            finest.setdefault(found[1], path)
    offset = -0.1 if item["properties"]["s2:processing_baseline"] >= "04.00" else 0
    numbers = {"raster:bands": [{"scale": 0.0001, "offset": offset}]}
    assets = {}
    for band, path in finest.items():
        name = f"{item['id']}_{band}.tif"
        copy(path, folder / name, driver="COG", blocksize=128, compress="DEFLATE", overviews="NONE")
        kind = "image/tiff; application=geotiff; profile=cloud-optimized"
        assets[band.lower()] = {"href": name, "type": kind, **({} if band == "SCL" else numbers)}
    return assets


def moved(item, name, time, east_deg=0.0, **more):
    """The item under another name, at another time and place."""
    outline = translate(shape(item["geometry"]), east_deg)
    properties = {**item["properties"], "datetime": time, "start_datetime": time, "end_datetime": time}
    place = {"geometry": mapping(outline), "bbox": list(outline.bounds)}
    return {**item, "id": name, "properties": properties, **place, **more}


def strangers(item):
    """Items that no search of the demo's area, period and collections may find."""
    midnight = PERIOD.end + timedelta(days=1)
    return [
        moved(item, "east first second", f"{PERIOD.start}T00:00:00Z", EAST_DEG),
        moved(item, "east last second", f"{PERIOD.end}T23:59:59.500000Z", EAST_DEG),
        moved(item, "east before", f"{PERIOD.start - timedelta(days=1)}T23:59:59.500000Z", EAST_DEG),
        moved(item, "east after", f"{midnight}T00:00:00Z", EAST_DEG),
        moved(item, "a year before", f"{PERIOD.start.replace(year=2020)}T13:51:21Z"),
        moved(item, "elsewhere known", f"{PERIOD.end}T13:51:21Z", collection="elsewhere"),
    ]


@pytest.fixture(scope="module")
def names(small_world):
    """The demo's scenes in the order of its list."""
    return [item["id"] for item in json.loads((small_world / "results/scenes/demo.json").read_text())["features"]]


@pytest.fixture(scope="module")
def area(small_world):
    return read_area(small_world / "area.geojson")


@pytest.fixture(scope="module")
def files(small_world, tmp_path_factory):
    """A year of items with their files, which are given to those alone who sign."""
    shop, demo = tmp_path_factory.mktemp("shop"), small_world / "resources/demo"
    items = json.loads((demo / "catalog.json").read_text())["features"]
    items = [remote_item(item, demo / "products" / f"{item['id']}.SAFE", shop) for item in items]
    with serve_stac(items, shop, signed=True) as server:
        yield server


@pytest.fixture(scope="module")
def api(files):
    """Settings for the API, which has the items and strangers among them."""
    assert not missing(), missing()
    items = [files.item(item) for item in files.items]
    optical = next(item for item in items if item["collection"] == "sentinel-2-l2a")
    collections = sorted({item["collection"] for item in items})
    with serve_pgstac(items + strangers(optical)) as url:
        yield Provider(name="stac", catalog=url, url=f"{files.url}/token", collections=collections)


def raw_search(api, area, **more):
    period = f"{PERIOD.start}T00:00:00Z/{PERIOD.end}T23:59:59.999Z"
    collections, outline = list(api.collections), mapping(area)
    return Client.open(api.catalog).search(collections=collections, intersects=outline, datetime=period, **more)


@pytest.mark.filterwarnings("ignore:Server does not conform to SORT")  # though it sorts
def test_the_service_has_pages_and_orders(api, area, names):
    pages = [page["features"] for page in raw_search(api, area, limit=3).pages_as_dicts()]
    assert [len(page) for page in pages] == [3, 3, 2]
    unsorted = [item["id"] for page in pages for item in page]
    assert sorted(unsorted) == names != unsorted  # the latest come first
    found = raw_search(api, area, limit=3, sortby="+properties.datetime").items_as_dicts()
    times = [item["properties"]["datetime"] for item in found]
    assert times == sorted(times) and len(times) == len(names)


def test_pages_of_any_length_give_the_same_scenes_in_one_order(api, area, names, monkeypatch):
    found = []
    for page in (1, 3, 100):
        monkeypatch.setattr(stac_api, "PAGE", page)
        found.append(json.dumps(stac.search(Query(area, PERIOD, BOTH), api)))
    assert len(set(found)) == 1
    assert [item["id"] for item in json.loads(found[0])] == names


def test_areas_times_and_collections_are_compared_by_the_service(api, area, names):
    east = translate(area, EAST_DEG)

    def asked(area, period=PERIOD, settings=api):
        return sorted(item["id"] for item in stac_api.search(Query(area, period, BOTH), settings))

    assert asked(area) == names
    assert asked(translate(area, -EAST_DEG)) == []
    assert asked(east) == ["east first second", "east last second"]
    assert asked(east, Period(start=date(2022, 5, 1), end=date(2022, 5, 1))) == ["east after"]
    assert asked(area, Period(start=date(2020, 12, 1), end=date(2020, 12, 1))) == ["a year before"]
    assert asked(area, settings=api.model_copy(update={"collections": ("elsewhere",)})) == ["elsewhere known"]


def test_the_map_is_that_of_the_demo_provider(small_world, api, names, tmp_path, snakemake, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "world"
    demo = small_world / "resources" / "demo"
    shutil.copytree(demo, folder / "resources" / "demo", ignore=shutil.ignore_patterns("products"))
    settings = small_settings(folder)
    told = {"name", "catalog", "url", "collections"}
    settings["aois"]["demo"]["provider"] = api.model_dump(mode="json", include=told)
    snakemake(folder, settings, "results/maps/demo.tif", "results/plans/demo.txt")
    listing = json.loads((folder / "results/scenes/demo.json").read_text())
    assert [item["id"] for item in listing["features"]] == names
    np.testing.assert_array_equal(*(class_band(world / "results/maps/demo.tif") for world in (small_world, folder)))
    assert not list((folder / "resources" / "scenes").rglob("*.zip"))
    logs = "".join(path.read_text() for path in (folder / "results").rglob("*.log"))
    assert "secret" not in logs
    assert "sentinel1  sentinel2" in (folder / "results/plans/demo.txt").read_text()
