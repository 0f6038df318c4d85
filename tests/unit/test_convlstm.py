"""The convolutional LSTM against one that is written out step by step, gate by gate."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d

from covermap.models.convlstm import ConvLSTM, hard_sigmoid

CASES = {
    "tanh": {},
    "keras": {"gate": hard_sigmoid},
    "backwards": {"gate": hard_sigmoid, "backwards": True},
    "relu": {"activation": torch.relu, "kernel": 1},
    "softmax": {"gate": hard_sigmoid, "activation": lambda x: x.softmax(1), "kernel": 5},
}


def kernels(net):
    """Kernels of the input and of the state, and the bias, of each gate by Keras' letters."""
    hidden = net.recur.weight.shape[1]
    rows = {gate: slice(hidden * row, hidden * (row + 1)) for row, gate in enumerate("ifco")}
    return {gate: (net.enter.weight[at], net.recur.weight[at], net.enter.bias[at]) for gate, at in rows.items()}


def plain(net, x, seen=None):
    """The rule of Keras' ConvLSTM2D: two convolutions for each gate of each step."""
    weights, half = kernels(net), net.enter.weight.shape[-1] // 2
    batch, steps, _, height, width = x.shape
    h = c = torch.zeros(batch, net.recur.weight.shape[1], height, width, dtype=x.dtype)
    for step in list(range(steps))[:: -1 if net.backwards else 1]:
        gates = {
            name: conv2d(x[:, step], own, bias, padding=half) + conv2d(h, recurrent, padding=half)
            for name, (own, recurrent, bias) in weights.items()
        }
        i, f, o = (net.gate(gates[name]) for name in "ifo")
        new_c = f * c + i * net.activation(gates["c"])
        new_h = o * net.activation(new_c)
        if seen is not None:
            now = (seen[:, step] > 0).to(x.dtype)[:, None]
            new_c, new_h = now * new_c + (1 - now) * c, now * new_h + (1 - now) * h
        c, h = new_c, new_h
    return h


def sequence(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=CASES)
def net(request):
    torch.manual_seed(0)
    return ConvLSTM(3, 4, **CASES[request.param])


@pytest.mark.parametrize("seen", [None, (sequence(2, 5, 7, 9, seed=3) > 0).float()], ids=["all", "seen"])
def test_it_is_the_plain_rule(net, seen):
    x, other = (sequence(2, 5, 3, 7, 9).requires_grad_() for _ in range(2))
    answer, expected = net(x, seen), plain(net, other, seen)
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-6)
    weight = sequence(*answer.shape, seed=1)
    parameters = list(net.parameters())
    gradients = torch.autograd.grad((answer * weight).sum(), [x, *parameters])
    wanted = torch.autograd.grad((expected * weight).sum(), [other, *parameters])
    for one, two in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
        assert two.abs().max() > 0


def test_a_step_by_hand():
    """One pixel, one channel, kernels of 1 x 1."""
    net = ConvLSTM(1, 1, 1, gate=hard_sigmoid)
    with torch.no_grad():
        net.enter.weight.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0]).view(4, 1, 1, 1))
        net.recur.weight.copy_(torch.tensor([0.5, -1.0, 2.0, 1.0]).view(4, 1, 1, 1))
        c = 0.7 * np.tanh(0.5)  # i = 0.2 * 1 + 0.5
        h = 0.3 * np.tanh(c)  # o = 0.2 * -1 + 0.5
        torch.testing.assert_close(net(torch.ones(1, 1, 1, 1, 1)).item(), h, rtol=0, atol=1e-6)
        i, f, o = 0.2 * (-2 + 0.5 * h) + 0.5, 0.2 * (-4 + 1 - h) + 0.5, 0.2 * (2 + h) + 0.5
        expected = o * np.tanh(max(f, 0) * c + i * np.tanh(-1 + 2 * h))
        answer = net(torch.tensor([1.0, -2.0]).view(1, 2, 1, 1, 1)).item()
    assert abs(answer - expected) < 1e-6


def test_its_first_weights_are_those_of_keras():
    net = ConvLSTM(3, 8)
    i, f, c, o = (kernels(net)[gate] for gate in "ifco")
    assert [bias.unique().tolist() for _, _, bias in (i, f, c, o)] == [[0], [1], [0], [0]]
    rows = net.recur.weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(32), rtol=0, atol=1e-5)
    limit = (6 / (9 * 3 + 9 * 32)) ** 0.5  # Glorot's, from 27 values to 288
    assert 0.95 * limit < net.enter.weight.abs().max() <= limit
    assert ConvLSTM(3, 8, init=torch.nn.init.ones_).enter.weight.unique().tolist() == [1]
    assert sum(each.numel() for each in net.parameters()) == 4 * 8 * (9 * 3 + 9 * 8 + 1)


