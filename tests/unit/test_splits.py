"""Splits that do not leak, whichever way they are made; what they hold, and what is told of them."""

import json
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import torch
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from torch import nn

from covermap.accuracy import evaluate
from covermap.config import contemporaries, held_out_area, load, model_legend
from covermap.errors import CoverageError, SettingError
from covermap.grid import Grid
from covermap.legend import EXCLUDED
from covermap.model_settings import Model, Tiles
from covermap.models.options import OPTIONS
from covermap.raster import write_raster
from covermap.splits import (
    SPLITS,
    TEST,
    cautions,
    corners_of_tests,
    drawing_weights,
    held_out,
    shuffled,
    split_of,
    split_of_cell,
    stratified_cells,
    stratify,
)
from covermap.stack import read_stack
from covermap.store import new_store, places_digest
from covermap.survey import _same_ground, beyond, split_pixels, survey_split, value_counts
from covermap.tiles import index_tiles, suitable, tile_places, tile_table
from covermap.train import build

SMALL = Tiles(pixels=32, stride_pixels=32, cell_pixels=64, buffer_pixels=8, validation=0.25, test=0.25)
KEYS = ["a", "b", "c"]
PIXEL_M = 10


def cut(grid, pixels):
    """Blocks of ``pixels`` a side, from the corner of a grid that begins on their lattice."""
    places = [(row, column) for row in range(0, grid.height, pixels) for column in range(0, grid.width, pixels)]
    return {f"x{column}y{row}": grid.window(row, column, pixels, pixels) for row, column in places}


def index_of(areas, tiles, seed=1, block_pixels=128, classes=3, **more):
    """Index of areas (grid and label), as the workflow would make it."""
    with tempfile.TemporaryDirectory() as name:
        folder, blocks, labels = Path(name), [], []
        for aoi, (grid, label) in areas.items():
            for block, part in cut(grid, block_pixels).items():
                row, column = part.offset_in(grid)
                classes_there = label[row : row + part.height, column : column + part.width]
                labels.append(folder / f"{aoi}{block}.tif")
                layers = np.stack([classes_there, np.full_like(classes_there, 100)])
                write_raster(labels[-1], layers, part, nodata=0, descriptions=("class", "weight"))
                blocks.append((aoi, block, part))
        index_tiles(labels, folder / "index.parquet", blocks, tiles, seed, [*"abc"[:classes]], **more)
        return pd.read_parquet(folder / "index.parquet")


def patchy(grid, seed, classes=3):
    """A label of patches of 16 px, some without a class; class 1 is common, the last rare."""
    random = np.random.default_rng(seed)
    shape = -(-grid.height // 16), -(-grid.width // 16)
    share = np.array([0.1, *(2.0 ** -np.arange(classes))])
    patches = random.choice(classes + 1, shape, p=share / share.sum()).astype(np.uint8)
    return np.kron(patches, np.ones((16, 16), np.uint8))[: grid.height, : grid.width]


def lattice_grid(x, y, rows, columns, cell=64, crs="EPSG:32721"):
    """Grid of so many cells from a place of the lattice on."""
    top = (10_000_000 if crs.startswith("EPSG:327") else 0) + (y + rows) * cell * PIXEL_M
    return Grid(crs=crs, left=x * cell * PIXEL_M, top=top, width=columns * cell, height=rows * cell)


def closest_m(table, side_m):
    """Least distance, along the axis where it is greater, between tiles of two splits."""
    corners = table[["easting_m", "northing_m"]].to_numpy()
    apart = np.abs(corners[:, None] - corners[None]).max(2) - side_m
    other = table.split.to_numpy()[:, None] != table.split.to_numpy()[None]
    return apart[other].min()


# --- no leak ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.integers(-500, 500),
    st.integers(-500, 500),
    st.sampled_from([(8, 8), (8, 12), (12, 4)]),
    st.integers(0, 99),
    st.sampled_from(["blocks", "stratified"]),
    st.sampled_from([None, (3, 0), (4, 3)]),
    st.sampled_from([(32, 16, 0), (32, 32, 8), (32, 24, 16)]),
    st.sampled_from([128, 256]),
)
def test_no_tile_lies_within_the_buffer_of_another_split(x, y, shape, seed, way, fold, sizes, block):
    pixels, stride, buffer = sizes
    folds = {} if fold is None else {"folds": fold[0], "fold": fold[1]}
    tiles = Tiles(pixels=pixels, stride_pixels=stride, cell_pixels=64, buffer_pixels=buffer, split=way, **folds)
    grid = lattice_grid(4 * x, 4 * y, *shape)
    other = grid.window(0, 256, grid.height, grid.width)  # another year, a part of it on the same ground
    areas = {"one": (grid, patchy(grid, seed)), "two": (other, patchy(other, seed + 1))}
    try:
        table = index_of(areas, tiles, seed, block)
    except CoverageError:
        assume(False)  # a split without cells
    assert closest_m(table, pixels * PIXEL_M) >= buffer * PIXEL_M
    assert set(table.split) == set(SPLITS)


