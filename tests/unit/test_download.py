import json
import logging
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rasterio.io import MemoryFile
from shapely.geometry import box, mapping

from covermap.area_settings import Composite, Period, Provider
from covermap.download import download_scene, search_scenes
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.files import stamp
from covermap.grid import area_grid
from covermap.providers import Query, demo, stac
from covermap.scenes import read_listing
from covermap.selection import newest_baseline

AREA = box(10.2, 50.2, 10.4, 50.4)
AUGUST = Period(start="2021-08-01", end="2021-08-31")


def scene(name, time="2021-08-10T10:00:00Z", west=10.0, cloud=None, sensor=2, **properties):
    """An item whose only asset is a SAFE folder beside the catalogue."""
    if cloud is not None:
        properties["eo:cloud_cover"] = cloud
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": mapping(box(west, 50, west + 1, 51)),
        "properties": {"datetime": time, "platform": f"sentinel-{sensor}a", **properties},
        "links": [{"rel": "self", "href": "gone.json"}],
        "assets": {"product": {"href": f"products/{name}.SAFE", "roles": ["data"]}},
    }


def raster_bytes(driver, **options) -> bytes:
    """A small raster file of noise."""
    noise = np.random.default_rng(0).integers(0, 9999, (2, 64, 64), np.uint16)
    with MemoryFile() as file:
        with file.open(driver=driver, count=2, height=64, width=64, dtype="uint16", **options) as raster:
            raster.write(noise)
        return file.read()


JP2 = raster_bytes("JP2OpenJPEG", CODEC="JP2", QUALITY=100, REVERSIBLE="YES", YCBCR420="NO")
CODESTREAM = JP2[JP2.index(b"jp2c") + 4 :]
LONG_BOX = JP2.index(b"jp2c") - 4
RASTERS = {
    "strips.tif": raster_bytes("GTiff"),
    "tiles of bands.TIFF": raster_bytes("GTiff", tiled=True, blockxsize=16, blockysize=16, interleave="band"),
    "boxes.jp2": JP2,
    "last box to the end.jp2": JP2[:LONG_BOX] + bytes(4) + JP2[LONG_BOX + 4 :],
    "long box.jp2": JP2[:LONG_BOX] + struct.pack(">I4sQ", 1, b"jp2c", len(CODESTREAM) + 16) + CODESTREAM,
    "codestream.tif": CODESTREAM,
}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Working directory, as Snakemake's jobs have it."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write_catalog(folder: Path, *items) -> Path:
    for item in items:
        for asset in item["assets"].values():
            if asset["href"].endswith(".SAFE"):
                safe = folder / asset["href"]
                (safe / "measurement").mkdir(parents=True, exist_ok=True)
                (safe / "manifest.safe").write_text(item["id"])
                (safe / "measurement" / "a.tiff").write_bytes(RASTERS["strips.tif"])
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
    return path


DEFAULTS = {
    "level": "L2A",
    "max_cloud": 60,
    "orbit_state": None,
    "relative_orbits": (),
    "polarisations": ("VV", "VH"),
    "composite": Composite(),
    "pinned": None,
    "labels": None,
}
GRID = area_grid(AREA, "EPSG:32632")
ON_DISK = Provider(name="stac", catalog=Path("items.json"))


def search(catalog, listing=Path("listing.json"), sensors=("sentinel2",), area=AREA, period=AUGUST, **more):
    provider = more.pop("provider", {})
    settings = Provider(name="stac", catalog=catalog, **provider)
    arguments = {**DEFAULTS, "provider": settings, "catalog": catalog, **more}
    search_scenes(listing, area=area.wkt, period=period, sensors=sensors, **arguments)
    return list(read_listing(listing).values())


def fetch(item, product):
    stac.fetch(item, product, ON_DISK, ("B02",), GRID)


def download(product, item):
    download_scene(product, item, ON_DISK, ("B02",), GRID)


# --- search ---


def test_search_takes_area_period_and_sensor(root):
    catalog = write_catalog(
        root,
        scene("last_day", "2021-08-31T23:59:59Z"),
        scene("first_day", "2021-08-01T00:00:00Z"),
        scene("too_late", "2021-09-01T00:00:00Z"),
        scene("late_in_utc", "2021-08-31T22:00:00-03:00"),
        scene("elsewhere", west=20),
        scene("radar", sensor=1),
    )
    assert [item["id"] for item in search(catalog)] == ["first_day", "last_day"]
    assert [item["id"] for item in search(catalog, sensors=("sentinel1", "sentinel2"))] == [
        "first_day",
        "last_day",
        "radar",
    ]


