import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from shapely.geometry import box, mapping

from covermap.area_settings import Sentinel1
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.scenes import (
    footprint,
    level_of,
    meets,
    moment,
    one_view,
    platform_of,
    polarisations_of,
    read_listing,
    sensor_of,
    tile_of,
    track_of,
)


def item(name="S2A_MSIL2A_20210801T135111_N0301_R024_T21LZC_20210801T160000", outline=None, **properties):
    return {
        "type": "Feature",
        "id": name,
        "geometry": mapping(outline or box(0, 0, 1, 1)),
        "properties": {"datetime": "2021-08-01T13:51:11Z", **properties},
        "assets": {},
    }


@pytest.mark.parametrize(
    ("scene", "sensor"),
    [
        (item(), "sentinel2"),
        (item("S1B_IW_GRDH_1SDV_20211223T051122_20211223T051147_030148_039998_5371"), "sentinel1"),
        (item("any", platform="sentinel-1a"), "sentinel1"),
        (item("any", constellation="Sentinel-2"), "sentinel2"),
        ({**item("any"), "collection": "sentinel-1-rtc"}, "sentinel1"),
        (item("S2C_33TWM_20250815_0_L2A"), "sentinel2"),
        (item("S2A_MSIL1C_20210801T135111_N0301_R024_T21LZC_20210801T160000"), "sentinel2"),
        (item("any", constellation="Sentinel 2"), "sentinel2"),
    ],
)
def test_sensor(scene, sensor):
    assert sensor_of(scene) == sensor


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (item("any", platform="sentinel-1a", **{"sar:product_type": "SLC"}), "of level SLC"),
        (item("LC08_L2SP_226068", platform="landsat-8"), "no known sensor"),
    ],
)
def test_what_no_step_reads_has_no_sensor(scene, words):
    with pytest.raises(ProductError, match=words):
        sensor_of(scene)


@pytest.mark.parametrize(
    ("scene", "level", "tile", "platform"),
    [
        (item(), "L2A", "21LZC", "sentinel-2a"),
        (item("S2B_MSIL1C_20220615T101559_N0400_R065_T32UPC_20220615T122549"), "L1C", "32UPC", "sentinel-2b"),
        (item("S2C_33TWM_20250815_0_L2A", platform="Sentinel-2C", **{"grid:code": "MGRS-33TWM"}), "L2A", "33TWM",
         "sentinel-2c"),
        (item("S2B_MSIL2A_20221004T220349_R086_T01JCF_20221005T072117"), "L2A", "01JCF", "sentinel-2b"),
        ({**item("any", **{"s2:mgrs_tile": "T32UPC"}), "collection": "sentinel-2-l1c"}, "L1C", "32UPC", ""),
        (item("any", **{"s2:product_type": "S2MSI1C"}), "L1C", "", ""),
        (item("L1C_like", **{"product:type": "S2MSI2A"}), "L2A", "", ""),
        (item("any"), "", "", ""),
    ],
)  # fmt: skip
def test_level_tile_and_platform(scene, level, tile, platform):
    assert (level_of(scene), tile_of(scene), platform_of(scene)) == (level, tile, platform)


@pytest.mark.parametrize(
    ("scene", "track"),
    [
        (item(), "24"),
        (item(**{"sat:relative_orbit": 67}), "67"),
        (item("S2C_33TWM_0_L2A", **{"s2:product_uri": "S2C_MSIL2A_20250815T100000_N0511_R122_T33TWM_x.SAFE"}), "122"),
        (item("S2B_MSIL2A_20221004T220349_R086_T01JCF_20221005T072117"), "86"),
        (item("any"), ""),
    ],
)
def test_track(scene, track):
    assert track_of(scene) == track


@pytest.mark.parametrize(
    ("scene", "polarisations"),
    [
        (item("any", **{"sar:polarizations": ["VV", "VH"]}), {"VV", "VH"}),
        (item("S1A_IW_GRDH_1SDH_x", **{"sar:polarizations": ["hh"]}), {"HH"}),
        (item("any", **{"s1:polarization": "DH"}), {"HH", "HV"}),
        (item("S1A_IW_GRDH_1SSV_20210810T053000"), {"VV"}),
        (item("S1A_IW_GRDH_1SDV_20210810T053000_20210810T053025_039000_049000_rtc"), {"VV", "VH"}),
        (item("S1A_IW_GRDH_1SDV_x", **{"sar:polarizations": []}), {"VV", "VH"}),
        (item("any", **{"s1:polarization": "?"}), set()),
        (item("any"), set()),
    ],
)
def test_polarisations(scene, polarisations):
    assert polarisations_of(scene) == polarisations


@pytest.mark.parametrize(
    "time",
    ["2021-08-01T10:51:11-03:00", "2021-08-01T13:51:11", "2021-08-01T13:51:11.000000000Z", "2021-08-01T13:51:11Z"],
)
def test_moment_is_utc(time):
    assert moment(item(datetime=time)) == datetime(2021, 8, 1, 13, 51, 11, tzinfo=UTC)


def test_moment_of_a_span_is_its_start():
    assert moment(item(datetime=None, start_datetime="2021-08-02T00:00:00Z")).day == 2


def test_meets_needs_more_than_a_common_border():
    assert meets(item(), box(0.9, 0.9, 2, 2))
    assert not meets(item(), box(1, 0, 2, 1))
    assert not meets(item(), box(5, 5, 6, 6))


def test_crossed_footprint_is_repaired():
    crossed = item()
    crossed["geometry"] = {"type": "Polygon", "coordinates": [[[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]]]}
    assert footprint(crossed).is_valid
    assert meets(crossed, box(1.8, 0.9, 1.9, 1.1))
    assert not meets(crossed, box(0.9, 0.1, 1.1, 0.2))