def of_two_zones():
    """Two areas with labels on about the same ground, each on the lattice of a zone of its own."""
    west = Grid(crs="EPSG:32721", left=809_600, top=10_000_000 - 8_400_000 + 7_003_520, width=768, height=768)
    east_m, north_m = Transformer.from_crs("EPSG:32721", "EPSG:32722", always_xy=True).transform(west.left, west.top)
    corner = round(east_m / 640) * 640 + 4480, round((north_m - 10_000_000) / 640) * 640 + 10_000_000
    east = Grid(crs="EPSG:32722", left=corner[0], top=corner[1], width=768, height=768)
    return {"west": (west, patchy(west, 1)), "east": (east, patchy(east, 2))}


@pytest.mark.parametrize("way", ["blocks", "stratified"])
def test_areas_of_two_zones_are_kept_apart_on_the_ground(way, caplog):
    tiles, areas = SMALL.model_copy(update={"split": way}), of_two_zones()
    with caplog.at_level("INFO"):
        table = index_of(areas, tiles, 2, 256)
    assert "within 8 px of a tile of another area and split" in caplog.text
    outlines = []
    for tile in table.itertuples():
        square = shapely.box(tile.easting_m, tile.northing_m - 320, tile.easting_m + 320, tile.northing_m)
        back = Transformer.from_crs(areas[tile.aoi][0].crs, "EPSG:32721", always_xy=True)
        outlines.append(shapely.transform(shapely.segmentize(square, 40), back.transform, interleaved=False))
    other = table.split.to_numpy()[:, None] != table.split.to_numpy()[None]
    apart = shapely.distance(np.array(outlines)[:, None], np.array(outlines)[None])
    assert apart[other].min() >= 79  # metres of zone 21 at its rim are a little longer than those on the lattice
    everything = [len(index_of({name: area}, tiles, 2, 256)) for name, area in areas.items()]
    assert 0 < len(table) < sum(everything)
    if way == "blocks":  # training keeps its tiles; stratified cells of two areas depend on each other
        alone = index_of({"west": areas["west"]}, tiles, 2, 256)
        assert ((table.aoi == "west") & (table.split == "train")).sum() == (alone.split == "train").sum()


def test_no_map_is_compared_where_an_area_of_another_zone_was_learnt_from(two_areas, tmp_path):
    areas = of_two_zones()
    aois, model = two_areas["aois"], two_areas["models"]["m"]
    two_areas["aois"] = {"west": aois["taught"], "east": aois["held"] | {"crs": "EPSG:32722"}}
    two_areas["targets"], model["train_on"], model["test_on"] = ["west"], ["west", "east"], []
    config = load(two_areas)
    table = index_of(areas, SMALL, 2, 256)
    table.to_parquet(tmp_path / "index.parquet")
    grid, label = areas["east"]
    for name in ("map", "label"):
        write_raster(tmp_path / f"{name}.tif", label[None], grid, nodata=0, descriptions=("class",))
    files = tmp_path / "map.tif", [tmp_path / "label.tif"], [], tmp_path / "map.tif", tmp_path / "accuracy.json"
    tested = held_out_area(config, "east", "m")
    evaluate(*files, model_legend(config, "m"), SMALL, 2, tmp_path / "index.parquet", tested)
    compared = json.loads(files[-1].read_text())["held_out"]["pixels"]
    tests = table[(table.aoi == "east") & (table.split == "test")]
    assert compared == tests[["class_1", "class_2", "class_3"]].to_numpy().sum() > 0


@pytest.mark.parametrize("stride", [16, 24])
def test_an_area_held_out_whole_keeps_the_buffer_on_one_lattice(stride):
    """Its tiles stand nearer to each other than the buffer: those that touch training are not all that go."""
    tiles = SMALL.model_copy(update={"stride_pixels": stride})
    grid = lattice_grid(1000, -9000, 8, 8)
    beside = grid.window(0, 448, 512, 512)
    areas = {"taught": (grid, np.ones(grid.shape, np.uint8)), "held": (beside, np.ones(beside.shape, np.uint8))}
    for buffer in (8, 16):
        table = index_of(areas, tiles.model_copy(update={"buffer_pixels": buffer}), 0, 64, test_on={"held": ["taught"]})
        assert closest_m(table[(table.aoi == "held") | (table.split == "train")], 320) >= 10 * buffer


