"""The training loop: its recipe, what it survives, what it refuses, and what it writes."""

import ctypes
import json
import math
import multiprocessing
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c
from torch import nn

import covermap.train
from covermap import devices
from covermap.errors import CoverageError, ModelError
from covermap.events import NAMES, event_file
from covermap.loader import share_of
from covermap.memory import is_out_of_memory
from covermap.model_settings import Model, Training
from covermap.models import MODELS
from covermap.models.outputs import Output
from covermap.prepare import input_shapes
from covermap.recipe import is_over, learning_rate, optimiser_of, plateaus, update_average
from covermap.store import TileStore, new_store, places_digest
from covermap.train import order_of, seed_networks, train
from covermap.trained import load_weights

CLASSES = ["water", "forest", "field"]
OUTPUTS = "weights.safetensors", "metrics.json", "log.csv", "curves.png", "events.tfevents"
SPLITS = ("train", "train", "train", "validation")
ALL_AUGMENTATION = {
    "reflectance_gain": 0.1, "reflectance_offset": 0.02, "reflectance_noise": 0.01, "rotate_deg": 20,
}  # fmt: skip


def model_of(**training):
    recipe = {"epochs": 3, "batch": 4, "learning_rate": 1e-2, "threads": 1, "precision": "float32", **training}
    return Model(
        network="unet",
        options={"width": 8, "depth": 1},
        train_on=("here",),
        sensors=("sentinel2",),
        training=recipe,
    )


def make(folder, tiles=28, side=16, classes=(1, 2, 3), weight=100, patches=False, splits=SPLITS):
    """A store of tiles in whose halves the classes differ in brightness; of patches with a class each."""
    folder.mkdir(exist_ok=True)
    chance = np.random.default_rng(5)
    label = np.resize(classes, (tiles, 2)).astype(np.uint8).repeat(side // 2, 1)[:, None].repeat(side, 1)
    values = label[:, None, None] * np.uint16([[[[500]], [[900]]]]) + chance.integers(0, 300, (tiles, 1, 2, side, side))
    label = label[:, 0, 0] if patches else label
    arrays = {"s2": values.astype(np.uint16), "label": label, "weight": np.full_like(label, weight)}
    rows = pd.DataFrame({"row": 0, "column": side * np.arange(tiles), "aoi": "here", "block": "b", "geometry": b""})
    counts = {f"class_{k}": (label == k).reshape(tiles, -1).sum(1) for k in (1, 2, 3)}
    rows = rows.assign(split=np.resize(splits, tiles), sampling=np.float32(1), **counts)
    rows.to_parquet(folder / "index.parquet")
    kinds = {key: (each.dtype, each.shape[1:]) for key, each in arrays.items()}
    about = {"meaning": json.dumps({"s2": {"band": ["B04", "B08"]}}), "places": places_digest(rows)}
    with new_store(folder / "store.safetensors", tiles, kinds, about) as write:
        for number in range(tiles):
            write(number, {key: each[number] for key, each in arrays.items()})
    return folder / "index.parquet", [folder / "store.safetensors"], [("here", "b")]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tiles"))


def run(tiles, folder, model, start=None):
    folder.mkdir(exist_ok=True)
    outputs = [folder / name for name in OUTPUTS]
    train(*tiles[:2], *outputs, tiles[2], model, CLASSES, start)
    return outputs


# --- the recipe ------------------------------------------------------------------------------------------------------


def rows_of(*scores):
    return [{"val_macro_f1": score} for score in scores]


def rates(epochs, steps=1, **settings):
    recipe = Training(epochs=epochs, learning_rate=0.1, **settings)
    return [
        learning_rate(recipe, rows_of(*range(epoch)), step, steps) for epoch in range(epochs) for step in range(steps)
    ]


def test_the_rate_grows_and_then_follows_its_schedule():
    assert rates(4, schedule="constant", warm_up=0) == [0.1] * 4
    exponential = rates(13, schedule="exponential", warm_up=0)
    assert exponential[:11] == [0.1] * 11
    np.testing.assert_allclose(exponential[11:], [0.1 * math.exp(-0.1), 0.1 * math.exp(-0.2)])
    cosine = rates(2, 50, schedule="cosine", warm_up=0)
    np.testing.assert_allclose([cosine[0], cosine[50], cosine[25]], [0.1, 0.05, 0.05 * (1 + math.sqrt(0.5))])
    for schedule in ("constant", "exponential", "cosine", "plateau"):
        warmed = rates(2, 50, schedule=schedule, warm_up=0.1)
        assert warmed[0] < 0.002 and np.all(np.diff(warmed[:11]) > 0) and warmed[10] == pytest.approx(0.1)


def test_a_plateau_halves_the_rate_after_five_epochs_that_brought_nothing():
    assert plateaus(rows_of(0.1, 0.2, 0.3, 0.3, 0.3, 0.2, 0.3)) == 0
    assert plateaus(rows_of(0.3, *[0.3] * 5)) == 1
    assert plateaus(rows_of(0.3, *[0.3] * 9)) == 1
    assert plateaus(rows_of(0.3, *[0.1] * 10)) == 2
    assert plateaus(rows_of(0.3, *[0.1] * 4, 0.4, *[0.1] * 4)) == 0
    recipe = Training(schedule="plateau", warm_up=0, learning_rate=0.1)
    assert learning_rate(recipe, rows_of(*[0.5] * 11), 0, 3) == 0.025


def test_training_ends_when_patience_does():
    recipe = Training(epochs=10, patience=2, min_gain=0.1)
    assert not is_over(recipe, rows_of(0.5, 0.55))
    assert is_over(recipe, rows_of(0.5, 0.55, 0.59))
    assert not is_over(recipe, rows_of(0.5, 0.55, 0.61, 0.7))
    assert not is_over(Training(epochs=10), rows_of(*[0.5] * 9))
    assert is_over(Training(epochs=10), rows_of(*[0.5] * 10))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimiser": "sgd", "weight_decay": 0.5}, -0.1 * (3 + 0.5 * 2)),  # the gradient and an L2 penalty
        ({"optimiser": "adam", "weight_decay": 0.5}, -0.1),  # the sign of the gradient
        ({"optimiser": "adamw", "weight_decay": 0.5}, -0.1 - 0.1 * 0.5 * 2),  # and the decay beside it
    ],
)
def test_the_first_step_of_each_optimiser(settings, expected):
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(2)
    net.weight.grad = torch.full((1, 1), 3.0)
    optimiser_of(net, Training(learning_rate=0.1, **settings)).step()
    assert net.weight.item() == pytest.approx(2 + expected)


