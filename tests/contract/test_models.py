"""What every network of the registry must do."""

import importlib
import inspect

import numpy as np
import pytest
import torch

from covermap.errors import CoverageError
from covermap.inputs import DAY, NODATA, index_pairs
from covermap.models import MODELS
from covermap.models.normalise import Normalised, channel_statistics
from covermap.models.options import OPTIONS
from covermap.settings import Model
from covermap.train import build, load_weights, save_weights

SHAPES = {"s1": (3, 2), "s2": (2, 4)}
MEANING = {
    "s1": {"month": ["01", "02", "03"], "polarisation": ["VV", "VH"]},
    "s2": {"band": ["B02", "B03", "B04", "B08"]},
}


@pytest.fixture(params=MODELS)
def net(request):
    torch.manual_seed(0)
    return build(Model(network=request.param, train_on=["here"]), SHAPES, 5, MEANING).eval()


RICH_SHAPES = {**SHAPES, "terrain": (1, 2)}
RICH_MEANING = {**MEANING, "terrain": {"layer": ["elevation", "slope"]}}


@pytest.fixture(params=MODELS)
def rich(request):
    """The network behind terrain and indices."""
    torch.manual_seed(0)
    sensors = ["sentinel2", "terrain", "sentinel1"]
    model = Model(network=request.param, train_on=["here"], sensors=sensors, indices=["ndvi", "ndwi", "vh_minus_vv"])
    return build(model, RICH_SHAPES, 5, RICH_MEANING).eval(), model


def rich_inputs():
    terrain = torch.randint(-100, 3000, (2, 1, 2, 64, 64), generator=torch.Generator().manual_seed(1))
    return {**inputs(), "terrain": terrain.short(), DAY: torch.full((2, 2, 64, 64), 200, dtype=torch.int16)}


def inputs(side=64, seed=0):
    random = torch.Generator().manual_seed(seed)
    s1 = torch.randint(-3000, 0, (2, 3, 2, side, side), generator=random, dtype=torch.int16)
    s2 = torch.randint(1, 5000, (2, 2, 4, side, side), generator=random, dtype=torch.int32)
    return {"s1": s1, "s2": s2}


def test_it_scores_every_pixel(net):
    assert net(inputs()).shape == (2, 5, 64, 64)
    assert net(inputs(side=96)).shape == (2, 5, 96, 96)


def test_a_gradient_reaches_every_weight(net):
    net(inputs()).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_what_was_not_observed_does_not_matter(net):
    values = inputs()
    values["s1"][:, 1] = NODATA["s1"]
    expected = net(values)
    net.get_buffer("s1_mean").add_(0)
    other = {key: item.clone() for key, item in values.items()}
    net.s1_mean[1] += 1e3  # what normalises an empty month has nothing to act on
    torch.testing.assert_close(net(other), expected)


def test_indices_and_terrain_are_inputs_like_the_others(rich, tmp_path):
    net, model = rich
    assert net(rich_inputs()).shape == (2, 5, 64, 64)
    assert {key: tuple(net.get_buffer(f"{key}_mean").shape) for key in net.shapes} == {
        "s1": (3, 3),
        "s2": (2, 6),
        "terrain": (1, 2),
    }
    save_weights(tmp_path / "weights.safetensors", net, model, list("abcde"))
    again, _ = load_weights(tmp_path / "weights.safetensors", torch.device("cpu"))
    assert again.shapes == RICH_SHAPES
    torch.testing.assert_close(again(rich_inputs()), net(rich_inputs()))


@pytest.mark.parametrize("key", ["s1", "s2", "terrain"])
def test_every_channel_reaches_the_network(rich, key):
    net, _ = rich
    for each in net.shapes:
        net.get_buffer(f"{each}_std").fill_(1000)
    expected = net(rich_inputs())
    means = net.get_buffer(f"{key}_mean")
    for channel in range(means.shape[1]):
        means[:, channel] += 1000
        assert not torch.allclose(net(rich_inputs()), expected), channel
        means[:, channel] -= 1000


def test_without_observations_indices_are_finite(rich):
    net, _ = rich
    empty = {key: torch.full_like(values, NODATA.get(key, 0)) for key, values in rich_inputs().items()}
    assert net(empty).isfinite().all()


def test_the_mask_of_each_step_of_clouds_matters(net):
    """Values that normalise to 0 say nothing, so that what differs is the mask alone."""
    answers = []
    for unseen in ([], [0], [1], [0, 1]):
        values = inputs()
        values["s2"].fill_(100)
        net.s2_mean.fill_(100)
        values["s2"][:, unseen] = NODATA["s2"]
        answers.append(net(values))
    for number, one in enumerate(answers):
        assert not any(torch.allclose(one, other) for other in answers[:number])


class Probe(torch.nn.Module):
    """Keeps what it is given."""

    def forward(self, values, valid):
        self.values, self.valid = values, valid
        return torch.zeros(1)


def probed(integers, indices=()):
    shapes = {key: tuple(values.shape[1:3]) for key, values in integers.items() if key in NODATA}
    probe = Probe()
    Normalised(probe, shapes, 2, MEANING, index_pairs(indices, MEANING))(integers)
    return probe.values, probe.valid


