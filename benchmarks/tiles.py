"""The tile store against a raw memory map, torchgeo and the disk; and rasterised polygons against rasterio.

The world is simulated: fields with noise, 3072 px a side, 24 months and polarisations of Sentinel-1, ten bands of
Sentinel-2 and a label, as nine stores of sixteen tiles of 256 px. ``benchmarks/tiles.py 1024`` makes a small one.
Batches are of 16 tiles, the cache of the disk is warm, and the best of several runs counts, of all alike.

Figures: ``fraction_of_memmap`` (tiles a second of ``load`` with two threads and all that training gets, its uint16 as
int32, over those of copying the same bytes from one memory map into arrays that are there, with one or two threads,
whichever is faster); ``fraction_read`` (that of ``TileStore.batch``, which copies the bytes alone, with one thread);
``tiles_per_s`` and ``gb_per_s`` (of ``load``); ``statistics_gb_per_s`` (what normalises the inputs of a network);
``cold_fraction`` (bytes a second of ``load`` in an order by shards, nothing in the cache, over those of reading the
same files from front to back) and ``cold_mb_per_s``;
``ratio_torchgeo`` (ours over tiles a second of torchgeo's RandomGeoSampler on GeoTIFFs of the same pixels in tiles of
512 px, DEFLATE, in its DataLoader with 0 or 2 workers, whichever is faster; 64 MB for GDAL's cache, as for data that
are larger than memory) and ``ratio_torchgeo_cached`` (the same when all pixels fit into that cache, decoded once);
``rasterize_mpx_per_s`` and ``polygons_per_s`` (``rasterize_labels`` of all blocks, files read and written), and
``ratio_rasterio`` (time of reading the polygons and ``rasterio.features.rasterize`` of the whole at once over ours),
in four blocks of 2048 px, of polygons as dense as the fields.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import rasterio
import shapely
import torch
from _peers import PYTHON, install, report, run
from rasterio.features import rasterize
from rasterio.transform import from_origin

from covermap.grid import Grid
from covermap.labels import rasterize_labels
from covermap.loader import batches, buffers_for, draw, load
from covermap.models.normalise import channel_statistics
from covermap.store import TileStore, new_store, places_digest

CRS, LEFT, TOP = "EPSG:32633", 300000, 5900040
TILE, BLOCK, BATCH, FIELD, RUNS = 256, 1024, 16, 32, 11
LABELS_BLOCK = 2048  # of the rasterised area, half the usual
PIECE = 1 << 23  # bytes that a front-to-back reading asks for
CPU = torch.device("cpu")
PLACE = {"crs": CRS, "transform": from_origin(LEFT, TOP, 10, 10)}

TORCHGEO = """
import sys
import time
import torch
# torchvision's wheel beside a CPU-only torch lacks two operators that it declares shapes for when it is imported.
library = torch.library.Library("torchvision", "FRAGMENT")
try:
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except RuntimeError:
    pass  # it has them
from torch.utils.data import DataLoader
from torchgeo.datasets import RasterDataset, stack_samples
from torchgeo.samplers import RandomGeoSampler
folder, side, count, batch, workers = sys.argv[1], *map(int, sys.argv[2:])
def data(name, image):
    kind = type(name, (RasterDataset,), {"filename_glob": name + ".tif", "is_image": image})
    return kind(folder)
