"""Settings: what is accepted, and that a wrong one is named with the value and what was expected."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml

from covermap.area_settings import Period
from covermap.config import (
    check_files,
    check_maps,
    check_tiles,
    check_window,
    labels_legend,
    load,
    model_legend,
    schema,
)
from covermap.errors import SettingError
from covermap.label_settings import Labels
from covermap.section import PATTERNS

ATLAS = {"source": "urban_atlas", "path": "auto", "year": 2018}
AUTO = {
    "source": "mapbiomas",
    "path": "auto",
    "collection": 10,
    "year": 2022,
    "legend": "resources/legends/mapbiomas.csv",
}


@pytest.fixture
def shipped():
    return yaml.safe_load(Path("config/config.yaml").read_text())


@pytest.fixture
def settings(shipped):
    """The shipped configuration without the areas that are searched and downloaded."""
    demo = {"aois": {"demo": shipped["aois"]["demo"]}, "models": {"unet_demo": shipped["models"]["unet_demo"]}}
    return shipped | demo


def edited(settings, path, value):
    changed = copy.deepcopy(settings)
    *parents, last = path.split("/")
    place = changed
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return changed


def test_the_shipped_configuration_is_valid(shipped):
    config = load(shipped)
    assert {"demo", "mato_grosso", "klingenberg_2016", "klingenberg_2018", "paris", "ankara"} <= set(config.aois)
    assert config.aois["demo"].model in config.models


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("composite", {"every": "month", "fill": "linear"}),
        ("composite", {"layers": ["elevation", "slope"]}),
        ("masks", {"dilate_m": 100}),
        ("sentinel1", {"speckle_filter": "refined_lee"}),
        ("sentinel2", {"resampling": "bilinear"}),
    ],
)
def test_a_common_setting_may_change_without_breaking_an_area(shipped, section, value):
    load({**shipped, section: value})


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("targest", ["demo"], ["targest", "no such setting"]),
        ("targets", ["acre"], ["targets", "'acre'", "'demo'"]),
        ("aois/demo/model", "resnet", ["aois.demo.model", "'resnet'", "'unet_demo'"]),
        ("aois/demo/crs", "UTM21", ["aois.demo.crs", "UTM21"]),
        ("aois/demo/period", {"start": "2022-05-01", "end": "2021-05-01"}, ["2022-05-01", "2021-05-01", "empty"]),
        ("aois/demo/provider", {"name": "stac"}, ["aois.demo.provider.catalog is not set", "stac needs"]),
        (
            "aois/demo/provider",
            {"name": "demo", "catalog": "a.json"},
            ["aois.demo.provider.catalog", "a.json", "remove"],
        ),
        (
            "aois/demo/provider",
            {"name": "stac", "catalog": "ftp://e.org/c.json"},
            [".catalog", "files on disk", "//e"],
        ),
        (
            "aois/demo/provider",
            {"name": "stac", "catalog": "https://name:secret@e.org/c.json"},
            [".catalog: expected the address of a service", "no name, password", "(got 'https://...@e.org/c.json')"],
        ),
        ("aois/demo/provider", {"name": "cdse", "catalog": "https://e.org"}, [".catalog", "cdse does not read"]),
        ("sentinel1/assets_unit", "dBm", ["sentinel1.assets_unit", "dBm"]),
        ("aois/demo/provider", {"name": "cdse", "collections": ["a"]}, [".collections has a", "no STAC API"]),
        ("aois/demo/provider", {"name": "demo", "url": "https://e.org"}, [".url", "searched on disk"]),
        (
            "aois/demo/provider",
            {"name": "stac", "catalog": "https://e.org/v1?token=secret"},
            [".catalog: expected the address of a service", "(got 'https://e.org/v1?...')"],
        ),
        (
            "aois/demo/provider",
            {"name": "cdse", "url": "https://e.org?key=secret"},
            [".url: expected the address of a service", "(got 'https://e.org?...')"],
        ),
        ("aois/demo/dem", "https://name:secret@e.org/dem.tif", ["aois.demo.dem", "(got 'https://...@e.org/dem.tif')"]),
        ("aois/demo/provider", {"name": "cdse", "per_month": {"sentinel1": 0}}, [".per_month.sentinel1", "at least 1"]),
        (
            "aois/demo/provider",
            {"name": "cdse", "per_month": {"sentinel3": 1}},
            [".per_month.sentinel3", "sentinel1"],
        ),
        ("aois/Demo2", {}, ["aois.Demo2: expected a name of small letters", "begins with a letter"]),
        ("aois/acre", {}, ["aois.acre.area is missing"]),
        (
            "aois/demo/area",
            [-54, -13, -53],
            ["aois.demo.area: expected a polygon file, or four numbers", "[-54, -13, -53]"],
        ),
        ("aois/demo/area", None, ["aois.demo.area: expected a polygon file", "got nothing"]),
        ("aois/demo/area", [-54, -13, -53, "x"], ["aois.demo.area: expected a polygon file", "'x'"]),
        ("aois/demo/block_pixels", 0, ["aois.demo.block_pixels: expected at least 64 (got 0)"]),
        ("aois/demo/masks", {"classes": [3, 12]}, ["aois.demo.masks.classes", "at most 11", "12"]),
        ("sentinel1", None, ["sentinel1: expected keys with values"]),
        ("sentinel1/geoid", 101, ["sentinel1.geoid: expected egm96, egm2008", "-120 to 100 m", "101"]),
        ("sentinel1/geoid", True, ["sentinel1.geoid: expected egm96"]),
        ("sentinel1/orbit_state", "both", ["sentinel1.orbit_state: expected 'ascending' or 'descending'", "'both'"]),
        ("sentinel1/relative_orbits", [176], ["sentinel1.relative_orbits", "at most 175", "176"]),
        ("sentinel1/polarisations", ["VV", "VV"], ["sentinel1.polarisations: VV stands there twice"]),
        ("sentinel2/bands", ["B02", "B03", "B02"], ["sentinel2.bands: B02 stands there twice"]),
        ("targets", ["demo", "demo"], ["targets: demo stands there twice"]),
        ("models/unet_demo/train_on", ["demo", "demo"], ["models.unet_demo.train_on: demo stands there twice"]),
        ("models/unet_demo/sensors", ["sentinel2", "sentinel2"], ["models.unet_demo.sensors: sentinel2 stands"]),
        ("models/unet_demo/options", {"widht": 8}, ["models.unet_demo.options.widht: no such setting", "width, depth"]),
        ("models/unet_demo/options", {"width": "16"}, ["models.unet_demo.options.width", "integer", "'16'"]),
        ("models/unet_demo/options", {"width": True}, ["models.unet_demo.options.width", "integer", "True"]),
        (
            "models/unet_demo/options",
            {"width": 12},
            ["models.unet_demo.options.width: expected a multiple of 8 (got 12)"],
        ),
        ("models/unet_demo/options", {"depth": 7}, ["models.unet_demo.options.depth: expected at most 6 (got 7)"]),
        ("models/unet_demo/options", {"depth": 0}, ["models.unet_demo.options.depth: expected at least 1 (got 0)"]),
        ("models/unet_demo/tiles", {"validation": 0.4, "test": 0.4}, ["models.unet_demo.tiles.test is 0.4", "0.8"]),
        ("models/unet_demo/prediction/window_pixels", 544, ["models.unet_demo.prediction.window_pixels is 544", "512"]),
        ("aois/demo/sentinel1", {"looks": -1}, ["aois.demo.sentinel1", "looks", "-1"]),
        ("aois/demo/masks", {"dilate": 3}, ["aois.demo.masks", "dilate", "no such setting"]),
        ("aois/demo/labels/legend", "resources/legends/none.csv", ["aois.demo", "none.csv", "does not exist"]),
        (
            "aois/demo/reference/legend",
            "tests/real/legends/slovenia_lulc.csv",
            ["aois.demo", "slovenia_lulc.csv", "'unet_demo'", "one legend"],
        ),
        ("models/unet_demo/network", "unett", ["models.unet_demo.network", "'unett'", "'unet'"]),
        ("models/unet_demo/train_on", ["acre"], ["models.unet_demo.train_on", "'acre'"]),
        ("models/unet_demo/tiles/cell_pixels", 128, ["tile of 128 px", "cell_pixels"]),
        ("sentinel2/bands", ["B02", "B99"], ["sentinel2.bands", "B99"]),
        ("sentinel1/window_pixels", 6, ["window_pixels", "odd", "6"]),
        ("aois/demo/sensors", ["sentinel2"], ["models.unet_demo.sensors", "sentinel1", "aois.demo.sensors"]),
        (
            "aois/demo/labels/path",
            "auto",
            ["aois.demo.labels.path is auto, which needs collection and year", "10 and 2022"],
        ),
        ("aois/demo/labels/year", 2020, ["aois.demo.labels.year is 2020", "in 2021 to 2022", "other_year to true"]),
        ("aois/demo/reference/year", 2023, ["aois.demo.reference.year is 2023", "reference.other_year to true"]),
        (
            "aois/demo/labels/weak",
            {"agree_with": {"source": "urban_atlas", "path": "a.gpkg", "year": 2012}},
            ["aois.demo.labels.weak.agree_with.year is 2012", "labels.weak.agree_with.other_year to true"],
        ),
        ("aois/demo/labels/other_year", True, ["aois.demo.labels.other_year is true, but year is not set"]),
        (
            "aois/demo/labels/legend",
            "resources/legends/mapbiomas_full.csv",
            ["aois.demo.labels.legend", "mapbiomas_full.csv has code 19", "set collection beside it to one of 4, 5"],
        ),
        (
            "aois/demo/labels",
            {"source": "raster", "path": "a.tif", "collection": 2, "legend": "resources/legends/mapbiomas_full.csv"},
            ["aois.demo.labels.legend", "no row for collection '2'", "10m-4"],
        ),
        ("aois/demo/language", "portuguese", ["aois.demo.language: expected the two small letters of a language"]),
        ("aois/demo/labels", {**AUTO, "collection": 12}, ["aois.demo.labels.collection is '12'", "10m-4", "{year}"]),
        ("aois/demo/labels", {**AUTO, "year": 2030}, ["aois.demo.labels.year is 2030", "10 has 1985 to 2024"]),
        ("aois/demo/labels", {**ATLAS, "year": 2015}, ["aois.demo.labels.year is 2015", "2006, 2012, 2018, 2021"]),
        ("aois/demo/labels", {**ATLAS, "collection": 10}, ["aois.demo.labels.collection is 10", "editions by year"]),
        ("aois/demo/labels", {**ATLAS, "attribute": "code_2018"}, ["attribute is code_2018, but source is urban_a"]),
        ("aois/demo/labels", {**AUTO, "source": "vector", "attribute": "code"}, ["path is auto", "source is vector"]),
        (
            "aois/demo/labels",
            {**AUTO, "collection": "https://e.org/a.tif"},
            ["'https://e.org/a.tif'", "has {year} in it"],
        ),
        ("aois/demo/labels", {**AUTO, "collection": "http://e.org/a_2022.tif"}, ["begins with https:// or http://"]),
        ("aois/demo/labels", {**AUTO, "collection": "https://a:secret@e.org/{year}.tif"}, ["no name, password"]),
        ("mirrors", {"orbits": "ftp://e.org"}, ["mirrors.orbits", "address of a service", "'ftp://e.org'"]),
    ],
)
def test_a_wrong_setting_is_named(settings, path, value, words):
    with pytest.raises(SettingError) as caught:
        load(edited(settings, path, value))
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("place", "key"), [("tiles", "pixels"), ("prediction", "window_pixels")])
def test_a_side_must_suit_the_depth_of_the_network(settings, place, key):
    deep = edited(settings, "models/unet_demo/options", {"depth": 6})
    for part, name in (("tiles", "pixels"), ("prediction", "window_pixels")):
        deep = edited(deep, f"models/unet_demo/{part}/{name}", 128)
    assert load(deep)
    with pytest.raises(SettingError, match=rf"models.unet_demo.{place}.{key} is 96: expected a multiple of 64"):
        load(edited(deep, f"models/unet_demo/{place}/{key}", 96))


def two_areas(settings, **changes):
    """The shipped configuration with a second area that the same model maps."""
    both = copy.deepcopy(settings)
    both["aois"]["other"] = {**both["aois"]["demo"], **changes}
    return both


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sentinel2": {"bands": ["B03", "B02"]}}, ["sentinel2.bands", "B03, B02"]),
        ({"sentinel1": {"polarisations": ["VH", "VV"]}}, ["sentinel1.polarisations", "VH, VV"]),
        ({"sentinel1": {"convention": "gamma0"}}, ["sentinel1.convention", "sigma0 and gamma0"]),
        ({"period": {"start": "2021-09-01", "end": "2022-08-31"}}, ["calendar months", "09, 10, 11, 12, 01"]),
        ({"period": {"start": "2021-08-01", "end": "2022-06-30"}}, ["calendar months", "05, 06: make"]),
    ],
)
def test_areas_of_one_model_must_agree(settings, changes, words):
    with pytest.raises(SettingError) as caught:
        load(two_areas(settings, **changes))
    for word in ("models.unet_demo", "aois.demo", "aois.other", *words):
        assert word in str(caught.value)


def with_terrain(settings, **composite):
    settings = edited(settings, "models/unet_demo/sensors", ["sentinel2", "terrain"])
    return edited(settings, "composite", composite)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"composite/layers": []}, ["sensors wants terrain", "composite.layers is empty for aois.demo"]),
        ({"aois/demo/dem": None}, ["aois.demo.dem is not set", "elevation", "give heights"]),
        ({"composite/layers": ["incidence_angle"]}, ["incidence_angle", "aois.demo", "add it to sentinel1.layers"]),
        ({"models/unet_demo/sensors": ["terrain"]}, ["terrain alone", "add sentinel1 or sentinel2"]),
        ({"models/unet_demo/indices": ["vh_minus_vv"]}, ["vh_minus_vv", "comes from sentinel1: add it"]),
        (
            {"models/unet_demo/indices": ["ndvi"], "sentinel2/bands": ["B03", "B04"]},
            ["models.unet_demo.indices has ndvi, which needs B08, but sentinel2.bands of aois.demo has B03, B04"],
        ),
        (
            {
                "models/unet_demo/indices": ["vh_minus_vv"],
                "models/unet_demo/sensors": ["sentinel1"],
                "sentinel1/polarisations": ["VV"],
            },
            ["vh_minus_vv, which needs VH, but sentinel1.polarisations of aois.demo has VV: add it"],
        ),
        ({"models/unet_demo/indices": ["evi"]}, ["models.unet_demo.indices", "'ndvi', 'ndwi', 'nbr'", "'evi'"]),
    ],
)
def test_terrain_and_indices_need_their_sources(settings, changes, words):
    settings = with_terrain(settings, layers=["elevation"])
    assert load(settings)
    for path, value in changes.items():
        settings = edited(settings, path, value)
    with pytest.raises(SettingError) as caught:
        load(settings)
    for word in words:
        assert word in str(caught.value)


YEAR = {"start": "2022-01-01", "end": "2022-12-31"}


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"sentinel2": {"level": "L1C"}}, ["sentinel2.level differ, L2A and L1C"]),
        ({}, {"composite": {"layers": ["slope"]}}, ["composite.layers differ, elevation and slope"]),
        ({}, {"composite": {"every": "month"}}, ["composite.every differ, period and month"]),
        ({}, {"composite": {"dates": ["2021-09-01", "2022-02-01"]}}, ["steps of the period differ, 1 and 1, 2"]),
        (
            {"composite": {"every": "quarter"}},
            {"composite": {"every": "quarter"}, "period": YEAR},
            ["steps of the period differ, Q3, Q4, Q1, Q2, Q3 and Q1, Q2, Q3, Q4"],
        ),
        (
            {"composite": {"every": "month", "season": ["03-01", "05-31"]}},
            {"composite": {"every": "month"}},
            ["steps of the period differ, 03, 04, 05 and 08, 09"],
        ),
        (
            {"composite": {"every": "year"}},
            {"composite": {"every": "year", "fill": "linear"}},
            ["composite.fill differ, none and linear"],
        ),
    ],
)
def test_what_sentinel2_and_terrain_mean_must_agree(settings, first, second, words):
    settings = with_terrain(settings, layers=["elevation"])
    settings["aois"]["demo"] |= first
    assert load(settings)
    with pytest.raises(SettingError) as caught:
        load(two_areas(settings, **second))
    for word in ("models.unet_demo", "aois.demo", "aois.other", *words):
        assert word in str(caught.value)


def test_orbit_directions_of_two_areas_must_agree(settings):
    with pytest.raises(SettingError, match=r"composite\.directions differ, one and apart"):
        load(two_areas(settings, composite={"directions": "apart"}))


def test_areas_of_one_model_may_differ_in_year_speckle_and_what_it_does_not_see(settings):
    later = {"start": "2022-08-01", "end": "2023-07-31"}
    assert load(two_areas(settings, period=later, sentinel1={"speckle_filter": "none", "units": "dB"}))
    optical = edited(settings, "models/unet_demo/sensors", ["sentinel2"])
    assert load(two_areas(optical, sentinel1={"convention": "gamma0"}))


def test_a_window_of_another_model_than_the_default_is_checked_when_asked_for(settings):
    wide = edited(
        settings, "models/wide", {"network": "unet", "train_on": ["demo"], "prediction": {"window_pixels": 1024}}
    )
    config = load(edited(wide, "models/wide/tiles", {"cell_pixels": 512}))
    with pytest.raises(
        SettingError, match=r"models\.wide\.prediction\.window_pixels is 1024: .* aois\.demo\.block_pixels"
    ):
        check_window(config, "demo", "wide")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("aois/demo/area", "aois.demo.area"),
        ("aois/demo/dem", "aois.demo.dem"),
        ("aois/demo/scenes", "aois.demo.scenes"),
        ("aois/demo/labels/path", "aois.demo.labels.path"),
        ("aois/demo/reference/path", "aois.demo.reference.path"),
        ("aois/demo/sentinel1/orbits", "aois.demo.sentinel1.orbits"),
        ("sentinel1/orbits", "sentinel1.orbits"),
        ("sentinel1/geoid", "sentinel1.geoid"),
    ],
)
def test_a_missing_file_is_named_with_its_setting(settings, path, key):
    made = {Path("resources/demo/dem.tif"), Path("resources/demo/mapbiomas_2021.tif"), Path("resources/demo/truth.tif")}
    check_files(load(settings), "demo", made)
    with pytest.raises(SettingError, match=rf"^{re.escape(key)} is none/here, which does not exist"):
        check_files(load(edited(settings, path, "none/here")), "demo", made)


def test_sentinel_hub_delivers_db(settings):
    hub = edited(settings, "aois/demo/provider", {"name": "sentinelhub"})
    with pytest.raises(SettingError, match=r"is power for aois\.demo, but provider sentinelhub delivers dB"):
        load(edited(hub, "sentinel1/assets_unit", "power"))


def test_what_is_downloaded_needs_no_file(settings):
    for path, value in (
        ("aois/demo/dem", "glo30"),
        ("aois/demo/labels", {**AUTO, "collection": 7.1, "year": 2021}),
        ("aois/demo/reference", {**AUTO, "collection": "10m-4"}),
        ("sentinel1/orbits", "auto"),
        ("mirrors/glo30", "https://example.org/dem/"),
    ):
        settings = edited(settings, path, value)
    config = load(settings)
    check_files(config, "demo")
    assert config.mirrors.glo30 == "https://example.org/dem"
    assert config.aois["demo"].labels.collection == "7.1"


def test_labels_of_a_file_may_tell_their_year_and_collection(settings):
    for path, value in (
        ("aois/demo/labels/collection", 8),
        ("aois/demo/labels/year", 2021),
        ("aois/demo/reference/year", 2022),  # both years of the period will do
    ):
        settings = edited(settings, path, value)
    assert load(settings).aois["demo"].labels.collection == "8"
    other = edited(settings, "aois/demo/labels/year", 2018)
    assert load(edited(other, "aois/demo/labels/other_year", True)).aois["demo"].labels.year == 2018
    downloaded = {**AUTO, "year": 2010, "other_year": True}
    assert load(edited(settings, "aois/demo/labels", downloaded)).aois["demo"].labels.year == 2010


def test_codes_and_names_come_from_the_collection_and_the_language(settings):
    full = {"legend": "resources/legends/mapbiomas_full.csv", "collection": 4}
    for key in ("labels", "reference"):
        settings = edited(settings, f"aois/demo/{key}", settings["aois"]["demo"][key] | full)
    config = load(edited(settings, "aois/demo/reference/collection", 8))
    labels, reference = config.aois["demo"].labels, config.aois["demo"].reference
    keys = [labels_legend(each).classes[labels_legend(each).codes["19"] - 1].key for each in (labels, reference)]
    assert keys == ["annual_perennial_crop", "temporary_crop"]
    assert model_legend(config, "unet_demo", "pt").classes[0].name == "Formação florestal"
    assert model_legend(config, "unet_demo", "xx") == model_legend(config, "unet_demo")


def test_urban_atlas_has_a_legend_of_its_own_and_its_code_the_year_in_its_name():
    ordered, brought = Labels(**ATLAS), Labels(source="urban_atlas", path="paris.gpkg", legend="other.csv")
    assert (ordered.legend, brought.legend) == (Path("resources/legends/urban_atlas.csv"), Path("other.csv"))
    assert (ordered.code_attribute, brought.code_attribute) == ("code_2018", None)
    assert ordered.is_ordered and not brought.is_ordered


def test_codes_of_urban_atlas_come_from_its_edition(settings):
    atlas = {"source": "urban_atlas", "path": "a.gpkg", "other_year": True}
    for year, parks in ((2018, {"14100"}), (2021, {"14100", "14110", "14120", "14130"})):
        config = edited(settings, "aois/demo/labels", {**atlas, "year": year})
        del config["aois"]["demo"]["reference"]
        codes = labels_legend(load(config).aois["demo"].labels).codes
        assert {code for code, id in codes.items() if id == codes["14100"]} == parks


def test_heights_of_glo30_are_not_above_another_geoid(settings):
    downloaded = edited(settings, "aois/demo/dem", "glo30")
    load(edited(downloaded, "sentinel1/geoid", "egm2008"))
    load(edited(downloaded, "sentinel1/geoid", "egm96.gtx"))
    with pytest.raises(
        SettingError, match=r"geoid is egm96, but the heights of aois\.demo\.dem, glo30, count from EGM2008"
    ):
        load(edited(downloaded, "sentinel1/geoid", "egm96"))


def test_a_missing_catalogue_is_named(settings):
    stac = edited(settings, "aois/demo/provider", {"name": "stac", "catalog": "none.json"})
    with pytest.raises(SettingError, match=r"^aois\.demo\.provider\.catalog is none\.json"):
        check_files(load(stac), "demo", {Path("resources/demo/dem.tif")})


def test_the_example_of_the_readme_is_valid():
    example = yaml.safe_load(re.search(r"```yaml\n(.*?)```", Path("README.md").read_text(), re.DOTALL).group(1))
    config = load({**example, "targets": list(example["aois"])})
    assert (config.aois["acre"].dem, config.section("sentinel1", "acre").orbits) == ("glo30", "auto")  # all is fetched


def test_overrides_of_an_area_reach_its_section(settings):
    config = load(edited(settings, "aois/demo/sentinel1", {"looks": 9}))
    assert config.section("sentinel1", "demo").looks == 9
    assert config.sentinel1.looks == 4.4
    assert config.section("masks", "demo").dilate_m == settings["aois"]["demo"]["masks"]["dilate_m"]


def test_months_of_a_period_that_crosses_a_year():
    period = Period(start="2021-11-15", end="2022-02-01")
    assert period.months == ["2021-11", "2021-12", "2022-01", "2022-02"]


def test_the_schema_is_in_sync():
    assert Path("config/schema.json").read_text() == schema(), "run: python -m covermap.config"


@pytest.mark.parametrize(
    ("composite", "radar", "words"),
    [
        ({"directions": "apart"}, {"orbit_state": "ascending"}, "is apart .*, but .* leaves ascending alone"),
        (
            {"directions": "together", "layers": ["incidence_angle"]},
            {"layers": ["incidence_angle"]},
            "two directions have no angle in common",
        ),
        ({"season": ["2021-02-01", "03-31"]}, {}, "'2021-02-01' is no day of a year"),
    ],
)
def test_directions_and_seasons_make_sense(settings, composite, radar, words):
    with pytest.raises(SettingError, match=words):
        load(edited(edited(settings, "composite", composite), "sentinel1", radar))


def test_a_season_may_cut_months(settings):
    assert load(edited(settings, "composite", {"season": ["02-01", "03-31"], "every": "month"}))


SET = {"path": "resources/patches/eurosat.zip", "legend": "resources/legends/eurosat.csv"}
CLASSIFIER = {"network": "classifier", "train_on": ["eurosat"], "sensors": ["sentinel2"], "tiles": {"split": "random"}}


@pytest.fixture
def with_patches(settings):
    models = {**settings["models"], "classifier": CLASSIFIER}
    return {**settings, "patches": {"eurosat": SET}, "models": models}


def test_a_model_learns_from_a_set_of_patches(with_patches):
    config = load(with_patches)
    assert [*config.classifiers] == ["classifier"] and [*config.mappers] == ["unet_demo"]
    check_maps(config, "demo", "unet_demo")
    assert len(model_legend(config, "classifier").classes) == 10
    assert config.patches["eurosat"].places == [0, 1, 2]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("aois/demo/sensors", ["sentinel1"], r"patches of one step of sentinel2, which aois\.demo\.sensors lacks"),
        ("patches/eurosat/bands", ["B04", "B01"], r"with band B01, but sentinel2\.bands of aois\.demo has B02"),
        ("patches/eurosat/level", "L1C", r"of L1C, but sentinel2\.level of aois\.demo is L2A"),
        ("aois/demo/composite", {"every": "month"}, r"composite\.every of aois\.demo is month .* set it to period"),
        ("models/classifier/prediction", {"overlap": 0}, r"prediction\.window_pixels is not set"),
    ],
)
def test_a_classifier_maps_areas_that_look_like_its_images(with_patches, path, value, words):
    with_patches["models"]["classifier"] = {**CLASSIFIER, "prediction": {"window_pixels": 64}}
    settings = edited(with_patches, path, value)
    if path.endswith("/sensors"):
        settings["models"]["unet_demo"] = {**settings["models"]["unet_demo"], "sensors": ["sentinel1"]}
    check_maps(load(with_patches), "demo", "classifier")
    with pytest.raises(SettingError, match=words):
        check_maps(load(settings), "demo", "classifier")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("models/classifier/train_on", ["eurosat", "demo"], ["train_on names 'eurosat'", "learnt alone"]),
        ("models/classifier/train_on", ["eurosatt"], ["train_on is 'eurosatt'", "'demo', 'eurosat'"]),
        ("models/classifier/test_on", ["demo"], ["train_on names 'eurosat'", "test_on"]),
        ("models/classifier/network", "unet", ["network is unet", "each pixel", "expected classifier"]),
        (
            "models/unet_demo",
            {**CLASSIFIER, "train_on": ["demo"], "tiles": {"cell_pixels": 512}},
            ["models.unet_demo.network is classifier", "demo is an area"],
        ),
        ("models/unet_demo/training", {"augment": {"crop": 0.5}}, ["unet_demo.training.augment.crop is 0.5", "patch"]),
        ("models/classifier/dates", ["2021-01-01"], ["models.classifier.dates is set", "no dates"]),
        ("models/classifier/sensors", ["sentinel1", "sentinel2"], ["sensors is sentinel1, sentinel2", "[sentinel2]"]),
        ("models/classifier/indices", ["ndvi"], ["ndvi", "needs B08", "patches.eurosat.bands has B04, B03, B02"]),
        ("models/classifier/tiles/split", "stratified", ["tiles.split is stratified", "expected random, lists"]),
        ("models/classifier/tiles/split", "lists", ["tiles.split is lists", "patches.eurosat.lists is not set"]),
        ("models/classifier/tiles/stride_pixels", 64, ["tiles.stride_pixels does nothing", "split by random"]),
        ("models/classifier/tiles/cell_pixels", 2048, ["tiles.cell_pixels does nothing", "split by random"]),
        ("models/unet_demo/tiles/split", "lists", ["models.unet_demo.tiles.split is lists", "demo is an area"]),
        ("aois/demo/model", "classifier", ["aois.demo.model is 'classifier'", "results/maps/demo/classifier.tif"]),
        ("patches/demo", SET, ["patches and aois both have 'demo'"]),
        (
            "patches/eurosat/file_bands",
            ["B02", "B03"],
            ["patches.eurosat.bands has B04", "file_bands has only B02, B03"],
        ),
        ("patches/eurosat/legend", "none.csv", ["none.csv does not exist"]),
        ("patches/eurosat/path", "https://e.org/EuroSAT.zip", ["patches.eurosat.path", "files on disk"]),
    ],
)
def test_wrong_patches_are_named(with_patches, path, value, words):
    with pytest.raises(SettingError) as told:
        load(edited(with_patches, path, value))
    assert all(word in str(told.value) for word in words), told.value


CUT = {"pixels": 64, "cell_pixels": 256, "buffer_pixels": 32}
SMALL = {"network": "unet", "train_on": ["demo"], "tiles": CUT}


def with_models(settings, **models):
    """The shipped configuration with further models, all of the demo."""
    changed = copy.deepcopy(settings)
    changed["models"] |= models
    return changed


def refused(settings, *words):
    with pytest.raises(SettingError) as told:
        load(settings)
    for word in words:
        assert word in str(told.value)


def test_what_a_model_with_weights_does_not_set_is_as_in_the_first_of_them(settings):
    begun = {**SMALL, "options": {"width": 8}, "seed": 3}
    first = {**begun, "months": [8, 9], "start_from": "begun"}
    config = load(with_models(settings, begun=begun, first=first, applied={"weights": "first", "months": [10, 11]}))
    one, other = config.models["first"], config.models["applied"]
    assert other.weights == ("first",) and other.months == (10, 11) and other.start_from is None
    assert other.tiles_of is None  # other months are other tiles
    kept = {"weights", "months", "start_from"}
    assert other.model_dump(exclude=kept) == one.model_dump(exclude=kept)


@pytest.mark.parametrize(
    ("applied", "words"),
    [
        ({"weights": ["second"]}, ["models.applied.weights is 'second'", "'first'"]),
        ({"weights": "applied"}, ["models.applied.weights names 'applied', which is not trained itself"]),
        ({"weights": "again"}, ["models.applied.weights names 'again', which is not trained itself: name one of"]),
        ({"weights": ["first", "first"]}, ["models.applied.weights", "first stands there twice"]),
        (
            {"weights": "first", "options": {"width": 16}},
            ["applied.options does nothing", "as in first: remove"],
        ),
        ({"weights": "first", "start_from": "first"}, ["models.applied.start_from does nothing"]),
        ({"weights": "first", "colour": 1}, ["models.applied.colour: no such setting"]),
        ({**SMALL, "weights": 5}, ["models.applied.weights", "a list in brackets"]),
        ({"weights": "first", "test_on": ["demo"]}, ["test_on names 'demo'", "train_on names too"]),
        ({"weights": ["first", "other_split"]}, ["'first' and 'other_split', whose tiles differ", "tiles.seed"]),
        ({"weights": ["first", "other_tiles"]}, ["'first' and 'other_tiles', whose tiles differ"]),
        ({"weights": ["first", "chips"]}, ["'first' and 'chips', but only one of them learns from patches"]),
        (
            {"weights": ["first", "deep"], "prediction": {"window_pixels": 32}},
            ["window_pixels is 32", "64, which"],
        ),
        ({"weights": ["first", "summer"]}, ["models.summer cannot serve both", "calendar months of the period differ"]),
        ({"weights": ["first", "other_legend"]}, ["weights names first, which maps", "other_legend", "of one legend"]),
    ],
)
def test_wrong_weights_are_named(with_patches, applied, words):
    place = {**with_patches["aois"]["demo"], "model": "other_legend"}
    place["labels"] = {**place["labels"], "legend": "resources/legends/mapbiomas_full.csv", "collection": 10}
    del place["reference"]
    with_patches["aois"]["elsewhere"] = place
    models = {
        "first": {**SMALL, "seed": 1, "tiles": {**CUT, "seed": 5}},
        "again": {"weights": "first"},
        "other_split": {**SMALL, "seed": 2},
        "other_tiles": {**SMALL, "tiles": {**CUT, "pixels": 32, "seed": 5}},
        "deep": {**SMALL, "options": {"depth": 6}, "tiles": {**CUT, "seed": 5}},
        "summer": {**SMALL, "tiles": {**CUT, "seed": 5}, "months": [1, 2]},
        "chips": CLASSIFIER,
        "other_legend": {**SMALL, "train_on": ["elsewhere"], "tiles": {**CUT, "seed": 5}},
    }
    assert load(with_models(with_patches, **models))
    refused(with_models(with_patches, **models, applied=applied), *words)


def test_models_may_learn_from_the_tiles_of_another(settings):
    first = {**SMALL, "tiles": {**CUT, "seed": None}, "seed": 5}
    others = {
        "again": {"network": "unet", "train_on": ["demo"], "seed": 6, "tiles_of": "first"},
        "sampled": {"network": "segmenter", "train_on": ["demo"], "tiles_of": "first", "tiles": {"balance": "inverse"}},
    }
    models = load(with_models(settings, first=first, **others, average={"weights": ["again", "first"]})).models
    assert {models[name].split_seed for name in ("first", "again", "sampled", "average")} == {5}
    cut = models["first"].tiles.model_dump(exclude={"seed", "balance"})
    assert all(models[name].tiles.model_dump(exclude={"seed", "balance"}) == cut for name in ("again", "sampled"))
    assert (models["again"].tiles.balance, models["sampled"].tiles.balance) == ("none", "inverse")
    assert (models["average"].tiles_of, models["first"].tiles_of) == ("first", None)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({**SMALL, "tiles_of": "none"}, ["models.second.tiles_of is 'none'", "'first'"]),
        ({**SMALL, "tiles_of": "second"}, ["models.second.tiles_of is the model itself: remove it"]),
        ({**SMALL, "tiles_of": "third"}, ["which has the tiles of 'first': name 'first'"]),
        ({**SMALL, "tiles_of": "average"}, ["which has the tiles of 'first': name 'first'"]),
        (
            {**SMALL, "sensors": ["sentinel2"], "tiles_of": "first"},
            ["tiles_of is 'first', but sensors is sentinel2 here and sentinel1, sentinel2 there"],
        ),
        (
            {**SMALL, "tiles_of": "first", "tiles": {"pixels": 32}},
            ["models.second.tiles.pixels does nothing", "those of first"],
        ),
        ({**SMALL, "tiles_of": "first", "months": [8, 9]}, ["but months is 8, 9 here and not set there: make them"]),
        ({"weights": "first", "tiles_of": "third"}, ["models.second.tiles_of does nothing"]),
        ({**SMALL, "tiles_of": ["first"]}, ["models.second.tiles_of"]),
    ],
)
def test_tiles_that_cannot_serve_a_model_are_named(with_patches, model, words):
    models = {"first": SMALL, "third": {**SMALL, "tiles_of": "first"}}
    models["average"] = {"weights": ["first", "third"]}
    assert load(with_models(with_patches, **models))
    refused(with_models(with_patches, **models, second=model), *words)


def test_runs_of_other_seeds_may_share_a_split(settings):
    runs = {f"run_{seed}": {**SMALL, "seed": seed, "tiles": {**CUT, "seed": 0}} for seed in range(3)}
    config = load(with_models(settings, **runs, average={"weights": list(runs)}))
    assert {config.models[name].split_seed for name in (*runs, "average")} == {0}
    assert load(settings).models["unet_demo"].split_seed == 0
    assert load(with_models(settings, one={**SMALL, "seed": 7})).models["one"].split_seed == 7


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ({"one": "three"}, ["models.one.start_from is 'three'", "'unet_demo'"]),
        ({"one": "one"}, ["models.one.start_from is 'one'", "one from one"]),
        ({"one": "two", "two": "one"}, ["so none can begin: one from two from one"]),
        ({"one": "applied"}, ["models.one.start_from is 'applied', which applies the weights of two"]),
        ({"one": "https://e.org/weights"}, ["models.one.start_from", "timm/ or torchgeo/"]),
        ({"one": "timm/resnet34.a1_in1k"}, ["models.one.start_from is timm", "an encoder, which network unet has not"]),
        ({"one": f"torchgeo/resnet50_sentinel2_all_moco@{'0' * 40}"}, ["models.one.start_from", "timm/ or torchgeo/"]),
        ({"one": "timm/resnet34.a1_in1k@main"}, ["models.one.start_from", "timm/ or torchgeo/"]),
    ],
)
def test_training_starts_from_what_is_there_by_then(settings, starts, words):
    models = {name: {**SMALL, "start_from": starts.get(name)} for name in ("one", "two")}
    refused(with_models(settings, **models, applied={"weights": "two"}), *words)


def test_training_may_start_from_a_chain_of_models_or_a_hub(settings):
    deep = {**SMALL, "network": "segmenter"}
    pinned = f"timm/resnet34.a1_in1k@{'0a' * 20}"
    for hub in ("timm/resnet34.a1_in1k", pinned, "torchgeo/resnet18_sentinel2_all_moco"):
        options = {"encoder": hub.split("/")[1][:8]}
        two = {**deep, "options": options, "start_from": hub}
        models = {"one": {**deep, "options": {**options, "architecture": "fpn"}, "start_from": "two"}, "two": two}
        assert load(with_models(settings, **models)).models["one"].start_from == "two"


MONTHLY = {"every": "month"}
TAUGHT = {**SMALL, "train_on": ["elsewhere"]}


@pytest.mark.parametrize(
    ("later", "words"),
    [
        ({**SMALL, "seed": 7}, ["models.later.start_from leads from 'later' to 'first', whose tiles differ"]),
        ({**SMALL, "tiles": {**CUT, "cell_pixels": 128}}, ["'later' to 'first', whose tiles differ"]),
        (
            {**TAUGHT, "test_on": ["demo"]},
            ["later.test_on names 'demo', which 'first', which later starts from, learned"],
        ),
        ({**TAUGHT, "seed": 7}, []),  # the boxes lie apart
        ({**TAUGHT, "test_on": ["near"]}, []),
        ({**SMALL, "train_on": ["near"], "seed": 7}, ["'later' to 'first', whose tiles differ"]),
        ({**SMALL, "seed": 7, "tiles": {**CUT, "seed": 0}}, []),
        ({**SMALL, "tiles": {**CUT, "balance": "inverse"}}, []),
        ({**SMALL, "tiles": {**CUT, "seed": 7, "split": "stratified"}}, ["whose tiles differ"]),
        ({**SMALL, "options": {"width": 8}}, ["is 'first', whose options.width is 32, but that of later is 8: make"]),
        ({**SMALL, "network": "deepforest_1a"}, ["whose network is unet, but that of later is deepforest_1a: start"]),
    ],
)
def test_what_a_start_learned_is_never_tested(settings, later, words):
    models = {"first": SMALL, "later": {**later, "start_from": "first"}}
    changed = {**settings, "aois": places(settings), "models": models}
    if words:
        refused(changed, *words)
    else:
        assert load(changed)


def test_what_a_start_of_a_start_learned_is_never_tested_and_no_average_either(settings):
    models = {"first": SMALL, "middle": {**TAUGHT, "start_from": "first"}}
    later = {**SMALL, "seed": 7, "start_from": "middle"}
    changed = {**settings, "aois": places(settings), "models": {**models, "later": later}}
    refused(changed, "models.later.start_from leads from 'later' to 'first', whose tiles differ")
    changed["models"]["later"] = {**TAUGHT, "test_on": ["demo"], "start_from": "middle"}
    refused(changed, "models.later.test_on names 'demo', which 'first', which later starts from, learned from")
    changed["models"]["later"] = {"weights": "middle", "test_on": ["demo"]}
    refused(changed, "models.later.test_on names 'demo', which 'first', which middle starts from, learned from")


def places(settings):
    """The demo as a box, a box that meets it, and one that does not."""
    demo = {**settings["aois"]["demo"], "area": [-60.0, -10.0, -59.9, -9.9], "model": "first"}
    near = {**demo, "area": [-59.95, -9.95, -59.8, -9.8]}
    return {"demo": demo, "near": near, "elsewhere": {**demo, "area": [-59.0, -9.0, -58.9, -8.9]}}


def test_a_split_by_the_table_of_tiles_is_common_to_models_of_one_ground_alone(settings):
    cut = {**CUT, "split": "stratified"}
    one, other = {**SMALL, "tiles": cut}, {**SMALL, "tiles": cut, "start_from": "one"}
    assert load(with_models(settings, one=one, other=other))
    refused(with_models(settings, one=one, other={**other, "months": [8]}), "'other' to 'one', whose tiles differ")


@pytest.mark.parametrize("order", [["many", "few"], ["few", "many"]])
def test_of_models_together_steps_are_free_only_where_all_of_them_take_any(settings, order):
    settings["aois"]["demo"]["composite"] = MONTHLY
    models = {name: {**SMALL, "sensors": ["sentinel2"], "tiles": {**CUT, "seed": 0}} for name in ("many", "few")}
    models["many"]["network"] = "fcn"
    later = {**settings["aois"]["demo"], "period": {"start": "2022-08-01", "end": "2022-09-30"}, "model": "both"}
    settings["aois"]["later"] = {**later, "labels": None, "reference": None}
    refused(
        with_models(settings, **models, both={"weights": order}), "models.both cannot serve both aois.demo and aois.l"
    )
    assert load(with_models(settings, **models, both={"weights": "many"}))


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"min_gain": 0.1}, ["training.min_gain is 0.1, but patience is not set"]),
        ({"weight_cap": 5, "class_weights": "none"}, ["training.weight_cap is 5.0, but no class weighs more"]),
        ({"clip": float("inf")}, ["training.clip: expected a finite number"]),
        ({"loss": {"cross_entropy": float("inf")}}, ["training.loss", "expected a finite number"]),
        ({"augment": {"drop_dates": 0.1}}, ["drop_dates is 0.1, but it sees a single step of aois.demo: set it to 0"]),
    ],
)
def test_settings_of_training_that_do_nothing_are_named(settings, training, words):
    model = {**SMALL, "sensors": ["sentinel2"]}
    refused(with_models(settings, one={**model, "training": training}), "models.one.training", *words)


def test_no_more_dates_are_drawn_than_there_are(settings):
    settings["aois"]["demo"]["composite"] = {"dates": ["2021-08-05", "2021-08-25", "2021-09-14"]}
    model = {**SMALL, "network": "fcn_lstm", "sensors": ["sentinel2"]}
    assert load(with_models(settings, one={**model, "options": {"draw": 3}}))
    refused(with_models(settings, one={**model, "options": {"draw": 4}}), "options.draw is 4, but aois.demo has only 3")
    model = {**model, "dates": ["2021-08-05", "2021-09-14"], "options": {"draw": 3}}
    refused(with_models(settings, one=model), "options.draw is 3, but aois.demo has only 2 of its dates: draw fewer")


def test_an_encoder_is_a_name_and_one_that_its_weights_are_of(settings):
    model = {**SMALL, "network": "segmenter", "options": {"encoder": "hf-hub:a/b"}}
    refused(with_models(settings, one=model), "models.one.options.encoder: expected the name of an encoder of timm")
    model = {**SMALL, "network": "segmenter", "start_from": "timm/resnet50.a1_in1k"}
    refused(with_models(settings, one=model), "start_from is timm/resnet50.a1_in1k, but options.encoder is resnet34")


def test_every_pattern_has_words():
    def patterns(part):
        if isinstance(part, dict):
            yield from [part["pattern"]] if isinstance(part.get("pattern"), str) else []
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else []:
            yield from patterns(inner)

    assert {*patterns(json.loads(schema()))} <= {*PATTERNS}


def test_of_many_names_those_like_the_wrong_one_are_shown(settings):
    models = {f"run_{number}": SMALL for number in range(20)}
    settings["aois"]["demo"]["model"] = "rum_7"
    refused(with_models(settings, **models), "'rum_7', which there is not: expected a name such as 'run_7', 'run_")
    refused(with_models(settings, one={"weights": []}), "models.one.weights is empty")


@pytest.mark.parametrize(
    ("model", "composite", "words"),
    [
        ({"months": [8, 13]}, {}, ["models.chosen.months", "at most 12"]),
        ({"months": [8], "sensors": ["sentinel2"]}, {}, ["models.chosen.months is set, but sensors lacks sentinel1"]),
        (
            {"dates": ["2021-08-01"], "sensors": ["sentinel1"]},
            {},
            ["models.chosen.dates is set, but sensors lacks sentinel2"],
        ),
        ({"dates": ["2021-08-02"]}, MONTHLY, ["dates has 2021-08-02, but aois.demo has only 2021-08-01, 2021-09-01"]),
        (
            {"dates": ["2021-09-01"]},
            {"dates": ["2021-08-05", "2021-08-25"]},
            ["dates has 2021-09-01, but aois.demo has only 2021-08-05, 2021-08-25: remove"],
        ),
        ({"network": "fcn"}, {}, ["sensors has sentinel1, but network fcn takes sentinel2 alone"]),
        (
            {"network": "deepforest_2a", "sensors": ["sentinel2"]},
            {},
            ["sensors lacks sentinel1, which network deepforest_2a needs"],
        ),
    ],
)
def test_wrong_steps_and_inputs_are_named(settings, model, composite, words):
    settings["aois"]["demo"]["composite"] = composite
    refused(with_models(settings, chosen={**SMALL, **model}), *words)


def test_months_that_an_area_lacks_are_named(settings):
    settings["aois"]["demo"]["period"] = {"start": "2021-06-01", "end": "2021-09-30"}
    words = "models.chosen.months has 5, but aois.demo has only 6, 7, 8, 9"
    refused(with_models(settings, chosen={**SMALL, "months": [5, 6]}), words)


def test_single_scenes_are_told_by_stacks_alone(settings):
    settings["aois"]["demo"]["composite"] = {"every": "scene"}
    assert load(with_models(settings, chosen={**SMALL, "dates": ["2021-08-02"]}))


def two_years(settings, **model):
    """A model of the demo's dates that maps another year, by weights, with dates of its own."""
    settings["aois"]["demo"]["composite"] = {"dates": ["2021-08-05", "2021-08-25", "2021-09-14"]}
    chosen = {**SMALL, "sensors": ["sentinel2"], "dates": ["2021-08-05", "2021-09-14"], **model}
    later = {
        **settings["aois"]["demo"],
        "period": {"start": "2023-08-01", "end": "2024-07-31"},
        "composite": {"dates": [f"2023-08-{day:02d}" for day in (1, 11, 21)]},
        "labels": None,
        "reference": None,
        "model": "later",
    }
    settings["aois"]["later"] = later
    return with_models(settings, chosen=chosen, later={"weights": "chosen", "dates": ["2023-08-01", "2023-08-21"]})


def test_weights_are_applied_to_other_dates(settings):
    config = load(two_years(settings))
    check_tiles(config, "chosen")
    with pytest.raises(SettingError, match=r"models\.later\.dates has 2023-08-01, but aois\.demo .* needs no tiles"):
        check_tiles(config, "later")


def test_as_many_dates_as_were_learnt_are_applied_unless_the_network_takes_any_number(settings):
    fewer = two_years(settings)
    fewer["models"]["later"]["dates"] = ["2023-08-01"]
    refused(fewer, "models.later cannot serve both aois.demo and aois.later", "steps of the period differ, 1, 2 and 1")
    fewer["models"]["chosen"]["network"] = "fcn"
    assert load(fewer)
    fewer["aois"]["later"]["composite"] = {"every": "month"}
    refused(fewer, "composite.every differ, period and month")
