"""Training: one loop, readable from top to bottom, that a killed run resumes exactly.

Every random choice is a function of (seed, epoch, step, device), and a checkpoint holds all else, so a resumed run
takes the steps that an undisturbed one takes. Results are identical at one number of torch threads on one type of CPU.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from covermap.accuracy import scores
from covermap.augment import generator, symmetry, vary
from covermap.checkpoint import State, load_outcome, load_state, not_finite, save_state
from covermap.devices import alone_on, on_all_devices, use_device
from covermap.errors import ModelError
from covermap.events import F1, event_file
from covermap.files import unfinished, whole
from covermap.inputs import KEYS, Meaning
from covermap.loader import Buffers, batches, buffers_for, draw, load, on_device, share_of, timed
from covermap.losses import TINY, basis, targets, tile_loss
from covermap.memory import is_out_of_memory, what_fits
from covermap.model_settings import Model, Training
from covermap.models.outputs import outputs_of
from covermap.prepare import Shapes, digest, first_state, input_shapes, labelled_pixels, must_choose
from covermap.recipe import best_epoch, is_over, learning_rate, update_average
from covermap.store import TileStore
from covermap.taps import clear_unseen_taps
from covermap.trained import build, load_weights, save_weights

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

LOOK_STEPS = 20  # after so many, losses are brought from the device and looked at
CHECKPOINT_S = 600  # between checkpoints within an epoch
LOG_COLUMNS = (
    "epoch", "train_loss", "val_loss", "val_overall", "val_macro_f1", "val_kappa", "learning_rate", "seconds",
    "waiting", "tiles_per_s",
)  # fmt: skip

Metrics = dict[str, Any]


def train(
    index: Path,
    packed: list[Path],
    weights: Path,
    metrics: Path,
    training_log: Path,
    curves: Path,
    events: Path,
    blocks: list[tuple[str, str]],
    model: Model,
    classes: list[str],
    start: Path | None = None,
) -> None:
    """Train a network on the training tiles and keep the weights of its best epoch on the validation tiles.

    Parameters
    ----------
    index, packed : table of tiles and their stores, one a block.
    weights, metrics, training_log, curves, events : what is written: safetensors with all that prediction needs, JSON,
        CSV, PNG and a file for TensorBoard, which grows in the folder beside it while training lasts.
    blocks : name of the area and of the block of each store.
    model : settings.
    classes : keys of the classes, in the order of their ids.
    start : weights that training starts from, as ``model.start_from`` names them; none: random ones.

    Raises
    ------
    CoverageError
        No training or no validation pixel that counts.
    ModelError
        An option that the network does not have, an index without its bands, tiles whose inputs mean different things
        or whose side the network cannot take, dates to drop where there is one alone, start weights that do not fit, a
        loss that is not finite, a broken checkpoint, or a batch that memory has no room for.
    """
    use_device(model.training.threads)
    stores = dict(zip([(aoi, block) for aoi, block in blocks], packed, strict=True))
    inputs = [KEYS[sensor] for sensor in model.sensors]
    training, validation = (TileStore(stores, index, split, inputs) for split in ("train", "validation"))
    pixels = labelled_pixels(training, len(classes))
    must_choose(TileStore(stores, index, "validation", ()), len(classes), model.min_pixels)
    unseen = [key for key, count in zip(classes, pixels.sum(0), strict=True) if not count]
    if unseen:
        log.warning("no training tile has a pixel of %s, so the network cannot learn them", ", ".join(unseen))
    shapes, meaning = input_shapes(training[0], model), training.meaning(inputs)
    files = [index, *packed, *([start] if start else [])]
    settings = {"model": model.model_dump(mode="json"), "classes": classes, "data": digest(files), "state": 2}
    with unfinished(weights, **settings) as parts:
        if not (parts / "latest.pt").exists():
            state = first_state(training, pixels, model, shapes, meaning, start)
            save_state(parts / "latest.pt", state)
        on_all_devices(
            teach,
            *(parts, training, validation, model, classes, shapes, meaning),
            threads=model.training.threads,
            reduced=model.training.precision == "auto",
            at_most=model.training.batch,
        )
        finish(parts, model, classes, unseen, weights, metrics, training_log, curves, events)


# --- the loop --------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """What a process trains with."""

    fabric: Fabric
    module: nn.Module  # the network, as it is called in training
    state: State
    model: Model
    buffers: Buffers
    keep: Callable[[], None]  # writes a checkpoint


def teach(
    fabric: Fabric,
    parts: Path,
    training: TileStore,
    validation: TileStore,
    model: Model,
    classes: list[str],
    shapes: Shapes,
    meaning: Meaning,
) -> None:
    """Train from the checkpoint in the folder ``parts`` on; the last one and the best weights are there at the end."""
    recipe, latest = model.training, parts / "latest.pt"
    state = load_state(latest, build(model, shapes, len(classes), meaning), recipe)
    if fabric.device.type == "cpu":
        clear_unseen_taps(state.net, training[0])
    keep = partial(save_state, latest, state) if fabric.is_global_zero else _nothing
    if state.rows or state.losses:
        log.info("resumed after %d epochs and %d steps", len(state.rows), len(state.losses))
    try:
        return run_epochs(
            Job(
                fabric,
                module=put_on_device(fabric, state, recipe),
                state=state,
                model=model,
                buffers=buffers_for(training, math.ceil(recipe.batch / fabric.world_size), fabric.device),
                keep=keep,
            ),
            *(parts, training, validation, classes),
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Out of the block, whose traceback holds memory, and the job, whose hooks would wait for the other devices.
    attempt = partial(step_alone, fabric.device, state, training, model)
    raise ModelError(what_fits(attempt, fabric.device, recipe.batch, fabric.world_size))


def run_epochs(job: Job, parts: Path, training: TileStore, validation: TileStore, classes: list[str]) -> None:
    """Take the epochs that are left; the best weights so far are in the folder ``parts``."""
    state, writes = job.state, job.fabric.is_global_zero
    with event_file(parts / "events.tfevents", state.rows) if writes else nullcontext(_nothing) as tell:
        while not is_over(job.model.training, state.rows):
            run_epoch(job, training)
            confusion = end_epoch(job, training, validation, classes)
            if best_epoch(state.rows) == len(state.rows):
                state.confusion = confusion
                if writes:
                    save_weights(parts / "best.safetensors", state.shown, job.model, classes)
            job.keep()
            log.info(" ".join(f"{key} {state.rows[-1][key]:.4g}" for key in LOG_COLUMNS))
            tell(state.rows[-1])


def step_alone(device: torch.device, state: State, training: TileStore, model: Model, tiles: int) -> None:
    """Take a step of so many tiles on one device, for which no other is waited; the state is of no use afterwards."""
    fabric = alone_on(device, model.training.precision == "auto")
    module = put_on_device(fabric, state, model.training)
    job = Job(fabric, module, state, model, Buffers(device, None, [], []), _nothing)
    state.net.train()
    state.optimiser.zero_grad(set_to_none=True)
    take_step(job, on_device(training.batch(np.arange(tiles) % len(training)), device), 0, 1, True)


def _nothing(*_: object) -> None:
    """What a process does that does not write."""


def put_on_device(fabric: Fabric, state: State, recipe: Training) -> nn.Module:
    """Bring a state to the device of this process; the network as it is called in training.

    It is compiled in its place, so that its weights keep their names.
    """
    saved = state.optimiser.state_dict()
    for net in (state.net, state.shown):
        if fabric.device.type == "cuda":
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        net.to(fabric.device)
        if recipe.compile:
            net.compile()
    module, _ = fabric.setup(state.net, state.optimiser)
    state.optimiser.load_state_dict(saved)  # what it remembers of the weights follows them
    state.class_weight = state.class_weight.to(fabric.device)
    return cast(nn.Module, module)


def run_epoch(job: Job, training: TileStore) -> None:
    """Take the steps of an epoch that are left, over the training tiles in an order of its own.

    Losses stay on the device until they are looked at, since a look makes the processor wait for it.
    """
    state, recipe = job.state, job.model.training
    random = np.random.default_rng([job.model.seed, len(state.rows)])
    parts = list(batches(order_of(training, random, recipe), recipe.batch))
    turns = random.integers(8, size=len(parts)) if recipe.augment.symmetries else np.zeros(len(parts), int)
    shares = [share_of(numbers, job.fabric.global_rank, job.fabric.world_size) for numbers in parts]
    first, seconds, waited_s = len(state.losses), state.seconds, state.waited_s
    start = kept = perf_counter()
    waits_s: list[float] = []
    pending: list[Tensor] = []
    state.net.train()
    loaded = load(training, [tiles for tiles, _ in shares[first:]], job.buffers)
    for step, batch in enumerate(with_bar(job, timed(loaded, waits_s), first, len(parts)), first):
        pending.append(take_step(job, symmetry(batch, int(turns[step])), step, len(parts), shares[step][1]))
        if step > 0 and step + 1 < len(parts) and (step + 1) % LOOK_STEPS:
            continue
        state.losses += looked_at(job, pending)
        pending.clear()
        now = perf_counter()
        state.seconds, state.waited_s = seconds + now - start, waited_s + sum(waits_s)
        if now - kept >= CHECKPOINT_S:
            job.keep()
            kept = now


def order_of(training: TileStore, random: np.random.Generator, recipe: Training) -> np.ndarray:
    """Numbers of the tiles of an epoch (N,): of as many draws as its steps need."""
    wanted = recipe.steps * recipe.batch if recipe.steps else len(training)
    draws = [draw(training.table, random, recipe.order) for _ in range(math.ceil(wanted / len(training)))]
    return np.concatenate(draws)[:wanted]


def with_bar(job: Job, steps: Iterable[Any], first: int, count: int) -> Iterator[Any]:
    """The same, with a bar that grows, where somebody sees it."""
    hidden = not (job.fabric.is_global_zero and sys.stderr.isatty())
    title = f"epoch {len(job.state.rows) + 1} of {job.model.training.epochs}"
    return iter(tqdm(steps, title, initial=first, total=count, leave=False, disable=hidden))


def take_step(job: Job, batch: dict[str, Tensor], step: int, steps: int, counts: bool) -> Tensor:
    """Take a step with what this device has of a batch, which counts or only fills it up; the loss, on the device."""
    state, model, recipe = job.state, job.model, job.model.training
    chance = (model.seed, len(state.rows), step, job.fabric.global_rank)
    seed_networks(*chance)
    batch = vary(batch, recipe.augment, state.net.shapes, generator(job.buffers.device, *chance), state.net.categories)
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(recipe, state.rows, step, steps)
    outputs = outputs_of(job.module(batch))
    loss = tile_loss(outputs, batch, state.class_weight, recipe)
    if job.fabric.world_size > 1:
        loss = loss * share_of_loss(job, basis(outputs, batch, state.class_weight, recipe) * counts)
    state.optimiser.zero_grad(set_to_none=True)
    job.fabric.backward(loss)
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(state.net.parameters(), recipe.clip)
    state.optimiser.step()
    if recipe.average:
        update_average(state.shown, state.net, recipe.average, len(state.rows) * steps + step)
    return loss.detach()


def seed_networks(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed what networks draw in a step: on the CPU alike on all devices, such as dates, on a GPU each its own."""
    common, own = (int(np.random.SeedSequence((seed, epoch, step, r)).generate_state(1)[0]) for r in (0, rank))
    torch.manual_seed(common)
    if rank:
        torch.cuda.manual_seed(own)


