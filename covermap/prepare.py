"""What training begins with: tiles that can be learned from, their statistics, and a network for them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from covermap.checkpoint import State, new_state, not_finite
from covermap.errors import CoverageError, ModelError
from covermap.inputs import KEYS, SATELLITES, Meaning
from covermap.loader import batches
from covermap.losses import class_weights
from covermap.model_settings import Model
from covermap.models.normalise import Normalised, channel_statistics
from covermap.store import TileStore
from covermap.trained import build
from covermap.weights import start_weights

Shapes = dict[str, tuple[int, int]]


def digest(files: list[Path]) -> str:
    """BLAKE2b digest of the content of files, in their order."""
    total = hashlib.blake2b()
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest()


def first_state(
    training: TileStore, pixels: np.ndarray, model: Model, shapes: Shapes, meaning: Meaning, start: Path | None
) -> State:
    """The network as it is before the first step, on the CPU."""
    torch.manual_seed(model.seed)
    net = build(model, shapes, pixels.shape[1], meaning)
    must_divide(next(iter(training.kinds().values()))[1][-1], net)
    class_weight = prepare(net, training, pixels, model)
    if start is not None and model.start_from is not None:
        start_weights(net, start, model.start_from)
    must_be_finite(net, start)
    return new_state(net, class_weight, model.training)


def input_shapes(tile: dict[str, np.ndarray], model: Model) -> Shapes:
    """Steps and bands (T, C) of each input of the model, as found in a tile: without its indices."""
    keys = [KEYS[sensor] for sensor in model.sensors]
    shapes = {key: (tile[key].shape[0], tile[key].shape[1]) for key in keys}
    if model.training.augment.drop_dates and all(shapes[key][0] == 1 for key in keys if key in SATELLITES):
        raise ModelError(
            f"training.augment.drop_dates is {model.training.augment.drop_dates}, but every input has one step alone: "
            "set it to 0, or composite.every to month or scene"
        )
    return shapes


def labelled_pixels(training: TileStore, classes: int) -> np.ndarray:
    """Labelled pixels of each class in each training tile: int64 (N, K)."""
    pixels = training.table[[f"class_{i}" for i in range(1, classes + 1)]].to_numpy(np.int64)
    if not pixels.any():
        raise CoverageError("no training tile has a labelled pixel: check the labels, their legend and the area")
    return pixels


def must_choose(validation: TileStore, classes: int, min_pixels: int) -> None:
    """Refuse validation tiles, read without their inputs, that cannot tell which epoch is the best."""
    pixels = np.zeros(classes, np.int64)  # of each class that have a weight, as the scores count them
    for number in range(len(validation)):
        tile = validation[number]
        pixels += np.bincount(tile["label"][tile["weight"] > 0], minlength=256)[1 : classes + 1]
    most = pixels.max(initial=0)
    if not most:
        raise CoverageError(
            f"no pixel of the {len(validation)} validation tiles counts, so the best epoch cannot be told: raise "
            "tiles.validation, lessen tiles.cell_pixels, or label a larger area"
        )
    if most < min_pixels:
        raise CoverageError(
            f"training.min_pixels is {min_pixels}, but no class has more than {most} validation pixels that count: "
            "lower it"
        )


def must_divide(side: int, net: Normalised) -> None:
    """Refuse tiles of so many pixels a side, if the network cannot take them."""
    multiple = getattr(net.network, "multiple", 1)
    if side % multiple:
        raise ModelError(
            f"tiles are {side} px a side, but the network takes multiples of {multiple} px: change tiles.pixels, or "
            "choose a network or options that take them"
        )


def must_be_finite(net: Normalised, start: Path | None) -> None:
    """Refuse weights and statistics that would make every loss NaN."""
    if name := not_finite(net):
        source = start if start and name.startswith("network.") else "the statistics of the training tiles"
        raise ModelError(f"{name} of the network is not finite before the first step: {source} cannot be used")


def prepare(net: Normalised, training: TileStore, pixels: np.ndarray, model: Model) -> Tensor:
    """Set the normalisation and the priors from the training split; return the class weights of the loss (K,).

    ASSUME: drawing tiles of rare classes more often changes how often classes are seen, not what they look like, so
    their priors are corrected like those that the weights of the loss change. So are those of classes whose pixels
    weigh less than others', or nothing, as where radar layover hides more of the classes of mountains. Losses of
    overlap alone learn no priors: nothing is taken back from their logits.

    Parameters
    ----------
    pixels : labelled ones of each class in each tile (N, K).
    """
    memory, trust = training.empty(16), np.zeros((2, pixels.shape[1]))
    parts = (training.batch(numbers, memory) for numbers in batches(np.arange(len(training)), 16))
    parts = (add_trust(trust, part) for part in parts)
    for key, (mean, std) in channel_statistics(parts, net.pairs, net.any_steps).items():
        net.get_buffer(f"{key}_mean").copy_(torch.from_numpy(mean))
        net.get_buffer(f"{key}_std").copy_(torch.from_numpy(std))
    if not trust[0].any():
        raise CoverageError("all labelled training pixels have the weight 0: check the masks and weights of the labels")
    often = pixels * training.table.sampling.to_numpy(np.float64)[:, None]  # as the loss sees them in an epoch
    there, seen = pixels.sum(0), often.sum(0)
    weights = torch.from_numpy(class_weights(often, model.class_weights, model.training.weight_cap))
    if not model.training.of_overlap_alone:
        oftener = torch.from_numpy(seen / seen.sum() / np.maximum(there / there.sum(), 1e-12)).float()
        mean_weight = torch.from_numpy(np.where(trust[0] > 0, trust[0] / np.maximum(trust[1], 1), 1)).float()
        net.log_weights.copy_(torch.where(weights > 0, weights * oftener * mean_weight, 1).log())
    return weights


def add_trust(trust: np.ndarray, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the weights of a batch's pixels of each class, and how many there are, to ``trust`` (2, K); the batch."""
    label, weight = batch["label"].ravel(), batch["weight"].ravel() / 100
    for total, of_pixels in zip(trust, (weight, None), strict=True):
        total += np.bincount(label, of_pixels, 256)[1 : len(total) + 1]
    return batch
