"""The Copernicus Data Space: what is asked for, what comes back, and who is told the password."""

import fcntl
import json
import logging
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from hashlib import md5, sha3_256
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from shapely import from_wkt
from shapely.geometry import MultiPolygon, Point, box, shape

from covermap import patience, slots
from covermap.area_settings import Composite, Period, Provider
from covermap.download import check_stored, search_scenes
from covermap.errors import DownloadError, ProductError, SettingError
from covermap.providers import Query, cdse, cdse_access
from covermap.providers.cdse_files import SafeFile, needed, read_manifest, unpack
from covermap.scenes import check_item, is_grd, level_of, read_listing, sensor_of
from covermap.simulator.landscape import make_landscape
from covermap.simulator.overpass import ACQUISITIONS
from covermap.simulator.sentinel1 import simulate_sentinel1_scene
from covermap.simulator.sentinel2 import simulate_sentinel2
from covermap.simulator.viewing import SCENE_DAYS
from tests.servers.cdse import NAME, PASSWORD, TOKEN_PATH, Entry, FakeCdse, parse_filter, serve
from tests.servers.store import serve_store

YEAR = Period(start="2021-08-01", end="2022-07-31")
WORLD = box(-54.43, -13.44, -54.41, -13.42)
BANDS = ("B02", "B08", "B11", "SCL")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Entry, ...]:
    """Two Sentinel-2 products, of before and after baseline 04.00, and two of Sentinel-1, 256 px a side."""
    products = tmp_path_factory.mktemp("eodata")
    land = make_landscape(256, 1)
    items = [simulate_sentinel2(land, products, ACQUISITIONS[number], 1) for number in (0, 3)]
    items += [
        simulate_sentinel1_scene(land, products, day, 1) for day in (SCENE_DAYS[0], SCENE_DAYS[0] + timedelta(days=12))
    ]
    return tuple(Entry(products / f"{item['id']}.SAFE", item) for item in items)


