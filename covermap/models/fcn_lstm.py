"""FCN and FCN+LSTM: land cover and its change from several dates of Sentinel-2.

Sefrin, Riese, Keller 2021, doi:10.3390/rs13010078: a U-Net on VGG-19 sees one date, and a bidirectional convolutional
LSTM puts together what it says of several. Layer by layer as in the authors' code, doi:10.5281/zenodo.4289079, whose
U-Net is that of segmentation_models 1.0.1 for Keras.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from covermap.errors import ModelError
from covermap.models.blocks import BatchNorm, conv, enlarged
from covermap.models.convlstm import ConvLSTM, hard_sigmoid
from covermap.models.outputs import Output

# Channels, in units of the first level's, and convolutions of each level of VGG-19: configuration E of Simonyan &
# Zisserman 2015, arXiv:1409.1556.
VGG19 = ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4))
LEAST_SCORE = 1e-7  # of a class: Keras' epsilon

he_uniform = partial(nn.init.kaiming_uniform_, nonlinearity="relu")


class Fcn(nn.Module):
    """Logits of every date, each from that date alone, by a U-Net with the encoder of VGG-19.

    All dates share the network, so that each is a sample of its own, and a map is a vote over them.

    Parameters
    ----------
    shapes
        Steps and bands of ``s2``; other numbers of steps may be given later.
    classes
        Number of classes K.
    width
        Channels of the first level of the encoder; a side of the input is a multiple of 32.
    voting
        How the dates make one map: by the "mean" of their probabilities, or by the "majority" of their best classes.
    as_published
        Without the mask of the date as a further channel, and enlarged by copies of pixels.
    """

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        classes: int,
        width: int = 64,
        voting: str = "mean",
        as_published: bool = False,
    ) -> None:
        super().__init__()
        self.multiple, self.voting, self.masks = 32, voting, not as_published
        self.enlarge = partial(interpolate, scale_factor=2) if as_published else enlarged
        encoded = [width * times for times, _ in VGG19]
        decoded = [4 * width, 2 * width, width, width // 2, width // 4]
        entering = [shapes["s2"][1] + self.masks, *encoded[:-1]]
        coarser, skips = [encoded[-1], *decoded[:-1]], [*encoded[:0:-1], 0]  # the finest level has no skip
        self.encoder = nn.ModuleList(
            level(above, own, number) for above, own, (_, number) in zip(entering, encoded, VGG19, strict=True)
        )
        self.centre = pair(encoded[-1], encoded[-1])
        self.decoder = nn.ModuleList(pair(a + b, own) for a, b, own in zip(coarser, skips, decoded, strict=True))
        self.head = conv(decoded[-1], classes, 3)

    def forward(self, inputs: dict[str, Tensor], valid: dict[str, Tensor]) -> list[Output]:
        """What each date says, from inputs (B, T, C, H, W), 0 where not valid, and valid (B, T, H, W), 0 to 1."""
        logits, seen = self.of_dates(inputs["s2"], valid["s2"]).unbind(1), valid["s2"].unbind(1)
        return [Output(one, 1 / len(logits), mask) for one, mask in zip(logits, seen, strict=True)]

    def of_dates(self, values: Tensor, seen: Tensor) -> Tensor:
        """Logits (B, T, K, H, W) of values (B, T, C, H, W) and where they were seen (B, T, H, W)."""
        x = torch.cat([values, seen[:, :, None].to(values.dtype)], 2) if self.masks else values
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)  # (B*T, C or C + 1, H, W)
        skips = []
        for convolutions in self.encoder:
            skips.append(convolutions(x))  # (B*T, width*times, H/2^level, W/2^level)
            x = max_pool2d(skips[-1], 2)
        x = self.centre(x)  # (B*T, 8*width, H/32, W/32)
        for convolutions, skip in zip(self.decoder, [*skips[:0:-1], None], strict=True):
            x = self.enlarge(x)  # (B*T, channels, H/2^level, W/2^level)
            x = convolutions(x if skip is None else torch.cat([x, skip], 1))
        return self.head(x).unflatten(0, values.shape[:2])  # (B, T, K, H, W)


class FcnLstm(nn.Module):
    """Logits from all dates together: those of the FCN, read forwards and backwards by a ConvLSTM.

    Parameters
    ----------
    shapes
        Steps and bands of ``s2``; other numbers of steps may be given later, in the order of time.
    classes
        Number of classes K.
    width
        Channels of the first level of the FCN's encoder; a side of the input is a multiple of 32.
    draw
        So many dates are drawn in each training step, the same ones for the whole batch, and kept in their order: by
        the generator of the CPU, which all devices seed alike.
    as_published
        K states, which are the scores: a softmax over the classes is the activation, hard sigmoids are the gates, and
        dates that were not seen count like others. Else the state is wider, its activation is tanh, a 1 x 1
        convolution makes logits of it, and a date changes it only where it was seen.

    Raises
    ------
    ModelError
        More dates are to be drawn than there are.
    """

    starts = "fcn"  # what a trained FCN fills

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        classes: int,
        width: int = 64,
        draw: int | None = None,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if draw is not None and draw > shapes["s2"][0]:
            raise ModelError(
                f"option draw is {draw}, but Sentinel-2 has {shapes['s2'][0]} dates: lower it, or leave it out"
            )
        self.multiple, self.draw, self.as_published = 32, draw, as_published
        self.fcn = Fcn(shapes, classes, width, as_published=as_published)
        if as_published:
            lstm = partial(ConvLSTM, classes, classes, activation=partial(torch.softmax, dim=1), gate=hard_sigmoid)
        else:
            hidden = max(classes, width // 4)
            lstm = partial(ConvLSTM, classes, hidden)
            self.head = conv(hidden, classes)
        self.forwards, self.backwards = lstm(), lstm(backwards=True)

    def forward(self, inputs: dict[str, Tensor], valid: dict[str, Tensor]) -> Tensor:
        """Logits (B, K, H, W) from inputs (B, T, C, H, W), 0 where not valid, and valid (B, T, H, W), 0 to 1."""
        values, seen = inputs["s2"], valid["s2"]
        if self.training and self.draw is not None:
            dates = torch.randperm(values.shape[1])[: self.draw].sort().values.to(values.device)
            values, seen = values[:, dates], seen[:, dates]  # (B, draw, C, H, W), (B, draw, H, W)
        x = self.fcn.of_dates(values, seen)  # (B, T, K, H, W)
        mask = None if self.as_published else seen
        state = (self.forwards(x, mask) + self.backwards(x, mask)) / 2  # (B, hidden, H, W)
        return log_scores(state) if self.as_published else self.head(state)


def log_scores(scores: Tensor) -> Tensor:
    """Logarithms of each pixel's scores (B, K, H, W), made to sum up to 1 and clipped as Keras' cross-entropy does.

    Their softmax is the scores again, so that a cross-entropy of logits is the published loss.
    """
    scores = scores.float()
    shares = scores / scores.sum(1, keepdim=True).clamp(min=LEAST_SCORE)  # all may be 0 where an output gate is shut
    return shares.clamp(LEAST_SCORE, 1 - LEAST_SCORE).log()


def level(channels: int, width: int, convolutions: int) -> nn.Sequential:
    """Convolutions of VGG-19 at one resolution: (B, channels, H, W) to (B, width, H, W)."""
    layers: list[nn.Module] = []
    for number in range(convolutions):
        layers += [conv(width if number else channels, width, 3), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def pair(channels: int, width: int) -> nn.Sequential:
    """Two normalised convolutions of the decoder: (B, channels, H, W) to (B, width, H, W)."""
    layers: list[nn.Module] = []
    for entering in (channels, width):
        convolution = conv(entering, width, 3, bias=False, init=he_uniform)
        layers += [convolution, BatchNorm(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
