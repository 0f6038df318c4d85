"""The training recipe as functions of what was done so far: optimiser, learning rate, moving average, the end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from covermap.model_settings import Training

MOMENTUM = 0.9  # of sgd
PLATEAU_EPOCHS = 5  # without a better macro F1, after which the rate is halved

Row = dict[str, float]  # of the training log: an epoch


def optimiser_of(net: nn.Module, recipe: Training) -> torch.optim.Optimizer:
    """The optimiser of a network's weights; AdamW's weight decay is decoupled, that of the others an L2 penalty."""
    weights, rate, decay = net.parameters(), recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(weights, rate, MOMENTUM, weight_decay=decay)
    kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
    return kind(weights, rate, weight_decay=decay)


def learning_rate(recipe: Training, rows: Sequence[Row], step: int, steps: int) -> float:
    """Learning rate of step ``step`` of ``steps`` of the epoch that follows those of ``rows``."""
    progress = (len(rows) * steps + step) / (recipe.epochs * steps)  # 0 to 1
    if progress < recipe.warm_up:
        return recipe.learning_rate * (progress + 1e-3) / (recipe.warm_up + 1e-3)
    return recipe.learning_rate * _schedule(recipe, rows, progress)


def _schedule(recipe: Training, rows: Sequence[Row], progress: float) -> float:
    """Share of the highest rate after warm-up."""
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (progress - recipe.warm_up) / (1 - recipe.warm_up)))
    if recipe.schedule == "plateau":
        return 0.5 ** plateaus(rows)
    if recipe.schedule == "exponential":  # Sefrin et al. 2021, doi:10.3390/rs13010078, their published code
        return math.exp(0.1 * min(0, 10 - len(rows)))
    return 1.0


def plateaus(rows: Sequence[Row]) -> int:
    """How often five epochs on end brought no better macro F1 than all before them."""
    best, idle, count = -math.inf, 0, 0
    for row in rows:
        best, idle = _followed(best, idle, row, 0)
        if idle == PLATEAU_EPOCHS:
            idle, count = 0, count + 1
    return count


def is_over(recipe: Training, rows: Sequence[Row]) -> bool:
    """Whether all epochs are done, or as many as ``patience`` brought no macro F1 that is better by ``min_gain``."""
    best, idle = -math.inf, 0
    for row in rows:
        best, idle = _followed(best, idle, row, recipe.min_gain)
    return len(rows) >= recipe.epochs or (recipe.patience is not None and idle >= recipe.patience)


def _followed(best: float, idle: int, row: Row, gain: float) -> tuple[float, int]:
    """Highest macro F1, and the epochs since it, after one more."""
    found = row["val_macro_f1"]
    return (found, 0) if found > best + gain else (best, idle + 1)


def best_epoch(rows: Sequence[Row]) -> int:
    """Number of the first epoch with the highest macro F1 on the validation tiles."""
    return int(np.argmax([row["val_macro_f1"] for row in rows])) + 1


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Bring a moving average of a network's weights and buffers, such as those of batch norm, up to step 0, 1, ...

    Early on it follows faster, by (1 + step) / (10 + step), as TensorFlow's ExponentialMovingAverage does, so that
    the weights that training began with are soon forgotten.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    ours, theirs = _tensors(average), _tensors(net)
    floating = [values.is_floating_point() for values in ours]
    pairs = [pair for pair, yes in zip(zip(ours, theirs, strict=True), floating, strict=True) if yes]
    torch._foreach_lerp_([mean for mean, _ in pairs], [now for _, now in pairs], share)
    for mean, now, yes in zip(ours, theirs, floating, strict=True):
        if not yes:
            mean.copy_(now)


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]