def test_the_average_follows_weights_and_buffers():
    net, average = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    values = []
    for step in range(200):
        net.weight.data.fill_(step)
        net.running_mean.fill_(-step)
        net.num_batches_tracked.fill_(step)
        update_average(average, net, 0.5, step)
        decay = min(0.5, (1 + step) / (10 + step))
        values.append((values[-1] if values else 1) * decay + step * (1 - decay))
        assert average.weight.item() == pytest.approx(values[-1], rel=1e-5)
    assert average.running_mean.item() == pytest.approx(-values[-1], rel=1e-5)
    assert average.num_batches_tracked == 199


def test_an_epoch_has_the_steps_that_are_asked_for(tiles, tmp_path):
    store = TileStore({("here", "b"): tiles[1][0]}, tiles[0], "train")
    for steps in (2, 5, 11):
        order = order_of(store, np.random.default_rng(0), Training(steps=steps, batch=4))
        assert len(order) == steps * 4
        assert np.ptp(np.bincount(order, minlength=21)) <= 1  # no tile twice before each was there
    log = pd.read_csv(run(tiles, tmp_path / "a", model_of(epochs=1, steps=2))[2])
    assert log.tiles_per_s[0] > 0


def test_devices_draw_the_same_dates():
    drawn = []
    for rank in (0, 1):
        seed_networks(7, 2, 3, rank)
        drawn.append(torch.randperm(10).tolist())
    assert drawn[0] == drawn[1]
    seed_networks(7, 2, 4, 0)
    assert torch.randperm(10).tolist() != drawn[0]


def test_new_memory_is_not_filled():
    devices.use_device(1)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_devices_share_a_batch():
    parts = [share_of(np.arange(7), rank, 3) for rank in range(3)]
    assert [len(mine) for mine, _ in parts] == [3, 2, 2] and all(counts for _, counts in parts)
    np.testing.assert_array_equal(np.concatenate([mine for mine, _ in parts]), np.arange(7))
    assert [(mine.tolist(), counts) for mine, counts in (share_of(np.array([9]), rank, 2) for rank in range(2))] == [
        ([9], True),
        ([9], False),
    ]