def test_hrefs_below_the_working_directory_are_relative_and_others_absolute(root, tmp_path):
    for folder, expected in (
        (root / "data", "data/products/a.SAFE"),
        (tmp_path / "out", f"{tmp_path}/out/products/a.SAFE"),
    ):
        folder.mkdir()
        (found,) = search(write_catalog(folder, scene("a")))
        assert found["assets"]["product"]["href"] == expected


def test_the_same_answer_gives_the_same_bytes(root):
    scenes = [scene("b"), scene("a")]
    search(write_catalog(root, *scenes), Path("one.json"))
    search(write_catalog(root, *reversed(scenes)), Path("two.json"))
    assert Path("one.json").read_bytes() == Path("two.json").read_bytes()


def test_tree_of_catalogues_even_with_a_loop(root):
    write_catalog(root, scene("a"))
    (root / "items").mkdir()
    item = scene("a")
    item["assets"]["product"]["href"] = "../products/a.SAFE"
    (root / "items" / "a.json").write_text(json.dumps(item))
    links = [{"rel": "item", "href": "items/a.json"}, {"rel": "child", "href": "catalog.json"}, {"rel": "parent"}]
    (root / "collection.json").write_text(json.dumps({"type": "Collection", "links": links}))
    links = [{"rel": "child", "href": "./collection.json"}, {"rel": "self", "href": "https://example.org/catalog.json"}]
    (root / "catalog.json").write_text(json.dumps({"type": "Catalog", "links": links}))
    assert [item["id"] for item in search(Path("catalog.json"))] == ["a"]


def test_remote_assets_give_way_to_local_ones(root):
    item = scene("a")
    item["assets"] = {
        "blue": {"href": "B02.tif"},
        "coastal": {"href": "https://example.org/B01.tif", "type": "image/tiff"},
        "thumbnail": {"href": "preview.tif", "roles": ["thumbnail"]},
        "metadata": {"href": "a.xml", "type": "application/xml"},
        "mosaic": {"href": "a.vrt", "type": "image/tiff"},
    }
    (root / "B02.tif").write_bytes(b"II*")
    assert list(search(write_catalog(root, item))[0]["assets"]) == ["blue"]
    del item["assets"]["blue"]
    with pytest.raises(
        SettingError, match=r"item a .* https://example\.org/B01\.tif: provider stac reads files on disk"
    ):
        search(write_catalog(root, item))


def test_clouds_and_older_baselines_are_left_out(root, caplog):
    caplog.set_level(logging.INFO)
    name = "S2A_MSIL2A_20210810T100000_N{}_R022_T32UNA_{}"
    old, new = name.format("0301", "20210810T120000"), name.format("0500", "20230201T120000")
    catalog = write_catalog(root, scene("cloudy", cloud=60.1), scene("clear", cloud=60), scene(old), scene(new))
    assert [item["id"] for item in search(catalog)] == [new, "clear"]
    assert f"{old} left out: {new} has the later baseline 05.00" in caplog.text
    assert "cloudy left out: 60.1 % of clouds, at most 60 %" in caplog.text


def test_a_clear_older_baseline_never_stands_in_for_a_cloudy_newer_one(root):
    name = "S2A_MSIL2A_20210810T100000_N{}_R022_T32UNA_{}"
    old, new = name.format("0301", "20210810T120000"), name.format("0500", "20230201T120000")
    catalog = write_catalog(root, scene(old, cloud=10), scene(new, cloud=80), scene("clear", cloud=20))
    assert [item["id"] for item in search(catalog)] == ["clear"]
    with pytest.raises(CoverageError, match=r": 1 have more clouds than max_cloud 60 %, the clearest 80 %"):
        search(write_catalog(root, scene(old, cloud=10), scene(new, cloud=80)))


def test_baselines_compare_in_all_their_forms():
    def told(baseline, **more):
        return scene(str(baseline), **{"s2:mgrs_tile": "32UNA", "s2:processing_baseline": baseline, **more})

    items = [told("5.9"), told(5.1), told("04.00"), told("0509"), told("99.99")]
    (kept,) = newest_baseline(items)
    assert kept["id"] == "5.1"
    assert kept["properties"]["covermap:supersedes"] == ["04.00", "0509", "5.9", "99.99"]


