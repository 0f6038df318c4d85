"""Splits that do not leak and tiles that equal their sources."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covermap.errors import CoverageError
from covermap.grid import Grid
from covermap.legend import EXCLUDED
from covermap.model_settings import Tiles
from covermap.raster import read_window, write_raster
from covermap.splits import BUFFER, SPLITS, cell_names, split_of
from covermap.tiles import index_tiles, suitable, tile_table
from tests.unit.conftest import BANDS, stack_of

SMALL = Tiles(pixels=32, stride_pixels=32, cell_pixels=64, buffer_pixels=8, validation=0.25, test=0.25)
KEYS = ["a", "b", "c"]


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


def test_tiles_with_few_labels_are_left_out(area):
    block = area.blocks["x300y-3001"]
    label = np.zeros(block.shape, np.uint8)
    label[:, :16] = 1
    table = tile_table(label, block, SMALL, 1, 1)
    kept, _ = suitable(table, SMALL)
    assert (kept["labelled"] == 0.5).all() and len(kept) == (table.labelled >= 0.5).sum() < len(table)
    assert suitable(table, SMALL.model_copy(update={"min_labelled": 0.6}))[0].empty


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
            index_tiles(labels, index, blocks, SMALL.model_copy(update={"max_cloud": limit}), 1, KEYS, stacks)
        tables[limit] = pd.read_parquet(index)
    every = tables[100]
    assert set(every.cloudy[every.column == 0][every.block == "x300y-3001"]) == {0.5}
    second = (every.block == "x300y-3001") & (every.column == 32)
    assert np.allclose(every.cloudy[second], 3 / 32) and second.any()
    assert len(tables[50]) == len(every)
    assert len(tables[49]) == (every.cloudy < 0.5).sum() < len(every)
    assert len(tables[9]) == (every.cloudy < 0.09).sum() < len(tables[49])
    assert f"{len(every) - len(tables[9])} of {len(every)} tiles left out" in caplog.text
    index_tiles(labels, index, blocks, SMALL, 1, KEYS)
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
        index_tiles(list(area.labels.values()), index, blocks, SMALL, 1, KEYS, stacks)
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
        index_tiles([*labels, bare], index, [*blocks, ("there", "x300y-3001", block)], SMALL, 1, KEYS)
    assert not index.exists()
    index_tiles([bare, labels[1]], index, blocks, SMALL, 1, KEYS)  # a block without labels is no fault of its area
    assert set(pd.read_parquet(index).block) == {"x301y-3001"}


def test_a_split_without_tiles_is_explained(area, tmp_path):
    whole = Tiles(pixels=128, stride_pixels=128, cell_pixels=128, buffer_pixels=0)
    name, block = next(iter(area.blocks.items()))
    with pytest.raises(CoverageError, match="cell_pixels"):
        index_tiles([area.labels[name]], tmp_path / "index.parquet", [("here", name, block)], whole, 0, KEYS)
    assert not list(tmp_path.iterdir())
