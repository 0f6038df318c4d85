"""What a map will take, by hand-made lists."""

import json

import pytest
from shapely.geometry import box, mapping

from covermap.area_settings import Period, Provider
from covermap.grid import area_grid
from covermap.plan import plan

AREA = box(10.0, 50.0, 10.2, 50.1)
BANDS = {"sentinel1": ("VV", "VH"), "sentinel2": ("B02", "SCL")}


def scene(name, time, size=None, **properties):
    told = {"file:size": size} if size else {}
    return {
        "type": "Feature",
        "id": name,
        "geometry": mapping(AREA),
        "properties": {"datetime": time, **properties},
        "assets": {"product": {"href": f"https://example.org/{name}.zip", **told}},
    }


@pytest.fixture
def planned(tmp_path, capsys):
    def run(scenes, chosen, missing=None, provider=None, fetched=None):
        listing = {
            "type": "FeatureCollection",
            "features": scenes,
            **({"covermap:missing": missing} if missing else {}),
        }
        (tmp_path / "listing.json").write_text(json.dumps(listing))
        plan(
            tmp_path / "listing.json",
            tmp_path / "plan.txt",
            AREA.wkt,
            Period(start="2021-01-05", end="2021-03-05"),
            provider or Provider(name="stac", catalog="https://example.org"),
            chosen,
            BANDS,
            fetched or BANDS,
            area_grid(AREA, "EPSG:32632"),
        )
        text = (tmp_path / "plan.txt").read_text()
        assert capsys.readouterr().out == text + "\n"
        return text

    return run


TILE = {"platform": "sentinel-2a", "s2:mgrs_tile": "32UNA", "s2:processing_baseline": "05.00"}
RADAR = {"platform": "sentinel-1a"}


def test_months_amounts_and_tiles(planned):
    scenes = [
        scene("a", "2021-01-10T05:00:00Z", 36_000_000_000, **RADAR),
        scene("b", "2021-03-01T05:00:00Z", 36_000_000_000, **RADAR),
        scene("c", "2021-02-01T10:00:00Z", **TILE),
        scene("d", "2021-02-01T10:00:00Z", **{**TILE, "s2:processing_baseline": "02.09"}),
        scene("left", "2021-02-01T10:00:00Z", **TILE),
    ]
    lines = planned(scenes, ["a", "b", "c", "d"]).splitlines()
    assert lines[0] == "2021-01-05 to 2021-03-05, provider stac: 4 of 5 scenes"
    rows = [line.split() for line in lines[2:7]]
    assert rows == [
        ["month", "sentinel1", "sentinel2"],
        ["2021-01", "1", "0"],
        ["2021-02", "0", "2"],
        ["2021-03", "1", "0"],
        ["all", "2", "2"],
    ]
    assert "to fetch:    73.4 GB (2 scenes do not tell their size, which is guessed)" in lines  # twice 36 and 0.7
    assert "hours:       0.3 to 1.0 of transfer, at 4 or 1 x 20 MB/s" in lines
    assert "processing units: 0" in lines
    assert lines[-2:] == ["       tile  sentinel2  baselines", "      32UNA          2  02.09, 05.00"]


def test_whole_products_cost_more_than_their_bands_but_what_is_kept_is_the_same(planned):
    name = "S2A_MSIL2A_20210201T100000_N0500_R065_T32UNA_20210201T120000"
    item = {**scene(name, "2021-02-01T10:00:00Z", 29_000_000_000, **TILE), "collection": "sentinel-2-l2a"}
    provider = Provider(name="cdse")
    some, whole = (planned([item], [name], provider=provider, fetched=fetched) for fetched in (None, {"sentinel2": ()}))
    assert "to fetch:    4.5 GB" in some and "to fetch:    29.0 GB" in whole  # 36 and 9 of 290 parts
    kept = [text.partition("products in work, ")[2].partition("\n")[0] for text in (some, whole)]
    assert kept[0] == kept[1] != ""


def test_what_is_missing_is_named(planned):
    text = planned([scene("a", "2021-01-10T05:00:00Z", 1, **RADAR)], ["a"], {"sentinel1": {"2021-02": 1.0}})
    assert "not covered: sentinel1, 2021-02 (all of it)" in text
    assert "tile" not in text


def test_processing_units_are_summed(planned):
    hub = Provider(name="sentinelhub")
    text = planned([scene("a", "2021-02-01T10:00:00Z", **TILE)], ["a"], provider=hub)
    grid = area_grid(AREA, "EPSG:32632")
    expected = grid.width * grid.height / 512**2 * 2 / 3
    assert f"processing units: {expected:.0f}" in text


def test_what_is_kept_on_disk_is_that_of_the_area(planned):
    text = planned([scene("a", "2021-01-10T05:00:00Z", 2_000_000_000, **RADAR)], ["a"])
    grid = area_grid(AREA, "EPSG:32632")
    expected = grid.width * grid.height * 4 * 3 * 0.7 / 1e9  # two polarisations and a layer of float32, packed
    assert f"disk:        2.0 GB for products in work, {expected:.1f} GB for scenes on the grid" in text
