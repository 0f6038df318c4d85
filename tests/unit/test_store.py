"""Tiles that equal their sources, and stores that any number of threads and processes read alike."""

import json
import multiprocessing
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch.utils.data import DataLoader

from covermap.errors import ModelError, ProductError
from covermap.grid import Grid
from covermap.loader import batches, buffers_for, draw, load, timed
from covermap.model_settings import Tiles
from covermap.raster import read_window, write_raster
from covermap.store import TileStore, _open, _windows, dates_of, new_store, pack_tiles
from covermap.tiles import index_tiles

from .conftest import stack_of

SMALL = Tiles(pixels=32, stride_pixels=32, cell_pixels=64, buffer_pixels=8, validation=0.25, test=0.25)
KEYS = ["a", "b", "c"]
CPU = torch.device("cpu")


def pack(area, folder, tiles=SMALL, stacks=None, labels=None):
    """Index and stores of the area."""
    index, labels = folder / "index.parquet", labels or area.labels
    index_tiles(list(labels.values()), index, [("here", *one) for one in area.blocks.items()], tiles, 1, KEYS)
    packed = {("here", name): folder / f"{name}.safetensors" for name in area.blocks}
    for (_, name), path in packed.items():
        pack_tiles(index, (stacks or area.stacks)[name], labels[name], path, "here", name, tiles.pixels)
    return packed, index


@pytest.fixture(scope="module")
def store(area, tmp_path_factory):
    return TileStore(*pack(area, tmp_path_factory.mktemp("store")), "train")


@pytest.mark.parametrize(("stride", "seed"), [(16, 0), (24, 1), (33, 2), (70, 3)])
def test_packed_tiles_equal_the_pixels_of_their_sources(area, tmp_path, stride, seed):
    random = np.random.default_rng(seed)
    labels = {}
    for name, block in area.blocks.items():
        labels[name] = tmp_path / f"{name}.tif"
        layers = np.stack([random.integers(1, 4, block.shape), random.integers(0, 101, block.shape)]).astype(np.uint8)
        write_raster(labels[name], layers, block, nodata=None, descriptions=("class", "weight"))
    tiles = SMALL.model_copy(update={"stride_pixels": stride, "cell_pixels": 128})
    packed, index = pack(area, tmp_path, tiles, labels=labels)
    seen = 0
    for split in ("train", "validation", "test"):
        one = TileStore(packed, index, split)
        assert len(one) == (pd.read_parquet(index).split == split).sum()
        for number in random.permutation(len(one))[:20]:
            tile, row = one[number], one.table.iloc[number]
            place = Grid(crs=area.grid.crs, left=row.easting_m, top=row.northing_m, width=32, height=32)
            label, weight = read_window(labels[row.block], place, fill=0)
            np.testing.assert_array_equal(tile["label"], label)
            np.testing.assert_array_equal(tile["weight"], weight)
            np.testing.assert_array_equal(tile["s2"][0], read_window(area.s2[0], place, fill=0)[:2])
            power = np.stack([read_window(path, place, fill=np.nan) for path in area.s1]).astype(np.float64)
            steps = np.maximum(np.rint(1000 * np.log10(power)), -3500)  # 0.01 dB
            assert np.abs(tile["s1"] - steps).max() <= 1 and (tile["s1"] != steps).mean() < 1e-3
            assert [row[f"class_{i}"] for i in (1, 2, 3)] == np.bincount(label.ravel(), minlength=4)[1:].tolist()
            seen += 1
    assert seen >= 15


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 4000)), min_size=1, max_size=60), st.integers(32, 1024))
def test_every_tile_is_cut_once_from_a_bounded_window(corners, side):
    places = np.array(corners)
    cut = []
    for numbers, rows, columns in _windows(places, side):
        assert rows.stop - rows.start <= 511 + side and columns.stop - columns.start <= 511 + side
        inside = places[numbers] - (rows.start, columns.start)
        assert (inside >= 0).all()
        assert (inside + side <= (rows.stop - rows.start, columns.stop - columns.start)).all()
        cut += numbers.tolist()
    assert sorted(cut) == list(range(len(corners)))


