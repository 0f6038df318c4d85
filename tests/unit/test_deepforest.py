"""DeepForest and its peers: published sizes, Keras' conventions, and how far a pixel's class looks."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from covermap.models.blocks import (
    BatchNorm,
    Encoder,
    conv,
    deconv,
    glorot_normal,
    glorot_uniform,
    he_normal,
    layout,
    lecun_normal,
    stacked,
)
from covermap.models.convlstm import ConvLSTM, hard_sigmoid
from covermap.models.deepforest import (
    DeepForest1a,
    DeepForest1b,
    DeepForest1c,
    DeepForest2a,
    DeepForest2b,
    Fusion,
)
from covermap.models.deepforest_peers import DeepLab, SixLevels, WideUnet
from covermap.models.options import OPTIONS
from covermap.models.outputs import Output, outputs_of, vote

SHAPES = {10: {"s2": (1, 10)}, 24: {"s1": (7, 2), "s2": (1, 10)}, 34: {"s1": (12, 2), "s2": (1, 10)}}

# Of a network: its Keras parameters by channels and classes, as the published notebooks print them for 10 and 18.
PUBLISHED = {
    WideUnet: {(10, 18): 3_861_410, (10, 12): 3_833_756, (24, 12): 3_837_788, (34, 12): 3_840_668},
    DeepLab: {(10, 18): 54_567_208, (10, 12): 54_524_008},
    DeepForest1a: {(10, 18): 30_638_546, (10, 12): 30_637_772, (24, 12): 30_642_252, (34, 12): 30_645_452},
    DeepForest1b: {(10, 18): 31_114_322, (10, 12): 31_113_548, (24, 12): 31_118_028, (34, 12): 31_121_228},
    DeepForest1c: {(10, 18): 31_351_080, (10, 12): 31_347_816, (24, 12): 31_352_296, (34, 12): 31_355_496},
}


def keras_count(net):
    """Weights, and the running moments of normalisation."""
    return sum(values.numel() for name, values in net.state_dict().items() if "num_batches" not in name)


@pytest.mark.parametrize("network", PUBLISHED)
def test_networks_have_as_many_parameters_as_published(network):
    with torch.device("meta"):
        counts = {
            size: keras_count(network(SHAPES[size[0]], size[1], as_published=True)) for size in PUBLISHED[network]
        }
    assert counts == PUBLISHED[network]


@pytest.mark.parametrize("classes, of_2a, of_2b", [(18, 4_016_736, 28_270_518), (12, 3_987_936, 28_268_964)])
def test_networks_of_two_branches_have_as_many_parameters_as_published(classes, of_2a, of_2b):
    with torch.device("meta"):
        for shapes in (SHAPES[24], SHAPES[34]):  # the number of months adds none
            assert keras_count(DeepForest2a(shapes, classes, as_published=True)) == of_2a
            assert keras_count(DeepForest2b(shapes, classes, branch="1a", as_published=True)) == of_2b


def test_mended_networks_lack_idle_biases_and_see_masks():
    with torch.device("meta"):
        mended = DeepForest1a(SHAPES[34], 12)
    idle = 64 + 64 + 256 + 256 + 64  # before the first pooling
    for width, blocks in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True):
        idle += blocks * 6 * width + 4 * width
    assert keras_count(mended) == 30_645_452 - idle + 2 * (64 + 256)  # the masks of s2 and of all months of s1


def naive(values, weight, before, rate=1):
    """Correlation (K, H, W) of values (C, H, W) with weight (K, C, k, k), ``before`` px padded left and above."""
    size, reach = values.shape[1:], rate * (weight.shape[2] - 1)
    padded = np.zeros((len(values), size[0] + 2 * reach, size[1] + 2 * reach))
    padded[:, before : before + size[0], before : before + size[1]] = values
    out = np.zeros((len(weight), *size))
    for row, column, i, j in np.ndindex(*size, *weight.shape[2:]):
        out[:, row, column] += weight[:, :, i, j] @ padded[:, row + rate * i, column + rate * j]
    return out


@pytest.mark.parametrize("kernel, rate, before", [(6, 1, 2), (6, 2, 5), (3, 6, 6), (7, 1, 3), (2, 1, 0), (1, 1, 0)])
def test_convolutions_pad_as_keras_does(kernel, rate, before):
    torch.manual_seed(0)
    layer, values = conv(2, 3, kernel, rate=rate), torch.randn(1, 2, 7, 9)
    weight = next(layer.parameters()).detach().double().numpy()
    expected = naive(values[0].double().numpy(), weight, before, rate)
    np.testing.assert_allclose(layer(values)[0].detach().numpy(), expected, atol=1e-5)


def naive_transposed(values, weight, stride):
    """What Keras' "same" transposed convolution gives: each value times the kernel, laid down from 2 px before it."""
    height, width = values.shape[1:]
    out = np.zeros((weight.shape[1], stride * height + 5, stride * width + 5))
    for row, column in np.ndindex(height, width):
        window = np.s_[:, stride * row : stride * row + 6, stride * column : stride * column + 6]
        out[window] += np.tensordot(values[:, row, column], weight, 1)
    return out[:, 2 : 2 + stride * height, 2 : 2 + stride * width]


