"""From the integers of a stack to the numbers that a network sees, on the device."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from covermap.inputs import NODATA, Meaning


class Normalised(nn.Module):
    """A network behind the normalisation of its inputs, with the class priors that it was trained under.

    ``mean`` and ``std`` (T, C) of each input come from the training split and are stored with the weights;
    ``log_weights`` (K,) are the logarithms of the loss's class weights; ``meaning`` is that of the inputs' axes.
    """

    def __init__(self, network: nn.Module, shapes: dict[str, tuple[int, int]], classes: int, meaning: Meaning) -> None:
        super().__init__()
        self.network = network
        self.shapes = dict(shapes)
        self.meaning = meaning
        for key, shape in shapes.items():
            self.register_buffer(f"{key}_mean", torch.zeros(shape))
            self.register_buffer(f"{key}_std", torch.ones(shape))
        self.register_buffer("log_weights", torch.zeros(classes))

    log_weights: Tensor

    def forward(self, integers: dict[str, Tensor]) -> Tensor:
        """Logits (B, K, H, W) from integers (B, T, C, H, W)."""
        inputs, valid = {}, {}
        for key in self.shapes:
            values = integers[key]
            mean, std = (self.get_buffer(f"{key}_{name}")[None, :, :, None, None] for name in ("mean", "std"))
            seen = values != NODATA[key]  # (B, T, C, H, W)
            inputs[key] = torch.where(seen, (values.float() - mean) / std, 0)
            valid[key] = seen.all(2)  # (B, T, H, W)
        return self.network(inputs, valid)

    def probabilities(self, integers: dict[str, Tensor]) -> Tensor:
        """Class probabilities (B, K, H, W) at the training prevalence.

        A loss with class weights w teaches p(k) w(k) up to a factor; dividing by w keeps rare classes from being
        inflated in the map (Menon et al. 2021, arXiv:2007.07314).
        """
        logits = self(integers).float()
        return (logits - self.log_weights[None, :, None, None]).softmax(1)


def channel_statistics(batches: Iterable[dict[str, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation (T, C) of the observed integers of each input, streaming in float64."""
    sums: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for key in NODATA.keys() & batch.keys():
            values = batch[key].astype(np.float64)  # (B, T, C, H, W)
            seen = batch[key] != NODATA[key]
            axes = (0, 3, 4)
            terms = [seen.sum(axes), (values * seen).sum(axes), (values**2 * seen).sum(axes)]
            sums[key] = [a + b for a, b in zip(sums[key], terms, strict=True)] if key in sums else terms
    statistics = {}
    for key, (count, total, squares) in sums.items():
        mean = total / np.maximum(count, 1)
        variance = squares / np.maximum(count, 1) - mean**2
        statistics[key] = mean, np.sqrt(np.maximum(variance, 1.0))  # one step: a constant channel stays finite
    return statistics
