"""DeepForest: a ResNet-50 whose scales a ConvLSTM joins (Cherif, Hell & Brandmeier 2022, doi:10.3390/rs14195000).

The maps of two stages are brought to one size and read as the two steps of a sequence, the deep one first.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from covermap.models.blocks import (
    BLOCKS,
    BatchNorm,
    Encoder,
    Stacked,
    conv,
    deconv,
    enlarged,
    he_normal,
    layout,
    stacked,
    stage,
)
from covermap.models.convlstm import ConvLSTM, Function, hard_sigmoid
from covermap.models.deepforest_peers import SixLevels
from covermap.models.outputs import Output

SHARES = {"fused": 1.0, "s1": 0.3, "s2": 0.7}  # of the loss, of a network with two branches


class DeepForest1a(Stacked):
    """One fusion, of stages 4 and 5. As published, its ConvLSTM has hard sigmoids."""

    def parts(self, channels: int, classes: int, width: int, as_published: bool) -> tuple[nn.Module, nn.Module]:
        """The encoder with its fusion, and deconvolutions up to the full size."""
        body = OneFusion(channels, width, as_published)
        head = rising(2 * width, 4 * width, [2 * width, 2 * width])
        return body, nn.Sequential(*head, conv(2 * width, classes))


class DeepForest1b(Stacked):
    """Two fusions, of stages 3 and 4, and of the outcome and stage 5. As published, with hard sigmoids."""

    def parts(self, channels: int, classes: int, width: int, as_published: bool) -> tuple[nn.Module, nn.Module]:
        """The encoder with its fusions, and a deconvolution to the full size."""
        body = TwoFusions(channels, width, as_published)
        return body, nn.Sequential(*rising(2 * width, 2 * width, [2 * width]), conv(2 * width, classes))


class DeepForest1c(Stacked):
    """``DeepForest1b`` with dilated convolutions side by side as its head."""

    def parts(self, channels: int, classes: int, width: int, as_published: bool) -> tuple[nn.Module, nn.Module]:
        """The encoder with its fusions, and the convolutions."""
        return TwoFusions(channels, width, as_published), Pyramid(2 * width, classes)


class OneFusion(nn.Module):
    """Stages 4 and 5 of the encoder, joined: (B, channels, H, W) to (B, 2w, H/4, W/4)."""

    def __init__(self, channels: int, width: int, as_published: bool) -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, 4, as_published)
        shallow, deep = enlarge(16 * width, 4 * width, 2), enlarge(32 * width, 4 * width, 3)
        self.fusion = Fusion(shallow, deep, 4 * width, 2 * width, as_published)

    def forward(self, x: Tensor) -> Tensor:
        """State of the ConvLSTM."""
        _, _, fourth, fifth = self.encoder(x)
        return self.fusion(fourth, fifth)


class TwoFusions(nn.Module):
    """Stages 3 and 4 of the encoder joined, and the outcome with stage 5: (B, channels, H, W) to (B, 2w, H/2, W/2)."""

    def __init__(self, channels: int, width: int, as_published: bool) -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, 4, as_published)
        shallow, deep = enlarge(8 * width, 4 * width, 1), enlarge(16 * width, 4 * width, 2)
        self.first = Fusion(shallow, deep, 4 * width, 2 * width, as_published)
        shallow, deep = enlarge(4 * width, 2 * width, 1), enlarge(32 * width, 2 * width, 4)
        shallow = nn.Sequential(conv(2 * width, 4 * width, 3), nn.ReLU(inplace=True), *shallow)
        self.second = Fusion(shallow, deep, 2 * width, 2 * width, as_published)

    def forward(self, x: Tensor) -> Tensor:
        """State of the second ConvLSTM."""
        _, third, fourth, fifth = self.encoder(x)
        return self.second(self.first(third, fourth), fifth)


class Fusion(nn.Module):
    """A ConvLSTM that reads a deep map, then a shallow one, each brought to (B, channels, H, W): (B, hidden, H, W)."""

    def __init__(self, shallow: nn.Module, deep: nn.Module, channels: int, hidden: int, as_published: bool) -> None:
        super().__init__()
        self.shallow, self.deep = shallow, deep
        self.memory = ConvLSTM(channels, hidden, gate=gate_of(as_published), backwards=True, init=he_normal)

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        """State (B, hidden, H, W)."""
        return self.memory(torch.stack([self.shallow(shallow), self.deep(deep)], 1))  # (B, 2, channels, H, W)


def gate_of(as_published: bool) -> Function:
    """Of a ConvLSTM: Keras' default was the hard sigmoid, whose gradient is 0 beyond 2.5."""
    return hard_sigmoid if as_published else torch.sigmoid


def enlarge(channels: int, width: int, times: int) -> nn.Sequential:
    """Deconvolutions on the way to a ConvLSTM: (B, channels, H, W) to (B, width, 2^times H, 2^times W)."""
    steps = [deconv(width if number else channels, width) for number in range(times)]
    return nn.Sequential(*steps, nn.Dropout(0.5))


def rising(channels: int, width: int, widths: list[int]) -> nn.Sequential:
    """A 3 x 3 convolution to ``width`` and deconvolutions, linear, to ``widths``, each of which doubles the size."""
    before = [width, *widths[:-1]]
    steps = [deconv(a, b) for a, b in zip(before, widths, strict=True)]
    return nn.Sequential(conv(channels, width, 3), nn.ReLU(inplace=True), *steps)