def test_parts_of_one_tile_and_other_acquisitions_are_kept():
    def part(name, **properties):
        return scene(name, **{"s2:mgrs_tile": "32UNA", "s2:processing_baseline": "05.09", **properties})

    items = [
        part("a"),
        part("b"),
        part("other_tile", **{"s2:mgrs_tile": "32UNB", "s2:processing_baseline": "02.14"}),
        part("other_platform", platform="sentinel-2b"),
        part("other_time", time="2021-08-10T10:00:02Z"),
        part("older", **{"s2:processing_baseline": "04.00"}),
    ]
    assert [item["id"] for item in newest_baseline(items)] == ["a", "b", "other_tile", "other_platform", "other_time"]


def test_what_is_kept_names_what_it_supersedes(root):
    name = "S2A_MSIL2A_20210810T100000_N{}_R022_T32UNA_{}"
    one, two = name.format("0209", "20210810T120000"), name.format("0301", "20210811T120000")
    new = name.format("0500", "20230201T120000")
    found = {item["id"]: item for item in search(write_catalog(root, scene(two), scene(new), scene(one), scene("x")))}
    assert list(found) == [new, "x"]
    assert found[new]["properties"]["covermap:supersedes"] == [one, two]
    assert "covermap:supersedes" not in found["x"]["properties"]


def test_a_datastrip_that_was_made_again_is_taken_once():
    """Three products of one baseline: two parts of the tile, and the first of them once more."""

    def part(name, start, made):
        fields = {"s2:mgrs_tile": "32UNA", "s2:processing_baseline": "05.00", "s2:generation_time": made}
        return scene(name, **fields, **{"s2:datastrip_id": f"S2A_OPER_MSI_L2A_DS_S2RP_20230101T000000_S{start}_N05.00"})

    items = [
        part("again", "20210810T100003", "2023-06-01T00:00:00.0Z"),
        part("first", "20210810T100003", "2023-01-01T00:00:00.0Z"),
        part("second", "20210810T100400", "2023-01-01T00:00:00.0Z"),
    ]
    for order in (items, items[::-1]):
        kept = newest_baseline(order)
        assert {item["id"] for item in kept} == {"again", "second"}
        assert all(item["properties"]["covermap:supersedes"] == ["first"] for item in kept)
    assert newest_baseline(kept) == kept  # a list that is pinned keeps what it knows


def test_a_processor_of_ones_own_comes_after_all_baselines():
    name = "S2A_MSIL2A_20210810T100000_N{}_R022_T32UNA_{}"
    own, old = name.format("9999", "20250810T120000"), name.format("0209", "20210810T120000")
    assert [item["id"] for item in newest_baseline([scene(own), scene(old)])] == [old]


def test_the_level_of_the_settings_is_taken(root, caplog):
    caplog.set_level(logging.INFO)
    top, surface = "S2A_MSIL1C_20210810T100000_N0301_R022_T32UNA_20210810T110000", "S2A_surface"
    catalog = write_catalog(root, scene(top), scene(surface, **{"s2:product_type": "S2MSI2A"}), scene("untold"))
    assert [item["id"] for item in search(catalog)] == [surface, "untold"]
    assert f"{top} left out: it is of level L1C, not L2A" in caplog.text
    assert [item["id"] for item in search(catalog, level="L1C")] == [top, "untold"]
    for more in ({}, {"pinned": root / "items.json"}):
        with pytest.raises(CoverageError, match=r"1 are of level L1C, so set sentinel2\.level to L1C or bring .* L2A"):
            search(write_catalog(root, scene(top)), **more)


def test_scenes_without_a_polarisation_that_is_read_are_left_out(root, caplog):
    """Whether searched or pinned; what tells none stays."""
    caplog.set_level(logging.INFO)
    single, dual = "S1A_IW_GRDH_1SSV_20210810T053000", "S1A_IW_GRDH_1SDV_20210810T053000"
    radar = {"sensors": ("sentinel1",)}
    catalog = write_catalog(root, *(scene(name, sensor=1) for name in (single, dual, "untold")))
    for more in (radar, {**radar, "pinned": catalog}):
        caplog.clear()
        assert [item["id"] for item in search(catalog, **more)] == [dual, "untold"]
        assert f"{single} left out: it has no VH" in caplog.text
        assert len(search(catalog, polarisations=("VV",), **more)) == 3
        only = write_catalog(root, scene(single, sensor=1), scene("other", sensor=1, **{"sar:polarizations": ["HH"]}))
        with pytest.raises(CoverageError, match=r"2 are of HH or VV, without all of VV, VH, so set .*polarisations to"):
            search(only, **more)
        write_catalog(root, *(scene(name, sensor=1) for name in (single, dual, "untold")))


