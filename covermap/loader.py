"""In which order training sees tiles, and how they come to the device while it computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from covermap.store import TileStore

SHARDS_AT_ONCE = 8  # files that an order by shards mixes, so that a batch is of several places
READERS = 2  # threads that read

U16 = np.dtype(np.uint16)

Arrays = dict[str, np.ndarray]


def draw(table: pd.DataFrame, random: np.random.Generator, order: str = "tiles") -> np.ndarray:
    """Numbers of the tiles of an epoch, as many as there are: a sampler.

    Parameters
    ----------
    table : tiles of a store with ``aoi``, ``block`` and ``sampling``, the drawing weight of each, 1 on average.
    random : a generator of the seed and the epoch.
    order : "tiles": at random; "shards": from eight files in turn, by chance which, each in its own order.

    Returns
    -------
    int64 (N,). A tile of weight w is there floor(w) or ceil(w) times, and w times on average: systematic resampling
    (Douc and Cappé 2005, doi:10.1109/ISPA.2005.195385), so that rare tiles are repeated, but never all left out.
    """
    numbers = random.permutation(len(table))
    weights = table.sampling.to_numpy(np.float64)[numbers]
    if np.ptp(weights):
        edges = np.cumsum(weights) * len(table) / weights.sum()
        edges[-1] = len(table)
        times = np.diff(np.floor(edges + random.random()), prepend=0).astype(np.int64)
        numbers = random.permutation(np.repeat(numbers, times))
    return numbers if order == "tiles" else _by_shards(numbers, table, random)


def _by_shards(numbers: np.ndarray, table: pd.DataFrame, random: np.random.Generator) -> np.ndarray:
    """The same numbers, from a few files in turn, each read on and on from a tile by chance: as a disk likes it."""
    numbers = np.sort(numbers)
    shard = table.groupby(["aoi", "block"], sort=False).ngroup().to_numpy()[numbers]
    count = np.bincount(shard)
    place = np.arange(len(numbers)) - np.searchsorted(shard, shard)
    place = (place + random.integers(np.maximum(count, 1))[shard]) % count[shard]
    turn = random.permutation(len(count))[shard]
    return numbers[np.lexsort((turn, place, turn // SHARDS_AT_ONCE))]


def batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Numbers of the tiles of each batch; the last has what is left."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def share_of(numbers: np.ndarray, rank: int, devices: int) -> tuple[np.ndarray, bool]:
    """Tiles of a batch for one of several devices, and whether they count: where none is left, one comes along."""
    mine = np.array_split(numbers, devices)[rank]
    return (mine, True) if len(mine) else (numbers[:1], False)


class Buffers(NamedTuple):
    """Memory by which batches come to a device. It is used again and again: new memory takes longer than reading."""

    device: torch.device
    stream: torch.cuda.Stream | None  # by which a GPU copies, beside its computing
    batches: list[Arrays]  # pinned where a GPU copies from it
    narrow: list[Arrays]  # a tile of what becomes wider on the CPU


def buffers_for(store: TileStore, size: int, device: torch.device) -> Buffers:
    """Memory for batches of ``size`` tiles, for ``load``."""
    memory = [store.empty(size) for _ in range(READERS + 1)]  # one is in use, the others are filled
    if device.type == "cuda":
        pinned = [{key: torch.from_numpy(each).pin_memory().numpy() for key, each in one.items()} for one in memory]
        return Buffers(device, torch.cuda.Stream(device), pinned, [{} for _ in memory])
    narrow = [{key: each[0].copy() for key, each in one.items() if each.dtype == U16} for one in memory]
    wide = [{key: np.empty(one[key].shape, np.int32) for key in tile} for one, tile in zip(memory, narrow, strict=True)]
    return Buffers(device, None, [{**one, **wider} for one, wider in zip(memory, wide, strict=True)], narrow)


def load(
    store: TileStore, order: np.ndarray | list[np.ndarray], buffers: Buffers, readers: int = READERS
) -> Iterator[dict[str, Tensor]]:
    """Batches of tiles on a device, read by threads while an earlier one is computed with.

    Parameters
    ----------
    store, order : of the tiles, and their numbers, or those of each batch.
    buffers : for batches of tiles as this store has them; in use until the last batch has come.
    readers : threads. Order and bytes are the same for any number.

    Yields
    ------
    Tensors (B, ...) by name, uint16 as int32, which every backend compares. They may lie in the buffers: a batch is
    gone when the next is asked for.

    Raises
    ------
    ProductError
        A store is missing or broken.
    """
    turns = len(buffers.batches)
    parts = order if isinstance(order, list) else list(batches(order, len(buffers.batches[0]["label"])))
    with ThreadPoolExecutor(readers) as pool:

        def start(number: int) -> None:
            if number < len(parts):
                coming.append(pool.submit(_deliver, store, parts[number], buffers, number % turns))

        coming: deque[Any] = deque()
        for number in range(turns):
            start(number)
        try:
            for number in range(len(parts)):
                yield _handed_over(coming.popleft().result(), buffers)
                start(number + turns)
        finally:
            for read in coming:
                read.cancel()


def _deliver(store: TileStore, numbers: np.ndarray, buffers: Buffers, turn: int) -> dict[str, Tensor]:
    """A batch on the device. No copy of it is under way any more, so on a GPU its buffer is free."""
    memory, narrow = buffers.batches[turn], buffers.narrow[turn]
    for place, number in enumerate(numbers):
        store.read(number, {key: narrow.get(key, values[place, ...]) for key, values in memory.items()})
        for key, values in narrow.items():  # while they are in the processor's cache
            np.copyto(memory[key][place], values)
    batch = {key: values[: len(numbers)] for key, values in memory.items()}
    if buffers.stream is None:
        return on_device(batch, buffers.device)
    with torch.cuda.stream(buffers.stream):
        moved = on_device(batch, buffers.device)
    buffers.stream.synchronize()
    return moved


def _handed_over(batch: dict[str, Tensor], buffers: Buffers) -> dict[str, Tensor]:
    """The batch; on a GPU its memory does not go back to the copying stream before the computing one is done."""
    if buffers.stream is not None:
        for values in batch.values():
            values.record_stream(torch.cuda.current_stream(buffers.device))
    return batch


def on_device(batch: Arrays, device: torch.device) -> dict[str, Tensor]:
    """Integers of a batch on the device; uint16 becomes int32, which every backend compares, behind the bus."""
    if device.type == "cpu":
        batch = {key: values.astype(np.int32) if values.dtype == U16 else values for key, values in batch.items()}
    moved = {key: torch.from_numpy(values).to(device, non_blocking=True) for key, values in batch.items()}
    return {key: values.int() if values.dtype == torch.uint16 else values for key, values in moved.items()}


def timed(loaded: Iterable[Any], waits_s: list[float]) -> Iterator[Any]:
    """The same; the seconds that each was waited for go into ``waits_s``."""
    iterator = iter(loaded)
    while True:
        start = perf_counter()
        try:
            one = next(iterator)
        except StopIteration:
            return
        waits_s.append(perf_counter() - start)
        yield one