def test_an_area_held_out_whole_of_which_nothing_is_left_is_explained():
    grid = lattice_grid(1000, -9000, 8, 8)
    x, y = np.meshgrid(np.arange(1000, 1008), np.arange(-9000, -8992))
    taught = split_of_cell(x, y, SMALL, 0) == SPLITS["train"]
    cell = lattice_grid(int(x[taught][0]), int(y[taught][0]), 1, 1)
    areas = {"taught": (grid, np.ones(grid.shape, np.uint8)), "held": (cell, np.ones(cell.shape, np.uint8))}
    with pytest.raises(CoverageError, match=r"area held of test_on has no tile of 32 px .* lessen tiles\.buffer"):
        index_of(areas, SMALL, 0, 64, test_on={"held": ["taught"]})
    assert "held" in set(index_of(areas, SMALL, 0, 64, test_on={"held": []}).aoi)


def test_an_area_held_out_whole_keeps_away_from_training_of_its_time_alone(caplog):
    grid = lattice_grid(1000, -9000, 8, 8)
    beside = grid.window(0, 448, 512, 512)  # its first column of cells is the last of the other
    areas = {"taught": (grid, patchy(grid, 3)), "held": (beside, patchy(beside, 4))}
    with caplog.at_level("INFO"):
        table = index_of(areas, SMALL, 0, 64, test_on={"held": ["taught"]})
    held, taught = table[table.aoi == "held"], table[table.aoi == "taught"]
    assert set(held.split) == {"test"} and set(taught.split) == set(SPLITS)
    assert closest_m(table[(table.aoi == "held") | (table.split == "train")], 320) >= 80
    another_year = index_of(areas, SMALL, 0, 64, test_on={"held": []})
    assert len(another_year) > len(table) and set(another_year.split[another_year.aoi == "held"]) == {"test"}
    alone = (another_year.aoi == "held").sum()
    assert alone == len(index_of({"a": areas["held"]}, SMALL.model_copy(update={"buffer_pixels": 0}), 0, 64))


def test_areas_of_one_time_that_lie_apart_keep_all_tiles():
    grid = lattice_grid(1000, -9000, 8, 8)
    beside = grid.window(0, 640, 512, 512)
    areas = {"taught": (grid, patchy(grid, 3)), "held": (beside, patchy(beside, 4))}
    kept = [len(index_of(areas, SMALL, 0, 64, test_on={"held": near})) for near in ([], ["taught"])]
    assert kept[0] == kept[1]


# --- what stays when an area grows, or is cut otherwise ---------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(-300, 300), st.integers(0, 30), st.sampled_from([None, 3]))
def test_the_split_of_a_tile_stays_when_the_area_grows_or_its_blocks_change(x, seed, folds):
    tiles = SMALL.model_copy(update={"folds": folds})
    large = lattice_grid(4 * x, -400, 8, 12)
    small = large.window(128, 256, 256, 512)
    label = patchy(large, seed)
    key = ["easting_m", "northing_m"]
    grown = index_of({"a": (large, label)}, tiles, seed, 128).set_index(key)
    before = index_of({"a": (small, label[128:384, 256:768])}, tiles, seed, 256).set_index(key)
    assert len(before) and before.index.isin(grown.index).all()
    columns = ["split", "labelled", "class_1", "class_2", "class_3"]
    pd.testing.assert_frame_equal(before[columns], grown.loc[before.index, columns])
    inside = [
        left >= small.left and top <= small.top and left < small.left + 5120 and top > small.top - 2560
        for left, top in grown.index
    ]
    assert sum(inside) == len(before)


@pytest.mark.parametrize("way", ["blocks", "stratified"])
def test_the_index_is_that_of_one_block_or_of_many(way):
    grid = lattice_grid(400, -400, 8, 8)
    tiles = SMALL.model_copy(update={"split": way})
    tables = [index_of({"a": (grid, patchy(grid, 5))}, tiles, 3, pixels) for pixels in (64, 128, 512)]
    order = ["northing_m", "easting_m"]
    plain = [table.drop(columns=["block", "row", "column"]).sort_values(order, ignore_index=True) for table in tables]
    for one, other in pairwise(plain):
        pd.testing.assert_frame_equal(one, other)


# --- folds and shares -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_each_cell_is_tested_in_exactly_one_fold(seed):
    x, y = np.meshgrid(np.arange(-40, 40), np.arange(100, 180))
    tiles = [SMALL.model_copy(update={"folds": 5, "fold": fold}) for fold in range(5)]
    splits = np.stack([split_of_cell(x, y, each, seed) for each in tiles])
    assert ((splits == TEST).sum(0) == 1).all()
    assert (splits == SPLITS["validation"]).mean() == pytest.approx(0.25, abs=0.02)
    for fold in splits:
        assert (fold == TEST).mean() == pytest.approx(0.2, abs=0.02)


def test_stratified_and_random_folds_partition_too():
    random = np.random.default_rng(1)
    cells = {("EPSG:32633", x, y): random.integers(0, 50, 4) for x in range(9) for y in range(9)}
    tiles = [SMALL.model_copy(update={"folds": 4, "fold": fold}) for fold in range(4)]
    stratified = [stratified_cells(cells, each, 3) for each in tiles]
    for cell in cells:
        assert [splits[cell] for splits in stratified].count(TEST) == 1
    assert all({*splits.values()} == {*SPLITS.values()} for splits in stratified)
    drawn = np.stack([shuffled(103, each, 3) for each in tiles])
    assert ((drawn == TEST).sum(0) == 1).all()


