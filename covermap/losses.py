"""Losses over maps with unlabelled pixels, and over patches; and what classes weigh in them.

Every loss takes the same arguments and gives a scalar, 0 with a gradient of 0 where nothing is labelled:

- ``logits``: float (B, K, H, W), or (B, K) of patches; bfloat16 is computed with in float32;
- ``label``: int64 (B, H, W) or (B,), class 0 to K - 1, -1 without label;
- ``weight``: float of the same shape, 0 and more: what each pixel counts;
- ``class_weight``: float (K,), what each class counts; 0: it was never seen;
- ``recipe``: settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from covermap.legend import EXCLUDED, NO_LABEL
from covermap.model_settings import Training
from covermap.models.outputs import Output

TINY = 1e-12  # what nothing is divided by


def tile_loss(outputs: Sequence[Output], batch: Mapping[str, Tensor], class_weight: Tensor, recipe: Training) -> Tensor:
    """Loss of a batch: a scalar, the sum over outputs and losses by their shares.

    Parameters
    ----------
    outputs : what the network gave. Those that say what they saw, such as dates, are samples of one loss, and their
        pixels count by that: a pixel counts the same beside few others of its date as beside many.
    batch : with ``label`` and ``weight``, uint8 (B, H, W) or (B,), the weight in per cent.
    class_weight : float (K,).
    recipe : settings: ``loss`` and what the losses take.
    """
    total = torch.zeros((), device=class_weight.device)
    for taught in lessons(outputs, batch):
        for name, share in recipe.loss.items():
            loss = FUNCTIONS[name](taught.logits, taught.label, taught.weight, class_weight, recipe)
            total = total + taught.share * share * loss
    return total


def basis(outputs: Sequence[Output], batch: Mapping[str, Tensor], class_weight: Tensor, recipe: Training) -> Tensor:
    """What the loss of a batch is a mean over: the weight of what its outputs are taught, or their pixels; a scalar."""
    bases = [
        taught.share * _measure(taught.label, taught.weight, class_weight, recipe) for taught in lessons(outputs, batch)
    ]
    return torch.stack(bases).sum()


class Lesson(NamedTuple):
    """What one loss is computed from: an output, or the dates, one behind the other in place of tiles."""

    logits: Tensor  # (B, K, H, W), or (B, K) of patches
    label: Tensor  # (B, H, W) or (B,)
    weight: Tensor
    share: float  # of the loss


def lessons(outputs: Sequence[Output], batch: Mapping[str, Tensor]) -> list[Lesson]:
    """What outputs are taught of a batch: those that say what they saw together, the others one by one."""
    label, weight = targets(batch)
    found = [Lesson(output.logits, label, weight, output.share) for output in outputs if output.seen is None]
    dates = [(output, output.seen) for output in outputs if output.seen is not None]
    if dates:
        logits = torch.cat([output.logits for output, _ in dates])  # (N*B, K, H, W)
        share = sum(output.share for output, _ in dates)
        trusted = [weight * seen.float() * (output.share * len(dates) / share) for output, seen in dates]
        found.append(Lesson(logits, torch.cat([label] * len(dates)), torch.cat(trusted), share))
    return found


def targets(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Labels int64, 0 to K - 1 or -1 without, and weights float, 0 to 1, of a batch."""
    ids = batch["label"].long()
    none = (ids == NO_LABEL) | (ids == EXCLUDED)
    return torch.where(none, -1, ids - 1), batch["weight"].float() / 100


# --- losses of pixels ------------------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, label: Tensor, weight: Tensor, class_weight: Tensor, recipe: Training) -> Tensor:
    """Cross-entropy over the labelled pixels, by default normalised by their weight.

    Normalising by the weight, not by the number of pixels, keeps the step size free of how many pixels are labelled.
    """
    loss = functional.cross_entropy(
        _precise(logits),
        label,
        weight=class_weight.to(_precise(logits).dtype),
        ignore_index=-1,
        reduction="none",
        label_smoothing=recipe.label_smoothing,
    )
    return _mean(loss, label, weight, class_weight, recipe)


def focal(logits: Tensor, label: Tensor, weight: Tensor, class_weight: Tensor, recipe: Training) -> Tensor:
    """Cross-entropy in which a pixel counts by (1 - p) ** gamma, so that those already learned count little.

    Lin et al. 2017, doi:10.1109/ICCV.2017.324, equation 5; smoothed labels have a term for each class, as in the
    cross-entropy, which it is where gamma is 0.
    """
    log_p = _precise(logits).log_softmax(1)  # (B, K, ...)
    missing = (-log_p.expm1()).clamp(min=1e-6)  # 1 - p; below 1, powers have no gradient at 0
    terms = -(missing**recipe.focal_gamma) * log_p * _along_classes(class_weight, log_p)
    loss = _of_label(terms, label)
    if recipe.label_smoothing:
        loss = torch.lerp(loss, terms.mean(1), recipe.label_smoothing)
    return _mean(torch.where(label >= 0, loss, 0), label, weight, class_weight, recipe)