def test_pixels_in_layover_or_shadow_get_no_weight_and_all_others_keep_theirs(area, tmp_path):
    name, block = "x300y-3001", area.blocks["x300y-3001"]
    layer = np.zeros((1, *area.grid.shape), np.float32)
    layer[0, 40:90, 100:130], layer[0, ::37, 5::41], layer[0, 7, :] = 1, 2, 3
    scene = np.concatenate([read_window(area.s1[0], area.grid, fill=np.nan), layer])
    tags = {"datetime": "2022-01-10T09:30:00Z", "convention": "sigma0_ellipsoid", "orbit_state": "descending"}
    names = ("VV", "VH", "layover_shadow")
    write_raster(tmp_path / "s1.tif", scene, area.grid, nodata=np.nan, descriptions=names, tags=tags)
    stack = stack_of([tmp_path / "s1.tif", area.s1[1]], area.s2, tmp_path / "stack.zarr.zip", block)
    given_weight = np.random.default_rng(4).integers(1, 101, block.shape).astype(np.uint8)
    labels = tmp_path / "labels.tif"
    label = read_window(area.labels[name], block, fill=0)[0]
    write_raster(labels, np.stack([label, given_weight]), block, nodata=0, descriptions=("class", "weight"))
    packed, index = pack(area, tmp_path, stacks=area.stacks | {name: stack}, labels=area.labels | {name: labels})
    expected = np.where(layer[0, : block.height, : block.width] > 0, 0, given_weight)
    table = pd.read_parquet(index)
    places = table[table.block == name][["row", "column"]].to_numpy()
    tiles = [expected[row : row + 32, column : column + 32] for row, column in places]
    assert any((tile == 0).any() for tile in tiles)
    np.testing.assert_array_equal(load_file(packed["here", name])["weight"], np.stack(tiles))


