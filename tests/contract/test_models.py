"""What every network of the registry must do."""

import importlib
import inspect

import numpy as np
import pytest
import torch

from covermap.errors import CoverageError, ModelError
from covermap.inputs import DAY, KEYS, NODATA, index_pairs
from covermap.model_settings import Model
from covermap.models import MODELS
from covermap.models.normalise import Normalised, channel_statistics
from covermap.models.options import OPTIONS
from covermap.models.outputs import outputs_of
from covermap.prepare import must_divide
from covermap.trained import build, load_weights, save_weights

SHAPES = {"s1": (3, 2), "s2": (2, 4)}
MEANING = {
    "s1": {"month": ["01", "02", "03"], "polarisation": ["VV", "VH"]},
    "s2": {"band": ["B02", "B03", "B04", "B08"]},
}
RICH_SHAPES = {**SHAPES, "terrain": (1, 2)}
RICH_MEANING = {**MEANING, "terrain": {"layer": ["elevation", "slope"]}}
SMALL = {"width": 8, "encoder": "resnet10t"}  # values of the options, where a network has them, that make it small


def made(name, seed=0, sensors=("sentinel1", "sentinel2"), **settings):
    """A small network of this name that sees what it can of the sensors, and its settings."""
    torch.manual_seed(seed)
    options = {key: value for key, value in SMALL.items() if key in OPTIONS[name].model_fields}
    sensors = [sensor for sensor in sensors if sensor in OPTIONS[name].takes]
    model = Model(network=name, train_on=["here"], sensors=sensors, options=options, **settings)
    keys = [KEYS[sensor] for sensor in sensors]
    shapes, meaning = ({key: whole[key] for key in keys} for whole in (RICH_SHAPES, RICH_MEANING))
    return build(model, shapes, 5, meaning).eval(), model


def seen_by(net, values):
    """Those of the inputs that the network sees."""
    return {key: item for key, item in values.items() if key in net.shapes or key == DAY}


def answers(net, values):
    """Logits (N, B, K, H, W), or (N, B, K) of patches, of all N outputs."""
    return torch.stack([output.logits for output in outputs_of(net(seen_by(net, values)))])


def size(net, *sides):
    """What the logits of one output of two tiles have."""
    return (2, 5) if type(net.network).__name__ == "Classifier" else (2, 5, *sides)


@pytest.fixture(params=MODELS)
def net(request):
    return made(request.param)[0]


@pytest.fixture(params=MODELS)
def rich(request):
    """The network behind terrain and indices."""
    sensors = ["sentinel2", "terrain", "sentinel1"]
    indices = ["ndvi", "ndwi", "vh_minus_vv"]
    if "sentinel1" not in OPTIONS[request.param].takes:
        indices.pop()
    return made(request.param, sensors=sensors, indices=indices)


def rich_inputs():
    terrain = torch.randint(-100, 3000, (2, 1, 2, 64, 64), generator=torch.Generator().manual_seed(1))
    return {**inputs(), "terrain": terrain.short(), DAY: torch.full((2, 2, 64, 64), 200, dtype=torch.int16)}


def inputs(height=64, width=64, seed=0):
    random = torch.Generator().manual_seed(seed)
    s1 = torch.randint(-3000, 0, (2, 3, 2, height, width), generator=random, dtype=torch.int16)
    s2 = torch.randint(1, 5000, (2, 2, 4, height, width), generator=random, dtype=torch.int32)
    return {"s1": s1, "s2": s2}


def like_real(net):
    """The network with statistics of the inputs that bring them to about 0 and 1, as training does."""
    for key, mean, std in (("s1", -1500, 900), ("s2", 2500, 1400)):
        if key in net.shapes:
            net.get_buffer(f"{key}_mean").fill_(mean)
            net.get_buffer(f"{key}_std").fill_(std)
    return net


def test_it_scores_every_pixel(net):
    least = getattr(net.network, "multiple", 32)
    for sides in ((64, 64), (96, 64), (least, 3 * least)):
        assert net.probabilities(seen_by(net, inputs(*sides))).shape == size(net, *sides)


