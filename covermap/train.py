"""Training: one loop, readable from top to bottom, that a killed run resumes exactly.

Every random choice is a function of (seed, epoch, step), and each epoch ends in a checkpoint, so a resumed run takes
the steps that an undisturbed one takes. Results are identical at one number of torch threads on one type of CPU.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import logging
import math
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from covermap.accuracy import scores
from covermap.augment import generator, symmetry, vary
from covermap.errors import CoverageError, ModelError
from covermap.files import unfinished, whole
from covermap.inputs import KEYS, SATELLITES, Meaning, index_pairs
from covermap.legend import EXCLUDED, NO_LABEL
from covermap.loader import Buffers, batches, buffers_for, draw, load, timed
from covermap.losses import class_weights, weighted_cross_entropy
from covermap.models import MODELS
from covermap.models.normalise import Normalised, channel_statistics, with_indices
from covermap.settings import Model, Training
from covermap.store import TileStore

log = logging.getLogger(__name__)

LOG_COLUMNS = ("epoch", "train_loss", "val_loss", "val_overall", "val_macro_f1", "learning_rate", "seconds", "waiting")

Metrics = dict[str, Any]


def train(
    index: Path,
    packed: list[Path],
    weights: Path,
    metrics: Path,
    training_log: Path,
    blocks: list[tuple[str, str]],
    model: Model,
    classes: list[str],
) -> None:
    """Train a network on the training tiles and keep the weights of its best epoch on the validation tiles.

    Parameters
    ----------
    index, packed : table of tiles and their stores, one a block.
    weights, metrics, training_log : what is written: safetensors with all that prediction needs, JSON, CSV.
    blocks : name of the area and of the block of each store.
    model : settings.
    classes : keys of the classes, in the order of their ids.

    Raises
    ------
    CoverageError
        No labelled training pixel.
    ModelError
        An option that the network does not have, an index without its bands, tiles whose inputs mean different things,
        dates to drop where there is one alone, or a loss that is not finite.
    """
    recipe = model.training
    device = use_device(recipe.threads)
    stores = dict(zip([(aoi, block) for aoi, block in blocks], packed, strict=True))
    inputs = [KEYS[sensor] for sensor in model.sensors]
    training, validation = (TileStore(stores, index, split, inputs) for split in ("train", "validation"))
    pixels = labelled_pixels(training, len(classes))
    torch.manual_seed(model.seed)
    meaning = training.meaning(inputs)
    net = build(model, input_shapes(training[0], model), len(classes), meaning).to(device)
    class_weight = prepare(net, training, pixels, recipe).to(device)
    buffers = buffers_for(training, recipe.batch, device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    rows: list[dict[str, float]] = []
    settings = {"model": model.model_dump(mode="json"), "classes": classes, "data": digest([index, *packed])}
    with unfinished(weights, **settings) as parts:
        latest, best = parts / "latest.pt", parts / "best.safetensors"
        if latest.exists():
            rows = resume(latest, net, optimiser, device)
            log.info("resumed after epoch %d", len(rows))
        epochs = range(len(rows), recipe.epochs)
        for epoch in tqdm(epochs, "train", initial=len(rows), total=recipe.epochs, disable=not sys.stderr.isatty()):
            start = perf_counter()
            loss, waiting = run_epoch(net, optimiser, training, class_weight, recipe, model.seed, epoch, buffers)
            confusion, val_loss = validate(net, validation, class_weight, recipe, len(classes), buffers)
            scored = scores(confusion)
            rows.append(
                dict(
                    zip(
                        LOG_COLUMNS,
                        (
                            epoch + 1,
                            loss,
                            val_loss,
                            scored["overall"] or 0.0,
                            scored["macro_f1"] or 0.0,
                            optimiser.param_groups[0]["lr"],
                            perf_counter() - start,
                            waiting,
                        ),
                        strict=True,
                    )
                )
            )
            log.info(" ".join(f"{key} {value:.4g}" for key, value in rows[-1].items()))
            if best_epoch(rows) == len(rows):
                save_weights(best, net, model, classes)
            checkpoint(latest, net, optimiser, rows)
        net, _ = load_weights(best, device)
        confusion, _ = validate(net, validation, class_weight, recipe, len(classes), buffers)
        finish(best, rows, summary_of(net, rows, confusion, classes), weights, metrics, training_log)


def digest(files: list[Path]) -> str:
    """BLAKE2b digest of the content of files, in their order."""
    total = hashlib.blake2b()
    for path in files:
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest()


def use_device(threads: int) -> torch.device:
    """The GPU where there is one, else the CPU with a fixed number of threads and deterministic kernels."""
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def reduced_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the hardware multiplies it, nothing elsewhere."""
    on_cpu = device.type == "cpu"
    capable = torch.cpu._is_avx512_bf16_supported() if on_cpu else torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=bool(capable))


