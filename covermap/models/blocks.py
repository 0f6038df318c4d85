"""Pieces of the published networks, with the conventions of Keras that they were written in.

Sizes of padding, constants of normalisation and initial weights are those of Keras 2.2.4 (keras.io, layers and
initializers), so that the same architecture has the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Clouds differ from step to step; what the radar misses lies beyond a swath, and one layer tells in how many months.
SHARED_MASKS = {"s1"}

BLOCKS = (3, 4, 6, 3)  # of ResNet-50's stages 2 to 5

Init = Callable[[Tensor], Tensor]


class Channel(NamedTuple):
    """What a channel at the entrance of a network is: a band of a step of an input, or, without a band, a mask."""

    key: str
    step: int
    band: int | None


def layout(shapes: dict[str, tuple[int, int]], masks: bool) -> list[Channel]:
    """What the channels of ``stacked`` are, in their order, from inputs of steps and bands ``shapes``."""
    channels = []
    for key, (steps, bands) in shapes.items():
        channels += [Channel(key, step, band) for step in range(steps) for band in range(bands)]
        channels += [Channel(key, step, None) for step in range(1 if key in SHARED_MASKS else steps) if masks]
    return channels


def stacked(inputs: dict[str, Tensor], valid: dict[str, Tensor], masks: bool) -> Tensor:
    """All steps and bands of all inputs as channels of one map, and their masks where ``masks``.

    Each step of an input has a mask of its own; those of Sentinel-1 are one layer, the share of the steps seen.

    Parameters
    ----------
    inputs : float (B, T, C, H, W) each, 0 where not valid.
    valid : (B, T, H, W) each, 0 to 1.

    Returns
    -------
    float (B, channels, H, W).
    """
    layers = []
    for key, values in inputs.items():
        layers.append(values.flatten(1, 2))  # (B, T*C, H, W)
        seen = valid[key].to(values.dtype)  # (B, T, H, W)
        if masks:
            layers.append(seen.mean(1, keepdim=True) if key in SHARED_MASKS else seen)  # (B, 1 or T, H, W)
    return torch.cat(layers, 1)


class Stacked(nn.Module):
    """A network over the stacked steps and bands of its inputs and over their masks: the ``parts`` of each, in a row.

    Parameters
    ----------
    shapes
        Steps and bands of each input, such as ``{"s1": (12, 2), "s2": (1, 10)}``.
    classes
        Number of classes K.
    width
        Channels w that those of all levels are in proportion to.
    as_published
        With the quirks of the published code; no masks.
    """

    multiple = 32

    def __init__(
        self, shapes: dict[str, tuple[int, int]], classes: int, width: int = 64, as_published: bool = False
    ) -> None:
        super().__init__()
        self.masks = not as_published
        self.body, self.head = self.parts(len(layout(shapes, self.masks)), classes, width, as_published)

    def parts(self, channels: int, classes: int, width: int, as_published: bool) -> tuple[nn.Module, nn.Module]:
        """Body and head: (B, channels, H, W) to features, and features to logits (B, K, H, W)."""
        raise NotImplementedError

    def forward(self, inputs: dict[str, Tensor], valid: dict[str, Tensor]) -> Tensor:
        """Logits (B, K, H, W) from inputs (B, T, C, H, W), 0 where not valid, and valid (B, T, H, W), 0 to 1."""
        return self.head(self.body(stacked(inputs, valid, self.masks)))


def fans(weight: Tensor) -> tuple[int, int]:
    """Inputs and outputs of a kernel, as Keras counts them: the two are exchanged where the kernel is transposed."""
    field = math.prod(weight.shape[2:])
    return weight.shape[1] * field, weight.shape[0] * field


def glorot_uniform(weight: Tensor) -> Tensor:
    """Fill with U(-a, a), a = sqrt(6 / (in + out)) (Glorot & Bengio 2010, section 4.2)."""
    bound = math.sqrt(6 / sum(fans(weight)))
    return nn.init.uniform_(weight, -bound, bound)


def he_normal(weight: Tensor) -> Tensor:
    """Fill with a normal of variance 2 / in, cut at two deviations (He et al. 2015, arXiv:1502.01852)."""
    return truncated_normal(weight, 2 / fans(weight)[0])


def lecun_normal(weight: Tensor) -> Tensor:
    """Fill with a normal of variance 1 / in, cut at two deviations."""
    return truncated_normal(weight, 1 / fans(weight)[0])


def glorot_normal(weight: Tensor) -> Tensor:
    """Fill with a normal of variance 2 / (in + out), cut at two deviations."""
    return truncated_normal(weight, 2 / sum(fans(weight)))


def truncated_normal(weight: Tensor, variance: float) -> Tensor:
    """Fill with a normal cut at two deviations, whose variance after the cut is ``variance``."""
    deviation = math.sqrt(variance) / 0.87962566103423978  # that of a standard normal which is cut at two
    return nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation with Keras' constants; a lone value, which has no variance, is taken as in prediction."""

    def __init__(self, channels: int, momentum: float = 0.01) -> None:
        super().__init__(channels, eps=1e-3, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if x.shape[0] * x.shape[2] * x.shape[3] > 1:
            return super().forward(x)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def conv(
    channels: int,
    width: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    rate: int = 1,
    bias: bool = True,
    init: Init = glorot_uniform,
) -> nn.Module:
    """Convolution that keeps the size, or divides it by ``stride``: (B, channels, H, W) to (B, width, H, W).

    What is missing to an even kernel is padded right and below. ``rate`` is the dilation.
    """
    missing = rate * (kernel - 1)
    before, after = missing // 2, missing - missing // 2
    padding = before if before == after else 0
    layer = nn.Conv2d(channels, width, kernel, stride, padding, rate, bias=bias)
    prepare(layer, init)
    return layer if before == after else nn.Sequential(nn.ZeroPad2d((before, after, before, after)), layer)


def deconv(channels: int, width: int, kernel: int = 2, init: Init = he_normal) -> nn.ConvTranspose2d:
    """Transposed convolution that doubles the size: (B, channels, H, W) to (B, width, 2H, 2W)."""
    layer = nn.ConvTranspose2d(channels, width, kernel, 2, kernel // 2 - 1)
    prepare(layer, init)
    return layer


def prepare(layer: nn.Conv2d | nn.ConvTranspose2d, init: Init) -> None:
    """Fill the kernel, and the bias with 0."""
    init(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Bottleneck(nn.Module):
    """Residual block of 1 x 1, 3 x 3 and 1 x 1 convolutions: (B, channels, H, W) to (B, 4*width, H, W).

    He et al. 2016, doi:10.1109/CVPR.2016.90: the stride is that of the first convolution. ``rate`` is the dilation of
    the second. Where ``project`` is false, the block's input is added as it is, and has 4*width channels.
    """

    def __init__(
        self, channels: int, width: int, *, stride: int = 1, rate: int = 1, project: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, width, stride=stride, bias=bias),
            BatchNorm(width),
            nn.ReLU(inplace=True),
            conv(width, width, 3, rate=rate, bias=bias),
            BatchNorm(width),
            nn.ReLU(inplace=True),
            conv(width, 4 * width, bias=bias),
            BatchNorm(4 * width),
        )
        shortcut = (conv(channels, 4 * width, stride=stride, bias=bias), BatchNorm(4 * width)) if project else ()
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, 4*width, H/stride, W/stride)."""
        return self.body(x).add_(self.shortcut(x)).relu_()  # no gradient needs what is overwritten


def stage(channels: int, width: int, blocks: int, *, stride: int = 2, rate: int = 1, bias: bool = False) -> nn.Module:
    """A stage of ResNet, the first of its blocks projected: (B, channels, H, W) to (B, 4*width, H/stride, W/stride)."""
    first = Bottleneck(channels, width, stride=stride, rate=rate, project=True, bias=bias)
    others = (Bottleneck(4 * width, width, rate=rate, bias=bias) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


class Encoder(nn.Module):
    """ResNet-50 that keeps the full resolution up to its first pooling, so that small things are seen.

    Parameters
    ----------
    channels
        Of the input.
    width
        Channels w of the first level.
    stages
        How many of the stages 2 to 5 there are.
    as_published
        Biases before each normalisation, which takes them off again, and a pooling without padding, whose map is half
        a pixel off.
    """

    def __init__(self, channels: int, width: int, stages: int, as_published: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            Bottleneck(channels, width, project=True, bias=as_published),
            conv(4 * width, width, 7, bias=as_published),
            BatchNorm(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=0 if as_published else 1),
        )
        before = [width, *(4 * width * 2**number for number in range(stages))]
        self.stages = nn.ModuleList(
            stage(before[number], width * 2**number, BLOCKS[number], bias=as_published) for number in range(stages)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps (B, 4w, H/4, W/4), (B, 8w, H/8, W/8), ... of stages 2, 3, ... from (B, channels, H, W)."""
        x = self.enter(x)  # (B, w, H/2, W/2), or a pixel less
        maps = []
        for each in self.stages:
            x = each(x)
            maps.append(x)
        return maps


def enlarged(x: Tensor) -> Tensor:
    """Twice the side, between pixels in proportion: (B, C, H, W) to float32 (B, C, 2 * H, 2 * W).

    Copies of a pixel, which are the other usual way, leave a lattice of their own size in every map. It is what torch's
    bilinear interpolation gives, of which on a GPU the gradient is not deterministic, and compiled in bfloat16 on the
    CPU there is none (seen with torch 2.13).
    """
    return _doubled(_doubled(x.to(torch.promote_types(x.dtype, torch.float32)), 2), 3)


def _doubled(x: Tensor, axis: int) -> Tensor:
    """Twice as long along an axis: each pixel becomes two, which lie a quarter of a pixel towards its neighbours."""
    length = x.shape[axis]
    before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, length - 1)], axis)
    after = torch.cat([x.narrow(axis, 1, length - 1), x.narrow(axis, length - 1, 1)], axis)
    pairs = [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after]
    return torch.stack(pairs, axis + 1).flatten(axis, axis + 1)
