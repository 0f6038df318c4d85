"""Training steps with real tiles against steps on data that lie on the device, and against networks written naively.

Tiles are simulated and packed like those of the workflow: twelve months of two polarisations, ten bands on one date,
on six for ``fcn_lstm``, a label and a weight; 256 px a side on a GPU, 64 px on the CPU. Real steps are those of an
epoch of ``covermap.train``: tiles read, turned, normalised, the loss looked at now and then. Synthetic ones are the
same steps with one batch that never leaves the device. The naive network has the same weights, in float32 and in the
usual memory format, and its ConvLSTMs convolve step by step and gate by gate.

``benchmarks/train.py NETWORK ...`` measures some of the networks alone.

Figures, each the lowest of the networks, and with the name of each appended: ``fraction_of_synthetic`` (steps a
second with real tiles over those on the device) and ``ratio_naive`` (those on the device over the naive network's);
and of each network ``tiles_per_s``, ``share_of_peak`` (floating-point operations a second of the steps over those of
a product of two matrices of 4096 a side in the same precision) and, on a GPU, ``gpu_gb`` at most.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _peers import report
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from covermap.checkpoint import State, new_state
from covermap.devices import on_all_devices, use_device
from covermap.loader import buffers_for, on_device
from covermap.model_settings import Model
from covermap.models.convlstm import ConvLSTM
from covermap.models.outputs import outputs_of
from covermap.prepare import first_state, input_shapes, labelled_pixels
from covermap.store import TileStore, new_store, places_digest
from covermap.train import Job, put_on_device, run_epoch, take_step

THREADS, CLASSES, RUNS = 2, 10, 3
ON_GPU = torch.cuda.is_available()
SIDE, TILES, BATCH = (256, 512, 16) if ON_GPU else (64, 48, 8)
NETWORKS = {
    "deepforest_1b": ("sentinel1", "sentinel2"),
    "deepforest_2b": ("sentinel1", "sentinel2"),
    "unet": ("sentinel1", "sentinel2"),
    "fcn_lstm": ("sentinel2",),
}


class Naive(nn.Module):
    """A ConvLSTM as one first writes it: each step convolves its input and its state, once for each gate."""

    def __init__(self, fast: ConvLSTM) -> None:
        super().__init__()
        self.activation, self.gate, self.backwards = fast.activation, fast.gate, fast.backwards
        self.enter = nn.ParameterList(fast.enter.weight.detach().chunk(4))
        self.bias = nn.ParameterList(fast.enter.bias.detach().chunk(4))
        self.recur = nn.ParameterList(fast.recur.weight.detach().chunk(4))

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """State (B, hidden, H, W) after all steps of x (B, T, C, H, W)."""
        state = cell = x.new_zeros(len(x), len(self.bias[0]), *x.shape[-2:])
        steps = range(x.shape[1])
        for step in reversed(steps) if self.backwards else steps:
            gates = [
                nn.functional.conv2d(x[:, step], enter, bias, padding="same")
                + nn.functional.conv2d(state, recur, padding="same")
                for enter, bias, recur in zip(self.enter, self.bias, self.recur, strict=True)
            ]
            new_cell = self.gate(gates[1]) * cell + self.gate(gates[0]) * self.activation(gates[2])
            new_state = self.gate(gates[3]) * self.activation(new_cell)
            if seen is not None:
                now = seen[:, step, None] > 0
                new_state, new_cell = torch.where(now, new_state, state), torch.where(now, new_cell, cell)
            state, cell = new_state, new_cell
        return state


def naively(net: nn.Module) -> nn.Module:
    """A copy whose ConvLSTMs are naive."""
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, ConvLSTM):
                setattr(module, name, Naive(child))
    return net


# --- the tiles -------------------------------------------------------------------------------------------------------


def make(folder: Path, dates: int) -> TileStore:
    """A store of tiles with a few large fields each."""
    random = np.random.default_rng(0)
    kinds = {
        "s1": (np.dtype(np.int16), (12, 2, SIDE, SIDE)),
        "s2": (np.dtype(np.uint16), (dates, 10, SIDE, SIDE)),
        "label": (np.dtype(np.uint8), (SIDE, SIDE)),
        "weight": (np.dtype(np.uint8), (SIDE, SIDE)),
    }
    rows = pd.DataFrame({"row": np.arange(TILES) * SIDE, "column": 0})
    meaning = {
        "s1": {"month": [f"{month:02d}" for month in range(1, 13)], "polarisation": ["VV", "VH"]},
        "s2": {"band": ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]},
    }
    about = {"places": places_digest(rows), "meaning": pd.Series(meaning).to_json(), "dates": "{}"}
    counts = []
    with new_store(folder / "x0y0.safetensors", TILES, kinds, about) as write:
        for number in range(TILES):
            label = random.integers(1, CLASSES + 1, (4, 4)).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1).astype(np.uint8)
            s1 = random.integers(-2500, -500, kinds["s1"][1]) + 40 * label.astype(int)
            s2 = random.integers(300, 4000, kinds["s2"][1]) + 90 * label.astype(int)
            weight = np.full((SIDE, SIDE), 100, np.uint8)
            write(number, {"s1": s1.astype(np.int16), "s2": s2.astype(np.uint16), "label": label, "weight": weight})
            counts.append(np.bincount(label.ravel(), minlength=CLASSES + 1)[1:])
    classes = pd.DataFrame(counts, columns=[f"class_{number}" for number in range(1, CLASSES + 1)])
    table = rows.assign(aoi="here", block="x0y0", split="train", sampling=np.float32(1), geometry=None)
    pd.concat([table, classes], axis=1).to_parquet(folder / "index.parquet")
    return TileStore({("here", "x0y0"): folder / "x0y0.safetensors"}, folder / "index.parquet", "train")


# --- the steps -------------------------------------------------------------------------------------------------------


def fastest(functions: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Seconds of the fastest of several calls of each function, which take turns; each is called once before."""
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(RUNS + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if ON_GPU:
                torch.cuda.synchronize()
            if turn:
                spent[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in spent.items()}


def measure(fabric: Fabric, store: TileStore, model: Model) -> dict[str, float]:
    """Seconds of an epoch's steps: with real tiles, with one batch on the device, and of the naive network."""
    pixels = labelled_pixels(store, CLASSES)
    keys = {"sentinel1": "s1", "sentinel2": "s2"}
    meaning = store.meaning([keys[sensor] for sensor in model.sensors])
    state = first_state(store, pixels, model, input_shapes(store[0], model), meaning, None)
    buffers = buffers_for(store, BATCH, fabric.device)
    job = Job(fabric, put_on_device(fabric, state, model.training), state, model, buffers, lambda: None)
    batch = on_device(store.batch(np.arange(BATCH)), fabric.device)
    steps = TILES // BATCH

    def real() -> None:
        run_epoch(job, store)
        state.losses.clear()

    def synthetic(one: Job) -> None:
        for step in range(steps):
            loss = take_step(one, batch, step, steps, True)
        loss.item()

    spent = fastest({"real": real, "synthetic": lambda: synthetic(job)})
    spent["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0.0
    slow = naive_job(job)
    turns = fastest({"synthetic": lambda: synthetic(job), "naive": lambda: synthetic(slow)})
    spent["ratio_naive"] = turns["naive"] / turns["synthetic"]
    return spent | {"flops": operations(state, batch) * steps}


def naive_job(job: Job) -> Job:
    """The same training in float32, with a copy of the network as it is, whose ConvLSTMs are naive."""
    state = new_state(naively(job.state.net), job.state.class_weight, job.model.training)
    state.net.to(memory_format=torch.contiguous_format)
    plain = Fabric(accelerator=job.fabric.device.type, devices=1, precision="32-true")
    module, _ = plain.setup(state.net, state.optimiser)
    return job._replace(fabric=plain, module=module, state=state)


def operations(state: State, batch: dict[str, Tensor]) -> int:
    """Floating-point operations of the products in a step."""
    with FlopCounterMode(display=False) as counter:
        outputs = outputs_of(state.net(batch))
        sum(output.logits.float().mean() for output in outputs).backward()
    state.optimiser.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def peak_flops(fabric: Fabric) -> float:
    """Floating-point operations a second of a product of two matrices, in the precision of training."""
    with fabric.autocast():
        dtype = torch.get_autocast_dtype(fabric.device.type) if torch.is_autocast_enabled(fabric.device.type) else None
    one = torch.randn(4096, 4096, device=fabric.device, dtype=dtype or torch.float32)
    return 2 * 4096**3 / fastest({"product": lambda: one @ one})["product"]


def main() -> None:
    use_device(THREADS)
    figures: dict[str, float] = {}
    peak = on_all_devices(peak_flops, threads=THREADS, reduced=True, at_most=1)
    for name in sys.argv[1:] or NETWORKS:
        recipe = {"batch": BATCH, "threads": THREADS}
        model = Model(network=name, train_on=("here",), sensors=NETWORKS[name], training=recipe)
        with tempfile.TemporaryDirectory() as folder:
            store = make(Path(folder), 6 if name == "fcn_lstm" else 1)
            store.inputs = ["s1", "s2"] if "sentinel1" in NETWORKS[name] else ["s2"]
            if ON_GPU:
                torch.cuda.reset_peak_memory_stats()
            spent = on_all_devices(measure, store, model, threads=THREADS, reduced=True, at_most=1)
        figures[f"fraction_of_synthetic_{name}"] = round(spent["synthetic"] / spent["real"], 3)
        figures[f"ratio_naive_{name}"] = round(spent["ratio_naive"], 2)
        figures[f"tiles_per_s_{name}"] = round(TILES / spent["real"], 1)
        figures[f"share_of_peak_{name}"] = round(spent["flops"] / spent["synthetic"] / peak, 3)
        if ON_GPU:
            figures[f"gpu_gb_{name}"] = round(spent["gpu_gb"], 2)
        print(name, {key: value for key, value in figures.items() if key.endswith(name)}, flush=True)
    for key in ("fraction_of_synthetic", "ratio_naive"):
        figures[key] = min(value for name, value in figures.items() if name.startswith(key))
    report("train", **figures)


if __name__ == "__main__":
    main()
