"""What a network says of a tile: one map of scores, or several that the loss or a vote puts together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Output(NamedTuple):
    """Scores of a branch, or of a date."""

    logits: Tensor  # (B, K, H, W), or (B, K) of patches
    share: float = 1.0  # of the loss, and of the vote
    seen: Tensor | None = None  # (B, H, W), 0 to 1: pixels that this output can tell of; none: all


Answer = Tensor | list[Output]


def outputs_of(answer: Answer) -> list[Output]:
    """What a network gave, as a list."""
    return [Output(answer)] if isinstance(answer, Tensor) else answer


def vote(outputs: list[Output], log_prior: Tensor, by_majority: bool) -> Tensor:
    """Class probabilities (B, K, ...) of all outputs together.

    Parameters
    ----------
    outputs : each counts by its share and by what it has seen; where none has seen anything, all count alike.
    log_prior : (K,), subtracted from the logits.
    by_majority : each output gives its whole voice to its best class; else the mean of probabilities counts.
    """
    voices = []
    for output in outputs:
        prior = log_prior.view(1, -1, *[1] * (output.logits.ndim - 2))  # (1, K, 1, 1) or (1, K)
        voice = (output.logits.float() - prior).softmax(1)
        if by_majority:
            voice = torch.zeros_like(voice).scatter_(1, voice.argmax(1, keepdim=True), 1)
        voices.append(voice)
    if len(voices) == 1:
        return voices[0]
    shares = torch.stack([_share(output) for output in outputs])  # (N, B, 1, H, W)
    shares = torch.where(shares.sum(0) > 0, shares, 1)
    return (torch.stack(voices) * shares).sum(0) / shares.sum(0)


def _share(output: Output) -> Tensor:
    """(B, 1, H, W)."""
    if output.seen is None:
        return torch.full_like(output.logits[:, :1], output.share, dtype=torch.float32)
    return output.share * output.seen[:, None].float()