def test_every_setting_of_the_recipe_acts(tiles, tmp_path):
    plain = run(tiles, tmp_path / "plain", model_of())[0].read_bytes()
    other = (
        {"optimiser": "sgd"}, {"optimiser": "adam"}, {"schedule": "constant"}, {"warm_up": 0.5}, {"weight_decay": 0.5},
        {"clip": 1e-3}, {"average": 0.9}, {"loss": {"dice": 1.0}}, {"steps": 2}, {"augment": {"symmetries": False}},
    )  # fmt: skip
    found = {plain}
    for number, settings in enumerate(other):
        found.add(run(tiles, tmp_path / f"{number}", model_of(**settings))[0].read_bytes())
    assert len(found) == len(other) + 1
    assert run(tiles, tmp_path / "again", model_of())[0].read_bytes() == plain


# --- networks of other kinds -----------------------------------------------------------------------------------------


class Voting(nn.Module):
    """A branch for each band; the second has not seen anything."""

    def __init__(self, shapes, classes, **_):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(1, classes, 1) for _ in range(2))

    def forward(self, inputs, valid):
        bands = inputs["s2"][:, 0].split(1, 1)
        logits = [branch(band) for branch, band in zip(self.branches, bands, strict=True)]
        return [Output(logits[0], 0.5, valid["s2"][:, 0]), Output(logits[1], 0.5, torch.zeros_like(valid["s2"][:, 0]))]


class OfPatches(nn.Module):
    """One answer for each patch."""

    def __init__(self, shapes, classes, **_):
        super().__init__()
        self.head = nn.Linear(2, classes)

    def forward(self, inputs, valid):
        return self.head(inputs["s2"][:, 0].mean((-2, -1)))


def test_several_outputs_are_taught_and_vote(tiles, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "unet", f"{__name__}:Voting")
    weights, metrics, *_ = run(tiles, tmp_path / "a", model_of(epochs=8, learning_rate=0.1, weight_decay=0))
    assert json.loads(metrics.read_text())["validation"]["overall"] > 0.95
    net, _ = load_weights(weights, torch.device("cpu"))
    assert net.network.branches[1].weight.grad is None
    torch.manual_seed(0)
    untaught = Voting({}, 3)
    torch.testing.assert_close(net.network.branches[1].weight, untaught.branches[1].weight)


BRANCHES = {"fused": 1.0, "s1": 0.3, "s2": 0.7}
BOTH = {"s1": {"month": ["01", "02"], "polarisation": ["VV", "VH"]}, "s2": {"band": ["B04", "B08"]}}


def with_radar(tiles, folder):
    """The same tiles with two months of noise beside."""
    with safe_open(tiles[1][0], "pt") as file:
        about = file.metadata()
    arrays = {key: each.numpy() for key, each in load_file(tiles[1][0]).items()}
    count, side = arrays["label"].shape[:2]
    arrays["s1"] = np.random.default_rng(1).integers(-2000, -500, (count, 2, 2, side, side)).astype(np.int16)
    kinds = {key: (each.dtype, each.shape[1:]) for key, each in arrays.items()}
    folder.mkdir()
    about = {"meaning": json.dumps(BOTH), "places": about["places"]}
    with new_store(folder / "store.safetensors", count, kinds, about) as write:
        for number in range(count):
            write(number, {key: each[number] for key, each in arrays.items()})
    return tiles[0], [folder / "store.safetensors"], tiles[2]


def test_both_losses_of_a_network_of_two_branches_are_the_published_sum(tmp_path, monkeypatch):
    """A step of deepforest_2a: what the log says is 1 of both, 0.3 of Sentinel-1 and 0.7 of Sentinel-2."""
    parts = {}
    original = covermap.train.tile_loss

    def told(outputs, batch, weights, recipe):
        key = "train_loss" if outputs[0].logits.requires_grad else "val_loss"
        alone = [original([each._replace(share=1.0)], batch, weights, recipe).item() for each in outputs]
        parts[key] = sum(share * loss for share, loss in zip(BRANCHES.values(), alone, strict=True))
        return original(outputs, batch, weights, recipe)

    monkeypatch.setattr(covermap.train, "tile_loss", told)
    both = with_radar(make(tmp_path / "plain", tiles=4, side=64), tmp_path / "both")
    model = model_of(epochs=1, batch=8).model_dump() | {
        "network": "deepforest_2a", "options": {"width": 8}, "sensors": ("sentinel1", "sentinel2")
    }  # fmt: skip
    log = pd.read_csv(run(both, tmp_path / "a", Model(**model))[2])
    assert set(parts) == {"train_loss", "val_loss"}
    for key, expected in parts.items():
        assert log[key][0] == pytest.approx(expected, rel=1e-5)