both = data("s2", True) & data("s1", True) & data("label", False)
torch.set_num_threads(1)
sampler = RandomGeoSampler(both, size=side, length=count + batch)
loader = iter(DataLoader(both, batch, sampler=sampler, num_workers=workers, collate_fn=stack_samples))
first = next(loader)
assert first["image"].shape == (batch, 34, side, side) and first["mask"].shape[0] == batch
start = time.perf_counter()
seen = sum(len(sample["image"]) for sample in loader)
print(seen / (time.perf_counter() - start))
"""


def fastest(functions: dict[str, Callable[[], object]], count: int, runs: int = RUNS) -> dict[str, float]:
    """Things a second of the fastest of several calls of each function, which take turns."""
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            spent[name].append(time.perf_counter() - start)
    return {name: count / min(times) for name, times in spent.items()}


# --- the data --------------------------------------------------------------------------------------------------------


def fields(random: np.random.Generator, channels: int, side: int, low: int, high: int, dtype: str) -> np.ndarray:
    """Fields of 320 m with noise: (channels, y, x)."""
    coarse = random.integers(low, high, (channels, side // FIELD, side // FIELD)).repeat(FIELD, 1).repeat(FIELD, 2)
    coarse += random.integers(-60, 60, coarse.shape)
    return coarse.astype(dtype)


def make(folder: Path, side: int) -> tuple[dict[str, np.ndarray], TileStore]:
    """The pixels of the world by array, and their store."""
    random = np.random.default_rng(0)
    world = {
        "s2": fields(random, 10, side, 300, 4000, "uint16")[None],
        "s1": fields(random, 24, side, -2000, -500, "int16").reshape(12, 2, side, side),
        "label": random.integers(1, 9, (side // FIELD, side // FIELD))
        .repeat(FIELD, 0)
        .repeat(FIELD, 1)
        .astype("uint8"),
        "weight": np.full((side, side), 100, "uint8"),
    }
    kinds = {key: (values.dtype, (*values.shape[:-2], TILE, TILE)) for key, values in world.items()}
    rows, packed = [], {}
    for top in range(0, side, BLOCK):
        for left in range(0, side, BLOCK):
            name = f"x{left}y{top}"
            packed["world", name] = folder / f"{name}.safetensors"
            places = [(top + i, left + j) for i in range(0, BLOCK, TILE) for j in range(0, BLOCK, TILE)]
            about = {"places": places_digest(pd.DataFrame(places, columns=["row", "column"]))}
            with new_store(packed["world", name], len(places), kinds, about) as write:
                for number, (row, column) in enumerate(places):
                    write(number, cut(world, row, column))
            rows += [(name, row, column) for row, column in places]
    table = pd.DataFrame(rows, columns=["block", "row", "column"])
    table.assign(aoi="world", split="train", sampling=np.float32(1), geometry=None).to_parquet(folder / "index.parquet")
    return world, TileStore(packed, folder / "index.parquet", "train")


def cut(world: dict[str, np.ndarray], row: int, column: int) -> dict[str, np.ndarray]:
    return {key: values[..., row : row + TILE, column : column + TILE] for key, values in world.items()}


def write_geotiffs(folder: Path, world: dict[str, np.ndarray]) -> None:
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "DEFLATE"}
    for key in ("s2", "s1", "label"):
        bands = world[key].reshape(-1, *world[key].shape[-2:])
        size = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
        with rasterio.open(
            folder / f"{key}.tif", "w", **profile, **size, **PLACE, num_threads=2, predictor=2
        ) as raster:
            raster.write(bands)


# --- the store -------------------------------------------------------------------------------------------------------


def store_figures(folder: Path, store: TileStore) -> dict[str, float]:
    """Ours, a memory map of the same bytes, and the normalisation's statistics."""
    tile_bytes = sum(values.nbytes for values in store[0].values())
    raw = np.memmap(folder / "raw", np.uint8, "w+", shape=(len(store), tile_bytes))
    for number in range(len(store)):
        raw[number] = np.concatenate([values.reshape(-1).view(np.uint8) for values in store[number].values()])
    raw.flush()
    mapped = np.memmap(folder / "raw", np.uint8, "r", shape=raw.shape)
    order = draw(store.table, np.random.default_rng(0))
    buffers = [np.empty((BATCH, tile_bytes), np.uint8) for _ in range(2)]
    parts = list(batches(order, BATCH))

    def copy(turn: int, count: int) -> None:
        for numbers in parts[turn::count]:
            for place, number in enumerate(numbers):
                buffers[turn][place] = mapped[number]

    def both() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(copy, (0, 1), (2, 2)))

    delivery = buffers_for(store, BATCH, CPU)

    def ours() -> int:
        return sum(len(batch["label"]) for batch in load(store, order, delivery))

    memory = store.empty(BATCH)

    def plain() -> None:
        for numbers in parts:
            store.batch(numbers, memory)

    assert ours() == len(store)
    rates = fastest({"map": lambda: copy(0, 1), "two": both, "plain": plain, "ours": ours}, len(store))
    loaded, maps = rates["ours"], max(rates["map"], rates["two"])
    rates |= fastest({"statistics": lambda: channel_statistics((store.batch(part) for part in parts), {})}, len(store))
    return {
        "fraction_of_memmap": round(loaded / maps, 2),
        "fraction_read": round(rates["plain"] / maps, 2),
        "tiles_per_s": round(loaded, 1),
        "gb_per_s": round(loaded * tile_bytes / 1e9, 2),
        "statistics_gb_per_s": round(rates["statistics"] * tile_bytes / 1e9, 2),
    }


