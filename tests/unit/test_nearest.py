"""The nearest pixel of a raster: right to a hundredth of a pixel, and the same however the grid is cut."""

from functools import cache

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT

from covermap import nearest
from covermap.grid import Grid
from covermap.nearest import _axis, gather, nearest_pixels

SIDE = 200
DEGREE = 360 / 1_335_834  # 30 m
WORLD = from_origin(-180, 90, DEGREE, DEGREE), (667_917, 1_335_834)

# CRS and upper left corner of a grid, CRS of a raster, and the raster's pixel in its own unit
CASES = {
    "tropics": ("EPSG:32721", (455_040, 8_660_040), "EPSG:4326", DEGREE),
    "other datum": ("EPSG:32722", (455_040, 8_660_040), "EPSG:4674", 0.000089831),
    "far north": ("EPSG:32635", (300_000, 8_500_020), "EPSG:4326", DEGREE),
    "other zone": ("EPSG:32633", (700_020, 5_400_000), "EPSG:32632", 10),
    "Europe": ("EPSG:32631", (630_000, 5_800_020), "EPSG:3035", 20),
    "Amersfoort": ("EPSG:32631", (630_000, 5_800_020), "EPSG:28992", 5),
    "a metre": ("EPSG:32633", (300_000, 5_900_040), "EPSG:3857", 1),
    "antimeridian": ("EPSG:32701", (179_760, 8_100_000), "EPSG:4326", DEGREE),
    "near the pole": ("EPSG:3413", (-200_000, 150_000), "EPSG:4326", DEGREE),
    "pole": ("EPSG:3413", (-1_000, 1_000), "EPSG:4326", DEGREE),
}

AROUND_THE_WORLD = ("antimeridian", "near the pole", "pole")  # in a map of the world


def exact_places(block, crs, transform):
    """Row and column, each pixel projected by itself."""
    x = block.left + (np.arange(block.width) + 0.5) * block.pixel_m
    y = block.top - (np.arange(block.height) + 0.5) * block.pixel_m
    east, north = Transformer.from_crs(block.crs, crs, always_xy=True).transform(*np.meshgrid(x, y))
    return np.stack([(transform.f - north) / -transform.e, (east - transform.c) / transform.a])


@cache
def made(name):
    """Grid, CRS, transform and shape of a raster that holds it, and what is found."""
    grid_crs, (left, top), crs, pixel = CASES[name]
    block = Grid(crs=grid_crs, left=left, top=top, width=SIDE, height=SIDE)
    if name in AROUND_THE_WORLD:
        transform, shape = WORLD
    else:
        rows, columns = exact_places(block, crs, from_origin(0, 0, pixel, pixel))
        above, before = np.floor(rows.min()) - 3, np.floor(columns.min()) - 3
        transform = from_origin(before * pixel, -above * pixel, pixel, pixel)
        shape = int(rows.max() - above) + 5, int(columns.max() - before) + 5
    return block, CRS(crs), transform, shape, np.stack(nearest_pixels(block, CRS(crs), transform, shape))


def from_border(places):
    """How far places are from the border of a pixel."""
    return np.abs(places - np.round(places))


@pytest.mark.parametrize("name", CASES)
def test_centres_are_exact_to_a_hundredth_of_a_pixel(name):
    block, crs, transform, shape, found = made(name)
    exact = exact_places(block, crs, transform)
    assert (np.floor(exact) >= 0).all() and (np.floor(exact) < np.array(shape)[:, None, None]).all()
    wrong = found != np.floor(exact)
    assert not (wrong & (from_border(exact) > 0.0101)).any()
    assert wrong.mean() < 0.005


@pytest.mark.parametrize("name", [name for name in CASES if name not in AROUND_THE_WORLD])
def test_as_gdal_where_it_is_exact(tmp_path, name):
    block, crs, transform, shape, found = made(name)
    codes = np.random.default_rng(0).integers(1, 255, shape).astype(np.uint8)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "height": shape[0], "width": shape[1]}
    with rasterio.open(tmp_path / "a.tif", "w", crs=crs.to_wkt(), transform=transform, **profile) as raster:
        raster.write(codes, 1)
    place = {"crs": block.crs, "transform": block.transform, "height": SIDE, "width": SIDE}
    with (
        rasterio.open(tmp_path / "a.tif") as raster,
        WarpedVRT(raster, tolerance=1e-9, resampling=Resampling.nearest, **place) as warped,
    ):
        theirs = warped.read(1)
    ties = (from_border(exact_places(block, crs, transform)) <= 0.0101).any(0)
    ours = gather(lambda window: codes[window.toslices()], *found, shape)
    np.testing.assert_array_equal(ours[~ties], theirs[~ties])
    assert ties.mean() < 0.05


spans = st.tuples(st.integers(0, SIDE - 1), st.integers(1, SIDE)).map(lambda s: (s[0], min(s[1], SIDE - s[0])))


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(sorted(CASES)), spans, spans)
def test_a_cut_finds_what_the_whole_does(name, rows, columns):
    block, crs, transform, shape, found = made(name)
    part = nearest_pixels(block.window(rows[0], columns[0], rows[1], columns[1]), crs, transform, shape)
    np.testing.assert_array_equal(
        np.stack(part), found[:, rows[0] : sum(rows), columns[0] : sum(columns)]
    )  # fmt: skip