def robust(logits: Tensor, label: Tensor, weight: Tensor, class_weight: Tensor, recipe: Training) -> Tensor:
    """Generalised cross-entropy, (1 - p ** q) / q: labels that the network firmly denies teach it little.

    Between cross-entropy (q near 0) and the mean absolute error (q = 1): Zhang and Sabuncu 2018, arXiv:1805.07836,
    equation 6, without their truncation.
    """
    log_p = _of_label(_precise(logits).log_softmax(1), label)  # (B, ...)
    loss = -(recipe.robust_q * log_p).expm1() / recipe.robust_q * class_weight[label.clamp(min=0)]
    return _mean(torch.where(label >= 0, loss, 0), label, weight, class_weight, recipe)


def _mean(loss: Tensor, label: Tensor, weight: Tensor, class_weight: Tensor, recipe: Training) -> Tensor:
    """Mean of the pixels' losses (B, ...), in which their class weights are, over their weights or over all pixels."""
    return (loss * weight).sum() / _measure(label, weight, class_weight, recipe).clamp(min=TINY)


def _measure(label: Tensor, weight: Tensor, class_weight: Tensor, recipe: Training) -> Tensor:
    """What the pixels' losses are divided by, a scalar: what all labels weigh, or the number of all pixels."""
    if recipe.normalise == "pixels":
        return torch.tensor(float(label.numel()), device=label.device)
    return torch.where(label >= 0, weight * class_weight[label.clamp(min=0)], 0).sum()


# --- losses of overlap -----------------------------------------------------------------------------------------------


def dice(logits: Tensor, label: Tensor, weight: Tensor, class_weight: Tensor, recipe: Training) -> Tensor:
    """1 - 2 |P and T| / (|P| + |T|), the mean over the classes that the batch has labels of.

    P are the probabilities of a class and T its labels over all labelled pixels of the batch, each pixel counted by its
    weight: Drozdzal et al. 2016, arXiv:1608.04117, there of one class. A class counts like any other, however many
    pixels it has, so class weights have no say.
    """
    probability, truth, measure = _flat(logits, label, weight)
    both = (probability * truth * measure).sum(1)  # (K,)
    sizes = ((probability + truth) * measure).sum(1)
    there = _there(truth * measure, class_weight)
    return torch.where(there, 1 - 2 * both / sizes.clamp(min=TINY), 0).sum() / there.sum().clamp(min=1)


def lovasz(logits: Tensor, label: Tensor, weight: Tensor, class_weight: Tensor, recipe: Training) -> Tensor:
    """Lovasz-Softmax, which is 1 - the intersection over union, made continuous: the mean over the batch's classes.

    Berman et al. 2018, doi:10.1109/CVPR.2018.00464, algorithm 1, over the batch and the classes that are there.
    ASSUME: a pixel of weight w counts like w pixels, since the index of sets of weighted pixels is submodular
    too; one of weight 0 is left out.
    """
    probability, truth, measure = _flat(logits, label, weight)
    # To ask the device which classes are there makes it wait, but less than to sort all pixels for those that are not.
    there = _there(truth * measure, class_weight).nonzero().flatten().tolist()
    losses = [_lovasz_of_class(probability[k], truth[k], measure) for k in there]
    return torch.stack(losses).mean() if losses else 0 * probability.sum()


def _lovasz_of_class(probability: Tensor, truth: Tensor, measure: Tensor) -> Tensor:
    """Lovasz extension of the Jaccard loss of one class at its errors: a scalar from (N,) each."""
    errors, order = (truth - probability).abs().sort(descending=True, stable=True)
    with torch.no_grad():
        ours = (truth * measure)[order].double().cumsum(0)  # float32 loses pixels of large batches
        others = ((1 - truth) * measure)[order].double().cumsum(0)
        jaccard = 1 - (ours[-1] - ours) / (ours[-1] + others).clamp(min=TINY)  # of the set of the worst 1, 2, ... N
        gain = jaccard.diff(prepend=jaccard.new_zeros(1)).to(errors.dtype)
    return errors @ gain