def test_a_single_polarisation_never_takes_the_place_of_both_in_a_month(root):
    track = {"sat:orbit_state": "ascending", "sat:relative_orbit": 15}
    single = scene("S1A_IW_GRDH_1SSV_20210802T053000", "2021-08-02T05:30:00Z", sensor=1, **track)
    dual = scene("S1A_IW_GRDH_1SDV_20210814T053000", "2021-08-14T05:30:00Z", sensor=1, **track)
    one_a_month = {"sensors": ("sentinel1",), "provider": {"per_month": {"sentinel1": 1}}}
    assert search(write_catalog(root, single, dual), **one_a_month)[0]["id"] == dual["id"]
    assert search(root / "items.json", **one_a_month, polarisations=("VV",))[0]["id"] == single["id"]


def test_gap_in_the_area_is_refused_or_told(root, caplog):
    catalog, period = write_catalog(root, scene("a", west=10.3)), "2021-08-01 to 2021-08-31"
    with pytest.raises(CoverageError, match=rf"no sentinel2 scene for part of the area: {period} \(47\.5 %\): change"):
        search(catalog)
    assert not Path("listing.json").exists()
    search(catalog, provider={"on_missing": "skip"})
    assert f"{period} (47.5 %); it stays without" in caplog.text
    assert json.loads(Path("listing.json").read_text())["covermap:missing"] == {"sentinel2": {period: 0.475}}


def test_a_month_without_radar_is_refused_and_sentinel_1b_named(root):
    scenes = [scene("a", "2022-01-05T10:00:00Z", sensor=1), scene("b", "2022-03-05T10:00:00Z", sensor=1)]
    quarter = Period(start="2022-01-01", end="2022-03-31")
    with pytest.raises(CoverageError, match=r"2022-02 \(all of it\) \(Sentinel-1B was lost on 2021-12-23"):
        search(write_catalog(root, *scenes), sensors=("sentinel1",), period=quarter)


def test_level_2a_before_it_was_routine_is_explained(root):
    catalog = write_catalog(root, scene("a", "2018-08-05T10:00:00Z"))
    half = {"period": Period(start="2018-07-01", end="2018-08-31"), "composite": Composite(every="month")}
    with pytest.raises(CoverageError, match=r"2018-07 \(all of it\) \(Level-2A was made everywhere from December 2018"):
        search(catalog, **half)
    assert search(catalog, **{**half, "composite": Composite(every="month", fill="nearest")})