@settings(deadline=None)
@given(st.integers(0, 60), st.sampled_from([10, 20, 60, 0.1, 7.3]), st.sampled_from([0, 0.5, 0.3]))
def test_a_cut_of_a_grid_of_any_phase_finds_what_the_whole_does(column, pixel_m, phase):
    whole = Grid(crs="EPSG:32633", left=300_000 + phase * pixel_m, top=5_900_040, width=90, height=3, pixel_m=pixel_m)
    raster = CRS("EPSG:4326"), from_origin(11.9, 53.4, DEGREE, DEGREE), (3_000, 3_000)
    _, columns = nearest_pixels(whole, *raster)
    _, part = nearest_pixels(whole.window(0, column, 3, 30), *raster)
    np.testing.assert_array_equal(part, columns[:, column : column + 30])
    nodes, own = (_axis(grid.left, pixel_m, grid.width).nodes_m for grid in (whole, whole.window(0, column, 3, 30)))
    assert np.isin(own.round(6), nodes.round(6)).all()


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:25833"])
def test_one_lattice_is_copied_and_centres_on_borders_are_of_the_right_and_lower_pixel(crs):
    """Also where the raster's CRS has the same metres by another name, so that projecting rounds."""
    block = Grid(crs="EPSG:32633", left=300_000, top=5_900_040, width=70, height=40)
    for shift_m, first in ((0, 0), (5, 1)):
        transform = from_origin(300_000 - shift_m, 5_900_040 + shift_m, 10, 10)
        rows, columns = nearest_pixels(block, CRS(crs), transform, (100, 100))
        assert (rows == np.arange(40)[:, None] + first).all() and (columns == np.arange(70) + first).all()


def test_outside_is_outside_on_every_side():
    block = Grid(crs="EPSG:32633", left=300_000, top=5_900_040, width=70, height=40)
    small = from_origin(300_100, 5_899_940, 10, 10)
    rows, columns = nearest_pixels(block, CRS("EPSG:32633"), small, (5, 6))
    np.testing.assert_array_equal(rows[:, 0], np.clip(np.arange(40) - 10, -1, 5))
    np.testing.assert_array_equal(columns[0], np.clip(np.arange(70) - 10, -1, 6))
    codes = np.arange(1, 31, dtype=np.uint8).reshape(5, 6)
    expected = np.zeros(block.shape, np.uint8)
    expected[10:15, 10:16] = codes
    np.testing.assert_array_equal(gather(lambda window: codes[window.toslices()], rows, columns, (5, 6)), expected)


def test_what_has_no_place_in_the_rasters_crs_is_outside():
    """The far side of the globe, which an orthographic view does not see."""
    block = Grid(crs="EPSG:32633", left=300_000, top=5_900_040, width=70, height=40)
    behind = CRS("+proj=ortho +lat_0=-50 +lon_0=-170")
    rows, columns = nearest_pixels(block, behind, from_origin(-6_400_000, 6_400_000, 1_000, 1_000), (12_800, 12_800))
    assert (rows == -1).all() and (columns == -1).all()


@pytest.mark.parametrize("west", [-180, 0, 170])
def test_every_turn_of_a_map_shows_both_sides_of_the_antimeridian(west):
    """Maps from 180 W, from 0 and from 170 E on: 30 m at 180 degrees, where a grid lies to both sides."""
    block, crs, transform, shape, _ = made("antimeridian")
    longitude = exact_places(block, crs, transform)[1] * DEGREE - 180
    assert longitude.min() < -179.99 and longitude.max() > 179.99
    turned = from_origin(west, 90, DEGREE, DEGREE)
    _, columns = nearest_pixels(block, crs, turned, shape)
    exact = ((longitude - west) % 360) / DEGREE
    sure = from_border(exact) > 0.0101
    np.testing.assert_array_equal(columns[sure], np.floor(exact[sure]))


@pytest.mark.parametrize(("name", "most"), [("antimeridian", 1 << 18), ("tropics", 500), ("a metre", 5_000)])
def test_little_is_read_at_once(monkeypatch, name, most):
    """Of a map of the world, on both sides of the antimeridian; of one that is finer than the grid."""
    monkeypatch.setattr(nearest, "MOST_PIXELS", most)
    *_, shape, (rows, columns) = made(name)
    sizes = []

    def read(window):
        sizes.append(window.height * window.width)
        lines, places = (np.arange(start, stop) for start, stop in window.toranges())
        return ((lines[:, None] * 7 + places * 3) % 251 + 1).astype(np.uint8)

    np.testing.assert_array_equal(gather(read, rows, columns, shape), (rows * 7 + columns * 3) % 251 + 1)
    assert max(sizes) <= most
    assert len(sizes) == 2 or name != "antimeridian"
    assert sum(sizes) < 3 * rows.size * max(1, 100 * (name == "a metre"))
