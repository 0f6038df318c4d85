"""Splits that do not leak and tiles that equal their sources."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from covermap.errors import CoverageError, ProductError
from covermap.grid import Grid
from covermap.legend import EXCLUDED
from covermap.raster import read_window, write_raster
from covermap.settings import Tiles
from covermap.stack import read_stack
from covermap.tiles import BUFFER, SPLITS, TileStore, cell_names, index_tiles, pack_tiles, split_of, tile_table
from tests.unit.conftest import BANDS, stack_of

SMALL = Tiles(pixels=32, stride_pixels=32, cell_pixels=64, buffer_pixels=8, validation=0.25, test=0.25)


@given(
    st.integers(-5000, 5000),
    st.integers(-5000, 5000),
    st.integers(0, 9),
    st.sampled_from([(32, 64, 8), (64, 128, 16), (32, 96, 0), (32, 128, 40)]),
)
def test_no_tile_lies_within_the_buffer_of_another_split(x, y, seed, sizes):
    pixels, cell, buffer = sizes
    settings = Tiles(pixels=pixels, stride_pixels=16, cell_pixels=cell, buffer_pixels=buffer, validation=0.2, test=0.3)
    block = Grid(crs="EPSG:32721", left=x * 160, top=10_000_000 + y * 160, width=300, height=200)
    table = tile_table(np.ones(block.shape, np.uint8), block, settings, seed, 1)
    corners = table[["row", "column"]].to_numpy()
    splits = table["split"].to_numpy()
    apart = np.abs(corners[:, None] - corners[None]).max(2)  # between corners; tiles touch at `pixels`
    other = splits[:, None] != splits[None]
    assert not other.any() or apart[other].min() >= pixels + buffer


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 5))
def test_the_split_of_a_pixel_does_not_change_when_the_area_grows(row, column, seed):
    large = Grid(crs="EPSG:32633", left=376_620, top=5_640_840, width=200, height=200)
    small = large.window(row, column, 60, 70)
    inside = np.s_[row : row + 60, column : column + 70]
    np.testing.assert_array_equal(split_of(large, SMALL, seed)[inside], split_of(small, SMALL, seed))
    np.testing.assert_array_equal(cell_names(large, SMALL)[inside], cell_names(small, SMALL))


def test_shares_of_the_split_are_those_asked_for():
    block = Grid(crs="EPSG:32721", left=0, top=10_000_000, width=64 * 40, height=64 * 40)
    cells = split_of(block, SMALL.model_copy(update={"buffer_pixels": 0}), 3)[32::64, 32::64]
    assert (cells != BUFFER).all()
    for name, share in (("train", 0.5), ("validation", 0.25), ("test", 0.25)):
        assert (cells == SPLITS[name]).mean() == pytest.approx(share, abs=0.02)


def test_packed_tiles_equal_the_pixels_of_their_sources(area, tmp_path):
    blocks = [("here", name, block) for name, block in area.blocks.items()]
    index = tmp_path / "index.parquet"
    index_tiles(list(area.labels.values()), index, blocks, SMALL, 1, 3)
    packed = {}
    for name in area.blocks:
        packed["here", name] = tmp_path / f"{name}.safetensors"
        pack_tiles(index, area.stacks[name], area.labels[name], packed["here", name], "here", name, SMALL)
    table = pd.read_parquet(index)
    assert set(table.split) == set(SPLITS)
    for split in SPLITS:
        store = TileStore(packed, index, split)
        assert len(store) == (table.split == split).sum()
        for number in range(len(store)):
            tile, row = store[number], store.table.iloc[number]
            block = area.blocks[row.block]
            place = block.window(row.row, row.column, 32, 32)
            assert (place.left, place.top) == (row.easting_m, row.northing_m)
            label = read_window(area.labels[row.block], place, fill=0)
            np.testing.assert_array_equal(tile["label"], label[0])
            np.testing.assert_array_equal(tile["weight"], label[1])
            stack = read_stack(area.stacks[row.block], slice(row.row, row.row + 32), slice(row.column, row.column + 32))
            np.testing.assert_array_equal(tile["s1"], stack["s1"])
            np.testing.assert_array_equal(tile["s2"], stack["s2"])
            counts = np.bincount(tile["label"].ravel(), minlength=4)[1:]
            assert [row[f"class_{i}"] for i in (1, 2, 3)] == counts.tolist()


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
    labels, index, packed = (tmp_path / file for file in ("labels.tif", "index.parquet", "packed.safetensors"))
    label = read_window(area.labels[name], block, fill=0)[0]
    write_raster(labels, np.stack([label, given_weight]), block, nodata=0, descriptions=("class", "weight"))
    index_tiles(list(area.labels.values()), index, [("here", *one) for one in area.blocks.items()], SMALL, 1, 3)
    pack_tiles(index, stack, labels, packed, "here", name, SMALL)
    expected = np.where(layer[0, : block.height, : block.width] > 0, 0, given_weight)
    table = pd.read_parquet(index)
    places = table[table.block == name][["row", "column"]].to_numpy()
    tiles = [expected[row : row + 32, column : column + 32] for row, column in places]
    assert any((tile == 0).any() for tile in tiles)
    np.testing.assert_array_equal(load_file(packed)["weight"], np.stack(tiles))


def test_a_store_that_does_not_say_what_its_inputs_mean_is_refused(area, tmp_path):
    index = tmp_path / "index.parquet"
    blocks = [("here", name, block) for name, block in area.blocks.items()]
    index_tiles(list(area.labels.values()), index, blocks, SMALL, 1, 3)
    save_file({"s1": np.zeros(1, np.int16)}, tmp_path / "bare.safetensors")
    store = TileStore({("here", blocks[0][1]): tmp_path / "bare.safetensors"}, index, "train")
    with pytest.raises(ProductError, match=r"bare\.safetensors does not say"):
        store.meaning(["s1"])


def test_tiles_with_few_labels_are_left_out(area):
    block = area.blocks["x300y-3001"]
    label = np.zeros(block.shape, np.uint8)
    label[:, :16] = 1
    assert tile_table(label, block, SMALL.model_copy(update={"min_labelled": 0.6}), 1, 1).empty
    assert (tile_table(label, block, SMALL, 1, 1)["labelled"] == 0.5).all()


def cloudy_stacks(area, folder, cloud):
    """Stacks of the area from its scenes, the only one of Sentinel-2 under a cloud (bool, of the area's grid)."""
    scene = read_window(area.s2[0], area.grid, fill=0)
    scene[-1][cloud] = 9
    tags = {"datetime": "2022-01-20T14:00:00Z"}
    path = folder / "cloudy.tif"
    write_raster(path, scene, area.grid, nodata=0, descriptions=(*BANDS, "SCL"), tags=tags)
    return [stack_of(area.s1, [path], folder / f"{name}.zarr.zip", block) for name, block in area.blocks.items()]


def test_tiles_that_were_hardly_ever_clear_are_left_out(area, tmp_path, caplog):
    cloud = np.zeros(area.grid.shape, bool)
    cloud[:, :32:2] = True  # half of the first column of tiles
    cloud[:, 32:35] = True  # a tenth of the second
    stacks = cloudy_stacks(area, tmp_path, cloud)
    blocks = [("here", name, block) for name, block in area.blocks.items()]
    index, labels = tmp_path / "index.parquet", list(area.labels.values())
    tables = {}
    for limit in (100, 50, 49, 9):
        with caplog.at_level("INFO"):
            index_tiles(labels, index, blocks, SMALL.model_copy(update={"max_cloud": limit}), 1, 3, stacks)
        tables[limit] = pd.read_parquet(index)
    every = tables[100]
    assert set(every.cloudy[every.column == 0][every.block == "x300y-3001"]) == {0.5}
    second = (every.block == "x300y-3001") & (every.column == 32)
    assert np.allclose(every.cloudy[second], 3 / 32) and second.any()
    assert len(tables[50]) == len(every)
    assert len(tables[49]) == (every.cloudy < 0.5).sum() < len(every)
    assert len(tables[9]) == (every.cloudy < 0.09).sum() < len(tables[49])
    assert f"{len(every) - len(tables[9])} of {len(every)} tiles left out" in caplog.text
    index_tiles(labels, index, blocks, SMALL, 1, 3)
    assert len(pd.read_parquet(index)) == len(every)  # a model without Sentinel-2


def test_what_no_scene_reached_is_no_cloud():
    block = Grid(crs="EPSG:32721", left=0, top=7_000_000, width=32, height=32)
    clouds = np.zeros((2, 32, 32), np.int16)
    clouds[1, :, :8] = 2  # a quarter was seen, in two steps
    clouds[0, :16, :8] = 1  # half of that was hidden in one of them
    settings = Tiles(pixels=32, stride_pixels=32, cell_pixels=32, buffer_pixels=0)
    (tile,) = tile_table(np.ones((32, 32), np.uint8), block, settings, 1, 1, clouds).itertuples()
    assert tile.cloudy == 0.25


def test_a_split_that_clouds_leave_without_tiles_is_explained(area, tmp_path):
    stacks = cloudy_stacks(area, tmp_path, np.ones(area.grid.shape, bool))
    blocks = [("here", name, block) for name, block in area.blocks.items()]
    index = tmp_path / "index.parquet"
    with pytest.raises(CoverageError, match=r"no train tile .* more than 15 % was never clear.* tiles\.max_cloud"):
        index_tiles(list(area.labels.values()), index, blocks, SMALL, 1, 3, stacks)
    assert not index.exists()


@pytest.mark.parametrize("pixels", [64, 32])
def test_small_tiles_cover_a_block(area, pixels):
    settings = Tiles(pixels=pixels, stride_pixels=pixels, cell_pixels=256, buffer_pixels=0)
    block = area.blocks["x300y-3001"]
    table = tile_table(np.ones(block.shape, np.uint8), block, settings, 1, 1, np.zeros((2, *block.shape), np.int16))
    assert len(table) == (256 // pixels) ** 2
    assert (table.class_1 == pixels**2).all() and not table.cloudy.any()


def test_labels_without_any_labelled_pixel_are_explained(area, tmp_path):
    blocks = [("here", name, block) for name, block in area.blocks.items()]
    labels = list(area.labels.values())
    bare = tmp_path / "bare.tif"
    block = area.blocks["x300y-3001"]
    layers = np.stack([np.full(block.shape, EXCLUDED), np.full(block.shape, 100)]).astype(np.uint8)
    write_raster(bare, layers, block, nodata=0, descriptions=("class", "weight"))
    index = tmp_path / "index.parquet"
    with pytest.raises(
        CoverageError, match=r"labels of area there have no labelled pixel .* aois\.there\.labels\.path"
    ):
        index_tiles([*labels, bare], index, [*blocks, ("there", "x300y-3001", block)], SMALL, 1, 3)
    assert not index.exists()
    index_tiles([bare, labels[1]], index, blocks, SMALL, 1, 3)  # a block without labels is no fault of its area
    assert set(pd.read_parquet(index).block) == {"x301y-3001"}


def test_a_split_without_tiles_is_explained(area, tmp_path):
    whole = Tiles(pixels=128, stride_pixels=128, cell_pixels=128, buffer_pixels=0)
    name, block = next(iter(area.blocks.items()))
    with pytest.raises(CoverageError, match="cell_pixels"):
        index_tiles([area.labels[name]], tmp_path / "index.parquet", [("here", name, block)], whole, 0, 3)
    assert not list(tmp_path.iterdir())
