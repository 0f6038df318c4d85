"""The store that training reads: tiles as contiguous integers, one file a block.

A file is safetensors (https://huggingface.co/docs/safetensors, "Format"): a header, then raw arrays (tile, ..., y, x).
A tile is one piece of each array, read at its place: threads and processes share neither a position in a file nor a
lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from covermap.errors import ProductError
from covermap.files import whole
from covermap.inputs import (
    DAY,
    NODATA,
    Meaning,
    Steps,
    chosen_steps,
    dates_of,
    is_filled,
    meaning_of,
    must_mean,
    observed,
    seen_steps,
)
from covermap.stack import read_stack

log = logging.getLogger(__name__)

DTYPES = {"U8": np.uint8, "I16": np.int16, "U16": np.uint16}  # in the order in which safetensors ranks them
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
LABEL, WEIGHT = "label", "weight"
WINDOW_PIXELS = 512  # tiles whose corners lie within such a square are cut from one window
OPEN_FILES = 256  # of a process: a quarter of what systems usually allow

Kind = tuple[np.dtype, tuple[int, ...]]


# --- writing ---------------------------------------------------------------------------------------------------------


def pack_tiles(
    index: Path,
    stack: Path,
    labels: Path,
    packed: Path,
    aoi: str,
    name: str,
    pixels: int,
    months: tuple[int, ...] = (),
    dates: tuple[date, ...] = (),
) -> None:
    """Contiguous integers of a block's tiles, in the order of the index: s1, s2, terrain, label and weight.

    A pixel without any observation gets weight 0, and so does one in radar layover or shadow. Where gaps of s2 were
    filled, its days come with it: with the values that say 'no data', they are the masks of every step. The header says
    what the axes of the inputs mean, which dates they are of, and which rows of the index the tiles belong to.

    Tiles are written as they are cut, so memory holds one window, of at most 512 px and a tile a side.

    Parameters
    ----------
    index : table of all tiles.
    stack, labels : of the block.
    packed : the store.
    aoi, name : of the area and the block, as in the index.
    pixels : side of a tile.
    months, dates : of the inputs those that the model sees, by ``chosen_steps``; none: all.

    Raises
    ------
    ModelError
        The stack lacks one of the months or dates.
    ProductError
        The stack is missing or broken.
    """
    table = pd.read_parquet(index, columns=["aoi", "block", "row", "column"])
    table = table[(table.aoi == aoi) & (table.block == name)]
    places = table[["row", "column"]].to_numpy()
    steps = chosen_steps(stack, months, dates)
    meaning = meaning_of(stack, steps)
    keys = [*NODATA, *([DAY] if is_filled(meaning) else [])]
    kinds = _kinds(stack, keys, pixels, steps) if len(places) else {}
    about = {
        "meaning": json.dumps(meaning),
        "dates": json.dumps(dates_of(stack, steps)),
        "places": places_digest(table),
    }
    with whole(packed) as part, new_store(part, len(places), kinds, about) as write:
        for numbers, rows, columns in _windows(places, pixels):
            window = _read(stack, labels, rows, columns, keys, steps)
            for number in numbers:
                row, column = places[number] - (rows.start, columns.start)
                place = np.s_[..., row : row + pixels, column : column + pixels]
                write(number, {key: values[place] for key, values in window.items()})
    log.info("%d tiles of block %s", len(places), name)


def places_digest(table: pd.DataFrame) -> str:
    """BLAKE2b digest of the rows of the index that are in a store: of the places of its tiles, or the files of patches.

    A store that was made for another index has other tiles under the same numbers.
    """
    columns = ["file"] if "file" in table else ["row", "column"]
    rows = table[columns].to_csv(header=False, index=False, lineterminator="\n")
    return hashlib.blake2b(rows.encode(), digest_size=16).hexdigest()


def _kinds(stack: Path, keys: Sequence[str], side: int, steps: Steps) -> dict[str, Kind]:
    """Type and shape of a tile's arrays: told by a window without pixels."""
    bare = seen_steps(read_stack(stack, slice(0, 0), slice(0, 0), keys), steps)
    inputs = {key: (bare[key].dtype, (*bare[key].shape[:-2], side, side)) for key in keys if key in bare}
    return {**inputs, **dict.fromkeys((LABEL, WEIGHT), (np.dtype(np.uint8), (side, side)))}