def test_packing_holds_a_window_and_not_the_store(area, tmp_path):
    tiles = Tiles(pixels=64, stride_pixels=16, cell_pixels=128, buffer_pixels=0, validation=0.3, test=0.3)
    pack(area, tmp_path, tiles)  # what is imported and compiled once does not count
    name, path = next(iter(area.blocks)), tmp_path / "again.safetensors"
    tracemalloc.start()
    pack_tiles(tmp_path / "index.parquet", area.stacks[name], area.labels[name], path, "here", name, tiles.pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2
    assert path.read_bytes() == (tmp_path / f"{name}.safetensors").read_bytes()


def test_a_store_is_what_safetensors_itself_writes(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "label": random.integers(0, 9, (3, 4, 4)).astype(np.uint8),
        "s2": random.integers(0, 9000, (3, 1, 2, 4, 4)).astype(np.uint16),
        "day": random.integers(0, 366, (3, 1, 4, 4)).astype(np.int16),
        "s1": random.integers(-3500, 0, (3, 2, 2, 4, 4)).astype(np.int16),
    }
    kinds = {key: (values.dtype, values.shape[1:]) for key, values in arrays.items()}
    about = {"meaning": json.dumps({"s2": {"band": ["B04", "B08"]}})}
    with new_store(tmp_path / "ours", 3, kinds, about) as write:
        for number in (2, 0, 1):
            write(number, {key: values[number] for key, values in arrays.items()})
        with pytest.raises(ProductError, match=r"tile 1 of .*ours has the arrays"):
            write(1, {"label": arrays["label"][1]})
    save_file(arrays, tmp_path / "theirs", about)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_header_tells_dates_and_meaning(area, store):
    path = next(iter(store.packed.values()))
    with safe_open(path, "numpy") as file:
        about = file.metadata()
    assert json.loads(about["dates"]) == {"s1": ["2022-01", "2022-02"], "s2": [["2022-01-01", "2022-02-28"]]}
    assert json.loads(about["meaning"])["s2"]["band"] == ["B04", "B08"]
    assert dates_of(next(iter(area.stacks.values()))) == json.loads(about["dates"])


def test_a_block_without_tiles_has_an_empty_store(area, tmp_path, store):
    bare = tmp_path / "index.parquet"
    store.table.iloc[:0].assign(geometry=None).to_parquet(bare)
    name = next(iter(area.blocks))
    pack_tiles(bare, area.stacks[name], area.labels[name], tmp_path / "p", "here", name, SMALL.pixels)
    assert load_file(tmp_path / "p") == {}
    assert TileStore({("here", name): tmp_path / "p"}, bare, "train").meaning(["s1"])["s1"]["month"] == ["01", "02"]


# --- reading ---------------------------------------------------------------------------------------------------------


def same(found, expected):
    assert list(found) == list(expected)
    for key in expected:
        assert found[key].dtype == expected[key].dtype
        np.testing.assert_array_equal(found[key], expected[key])


def test_a_tile_alone_and_in_a_batch_are_the_same(store):
    numbers = [5, 0, 5, len(store) - 1]
    batch = store.batch(numbers)
    for place, number in enumerate(numbers):
        same({key: values[place] for key, values in batch.items()}, store[number])
    memory = store.empty(9)
    found = store.batch(numbers, memory)
    same(found, batch)
    assert all(np.shares_memory(found[key], memory[key]) for key in memory)
    with pytest.raises(IndexError):
        store[len(store)]


def test_only_the_inputs_that_are_wanted_are_read(store):
    one = TileStore(store.packed, *index_of(store), "train", ["s2"])
    assert list(one[0]) == ["s2", "label", "weight"]
    np.testing.assert_array_equal(one[3]["s2"], store[3]["s2"])
    with pytest.raises(ProductError, match="it has no terrain"):
        TileStore(store.packed, *index_of(store), "train", ["terrain"])[0]


def index_of(store):
    return [next(iter(store.packed.values())).parent / "index.parquet"]


def in_child(store, numbers, queue):
    path = store.paths[0]
    queue.put((os.getpid(), _open(path).file.fileno(), store.batch(numbers)))


def test_no_reader_crosses_a_fork(store):
    numbers = np.random.default_rng(0).integers(0, len(store), 30)
    expected = store.batch(numbers)
    mine = _open(store.paths[0]).file.fileno()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=in_child, args=(store, numbers, queue)) for _ in range(3)]
    for child in children:
        child.start()
    same(store.batch(numbers), expected)  # at the same time
    for process, handle, found in [queue.get(timeout=60) for _ in children]:
        assert process != os.getpid() and handle != mine
        same(found, expected)
    for child in children:
        child.join()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_it_is_a_data_set_for_torch(store, start):
    store[0]  # in the parent, before its workers are made
    order = np.random.default_rng(1).permutation(len(store))[:10]
    loader = DataLoader(store, 4, sampler=order.tolist(), num_workers=2, multiprocessing_context=start)
    for numbers, batch in zip(batches(order, 4), loader, strict=True):
        same({key: values.numpy() for key, values in batch.items()}, store.batch(numbers))


def test_threads_do_not_disturb_each_other(store):
    numbers = np.random.default_rng(2).integers(0, len(store), 200)
    with ThreadPoolExecutor(8) as pool:
        for number, tile in zip(numbers, pool.map(store.__getitem__, numbers), strict=True):
            same(tile, store[number])


def broken(store, tmp_path, change):
    """The store with its first file changed."""
    place = store.table.aoi[0], store.table.block[0]
    path = tmp_path / "changed.safetensors"
    path.write_bytes(store.packed[place].read_bytes())
    change(path)
    return TileStore({**store.packed, place: path}, *index_of(store), "train")


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def without_label(path):
    arrays = load_file(path)
    del arrays["label"]
    save_file(arrays, path)


