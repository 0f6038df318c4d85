"""Probabilities that mean what they say: the temperature of a network, from the validation tiles.

One number cannot change which class is best, only how sure the network is of it (Guo et al. 2017, arXiv:1706.04599).
What the probabilities are made to suit is the label, which errs too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from covermap.devices import use_device
from covermap.errors import CoverageError
from covermap.inputs import must_mean
from covermap.loader import buffers_for, load
from covermap.models.normalise import Normalised
from covermap.predict import free_steps, load_together, mean_probabilities
from covermap.score import usable, write_scores
from covermap.store import LABEL, WEIGHT, TileStore
from covermap.trained import TEMPERATURES

log = logging.getLogger(__name__)

PIXELS = 1_000_000  # of all tiles together, which tell one number well enough
NEAR = 1.01  # as a ratio to a bound of the temperature
BINS = 15  # of the confidence, as is usual (Guo et al. 2017)
LEAST = np.finfo(np.float32).tiny  # what a probability of 0 is taken for


def calibrate(
    index: Path,
    packed: list[Path],
    weights: Path,
    calibration: Path,
    blocks: list[tuple[str, str]],
    batch: int,
    threads: int = 1,
) -> None:
    """Step: the temperature at which a network's probabilities suit the labels of its validation tiles best, as JSON.

    Parameters
    ----------
    index, packed : table of the model's tiles and their stores, one a block.
    weights : of the trained network.
    calibration : output: ``temperature``; ``before`` and ``after`` it the loss (``nll``), the expected calibration
        error (``ece``) and by confidence what was right (``bins``: mean confidence, share that is right, pixels).
    blocks : name of the area and of the block of each store.
    batch : tiles at once.
    threads : torch threads.

    Raises
    ------
    CoverageError
        No validation tile has a pixel whose label counts.
    ModelError
        Weights that cannot be read, or of other inputs than the tiles.
    """
    device = use_device(threads)
    nets, _ = load_together([weights], device)
    store = TileStore(dict(zip(blocks, packed, strict=True)), index, "validation", list(nets[0].shapes))
    must_mean(nets[0].meaning, store.meaning(nets[0].shapes), index, "the network learned from", free_steps(nets))
    found = list(judged_pixels(nets[0], store, batch, device)) if len(store) else []
    if not sum(len(label) for _, label, _ in found):
        raise CoverageError(
            f"no validation tile of {index} has a label that counts, so probabilities cannot be calibrated: set "
            "prediction.calibrate to false, or check labels and split"
        )
    log_p, label, weight = (np.concatenate(parts) for parts in zip(*found, strict=True))
    temperature = best_temperature(log_p, label, weight)
    told: dict[str, Any] = {"temperature": temperature, "pixels": len(label)}
    for name, divisor in (("before", 1.0), ("after", temperature)):
        told[name] = reliability(log_p, label, weight, divisor)
    errors = told["before"]["ece"], told["after"]["ece"]
    log.info("temperature %.3f: calibration error %.4f before, %.4f after", temperature, *errors)
    write_scores(calibration, told)


@torch.inference_mode()
def judged_pixels(
    net: Normalised, store: TileStore, batch: int, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Log-probabilities float32 (n, K), classes of the label 0..K-1 and weights of some pixels of each tile."""
    share = max(1, PIXELS // len(store))
    for arrays in load(store, np.arange(len(store)), buffers_for(store, batch, device)):
        probabilities = mean_probabilities([net], arrays, device).movedim(1, -1)  # (B, H, W, K), or (B, K)
        labels, weights = (arrays[name].cpu().numpy() for name in (LABEL, WEIGHT))
        for one, label, weight in zip(probabilities.cpu().numpy(), labels, weights, strict=True):
            places = np.flatnonzero(usable(label, weight))
            places = places[np.linspace(0, len(places), min(share, len(places)), endpoint=False, dtype=np.int64)]
            log_p = np.log(np.maximum(one.reshape(-1, one.shape[-1])[places], LEAST))
            yield log_p, label.ravel()[places].astype(np.int64) - 1, weight.ravel()[places].astype(np.float64)


def best_temperature(log_p: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    """Temperature of the least cross-entropy.

    Parameters
    ----------
    log_p : float (n, K), logarithms of probabilities.
    label : int (n,), 0..K-1.
    weight : float (n,).
    """

    def loss(log_temperature: float) -> float:
        return _loss(log_p, label, weight, float(np.exp(log_temperature)))

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-4})
    temperature = round(float(np.exp(found.x)), 4)
    if min(temperature / TEMPERATURES[0], TEMPERATURES[1] / temperature) < NEAR:
        log.warning("the temperature is %g, a bound: check the labels of the validation tiles", temperature)
    return temperature


def _loss(log_p: np.ndarray, label: np.ndarray, weight: np.ndarray, temperature: float) -> float:
    scaled = log_p / temperature
    nll = logsumexp(scaled, axis=1) - scaled[np.arange(len(label)), label]
    return float(np.average(nll, weights=weight))


def reliability(log_p: np.ndarray, label: np.ndarray, weight: np.ndarray, temperature: float) -> dict[str, Any]:
    """How probabilities at a temperature suit labels: ``nll``, ``ece`` and ``bins``; parameters as above."""
    scaled = log_p / temperature
    best = scaled.argmax(1)
    confidence = np.exp(scaled.max(1) - logsumexp(scaled, axis=1))
    right = best == label
    which = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    mass, sure, hits = (np.bincount(which, weight * values, BINS) for values in (1.0, confidence, right))
    filled = mass > 0
    bins = [
        [round(float(value), 4) for value in (sure[i] / mass[i], hits[i] / mass[i])] + [int((which == i).sum())]
        for i in np.flatnonzero(filled)
    ]
    ece = float(np.abs(hits - sure)[filled].sum() / mass.sum())
    return {"nll": round(_loss(log_p, label, weight, temperature), 5), "ece": round(ece, 5), "bins": bins}