def test_transposed_convolutions_crop_as_keras_does():
    torch.manual_seed(0)
    values = torch.randn(1, 2, 5, 4)
    twice = deconv(2, 3, 6)
    expected = naive_transposed(values[0].numpy(), twice.weight.detach().numpy(), 2)
    np.testing.assert_allclose(twice(values)[0].detach().numpy(), expected, atol=1e-5)

    net = SixLevels(1, 3, 8, as_published=True)
    values = torch.randn(1, net.leave.in_channels, 5, 4)
    expected = naive_transposed(values[0].numpy(), net.leave.weight.detach().numpy(), 1)
    net.encoder, net.decoder, net.skips = nn.ModuleList([nn.Identity()]), nn.ModuleList(), [None]
    np.testing.assert_allclose(net(values)[0].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("side", [64, 96, 128, 256])
@pytest.mark.parametrize("as_published", [False, True])
def test_stages_have_the_sizes_of_the_table(side, as_published):
    encoder = Encoder(1, 1, 4, as_published).eval()
    values = torch.zeros(1, 1, side, side)
    assert encoder.enter(values).shape[2] == (side // 2 - 1 if as_published else side // 2)  # 127 of 256
    sizes = [tuple(stage.shape[1:3]) for stage in encoder(values)]
    assert sizes == [(4, side // 4), (8, side // 8), (16, side // 16), (32, side // 32)]


ALL = {
    "deepforest_1a": (DeepForest1a, {}),
    "deepforest_1b": (DeepForest1b, {}),
    "deepforest_1c": (DeepForest1c, {}),
    "deepforest_2a": (DeepForest2a, {}),
    "deepforest_2b": (DeepForest2b, {"branch": "1b"}),
    "deepforest_2b, 1a": (DeepForest2b, {"branch": "1a"}),
    "deepforest_unet": (WideUnet, {}),
    "deepforest_deeplab": (DeepLab, {}),
}


def made(name, shapes, classes=2, width=8, **options):
    torch.manual_seed(0)
    network, more = ALL[name]
    return network(shapes, classes, width, **more, **options)


def drawn(shapes, height=64, width=64, batch=2):
    random = torch.Generator().manual_seed(1)
    inputs = {key: torch.randn(batch, *shape, height, width, generator=random) for key, shape in shapes.items()}
    return inputs, {key: torch.ones(batch, shape[0], height, width) for key, shape in shapes.items()}


SMALL = {"s1": (3, 2), "s2": (1, 4)}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("as_published", [False, True])
def test_maps_are_as_large_as_the_tile(name, as_published):
    net = made(name, SMALL, as_published=as_published).eval()
    for sides in ((64, 96), (32, 128)):
        assert all(each.logits.shape == (1, 2, *sides) for each in outputs_of(net(*drawn(SMALL, *sides, batch=1))))


# Column, modulo 32, of a change that is seen as far as the options say, and on which side.
FARTHEST = {
    "deepforest_1a": (15, "right"),
    "deepforest_1b": (15, "right"),
    "deepforest_1c": (15, "right"),
    "deepforest_2b": (15, "right"),
    "deepforest_2b, 1a": (15, "right"),
    "deepforest_unet": (23, "left"),
    "deepforest_deeplab": (31, "right"),
}


def reached(net, shapes, column, width):
    """First and last column that a change in ``column`` of s2 reaches: weights that only add let none get lost."""
    for values in net.parameters():
        if values.ndim == 4:
            nn.init.uniform_(values, 0.1, 1)
    net = net.double().eval()
    height = 64 if isinstance(net, WideUnet) else 32  # below 64 px its lowest level sees but padding
    inputs = {key: torch.zeros(1, *shape, height, width, dtype=torch.float64) for key, shape in shapes.items()}
    valid = {key: values[:, :, 0] for key, values in inputs.items()}
    inputs["s2"] = inputs["s2"].clone()
    inputs["s2"][..., column] = 1
    with torch.inference_mode():
        changed = (outputs_of(net(inputs, valid))[0].logits != 0).any((0, 1, 2)).nonzero()  # all is 0 without it
    return changed.min().item(), changed.max().item()


@pytest.mark.parametrize("name", FARTHEST)
def test_the_margin_is_how_far_a_change_is_seen(name):
    remainder, side = FARTHEST[name]
    shapes = {"s2": (1, 1), **({"s1": (1, 1)} if "_2" in name else {})}
    net = made(name, shapes, width=8 if name == "deepforest_unet" else 1)
    key, _, branch = name.partition(", ")
    margin = OPTIONS[key](**({"branch": branch} if branch else {})).margin_pixels
    column = (margin // 32 + 1) * 32 + remainder
    first, last = reached(net, shapes, column, 64 * (margin // 32 + 3))
    assert {"left": column - first, "right": last - column}[side] == margin
    assert max(column - first, last - column) == margin


def test_the_margin_of_the_network_with_a_unet_is_that_of_the_unet():
    assert OPTIONS["deepforest_2a"]().margin_pixels == OPTIONS["deepforest_unet"]().margin_pixels


def test_the_shares_of_the_loss_are_those_of_the_published_log():
    net = made("deepforest_2a", SMALL).train()
    outputs = net(*drawn(SMALL))
    assert all(isinstance(output, Output) and output.logits.shape == (2, 2, 64, 64) for output in outputs)
    fused, s1, s2 = 2.6745, 3.3109, 2.8383
    total = sum(output.share * loss for output, loss in zip(outputs, (fused, s1, s2), strict=True))
    assert total == pytest.approx(5.6545, abs=1e-4)


def test_the_outputs_are_those_of_both_of_sentinel_1_and_of_sentinel_2():
    net = made("deepforest_2b", SMALL).eval()
    inputs, valid = drawn(SMALL)
    outputs = net(inputs, valid)
    assert [output.votes for output in outputs] == [True, False, False]
    torch.testing.assert_close(vote(outputs, torch.zeros(2), False), outputs[0].logits.softmax(1))
    for key, unmoved in (("s1", [False, False, True]), ("s2", [False, True, False])):
        others = net({**inputs, key: -inputs[key]}, valid)
        assert [torch.equal(a.logits, b.logits) for a, b in zip(outputs, others, strict=True)] == unmoved


def test_the_deep_map_comes_first():
    torch.manual_seed(0)
    fusion = Fusion(nn.Identity(), nn.Identity(), 2, 3, as_published=True)
    forwards = ConvLSTM(2, 3, gate=hard_sigmoid)
    forwards.load_state_dict(fusion.memory.state_dict())
    shallow, deep = torch.randn(2, 1, 2, 6, 6)
    torch.testing.assert_close(fusion(shallow, deep), forwards(torch.stack([deep, shallow], 1)))
    assert not torch.allclose(fusion(shallow, deep), forwards(torch.stack([shallow, deep], 1)))


def test_gates_and_states_are_hard_where_published():
    published, mended = (made("deepforest_2b", SMALL, as_published=choice) for choice in (True, False))
    gates = [[module.gate for module in net.modules() if isinstance(module, ConvLSTM)] for net in (published, mended)]
    assert gates == [[hard_sigmoid] * 3, [torch.sigmoid] * 3]
    assert (published.s1.activation, mended.s1.activation) == (torch.relu, torch.tanh)


def test_months_that_were_not_seen_leave_the_state_of_sentinel_1():
    net = made("deepforest_2b", SMALL).eval()
    inputs, valid = drawn(SMALL)
    inputs["s1"][:, 1], valid["s1"][:, 1] = 0, 0
    others = [0, 2]
    fewer = ({**inputs, "s1": inputs["s1"][:, others]}, {**valid, "s1": valid["s1"][:, others]})
    torch.testing.assert_close(net(*fewer)[0].logits, net(inputs, valid)[0].logits)


def test_the_published_unets_probabilities_are_its_sigmoids_made_to_sum_up_to_1():
    net = made("deepforest_unet", SMALL, classes=4, as_published=True).eval()
    inputs, valid = drawn(SMALL)
    scores = net.body(stacked(inputs, valid, masks=False))
    expected = scores.sigmoid() / scores.sigmoid().sum(1, keepdim=True)
    torch.testing.assert_close(net(inputs, valid).softmax(1), expected)
    assert (net(inputs, valid).argmax(1) == scores.argmax(1)).all()


def test_masks_are_channels_but_where_published():
    inputs, valid = drawn(SMALL)
    valid["s1"][:, 0] = 0
    both = stacked(inputs, valid, masks=True)
    assert (len(layout(SMALL, masks=True)), len(layout(SMALL, masks=False))) == (12, 10)
    assert both.shape[1] == 12
    torch.testing.assert_close(both[:, 6], torch.full((2, 64, 64), 2 / 3))  # two months of three
    assert torch.equal(stacked(inputs, valid, masks=False), both[:, [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]])
    for name in ALL:
        net, unseen = made(name, SMALL, as_published=True).eval(), {key: 0 * mask for key, mask in valid.items()}
        seen, blind = (outputs_of(net(inputs, each))[0].logits for each in (valid, unseen))
        assert torch.equal(seen, blind)


@pytest.mark.parametrize("init, variance", [(he_normal, 2 / 72), (lecun_normal, 1 / 72), (glorot_normal, 2 / 648)])
def test_initial_weights_have_keras_variance_and_end_at_two_deviations(init, variance):
    torch.manual_seed(0)
    weight = init(torch.empty(64, 8, 3, 3))  # 72 in, 576 out
    assert weight.var().item() == pytest.approx(variance, rel=0.05)
    assert weight.abs().max() <= 2 * math.sqrt(variance) / 0.8796
    bound = math.sqrt(6 / 648)
    assert 0.95 * bound < glorot_uniform(weight).abs().max() <= bound


def test_normalisation_is_that_of_keras():
    layer = BatchNorm(1)
    values = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(layer(values).flatten(), torch.tensor([-1.0, 1.0]) / math.sqrt(1 + 1e-3))
    assert layer.running_mean.item() == pytest.approx(0.99 * 0 + 0.01 * 2)


def test_one_tile_of_32_pixels_can_be_learnt_from():
    """The deepest map has one value a channel, which has no variance."""
    net = made("deepforest_1b", SMALL).train()
    net(*drawn(SMALL, 32, 32, batch=1)).square().mean().backward()
    assert all(values.grad.isfinite().all() for values in net.parameters())


@pytest.mark.parametrize("name", ALL)
def test_half_precision_and_channels_last_give_nearly_the_same(name):
    net = made(name, SMALL).eval()
    inputs, valid = drawn(SMALL, batch=1)
    expected = outputs_of(net(inputs, valid))[0].logits
    net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs_of(net(inputs, valid))[0].logits, expected, atol=1e-4, rtol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        got = outputs_of(net(inputs, valid))[0].logits.float()
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()
