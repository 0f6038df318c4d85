"""The layer of scene classes: what the stack keeps, what the network sees, and which areas can have it."""

import numpy as np
import pytest
import torch

from covermap.area_settings import Composite, Masks
from covermap.augment import generator, vary
from covermap.config import load
from covermap.errors import SettingError
from covermap.inputs import NODATA, categories_of, meaning_of
from covermap.model_settings import Augment
from covermap.models.normalise import Normalised, channel_statistics, seen_shapes
from covermap.stack import open_stack
from tests.unit.test_config import edited, settings, shipped, with_terrain  # noqa: F401 (fixtures)
from tests.unit.test_stack import GRID, build, quality, s2_scene, whole_stack

S2 = {"sensors": ("sentinel2",)}
SCL = {**S2, "composite": Composite(layers=("scl",))}
MEANING = {"s2": {"band": ["B04"]}, "terrain": {"layer": ["slope", "scl"]}}
SHAPES = {"s2": (2, 1), "terrain": (1, 2)}


def test_of_several_dates_most_observations_decide(tmp_path):
    """Columns 0 to 5, three dates: classes as they stand in each, 0 where the scene has no data."""
    classes = np.zeros((3, *GRID.shape), np.uint8)
    classes[:, :, :6] = np.array([[4, 4, 9, 0, 0, 1], [4, 5, 5, 11, 0, 1], [6, 6, 9, 0, 0, 0]])[:, None]
    days = ("2021-08-05", "2021-08-20", "2021-09-10")
    s2 = [s2_scene(tmp_path, f"s{i}", days[i], 1000, classes[i]) for i in range(3)]
    stack = build(tmp_path, [], s2, **SCL)
    terrain = whole_stack(stack)["terrain"]
    assert terrain.shape == (1, 1, *GRID.shape) and terrain.dtype == np.int16
    assert (terrain[0, 0, :, :7] == [4, 4, 9, 11, -32768, 1, -32768]).all()  # of 4, 5 and 6 the lowest
    with open_stack(stack) as opened:
        assert np.isnan(opened.scl[0, 4]) and float(opened.scl[0, 2]) == 9
    assert meaning_of(stack)["terrain"] == {"layer": ["scl"]}
    plain = whole_stack(build(tmp_path, [], s2, **S2))
    assert all((whole_stack(stack)[key] == values).all() for key, values in plain.items()) and "terrain" not in plain


def test_of_one_date_it_is_its_scl_and_tiles_of_one_overflight_are_one_observation(tmp_path):
    classes = np.random.default_rng(0).integers(1, 12, GRID.shape).astype(np.uint8)
    one = s2_scene(tmp_path, "one", "2021-08-05T14:00:00Z", 1000, classes)
    found = whole_stack(build(tmp_path, [], [one], **SCL))["terrain"][0, 0]
    assert (found == classes).all()
    again = s2_scene(tmp_path, "two", "2021-08-05T14:05:00Z", 1000, np.full(GRID.shape, 9, np.uint8))
    later = s2_scene(tmp_path, "three", "2021-08-06T14:00:00Z", 1000, np.full(GRID.shape, 9, np.uint8))
    options = {**SCL, "masks": Masks(dilate_m=0)}
    found = whole_stack(build(tmp_path, [], [one, again], **options))["terrain"][0, 0]
    clear = np.isin(classes, (2, 4, 5, 6, 7))
    assert (found[clear] == classes[clear]).all()  # the tile that is clear is the one that is seen
    found = whole_stack(build(tmp_path, [], [one, again, later], **options))["terrain"][0, 0]
    assert (found == np.minimum(np.where(clear, classes, 9), 9))[clear].all()


def test_classes_of_a_scene_that_is_moved_are_moved_by_whole_pixels(tmp_path):
    classes = np.where(np.arange(300) < 150, 4, 6) * np.ones((300, 1), int)
    s2 = [s2_scene(tmp_path, "s", "2021-08-11", 1000, classes)]
    found = whole_stack(build(tmp_path, [], s2, quality=[quality(tmp_path, "s", 1.25, 0)], **SCL))["terrain"][0, 0]
    assert {*np.unique(found[20:-20, 20:-20]).tolist()} == {4, 6}
    assert found[100, 148] == 4 and found[100, 149] == 6  # it lay a pixel too far right