def test_passes_a_month(root):
    """Of a tile the clearest, of a track the one that covers most, with all of its slices."""
    tile = {"s2:mgrs_tile": "32UNA"}
    radar = {"sensor": 1, "sat:orbit_state": "ascending"}
    catalog = write_catalog(
        root,
        scene("dim", "2021-08-01T10:00:00Z", cloud=9, **tile),
        scene("clear", "2021-08-06T10:00:00Z", cloud=3, **tile),
        scene("clear_too", "2021-08-09T10:00:00Z", cloud=3, **tile),
        scene("other_tile", "2021-08-09T10:00:00Z", cloud=30, **{"s2:mgrs_tile": "32UNB"}),
        scene("untold_tile", "2021-08-09T10:00:00Z", cloud=50),
        scene("half", "2021-08-02T05:00:00Z", west=10.3, **radar, **{"sat:relative_orbit": 15}),
        scene("slice_1", "2021-08-14T05:00:00Z", west=9.3, **radar, **{"sat:relative_orbit": 15}),
        scene("slice_2", "2021-08-14T05:00:25Z", west=10.3, **radar, **{"sat:relative_orbit": 15}),
        scene("again_1", "2021-08-26T05:00:00Z", west=9.3, **radar, **{"sat:relative_orbit": 15}),
        scene("again_2", "2021-08-26T05:00:25Z", west=10.3, **radar, **{"sat:relative_orbit": 15}),
        scene("other_track", "2021-08-20T05:00:00Z", **radar, **{"sat:relative_orbit": 88}),
    )
    both = {"sensors": ("sentinel1", "sentinel2"), "provider": {"per_month": {"sentinel1": 1, "sentinel2": 1}}}
    radar = ["other_track", "slice_1", "slice_2"]
    assert [item["id"] for item in search(catalog, **both)] == sorted(["clear", "other_tile", "untold_tile", *radar])
    found = [item["id"] for item in search(catalog, **both, relative_orbits=(15,))]
    assert "other_track" not in found and "slice_1" in found


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (scene("cloudy", cloud=80), "1 have more clouds than max_cloud 60 %, the clearest 80 %"),
        (scene("a", "2020-05-06T10:00:00Z"), "1 are of days outside, from 2020-05-06 to 2020-05-06"),
        (scene("a", west=20), r"1 of the period lie elsewhere, at 20\.0000 to 21\.0000 E, 50\.0000 to 51\.0000 N"),
        (scene("a", sensor=1), "none of any other place"),
    ],
)
def test_no_scene_says_why(root, item, words):
    with pytest.raises(CoverageError, match=words) as error:
        search(write_catalog(root, item))
    assert "provider stac has no sentinel2 scene of the area 10.2000 to 10.4000 E" in str(error.value)
    assert "from 2021-08-01 to 2021-08-31" in str(error.value)
    assert not Path("listing.json").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"geometry": None}, "item a of .*items.json has no footprint"),
        ({"properties": {"platform": "sentinel-2a"}}, "item a of .*items.json has no datetime"),
        (
            {"assets": {"product": {"href": "gone.SAFE"}}},
            r"item a of .*items.json: its asset 'product' .*gone\.SAFE does",
        ),
        ({"assets": {"note": {"href": "a.txt"}}}, "item a of .*items.json has neither a product nor a raster"),
    ],
)
def test_broken_item(root, change, words):
    write_catalog(root, scene("a"))
    (root / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [{**scene("a"), **change}]}))
    with pytest.raises(ProductError, match=words):
        search(root / "items.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"items\.json cannot be read \(No such file"),
        ("{", "is no JSON"),
        ("[1]", r"is no STAC \(list\)"),
        ('{"type": "Topology"}', r"is no STAC \(type 'Topology'\)"),
        ('{"type": "FeatureCollection"}', "expected a list of objects under 'features'"),
    ],
)
def test_broken_catalogue(root, content, words):
    if content is not None:
        (root / "items.json").write_text(content)
    with pytest.raises(ProductError, match=words):
        search(root / "items.json")


def test_remote_catalogue(root):
    with pytest.raises(SettingError, match="provider stac reads files on disk"):
        search(Path("https://example.org/catalog.json"))


def test_two_different_items_of_one_id(root):
    with pytest.raises(ProductError, match="two items a that differ"):
        search(write_catalog(root, scene("a"), scene("a", cloud=3)))


def test_pinned_list_is_taken_as_it_is_but_for_other_areas_and_days(root, caplog):
    name = "S2A_MSIL2A_20210810T100000_N{}_R022_T32UNA_20210810T120000"
    twice = [scene(name.format(baseline), cloud=99) for baseline in ("0301", "0500")]
    pinned = write_catalog(root, *twice, scene("far", west=20), scene("late", "2021-09-01T00:00:00Z"))
    listing = Path("listing.json")
    arguments = {
        **DEFAULTS,
        "area": AREA.wkt,
        "period": AUGUST,
        "provider": Provider(name="demo"),
        "catalog": None,
        "pinned": pinned,
    }
    search_scenes(listing, sensors=("sentinel2",), **arguments)
    assert list(read_listing(listing)) == [name.format("0500")]
    assert read_listing(listing)[name.format("0500")]["properties"]["covermap:supersedes"] == [name.format("0301")]
    assert "far of" in caplog.text and "late of" in caplog.text
    with pytest.raises(CoverageError, match=r"items\.json has no sentinel1 scene .* pin scenes"):
        search_scenes(listing, sensors=("sentinel1",), **arguments)


