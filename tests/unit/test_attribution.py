"""Whose data a map is made of."""

from covermap.attribution import attribution, dated
from covermap.label_settings import Labels


def labels(**given):
    return Labels(**{"source": "mapbiomas", "legend": "legend.csv", **given})


def test_files_of_a_users_own_are_nobodys():
    told = attribution("cdse", False, [labels(path="a.tif"), None])
    assert told == "Contains modified Copernicus Sentinel data {years}"


def test_the_years_of_the_scenes_are_told_once_and_in_order():
    scenes = [{"properties": {"datetime": f"{day}T10:00:00Z"}} for day in ("2022-01-01", "2021-12-31", "2022-06-01")]
    told = dated(attribution("stac", False, []), scenes)
    assert told == "Contains modified Copernicus Sentinel data 2021, 2022"


def test_sentinel_hub_is_named():
    told = attribution("sentinelhub", True, [])
    assert told.startswith("Contains modified Copernicus Sentinel data {years}/Sentinel Hub; heights produced using")


def test_simulated_data_are_nobodys():
    told = attribution("demo", True, [labels(path="auto", collection=10, year=2022)])
    assert told == dated(told, [{"properties": {"datetime": "2021-01-01T10:00:00Z"}}]) == "Simulated data"


def test_what_was_downloaded_is_told_once():
    taught = labels(path="auto", collection=10, year=2022)
    other = labels(path="auto", collection="https://example.org/{year}.tif", year=2022)
    told = attribution("cdse", True, [taught, taught, other])
    begin = "Contains modified Copernicus Sentinel data {years}; heights produced using Copernicus WorldDEM-30"
    assert told.startswith(begin) and told.isascii()
    assert told.endswith("; MapBiomas Project, collection 10, 2022, CC BY 4.0")
    assert told.count("MapBiomas") == 1 and "example" not in told


def test_urban_atlas_is_named_wherever_it_comes_from():
    for given in ({"path": "auto", "year": 2018}, {"path": "paris.gpkg", "year": 2018}):
        told = attribution("stac", False, [labels(source="urban_atlas", **given)])
        assert "; Urban Atlas 2018, generated using European Union's Copernicus Land Monitoring Service" in told
        assert "MapBiomas" not in told
    nameless = attribution("stac", False, [labels(source="urban_atlas", path="paris.gpkg")])
    assert "; Urban Atlas, generated using" in nameless
