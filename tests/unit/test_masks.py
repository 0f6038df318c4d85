"""Cloud masks against hand-made answers and a brute-force disc."""

import numpy as np
import pytest

from covermap.masks import clear_mask, dilate

CLASSES = (0, 1, 3, 8, 9, 10, 11)


def brute_force_disc(mask: np.ndarray, radius: float) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    y, x = np.indices(mask.shape)
    squared = (y[..., None] - rows) ** 2 + (x[..., None] - columns) ** 2
    return (squared <= radius**2).any(-1)


def test_disc_of_two_pixels_is_this_one():
    mask = np.zeros((7, 7), bool)
    mask[3, 3] = True
    expected = """
    .......
    ...#...
    ..###..
    .#####.
    ..###..
    ...#...
    ......."""
    assert (dilate(mask, 2) == [[c == "#" for c in row.strip()] for row in expected.split()]).all()


@pytest.mark.parametrize("radius", [0, 0.5, 1, 1.5, 2.3, 4, 4.9, 7, 40])
def test_dilation_is_the_euclidean_disc(radius):
    mask = np.random.default_rng(3).random((23, 31)) < 0.02
    assert mask.any()
    assert (dilate(mask, radius) == brute_force_disc(mask, radius)).all()


def test_dilation_leaves_its_argument():
    mask = np.eye(9, dtype=bool)
    dilate(mask, 2)
    assert (mask == np.eye(9, dtype=bool)).all()


def test_no_data_is_never_clear_and_does_not_grow():
    scl = np.full((5, 9), 4, np.uint8)
    scl[:, 0] = 0
    scl[2, 6] = 9
    clear = clear_mask(scl, (9,), 1)
    assert not clear[:, 0].any()
    assert clear[:, 1:5].all()
    assert (~clear[:, 5:]).sum() == 5


def test_only_the_classes_asked_for_are_masked():
    scl = np.arange(12, dtype=np.uint8)[None]
    assert np.flatnonzero(~clear_mask(scl, CLASSES, 0)[0]).tolist() == list(CLASSES)
    assert np.flatnonzero(~clear_mask(scl, (), 0)[0]).tolist() == [0]