def test_stratified_by_hand():
    pixels = np.array([[0, 100], [10, 0], [10, 0], [0, 100], [80, 0], [0, 100], [0, 0]])
    parts = stratify(pixels, [0.6, 0.2, 0.2])
    # class 0 is the rarer: its largest cell goes where most is lacking, the small ones to the two others
    assert parts.tolist() == [0, 1, 2, 1, 0, 2, 0]


def test_a_rare_class_is_in_every_split_only_when_stratified():
    grid = lattice_grid(40, -90, 10, 10)
    label = np.ones(grid.shape, np.uint8)
    for row, column in ((0, 0), (0, 1), (3, 3), (6, 8), (9, 9)):
        label[row * 64 + 16 : row * 64 + 48, column * 64 + 16 : column * 64 + 48] = 2

    def lacking(way, seed):
        table = index_of({"a": (grid, label)}, SMALL.model_copy(update={"split": way}), seed, 128, 2)
        return (table.groupby("split").class_2.sum() == 0).sum()

    assert sum(lacking("stratified", seed) for seed in range(6)) == 0
    assert sum(lacking("blocks", seed) for seed in range(6)) > 0


def test_shares_are_those_asked_for_and_the_seed_counts():
    random = np.random.default_rng(0)
    cells = {("EPSG:32633", x, y): random.integers(0, 1000, 5) for x in range(20) for y in range(20)}
    one, other = (stratified_cells(cells, SMALL, seed) for seed in (0, 1))
    assert one != other and one == stratified_cells(dict(reversed(cells.items())), SMALL, 0)
    pixels = {part: sum(cells[cell] for cell in cells if one[cell] == part) for part in SPLITS.values()}
    total = sum(pixels.values())
    for name, share in (("train", 0.5), ("validation", 0.25), ("test", 0.25)):
        np.testing.assert_allclose(pixels[SPLITS[name]] / total, share, atol=0.02)
    drawn = shuffled(1000, SMALL, 0)
    assert [(drawn == part).sum() for part in SPLITS.values()] == [500, 250, 250]
    assert (drawn != shuffled(1000, SMALL, 1)).any()


def test_a_random_split_is_by_tile_and_says_that_it_leaks(caplog):
    grid = lattice_grid(10, -10, 4, 4)
    tiles = SMALL.model_copy(update={"split": "random"})
    table = index_of({"a": (grid, np.ones(grid.shape, np.uint8))}, tiles, 0, 256)
    assert table.split.value_counts().to_dict() == {"train": 32, "validation": 16, "test": 16}
    assert closest_m(table, 320) == 0
    assert "leak" in caplog.text
    assert "leak" in cautions(tiles, 0)[0]
    held = table[table.split == "test"]
    inside = held_out(grid, tiles, 0, held[["easting_m", "northing_m"]].to_numpy())
    expected = np.zeros(grid.shape, bool)
    for row, column in zip(held.row, held.column, strict=True):
        expected[row : row + 32, column : column + 32] = True
    np.testing.assert_array_equal(inside, expected)


# --- geometry of tiles ------------------------------------------------------------------------------------------------


def test_tiles_of_32_with_a_gap_of_1_are_those_of_sefrin_et_al():
    raster = Grid(crs="EPSG:32633", left=376_620, top=5_640_840, width=3500, height=2828)
    tiles = Tiles(pixels=32, stride_pixels=33, split="random")
    places = tile_places(raster, tiles, None)
    assert len(places) == 85 * 106
    assert len(np.unique(places[:, 0])) == 85 and len(np.unique(places[:, 1])) == 106
    assert set(np.diff(np.unique(places[:, 1]))) == {33}