def test_sides_that_it_cannot_take_are_refused_and_odd_ones_are_taken_where_it_can(net):
    multiple = getattr(net.network, "multiple", 1)
    odd = [3 * multiple, multiple * (65 // multiple | 1)]
    for side in odd:
        must_divide(side, net)
    assert net.probabilities(seen_by(net, inputs(*odd))).shape == size(net, *odd)
    for side in (odd[0] + 1, odd[0] - 1) if multiple > 1 else ():
        with pytest.raises(ModelError, match=f"tiles are {side} px a side, but the network takes multiples"):
            must_divide(side, net)


def test_it_can_be_exported(net):
    """As a graph without Python, which says the same of other tiles."""
    one, other = (seen_by(net, inputs(seed=seed)) for seed in (0, 1))
    exported = torch.export.export(like_real(net), (one,)).module()
    found = torch.stack([output.logits for output in outputs_of(exported(other))])
    torch.testing.assert_close(found, answers(net, other), atol=1e-4, rtol=1e-4)


def test_what_is_learned_in_training_is_what_is_validated(net):
    """The same outputs with the same shares, so that both losses are of one kind."""
    given = seen_by(net, inputs())
    both = [outputs_of(net.train(training)(given)) for training in (True, False)]
    kinds = [[(output.share, output.votes, output.seen is None) for output in outputs] for outputs in both]
    assert kinds[0] == kinds[1] and any(votes for _, votes, _ in kinds[0])


def test_every_output_of_training_is_scored(net):
    outputs = outputs_of(net.train()(seen_by(net, inputs())))
    assert all(output.logits.shape == size(net, 64, 64) and output.share > 0 for output in outputs)


def test_a_gradient_reaches_every_weight(net):
    for module in like_real(net).train().modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # else a bias before it has no gradient but rounding
    answers(net, inputs()).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_what_was_not_observed_does_not_matter(net):
    for key in net.shapes:
        steps = [0, 1] if key in net.any_steps else [1]
        values = inputs()
        values[key][:, steps] = NODATA[key]
        expected = answers(net, values)
        net.get_buffer(f"{key}_mean")[0 if key in net.any_steps else 1] += 1e3  # nothing that it acts on
        torch.testing.assert_close(answers(net, values), expected)


def test_indices_and_terrain_are_inputs_like_the_others(rich, tmp_path):
    net, model = rich
    values = rich_inputs()
    assert net.probabilities(seen_by(net, values)).shape == size(net, 64, 64)
    for key, channels in {"s1": 3, "s2": 6, "terrain": 2}.items():
        if key in net.shapes:
            steps = 1 if key in net.any_steps else RICH_SHAPES[key][0]
            assert net.get_buffer(f"{key}_mean").shape == (steps, channels)
    save_weights(tmp_path / "weights.safetensors", net, model, list("abcde"))
    again, _ = load_weights(tmp_path / "weights.safetensors", torch.device("cpu"))
    assert again.shapes == {key: RICH_SHAPES[key] for key in net.shapes}
    torch.testing.assert_close(answers(again, values), answers(net, values))


def test_every_channel_reaches_the_network(rich):
    net, _ = rich
    for each in net.shapes:
        net.get_buffer(f"{each}_std").fill_(1000)
    expected = answers(net, rich_inputs())
    for key in net.shapes:
        means = net.get_buffer(f"{key}_mean")
        for channel in range(means.shape[1]):
            means[:, channel] += 1000
            assert not torch.allclose(answers(net, rich_inputs()), expected), (key, channel)
            means[:, channel] -= 1000


def test_without_observations_indices_are_finite(rich):
    net, _ = rich
    empty = {key: torch.full_like(values, NODATA.get(key, 0)) for key, values in rich_inputs().items()}
    assert answers(net, empty).isfinite().all()
    assert net.probabilities(seen_by(net, empty)).isfinite().all()


def test_the_mask_of_each_step_of_clouds_matters(net):
    """Values that normalise to 0 say nothing, so that what differs is the mask alone.

    Which of two dates was seen is all the same to a network that takes any dates, since they are alike here.
    """
    given = []
    for unseen in ([], [0], [0, 1]) if "s2" in net.any_steps else ([], [0], [1], [0, 1]):
        values = inputs()
        values["s2"].fill_(100)
        net.s2_mean.fill_(100)
        values["s2"][:, unseen] = NODATA["s2"]
        given.append(answers(net, values))
    for number, one in enumerate(given):
        assert not any(torch.allclose(one, other) for other in given[:number])


def test_half_precision_changes_little(net):
    """And neither does the order of channels in memory."""
    values = seen_by(like_real(net), inputs())
    expected = net.probabilities(values)
    net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net.probabilities(values), expected, atol=1e-4, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (net.probabilities(values) - expected).abs().mean() < 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cpu_and_gpu_give_the_same(net):
    values = seen_by(like_real(net), inputs())
    expected = net.probabilities(values)
    got = net.cuda().probabilities({key: item.cuda() for key, item in values.items()})
    torch.testing.assert_close(got.cpu(), expected, atol=1e-3, rtol=1e-3)


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
    prior = torch.arange(5.0)
    outputs = outputs_of(net(seen_by(net, inputs())))
    logits = torch.stack([output.logits for output in outputs if output.votes]).detach()
    net.log_weights.copy_(prior)
    expected = (logits - prior.view(1, 1, -1, *[1] * (logits.ndim - 3))).softmax(2).mean(0)
    torch.testing.assert_close(net.probabilities(seen_by(net, inputs())), expected)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_saved_and_loaded_whole(name, tmp_path):
    net, model = made(name)
    for key in net.shapes:
        net.get_buffer(f"{key}_mean").normal_()
    save_weights(tmp_path / "weights.safetensors", net, model, list("abcde"))
    again, classes = load_weights(tmp_path / "weights.safetensors", torch.device("cpu"))
    assert classes == list("abcde")
    assert (again.shapes, again.meaning) == (net.shapes, net.meaning)
    first = (tmp_path / "weights.safetensors").read_bytes()
    save_weights(tmp_path / "weights.safetensors", again, model, classes)
    assert (tmp_path / "weights.safetensors").read_bytes() == first
    torch.testing.assert_close(answers(again, inputs()), answers(net, inputs()))


@pytest.mark.parametrize("name", MODELS)
def test_its_options_are_the_keywords_of_the_network(name):
    module, network = MODELS[name].split(":")
    keywords = inspect.signature(getattr(importlib.import_module(module), network)).parameters
    options = {key: field.default for key, field in OPTIONS[name].model_fields.items()}
    assert options == {key: keywords[key].default for key in keywords if key not in ("shapes", "classes")}


def test_every_network_has_options():
    assert set(OPTIONS) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_its_options_know_what_a_side_must_be_a_multiple_of(name):
    net, model = made(name)
    assert model.network_options.multiple == getattr(net.network, "multiple", 1)


def test_an_input_that_was_never_seen_teaches_nothing():
    with pytest.raises(CoverageError, match="no training tile has a single observation of s2"):
        channel_statistics([{"s2": np.zeros((3, 1, 2, 4, 4), np.uint16)}], {})
