"""What the axes of a stack mean, and that other meanings are refused."""

import numpy as np
import pytest
import xarray as xr
import zarr

from covermap.errors import ModelError
from covermap.inputs import meaning_of, must_mean

RADAR = {"month": ["11", "12", "01"], "polarisation": ["VV", "VH"], "convention": ["gamma0"]}


def test_a_stack_says_what_its_axes_mean(tmp_path):
    s1 = xr.Variable(("month", "polarisation"), np.zeros((3, 2)), {"convention": "gamma0"})
    s2 = xr.Variable(("date", "band"), np.zeros((1, 2)))
    months = ["2019-11", "2019-12", "2020-01"]
    coordinates = {"month": months, "polarisation": ["VV", "VH"], "date": [0], "band": ["B08", "B04"]}
    with zarr.storage.ZipStore(tmp_path / "stack.zarr.zip", mode="w") as store:
        xr.Dataset({"s1": s1, "s2": s2}, coordinates).to_zarr(store, zarr_format=2)
    assert meaning_of(tmp_path / "stack.zarr.zip") == {"s1": RADAR, "s2": {"band": ["B08", "B04"]}}


def test_only_the_inputs_in_use_must_agree():
    must_mean({"s1": RADAR}, {"s1": RADAR, "s2": {"band": ["B04"]}}, "stack a", "stack b has")


def test_a_stack_without_any_scene_has_no_convention_and_fits():
    must_mean({"s1": RADAR}, {"s1": {"month": RADAR["month"], "polarisation": ["VV", "VH"]}}, "stack a", "stack b has")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"s2": {"band": ["B04"]}}, "^stack a has month none of s1, stack b has 11, 12, 01: use"),
        ({"s1": RADAR | {"convention": ["sigma0"]}}, "convention sigma0 of s1, stack b has gamma0"),
    ],
)
def test_another_meaning_is_refused(found, told):
    with pytest.raises(ModelError, match=told):
        must_mean({"s1": RADAR}, found, "stack a", "stack b has")