def test_gates_of_keras_have_a_slope_of_a_fifth():
    x = torch.tensor([-3, -2.5, -1, 0, 2.5, 9])
    torch.testing.assert_close(hard_sigmoid(x), torch.tensor([0, 0, 0.3, 0.5, 1, 1]))


def test_what_was_not_seen_leaves_the_state(net):
    x, seen = sequence(2, 5, 3, 7, 9), torch.ones(2, 5, 7, 9)
    seen[:, [1, 4]] = 0
    with torch.no_grad():
        torch.testing.assert_close(net(x, seen), net(x[:, [0, 2, 3]]), rtol=0, atol=1e-6)
        assert net(x, torch.zeros_like(seen)).abs().max() == 0
        torch.testing.assert_close(net(x, torch.full_like(seen, 0.1)), net(x))  # a share of the bands is enough


def test_backwards_is_the_reversed_order():
    torch.manual_seed(0)
    net = ConvLSTM(3, 4)
    x, seen = sequence(2, 5, 3, 7, 9), (sequence(2, 5, 7, 9, seed=1) > 0).float()
    expected = net(x.flip(1), seen.flip(1))
    assert not torch.allclose(net(x, seen), expected)
    net.backwards = True
    torch.testing.assert_close(net(x, seen), expected)


def test_a_draw_of_dropout_holds_for_all_steps():
    torch.manual_seed(0)
    net = ConvLSTM(3, 4, dropout=0.5, recurrent_dropout=0.5)
    x = sequence(1, 5, 3, 7, 9)
    assert torch.equal(net.eval()(x), net(x))
    net.train()
    first, second = net(x), net(x)
    assert not torch.allclose(first, second)
    drop = net.dropper(torch.ones(1, 1000), 0.2)
    assert torch.equal(drop(torch.ones(1000)), drop(torch.ones(1000)))
    kept = drop(torch.ones(1000))
    assert sorted(kept.unique().tolist()) == [0, 1.25] and 740 < (kept > 0).sum() < 860


def test_dropped_channels_say_nothing_in_any_step():
    torch.manual_seed(0)
    net = ConvLSTM(2, 3, 1, dropout=0.5)
    x = torch.ones(1, 4, 2, 6, 6).requires_grad_()
    net(x).sum().backward()
    silent = x.grad[0] == 0  # (T, C, H, W)
    assert 0.2 < silent.float().mean() < 0.8
    assert torch.equal(silent.all(0), silent.any(0))


def test_it_works_in_bfloat16_on_channels_last():
    torch.manual_seed(0)
    net, x = ConvLSTM(3, 4), sequence(2, 5, 3, 7, 9)
    with torch.autocast("cpu", torch.bfloat16):
        answer = net.to(memory_format=torch.channels_last)(x)
    assert answer.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(answer.float(), net(x), rtol=0.1, atol=0.03)


def test_a_long_sum_is_not_rounded_to_the_bfloat16_of_its_terms():
    """A thousand terms of 1/512, of which bfloat16 would drop those after the first."""
    net = ConvLSTM(1, 1)
    cell = torch.ones(1, 1, 1, 1)
    gates = torch.tensor([20.0, 20, math.atanh(1 / 512), 20]).view(1, 4, 1, 1).bfloat16()
    for _ in range(1000):
        state, cell = net.advance(gates, cell)
    assert state.dtype == torch.bfloat16 and cell.item() == pytest.approx(1 + 1000 / 512, rel=5e-3)
    with torch.autocast("cpu", torch.bfloat16):
        cells = []
        advance = net.advance
        net.advance = lambda gates, cell: cells.append(cell.dtype) or advance(gates, cell)
        net(torch.randn(1, 3, 1, 4, 4))
    assert cells == [torch.float32] * 3


def test_it_takes_no_more_convolutions_than_steps():
    """One for all inputs, and one for each step but the first."""
    net, calls = ConvLSTM(3, 4), []
    for convolution in (net.enter, net.recur):
        convolution.register_forward_hook(lambda module, given, _: calls.append(given[0].shape[0]))
    net(sequence(2, 5, 3, 7, 9))
    assert calls == [10, 2, 2, 2, 2]


@pytest.mark.long
def test_it_compiles():
    torch.manual_seed(0)
    net, x, seen = ConvLSTM(3, 4, **CASES["softmax"]), sequence(2, 5, 3, 7, 9), torch.ones(2, 5, 7, 9)
    torch.testing.assert_close(torch.compile(net)(x, seen), net(x, seen), rtol=0, atol=1e-5)