def of_floats(path):
    save_file({key: values.astype(np.float32) for key, values in load_file(path).items()}, path)


def header_of(path):
    with safe_open(path, "numpy") as file:
        return file.metadata()


def of_another_size(path):
    arrays = {key: np.ascontiguousarray(values[..., :16, :16]) for key, values in load_file(path).items()}
    save_file(arrays, path, header_of(path))


def shorter(path):
    save_file({key: values[:1] for key, values in load_file(path).items()}, path, header_of(path))


def uneven(path):
    arrays = load_file(path)
    save_file(arrays | {"label": arrays["label"][:2]}, path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b""), "header"),
        (lambda path: path.write_bytes(b"no store at all, but a text of some length"), "header"),
        (cut, "ncomplete"),
        (of_floats, "F32"),
        (without_label, "it has no label"),
        (shorter, "it has 1 tiles, its index tells of more"),
        (uneven, "its arrays have 2 and"),
    ],
)
def test_a_store_that_is_none_is_explained(store, tmp_path, change, told):
    one = broken(store, tmp_path, change)
    with pytest.raises(ProductError, match=rf"tile store .*changed\.safetensors is missing or broken .*{told}.*remove"):
        TileStore(one.packed, *index_of(store), "train", ["s1"]).batch(range(len(one)))


def test_a_store_of_another_index_is_refused(area, store, tmp_path):
    """As many tiles of the same kind, but one lies elsewhere: nothing else would tell."""
    name, index = store.table.block[0], tmp_path / "other.parquet"
    table = pd.read_parquet(*index_of(store))
    row, column = table.index[table.block == name][0], table.columns.get_loc("column")
    table.iloc[row, column] += 1
    table.to_parquet(index)

    def remade(path):
        pack_tiles(index, area.stacks[name], area.labels[name], path, "here", name, SMALL.pixels)

    one = broken(store, tmp_path, remade)
    number = int(np.flatnonzero(one.table.block == name)[0])
    with pytest.raises(ProductError, match=r"changed\.safetensors .*made for another index of tiles.*remove it"):
        one[number]
    assert TileStore(one.packed, index, "train")[number].keys() == one.kinds().keys()


def test_stores_of_two_sizes_are_not_mixed(store, tmp_path):
    one = broken(store, tmp_path, of_another_size)
    with pytest.raises(ProductError, match="its s2 is"):
        one.batch(range(len(one)))


def test_a_store_that_is_cut_short_while_it_is_open_is_explained(store, tmp_path):
    one = broken(store, tmp_path, lambda path: None)
    path = tmp_path / "changed.safetensors"
    last = max(number for number in range(len(one)) if one.paths[number] == path)
    one[last]
    times = path.stat()
    os.truncate(path, 5000)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ProductError, match="ends early"):
        one[last]


def test_a_store_that_does_not_say_what_its_inputs_mean_is_refused(store, tmp_path):
    one = broken(store, tmp_path, lambda path: save_file({"s1": np.zeros((1, 1), np.int16)}, path))
    with pytest.raises(ProductError, match=r"changed\.safetensors does not say"):
        one.meaning(["s1"])


def test_stores_whose_inputs_mean_different_things_are_refused(area, store, tmp_path):
    name = store.table.block[0]

    def reverse(path):
        stack = stack_of(area.s1, area.s2, tmp_path / "s.zarr.zip", area.blocks[name], bands=("B08", "B04"))
        pack_tiles(*index_of(store), stack, area.labels[name], path, "here", name, SMALL.pixels)

    with pytest.raises(ModelError, match="B08, B04"):
        broken(store, tmp_path, reverse).meaning(["s2"])


# --- order and delivery ----------------------------------------------------------------------------------------------