@pytest.mark.parametrize(("pixels", "stride"), [(32, 32), (64, 32), (64, 67), (96, 96), (256, 256), (256, 128)])
def test_tiles_of_any_size_and_stride_stay_in_their_cell(pixels, stride):
    grid = lattice_grid(4, -20, 2, 2, cell=512)
    tiles = Tiles(pixels=pixels, stride_pixels=stride, cell_pixels=512, buffer_pixels=64, validation=0.3, test=0.3)
    label = patchy(grid, 9)
    table = tile_table(label, grid, tiles, 4, 3)
    a_side = {False: (512 - 128 - pixels) // stride + 1, True: (512 - pixels) // stride + 1}
    splits = split_of_cell(np.array([[4, 5]]), np.array([[-19], [-20]]), tiles, 4)
    assert len(tile_table(np.ones_like(label), grid, tiles, 4, 3)) == sum(a_side[s == 1] ** 2 for s in splits.ravel())
    for tile in table.itertuples():
        part = label[tile.row : tile.row + pixels, tile.column : tile.column + pixels]
        assert [tile.class_1, tile.class_2, tile.class_3] == [(part == k).sum() for k in (1, 2, 3)]
        assert tile.labelled == (part > 0).mean()
        assert tile.row // 512 == (tile.row + pixels - 1) // 512


def test_incomplete_tiles_are_kept_or_dropped():
    grid = lattice_grid(4, -20, 1, 2)
    label = np.ones(grid.shape, np.uint8)
    label[0, 0] = 0
    label[40, 40] = EXCLUDED
    empty = np.zeros(grid.shape, bool)
    empty[63, 127] = True
    none = SMALL.model_copy(update={"buffer_pixels": 0})
    table = tile_table(label, grid, none, 1, 1, None, empty)
    kept, _ = suitable(table, none)
    assert len(kept) == 8 and kept["empty"].sum() == 1 / 32**2
    dropped, _ = suitable(table, none.model_copy(update={"incomplete": "drop"}))
    assert len(dropped) == 6  # one has a pixel without label, one without observation; the excluded one is known
    assert tile_table(label, grid, none, 1, 1)["empty"].isna().all()


def test_tiles_that_no_scene_saw_are_left_out(area, tmp_path, caplog):
    blocks = [("here", name, block) for name, block in area.blocks.items()]
    files = list(area.labels.values()), tmp_path / "index.parquet", blocks
    with caplog.at_level("INFO"):
        index_tiles(*files, SMALL, 1, KEYS)
        every = len(pd.read_parquet(files[1]))
        for limit in (99, 0):
            stacks = list(area.stacks.values())
            settings = SMALL.model_copy(update={"max_empty": limit, "max_cloud": 100})
            index_tiles(*files, settings, 1, KEYS, stacks, ("sentinel1", "sentinel2"), False)
    table = pd.read_parquet(files[1])
    for tile in table.itertuples():
        place = slice(tile.row, tile.row + 32), slice(tile.column, tile.column + 32)
        read = read_stack(area.stacks[tile.block], *place, ["s1", "s2"])
        assert ((read["s1"] != -32768).any((0, 1)) | (read["s2"] != 0).any((0, 1))).all()
    assert len(table) <= every and not table["empty"].any()


# --- balance, drift, margin -------------------------------------------------------------------------------------------


def test_drawing_weights_by_hand():
    pixels = np.array([[90, 0], [90, 10], [0, 10]])  # 180 and 20 in all
    inverse = drawing_weights(pixels, "inverse")
    weights = np.array([1 / 180, 0.9 / 180 + 0.1 / 20, 1 / 20])
    np.testing.assert_allclose(inverse, weights / weights.mean(), rtol=1e-6)
    root = np.array([180**-0.5, 0.9 * 180**-0.5 + 0.1 * 20**-0.5, 20**-0.5])
    np.testing.assert_allclose(drawing_weights(pixels, "inverse_sqrt"), root / root.mean(), rtol=1e-6)
    assert drawing_weights(pixels, "none").tolist() == [1, 1, 1]
    rare = drawing_weights(np.array([[10**6, 0], [0, 1]]), "inverse")
    assert rare[1] / rare[0] == pytest.approx(20) and rare.mean() == 1


def test_pure_tiles_are_drawn_so_that_classes_are_even():
    pixels = np.repeat([[100, 0, 0], [0, 100, 0], [0, 0, 100]], [60, 10, 4], axis=0)
    np.testing.assert_allclose(drawing_weights(pixels, "inverse") @ pixels, 100 * 74 / 3, rtol=1e-5)


def test_the_index_carries_drawing_weights_of_the_training_tiles():
    grid = lattice_grid(40, -90, 6, 6)
    areas = {"a": (grid, patchy(grid, 2))}
    table = index_of(areas, SMALL.model_copy(update={"balance": "inverse"}))
    taught = table[table.split == "train"]
    expected = drawing_weights(taught[["class_1", "class_2", "class_3"]].to_numpy(), "inverse")
    np.testing.assert_array_equal(taught.sampling, expected)
    assert (table.sampling[table.split != "train"] == 1).all()
    assert (index_of(areas, SMALL).sampling == 1).all() and table.sampling.dtype == np.float32


def test_values_beyond_the_usual_ones_by_hand():
    taught = value_counts(np.arange(1000, dtype=np.uint16).reshape(1, 1, 20, 50), 0)
    assert taught.sum() == 999  # 0 is no data
    met = value_counts(np.array([[[[0, 1, 5, 6]]], [[[500, 995, 996, 4000]]]], np.uint16).reshape(1, 1, 2, 4), 0)
    # 4.995 of 999 values lie below and above what is usual: 1 to 4, and 996 to 999, and the values that hold the 5th
    share = beyond(taught, met)[0, 0]
    assert share == pytest.approx(3 / 7)  # 1, 996 and 4000
    assert beyond(taught, taught)[0, 0] <= 0.01
    assert np.isnan(beyond(taught, np.zeros_like(taught))[0, 0])
    radar = value_counts(np.array([[[[-32768, -3000, -10]]]], np.int16), -32768)
    assert radar.sum() == 2 and radar[0, 0, -3000 + 32768] == 1


def test_an_area_is_surveyed_against_the_training_tiles(tmp_path):
    """Training has 1 to 1000, validation 5000; of the area's two tiles one is as in training, one is far beyond."""
    grid = lattice_grid(40, -90, 1, 2)
    taught = np.resize(np.arange(1, 1001), (32, 32))
    values = np.stack([taught, taught, *(np.full((32, 32), value) for value in (5000, 500, 7000))]).astype(np.uint16)
    rows = pd.DataFrame({"row": 0, "column": 32 * np.arange(5), "block": "b", "class_1": 1024})
    rows = rows.assign(aoi=["a"] * 3 + ["held"] * 2, split=["train", "train", "validation", "test", "test"])
    rows = rows.assign(geometry=shapely.to_wkb(shapely.box(rows.column, 0, rows.column + 32, 32)))
    rows.to_parquet(tmp_path / "index.parquet")
    kinds = {"s2": (np.dtype(np.uint16), (1, 1, 32, 32)), "label": (np.dtype(np.uint8), (32, 32))}
    kinds["weight"] = kinds["label"]
    packed = []
    for aoi in ("a", "held"):
        here = rows.aoi == aoi
        packed.append(tmp_path / f"{aoi}.safetensors")
        about = {"meaning": json.dumps({"s2": {"band": ["B04"]}}), "places": places_digest(rows[here])}
        with new_store(packed[-1], int(here.sum()), kinds, about) as write:
            for number, tile in enumerate(values[here]):
                flat = np.ones((32, 32), np.uint8)
                write(number, {"s2": tile[None, None], "label": flat, "weight": flat})
    blocks = [("a", "b", grid), ("held", "b", grid)]
    survey_split(
        tmp_path / "index.parquet", [], packed, tmp_path / "s.json", blocks, SMALL, ["a"], ("sentinel2",),
        {"held": []}, 0,
    )  # fmt: skip
    survey = json.loads((tmp_path / "s.json").read_text())
    assert survey["beyond"] == {"held": {"s2 B04": 0.5}}
    assert survey["leaks"] == {}  # neighbours touch, and share no ground
    assert "s2 B04 50 %" in survey["notes"][-1]


def test_ground_that_was_learnt_from_at_another_time_is_told():
    rows = pd.DataFrame({"aoi": ["a", "b", "held", "held"], "split": ["train", "train", "test", "test"]})
    squares = shapely.box(np.array([0, 8, 1, 2]), 0, np.array([2, 10, 9, 4]), 2)  # of a, b and held, one beside a
    rows["geometry"] = shapely.to_wkb(squares)
    ((area, told),) = _same_ground(rows, {"held": ["b"]})
    assert area == "held" and told.startswith("50 % of the tiles of held lie on ground that was learnt from")
    assert not list(_same_ground(rows, {"held": ["a", "b"]}))  # of the same time: another matter


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_unet_looks_as_far_as_its_margin(depth):
    """The input that a pixel's logits depend on; group normalisation, which takes means over a window, is left out."""
    side = 32 * 2**depth
    model = Model(network="unet", train_on=["here"], options={"depth": depth, "width": 8})
    net = build(model, {"s2": (1, 1)}, 2, {"s2": {"band": ["B02"]}}).network
    for module in net.modules():
        for child, each in module.named_children():
            if isinstance(each, nn.GroupNorm | nn.ReLU):
                setattr(module, child, nn.Identity())
    farthest = 0
    for offset in range(2**depth):
        image = torch.rand(1, 1, 1, side, 8, requires_grad=True)
        row = side // 2 + offset
        net({"s2": image}, {"s2": torch.ones(1, 1, side, 8)})[0, 0, row, 4].backward()
        rows = np.flatnonzero(image.grad[0, 0, 0].abs().sum(1).numpy())
        farthest = max(farthest, row - rows.min(), rows.max() - row)
    margin = OPTIONS["unet"](depth=depth).margin_pixels
    assert margin - 2**depth <= farthest <= margin  # at a maximum one of two inputs counts, so a few rims are missed


def test_a_buffer_below_the_margin_is_told(caplog):
    grid = lattice_grid(40, -90, 6, 6)
    index_of({"a": (grid, patchy(grid, 2))}, SMALL, margin_pixels=51)
    assert "The network looks 51 px far, but splits are 8 px apart" in caplog.text
    assert cautions(SMALL, 8) == []


# --- what splits hold -------------------------------------------------------------------------------------------------


def surveyed(folder, tiles):
    """Survey of one area in one block, its class 3 nowhere."""
    grid = lattice_grid(40, -90, 8, 8)
    label = np.minimum(patchy(grid, 2), 2)
    layers = np.stack([label, np.full_like(label, 100)])
    write_raster(folder / "label.tif", layers, grid, nodata=0, descriptions=("class", "weight"))
    blocks, keys = [("a", "x0y0", grid)], ["forest", "water", "rock"]
    index_tiles([folder / "label.tif"], folder / "index.parquet", blocks, tiles, 1, keys)
    survey_split(
        folder / "index.parquet", [folder / "label.tif"], [], folder / "survey.json", blocks, tiles, keys,
        ("sentinel2",), {}, 51,
    )  # fmt: skip
    return json.loads((folder / "survey.json").read_text()), pd.read_parquet(folder / "index.parquet"), label


@pytest.mark.parametrize("stride", [16, 32, 40])
def test_areas_of_classes_count_each_pixel_once(tmp_path, stride):
    tiles = SMALL.model_copy(update={"stride_pixels": stride})
    survey, table, label = surveyed(tmp_path, tiles)
    for split in SPLITS:
        covered = np.zeros(label.shape, bool)
        for tile in table[table.split == split].itertuples():
            covered[tile.row : tile.row + 32, tile.column : tile.column + 32] = True
        hectares = [(covered & (label == k)).sum() / 100 for k in (1, 2, 3)]
        assert list(survey["hectares"][split].values()) == pytest.approx(hectares)
        assert survey["tiles"][split] == (table.split == split).sum()
    assert survey["areas"] == {split: ["a"] for split in SPLITS}
    assert survey["leaks"] == {} and "looks 51 px far" in survey["notes"][0]


def test_a_random_split_leaks_in_every_area(tmp_path):
    survey, _, _ = surveyed(tmp_path, SMALL.model_copy(update={"split": "random"}))
    assert list(survey["leaks"]) == ["a"] and "the figures leak" in survey["leaks"]["a"]
    assert survey["notes"] == []


def test_a_class_that_a_split_lacks_is_named(tmp_path, caplog):
    grid = lattice_grid(40, -90, 8, 8)
    label = np.ones(grid.shape, np.uint8)
    held = split_of(grid, SMALL, 1) == TEST
    label[held] = 3
    layers = np.stack([label, np.full_like(label, 100)])
    write_raster(tmp_path / "label.tif", layers, grid, nodata=0, descriptions=("class", "weight"))
    files = [tmp_path / "label.tif"], tmp_path / "index.parquet"
    blocks = [("a", "x0y0", grid)]
    index_tiles(*files, blocks, SMALL, 1, KEYS)
    assert "train tiles have no pixel of b, c: no map will show them" in caplog.text
    assert "test tiles have no pixel of a: nothing is known" in caplog.text
    survey_split(
        files[1], files[0], [], tmp_path / "s.json", blocks, SMALL, KEYS, ("sentinel2",), {}, 0
    )  # fmt: skip
    notes = json.loads((tmp_path / "s.json").read_text())["notes"]
    assert "No train tile has a pixel of c, so no map will show it." in notes
    assert not any(" b" in note for note in notes)  # which the area does not have at all


def test_test_tiles_alone_tell_what_is_held_out_where_areas_are_whole(tmp_path):
    _, table, _ = surveyed(tmp_path, SMALL)
    corners = corners_of_tests(tmp_path / "index.parquet", "a")
    assert len(corners) == (table.split == "test").sum() > 0
    grid = lattice_grid(40, -90, 8, 8)
    part = grid.window(100, 37, 90, 200)
    whole = held_out(grid, SMALL, 1, corners)
    np.testing.assert_array_equal(held_out(part, SMALL, 1, corners), whole[100:190, 37:237])
    assert not (whole & ~(split_of(grid, SMALL, 1) == TEST)).any()
    assert len(corners_of_tests(tmp_path / "index.parquet", "b")) == 0


def test_pixels_of_splits_need_no_labels_where_tiles_do_not_overlap(tmp_path):
    _, table, _ = surveyed(tmp_path, SMALL)
    by_split = split_pixels(table, [], [], SMALL, 3)
    assert by_split["train"][0] == table[table.split == "train"].class_1.sum()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"folds": 3, "fold": 3}, "fold is 3: expected 0 to 2, since folds is 3"),
        ({"fold": 1}, "fold is 1, but folds is not set"),
        ({"folds": 4, "test": 0.2}, "test is 0.2, but folds is 4"),
        ({"folds": 2, "validation": 0.4}, "test is 0.5 beside validation 0.4"),
        ({"cell_pixels": 256, "pixels": 160}, "does not fit into a held-out cell of 256 px less a buffer of 64 px"),
        ({"split": "striped"}, "Input should be 'blocks', 'stratified'"),
        ({"pixels": 40}, "multiple of 32"),
    ],
)
def test_settings_of_a_split_that_cannot_be_are_explained(change, told):
    with pytest.raises(ValueError, match=told):
        Tiles(**change)


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("models/m/test_on", ["acre"], "models.m.test_on is 'acre', but there is only"),
        ("models/m/test_on", ["taught"], "models.m.test_on names 'taught', which train_on names too"),
        ("models/m/test_on", ["held", "held"], "held stands there twice"),
        ("aois/held/labels", None, "models.m.test_on names 'held', which has no labels"),
        (
            "aois/held/block_pixels",
            320,
            "models.m.tiles.cell_pixels is 256: expected a divisor of aois.held.block_pixels",
        ),
        ("aois/held/sensors", ["sentinel1"], "models.m.sensors wants sentinel2, which aois.held.sensors lacks"),
        ("aois/held/labels/legend", "resources/legends/klingenberg.csv", "model 'm' maps"),
    ],
)
def test_areas_that_a_model_cannot_be_tested_on_are_explained(two_areas, path, value, told):
    *parents, last = path.split("/")
    place = two_areas
    for name in parents:
        place = place[name]
    place[last] = value
    with pytest.raises(SettingError) as caught:
        load(two_areas)
    assert told in str(caught.value)