def _flat(logits: Tensor, label: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and labels of each class (K, N), and what each of the N pixels counts, 0 without label (N,)."""
    probability = _precise(logits).softmax(1).movedim(1, 0).flatten(1)  # (K, N)
    label = label.flatten()
    truth = label == torch.arange(len(probability), device=label.device)[:, None]  # (K, N)
    measure = torch.where(label >= 0, weight.flatten(), 0)
    return probability, truth.to(probability.dtype), measure.to(probability.dtype)


def _there(labelled: Tensor, class_weight: Tensor) -> Tensor:
    """Which classes have labelled pixels (K, N) and a class weight: bool (K,)."""
    return (labelled.sum(1) > 0) & (class_weight > 0)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _of_label(values: Tensor, label: Tensor) -> Tensor:
    """Of values (B, K, ...) those of the label's class (B, ...); of some class without label."""
    return values.gather(1, label.clamp(min=0)[:, None])[:, 0]


def _along_classes(values: Tensor, like: Tensor) -> Tensor:
    """(K,) as (1, K, 1, 1), or (1, K)."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Training], Tensor]
FUNCTIONS: dict[str, Loss] = {  # by the names in covermap.models.LOSSES
    "cross_entropy": cross_entropy,
    "focal": focal,
    "dice": dice,
    "lovasz": lovasz,
    "robust": robust,
}


def evidence(logits: Tensor, recipe: Training) -> Tensor:
    """Logits of how often classes are seen, times what they weigh, from those of a network that learned by a recipe.

    Under a loss l of the probability p of the label, a network learns p(k) where f(k) w(k) l'(p(k)) is the same for all
    classes, so that the frequency f(k) times the weight w(k) is 1 / -l'(p(k)) up to a factor: p itself for the
    cross-entropy, whose logits stay as they are. The focal loss teaches flatter probabilities (Charoenphakdee et al.
    2021, arXiv:2011.09172), and to divide those by the weights would take too much back.

    The robust loss would teach steeper ones, f(k) w(k) to the power of 1 / (1 - q), but a network is far from them when
    training ends, and to take that power back buries rare classes: its logits are taken like those of the
    cross-entropy. ASSUME: losses of overlap beside others, and smoothed labels, do not change this.

    Parameters
    ----------
    logits : float (B, K, ...).
    """
    shares = {name: share for name, share in recipe.loss.items() if name in LOG_SLOPES}
    if "focal" not in shares:
        return logits
    log_p = _precise(logits).log_softmax(1)
    slopes = [math.log(share) + LOG_SLOPES[name](log_p, recipe) for name, share in shares.items()]
    return -torch.stack(slopes).logsumexp(0)


def _log_slope_of_focal(log_p: Tensor, recipe: Training) -> Tensor:
    missing = (-log_p.expm1()).clamp(min=1e-6)  # 1 - p
    return recipe.focal_gamma * missing.log() - log_p + (-recipe.focal_gamma * log_p.exp() * log_p / missing).log1p()


LOG_SLOPES: dict[str, Callable[[Tensor, Training], Tensor]] = {  # log(-l'(p)) from log(p)
    "cross_entropy": lambda log_p, recipe: -log_p,
    "focal": _log_slope_of_focal,
    "robust": lambda log_p, recipe: -log_p,
}


# --- what classes weigh ----------------------------------------------------------------------------------------------


def class_weights(pixels: np.ndarray, rule: str, cap: float) -> np.ndarray:
    """Weight of each class in the loss: float32 (K,), 1 on average over the labelled pixels.

    Parameters
    ----------
    pixels : number of pixels of each class in each training tile (N, K), or in all of them (K,).
    rule : one of ``RULES``.
    cap : highest ratio of two weights; a class without pixels has the weight 0.
    """
    tiles = np.atleast_2d(pixels)
    total = tiles.sum(0)
    seen = total > 0
    weights = np.where(seen, RULES[rule](tiles, np.maximum(total, 1.0)), 0)
    weights = np.minimum(weights, cap * weights[seen].min())
    return (weights * total.sum() / (weights * total).sum()).astype(np.float32)


def _effective(tiles: np.ndarray, total: np.ndarray) -> np.ndarray:
    """One over the effective number of samples, (1 - beta ** n) / (1 - beta), where beta is 1 - 1/N.

    Cui et al. 2019, doi:10.1109/CVPR.2019.00949, section 3. ASSUME: N, the number of pixels that differ, is
    the mean number of pixels of a class, so that weights do not depend on the size of the area: those of classes
    smaller than that are nearly inverse, those of larger ones nearly equal.
    """
    prototypes = max(tiles.sum() / max((tiles.sum(0) > 0).sum(), 1), 2.0)
    return -1 / (prototypes * np.expm1(total * np.log1p(-1 / prototypes)))


def _median_frequency(tiles: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Inverse of a class's share of the tiles that have it: Eigen and Fergus 2015, doi:10.1109/ICCV.2015.304.

    A class that is rare but fills the few tiles that have it weighs less than by its pixels. The median of the shares,
    which gave the rule its name, is a factor of all weights alike.
    """
    pixels_around = (tiles > 0).T @ tiles.sum(1)  # (K,)
    return np.maximum(pixels_around, 1) / total


def _complement(tiles: np.ndarray, total: np.ndarray) -> np.ndarray:
    """1 - the class's share of the pixels: what Cherif et al. 2022 meant to use, 100 - 100 f."""
    return np.maximum(1 - total / max(tiles.sum(), 1), 1e-9)  # a class that is alone weighs 1 in the end


RULES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {  # of (N, K) and their sums, at least 1 (K,)
    "none": lambda tiles, total: np.ones(len(total)),
    "inverse": lambda tiles, total: total**-1.0,
    "inverse_sqrt": lambda tiles, total: total**-0.5,
    "effective": _effective,
    "median": _median_frequency,
    "complement": _complement,
}