def table_of(weights, blocks=1):
    names = np.sort(np.arange(len(weights)) % blocks).astype(str)
    return pd.DataFrame({"aoi": "here", "block": names, "sampling": np.float32(weights)})


def test_even_weights_draw_each_tile_once_in_the_order_of_the_generator():
    table = table_of(np.ones(37))
    for seed in range(3):
        expected = np.random.default_rng([seed, 5]).permutation(37)
        np.testing.assert_array_equal(draw(table, np.random.default_rng([seed, 5])), expected)


@settings(max_examples=50)
@given(st.lists(st.floats(0, 20, width=32), min_size=1, max_size=80), st.integers(0, 99))
def test_a_tile_is_drawn_as_often_as_its_weight_says(weights, seed):
    weights = np.array(weights) + 1e-3
    weights *= len(weights) / weights.sum()
    order = draw(table_of(weights), np.random.default_rng(seed))
    times = np.bincount(order, minlength=len(weights))
    assert len(order) == len(weights)
    assert (np.abs(times - weights) < 1 + 1e-4).all()
    np.testing.assert_array_equal(order, draw(table_of(weights), np.random.default_rng(seed)))


def test_over_many_epochs_draws_are_those_of_the_weights():
    weights = np.array([0.1, 0.3, 0.6, 3.0])
    orders = [draw(table_of(weights), np.random.default_rng([1, epoch])) for epoch in range(2000)]
    np.testing.assert_allclose(np.bincount(np.concatenate(orders)) / 2000, weights, atol=0.03)
    assert len({tuple(order) for order in orders}) > 10


def test_an_order_by_shards_reads_eight_files_in_turn_each_on_and_on():
    table = table_of(np.ones(100), blocks=10)
    order = draw(table, np.random.default_rng(0), "shards")
    assert sorted(order) == list(range(100))
    block = table.block.to_numpy(str)[order]
    assert len(set(block[:8])) == 8 and set(block[:80]).isdisjoint(block[80:])
    for name in set(block):
        steps = np.diff(order[block == name])
        assert sorted(set(steps)) in ([1], [-9, 1]) and (steps == -9).sum() <= 1
    assert list(order) != list(draw(table, np.random.default_rng(1), "shards"))


def test_an_order_by_shards_draws_by_weight_too():
    weights = np.tile([0.0, 0.0, 1.0, 3.0], 10)
    order = draw(table_of(weights, blocks=3), np.random.default_rng(0), "shards")
    assert sorted(order) == sorted(np.repeat(np.arange(40), weights.astype(int)))


@pytest.mark.parametrize("readers", [1, 2, 5])
@pytest.mark.parametrize("count", [3, 12, 30])
def test_batches_are_the_same_for_any_number_of_readers(store, readers, count):
    order = np.random.default_rng(3).integers(0, len(store), count)
    parts = list(batches(order, 4))
    found = 0
    for numbers, batch in zip(parts, load(store, order, buffers_for(store, 4, CPU), readers), strict=True):
        expected = store.batch(numbers)
        assert batch["s2"].dtype == torch.int32 and batch["s1"].dtype == torch.int16
        for key in expected:
            np.testing.assert_array_equal(batch[key].numpy(), expected[key].astype(batch[key].numpy().dtype))
        found += 1
    assert found == -(-count // 4)


def test_a_loader_that_is_left_early_ends_and_one_that_fails_says_why(store, tmp_path):
    buffers = buffers_for(store, 2, CPU)
    batch = next(iter(load(store, np.arange(len(store)), buffers)))
    assert len(batch["label"]) == 2
    one = broken(store, tmp_path, shorter)
    with pytest.raises(ProductError, match="tells of more"):
        list(load(one, np.arange(len(one)), buffers))


def test_waiting_is_counted():
    waits: list[float] = []
    assert list(timed(iter("abc"), waits)) == KEYS
    assert len(waits) == 3 and all(wait >= 0 for wait in waits)