def _windows(places: np.ndarray, side: int) -> Iterator[tuple[np.ndarray, slice, slice]]:
    """Numbers of the tiles that are cut together, and the rows and columns that hold them all.

    ``places`` (N, 2) are the first row and column of each tile, of ``side`` pixels.
    """
    squares, square_of = np.unique(places // WINDOW_PIXELS, axis=0, return_inverse=True)
    for square in range(len(squares)):
        numbers = np.flatnonzero(square_of == square)
        (top, left), (bottom, right) = places[numbers].min(0), places[numbers].max(0) + side
        yield numbers, slice(int(top), int(bottom)), slice(int(left), int(right))


def _read(
    stack: Path, labels: Path, rows: slice, columns: slice, keys: Sequence[str], steps: Steps
) -> dict[str, np.ndarray]:
    """Inputs (..., y, x), label and weight (y, x) of a window."""
    import rasterio
    from rasterio.windows import Window

    read = seen_steps(read_stack(stack, rows, columns, (*keys, "distorted")), steps)
    with rasterio.open(labels) as raster:
        label, weight = raster.read(window=Window.from_slices(rows, columns))
    inputs = {key: read[key] for key in keys if key in read}
    trusted = observed(inputs) & (read.get("distorted", 0) == 0)
    return {**inputs, LABEL: label, WEIGHT: np.where(trusted, weight, 0).astype(np.uint8)}


@contextmanager
def new_store(
    path: Path, tiles: int, kinds: Mapping[str, Kind], about: Mapping[str, str]
) -> Iterator[Callable[[int, Mapping[str, np.ndarray]], None]]:
    """A function ``write(number, tile)`` that puts the arrays of a tile at their place in a new store.

    Parameters
    ----------
    path : of the store; it has its full size from the start.
    tiles : how many there will be.
    kinds : type and shape of each array of a tile.
    about : what the header says besides.

    Raises
    ------
    ProductError
        A tile has arrays of another type or shape.
    """
    header, starts = _header(tiles, kinds, about)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(map(_bytes, kinds.values())) * tiles)

        def write(number: int, tile: Mapping[str, np.ndarray]) -> None:
            if (found := {key: (values.dtype, values.shape) for key, values in tile.items()}) != dict(kinds):
                raise ProductError(f"tile {number} of {path} has the arrays {found}: expected {dict(kinds)}")
            for key, values in tile.items():
                file.seek(starts[key] + number * values.nbytes)
                file.write(np.ascontiguousarray(values).data)

        yield write


