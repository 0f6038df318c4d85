"""Cloud masks against hand-made answers and a brute-force disc."""

import numpy as np
import pytest

from covermap.masks import clear_mask, dilate

CLASSES = (0, 1, 3, 8, 9, 10, 11)


def drawn(picture: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in picture.split()])


def brute_force_disc(mask: np.ndarray, radius: float) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    y, x = np.indices(mask.shape)
    squared = (y[..., None] - rows) ** 2 + (x[..., None] - columns) ** 2
    return (squared <= radius**2).any(-1)


def test_disc_of_two_pixels_is_this_one():
    mask = np.zeros((7, 7), bool)
    mask[3, 3] = True
    expected = drawn("""
    .......
    ...#...
    ..###..
    .#####.
    ..###..
    ...#...
    .......""")
    assert (dilate(mask, 2) == expected).all()


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


def opened_by_brute_force(mask: np.ndarray, radius: float) -> np.ndarray:
    rim = 10
    wide = np.pad(mask, rim, constant_values=True)
    far = np.pad(wide, rim, constant_values=True)  # so that the discs of the rim see the mask go on
    eroded = ~brute_force_disc(~far, radius)[rim:-rim, rim:-rim]
    return brute_force_disc(eroded, radius)[rim:-rim, rim:-rim]


@pytest.mark.parametrize("radius", [0.9, 1, 1.5, 2.3, 4])
def test_erosion_drops_what_no_disc_fits_into(radius):
    masked = ~brute_force_disc(np.random.default_rng(5).random((29, 37)) < 0.03, 2)
    scl = np.where(masked, 9, 4).astype(np.uint8)
    expected = opened_by_brute_force(masked, radius)
    assert (~clear_mask(scl, CLASSES, 0, radius) == expected).all()
    assert (~clear_mask(scl, CLASSES, 3, radius) == dilate(expected, 3)).all()
    assert expected.any() and (expected.sum() < masked.sum() or radius < 1)


def test_erosion_drops_a_roof_and_keeps_the_discs_of_a_cloud():
    masked = drawn("""
    ...........
    .##........
    .##.######.
    ....######.
    ....######.
    ....######.
    ....######.
    ....######.
    ...........""")
    expected = drawn("""
    ...........
    ...........
    ......##...
    .....####..
    ....######.
    ....######.
    .....####..
    ......##...
    ...........""")
    scl = np.where(masked, 8, 5).astype(np.uint8)
    assert (~clear_mask(scl, CLASSES, 0, 2) == expected).all()


def test_a_cloud_cut_by_the_edge_or_by_no_data_is_not_eroded():
    scl = np.full((9, 20), 4, np.uint8)
    scl[:, 0] = 9  # goes on beyond the edge
    scl[:, 10] = 9
    scl[:, 11:13] = 0
    clear = clear_mask(scl, CLASSES, 0, 1)
    assert not clear[:, [0, 10]].any()
    assert clear[:, 1:10].all() and clear[:, 13:].all()
    scl[:, 11:13] = 4
    assert clear_mask(scl, CLASSES, 0, 1)[1:-1, 10].all()


def test_erosion_keeps_defective_pixels():
    scl = np.full((7, 7), 4, np.uint8)
    scl[3, 3], scl[1, 1] = 1, 9
    assert np.argwhere(~clear_mask(scl, CLASSES, 0, 1)).tolist() == [[3, 3]]


@pytest.mark.parametrize(("dilation", "erosion"), [(0, 0), (4, 0), (3.5, 1), (6, 2.3), (0, 3)])
def test_cutting_into_blocks_changes_nothing_given_a_rim(dilation, erosion):
    dice = np.random.default_rng(8).random((90, 80))
    scl = np.where(dilate(dice < 0.004, 2.5), 9, np.where(dice > 0.999, 0, np.where(dice > 0.995, 1, 4)))
    scl = scl.astype(np.uint8)
    rim = int(np.ceil(dilation + 2 * erosion))
    whole = clear_mask(np.pad(scl, rim), CLASSES, dilation, erosion)
    for row in range(0, 90, 30):
        for column in range(0, 80, 20):
            window = np.pad(scl, rim)[row : row + 30 + 2 * rim, column : column + 20 + 2 * rim]
            part = clear_mask(window, CLASSES, dilation, erosion)
            inner = np.s_[rim : rim + 30, rim : rim + 20]
            assert (part[inner] == whole[row + rim : row + rim + 30, column + rim : column + rim + 20]).all()