def test_demo_serves_its_own_catalogue(root):
    folder = root / "resources" / "demo"
    folder.mkdir(parents=True)
    write_catalog(folder, scene("a")).rename(demo.CATALOG)
    (found,) = demo.search(Query(AREA, AUGUST, ("sentinel2",)), Provider(name="demo"))
    assert found["assets"]["product"]["href"] == "resources/demo/products/a.SAFE"


# --- fetch ---


def test_safe_becomes_a_stored_zip_of_the_same_bytes(root):
    (item,) = search(write_catalog(root, scene("a")))
    for name in ("one.zip", "two.zip"):
        download(Path(name), item)
        (root / "products/a.SAFE/manifest.safe").touch()
    assert Path("one.zip").read_bytes() == Path("two.zip").read_bytes()
    with zipfile.ZipFile("one.zip") as archive:
        assert archive.namelist() == ["a.SAFE/manifest.safe", "a.SAFE/measurement/a.tiff"]
        assert archive.read("a.SAFE/measurement/a.tiff") == RASTERS["strips.tif"]
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_STORED}


def test_rasters_become_a_zip_with_their_item(root):
    item = scene("a")
    item["assets"] = {"vv": {"href": "left/x.tif"}, "band 2": {"href": "right/x.jp2", "title": "kept"}}
    for folder in ("left/x.tif", "right/x.jp2"):
        (root / folder).parent.mkdir()
        (root / folder).write_text(folder)
    (found,) = search(write_catalog(root, item))
    fetch(found, Path("a.zip"))
    with zipfile.ZipFile("a.zip") as archive:
        assert sorted(archive.namelist()) == ["band_2.jp2", "item.json", "vv.tif"]
        assert archive.read("band_2.jp2") == b"right/x.jp2"
        inside = json.loads(archive.read("item.json"))
    assert inside["assets"]["band 2"] == {"href": "band_2.jp2", "title": "kept"}
    assert inside["properties"] == item["properties"]


@pytest.mark.parametrize("key", ["product-metadata", "product_metadata"])
def test_rasters_keep_the_metadata_of_their_product(root, key):
    item = scene("a")
    item["assets"] = {"B02": {"href": "B02.tif"}, key: {"href": "MTD_MSIL2A.xml", "roles": ["metadata"]}}
    (root / "B02.tif").write_bytes(RASTERS["strips.tif"])
    (root / "MTD_MSIL2A.xml").write_text("<a/>")
    (found,) = search(write_catalog(root, item))
    download(Path("a.zip"), found)
    with zipfile.ZipFile("a.zip") as archive:
        assert archive.read(f"{key}.xml") == b"<a/>"
        assert json.loads(archive.read("item.json"))["assets"][key]["href"] == f"{key}.xml"
    del item["assets"]["B02"]
    with pytest.raises(ProductError, match="neither a product nor a raster asset"):
        search(write_catalog(root, item))
    item["assets"]["B02"] = {"href": "https://example.org/B02.tif"}
    with pytest.raises(SettingError, match="provider stac reads files on disk"):
        search(write_catalog(root, item))


def zipped(path, *names, link=False):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            member = zipfile.ZipInfo(name)
            member.external_attr = (0o120777 if link else 0o100644) << 16
            archive.writestr(member, "content")
    item = scene("a")
    item["assets"]["product"]["href"] = str(path)
    return item


def test_zipped_safe_is_copied(root):
    item = zipped(root / "a.SAFE.zip", "a.SAFE/manifest.safe")
    fetch(item, Path("b.zip"))
    assert Path("b.zip").read_bytes() == (root / "a.SAFE.zip").read_bytes()


@pytest.mark.parametrize("name", ["a.SAFE/../../evil", "/etc/passwd", "..\\evil"])
def test_members_that_lead_out_are_refused(root, name):
    with pytest.raises(ProductError, match="unsafe member"):
        fetch(zipped(root / "a.zip", "a.SAFE/manifest.safe", name), Path("b.zip"))
    assert [path.name for path in root.iterdir()] == ["a.zip"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: zipped(path, "a.SAFE/x", link=True), "unsafe member"),
        (lambda path: zipped(path, "a.SAFE/x", "b.SAFE/x"), "expected one folder"),
        (lambda path: zipped(path, "x/a.tif"), "expected one folder"),
    ],
)
def test_zip_that_is_no_safe(root, make, words):
    with pytest.raises(ProductError, match=words):
        fetch(make(root / "a.zip"), Path("b.zip"))
    assert not Path("b.zip").exists()