def build(model: Model, shapes: dict[str, tuple[int, int]], classes: int, meaning: Meaning) -> Normalised:
    """The network of a model entry for inputs of these steps and bands (T, C), not yet trained."""
    module, name = MODELS[model.network].split(":")
    pairs = index_pairs(model.indices, meaning)
    seen = with_indices(shapes, pairs)
    try:
        network: nn.Module = getattr(importlib.import_module(module), name)(seen, classes, **model.options)
    except TypeError as error:
        raise ModelError(f"network {model.network} cannot be built with options {model.options}: {error}") from error
    return Normalised(network, shapes, classes, meaning, pairs)


def input_shapes(tile: dict[str, np.ndarray], model: Model) -> dict[str, tuple[int, int]]:
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
    """Training pixels of each class (K,), and how many of each the loss sees in an epoch, tiles drawn unevenly."""
    pixels = training.table[[f"class_{i}" for i in range(1, classes + 1)]].to_numpy()
    if not pixels.any():
        raise CoverageError("no training tile has a labelled pixel: check the labels, their legend and the area")
    return np.stack([pixels.sum(0), training.table.sampling.to_numpy(np.float64) @ pixels])


def prepare(net: Normalised, training: TileStore, pixels: np.ndarray, recipe: Training) -> Tensor:
    """Set the normalisation and the priors from the training split; return the class weights of the loss (K,).

    ASSUME: drawing tiles of rare classes more often changes how often classes are seen, not what they look like, so
    their priors are corrected like those that the weights of the loss change. So are those of classes whose pixels
    weigh less than others'. Pixels of weight 0 teach nothing, whatever their class, and are counted like the others.
    """
    memory, trust = training.empty(16), np.zeros((2, pixels.shape[1]))
    parts = (training.batch(numbers, memory) for numbers in batches(np.arange(len(training)), 16))
    parts = (add_trust(trust, part) for part in parts)
    for key, (mean, std) in channel_statistics(parts, net.pairs).items():
        net.get_buffer(f"{key}_mean").copy_(torch.from_numpy(mean))
        net.get_buffer(f"{key}_std").copy_(torch.from_numpy(std))
    there, seen = pixels
    weights = torch.from_numpy(class_weights(seen, recipe.class_weights, recipe.weight_cap))
    oftener = torch.from_numpy(seen / seen.sum() / np.maximum(there / there.sum(), 1e-12)).float()
    mean_weight = torch.from_numpy(np.where(trust[1] > 0, trust[0] / np.maximum(trust[1], 1), 1)).float()
    net.log_weights.copy_(torch.where(weights > 0, weights * oftener * mean_weight, 1).log())
    return weights