def test_patches_are_taught_and_validated(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "unet", f"{__name__}:OfPatches")
    patches = make(tmp_path / "patches", 40, patches=True)
    metrics = json.loads(
        run(patches, tmp_path / "a", model_of(epochs=12, learning_rate=0.1, min_pixels=1))[1].read_text()
    )
    assert np.sum(metrics["validation"]["confusion"]) == 10
    assert metrics["validation"]["overall"] > 0.85


# --- what is written -------------------------------------------------------------------------------------------------


def records(path):
    """Events of a file for TensorBoard, checked as TensorFlow's TFRecord format asks."""
    content, found = path.read_bytes(), []
    while content:
        length, check = struct.unpack("<QI", content[:12])
        assert check == masked_crc32c(content[:8])
        data, (check,) = content[12 : 12 + length], struct.unpack("<I", content[12 + length : 16 + length])
        assert check == masked_crc32c(data)
        found.append(Event.FromString(data))
        content = content[16 + length :]
    return found


def test_the_files_of_a_training_agree(tiles, tmp_path):
    weights, metrics, log, curves, events = run(tiles, tmp_path / "a", model_of())
    rows = pd.read_csv(log)
    told = json.loads(metrics.read_text())
    best = rows.loc[told["best_epoch"] - 1]
    assert best.val_macro_f1 == rows.val_macro_f1.max() == pytest.approx(told["validation"]["macro_f1"])
    confusion = np.array(told["validation"]["confusion"])
    assert confusion.sum() == 7 * 256 and confusion.trace() / confusion.sum() == pytest.approx(best.val_overall)
    assert best.val_kappa == pytest.approx(told["validation"]["kappa"])
    assert {key: best[f"f1_{key}"] for key in CLASSES} == pytest.approx(told["validation"]["f1"])
    assert set(told["validation"]["iou"]) == set(CLASSES) and told["without_training_pixels"] == []
    assert (rows.waiting.between(0, 1) & (rows.tiles_per_s > 0)).all()
    assert curves.read_bytes().startswith(b"\x89PNG")
    version, *epochs = records(events)
    assert version.file_version == "brain.Event:2" and [event.step for event in epochs] == [1, 2, 3]
    for event, (_, row) in zip(epochs, rows.iterrows(), strict=True):
        values = {value.tag: value.simple_value for value in event.summary.value}
        of_classes = {f"f1/{key}": row[f"f1_{key}"] for key in CLASSES}
        assert values == pytest.approx({tag: row[name] for name, tag in NAMES.items()} | of_classes, rel=1e-6)
    header = json.loads(safe_open(weights, "pt").metadata()["covermap"])
    assert set(header) == {"model", "shapes", "meaning", "classes"}


def test_the_events_of_a_resumed_run_are_whole(tmp_path):
    rows = [dict.fromkeys(covermap.train.LOG_COLUMNS, 0.5) | {"epoch": k, "seconds": 10.0} for k in (1, 2, 3)]
    path = tmp_path / "events.tfevents"
    for done in (0, 1):
        with event_file(path, rows[:done]) as add:
            add(rows[done])
    with event_file(path, rows[:2]) as add:
        add(rows[2])
        live = records(path)  # while it is written
    assert [event.step for event in live] == [0, 1, 2, 3]
    assert live[2].wall_time - live[1].wall_time == pytest.approx(10)
    assert live[2].wall_time == pytest.approx(time.time(), abs=5)


def test_a_class_that_is_never_seen_is_told(tmp_path, caplog):
    bare = make(tmp_path / "tiles", classes=(1, 2))
    _, metrics, log, *_ = run(bare, tmp_path / "a", model_of(epochs=1))
    assert json.loads(metrics.read_text())["without_training_pixels"] == ["field"]
    assert pd.read_csv(log).f1_field.isna().all() or (pd.read_csv(log).f1_field == 0).all()
    assert "no training tile has a pixel of field" in caplog.text