def share_of_loss(job: Job, mine: Tensor) -> Tensor:
    """What the loss of this device counts, so that the mean over the devices is the loss of the batch as a whole.

    Exact for means over labelled pixels, and over the dates that saw them, which are those of one device as well;
    losses of overlap are means of those of the devices.

    Parameters
    ----------
    mine : what this device's loss is a mean over, a scalar.
    """
    return mine / over_devices(job.fabric, mine, "mean").clamp(min=TINY)


def over_devices(fabric: Fabric, values: Tensor, how: str) -> Tensor:
    """Mean or sum over the devices."""
    return values if fabric.world_size == 1 else cast(Tensor, fabric.all_reduce(values.clone(), reduce_op=how))


def looked_at(job: Job, pending: list[Tensor]) -> list[float]:
    """Losses of the last steps, the means over the devices; ModelError where one is not finite."""
    values: list[float] = over_devices(job.fabric, torch.stack(pending), "mean").tolist()
    for step, value in enumerate(values, len(job.state.losses) + 1):
        if not math.isfinite(value):
            name = not_finite(job.state.net)
            where = f", and {name} of the network is not finite" if name else ""
            raise ModelError(
                f"the loss of epoch {len(job.state.rows) + 1}, step {step} is {value}{where}: lower "
                "training.learning_rate"
            )
    return values


