"""Other views of the same tiles, made on the device from the integers of a batch.

Every function takes and gives batches as ``loader.load`` delivers them: s1 and terrain int16 and s2 int32 (B, T, C, H,
W), ``day`` int16 (B, T, H, W), ``label`` and ``weight`` uint8 (B, H, W), or (B,) of patches, which stay as they are.
What is no data stays no data, and what is data stays data, unless a step or sensor is dropped. Labels are moved with
the pixels that they belong to, and never mixed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from covermap.inputs import DAY, NODATA, SATELLITES
from covermap.model_settings import Augment

Batch = dict[str, Tensor]

STEPS = {"s1": 100, "s2": 10_000}  # integers a dB, and for a reflectance of 1
RANGE = {"s1": (-32767, 32767), "s2": (1, 65535)}  # of what is data


def symmetry(batch: Batch, number: int) -> Batch:
    """One of the eight symmetries of the square, for inputs, days, labels and weights together.

    Labels and weights of patches (B,) have no sides, and stay.
    """
    turned = {key: torch.rot90(values, number % 4, (-2, -1)) for key, values in batch.items() if values.ndim > 1}
    return {**batch, **{key: values.flip(-1) if number >= 4 else values for key, values in turned.items()}}


def generator(device: torch.device, *seeds: int) -> torch.Generator:
    """Random numbers of a device that depend on ``seeds`` alone: those of the model, epoch and step."""
    state = int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state >> 1)


def vary(
    batch: Batch,
    settings: Augment,
    inputs: Collection[str],
    random: torch.Generator,
    categories: Mapping[str, Sequence[int]] | None = None,
) -> Batch:
    """The batch as another place, light, moisture, noise and clouds could have made it; unchanged where all is off.

    Parameters
    ----------
    inputs : keys of the batch that the network sees.
    random : of the batch's device.
    categories : channels of inputs that hold classes, as ``inputs.categories_of`` gives them.
    """
    if settings.rotate_deg or settings.crop < 1:
        batch = resampled(batch, *turns(batch, settings, random), categories or {})
    satellites = [key for key in SATELLITES if key in inputs]
    varied = {key: VARIED[key](batch[key], settings, random) for key in satellites}
    batch = {**batch, **varied}
    if settings.drop_sensors:
        batch = drop_sensors(batch, settings.drop_sensors, satellites, random)
    if settings.drop_dates:
        batch = drop_dates(batch, settings.drop_dates, satellites, random)
    return _weighed(batch, satellites) if settings.drop_sensors or settings.drop_dates else batch


def turns(batch: Batch, settings: Augment, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """An angle [radians] and a share of the side (B,) for each tile, and where its middle comes from (B, 2), -1 to 1.

    ASSUME: what is cut out has the shape of the image, since pixels on the ground are square.
    """
    tiles, device = len(batch["label"]), batch["label"].device
    lots = torch.rand(4, tiles, generator=random, device=device)
    angle = math.radians(settings.rotate_deg) * (2 * lots[0] - 1)
    side = (settings.crop + (1 - settings.crop) * lots[1]).sqrt()  # shares of the area are alike likely
    return angle, side, ((1 - side) * (2 * lots[2:] - 1)).T


def resampled(
    batch: Batch, angle: Tensor, side: Tensor, middle: Tensor, categories: Mapping[str, Sequence[int]]
) -> Batch:
    """The batch cut out, turned and enlarged, all steps, days, labels and weights of a tile alike.

    What comes from outside of a tile is no data, has no label and no weight: mirrored fields would be taught as real.
    """
    moved = {}
    for key, values in batch.items():
        if values.ndim < 3:  # of patches
            moved[key] = values
            continue
        places = _places(angle, side, middle, *values.shape[-2:])
        if key in NODATA:
            moved[key] = _between(values, places, NODATA[key], categories.get(key, ()))
        else:
            moved[key] = _nearest(values, places)
    return moved


def _places(angle: Tensor, side: Tensor, middle: Tensor, height: int, width: int) -> Tensor:
    """Where each pixel comes from, x and y: (B, H, W, 2), -1 to 1 from edge to edge, as ``grid_sample`` has them."""
    y, x = ((torch.arange(size, device=angle.device) + 0.5) * 2 / size - 1 for size in (height, width))
    x = (side[:, None, None] * x[None, None, :] + middle[:, 0, None, None]) * width  # (B, 1, W), in half pixels
    y = (side[:, None, None] * y[None, :, None] + middle[:, 1, None, None]) * height  # (B, H, 1)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return torch.stack([(cos * x - sin * y) / width, (sin * x + cos * y) / height], -1)


def _between(values: Tensor, places: Tensor, nodata: int, categories: Sequence[int]) -> Tensor:
    """Integers (B, T, C, H, W) at places between pixels, by those of the four around that are data.

    A pixel is data where the nearest one is: gaps keep their size, and agree with days and labels. Classes are those
    of the nearest.
    """
    there = (values != nodata).float().flatten(1, 2)  # (B, T*C, H, W)
    total = grid_sample(values.flatten(1, 2) * there, places, "bilinear", align_corners=False)
    share = grid_sample(there, places, "bilinear", align_corners=False)
    mixed = (total / share.clamp(min=1e-6)).round().to(values.dtype)
    data = grid_sample(there, places, "nearest", align_corners=False) > 0
    out = torch.where(data, mixed, nodata).view(values.shape)
    for channel in categories:
        out[:, :, channel] = _nearest(values[:, :, channel].int() - nodata, places) + nodata
    return out


def _nearest(values: Tensor, places: Tensor) -> Tensor:
    """Integers (B, ..., H, W) of the nearest pixel, 0 from outside; exact up to 2 ** 24."""
    planes = values.flatten(1, -3) if values.ndim > 3 else values[:, None]  # (B, N, H, W)
    return grid_sample(planes.float(), places, "nearest", align_corners=False).to(values.dtype).view(values.shape)


def reflectance(values: Tensor, settings: Augment, random: torch.Generator) -> Tensor:
    """Integers of s2 of which each step of each tile got its own gain and offset, and each value its own noise.

    ASSUME: light and haze change all bands of a step alike; what tells classes apart is how bands compare.
    """
    if not (settings.reflectance_gain or settings.reflectance_offset or settings.reflectance_noise):
        return values
    gain = 1 + settings.reflectance_gain * _lots(values, random)
    changed = values * gain + STEPS["s2"] * settings.reflectance_offset * _lots(values, random)
    return _as_integers(values, changed, "s2", settings.reflectance_noise, random)


def backscatter(values: Tensor, settings: Augment, random: torch.Generator) -> Tensor:
    """Integers of s1 of which each step of each tile was shifted by its own dB, and each value got its own noise."""
    if not (settings.backscatter_shift_db or settings.backscatter_noise_db):
        return values
    changed = values + STEPS["s1"] * settings.backscatter_shift_db * _lots(values, random)
    return _as_integers(values, changed, "s1", settings.backscatter_noise_db, random)


VARIED = {"s1": backscatter, "s2": reflectance}


def _lots(values: Tensor, random: torch.Generator) -> Tensor:
    """A number from -1 to 1 for each step of each tile: (B, T, 1, 1, 1)."""
    shape = (*values.shape[:2], 1, 1, 1)
    return 2 * torch.rand(shape, generator=random, device=values.device) - 1


def _as_integers(values: Tensor, changed: Tensor, key: str, noise: float, random: torch.Generator) -> Tensor:
    """``changed`` with noise of a standard deviation, as integers where ``values`` are data."""
    if noise:
        changed = changed + STEPS[key] * noise * torch.randn(values.shape, generator=random, device=values.device)
    return torch.where(values != NODATA[key], changed.round().clamp(*RANGE[key]).to(values.dtype), values)


def drop_sensors(batch: Batch, share: float, satellites: Sequence[str], random: torch.Generator) -> Batch:
    """Without one of two sensors in a share of the tiles, where the other saw any pixel."""
    tiles, device = len(batch["label"]), batch["label"].device
    lost = torch.rand(tiles, generator=random, device=device) < share  # (B,)
    first = torch.rand(tiles, generator=random, device=device) < 0.5
    seen = [_seen(batch, key).flatten(1).any(1) for key in satellites]  # (B,) each
    for key, other, turn in zip(satellites, seen[::-1], (first, ~first), strict=True):
        batch = drop(batch, key, (lost & turn & other)[:, None].expand(batch[key].shape[:2]))
    return batch


def drop_dates(batch: Batch, share: float, satellites: Sequence[str], random: torch.Generator) -> Batch:
    """Without a share of the steps of each sensor; of those in which it saw anything, one is always kept."""
    for key in satellites:
        seen = (batch[key] != NODATA[key]).any(2)  # (B, T, H, W)
        if key == "s2" and DAY in batch:
            seen = seen & (batch[DAY] > 0)  # what was filled in is no observation
        lot = torch.rand(seen.shape[:2], generator=random, device=seen.device)
        kept = torch.where(seen.flatten(2).any(2), lot, -1).argmax(1, keepdim=True)  # (B, 1)
        batch = drop(batch, key, (lot < share).scatter(1, kept, False))
    return batch


def drop(batch: Batch, key: str, steps: Tensor) -> Batch:
    """No data in all channels of the steps of an input where ``steps``, bool (B, T); their days go with those of s2."""
    dropped = {key: batch[key].masked_fill(steps[:, :, None, None, None], NODATA[key])}
    if key == "s2" and DAY in batch:
        dropped[DAY] = batch[DAY].masked_fill(steps[:, :, None, None], 0)
    return {**batch, **dropped}


def _weighed(batch: Batch, satellites: Sequence[str]) -> Batch:
    """Weight 0 where no satellite is left that saw a pixel, as in the store: the label stays."""
    seen = torch.stack([_seen(batch, key) for key in satellites]).any(0)
    return {**batch, "weight": batch["weight"].masked_fill(~seen, 0)}


def _seen(batch: Batch, key: str) -> Tensor:
    """Where an input was observed at least once: bool (B, H, W)."""
    return (batch[key] != NODATA[key]).flatten(1, 2).any(1)