def forking():
    """Processes that begin without threads of this one, and with all that is slow to import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "lightning_fabric.strategies", "covermap.charts"])
    return context


# --- kills -----------------------------------------------------------------------------------------------------------


def endure(tiles, folder, model):
    """Train with a checkpoint after every step."""
    covermap.train.LOOK_STEPS, covermap.train.CHECKPOINT_S = 1, 0
    run(tiles, folder, model)


def killed(process, folder, checkpoints, delay_s):
    """Kill a training a moment after so many more checkpoints; whether it still ran."""
    seen, last = 0, None
    while process.is_alive():
        found = next(folder.glob(".weights.safetensors.*/latest.pt"), None)
        try:
            state = found and found.stat().st_ino
        except FileNotFoundError:  # replaced or finished meanwhile
            state = last
        seen, last = seen + (state != last), state
        if seen > checkpoints:
            time.sleep(delay_s)
            running = process.is_alive()
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return running
        time.sleep(1e-3)
    return False


@pytest.mark.parametrize(("kills", "seed"), [(3, 1), pytest.param(10, 2, marks=pytest.mark.long)])
def test_a_training_killed_at_any_moment_ends_in_the_same_weights(tiles, tmp_path, kills, seed):
    model = model_of(epochs=2 + kills // 2, average=0.9, order="shards", augment=ALL_AUGMENTATION)
    expected = run(tiles, tmp_path / "undisturbed", model)
    chance = random.Random(seed)
    context = forking()
    done = 0
    for _ in range(kills):
        process = context.Process(target=endure, args=(tiles, tmp_path / "again", model))
        process.start()
        done += killed(process, tmp_path / "again", chance.randrange(1, 5), chance.uniform(0, 0.05))
    assert done == kills
    process = context.Process(target=endure, args=(tiles, tmp_path / "again", model))
    process.start()
    process.join()
    assert process.exitcode == 0
    found = [tmp_path / "again" / name for name in OUTPUTS]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == sorted(OUTPUTS)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
    timed = ["seconds", "waiting", "tiles_per_s"]
    logs = [pd.read_csv(path).drop(columns=timed) for path in (found[2], expected[2])]
    pd.testing.assert_frame_equal(*logs, check_exact=True)
    assert [event.step for event in records(found[4])] == [event.step for event in records(expected[4])]


class Hostile:
    """What runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("content", ["pickle", "torch", "cut", "other", "empty", "nan"])
