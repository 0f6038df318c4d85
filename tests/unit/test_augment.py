"""Augmentation: what moves moves together, no data stays no data, and the same seeds give the same tiles."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from covermap.augment import generator, resampled, symmetry, vary
from covermap.inputs import DAY, NODATA
from covermap.model_settings import Augment, Model

CPU = torch.device("cpu")


def batch_of(tiles=6, steps=5, gaps=True):
    random = np.random.default_rng(0)
    batch = {
        "s1": random.integers(-2500, -500, (tiles, steps, 2, 8, 8)).astype(np.int16),
        "s2": random.integers(500, 4000, (tiles, steps, 3, 8, 8)).astype(np.int32),
        "terrain": random.integers(0, 900, (tiles, 1, 1, 8, 8)).astype(np.int16),
        DAY: np.full((tiles, steps, 8, 8), 100, np.int16),
        "label": random.integers(0, 4, (tiles, 8, 8)).astype(np.uint8),
        "weight": random.integers(1, 101, (tiles, 8, 8)).astype(np.uint8),
    }
    if gaps:
        batch["s1"][:, 0, :, :3], batch["s2"][:, 1, :, :, 5:] = NODATA["s1"], NODATA["s2"]
    return {key: torch.from_numpy(values) for key, values in batch.items()}


def varied(batch, seeds=(1, 2, 3), inputs=("s1", "s2", "terrain"), categories=None, **settings):
    return vary(batch, Augment(**settings), inputs, generator(CPU, *seeds), categories)


def turned(batch, degrees=0.0, side=1.0, middle=(0.0, 0.0), categories=None):
    """Every tile turned, cut out and moved alike."""
    tiles = len(batch["label"])
    angle, share = torch.full((tiles,), np.radians(degrees)), torch.full((tiles,), side)
    return resampled(batch, angle.float(), share, torch.tensor([middle] * tiles), categories or {})


def lost(batch, key):
    """Which steps of each tile have no data at all."""
    return (batch[key] == NODATA[key]).flatten(2).all(2)


def test_symmetries_are_eight_and_move_inputs_days_and_labels_alike():
    square = torch.arange(9).reshape(1, 3, 3)
    inputs = {"s1": square[None, None].repeat(1, 2, 2, 1, 1), DAY: square[None].repeat(1, 2, 1, 1)}
    batch = {**inputs, "label": square, "weight": 10 * square}
    turned = [symmetry(batch, number) for number in range(8)]
    assert len({tuple(one["label"].flatten().tolist()) for one in turned}) == 8
    assert all((one["s1"][0, 1, 1] == one["label"][0]).all() for one in turned)
    assert all((one[DAY][0, 1] == one["label"][0]).all() for one in turned)
    assert all((one["weight"] == 10 * one["label"]).all() for one in turned)


def test_without_settings_nothing_changes():
    batch = batch_of()
    found = varied(batch)
    assert all(found[key] is batch[key] for key in batch)


@pytest.mark.parametrize(
    "settings",
    [
        {"reflectance_gain": 0.2},
        {"reflectance_offset": 0.02, "reflectance_noise": 0.01},
        {"backscatter_shift_db": 2, "backscatter_noise_db": 1},
        {"drop_dates": 0.4},
        {"drop_sensors": 0.5},
        {"drop_sensors": 0.3, "drop_dates": 0.3, "reflectance_noise": 0.01},
    ],
)
def test_the_same_seeds_give_the_same_tiles_and_labels_stay(settings):
    batch = batch_of()
    first, again, other = (varied(batch, seeds, **settings) for seeds in ((1, 2, 3), (1, 2, 3), (1, 2, 4)))
    assert all(torch.equal(first[key], again[key]) for key in batch)
    assert any(not torch.equal(first[key], other[key]) for key in batch)
    assert all(first[key].dtype == batch[key].dtype for key in batch)
    assert torch.equal(first["label"], batch["label"]) and torch.equal(first["terrain"], batch["terrain"])


@given(st.integers(0, 99), st.floats(0, 0.5), st.floats(0, 0.1), st.floats(0, 0.05), st.floats(0, 6), st.floats(0, 3))
def test_radiometry_keeps_data_data_and_gaps_gaps(seed, gain, offset, noise, shift, speckle):
    batch = batch_of()
    batch["s2"][0, :, :, 0], batch["s2"][1, :, :, 0], batch["s1"][0, 1] = 1, 65535, -32767
    found = varied(
        batch,
        (seed,),
        reflectance_gain=gain,
        reflectance_offset=offset,
        reflectance_noise=noise,
        backscatter_shift_db=shift,
        backscatter_noise_db=speckle,
    )
    for key in ("s1", "s2"):
        assert torch.equal(found[key] == NODATA[key], batch[key] == NODATA[key])
    assert found["s2"].min() >= 0 and found["s2"].max() <= 65535
    assert torch.equal(found["weight"], batch["weight"])


def test_gain_and_shift_are_those_of_a_step_in_physical_units():
    batch = batch_of(gaps=False)
    found = varied(batch, reflectance_gain=0.2)
    ratio = (found["s2"] / batch["s2"]).flatten(2)
    assert (ratio.amax(2) - ratio.amin(2)).max() < 0.003  # one gain a step; integers are rounded
    assert 0.8 - 1e-3 <= ratio.min() < 0.9 and 1.1 < ratio.max() <= 1.2 + 1e-3
    assert ratio.mean(2).std() > 0.05
    found = varied(batch, backscatter_shift_db=2, reflectance_offset=0.05)
    shift = (found["s1"] - batch["s1"]).flatten(2)
    assert torch.equal(shift.amax(2), shift.amin(2)) and -200 <= shift.min() < -100 and 100 < shift.max() <= 200
    offset = (found["s2"] - batch["s2"]).flatten(2)
    assert torch.equal(offset.amax(2), offset.amin(2)) and -500 <= offset.min() < -250 and 250 < offset.max() <= 500


def test_noise_has_the_deviation_that_was_asked_for():
    batch = batch_of(40, 6, gaps=False)
    batch["s2"] += 2000
    found = varied(batch, reflectance_noise=0.01, backscatter_noise_db=0.5)
    assert (found["s2"] - batch["s2"]).float().std() == pytest.approx(100, rel=0.02)
    assert (found["s1"] - batch["s1"]).float().std() == pytest.approx(50, rel=0.02)


def test_dates_are_dropped_whole_with_their_days_and_never_the_last():
    batch = batch_of(200, 4)
    batch["s2"][:50, 1:], batch[DAY][:50, 1:] = 0, 0  # one step has data
    found = varied(batch, drop_dates=0.5)
    for key in ("s1", "s2"):
        dropped = lost(found, key)
        kept = ~dropped[:, :, None, None, None].expand(found[key].shape)
        assert torch.equal(found[key][kept], batch[key][kept])
        assert not dropped.all(1).any()
    assert not lost(found, "s2")[:50, 0].any()
    assert torch.equal((found[DAY] == 0).flatten(2).all(2), lost(found, "s2"))
    rest = lost(found, "s1").float().mean()
    assert 0.4 < rest < 0.5  # a little less than asked for, since one stays
    assert not torch.equal(lost(found, "s1")[50:], lost(found, "s2")[50:])


def test_a_step_that_was_filled_in_is_not_the_one_that_stays():
    batch = batch_of(100, 3, gaps=False)
    batch[DAY][:, 1:] = 0  # filled from the first
    found = varied(batch, drop_dates=0.9)
    assert not lost(found, "s2")[:, 0].any() and lost(found, "s2")[:, 1:].float().mean() > 0.8


def test_one_sensor_of_two_is_dropped_where_the_other_saw_something():
    batch = batch_of(400, 2)
    batch["s2"][:100] = 0
    batch["s1"][100:200] = NODATA["s1"]
    found = varied(batch, drop_sensors=0.5)
    gone = {key: lost(found, key).all(1) for key in ("s1", "s2")}
    assert not gone["s1"][:100].any() and not gone["s2"][100:200].any()
    assert not (gone["s1"] & gone["s2"]).any()
    assert 0.15 < gone["s1"][200:].float().mean() < 0.35 and 0.15 < gone["s2"][200:].float().mean() < 0.35
    assert ((found[DAY] == 0).flatten(1).all(1) == gone["s2"])[200:].all()


def test_a_pixel_that_nothing_is_left_of_has_no_weight():
    batch = batch_of(100, 2, gaps=False)
    batch["s1"][:, :, :, :3] = NODATA["s1"]
    found = varied(batch, drop_sensors=0.9)
    gone = lost(found, "s2").all(1)
    assert gone.any() and not found["weight"][gone][:, :3].any()
    assert torch.equal(found["weight"][gone][:, 3:], batch["weight"][gone][:, 3:])
    assert torch.equal(found["weight"][~gone], batch["weight"][~gone])


def test_inputs_that_the_network_does_not_see_do_not_count():
    batch = batch_of()
    found = varied(batch, inputs=("s2",), backscatter_shift_db=3, drop_dates=0.5)
    assert torch.equal(found["s1"], batch["s1"]) and not lost(found, "s2").all(1).any()


@pytest.mark.parametrize(
    ("sensors", "augment", "told"),
    [
        (["sentinel2"], {"drop_sensors": 0.2}, "drop_sensors is 0.2, but sensors are sentinel2: set it to 0"),
        (["sentinel2", "terrain"], {"backscatter_shift_db": 1}, "backscatter_shift_db is 1.0.*add sentinel1"),
        (["sentinel1"], {"reflectance_gain": 0.1}, "reflectance_gain is 0.1.*add sentinel2"),
        (["sentinel1"], {"drop_dates": 0.95}, "drop_dates"),
        (["sentinel1"], {"mirror": True}, "mirror"),
    ],
)
def test_settings_that_change_nothing_are_refused(sensors, augment, told):
    with pytest.raises(ValidationError, match=told):
        Model(network="unet", train_on=["here"], sensors=sensors, training={"augment": augment})


# --- turned and cut out ----------------------------------------------------------------------------------------------


def fields(side=33):
    """A plane that grows eastwards by 10 and southwards by 100 a pixel, and labels that say which quarter it is."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    plane = 1000 + 10 * x + 100 * y
    quarter = 1 + (x >= side // 2) + 2 * (y >= side // 2)
    return {
        "s1": -plane.short()[None, None, None].repeat(2, 2, 1, 1, 1),
        "s2": plane.int()[None, None, None].repeat(2, 3, 2, 1, 1),
        "terrain": torch.stack([plane, quarter]).short()[None, None].repeat(2, 1, 1, 1, 1),
        DAY: quarter.short()[None, None].repeat(2, 3, 1, 1),
        "label": quarter.to(torch.uint8)[None].repeat(2, 1, 1),
        "weight": torch.full((2, side, side), 100, dtype=torch.uint8),
    }


def test_a_plane_turns_as_geometry_says():
    """A pixel d east and e south of the middle comes from cos d - sin e east and sin d + cos e south of it."""
    batch, degrees = fields(), 30
    found = turned(batch, degrees)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    y, x = np.mgrid[-16:17, -16:17]
    east, south = cos * x - sin * y, sin * x + cos * y
    inside = (np.abs(east) < 16) & (np.abs(south) < 16)
    expected = 1000 + 10 * (16 + east) + 100 * (16 + south)
    for key, sign in (("s1", -1), ("s2", 1)):
        assert np.abs(sign * found[key][1, 1, 0].numpy() - expected)[inside].max() <= 0.51  # integers are rounded
    quarter = 1 + (np.rint(east) >= 0) + 2 * (np.rint(south) >= 0)
    clear = inside & (np.abs(east % 1 - 0.5) > 0.01) & (np.abs(south % 1 - 0.5) > 0.01)
    assert (found["label"][0].numpy() == quarter)[clear].all() and (found[DAY][0, 2].numpy() == quarter)[clear].all()
    beyond = (np.abs(east) > 16.51) | (np.abs(south) > 16.51)
    assert beyond.sum() > 100
    for key, none in (*NODATA.items(), (DAY, 0), ("label", 0), ("weight", 0)):
        outside = found[key].flatten(0, -3).numpy() == none
        assert outside[:, beyond].all() and not outside[:, inside].any(), key


def test_nothing_moves_by_no_angle():
    batch = batch_of()
    found = turned(batch, 0, categories={"terrain": [0]})
    assert all(torch.equal(found[key], batch[key]) and found[key].dtype == batch[key].dtype for key in batch)


@given(st.integers(0, 999))
def test_turning_mixes_no_gap_into_a_value_and_invents_none(seed):
    random = np.random.default_rng(seed)
    batch = fields(12)
    for key, low in (("s1", -1100), ("s2", 1000), ("terrain", 1000)):
        batch[key][...] = torch.from_numpy(random.integers(low, low + 100, batch[key].shape))
        batch[key][torch.from_numpy(random.random(batch[key].shape) < 0.4)] = NODATA[key]
    batch[DAY] = (batch["s2"][:, :, 0] != 0).short()
    found = varied(batch, (seed,), rotate_deg=45)
    for key, low in (("s1", -1100), ("s2", 1000), ("terrain", 1000)):
        values = found[key][found[key] != NODATA[key]]
        assert values.min() >= low and values.max() < low + 100
    assert torch.equal(found[DAY] > 0, found["s2"][:, :, 0] != 0)  # the nearest pixel says what is data


def test_classes_are_never_mixed():
    found = varied(fields(), categories={"terrain": [1]}, rotate_deg=45)
    layer = found["terrain"][:, 0, 1]
    assert {*layer.unique().tolist()} == {NODATA["terrain"], 1, 2, 3, 4}
    assert torch.equal(torch.where(layer > 0, layer, 0), found["label"].short())
    mixed = varied(fields(), rotate_deg=45)["terrain"][:, 0, 0]
    assert torch.equal(mixed, found["terrain"][:, 0, 0]) and len(mixed.unique()) > 500


def test_every_tile_has_an_angle_of_its_own_up_to_the_limit():
    batch = {key: values[:1].expand(200, *values.shape[1:]) for key, values in fields(9).items()}
    found = varied(batch, rotate_deg=20)["s2"][:, 0, 0].double().numpy()
    east = (found[:, 4, 6] - found[:, 4, 2]) / 4  # 10 cos + 100 sin of the angle
    assert (found[:, 4, 4] == 1000 + 440).all()  # the middle stays
    angle = np.degrees(np.arcsin(east / np.hypot(10, 100)) - np.arctan2(10, 100))
    assert -20.2 < angle.min() < -18 and 18 < angle.max() < 20.2
    assert angle.std() == pytest.approx(20 / np.sqrt(3), rel=0.1) and len(np.unique(angle.round(1))) > 80


def test_a_crop_is_enlarged_from_the_place_that_is_drawn():
    """Half of the side, its middle a quarter of the side east and south of the tile's: the last quarter."""
    batch = {**fields(32), "label": torch.tensor([1, 2], dtype=torch.uint8), "weight": torch.tensor([100, 90])}
    found = turned(batch, side=0.5, middle=(0.5, 0.5))
    place = 16 + (np.arange(32) + 0.5) / 2 - 0.5  # of each pixel in the image
    expected = 1000 + 10 * np.minimum(place, 31)[None] + 100 * np.minimum(place, 31)[:, None]
    assert np.abs(found["s2"][0, 0, 0].numpy() - expected).max() <= 0.51
    assert found["label"] is batch["label"] and found["weight"] is batch["weight"]


def test_crops_cover_the_share_and_stay_inside():
    batch = {key: values[:1].expand(300, *values.shape[1:]) for key, values in fields(32).items() if key == "s2"}
    batch |= {"label": torch.ones(300, dtype=torch.uint8), "weight": torch.full((300,), 100)}
    found = varied(batch, inputs=("s2",), crop=0.25)["s2"][:, 0, 0].float()
    assert (found > 0).all()
    side = (found[:, 16, 30] - found[:, 16, 1]) / 290
    assert 0.49 < side.min() < 0.6 and 0.95 < side.max() < 1.01
    assert (side**2).mean() == pytest.approx((0.25 + 1) / 2, abs=0.05)
    west = found[:, 16, 1] - found[:, 16, 1].min()
    assert west.std() > 20