@pytest.fixture
def two_areas():
    """Settings of a model that learns from the demo and is tested on it a year later."""
    settings = yaml.safe_load(Path("config/config.yaml").read_text())
    taught, model = settings["aois"]["demo"], settings["models"]["unet_demo"]
    taught["model"] = "m"
    held = {**taught, "labels": {**taught["labels"]}, "period": {"start": "2022-08-01", "end": "2023-07-31"}}
    model |= {"train_on": ["taught"], "test_on": ["held"]}
    return {**settings, "targets": ["held"], "aois": {"taught": taught, "held": held}, "models": {"m": model}}


def test_only_training_of_the_same_time_matters_to_an_area_held_out(two_areas):
    assert contemporaries(load(two_areas), "m") == {"held": []}
    two_areas["aois"]["held"]["period"]["start"] = "2022-07-01"
    two_areas["aois"]["taught"]["period"] = {"start": "2021-07-01", "end": "2022-07-31"}
    assert contemporaries(load(two_areas), "m") == {"held": ["taught"]}


def test_where_test_tiles_tell_what_is_held_out(two_areas):
    config = load(two_areas)
    assert held_out_area(config, "held", "m") == "held" and held_out_area(config, "taught", "m") is None
    two_areas["models"]["m"]["tiles"]["split"] = "stratified"
    config = load(two_areas)
    assert held_out_area(config, "taught", "m") == "taught"
    two_areas["models"]["m"]["test_on"] = []
    with pytest.raises(SettingError, match=r"split is stratified, which does not tell what is held out of aois\.held"):
        load(two_areas)
    two_areas["models"]["m"]["tiles"]["split"] = "blocks"
    assert held_out_area(load(two_areas), "held", "m") is None  # cells of one lattice tell it
    two_areas["aois"]["taught"]["crs"] = "EPSG:32722"
    with pytest.raises(SettingError, match=r"learns from taught in EPSG:32722, but .* add held to models\.m\.test_on"):
        load(two_areas)


