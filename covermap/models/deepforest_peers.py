"""What DeepForest was compared with: a U-Net of wide kernels, and a DeepLab (doi:10.3390/rs14195000)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from covermap.models.blocks import (
    BLOCKS,
    BatchNorm,
    Encoder,
    Stacked,
    conv,
    deconv,
    glorot_normal,
    lecun_normal,
    prepare,
    stage,
)


class WideUnet(Stacked):
    """The U-Net: six levels of 6 x 6 convolutions.

    The fourth and fifth level have w channels, the others 1/8, 1/2, 1/2 and, the lowest, 2 times as many. As published
    it ends in a sigmoid of each class. Keras' cross-entropy divides its outputs by their sum, so their logarithms are
    the logits of the published loss; the best class is the same with and without it.
    """

    def parts(self, channels: int, classes: int, width: int, as_published: bool) -> tuple[nn.Module, nn.Module]:
        """All levels, and what the scores become."""
        body = SixLevels(channels, classes, width, as_published)
        return body, nn.LogSigmoid() if as_published else nn.Identity()


class SixLevels(nn.Module):
    """The body of ``WideUnet``.

    Where ``as_published``, the lowest level is joined with itself, and the first level never; biases before each
    normalisation.
    """

    def __init__(self, channels: int, classes: int, width: int, as_published: bool) -> None:
        super().__init__()
        self.skips = [5, 4, 3, 2, 1, None] if as_published else [None, 4, 3, 2, 1, 0]  # levels that each step up takes
        levels = [width // 8, width // 2, width // 2, width, width, 2 * width]
        rising = [width // 2, width // 2, width, width, 2 * width]
        self.encoder = nn.ModuleList(level(a, b, as_published) for a, b in pairwise([channels, *levels]))
        joined = [0 if skip is None else levels[skip] for skip in self.skips]
        self.decoder = nn.ModuleList(
            nn.Sequential(
                conv(a + skip, b, 6, init=lecun_normal), nn.ReLU(inplace=True), deconv(b, b, 6, init=lecun_normal)
            )
            for a, b, skip in zip([levels[-1], *rising], rising, joined, strict=False)
        )
        self.leave = nn.ConvTranspose2d(rising[-1] + joined[-1], classes, 6, padding=2)
        prepare(self.leave, glorot_normal)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, K, H, W)."""
        maps = []
        for number, each in enumerate(self.encoder):
            x = each(nn.functional.max_pool2d(x, 2) if number else x)  # (B, channels, H/2^number, W/2^number)
            maps.append(x)
        for each, skip in zip([*self.decoder, self.leave], self.skips, strict=True):
            x = x if skip is None else torch.cat([x, maps[skip]], 1)  # (B, channels + skipped, H, W)
            x = each(x)  # (B, channels, 2H, 2W), of the last one (B, K, H + 1, W + 1)
        return x[:, :, :-1, :-1]


def level(channels: int, width: int, bias: bool) -> nn.Module:
    """Two 6 x 6 convolutions, the second of them dilated: (B, channels, H, W) to (B, width, H, W)."""
    return nn.Sequential(
        conv(channels, width, 6, bias=bias, init=lecun_normal),
        BatchNorm(width, momentum=0.1),
        nn.ReLU(inplace=True),
        conv(width, width, 6, rate=2, bias=bias, init=lecun_normal),
        BatchNorm(width, momentum=0.1),
        nn.ReLU(inplace=True),
    )


class DeepLab(Stacked):
    """The DeepLab: three complete last stages of ResNet-50 side by side, dilated 6, 12 and 18 times."""

    multiple = 8

    def parts(self, channels: int, classes: int, width: int, as_published: bool) -> tuple[nn.Module, nn.Module]:
        """The encoder with its three last stages, and logits enlarged to the full size."""
        body = Atrous(channels, classes, width, as_published)
        enlarge = nn.Upsample(scale_factor=8, mode="bilinear", align_corners=False)
        return body, nn.Sequential(conv(classes + 3 * 32 * width, classes), enlarge)


class Atrous(nn.Module):
    """The body of ``DeepLab``: (B, channels, H, W) to (B, K + 96w, H/8, W/8)."""

    def __init__(self, channels: int, classes: int, width: int, as_published: bool) -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, 2, as_published)
        self.fourth = stage(8 * width, 4 * width, BLOCKS[2], stride=1, rate=2, bias=as_published)
        self.fifth = nn.ModuleList(
            nn.Sequential(
                stage(16 * width, 8 * width, BLOCKS[3], stride=1, rate=rate, bias=as_published), nn.Dropout(0.5)
            )
            for rate in (6, 12, 18)
        )
        self.direct = conv(16 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The scores of stage 4 and the three maps of stage 5."""
        x = self.fourth(self.encoder(x)[-1])  # (B, 16w, H/8, W/8)
        return torch.cat([self.direct(x), *(fifth(x) for fifth in self.fifth)], 1)