def test_a_broken_or_hostile_checkpoint_is_refused(tiles, tmp_path, monkeypatch, content):
    class Killed(BaseException):
        pass

    def dying(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(covermap.train, "run_epoch", dying)
        with pytest.raises(Killed):
            run(tiles, tmp_path / "a", model_of())
    latest = next((tmp_path / "a").glob(".weights.safetensors.*/latest.pt"))
    if content == "pickle":
        latest.write_bytes(pickle.dumps(Hostile(tmp_path / "owned"), protocol=2))
    elif content == "torch":
        torch.save({"net": Hostile(tmp_path / "owned")}, latest)
    elif content == "cut":
        latest.write_bytes(latest.read_bytes()[:3000])
    elif content == "other":
        torch.save({"net": {}, "class_weight": torch.ones(3)}, latest)
    elif content == "nan":
        saved = torch.load(latest, weights_only=True)
        next(iter(saved["net"].values())).fill_(torch.nan)
        torch.save(saved, latest)
    else:
        latest.write_bytes(b"")
    with pytest.raises(ModelError, match=r"latest\.pt is broken.*remove it and run again") as raised:
        run(tiles, tmp_path / "a", model_of())
    assert "\n" not in str(raised.value) and "weights_only" not in str(raised.value)
    assert not (tmp_path / "owned").exists() and not (tmp_path / "a" / "weights.safetensors").exists()


# --- bad input -------------------------------------------------------------------------------------------------------


def test_tiles_that_teach_nothing_are_refused(tmp_path):
    with pytest.raises(CoverageError, match="no training tile has a labelled pixel"):
        run(make(tmp_path / "bare", classes=(0,)), tmp_path / "a", model_of())
    with pytest.raises(CoverageError, match="no pixel of the 7 validation tiles counts"):
        run(make(tmp_path / "light", weight=0), tmp_path / "a", model_of())
    with pytest.raises(CoverageError, match=r"of the 0 validation tiles counts.*raise tiles\.validation"):
        run(make(tmp_path / "all", splits=["train"]), tmp_path / "a", model_of())
    with pytest.raises(CoverageError, match="min_pixels is 9999, but no class has more than 640"):
        run(make(tmp_path / "few"), tmp_path / "a", model_of(min_pixels=9999))
    assert not [path for path in (tmp_path / "a").iterdir() if path.is_file()]


def test_a_class_whose_validation_pixels_weigh_nothing_cannot_choose(tmp_path):
    tiles = make(tmp_path / "tiles", patches=False)
    with safe_open(tiles[1][0], "pt") as file:
        about = file.metadata()
    arrays = load_file(tiles[1][0])
    arrays["weight"][:, :, 1:] = 0
    save_file(arrays, tiles[1][0], about)
    with pytest.raises(CoverageError, match="min_pixels is 100, but no class has more than 48 validation pixels that"):
        run(tiles, tmp_path / "a", model_of())


def test_training_tiles_without_weight_are_refused(tmp_path):
    tiles = make(tmp_path / "tiles")
    store = tiles[1][0]
    with safe_open(store, "pt") as file:
        about = file.metadata()
    arrays = load_file(store)
    arrays["weight"][torch.from_numpy((pd.read_parquet(tiles[0]).split == "train").to_numpy(copy=True))] = 0
    save_file(arrays, store, about)
    with pytest.raises(CoverageError, match="all labelled training pixels have the weight 0"):
        run(tiles, tmp_path / "a", model_of())


def test_tiles_that_the_network_cannot_take_are_refused(tmp_path):
    odd = make(tmp_path / "odd", side=18)
    deep = model_of().model_copy(update={"options": {"width": 8, "depth": 2}})
    with pytest.raises(ModelError, match="tiles are 18 px a side, but the network takes multiples of 4 px"):
        run(odd, tmp_path / "a", deep)


def test_dropping_dates_needs_several(tiles):
    tile = {"s2": np.zeros((1, 2, 4, 4))}
    with pytest.raises(ModelError, match=r"drop_dates is 0\.5, but every input has one step"):
        input_shapes(tile, model_of(augment={"drop_dates": 0.5}))


def test_start_weights_are_taken_and_refused(tiles, tmp_path):
    first = run(tiles, tmp_path / "first", model_of())[0]
    model = model_of(epochs=1, learning_rate=1e-9, weight_decay=0).model_copy(update={"start_from": "first"})
    again = run(tiles, tmp_path / "again", model, first)[0]
    expected, found = load_file(first), load_file(again)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=name, atol=1e-6, rtol=0)
    spoilt = expected | {"network.head.weight": torch.full_like(expected["network.head.weight"], torch.nan)}
    with safe_open(first, "pt") as file:
        save_file(spoilt, tmp_path / "nan.safetensors", file.metadata())
    with pytest.raises(ModelError, match=r"network\.head\.weight of the network is not finite before the first step"):
        run(tiles, tmp_path / "nan", model, tmp_path / "nan.safetensors")
    save_file({"elsewhere": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError):
        run(tiles, tmp_path / "other", model, tmp_path / "other.safetensors")


def test_a_loss_that_is_not_finite_is_named_by_its_step(tiles, tmp_path, monkeypatch):
    original = covermap.train.take_step

    def spoil(job, batch, step, *rest):
        if len(job.state.rows) == 1 and step == 2:
            job.state.net.network.head.bias.data.fill_(torch.nan)
        return original(job, batch, step, *rest)

    monkeypatch.setattr(covermap.train, "take_step", spoil)
    with pytest.raises(ModelError, match=r"the loss of epoch 2, step 3 is nan, and network\.\S+ of the network is not"):
        run(tiles, tmp_path / "a", model_of())


def crowded(tiles, folder, model, room):
    """Train with so much more memory than there is in use; the sentence goes into a file.

    Data alone are limited: of the address space, each thread reserves much that it never uses. And what is freed goes
    back at once: where glibc kept it in its heaps, the limit left no room for oneDNN's programs.
    """
    torch.set_num_threads(1)
    threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    assert ctypes.CDLL(None).mallopt(threshold, 1 << 17) == 1
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + room,) * 2)
    try:
        run(tiles, folder, model)
    except ModelError as error:
        (folder / "told.txt").write_text(str(error))


