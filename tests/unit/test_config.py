"""Settings: what is accepted, and that a wrong one is named with the value and what was expected."""

import copy
from pathlib import Path

import pytest
import yaml

from covermap.config import Period, load, schema
from covermap.errors import SettingError


@pytest.fixture
def settings():
    return yaml.safe_load(Path("config/config.yaml").read_text())


def edited(settings, path, value):
    changed = copy.deepcopy(settings)
    *parents, last = path.split("/")
    place = changed
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return changed


def test_the_shipped_configuration_is_valid(settings):
    config = load(settings)
    assert config.aois["demo"].model in config.models


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("targest", ["demo"], ["targest", "no such setting"]),
        ("targets", ["acre"], ["targets", "'acre'", "'demo'"]),
        ("aois/demo/model", "resnet", ["aois.demo.model", "'resnet'", "'unet_demo'"]),
        ("aois/demo/crs", "UTM21", ["aois.demo.crs", "UTM21"]),
        ("aois/demo/period", {"start": "2022-05-01", "end": "2021-05-01"}, ["2022-05-01", "2021-05-01", "empty"]),
        ("aois/demo/provider", {"name": "stac"}, ["catalog", "stac needs one"]),
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
    ],
)
def test_a_wrong_setting_is_named(settings, path, value, words):
    with pytest.raises(SettingError) as caught:
        load(edited(settings, path, value))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_overrides_of_an_area_reach_its_section(settings):
    config = load(edited(settings, "aois/demo/sentinel1", {"looks": 9}))
    assert config.section("sentinel1", "demo").looks == 9
    assert config.sentinel1.looks == 4.4
    assert config.section("masks", "demo").dilate_m == settings["masks"]["dilate_m"]


def test_months_of_a_period_that_crosses_a_year():
    period = Period(start="2021-11-15", end="2022-02-01")
    assert period.months == ["2021-11", "2021-12", "2022-01", "2022-02"]


def test_the_schema_is_in_sync():
    assert Path("config/schema.json").read_text() == schema(), "run: python -m covermap.config"