def _header(tiles: int, kinds: Mapping[str, Kind], about: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Bytes before the arrays, and the place of each array: wide types first, as safetensors itself writes them."""
    ranks = list(DTYPES)
    names = sorted(kinds, key=lambda key: (-ranks.index(NAMES[kinds[key][0]]), key))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(about.items()))}
    starts, end = {}, 0
    for key in names:
        dtype, shape = kinds[key]
        starts[key], end = end, end + tiles * _bytes(kinds[key])
        entries[key] = {"dtype": NAMES[dtype], "shape": [tiles, *shape], "data_offsets": [starts[key], end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {key: len(header) + start for key, start in starts.items()}


def _bytes(kind: Kind) -> int:
    dtype, shape = kind
    return dtype.itemsize * math.prod(shape)


# --- reading ---------------------------------------------------------------------------------------------------------


class Shard(NamedTuple):
    """An open store of a block."""

    file: FileIO  # open as long as this is
    places: dict[str, int]  # first byte of each array
    kinds: dict[str, Kind]  # of a tile's arrays
    tiles: int
    about: dict[str, str]


@lru_cache(maxsize=OPEN_FILES)
def _shard(path: Path, changed_ns: int, process: int) -> Shard:
    """An open store; a changed file is opened anew, and so is each after a fork."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as checked:  # header and size agree, no array overlaps another
            about = dict(checked.metadata() or {})
        file = FileIO(path)
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        kinds = {key: (np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"][1:])) for key, entry in entries.items()}
        counts = {entry["shape"][0] for entry in entries.values()} or {0}
        if len(counts) > 1:
            raise ValueError(f"its arrays have {' and '.join(map(str, sorted(counts)))} tiles")
    except (OSError, SafetensorError, ValueError, KeyError, IndexError) as error:
        raise _broken(path, error) from error
    places = {key: 8 + length + entry["data_offsets"][0] for key, entry in entries.items()}
    return Shard(file, places, kinds, counts.pop(), about)


def _broken(path: Path, reason: object) -> ProductError:
    return ProductError(f"tile store {path} is missing or broken ({reason}): remove it and run again")


class TileStore:
    """Tiles of one split of a packed store, as a map-style data set for torch.

    Files are opened by the process and thread that reads them, so it may be forked, pickled and shared by threads.

    Parameters
    ----------
    packed : store of each area and block.
    index : table of all tiles.
    split : "train", "validation" or "test".
    inputs : those that are wanted (s1, s2, terrain), with the days of s2 where they were packed; none: all.
    """

    def __init__(
        self, packed: dict[tuple[str, str], Path], index: Path, split: str, inputs: Sequence[str] | None = None
    ) -> None:
        table = pd.read_parquet(index).drop(columns="geometry")
        blocks = table.groupby(["aoi", "block"])
        table["position"] = blocks.cumcount()
        self.digests = {packed[place]: places_digest(rows) for place, rows in blocks if place in packed}
        self.table = table[table.split == split].reset_index(drop=True)
        self.packed = packed
        self.inputs = inputs
        self.paths = [packed[place] for place in zip(self.table.aoi, self.table.block, strict=True)]
        self.positions = self.table.position.to_list()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """s1 int16 (T, P, H, W), s2 uint16 (D, B, H, W), terrain int16 (1, L, H, W), day int16 (D, H, W), label uint8
        (H, W), weight uint8 (H, W) in per cent; of the inputs those that were packed."""
        out = {key: np.empty(shape, dtype) for key, (dtype, shape) in self.kinds(number).items()}
        self.read(number, out)
        return out

    def kinds(self, number: int = 0) -> dict[str, Kind]:
        """Type and shape of a tile's arrays."""
        kinds = _open(self.paths[number]).kinds
        if self.inputs is None:
            return kinds
        wanted = [*self.inputs, *({DAY} & {*kinds} if "s2" in self.inputs else ()), LABEL, WEIGHT]
        if missing := [key for key in wanted if key not in kinds]:
            raise _broken(self.paths[number], f"it has no {missing[0]}")
        return {key: kinds[key] for key in wanted}

    def read(self, number: int, out: Mapping[str, np.ndarray]) -> None:
        """Fill the contiguous arrays of ``out`` with those of a tile.

        Raises
        ------
        ProductError
            The store is missing, broken, cut short or of another index, or its tiles are of another kind than ``out``.
        """
        path, position = self.paths[number], self.positions[number]
        shard = _open(path)
        if position >= shard.tiles:
            raise _broken(path, f"it has {shard.tiles} tiles, its index tells of more")
        for key, values in out.items():
            kind = shard.kinds.get(key)
            if kind != (values.dtype, values.shape):
                raise _broken(path, f"its {key} is {kind}, that of others {(values.dtype, values.shape)}")
        if shard.about.get("places") != self.digests[path]:
            raise _broken(path, "it was made for another index of tiles")
        for key, values in out.items():
            _fill(values, shard.file, shard.places[key] + position * values.nbytes, path)

    def empty(self, tiles: int) -> dict[str, np.ndarray]:
        """Memory for a batch."""
        return {key: np.empty((tiles, *shape), dtype) for key, (dtype, shape) in self.kinds().items()}

    def batch(
        self, numbers: Sequence[int] | np.ndarray, out: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Tiles on a new first axis, in the memory ``out`` or in memory of their own."""
        out = self.empty(len(numbers)) if out is None else out
        for place, number in enumerate(numbers):
            self.read(number, {key: values[place, ...] for key, values in out.items()})
        return {key: values[: len(numbers)] for key, values in out.items()}

    def meaning(self, keys: Iterable[str]) -> Meaning:
        """What the axes of the inputs ``keys`` mean, in all stores alike; ModelError where two stores differ."""
        meanings = {path: _meaning_in(path) for path in self.packed.values()}
        first, expected = next(iter(meanings.items()))
        expected = {key: expected.get(key, {}) for key in keys}
        for path, found in meanings.items():
            must_mean(expected, found, path, f"{first} has")
        return expected


def _open(path: Path) -> Shard:
    try:
        return _shard(path, os.stat(path).st_mtime_ns, os.getpid())
    except OSError as error:
        raise _broken(path, error) from error


def _fill(values: np.ndarray, file: FileIO, start: int, path: Path) -> None:
    """Read bytes from ``start`` on; the kernel copies them into ``values`` itself, without Python's lock."""
    view, done = values.data.cast("B"), 0
    while done < len(view):
        got = os.preadv(file.fileno(), [view[done:]], start + done)
        if not got:
            raise _broken(path, "it ends early")
        done += got


def _meaning_in(path: Path) -> Meaning:
    try:
        meaning: Meaning = json.loads(_open(path).about["meaning"])
    except (KeyError, ValueError) as error:
        raise ProductError(f"tile store {path} does not say what its inputs mean: remove it and run again") from error
    return meaning