def write(path: Path, *items) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


def test_listing_by_id_and_again_after_a_change(tmp_path):
    path = write(tmp_path / "scenes.json", item("S2A_b"), item("S2A_a"))
    assert list(read_listing(path)) == ["S2A_b", "S2A_a"]
    assert read_listing(path)["S2A_a"]["properties"]["datetime"] == "2021-08-01T13:51:11Z"
    write(path, item("S2A_c"))
    assert list(read_listing(path)) == ["S2A_c"]


def without(key):
    return {name: value for name, value in item().items() if name != key}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "no FeatureCollection"),
        ("[]", "no FeatureCollection"),
        (json.dumps({"features": [item("a"), item("a")]}), "2 items but 1 ids"),
        (json.dumps({"features": [item("../a")]}), "'../a'.* expected an id of letters"),
        (json.dumps({"features": [without("geometry")]}), "S2A_.* has no footprint"),
        (json.dumps({"features": [{**item(), "geometry": None}]}), "S2A_.* has no footprint"),
        (json.dumps({"features": [without("properties")]}), "S2A_.* no STAC item"),
        (json.dumps({"features": [item(datetime=None)]}), "S2A_.* has no datetime"),
        (json.dumps({"features": [item(datetime="yesterday")]}), "S2A_.* has no datetime"),
    ],
)
def test_broken_listing(tmp_path, content, words):
    path = tmp_path / "scenes.json"
    path.write_text(content)
    with pytest.raises(ProductError, match=words) as error:
        read_listing(path)
    assert str(path) in str(error.value)


def test_missing_listing(tmp_path):
    with pytest.raises(ProductError, match=r"none\.json cannot be read"):
        read_listing(tmp_path / "none.json")


def radar(name, state="descending", track=24, href="a.SAFE"):
    told = {"sat:orbit_state": state, "sat:relative_orbit": track, "platform": "sentinel-1a"}
    return {**item(name, **{key: value for key, value in told.items() if value}), "assets": {"product": {"href": href}}}


MIXED = [radar("a", "ascending", 150), radar("b"), item("S2A_c"), radar("d"), radar("e", track=126)]
DEM = Path("dem.tif")


def names(items, dem=DEM, **settings):
    return [scene["id"] for scene in one_view(items, Sentinel1(**settings), dem, "acre")]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"orbit_state": "ascending"}, ["a", "S2A_c"]),
        ({"orbit_state": "descending", "relative_orbits": [24]}, ["b", "S2A_c", "d"]),
        ({"relative_orbits": [126]}, ["S2A_c", "e"]),
        ({"orbit_state": "descending", "normalise_deg": 38}, ["b", "S2A_c", "d", "e"]),
        ({"orbit_state": "descending", "convention": "gamma0_terrain"}, ["b", "S2A_c", "d", "e"]),
    ],
)
def test_settings_choose_radar_scenes_and_leave_the_others(settings, left):
    assert names(MIXED, **settings) == left


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"aois\.acre: .* ascending \(1 scene\) and descending \(3 scenes\), .* set sentinel1\.orbit_state"),
        ({"normalise_deg": 38}, r"ascending \(1 scene\) and descending \(3 scenes\)"),
        (
            {"orbit_state": "descending"},
            r"aois\.acre: .* 126 \(1 scene\) and 24 \(2 scenes\), .* by sentinel1\.relative_orbits, or .*_deg$",
        ),
        ({"orbit_state": "descending", "convention": "beta0"}, r"beta0 differs .* by sentinel1\.relative_orbits$"),
    ],
)
def test_views_of_two_kinds_are_refused_before_anything_is_fetched(settings, words):
    with pytest.raises(SettingError, match=words):
        names(MIXED, **settings)


def test_two_directions_may_be_wanted():
    for directions in ("apart", "together"):
        both = one_view(MIXED[:4], Sentinel1(), DEM, "acre", directions)
        assert [scene["id"] for scene in both] == ["a", "b", "S2A_c", "d"]
    with pytest.raises(SettingError, match=r"126 \(1 scene\) and 24 \(2 scenes\)"):  # two tracks of one direction
        one_view(MIXED, Sentinel1(), DEM, "acre", "together")
    with pytest.raises(CoverageError, match=r"directions is apart, but .* are descending \(2 scenes\): expected both"):
        one_view(MIXED[1:4], Sentinel1(), DEM, "acre", "apart")


def test_a_choice_that_leaves_no_radar_scene_says_what_there_is():
    with pytest.raises(CoverageError, match=r"state any .* \[7\]: there are ascending \(1 scene\) and .* tracks 126 "):
        names(MIXED, relative_orbits=[7])
    assert names([item("S2A_c")], relative_orbits=[7]) == ["S2A_c"]


def test_maps_of_backscatter_need_neither_one_track_nor_a_dem():
    ready = [radar("a", track=24, href="a.tif"), radar("b", track=126, href="b.tif")]
    assert names(ready, dem=None) == ["a", "b"]
    assert names([radar("a", None, None, "a.tif"), radar("b", None, None, "b.tif")], dem=None) == ["a", "b"]


@pytest.mark.parametrize("href", ["a.SAFE", "a.SAFE/", "a.zip"])
def test_products_need_a_dem(href):
    with pytest.raises(
        SettingError, match=r"aois\.acre\.dem is not set, but 1 of .* GRD products, such as b: give a DEM"
    ):
        names([radar("b", href=href)], dem=None)