def end_epoch(job: Job, training: TileStore, validation: TileStore, classes: list[str]) -> Tensor:
    """Validate, add the epoch to the log and begin the next one; the confusion of the validation tiles."""
    state, recipe = job.state, job.model.training
    start = perf_counter()
    confusion, loss = validate(job, validation)
    scored = scores(confusion.numpy(), min_pixels=job.model.min_pixels)
    values = (
        len(state.rows) + 1,
        float(np.mean(state.losses)),
        loss,
        scored["overall"] or 0.0,
        scored["macro_f1"] or 0.0,
        scored["kappa"] or 0.0,
        state.optimiser.param_groups[0]["lr"],
        state.seconds + perf_counter() - start,
        state.waited_s / state.seconds,
        (recipe.steps * recipe.batch if recipe.steps else len(training)) / state.seconds,
    )
    by_class = zip(classes, scored["classes"], strict=True)
    f1 = {f"{F1}{key}": math.nan if entry["f1"] is None else entry["f1"] for key, entry in by_class}
    state.rows.append(dict(zip(LOG_COLUMNS, values, strict=True)) | f1)
    state.losses, state.seconds, state.waited_s = [], 0.0, 0.0
    return confusion


@torch.inference_mode()
def validate(job: Job, tiles: TileStore) -> tuple[Tensor, float]:
    """Confusion of the guesses with the labels, int64 (map class, label class), and mean loss of validation tiles."""
    net, fabric, class_weight, recipe = job.state.shown, job.fabric, job.state.class_weight, job.model.training
    classes = len(class_weight)
    confusion = torch.zeros(classes**2 + 1, dtype=torch.int64, device=fabric.device)
    total = torch.zeros(2, device=fabric.device, dtype=torch.float64)
    parts = [
        share_of(part, fabric.global_rank, fabric.world_size) for part in batches(np.arange(len(tiles)), recipe.batch)
    ]
    net.eval()
    for batch in load(tiles, [part for part, counts in parts if counts], job.buffers):
        with fabric.autocast():
            outputs = outputs_of(net(batch))
        outputs = [output._replace(logits=output.logits.float()) for output in outputs]
        counted = basis(outputs, batch, class_weight, recipe).double()
        total += torch.stack([tile_loss(outputs, batch, class_weight, recipe).double() * counted, counted])
        label, weight = targets(batch)
        guess = net.chosen(outputs).argmax(1)  # (B, H, W), or (B,) of patches
        pairs = torch.where((label >= 0) & (weight > 0), guess * classes + label, classes**2)
        confusion += torch.bincount(pairs.flatten(), minlength=classes**2 + 1)
    loss, of = over_devices(fabric, total, "sum").tolist()
    confusion = over_devices(fabric, confusion, "sum").cpu()
    return confusion[:-1].reshape(classes, classes), loss / max(of, TINY)