class Pyramid(nn.Module):
    """Four linear convolutions side by side: (B, channels, H, W) to logits (B, K, 2H, 2W)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv(channels, classes), *(conv(channels, channels, 3, rate=rate) for rate in (6, 12, 18))]
        )
        self.join = conv(classes + 3 * channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, K, 2H, 2W)."""
        x = self.join(torch.cat([branch(x) for branch in self.branches], 1))  # (B, K, H, W)
        return enlarged(x)


class TwoBranches(nn.Module):
    """A ConvLSTM over Sentinel-1, a network over Sentinel-2, and a head on each and on both.

    Parameters
    ----------
    shapes, classes, width
        As in :class:`covermap.models.blocks.Stacked`.
    branch
        Of Sentinel-2: (B, channels, H, W) to (B, features, H, W).
    features
        Channels that it gives.
    as_published
        No masks; the ConvLSTM with hard sigmoids and ReLU, whose state has no bound. Else it leaves its state as it is
        where a month was not seen.
    """

    multiple = 32

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        classes: int,
        width: int,
        branch: nn.Module,
        features: int,
        as_published: bool,
    ) -> None:
        super().__init__()
        self.masks = not as_published
        self.s1 = ConvLSTM(
            shapes["s1"][1],
            width,
            activation=torch.relu if as_published else torch.tanh,
            gate=gate_of(as_published),
            dropout=0.2,
            recurrent_dropout=0.2,
            init=he_normal,
        )
        self.s2 = branch
        self.s1_head = conv(width, classes)
        self.s2_head = conv(features, classes)
        self.fused_head = conv(features + width, classes)

    def forward(self, inputs: dict[str, Tensor], valid: dict[str, Tensor]) -> list[Output]:
        """Logits (B, K, H, W) of both together, which make the map, and of each, with their shares of the loss.

        Those of each are there in validation too, so that its loss is that of training. The inputs are (B, T, C, H, W),
        0 where not valid, and valid (B, T, H, W), 0 to 1.
        """
        state = self.s1(inputs["s1"], valid["s1"] if self.masks else None)  # (B, width, H, W)
        features = self.s2(stacked({"s2": inputs["s2"]}, valid, self.masks))  # (B, features, H, W)
        fused = self.fused_head(torch.cat([features, state], 1))  # (B, K, H, W)
        logits = {"fused": fused, "s1": self.s1_head(state), "s2": self.s2_head(features)}
        return [Output(logits[name], share, votes=name == "fused") for name, share in SHARES.items()]


class DeepForest2a(TwoBranches):
    """Two branches, Sentinel-2's the U-Net :class:`covermap.models.deepforest_peers.SixLevels`.

    Its K maps are the features. Parameters as of ``TwoBranches``.
    """

    def __init__(
        self, shapes: dict[str, tuple[int, int]], classes: int, width: int = 64, as_published: bool = False
    ) -> None:
        channels = len(layout({"s2": shapes["s2"]}, masks=not as_published))
        unet = SixLevels(channels, classes, width, as_published)
        super().__init__(shapes, classes, width, unet, classes, as_published)


class DeepForest2b(TwoBranches):
    """Two branches, Sentinel-2's a DeepForest.

    Parameters
    ----------
    shapes, classes, width
        As in :class:`covermap.models.blocks.Stacked`.
    branch
        ``1b`` as the paper's text says, or ``1a`` as the published code has it.
    as_published
        As in ``TwoBranches``; and stage 5 of branch ``1a`` follows its enlarged stage 4.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        classes: int,
        width: int = 64,
        branch: Literal["1a", "1b"] = "1b",
        as_published: bool = False,
    ) -> None:
        channels = len(layout({"s2": shapes["s2"]}, masks=not as_published))
        body: nn.Module
        if branch == "1b":
            body, rise = TwoFusions(channels, width, as_published), rising(2 * width, 2 * width, [width])
        else:
            body = (ChainedFusion if as_published else OneFusion)(channels, width, as_published)
            rise = rising(2 * width, 4 * width, [2 * width, width])
        super().__init__(shapes, classes, width, nn.Sequential(body, rise), width, as_published)


class ChainedFusion(nn.Module):
    """Stage 4, enlarged, and stage 5 of that map, joined: (B, channels, H, W) to (B, 2w, H/4, W/4)."""

    def __init__(self, channels: int, width: int, as_published: bool) -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, 3, as_published)
        self.enlarge = enlarge(16 * width, 4 * width, 2)
        deep = nn.Sequential(
            stage(4 * width, 8 * width, BLOCKS[3], bias=as_published),
            *enlarge(32 * width, 4 * width, 1),
            BatchNorm(4 * width),
            nn.ReLU(inplace=True),
        )
        self.fusion = Fusion(nn.Identity(), deep, 4 * width, 2 * width, as_published)

    def forward(self, x: Tensor) -> Tensor:
        """State of the ConvLSTM."""
        fourth = self.enlarge(self.encoder(x)[-1])  # (B, 4w, H/4, W/4)
        return self.fusion(fourth, fourth)
