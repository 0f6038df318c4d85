"""Polygons to pixels: by hand, like GDAL, and the same however an area is cut into blocks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize
from shapely import MultiPolygon, Polygon, box, make_valid

from covermap.burn import burn
from covermap.grid import Grid

GRID = Grid(crs="EPSG:32721", left=780_000, top=8_500_020, width=24, height=16)


def place(column, row):
    return GRID.left + column * 10, GRID.top - row * 10


def shape(*corners):
    return Polygon([place(*corner) for corner in corners])


def drawn(shapes, ids=None, grid=GRID, all_touched=False):
    ids = np.arange(1, len(shapes) + 1) if ids is None else np.array(ids)
    return burn(np.array(shapes, object), ids.astype(np.uint8), grid, all_touched)[0]


def test_centres_decide_and_holes_stay():
    outer, hole = [(1, 1), (6, 1), (6, 6), (1, 6)], [(2.6, 2.4), (4.4, 2.4), (4.4, 3.6), (2.6, 3.6)]
    expected = np.zeros(GRID.shape, np.uint8)
    expected[1:6, 1:6] = 1
    expected[2:4, 3] = 0  # the hole holds the centres of one column only
    ring = Polygon([place(*p) for p in outer], [[place(*p) for p in hole]])
    np.testing.assert_array_equal(drawn([ring]), expected)


def test_a_centre_on_a_shared_border_is_of_one_polygon():
    """Borders through the centres of pixels, upright and level: nothing is left out, nothing is there twice."""
    four = [
        shape((2.5, 2.5), (4.5, 2.5), (4.5, 4.5), (2.5, 4.5)),
        shape((4.5, 2.5), (6.5, 2.5), (6.5, 4.5), (4.5, 4.5)),
        shape((2.5, 4.5), (4.5, 4.5), (4.5, 6.5), (2.5, 6.5)),
        shape((4.5, 4.5), (6.5, 4.5), (6.5, 6.5), (4.5, 6.5)),
    ]
    burnt, twice = burn(np.array(four, object), np.array([1, 2, 3, 4], np.uint8), GRID)
    assert twice == 0
    assert [int((burnt == value).sum()) for value in (1, 2, 3, 4)] == [4, 4, 4, 4]


def test_the_later_shape_wins_and_overlaps_are_counted():
    shapes = np.array([shape((0, 0), (4, 0), (4, 4), (0, 4)), shape((2, 2), (6, 2), (6, 6), (2, 6))], object)
    burnt, twice = burn(shapes, np.array([7, 9], np.uint8), GRID)
    assert twice == 4 and burnt[3, 3] == 9 and burnt[0, 0] == 7


def test_all_touched_takes_every_pixel_with_a_part_and_none_with_a_border_only():
    sliver = shape((2.7, 1.1), (2.9, 1.1), (2.9, 4.2), (2.7, 4.2))
    expected = np.zeros(GRID.shape, np.uint8)
    expected[1:5, 2] = 1
    assert not drawn([sliver]).any()
    np.testing.assert_array_equal(drawn([sliver], all_touched=True), expected)
    exact = shape((3, 3), (6, 3), (6, 5), (3, 5))
    np.testing.assert_array_equal(drawn([exact], all_touched=True), drawn([exact]))


def test_all_touched_against_areas_of_pixels():
    random = np.random.default_rng(3)
    for _ in range(20):
        triangle = shape(*random.uniform((-3, -3), (27, 19), (3, 2)).round(1))
        parts = np.array(
            [[triangle.intersection(pixel(column, row)).area for column in range(24)] for row in range(16)]
        )
        burnt = drawn([triangle], all_touched=True) > 0
        assert burnt[parts > 0.2].all() and not burnt[parts == 0].any()


def pixel(column, row):
    (left, top), (right, bottom) = place(column, row), place(column + 1, row + 1)
    return box(left, bottom, right, top)


def test_as_gdal_draws_them():
    """But for centres within a centimetre of a border, of which there is none here."""
    random = np.random.default_rng(1)
    shapes = []
    for _ in range(200):
        angles, radii = np.sort(random.uniform(0, 2 * np.pi, 9)), random.uniform(2, 9, 9)
        centre = random.uniform((0, 0), (24, 16))
        shapes.append(make_valid(shape(*(centre + np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]))))
    ids = random.integers(1, 200, 200)
    expected = rasterize(
        zip(shapes, ids.tolist(), strict=True), out_shape=GRID.shape, transform=GRID.transform, dtype=np.uint8
    )
    np.testing.assert_array_equal(drawn(shapes, ids), expected)


corner = st.tuples(*(st.one_of(st.integers(-8, 64).map(lambda n: n / 2), st.floats(-4, 32)) for _ in range(2)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(corner, min_size=3, max_size=9), min_size=1, max_size=5),
    st.integers(1, 23),
    st.integers(1, 15),
    st.booleans(),
)
def test_blocks_are_parts_of_the_whole(outlines, column, row, all_touched):
    shapes = [MultiPolygon([shape(*corners)]) for corners in outlines]
    whole = drawn(shapes, all_touched=all_touched)
    for top, bottom in ((0, row), (row, 16)):
        for left, right in ((0, column), (column, 24)):
            part = drawn(shapes, grid=GRID.window(top, left, bottom - top, right - left), all_touched=all_touched)
            np.testing.assert_array_equal(part, whole[top:bottom, left:right])


@pytest.mark.parametrize("all_touched", [False, True])
def test_shapes_beyond_the_grid(all_touched):
    around = shape((-9000, -9000), (9000, -9000), (9000, 9000), (-9000, 9000))
    assert (drawn([around], all_touched=all_touched) == 1).all()
    assert not drawn([shape((30, 0), (40, 0), (40, 9))], all_touched=all_touched).any()