def test_radar_has_no_scene_classes(tmp_path):
    with pytest.raises(SettingError, match=r"composite.layers has scl, which Sentinel-2 alone has"):
        build(tmp_path, [], [], sensors=("sentinel1",), composite=Composite(layers=("scl",)))


class Probe(torch.nn.Module):
    def forward(self, values, valid):
        self.values, self.valid = values, valid
        return torch.zeros(1)


def test_the_network_sees_a_channel_of_0_and_1_for_each_class():
    assert seen_shapes(SHAPES, {}, MEANING) == {"s2": (2, 1), "terrain": (1, 12)}
    assert seen_shapes(SHAPES, {}, {}) == SHAPES
    probe = Probe()
    net = Normalised(probe, SHAPES, 2, MEANING, {})
    net.terrain_mean[...], net.terrain_std[...] = 100, 50
    terrain = torch.tensor([[200, 1], [300, 11], [100, NODATA["terrain"]], [NODATA["terrain"], 4]], dtype=torch.int16)
    net({"s2": torch.ones(1, 2, 1, 1, 4, dtype=torch.int32), "terrain": terrain.T.reshape(1, 1, 2, 1, 4)})
    values = probe.values["terrain"][0, 0, :, 0]  # (12, 4)
    assert values[0].tolist() == [2, 4, 0, 0]  # the slope, normalised
    assert values[1:].sum(0).tolist() == [1, 1, 0, 1]
    assert [values[1:, pixel].argmax().item() + 1 for pixel in (0, 1, 3)] == [1, 11, 4]
    assert probe.valid["terrain"][0, 0, 0].tolist() == [1, 1, 0.5, 0.5]


def test_statistics_and_weights_hold_for_a_layer_of_classes():
    terrain = np.array([[[[3]], [[4]]]], np.int16).reshape(1, 1, 2, 1, 1).repeat(2, 0)
    statistics = channel_statistics([{"terrain": terrain}], {})
    assert statistics["terrain"][0].tolist() == [[3, 4]]
    net = Normalised(Probe(), SHAPES, 2, MEANING, {})
    assert {name: tuple(values.shape) for name, values in net.state_dict().items() if "terrain" in name} == {
        "terrain_mean": (1, 2),
        "terrain_std": (1, 2),
    }


def test_turning_a_tile_keeps_its_classes():
    assert categories_of(MEANING) == {"terrain": [1]} and categories_of({"terrain": {"layer": ["slope"]}}) == {}
    classes = torch.where(torch.arange(32) < 16, 4, 9).expand(1, 1, 2, 32, 32).short()
    batch = {"terrain": classes, "label": torch.ones(1, 32, 32).byte(), "weight": torch.ones(1, 32, 32).byte()}
    random = generator(torch.device("cpu"), 5)
    layers = vary(batch, Augment(rotate_deg=45), ["terrain"], random, categories_of(MEANING))["terrain"][0, 0]
    assert {*layers[1].unique().tolist()} == {NODATA["terrain"], 4, 9}
    assert len(layers[0].unique()) > 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"aois/demo/dem": None}, []),
        ({"sentinel2/level": "L1C"}, ["composite.layers has scl", "sentinel2.level is L1C for aois.demo"]),
        (
            {"aois/demo/sensors": ["sentinel1"], "models/unet_demo/sensors": ["sentinel1", "terrain"]},
            ["composite.layers has scl", "aois.demo.sensors lacks it", "add sentinel2"],
        ),
    ],
)
def test_areas_need_surface_reflectance(settings, changes, words):  # noqa: F811
    settings = with_terrain(settings, layers=["scl"])
    for path, value in changes.items():
        settings = edited(settings, path, value)
    if not words:
        assert load(settings)
        return
    with pytest.raises(SettingError) as caught:
        load(settings)
    for word in words:
        assert word in str(caught.value)
