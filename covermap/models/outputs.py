"""What a network says of a tile: one map of scores, or several that the loss or a vote puts together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Output(NamedTuple):
    """Scores of a branch, or of a date: those that say what they saw are samples of one kind."""

    logits: Tensor  # (B, K, H, W), or (B, K) of patches
    share: float = 1.0  # of the loss, and of the vote
    seen: Tensor | None = None  # (B, H, W), 0 to 1: pixels that this output can tell of; none: all
    votes: bool = True  # else it is only taught


TIE = 1e-3  # what probabilities count beside the voices of a majority

Answer = Tensor | list[Output]


def outputs_of(answer: Answer) -> list[Output]:
    """What a network gave, as a list."""
    return [Output(answer)] if isinstance(answer, Tensor) else answer


def vote(outputs: list[Output], log_prior: Tensor, by_majority: bool) -> Tensor:
    """Class probabilities (B, K, ...) of all outputs together.

    Parameters
    ----------
    outputs : those that vote count by their share and by what they have seen; where none has seen anything, all alike.
    log_prior : (K,), subtracted from the logits.
    by_majority : each output gives its voice to its best class, but for a thousandth, by which the mean of
        probabilities decides between classes with as many voices; else that mean alone counts.
    """
    outputs = [output for output in outputs if output.votes]
    voices = []
    for output in outputs:
        prior = log_prior.view(1, -1, *[1] * (output.logits.ndim - 2))  # (1, K, 1, 1) or (1, K)
        voice = (output.logits.float() - prior).softmax(1)
        if by_majority:
            voice = torch.lerp(torch.zeros_like(voice).scatter_(1, voice.argmax(1, keepdim=True), 1), voice, TIE)
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


def tempered(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities (B, K, ...) at another temperature: above 1 flatter, below 1 sharper, their order the same."""
    if temperature == 1:
        return probabilities
    return (probabilities.clamp(min=torch.finfo(torch.float32).tiny).log() / temperature).softmax(1)
