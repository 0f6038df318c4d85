"""What every network of the registry must do."""

import importlib
import inspect

import pytest
import torch

from covermap.inputs import NODATA
from covermap.models import MODELS
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