def test_a_network_gets_the_mask_of_every_step_of_every_input():
    given = rich_inputs()
    given["s1"][0, 2, 1, 5, 6] = NODATA["s1"]  # one polarisation of two
    given["s2"][1, 0, :, 7, 8] = NODATA["s2"]
    given["terrain"][0, 0, 0, 9, 9] = NODATA["terrain"]
    given[DAY][0, 1, 3, 3] = 0  # filled in from the other step
    values, valid = probed(given)
    unseen = {key: (mask < 1).nonzero().tolist() for key, mask in valid.items()}
    assert unseen == {"s1": [[0, 2, 5, 6]], "s2": [[0, 1, 3, 3], [1, 0, 7, 8]], "terrain": [[0, 0, 9, 9]]}
    assert (valid["s1"][0, 2, 5, 6], valid["s2"][0, 1, 3, 3], valid["s2"][1, 0, 7, 8]) == (0.5, 0, 0)
    assert {key: mask.shape[1] for key, mask in valid.items()} == {"s1": 3, "s2": 2, "terrain": 1}
    assert (values["s2"][0, 1, :, 3, 3] == given["s2"][0, 1, :, 3, 3]).all()


def test_indices_by_hand():
    s1 = torch.tensor([-1000, -1700], dtype=torch.int16).view(1, 1, 2, 1, 1).repeat(1, 3, 1, 1, 3)
    s2 = torch.tensor([500, 600, 1000, 3000], dtype=torch.int32).view(1, 1, 4, 1, 1).repeat(1, 2, 1, 1, 3)
    s2[..., 1] = 0
    s2[:, :, 2, :, 2] = 0  # B04 alone is missing
    values, valid = probed({"s1": s1, "s2": s2}, ["ndvi", "ndwi", "vh_minus_vv"])
    assert values["s1"][0, 0, :, 0, 0].tolist() == [-1000, -1700, -700]  # 0.01 dB
    ndvi, ndwi = values["s2"][0, 1, 4:, 0]
    assert ndvi.tolist() == [5000, 0, 0]  # (3000 - 1000) / (3000 + 1000)
    torch.testing.assert_close(ndwi, torch.tensor([-24000 / 3.6, 0, -24000 / 3.6]))  # (600 - 3000) / (600 + 3000)
    torch.testing.assert_close(valid["s2"][0, 1, 0], torch.tensor([1, 0, 4 / 6]))  # without B04 and NDVI


def test_statistics_of_indices_are_those_of_where_their_bands_were_seen():
    s2 = np.array([[1000, 3000], [2000, 2000], [0, 5000]], np.uint16).reshape(3, 1, 2, 1, 1)
    mean, std = channel_statistics([{"s2": s2}], {"s2": [(1, 0)]})["s2"]
    np.testing.assert_allclose(mean, [[1500, 10000 / 3, 2500]])  # indices 5000 and 0
    np.testing.assert_allclose(std[0, [0, 2]], [500, 2500])


def test_probabilities_are_taken_back_to_the_training_prevalence(net):
    logits = net(inputs()).detach()
    net.log_weights.copy_(torch.arange(5.0))
    expected = (logits - torch.arange(5.0)[None, :, None, None]).softmax(1)
    torch.testing.assert_close(net.probabilities(inputs()), expected)


def test_it_is_saved_and_loaded_whole(net, tmp_path):
    name = type(net.network).__name__.lower()
    model = Model(network=name, train_on=["here"])
    net.s1_mean.copy_(torch.randn(3, 2))
    save_weights(tmp_path / "weights.safetensors", net, model, list("abcde"))
    again, classes = load_weights(tmp_path / "weights.safetensors", torch.device("cpu"))
    assert classes == list("abcde")
    assert (again.shapes, again.meaning) == (SHAPES, MEANING)
    first = (tmp_path / "weights.safetensors").read_bytes()
    save_weights(tmp_path / "weights.safetensors", again, model, classes)
    assert (tmp_path / "weights.safetensors").read_bytes() == first
    torch.testing.assert_close(again(inputs()), net(inputs()))


@pytest.mark.parametrize("name", MODELS)
def test_its_options_are_the_keywords_of_the_network(name):
    module, network = MODELS[name].split(":")
    keywords = inspect.signature(getattr(importlib.import_module(module), network)).parameters
    options = {key: field.default for key, field in OPTIONS[name].model_fields.items()}
    assert options == {key: keywords[key].default for key in keywords if key not in ("shapes", "classes")}


def test_every_network_has_options():
    assert set(OPTIONS) == set(MODELS)


def test_its_options_know_what_a_side_must_be_a_multiple_of(net):
    name = type(net.network).__name__.lower()
    assert OPTIONS[name]().multiple == getattr(net.network, "multiple", 1)


def test_an_input_that_was_never_seen_teaches_nothing():
    with pytest.raises(CoverageError, match="no training tile has a single observation of s2"):
        channel_statistics([{"s2": np.zeros((3, 1, 2, 4, 4), np.uint16)}], {})
