"""Losses over maps with unlabelled pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def class_weights(pixels: np.ndarray, rule: str, cap: float) -> np.ndarray:
    """Weight of each class in the loss: float32 (K,), 1 on average over the labelled pixels.

    Parameters
    ----------
    pixels : number of training pixels of each class (K,).
    rule : "none", "inverse" or "inverse_sqrt" of the pixels.
    cap : highest ratio of two weights; a class without pixels has the weight 0.
    """
    seen = pixels > 0
    power = {"none": 0.0, "inverse": -1.0, "inverse_sqrt": -0.5}[rule]
    weights = np.where(seen, np.maximum(pixels, 1.0) ** power, 0)
    weights = np.minimum(weights, cap * weights[seen].min())
    return (weights * pixels.sum() / (weights * pixels).sum()).astype(np.float32)


def weighted_cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor, weights: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy over the labelled pixels, normalised by their weight: a scalar.

    Normalising by the weight, not by the number of pixels, keeps the step size free of how many pixels are labelled.

    Parameters
    ----------
    logits : float (B, K, H, W).
    label : int64 (B, H, W), class 0..K-1, -1 without label.
    weight : float (B, H, W) of each pixel.
    weights : float (K,) of each class.
    smoothing : share of a label that is given to all classes alike.
    """
    loss = torch.nn.functional.cross_entropy(
        logits.float(), label, weight=weights, ignore_index=-1, reduction="none", label_smoothing=smoothing
    )
    effective = torch.where(label >= 0, weight * weights[label.clamp(min=0)], 0)
    return (loss * weight).sum() / effective.sum().clamp(min=1e-12)