def test_a_batch_too_large_for_memory_is_told_with_one_that_fits(tmp_path):
    large = make(tmp_path / "tiles", tiles=80, side=64)
    model = model_of(batch=60, epochs=1).model_copy(update={"options": {"width": 64, "depth": 1}})
    process = forking().Process(target=crowded, args=(large, tmp_path / "a", model, 600_000_000))
    process.start()
    process.join()
    told = (tmp_path / "a" / "told.txt").read_text()
    assert told.startswith("training.batch is 60, which is too much for the memory of the machine: set it to ")
    assert 0 < int(told.split("set it to ")[1].split(",")[0]) < 60


@pytest.mark.parametrize("phrase", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when", "CUDNN_STATUS_ALLOC_FAILED", "x"])
def test_what_is_said_where_memory_is_short_is_known(phrase):
    assert is_out_of_memory(RuntimeError(phrase)) == (phrase != "x")


def test_a_network_that_memory_has_no_room_for_is_told(tiles, tmp_path, monkeypatch):
    """The error comes before the first step, when the network goes to its device."""

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(covermap.train, "put_on_device", full)
    with pytest.raises(ModelError, match="not one tile fits into the memory of the machine"):
        run(tiles, tmp_path / "a", model_of())


def test_the_step_that_tells_what_fits_is_one_of_training(tiles, tmp_path, monkeypatch):
    """With the moving average, the other views and the clipping of the real one, of halves of the batch."""
    taken = []
    original = covermap.train.take_step

    def crowded(job, batch, *rest):
        taken.append(len(batch["label"]))
        if taken[-1] > 2:
            raise torch.OutOfMemoryError("out of memory")
        return original(job, batch, *rest)

    monkeypatch.setattr(covermap.train, "take_step", crowded)
    with pytest.raises(ModelError, match=r"training\.batch is 16, .*: set it to 2, which fits"):
        run(tiles, tmp_path / "a", model_of(batch=16, average=0.9, augment=ALL_AUGMENTATION))
    assert taken == [16, 8, 4, 2]


# --- several devices, and compiled -----------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
open("began.txt", "a").write("once ")
import logging
from covermap import devices
from covermap.errors import ModelError
from tests.unit.test_trainer import make, model_of, run
logging.basicConfig(filename="log.txt", level="INFO")
folder = Path.cwd()
devices.CPU_PROCESSES = 2
model = model_of(batch=5, epochs=2, class_weights="inverse")  # the last batch has one tile
run(make(folder / "tiles"), folder / "two", model)
devices.CPU_PROCESSES = 1
run(make(folder / "tiles"), folder / "one", model)
devices.CPU_PROCESSES = 2
try:
    hot = model_of(learning_rate=0.99, optimiser="sgd", clip=None, weight_decay=1e30)
    run(make(folder / "tiles"), folder / "hot", hot)
except ModelError as error:
    (folder / "told.txt").write_text(str(error))
"""


@pytest.mark.long
def test_two_processes_learn_what_one_learns(tmp_path):
    """Begun by a script without a main guard, as Snakemake's are: the processes must not begin with it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    line = [sys.executable, "script.py"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "began.txt").read_text() == "once "
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], msg=name, atol=2e-4, rtol=2e-3)
    logs = [pd.read_csv(tmp_path / name / "log.csv") for name in ("one", "two")]
    columns = ["train_loss", "val_loss", "val_overall", "val_macro_f1", "learning_rate"]
    np.testing.assert_allclose(logs[1][columns], logs[0][columns], rtol=2e-3)
    assert (tmp_path / "told.txt").read_text().startswith("the loss of epoch 1, step ")
    assert (tmp_path / "log.txt").read_text().count("epoch 1 train_loss") == 2  # one process writes


def test_an_error_of_a_process_comes_as_itself():
    raised = torch.multiprocessing.ProcessRaisedException(
        "Traceback\n  line 1\ncovermap.errors.ModelError: it: is so", 0, 1
    )
    error = devices._as_raised(raised)
    assert type(error) is ModelError and str(error) == "it: is so"
    other = torch.multiprocessing.ProcessRaisedException("Traceback\nValueError: no", 0, 1)
    assert devices._as_raised(other) is other


@pytest.mark.long
def test_a_compiled_network_keeps_its_names_and_learns_the_same(tiles, tmp_path):
    models = [model_of(epochs=1, batch=7, compile=yes) for yes in (False, True)]  # batches of one size: compiled once
    plain, compiled = (load_file(run(tiles, tmp_path / str(k), model)[0]) for k, model in enumerate(models))
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], msg=name, atol=1e-2, rtol=1e-2)