def add_trust(trust: np.ndarray, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add the weights of a batch's pixels of each class, and how many have one, to ``trust`` (2, K); the batch."""
    counted = batch["weight"] > 0
    label, weight = batch["label"][counted], batch["weight"][counted] / 100
    for total, of_pixels in zip(trust, (weight, None), strict=True):
        total += np.bincount(label, of_pixels, 256)[1 : len(total) + 1]
    return batch


def run_epoch(
    net: Normalised,
    optimiser: torch.optim.Optimizer,
    training: TileStore,
    class_weight: Tensor,
    recipe: Training,
    seed: int,
    epoch: int,
    buffers: Buffers,
) -> tuple[float, float]:
    """One pass over the training tiles in an order of its own.

    Returns
    -------
    The mean loss, and the share of the time in which the device waited for tiles.
    """
    random = np.random.default_rng([seed, epoch])
    torch.manual_seed(int(random.integers(2**31)))  # for networks with dropout
    order = draw(training.table, random, recipe.order)
    steps = math.ceil(len(order) / recipe.batch)
    net.train()
    losses: list[float] = []
    waits_s: list[float] = []
    start = perf_counter()
    for step, batch in enumerate(timed(load(training, order, buffers), waits_s)):
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * schedule((epoch * steps + step) / (recipe.epochs * steps))
        batch = symmetry(batch, int(random.integers(8)) if recipe.augment.symmetries else 0)
        batch = vary(batch, recipe.augment, net.shapes, generator(buffers.device, seed, epoch, step))
        with reduced_precision(buffers.device):
            logits = net(batch)
        loss = tile_loss(logits, batch, class_weight, recipe.label_smoothing)
        if not torch.isfinite(loss):
            raise ModelError(f"the loss of epoch {epoch + 1} is {loss.item()}: lower training.learning_rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return float(np.mean(losses)), sum(waits_s) / (perf_counter() - start)


def schedule(progress: float, warm_up: float = 0.05) -> float:
    """Share of the highest learning rate at ``progress`` 0..1: linear warm-up, then half a cosine to zero."""
    if progress < warm_up:
        return (progress + 1e-3) / (warm_up + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def tile_loss(logits: Tensor, batch: dict[str, Tensor], class_weight: Tensor, smoothing: float) -> Tensor:
    """Loss of a batch, without the pixels that carry no label."""
    label = batch["label"].long() - 1  # (B, H, W)
    ignored = (batch["label"] == NO_LABEL) | (batch["label"] == EXCLUDED)
    label = torch.where(ignored, -1, label)
    return weighted_cross_entropy(logits, label, batch["weight"].float() / 100, class_weight, smoothing)


@torch.inference_mode()
def validate(
    net: Normalised, tiles: TileStore, class_weight: Tensor, recipe: Training, classes: int, buffers: Buffers
) -> tuple[np.ndarray, float]:
    """Confusion of the argmax with the labels (map class, label class) and mean loss over the validation tiles."""
    net.eval()
    confusion, losses = np.zeros((classes, classes), np.int64), []
    for batch in load(tiles, np.arange(len(tiles)), buffers):
        with reduced_precision(buffers.device):
            logits = net(batch)
        losses.append(tile_loss(logits, batch, class_weight, recipe.label_smoothing).item())
        guess = (logits.float() - net.log_weights[None, :, None, None]).argmax(1)  # (B, H, W)
        used = (batch["weight"] > 0) & (batch["label"] != NO_LABEL) & (batch["label"] != EXCLUDED)
        pairs = guess[used] * classes + batch["label"][used].long() - 1
        confusion += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).cpu().numpy()
    return confusion, float(np.mean(losses))


def best_epoch(rows: list[dict[str, float]]) -> int:
    """Number of the first epoch with the highest macro F1 on the validation tiles."""
    return int(np.argmax([row["val_macro_f1"] for row in rows])) + 1


def save_weights(path: Path, net: Normalised, model: Model, classes: list[str]) -> None:
    """Weights with all that prediction needs: settings, shapes and meaning of the inputs, and classes, as header.

    The header has one entry, since safetensors writes several in any order, and equal weights shall be equal bytes.
    """
    header = {
        "model": model.model_dump(mode="json"),
        "shapes": net.shapes,
        "meaning": net.meaning,
        "classes": classes,
    }
    state = {name: values.contiguous() for name, values in net.state_dict().items()}
    with whole(path) as part:
        save_file(state, part, {"covermap": json.dumps(header)})


def load_weights(path: Path, device: torch.device) -> tuple[Normalised, list[str]]:
    """A trained network and the keys of its classes."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()["covermap"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        model, shapes, meaning, classes = (header[key] for key in ("model", "shapes", "meaning", "classes"))
    except Exception as error:
        raise ModelError(f"weights {path} cannot be read ({error}): expected a file that rule train wrote") from error
    net = build(Model(**model), {key: tuple(shape) for key, shape in shapes.items()}, len(classes), meaning)
    net.load_state_dict(state)
    return net.to(device).eval(), classes


def checkpoint(path: Path, net: Normalised, optimiser: torch.optim.Optimizer, rows: list[dict[str, float]]) -> None:
    """State after an epoch, for a retry of a job that died."""
    with whole(path) as part:
        torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "rows": rows}, part)


def resume(
    path: Path, net: Normalised, optimiser: torch.optim.Optimizer, device: torch.device
) -> list[dict[str, float]]:
    """Load a checkpoint (tensors and numbers only, never code); the log so far."""
    state = torch.load(path, map_location=device, weights_only=True)
    net.load_state_dict(state["net"])
    optimiser.load_state_dict(state["optimiser"])
    rows: list[dict[str, float]] = state["rows"]
    return rows


def summary_of(net: Normalised, rows: list[dict[str, float]], confusion: np.ndarray, classes: list[str]) -> Metrics:
    """The best epoch, and how it does on the validation tiles."""
    scored = scores(confusion)
    return {
        "best_epoch": best_epoch(rows),
        "parameters": sum(values.numel() for values in net.parameters()),
        "validation": {
            "overall": scored["overall"],
            "macro_f1": scored["macro_f1"],
            "f1": {key: entry["f1"] for key, entry in zip(classes, scored["classes"], strict=True)},
        },
    }


def finish(
    best: Path, rows: list[dict[str, float]], summary: Metrics, weights: Path, metrics: Path, training_log: Path
) -> None:
    """Write the log, the metrics of the best epoch and its weights."""
    with whole(training_log) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with whole(metrics) as part:
        part.write_text(json.dumps(summary, indent=2) + "\n")
    with whole(weights) as part:
        part.write_bytes(best.read_bytes())
