"""A U-Net over all inputs of a tile at once: the small default network.

Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28, with padded convolutions, group normalisation and
residual blocks, so that it trains on few tiles and small batches.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from covermap.models.blocks import enlarged, layout, stacked


class Unet(nn.Module):
    """Per-pixel logits from the stacked steps and bands of every input, and from its masks.

    Each step of an input has a mask of its own; those of Sentinel-1 are one layer, the share of the steps seen.

    Parameters
    ----------
    shapes
        Steps and bands of each input, such as ``{"s1": (12, 2), "s2": (1, 10)}``.
    classes
        Number of classes K.
    width
        Channels of the first level; each further level has twice as many.
    depth
        Number of times that the resolution is halved; a side of the input is a multiple of ``2 ** depth``.
    """

    def __init__(self, shapes: dict[str, tuple[int, int]], classes: int, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.multiple = 2**depth
        widths = [width * 2**level for level in range(depth + 1)]
        self.enter = nn.Conv2d(len(layout(shapes, masks=True)), width, 1)
        self.encoder = nn.ModuleList([Block(width, width)])
        self.encoder.extend(Block(a, b) for a, b in pairwise(widths))
        self.reduce = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(Block(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, inputs: dict[str, Tensor], valid: dict[str, Tensor]) -> Tensor:
        """Logits (B, K, H, W) from inputs (B, T, C, H, W), 0 where not valid, and valid (B, T, H, W), 0 to 1."""
        x = self.enter(stacked(inputs, valid, masks=True))  # (B, width, H, W)
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(nn.functional.max_pool2d(x, 2) if level else x)  # (B, width*2^level, H/2^level, W/2^level)
            skips.append(x)
        for level in reversed(range(len(self.decoder))):
            x = enlarged(self.reduce[level](x))  # (B, width*2^level, H/2^level, W/2^level)
            x = self.decoder[level](torch.cat([skips[level], x], 1))
        return self.head(x)  # (B, K, H, W)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a projected shortcut."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.GroupNorm(min(8, width), width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.GroupNorm(min(8, width), width),
        )
        self.shortcut = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H, W)."""
        return nn.functional.relu(self.body(x) + self.shortcut(x))
