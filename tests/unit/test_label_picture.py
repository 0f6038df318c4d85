"""A picture of labels: where each block lies in it, its colours, and what is told."""

import numpy as np
import pytest
from PIL import Image

from covermap.grid import Grid
from covermap.label_picture import draw_labels, in_colour, shares
from covermap.legend import Legend, LegendClass
from covermap.quicklook import HATCHED
from covermap.raster import write_raster

LEGEND = Legend(
    classes=(
        LegendClass(id=1, key="a", name="Wood", colour="#1F8D49"),
        LegendClass(id=2, key="b", name="Água", colour="#2532E4"),
        LegendClass(id=3, key="c", name="Ice", colour="#FFFFFF"),
    ),
    codes={},
)
AREA = Grid(crs="EPSG:32721", left=780_000, top=8_500_020, width=3000, height=1990)


@pytest.fixture
def blocks(tmp_path):
    """Two blocks that reach beyond the area: wood on the left, water on the right but for a first row of neither."""
    found = []
    for number, column in enumerate((-100, 1500)):
        grid = AREA.window(-7, column, 2048, 1600)
        classes = np.full((1, *grid.shape), number + 1, np.uint8)
        classes[0, : 7 + 40] = 255 * number
        write_raster(tmp_path / f"{number}.tif", classes, grid, nodata=None)
        found.append((tmp_path / f"{number}.tif", grid))
    return found


def test_blocks_lie_where_they_lie(tmp_path, blocks, caplog):
    draw_labels([path for path, _ in blocks], tmp_path / "a.png", [grid for _, grid in blocks], AREA, LEGEND)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape[1] == 1500  # every second pixel
    wood, water = (31, 141, 73), (37, 50, 228)
    assert (picture[20:995, :750] == wood).all() and (picture[20:995, 750:] == water).all()
    assert (picture[:20, 750:] == 128).all() and not (picture[:20, :750] == wood).all(2).any()
    assert "no pixel of the area is of Ice" in caplog.text


def test_shares_name_what_occurs():
    counts = np.zeros(256, int)
    counts[[0, 1, 2, 255]] = 4999, 3000, 1, 2000
    assert shares(counts, LEGEND) == [
        ((31, 141, 73), "Wood 30.0 %"),
        ((37, 50, 228), "Água < 0.1 %"),
        ((128, 128, 128), "excluded 20.0 %"),
        (HATCHED, "no label 50.0 %"),
    ]


def test_colours():
    assert in_colour(np.uint8([[1, 255]]), LEGEND).tolist() == [[[31, 141, 73], [128, 128, 128]]]
