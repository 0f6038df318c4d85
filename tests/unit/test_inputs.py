"""What the axes of a stack mean, and that other meanings are refused."""

import numpy as np
import pytest
import xarray as xr
import zarr

from covermap.errors import ModelError
from covermap.inputs import index_pairs, is_filled, meaning_of, must_mean, observed

RADAR = {"month": ["11", "12", "01"], "polarisation": ["VV", "VH"], "convention": ["gamma0"]}


def test_a_stack_says_what_its_axes_mean(tmp_path):
    s1 = xr.Variable(("month", "polarisation"), np.zeros((3, 2)), {"convention": "gamma0"})
    s2 = xr.Variable(("date", "band"), np.zeros((1, 2)))
    months = ["2019-11", "2019-12", "2020-01"]
    coordinates = {"month": months, "polarisation": ["VV", "VH"], "date": [0], "band": ["B08", "B04"]}
    with zarr.storage.ZipStore(tmp_path / "stack.zarr.zip", mode="w") as store:
        xr.Dataset({"s1": s1, "s2": s2}, coordinates).to_zarr(store, zarr_format=2)
    assert meaning_of(tmp_path / "stack.zarr.zip") == {"s1": RADAR, "s2": {"band": ["B08", "B04"]}}


@pytest.mark.parametrize(
    ("every", "firsts", "names"),
    [
        ("month", ["2021-11-15", "2021-12-01", "2022-01-01"], ["11", "12", "01"]),
        ("quarter", ["2021-11-15", "2022-01-01", "2022-04-01"], ["Q4", "Q1", "Q2"]),
        ("year", ["2021-05-01", "2022-05-01"], ["1", "2"]),
        ("scene", ["2021-05-03", "2021-05-08"], ["1", "2"]),
        ("period", ["2021-05-03"], ["1"]),
    ],
)
def test_steps_and_layers_have_names_that_hold_in_any_year(tmp_path, every, firsts, names):
    about = {"method": "median", "every": every, "fill": "linear", "level": "L1C"}
    s2 = xr.Variable(("date", "band"), np.zeros((len(firsts), 1)), about)
    dates = np.array(firsts, "datetime64[ns]")
    coordinates = {"date": dates, "band": ["B08"]}
    with zarr.storage.ZipStore(tmp_path / "stack.zarr.zip", mode="w") as store:
        xr.Dataset({"s2": s2}, coordinates, {"layers": "slope,elevation"}).to_zarr(store, zarr_format=2)
    expected = {
        "s2": {"band": ["B08"], "step": names, "level": ["L1C"], "fill": ["linear"]},
        "terrain": {"layer": ["slope", "elevation"]},
    }
    assert meaning_of(tmp_path / "stack.zarr.zip") == expected


def test_terrain_alone_is_no_observation():
    s2 = np.zeros((2, 1, 1, 3), np.uint16)
    s2[1, 0, 0, 2] = 7
    assert observed({"s2": s2, "terrain": np.full((1, 2, 1, 3), 5)}).tolist() == [[False, False, True]]


def test_days_are_needed_where_gaps_were_filled():
    assert is_filled({"s2": {"fill": ["linear"]}})
    assert not is_filled({"s2": {"fill": ["none"]}}) and not is_filled({"s2": {}}) and not is_filled({"s1": RADAR})


def test_an_index_knows_the_numbers_of_its_bands():
    meaning = {"s1": {"polarisation": ["VV", "VH"]}, "s2": {"band": ["B03", "B08", "B04", "B12"]}}
    expected = {"s2": [(1, 3), (1, 2), (0, 1)], "s1": [(1, 0)]}
    assert index_pairs(("nbr", "ndvi", "ndwi", "vh_minus_vv"), meaning) == expected
    assert index_pairs((), meaning) == {}


def test_each_orbit_direction_has_its_own_ratio():
    names = ["VV ascending", "VV descending", "VH ascending", "VH descending"]
    assert index_pairs(("vh_minus_vv",), {"s1": {"polarisation": names}}) == {"s1": [(2, 0), (3, 1)]}


@pytest.mark.parametrize(
    ("meaning", "told"),
    [
        ({"s2": {"band": ["B04", "B03"]}}, "index ndvi needs B08 of s2, which has B04, B03"),
        ({"s2": {"band": ["B08"]}}, "index ndvi needs B04 of s2"),
        ({}, "index ndvi needs B08 of s2, which has none"),
    ],
)
def test_an_index_without_its_bands_is_refused(meaning, told):
    with pytest.raises(ModelError, match=told):
        index_pairs(("ndvi",), meaning)


def test_only_the_inputs_in_use_must_agree():
    must_mean({"s1": RADAR}, {"s1": RADAR, "s2": {"band": ["B04"]}}, "stack a", "stack b has")


def test_a_stack_without_any_scene_has_no_convention_and_fits():
    must_mean({"s1": RADAR}, {"s1": {"month": RADAR["month"], "polarisation": ["VV", "VH"]}}, "stack a", "stack b has")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"s2": {"band": ["B04"]}}, "^stack a has month none of s1, stack b has 11, 12, 01: use"),
        ({"s1": RADAR | {"convention": ["sigma0"]}}, "convention sigma0 of s1, stack b has gamma0"),
        ({"s1": RADAR, "s2": {"step": ["05"]}}, "step 05 of s2, stack b has 05, 06"),
    ],
)
def test_another_meaning_is_refused(found, told):
    with pytest.raises(ModelError, match=told):
        must_mean({"s1": RADAR, "s2": {"step": ["05", "06"]}}, found, "stack a", "stack b has")