def cold_figures(store: TileStore) -> dict[str, float]:
    """Reading that starts with nothing in the cache of the disk."""
    paths = list(store.packed.values())
    total = sum(path.stat().st_size for path in paths)
    order = draw(store.table, np.random.default_rng(0), "shards")
    delivery = buffers_for(store, BATCH, CPU)

    def ours() -> None:
        for _ in load(store, order, delivery):
            pass

    spent: dict[str, list[float]] = {"front to back": [], "ours": []}
    for _ in range(RUNS):
        for name, read in (("front to back", lambda: front_to_back(paths)), ("ours", ours)):
            forget(paths)
            start = time.perf_counter()
            read()
            spent[name].append(time.perf_counter() - start)
    return {
        "cold_fraction": round(min(spent["front to back"]) / min(spent["ours"]), 2),
        "cold_mb_per_s": round(total / min(spent["ours"]) / 1e6),
    }


def forget(paths: list[Path]) -> None:
    """Drop files from the cache of the disk."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def front_to_back(paths: list[Path]) -> None:
    piece = bytearray(PIECE)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(piece):
                pass


def torchgeo(folder: Path, side: int, cache_mb: int) -> float:
    """Its tiles a second, GDAL's cache being as large as given, with 0 or 2 workers: in a process each, since it fails
    where workers are forked after the first reading (known to its authors since 2022)."""
    words = [folder, TILE, max(side // BLOCK, 2) * 2 * BATCH, BATCH]
    return max(
        float(run([PYTHON, "-c", TORCHGEO, *words, workers], GDAL_CACHEMAX=str(cache_mb))[2]) for workers in (0, 2)
    )


# --- polygons --------------------------------------------------------------------------------------------------------


def rasterize_figures(folder: Path, side: int) -> dict[str, float]:
    """Polygons of a whole area of at least ``side`` pixels a side, block by block and at once."""
    side = -(-side // LABELS_BLOCK) * LABELS_BLOCK
    random = np.random.default_rng(0)
    step = FIELD * 10
    east, north = np.meshgrid(np.arange(side // FIELD) * step + LEFT, TOP - np.arange(side // FIELD) * step)
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radii = random.uniform(0.3, 0.5, (east.size, 12)) * step
    centres = np.stack([east.ravel() + step / 2, north.ravel() - step / 2], 1)
    rings = centres[:, None] + radii[..., None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    frame = geopandas.GeoDataFrame(
        {"code": random.integers(1, 9, len(rings)).astype(str)}, geometry=shapely.polygons(rings), crs=CRS
    )
    path = folder / "polygons.gpkg"
    frame.to_file(path)
    codes = {str(number): number for number in range(1, 9)}
    whole = Grid(crs=CRS, left=LEFT, top=TOP, width=side, height=side)
    blocks = [
        whole.window(row, column, LABELS_BLOCK, LABELS_BLOCK)
        for row in range(0, side, LABELS_BLOCK)
        for column in range(0, side, LABELS_BLOCK)
    ]

    def ours() -> None:
        for number, block in enumerate(blocks):
            rasterize_labels(
                labels=path,
                rasterized=folder / f"labels{number}.tif",
                block=block,
                codes=codes,
                source="vector",
                attribute="code",
            )

    def at_once() -> None:
        read = geopandas.read_file(path)
        shapes = zip(read.geometry, map(int, read.code), strict=True)
        rasterize(shapes, out_shape=whole.shape, transform=whole.transform, fill=0, dtype=np.uint8)

    rates = fastest({"ours": ours, "rasterio": at_once}, side**2)
    return {
        "rasterize_mpx_per_s": round(rates["ours"] / 1e6, 1),
        "polygons_per_s": round(rates["ours"] / side**2 * len(frame)),
        "ratio_rasterio": round(rates["ours"] / rates["rasterio"], 2),
    }


def main() -> None:
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 3 * BLOCK
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world, store = make(folder, side)
        figures = store_figures(folder, store)
        print(figures, flush=True)
        figures |= cold_figures(store)
        print(figures, flush=True)
        write_geotiffs(folder, world)
        del world
        install("torch==2.13.0", "torchgeo==0.8.1", "requests==2.34.2")
        large, small = (torchgeo(folder, side, cache_mb) for cache_mb in (64, 2048))
        print(f"torchgeo {large:.2f} tiles/s, all pixels in GDAL's cache {small:.2f}", flush=True)
        figures |= {"ratio_torchgeo": round(figures["tiles_per_s"] / large, 1)}
        figures |= {"ratio_torchgeo_cached": round(figures["tiles_per_s"] / small, 1)}
        figures |= rasterize_figures(folder, side)
    report("tiles", **figures)


if __name__ == "__main__":
    main()