# --- after the last step ---------------------------------------------------------------------------------------------


def finish(
    parts: Path,
    model: Model,
    classes: list[str],
    unseen: list[str],
    weights: Path,
    metrics: Path,
    training_log: Path,
    curves: Path,
    events: Path,
) -> None:
    """Write the log, as a table, a picture and for TensorBoard, the metrics of the best epoch, and its weights."""
    from covermap.charts import draw_curves  # matplotlib is slow to import

    net, _ = load_weights(parts / "best.safetensors", torch.device("cpu"))
    rows, confusion = load_outcome(parts / "latest.pt")
    with whole(training_log) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    summary = {
        "best_epoch": best_epoch(rows),
        "parameters": sum(values.numel() for values in net.parameters()),
        "without_training_pixels": unseen,
        "validation": summary_of(confusion.numpy(), classes, model.min_pixels),
    }
    with whole(metrics) as part:
        part.write_text(json.dumps(summary, indent=2) + "\n")
    draw_curves(rows, curves)
    for source, output in ((parts / "events.tfevents", events), (parts / "best.safetensors", weights)):
        with whole(output) as part:
            shutil.copyfile(source, part)


def summary_of(confusion: np.ndarray, classes: list[str], min_pixels: int) -> Metrics:
    """How a network does on the validation tiles; of the confusion the rows are the map, the columns the label."""
    scored = scores(confusion, min_pixels=min_pixels)
    by_class = dict(zip(classes, scored["classes"], strict=True))
    return {
        "overall": scored["overall"],
        "macro_f1": scored["macro_f1"],
        "kappa": scored["kappa"],
        "f1": {key: entry["f1"] for key, entry in by_class.items()},
        "iou": {key: entry["iou"] for key, entry in by_class.items()},
        "confusion": confusion.tolist(),
    }