def test_tiles_stand_side_by_side_where_nothing_else_is_set():
    assert Tiles(pixels=128).spacing_pixels == 128 and Tiles(pixels=128, stride_pixels=64).spacing_pixels == 64
    places = tile_places(lattice_grid(40, -90, 1, 2), Tiles(pixels=32, cell_pixels=64, buffer_pixels=0), split_nothing)
    assert places[:, :2].tolist() == [[r, c + k] for k in (0, 64) for r in (0, 32) for c in (0, 32)]


def split_nothing(x, y):
    return np.full((y.size, x.size), SPLITS["train"])


def test_settings_survive_the_way_through_a_job():
    tiles = Tiles(folds=4, fold=2)
    assert Tiles(**tiles.model_dump(mode="json")) == tiles
    assert Tiles(split="random", pixels=64, cell_pixels=64).buffer_pixels == 64  # cells do not matter


def test_folds_without_enough_cells_are_explained():
    grid = lattice_grid(40, -90, 2, 2)
    with pytest.raises(CoverageError, match=r"no (train|validation|test) tile .* on cells of 64 px.* folds"):
        index_of(
            {"a": (grid, np.ones(grid.shape, np.uint8))}, SMALL.model_copy(update={"folds": 20, "fold": 7}), 0, 128
        )


def test_no_tile_with_labels_enough_is_explained():
    grid = lattice_grid(40, -90, 6, 6)
    label = np.zeros(grid.shape, np.uint8)
    label[::4] = 1
    with pytest.raises(CoverageError, match=r"no train tile of 32 px: 0 tiles in all .* min_labelled"):
        index_of({"a": (grid, label)}, SMALL)
