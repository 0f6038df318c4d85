import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from shapely.geometry import box, mapping

from covermap.errors import ProductError
from covermap.scenes import footprint, meets, moment, read_listing, sensor_of


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
    ],
)
def test_sensor(scene, sensor):
    assert sensor_of(scene) == sensor


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (item("S2A_MSIL1C_20210801T135111_N0301_R024_T21LZC_20210801T160000"), "of level MSIL1C"),
        ({**item("any", platform="sentinel-2a"), "collection": "sentinel-2-l1c"}, "of level L1C"),
        (item("any", platform="sentinel-1a", **{"sar:product_type": "SLC"}), "of level SLC"),
        (item("LC08_L2SP_226068", platform="landsat-8"), "no known sensor"),
    ],
)
def test_what_no_step_reads_has_no_sensor(scene, words):
    with pytest.raises(ProductError, match=words):
        sensor_of(scene)


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