def test_truncated_zip(root):
    item = zipped(root / "a.zip", "a.SAFE/manifest.safe")
    (root / "a.zip").write_bytes((root / "a.zip").read_bytes()[:-30])
    with pytest.raises(ProductError, match=r"a\.zip is no whole zip"):
        fetch(item, Path("b.zip"))


def test_safe_without_manifest(root):
    (item,) = search(write_catalog(root, scene("a")))
    (root / "products/a.SAFE/manifest.safe").unlink()
    with pytest.raises(ProductError, match=r"a\.SAFE is no SAFE product"):
        fetch(item, Path("b.zip"))
    assert not list(root.glob("*b.zip*"))


def test_product_that_went_away(root):
    with pytest.raises(ProductError, match=r"item a: its asset 'product' .* does not exist"):
        fetch(scene("a"), Path("b.zip"))


def with_asset(name, content):
    Path(name).write_bytes(content)
    return {**scene("a"), "assets": {"blue": {"href": name}}}


@pytest.mark.parametrize("name", RASTERS)
def test_a_raster_that_is_cut_off_is_never_stored(root, name):
    whole = RASTERS[name]
    download(Path("b.zip"), with_asset(name, whole))
    Path("b.zip").unlink()
    for size in (0, 4, 30, len(whole) // 3, len(whole) - 2000, len(whole) - 1):
        with pytest.raises(ProductError, match=f"scene a: {name} .*bring the whole file again") as error:
            download(Path("b.zip"), with_asset(name, whole[:size]))
        assert "\n" not in str(error.value)
        assert os.listdir() == [name]


@pytest.mark.parametrize("name", ["boxes.jp2", "codestream.tif"])
def test_a_file_of_the_right_size_that_was_never_filled(root, name):
    content = RASTERS[name][:-500] + bytes(500)
    with pytest.raises(ProductError, match="is cut off: its pixels have no end"):
        download(Path("b.zip"), with_asset(name, content))


def test_a_raster_of_text(root):
    with pytest.raises(ProductError, match=r"scene a: b\.jp2 is no whole raster"):
        download(Path("b.zip"), with_asset("b.jp2", b"<html>502 Bad Gateway</html>"))


def test_a_cut_file_in_a_safe_is_named_with_its_product(root):
    (item,) = search(write_catalog(root, scene("a")))
    image = root / "products/a.SAFE/measurement/a.tiff"
    image.write_bytes(image.read_bytes()[:-9])
    with pytest.raises(ProductError, match=r"scene a: a\.SAFE/measurement/a\.tiff of products/a\.SAFE is cut off"):
        download(Path("b.zip"), item)
    assert not Path("b.zip").exists()


def test_a_wrong_byte_in_a_zip_is_found_by_its_sum(root):
    item = zipped(root / "a.zip", "a.SAFE/manifest.safe")
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.SAFE/manifest.safe", "content")
    Path("a.zip").write_bytes(Path("a.zip").read_bytes().replace(b"content", b"c0ntent", 1))
    with pytest.raises(ProductError, match=r"manifest\.safe of .*a\.zip is broken \(Bad CRC-32"):
        download(Path("b.zip"), item)
    assert not Path("b.zip").exists()


def test_sources_are_what_is_copied_from_this_disk(root):
    assert stac.sources(scene("a")) == [Path("products/a.SAFE")]
    item = {**scene("a"), "assets": {"blue": {"href": "B02.tif"}, "red": {"href": "https://example.org/B04.tif"}}}
    assert stac.sources(item) == [Path("B02.tif")]
    assert demo.sources is stac.sources


def test_the_stamp_of_sources_changes_with_them(root):
    write_catalog(root, scene("a"))
    safe, image = Path("products/a.SAFE"), Path("products/a.SAFE/measurement/a.tiff")
    stamps = [stamp([safe])]
    state = image.stat()
    image.write_bytes(b"longer or shorter")
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))  # as unzipping and rsync do
    stamps.append(stamp([safe]))
    os.utime(image, (0, 5))
    stamps.append(stamp([safe]))
    (safe / "more").touch()
    stamps.append(stamp([safe]))
    assert len(set(stamps)) == 4
    safe.rename("b.SAFE").rename(safe)
    assert stamp([safe]) == stamps[-1]
    assert stamp([Path("gone")]) == stamp([])
