"""Gradients of taps that see padding alone."""

import numpy as np
import pytest
import torch
from torch import nn

from covermap.devices import reduced_precision
from covermap.taps import clear_unseen_taps, taps_on_data


@pytest.mark.parametrize(
    ("options", "length", "expected"),
    [
        ({"kernel_size": 3, "padding": 1}, 1, [0, 1, 0]),
        ({"kernel_size": 3, "padding": 1}, 2, [1, 1, 1]),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, 2, [0, 1, 1]),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, 3, [1, 1, 1]),
        ({"kernel_size": 3, "padding": "same", "dilation": 2}, 2, [0, 1, 0]),
        ({"kernel_size": 4, "padding": "same"}, 1, [0, 1, 0, 0]),
        ({"kernel_size": 2, "stride": 2}, 4, [1, 1]),
    ],
)
def test_taps_by_hand(options, length, expected):
    assert taps_on_data(nn.Conv2d(1, 1, **options), 0, length).int().tolist() == expected


class Strided(nn.Module):
    """A convolution of stride 2 on a single pixel, of which one tap of nine sees data."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(256, 512, 3, 2, 1)

    def forward(self, batch):
        return self.conv(batch["x"])


def test_bfloat16_gives_the_gradients_of_float32():
    net = Strided()
    tile = np.random.default_rng(0).standard_normal((256, 1, 1), np.float32)
    clear_unseen_taps(net, {"x": tile})
    assert net.training
    batch = {"x": torch.from_numpy(tile)[None].repeat(8, 1, 1, 1)}
    net(batch).square().sum().backward()
    expected = net.conv.weight.grad.clone()
    assert expected[..., 1, 1].abs().min() > 0 and expected.count_nonzero() == expected[..., 1, 1].numel()
    for _ in range(5):
        net.zero_grad()
        litter = [torch.full_like(expected, 1e30) for _ in range(3)]  # memory that is used again
        del litter
        with reduced_precision(torch.device("cpu")):
            loss = net(batch).float().square().sum()
        loss.backward()
        torch.testing.assert_close(net.conv.weight.grad, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))