@pytest.fixture
def fake(world: tuple[Entry, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCdse]:
    """The service, an account in the environment, and no pauses between attempts."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("CDSE_USERNAME", NAME)
    monkeypatch.setenv("CDSE_PASSWORD", PASSWORD)
    for name in ("CDSE_S3_ACCESS", "CDSE_S3_SECRET", "CDSE_S3_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    with serve(FakeCdse(list(world))) as running:
        yield running


def settings(fake):
    return Provider(name="cdse", url=fake.url)


def search(fake, sensors=("sentinel1", "sentinel2"), area=WORLD, period=YEAR, **more):
    return cdse.search(Query(area, period, sensors, **more), settings(fake))


def items_of(fake):
    """Items by sensor, the earliest of each."""
    found = search(fake)
    return {sensor: next(item for item in found if sensor_of(item) == sensor) for sensor in ("sentinel1", "sentinel2")}


def fetch(fake, item, product, bands=BANDS):
    cdse.fetch(item, product, settings(fake), bands, grid=None)
    check_stored(product, item)
    with zipfile.ZipFile(product) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# --- search ---


def test_the_documented_query_is_sent(fake):
    search(fake, ("sentinel2",), max_cloud=40, period=Period(start="2021-08-10", end="2021-08-12"))
    (asked,) = fake.asked
    assert asked.path == "/odata/v1/Products"
    assert asked.query["$filter"] == [
        "Collection/Name eq 'SENTINEL-2' and OData.CSC.Intersects(area=geography'SRID=4326;POLYGON((-54.430000 "
        "-13.440000,-54.410000 -13.440000,-54.410000 -13.420000,-54.430000 -13.420000,-54.430000 -13.440000))') and "
        "ContentDate/Start ge 2021-08-10T00:00:00.000Z and ContentDate/Start lt 2021-08-13T00:00:00.000Z and "
        "Attributes/OData.CSC.StringAttribute/any(att:att/Name eq 'productType' and "
        "att/OData.CSC.StringAttribute/Value eq 'S2MSI2A') and "
        "Attributes/OData.CSC.DoubleAttribute/any(att:att/Name eq 'cloudCover' and "
        "att/OData.CSC.DoubleAttribute/Value le 40.0)"
    ]
    others = {word: value[0] for word, value in asked.query.items() if word != "$filter"}
    assert others == {"$orderby": "ContentDate/Start asc", "$top": "1000", "$expand": "Attributes"}
    assert "Authorization" not in asked.headers


def test_a_clouded_newer_baseline_stands_in_the_way_of_a_clear_older_one(fake, world, tmp_path):
    """Though the service leaves out what has too many clouds, as it is asked to."""
    old = next(entry for entry in world if not entry.is_radar and "_N03" in entry.safe.name)
    newer = re.sub(r"_N\d{4}_(.*)_\d{8}T\d{6}$", r"_N0500_\1_20230601T000000", old.safe.stem)
    told = {**old.item["properties"], "eo:cloud_cover": 90.0, "s2:processing_baseline": "05.00"}
    (tmp_path / f"{newer}.SAFE").mkdir()
    fake.entries = [*world, Entry(tmp_path / f"{newer}.SAFE", {**old.item, "id": newer, "properties": told})]
    arguments = {"area": WORLD.wkt, "period": YEAR, "sensors": ("sentinel2",), "provider": settings(fake)}
    arguments |= {"level": "L2A", "orbit_state": None, "relative_orbits": (), "polarisations": (), "labels": None}
    arguments |= {"composite": Composite(), "catalog": None, "pinned": None}
    search_scenes(tmp_path / "a.json", max_cloud=60, **arguments)
    assert old.safe.stem not in read_listing(tmp_path / "a.json") and newer not in read_listing(tmp_path / "a.json")
    asked = [request.query["$filter"][0] for request in fake.asked]
    month = f"{old.start:%Y-%m}-01T"
    assert ["cloudCover" in words for words in asked if f"ge {month}" in words] == [True, False]
    assert sum("cloudCover" not in words for words in asked) < len(asked) / 2
    search_scenes(tmp_path / "b.json", max_cloud=95, **arguments)
    assert newer in read_listing(tmp_path / "b.json") and old.safe.stem not in read_listing(tmp_path / "b.json")


def test_radar_is_asked_for_by_direction_and_tracks(fake):
    scenes = search(fake, ("sentinel1",), orbit_state="descending", relative_orbits=(67, 68))
    assert len(scenes) == 2
    words = fake.asked[0].query["$filter"][0]
    assert "'productType' and att/OData.CSC.StringAttribute/Value eq 'IW_GRDH_1S'" in words
    assert "'orbitDirection' and att/OData.CSC.StringAttribute/Value eq 'DESCENDING'" in words
    tracks = "Attributes/OData.CSC.IntegerAttribute/any(att:att/Name eq 'relativeOrbitNumber' and "
    value = "att/OData.CSC.IntegerAttribute/Value eq"
    assert words.endswith(f"({tracks}{value} 67) or {tracks}{value} 68))")
    assert search(fake, ("sentinel1",), orbit_state="ascending") == []
    assert search(fake, ("sentinel1",), relative_orbits=(67,)) == []


def test_items_are_stac_and_tell_what_later_steps_need(fake, world):
    for found, entry in zip(search(fake), sorted(world, key=lambda entry: entry.safe.name), strict=True):
        check_item(found, Path("answer"))
        assert found["id"] == entry.safe.stem
        assert found["collection"] == entry.item["collection"]
        assert is_grd(found) is True
        assert shape(found["geometry"]).equals(shape(entry.item["geometry"]))
        properties = found["properties"]
        assert properties["cdse:id"] == entry.number
        for key in entry.item["properties"].keys() - {"datetime", "start_datetime", "end_datetime", "proj:code"}:
            assert properties[key] == entry.item["properties"][key], key
        asset = found["assets"]["product"]
        assert asset["href"].startswith("s3://eodata/Sentinel-") and asset["href"].endswith(f"/{entry.safe.name}")
        assert asset["file:size"] == len(entry.zipped)
        assert set(asset["cdse:checksums"]) == {"blake3", "md5"}
    assert level_of(items_of(fake)["sentinel2"]) == "L2A"
    assert items_of(fake)["sentinel2"]["properties"]["datetime"] == "2021-08-11T13:51:21.024000Z"


def test_the_same_catalogue_gives_the_same_bytes(fake):
    one = search(fake)
    fake.entries.reverse()
    assert json.dumps(search(fake)) == json.dumps(one)  # though PublicationDate and the order are others
    assert [item["id"] for item in one] == sorted(item["id"] for item in one)


def test_all_pages_are_read_and_links_to_other_hosts_are_not_followed(fake):
    every = search(fake)
    fake.page = 1
    fake.asked.clear()
    assert search(fake, period=Period(start="2021-08-01", end="2021-08-31")) == [
        item for item in every if item["properties"]["datetime"] < "2021-09"
    ]
    skipped = [asked.query.get("$skip", ["0"])[0] for asked in fake.asked]
    assert skipped == ["0", "1", "0"]  # two of Sentinel-1, one of Sentinel-2


def test_a_month_with_more_products_than_pages_reach_is_halved(fake, monkeypatch):
    every = search(fake)
    monkeypatch.setattr(cdse, "MOST_SKIPPED", 0)
    fake.page, fake.most_skipped = 1, 0
    assert search(fake) == every


def test_a_catalogue_without_an_end_is_not_followed_for_ever(fake, monkeypatch):
    monkeypatch.setattr(fake, "products", lambda query: {"value": [], "@odata.nextLink": "x?$skip=20000"})
    with pytest.raises(DownloadError, match=r"tells of more than 10000 products within a second from 2021-08-01T00:00"):
        search(fake)
    assert len(fake.asked) < 30


def test_time_is_sliced_by_months_and_never_in_the_future(fake):
    search(fake, ("sentinel1",), period=Period(start="2021-11-20", end="2022-02-03"))
    spans = [re.findall(r"Start (?:ge|lt) (\S+)T00:00:00.000Z", asked.query["$filter"][0]) for asked in fake.asked]
    days = ["2021-11-20", "2021-12-01", "2022-01-01", "2022-02-01", "2022-02-04"]
    assert spans == [list(pair) for pair in pairwise(days)]
    fake.asked.clear()
    tomorrow = f"{datetime.now(UTC).year + 1}-01-01"
    assert search(fake, period=Period(start=tomorrow, end=tomorrow)) == [] == fake.asked
    search(fake, ("sentinel1",), period=Period(start="2000-01-01", end="2014-04-30"))
    assert len(fake.asked) == 1  # there were no satellites before


@pytest.mark.parametrize(
    "area",
    [
        MultiPolygon([box(0, 0, 1, 1), box(3, 3, 4, 4)]),
        Point(-50, -10).buffer(5, quad_segs=100),
        box(0, 0, 4, 4).difference(box(1, 1, 2, 2)),
        Point(179.99, 0).buffer(0.01, quad_segs=100),
        MultiPolygon([box(x, y, x + 0.5, y + 0.5) for x in range(20) for y in range(20)]),
    ],
)
def test_any_area_is_one_short_polygon_that_holds_it(area):
    text = cdse.outline(area)
    outline = from_wkt(text)
    assert text.count("(") == 2 and text.count(",") <= 80
    assert outline.buffer(1e-5).covers(area)
    assert outline.exterior.is_ccw
    west, south, east, north = outline.bounds
    assert -180 <= west < east <= 180 and -90 <= south < north <= 90
    assert outline.area <= 1.1 * area.convex_hull.area


def test_mato_grosso_is_asked_for_month_by_month(fake):
    aoi = yaml.safe_load(Path("config/config.yaml").read_text())["aois"]["mato_grosso"]
    feature = json.loads(Path(aoi["area"]).read_text())["features"][0]
    state = shape(feature["geometry"])
    assert search(fake, area=state, period=Period(**aoi["period"]), max_cloud=60, orbit_state="descending") == []
    words = [asked.query["$filter"][0] for asked in fake.asked]
    assert [len(re.findall(f"'{collection}'", " ".join(words))) for collection in cdse.COLLECTIONS.values()] == [12, 12]
    assert all(
        f"ge 2018-{month:02d}-01T" in text for half in (words[:12], words[12:]) for month, text in enumerate(half, 1)
    )
    outline = from_wkt(re.search(r"POLYGON.*?\)\)", words[0])[0])
    assert outline.covers(state) and outline.area < 1.3 * state.convex_hull.area
    assert max(map(len, words)) < 2000  # servers take 4 to 8 kB


def test_what_only_meets_the_outline_is_left_out(fake):
    around = MultiPolygon([box(-55, -14, -54.6, -13), box(-54.2, -14, -54, -13)])  # the world lies between
    assert search(fake, area=around) == []


def test_two_entries_of_one_acquisition_are_one_scene(fake, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    entry = next(entry for entry in fake.entries if entry.is_radar)
    again = tmp_path / f"{entry.safe.stem[:-4]}0AB1.SAFE"
    shutil.copytree(entry.safe, again)
    fake.entries.append(Entry(again, {**entry.item, "id": again.stem}))
    fake.entries[-1].attributes["processorVersion"] = ("String", "003.52")
    scenes = search(fake, ("sentinel1",))
    assert len(scenes) == 2
    newer = next(item for item in scenes if item["id"] == again.stem)
    assert newer["properties"]["covermap:supersedes"] == [entry.safe.stem]
    assert f"left out: {again.name} was made later" in caplog.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"Online": False}, "it is on tape"),
        ({"GeoFootprint": None}, "of no use"),
        ({"ContentLength": float("inf")}, "of no use"),
        ({"ContentDate": {"Start": "yesterday", "End": "today"}}, "of no use"),
        ({"Name": "S2A_OPER_PRD_MSIL1C_PDMC_20160105T200331_R036.SAFE"}, "of many granules"),
        ({"Name": "../S2A_MSIL2A_20210811T135121_N0301_R024_T21LYF_20210811T170245.SAFE"}, "of no use"),
    ],
)
def test_entries_that_cannot_be_used_are_told(fake, monkeypatch, caplog, change, told):
    whole = Entry.told
    monkeypatch.setattr(Entry, "told", lambda entry, expand: whole(entry, expand) | change)
    assert search(fake, ("sentinel2",)) == []
    assert told in caplog.text


STRANGE = [
    {},
    {"Id": "1", "Name": 5},
    {"Id": {}, "Name": "x"},
    {"Id": "1", "Name": "x", "Attributes": 5},
    {"Id": "1", "Name": "x", "Attributes": [3]},
    {"Id": "1", "Name": "x", "Attributes": [{"Name": []}]},
]


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        *({"value": [entry]} for entry in STRANGE),
        {"value": 3},
        {"value": [], "@odata.nextLink": 5},
        {"value": [], "@odata.nextLink": "x?$skip=0"},
    ],
)
def test_another_answer_is_an_error(fake, monkeypatch, answer):
    monkeypatch.setattr(fake, "products", lambda query: answer)
    with pytest.raises(DownloadError, match=r"/odata/v1/Products (answers with something else|leads back)"):
        search(fake)


def test_the_fake_refuses_what_is_not_documented():
    for words in ("Name eq 'x'", "Collection/Name eq SENTINEL-2", "ContentDate/Start ge 2021-08-01"):
        with pytest.raises(Exception, match="Invalid"):
            parse_filter(words)


# --- fetch ---


def optical_files(entry, *images):
    granule = next((entry.safe / "GRANULE").iterdir()).relative_to(entry.safe).as_posix()
    prefix = f"{granule}/IMG_DATA/R{{}}m/{entry.safe.name[39:44]}"
    found = [path.relative_to(entry.safe).as_posix() for path in entry.safe.rglob("*.jp2")]
    pixels = [path for path in found if any(path.endswith(image) for image in images)]
    assert len(pixels) == len(images) and prefix
    return {"manifest.safe", "MTD_MSIL2A.xml", f"{granule}/MTD_TL.xml", *pixels}


def test_the_needed_files_alone_are_fetched(fake, world, tmp_path):
    item, entry = items_of(fake)["sentinel2"], world[0]
    expected = optical_files(entry, "_B02_10m.jp2", "_B08_10m.jp2", "_B11_20m.jp2", "_SCL_20m.jp2")
    files = fetch(fake, item, tmp_path / "scene.zip")
    assert files == {f"{entry.safe.name}/{name}": (entry.safe / name).read_bytes() for name in expected}
    asked = fake.paths(r"\$value$")
    assert len(asked) == len(expected) and all("/Nodes(" in path for path in asked)
    assert not list(tmp_path.glob(".scene*"))


def test_no_bands_are_all_files(fake, world, tmp_path):
    item, entry = items_of(fake)["sentinel2"], world[0]
    files = fetch(fake, item, tmp_path / "scene.zip", bands=())
    assert files == {
        f"{entry.safe.parent.name and entry.safe.name}/{path.relative_to(entry.safe).as_posix()}": path.read_bytes()
        for path in entry.safe.rglob("*")
        if path.is_file()
    }


def test_nearly_all_of_a_product_is_fetched_as_one_and_gives_the_same_bytes(fake, world, tmp_path, monkeypatch):
    item = items_of(fake)["sentinel1"]
    files = fetch(fake, item, tmp_path / "one.zip", ("VV", "VH"))
    assert [path.count("Nodes(") for path in fake.paths(r"\$value$")] == [2, 0]  # the manifest, and the product
    assert len(files) == 9
    monkeypatch.setattr(cdse, "ALL_OF_IT", 2.0)
    fake.asked.clear()
    fetch(fake, item, tmp_path / "other.zip", ("VH", "VV"))
    assert len(fake.paths(r"Nodes.*\$value$")) == 9
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()


def test_of_two_checksums_the_faster_one_is_taken(fake, tmp_path):
    item = items_of(fake)["sentinel1"]
    item["assets"]["product"]["cdse:checksums"]["md5"] = "0" * 32
    fetch(fake, item, tmp_path / "one.zip", ("VV", "VH"))
    assert [path.count("Nodes(") for path in fake.paths(r"\$value$")] == [2, 0]


def test_one_polarisation_is_fetched_by_its_files(fake, tmp_path):
    files = fetch(fake, items_of(fake)["sentinel1"], tmp_path / "scene.zip", ("VV",))
    assert len(files) == 5
    assert all("-vv-" in name for name in files if not name.endswith("manifest.safe"))


@pytest.mark.parametrize("wrong", ["checksum", "zip", "member"])
def test_a_product_that_comes_wrong_in_one_comes_file_by_file(fake, world, tmp_path, monkeypatch, caplog, wrong):
    item = items_of(fake)["sentinel1"]
    right = fetch(fake, item, tmp_path / "right.zip", ("VV", "VH"))
    good = fake.content
    body = good(f"/odata/v1/Products({item['properties']['cdse:id']})/$value")
    bad = {"zip": b"no zip", "member": body.replace(b"<", b">", 40), "checksum": body + b" "}[wrong]
    monkeypatch.setattr(fake, "content", lambda path: good(path) if "Nodes" in path else bad)
    if wrong != "checksum":
        item["assets"]["product"]["cdse:checksums"] = {}
    assert fetch(fake, item, tmp_path / "scene.zip", ("VV", "VH")) == right
    assert "its files are fetched one by one" in caplog.text


def test_an_item_of_another_provider_is_refused(fake, world, tmp_path):
    with pytest.raises(ProductError, match=r"is not of provider cdse \(it has no cdse:id\): search its scenes again"):
        fetch(fake, world[0].item, tmp_path / "scene.zip")


def test_a_file_that_is_not_as_the_manifest_says_makes_no_scene(fake, tmp_path, monkeypatch):
    good = fake.content
    monkeypatch.setattr(
        fake, "content", lambda path: good(path)[::-1] if path.endswith("B02_10m.jp2)/$value") else good(path)
    )
    item = items_of(fake)["sentinel2"]
    with pytest.raises(DownloadError, match=r"B02_10m\.jp2.* has the md5"):
        fetch(fake, item, tmp_path / "scene.zip")
    assert [path.name for path in tmp_path.glob("*.zip")] == []
    monkeypatch.undo()


def test_what_is_whole_is_not_fetched_again(fake, tmp_path):
    item = items_of(fake)["sentinel2"]
    fake.failing = [("B11", 404)]
    with pytest.raises(DownloadError, match="404"):
        fetch(fake, item, tmp_path / "scene.zip")
    fake.asked.clear()
    assert len(fetch(fake, item, tmp_path / "scene.zip")) == 7
    assert len(fake.paths("Nodes")) < 7


def test_a_killed_fetch_leaves_no_scene_and_the_next_one_goes_on(fake, tmp_path):
    item, product = items_of(fake)["sentinel2"], tmp_path / "scene.zip"
    right = fetch(fake, item, tmp_path / "right.zip", ())
    code = (
        "import json, sys; from pathlib import Path; from covermap.providers import cdse\n"
        "from covermap.area_settings import Provider; item, url, product = json.load(sys.stdin)\ncdse.ALL_OF_IT = 2\n"
        "cdse.fetch(item, Path(product), Provider(name='cdse', url=url), (), None)"
    )
    for answers in (1, 4, 4, 3):  # of 16 files and what leads to them
        fake.asked.clear()
        fake.answers = answers
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True)
        process.stdin.write(json.dumps([item, fake.url, str(product)]))
        process.stdin.close()
        while len(fake.asked) <= answers and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
        assert not product.exists()
        fake.answers = math.inf
        fake.waiting.set()
        fake.waiting.clear()
    assert fetch(fake, item, product, ()) == right
    assert product.read_bytes() == (tmp_path / "right.zip").read_bytes()
    assert [path.name for path in tmp_path.glob(".scene*")] == []


def test_manifests_since_baseline_04_have_sha3(fake, tmp_path):
    entry = fake.entries[1]
    copied = tmp_path / entry.safe.name
    shutil.copytree(entry.safe, copied)
    manifest = (copied / "manifest.safe").read_text()
    for path in (path for path in copied.rglob("*") if path.is_file() and path.name != "manifest.safe"):
        name = path.relative_to(copied).as_posix()
        digest = sha3_256(path.read_bytes()).hexdigest()
        pattern = rf'(href="(?:\./)?{re.escape(name)}"[^>]*/>\s*<checksum checksumName=)"MD5">\w+'
        manifest, count = re.subn(pattern, rf'\1"SHA3-256">{digest}', manifest)
        assert count == 1, name
    (copied / "manifest.safe").write_text(manifest)
    fake.entries[1] = Entry(copied, entry.item)
    item = next(item for item in search(fake) if item["id"] == copied.stem)
    assert len(fetch(fake, item, tmp_path / "scene.zip")) == 7


def test_products_without_a_wanted_band_are_told(fake, tmp_path):
    items = items_of(fake)
    with pytest.raises(ProductError, match=r"has no HH, only VH, VV: take it out of sentinel1\.polarisations"):
        fetch(fake, items["sentinel1"], tmp_path / "scene.zip", ("VV", "HH"))
    with pytest.raises(ProductError, match=r"has no B10, only B01, .*: take it out of sentinel2\.bands"):
        fetch(fake, items["sentinel2"], tmp_path / "scene.zip", ("B10", "SCL"))


def test_costs_are_told_without_asking(fake):
    items = items_of(fake)
    fake.asked.clear()
    size = {sensor: item["assets"]["product"]["file:size"] for sensor, item in items.items()}
    told = {bands: cdse.costs(items["sentinel1"], settings(fake), bands, None) for bands in ((), ("VV",), ("VV", "VH"))}
    assert [round(costs.size_bytes / size["sentinel1"], 3) for costs in told.values()] == [1, 0.5, 1]
    optical = cdse.costs(items["sentinel2"], settings(fake), ("B02", "B11", "SCL", "B09"), None)
    assert optical.size_bytes == round(size["sentinel2"] * (36 + 9 + 9 + 1) / 290)
    assert cdse.sources(items["sentinel2"]) == [] == fake.asked


# --- manifests ---

FILE = (
    '<dataObject ID="a"><byteStream mimeType="x" size="{size}"><fileLocation locatorType="URL" href="{href}"/>'
    '<checksum checksumName="{kind}">{digits}</checksum></byteStream></dataObject>'
)


def manifest(*files, **more):
    told = {"size": 1, "kind": "MD5", "digits": "AB", **more}
    objects = "".join(FILE.format(href=href, **told) for href in files)
    return f'<x:XFDU xmlns:x="urn:x"><dataObjectSection>{objects}</dataObjectSection></x:XFDU>'.encode()


def test_a_manifest_lists_files():
    (file,) = read_manifest(manifest("./a/b.xml"), "scene")
    assert file == ("a/b.xml", 1, ("md5", "ab"))


@pytest.mark.parametrize(
    "href", ["../a", "/etc/passwd", "a/../../b", "a//b", "a/./b", "a\\b", "C:a", "", "./", "http://a/b", "a?b", "a#b"]
)
def test_a_manifest_that_leads_out_is_refused(href):
    with pytest.raises(ProductError, match="which is no file in it: do not use"):
        read_manifest(manifest(href), "scene")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<a", "is no XML"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "is no XML"),
        (b"<a/>", "lists no file"),
        (b" " * (17 * 2**20), "is no XML"),
        (manifest("a", kind="CRC"), "lists no file"),
        (manifest("a", size="many"), "lists no file"),
        (manifest("a", digits=""), "lists no file"),
        (manifest("a", "./a").replace(b'size="1"', b'size="2"', 1), "lists a twice"),
    ],
)
def test_a_broken_manifest_is_refused(content, told):
    with pytest.raises(ProductError, match=told):
        read_manifest(content, "scene")


def test_level_1c_brings_its_cloud_mask():
    granule = "GRANULE/L1C_T32UNA_A1"
    names = ["MTD_MSIL1C.xml", f"{granule}/MTD_TL.xml", f"{granule}/QI_DATA/MSK_CLASSI_B00.jp2", "INSPIRE.xml"]
    names += [f"{granule}/IMG_DATA/T32UNA_20210101T100000_{band}.jp2" for band in ("B01", "B02", "B10", "TCI")]
    names += [f"{granule}/QI_DATA/MSK_DETFOO_B02.jp2", "DATASTRIP/DS_1/MTD_DS.xml"]
    chosen = {file.path for file in needed(read_manifest(manifest(*names), "scene"), ("B02", "B10"), "scene")}
    assert chosen == {name for name in names if re.search("MTD_MSI|MTD_TL|CLASSI|_B02.jp2$|_B10.jp2$", name)} - {
        names[8]
    }


CONTENT = b"<annotation/>"


def unpacked(tmp_path, content):
    """Unpack a file of a zip whose manifest tells of CONTENT; what is on disk then."""
    with zipfile.ZipFile(tmp_path / "p.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("S.SAFE/a/b.xml", content)
    digits = md5(CONTENT).hexdigest()
    unpack(tmp_path / "p.zip", tmp_path / "S.SAFE", [SafeFile("a/b.xml", len(CONTENT), ("md5", digits))])
    return (tmp_path / "S.SAFE/a/b.xml").read_bytes()


def test_a_file_of_a_zip_is_compared_with_the_manifest(tmp_path):
    assert unpacked(tmp_path, CONTENT) == CONTENT
    with pytest.raises(ProductError, match=r"has a a/b\.xml that is not as its manifest says"):
        unpacked(tmp_path, CONTENT[::-1])  # whose CRC in the zip is right
    assert not (tmp_path / "S.SAFE/a/b.xml").exists()


def test_a_file_of_another_size_is_not_even_unpacked(tmp_path):
    with pytest.raises(ProductError, match=r"has a a/b\.xml that is not as its manifest says"):
        unpacked(tmp_path, CONTENT + bytes(10**6))
    assert [path.name for path in tmp_path.iterdir()] == ["p.zip"]


# --- who may read ---


def test_one_login_serves_many_scenes_and_processes(fake, tmp_path):
    for number, item in enumerate(items_of(fake).values()):
        fetch(fake, item, tmp_path / f"{number}.zip", ())
    code = "import sys; from covermap.providers.cdse_access import *; print(len(token(service_at(sys.argv[1]))) > 9)"
    line = [sys.executable, "-c", code, fake.url]
    running = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["True\n"] * 3
    assert fake.grants() == ["password"]


def test_a_token_is_refreshed_before_its_end(fake):
    fake.life_s = 0
    service = cdse_access.service_at(fake.url)
    tokens = [cdse_access.token(service) for _ in range(3)]
    assert len(set(tokens)) == 3
    assert fake.grants() == ["password", "refresh_token", "refresh_token"]


def test_processes_that_need_a_new_token_at_once_ask_for_one(fake):
    service = cdse_access.service_at(fake.url)
    old = cdse_access.token(service)
    code = (
        "import sys; from covermap.providers.cdse_access import *\n"
        "print(token(service_at(sys.argv[1]), refused=sys.argv[2]))"
    )
    line = [sys.executable, "-c", code, fake.url, old]
    running = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate(timeout=60)[0] for process in running}) == 1
    assert fake.grants() == ["password", "refresh_token"]


def test_a_token_that_ends_within_a_body_is_renewed_and_the_body_goes_on(fake, tmp_path):
    item = items_of(fake)["sentinel2"]
    fake.cut = 1000
    fetch(fake, item, tmp_path / "scene.zip")
    assert set(fake.grants()) == {"password", "refresh_token"} and fake.grants()[0] == "password"
    assert [asked.headers["Range"] for asked in fake.asked if "Range" in asked.headers][:1] == ["bytes=1000-"]


def test_a_session_that_has_ended_is_begun_anew(fake, tmp_path):
    item = items_of(fake)["sentinel2"]
    fetch(fake, item, tmp_path / "one.zip")
    fake.end_sessions()
    fetch(fake, item, tmp_path / "two.zip")
    assert fake.grants() == ["password", "refresh_token", "password"]


def test_too_many_sessions_are_told(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    fake.sessions = 0
    with pytest.raises(DownloadError, match=r"has too many sessions of this account \(429\): end other programs"):
        fetch(fake, items_of(fake)["sentinel2"], tmp_path / "scene.zip")


def test_a_wrong_password_is_told_and_not_shown(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("CDSE_PASSWORD", "wrong and secret")
    with pytest.raises(SettingError, match=r"127\.0\.0\.1 refuses the name and password") as caught:
        fetch(fake, items_of(fake)["sentinel2"], tmp_path / "scene.zip")
    assert "secret" not in str(caught.value) and NAME not in str(caught.value)
    assert fake.grants() == ["password"]  # an account that is tried too often is locked


def test_no_account_is_told_before_anything_is_asked(fake, tmp_path, monkeypatch):
    item = items_of(fake)["sentinel2"]
    monkeypatch.delenv("CDSE_USERNAME")
    with pytest.raises(SettingError, match="one of CDSE_USERNAME and CDSE_PASSWORD is not set"):
        cdse.check_credentials(settings(fake))
    monkeypatch.delenv("CDSE_PASSWORD")
    fake.asked.clear()
    with pytest.raises(SettingError, match=r"no account .*: register at https://dataspace\.copernicus\.eu, then set"):
        fetch(fake, item, tmp_path / "scene.zip")
    assert fake.asked == []


def test_a_password_does_not_travel_for_all_to_read():
    with pytest.raises(SettingError, match=r"http://mirror\.example\.org.*expected https"):
        cdse.check_credentials(Provider(name="cdse", url="http://mirror.example.org"))


def test_a_folder_in_place_of_the_token_is_told_as_such(fake, tmp_path, monkeypatch):
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *more: real(tmp_path if "cdse-" in str(path) else path, *more))
    with pytest.raises(SettingError, match=r"cdse-.*cannot be used .Is a directory"):
        cdse_access.token(cdse_access.service_at(fake.url))


def test_the_account_may_stand_in_netrc(fake, tmp_path, monkeypatch):
    monkeypatch.delenv("CDSE_USERNAME")
    monkeypatch.delenv("CDSE_PASSWORD")
    (tmp_path / "netrc").write_text(f'machine 127.0.0.1 login {NAME} password "{PASSWORD}"\n')
    (tmp_path / "netrc").chmod(0o600)
    assert len(fetch(fake, items_of(fake)["sentinel2"], tmp_path / "scene.zip")) == 7
    assert not any(asked.headers.get("Authorization", "").startswith("Basic") for asked in fake.asked)


def test_tokens_are_for_this_users_eyes_and_secrets_stand_in_no_log(fake, tmp_path, caplog):
    caplog.set_level(0)
    fake.cut = 1000
    fetch(fake, items_of(fake)["sentinel2"], tmp_path / "scene.zip")
    (kept,) = slots.runtime_folder().glob("cdse-*.json")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert NAME not in kept.name and PASSWORD not in kept.read_text()
    assert re.findall("access-|refresh-|secret|somebody", caplog.text) == []


def test_a_token_file_that_a_killed_process_left_is_no_harm(fake):
    service = cdse_access.service_at(fake.url)
    cdse_access.token(service)
    (kept,) = slots.runtime_folder().glob("cdse-*.json")
    tokens = {"access_token": "old", "refresh_token": "old", "renew_at": 1e12}
    others = [{"renew_at": None}, {"renew_at": "soon"}, {"renew_at": float("nan")}, {"access_token": None}]
    for rubbish in ('{"access_', "[]", "{}", "", "[" * 200_000, *(json.dumps(tokens | other) for other in others)):
        kept.write_text(rubbish)
        assert cdse_access.token(service).startswith("access-")


@pytest.mark.parametrize(
    "change",
    [
        {"access_token": None},
        {"access_token": ""},
        {"access_token": ["a"]},
        {"refresh_token": None},
        {"expires_in": None},
        {"expires_in": float("nan")},
        {"expires_in": 10**400},
    ],
)
def test_what_is_no_token_is_neither_kept_nor_given(fake, monkeypatch, change):
    told = {"access_token": "a", "refresh_token": "b", "expires_in": 600} | change
    monkeypatch.setattr(fake, "grant", lambda form: (200, told))
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1 answers without a token: expected one; try again later"):
        cdse_access.token(cdse_access.service_at(fake.url))
    (kept,) = slots.runtime_folder().glob("cdse-*.json")
    assert kept.read_text() == ""


def test_who_renews_the_token_is_waited_for(fake):
    service = cdse_access.service_at(fake.url)
    old = cdse_access.token(service)
    (kept,) = slots.runtime_folder().glob("cdse-*.json")
    with ThreadPoolExecutor(1) as pool, kept.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        asked = pool.submit(cdse_access.token, service, refused=old)
        time.sleep(0.3)
        assert not asked.done() and fake.grants() == ["password"]
        kept.write_text(held.read().replace(old, "access-of-another"))
        fcntl.flock(held, fcntl.LOCK_UN)
        assert asked.result(timeout=20) == "access-of-another"
    assert fake.grants() == ["password"]


def test_a_link_in_place_of_the_token_file_is_not_followed(fake, tmp_path):
    service = cdse_access.service_at(fake.url)
    cdse_access.token(service)
    (kept,) = slots.runtime_folder().glob("cdse-*.json")
    kept.unlink()
    kept.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingError, match=r"cdse-.*\.json, where processes share .* tokens, cannot be used"):
        cdse_access.token(service)
    assert not (tmp_path / "elsewhere").exists()


def test_the_token_does_not_follow_to_another_host(fake, tmp_path):
    item = items_of(fake)["sentinel2"]
    fake.redirects = True
    with pytest.raises(DownloadError, match=r"answered 401"):
        fetch(fake, item, tmp_path / "scene.zip")
    there = [asked for asked in fake.asked if asked.headers["Host"] == fake.download_url.removeprefix("http://")]
    assert there and not any("Authorization" in asked.headers for asked in there)


def test_the_token_follows_to_the_services_own_download_host(fake, tmp_path, monkeypatch):
    item = items_of(fake)["sentinel2"]
    fake.redirects = True
    both = frozenset(url.removeprefix("http://") for url in (fake.url, fake.download_url))
    odata = f"{fake.url}/odata/v1"
    monkeypatch.setattr(cdse_access, "OWN", cdse_access.Service(odata, odata, fake.url + TOKEN_PATH, fake.url, both))
    cdse.fetch(item, tmp_path / "scene.zip", Provider(name="cdse"), BANDS, grid=None)
    check_stored(tmp_path / "scene.zip", item)


def test_the_services_own_addresses_are_the_documented_ones():
    service = cdse_access.service_at(None)
    assert service.catalogue == "https://catalogue.dataspace.copernicus.eu/odata/v1"
    assert service.download == "https://download.dataspace.copernicus.eu/odata/v1"
    assert service.token == f"https://identity.dataspace.copernicus.eu{TOKEN_PATH}"
    assert service.store == "https://eodata.dataspace.copernicus.eu"


# --- the object store ---


@pytest.fixture
def store(fake, tmp_path, monkeypatch) -> Iterator[None]:
    """The object store, with keys in the environment."""
    with serve_store(fake.entries, tmp_path / "store") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield


def test_keys_bring_the_same_bytes_from_the_object_store(fake, store, tmp_path, monkeypatch):
    items = items_of(fake)
    for sensor, bands in (("sentinel1", ("VV", "VH")), ("sentinel2", BANDS)):
        fake.asked.clear()
        fetch(fake, items[sensor], tmp_path / f"{sensor}_keys.zip", bands)
        assert fake.asked == []
    for name in ("ACCESS", "SECRET"):
        monkeypatch.delenv(f"CDSE_S3_{name}")
    for sensor, bands in (("sentinel1", ("VV", "VH")), ("sentinel2", BANDS)):
        fetch(fake, items[sensor], tmp_path / f"{sensor}.zip", bands)
        assert (tmp_path / f"{sensor}_keys.zip").read_bytes() == (tmp_path / f"{sensor}.zip").read_bytes()


def test_a_wrong_key_is_told_and_not_shown(fake, store, tmp_path, monkeypatch, caplog):
    caplog.set_level(0)
    monkeypatch.setenv("CDSE_S3_SECRET", "another secret")
    with pytest.raises(DownloadError, match=r"answered 403 .*: check account and credentials") as caught:
        fetch(fake, items_of(fake)["sentinel2"], tmp_path / "scene.zip")
    assert "secret" not in str(caught.value) + caplog.text


def test_one_key_alone_is_told(fake, monkeypatch):
    monkeypatch.setenv("CDSE_S3_ACCESS", "a key")
    with pytest.raises(SettingError, match="CDSE_S3_SECRET is not set, but the other"):
        cdse.check_credentials(settings(fake))
