"""The seam statistic on maps whose seams are known."""

import json

import numpy as np
import pytest
from rasterio.errors import NotGeoreferencedWarning
from shapely.geometry import box, mapping

import covermap.seams
from covermap.errors import CoverageError, ProductError
from covermap.grid import Grid, project
from covermap.model_settings import Prediction
from covermap.raster import write_raster
from covermap.seams import (
    covered,
    found_and_expected,
    input_borders,
    interval,
    lattice,
    lattices,
    measure_seams,
    tally,
    told,
)

GRID = Grid(crs="EPSG:32721", left=600_000, top=8_500_000, width=640, height=512)  # rows 150,000 and on, columns 60,000
PREDICTION = Prediction(window_pixels=64, overlap=0.5)


def noise(share, seed=0, shape=GRID.shape):
    """Two classes: each pixel is of the second by chance."""
    return (1 + (np.random.default_rng(seed).random(shape) < share)).astype(np.uint8)


def reader(classes, confidence=None, grid=GRID):
    layers = classes, np.full_like(classes, 50) if confidence is None else confidence
    padded = [np.pad(layer, 1, constant_values=fill) for layer, fill in zip(layers, (0, 255), strict=True)]

    def read(window):
        row, column = window.offset_in(grid)
        return [layer[row + 1 : row + 1 + window.height, column + 1 : column + 1 + window.width] for layer in padded]

    return read


def ratios(classes, regions, multiple=1, confidence=None):
    return told(tally(reader(classes, confidence), GRID, {"lines": regions}, multiple)["lines"])


def every(period, phases=(0,)):
    return lambda grid: lattice(grid, period, phases)


def lines_at(grid, period):
    """Rows and columns before which a line lies, by hand: north and west of the grid are whole multiples of 10 px."""
    top, left = round((10_000_000 - grid.top) / 10), round(grid.left / 10)
    return [i for i in range(grid.height) if (top + i) % period == 0], [
        i for i in range(grid.width) if (left + i) % period == 0
    ]


def test_ratio_by_hand():
    """Four columns of stripes: a change on each line and on one of three others."""
    classes = np.tile(np.uint8([1, 1, 2, 2]), (GRID.height, GRID.width // 4))  # changes before columns 2, 4, 6, ...
    one = ratios(classes, every(4))
    assert one["class"]["plain"] == pytest.approx(one["class"]["ratio"])
    # vertical lines: 1 over 1/3; horizontal ones: none changes, none is expected
    assert one["class"]["vertical_lines"] == pytest.approx(3, rel=0.01)
    assert one["class"]["horizontal_lines"] is None
    assert one["pairs"] == (GRID.height // 4 - 1) * GRID.width + (GRID.width // 4 - 1) * GRID.height
    assert one["confidence"]["ratio"] is None
    assert one["class"]["moved_high"] == 0  # copies on odd columns; those on the lines themselves do not count


def test_noise_has_no_seam():
    one = ratios(noise(0.3), every(32))
    assert one["class"]["low"] < 1 < one["class"]["high"]
    assert one["class"]["high"] - one["class"]["low"] < 0.1
    assert one["class"]["moved_low"] < 1 < one["class"]["moved_high"]


def test_seam_is_found_where_it_is_and_not_beside_it():
    classes = noise(0.1)
    rows, _ = lines_at(GRID, 64)
    for row in rows:
        classes[row, ::2] = 3 - classes[max(row - 1, 0), ::2]  # half of the pixels below a line differ from those above
    one = ratios(classes, every(64))["class"]
    assert one["horizontal_lines"] > 2.5
    assert 0.9 < one["vertical_lines"] < 1.1
    assert 0.9 < one["moved_mean"] < 1.1
    assert one["low"] > 1.5


def test_steps_of_confidence():
    rows, _ = lines_at(GRID, 64)
    sure = (40 + 5 * (np.arange(GRID.height) % 2)).astype(np.uint8)  # 5 between all rows
    for row in rows:
        sure[row:] += 15
    steps = np.abs(np.diff(sure.astype(int)))
    on = steps[[row - 1 for row in rows if row]].mean()
    off = np.delete(steps, [row - 1 for row in rows if row]).mean()
    one = ratios(noise(0.2), every(64), confidence=np.repeat(sure[:, None], GRID.width, 1))["confidence"]
    assert one["horizontal_lines"] == pytest.approx(on / off, rel=0.03)


def test_network_lattice_is_no_seam():
    """Changes at every eighth row and column: over all others a seam, but none over what is alike."""
    classes = np.ones(GRID.shape, np.uint8)
    chance = np.random.default_rng(1).random((2, GRID.height // 8 + 2, GRID.width // 8 + 2))
    top, left = round((10_000_000 - GRID.top) / 10), round(GRID.left / 10)
    rows, columns = (np.arange(top, top + GRID.height) // 8), (np.arange(left, left + GRID.width) // 8)
    classes[chance[0][rows - rows[0]][:, columns - columns[0]] < 0.5] = 2
    one = ratios(classes, every(64), multiple=8)["class"]
    assert one["low"] < 1 < one["high"]
    assert one["plain"] > 6
    own = told(tally(reader(classes), GRID, lattices(PREDICTION, 512, 8), 8)["network"])["class"]
    assert own["ratio"] is None
    assert own["plain"] is None  # nothing changes elsewhere
    assert "network" not in lattices(PREDICTION, 512)


@pytest.mark.parametrize(
    ("blend", "overlap", "phases"),
    [("hann", 0.5, {0}), ("hann", 0.25, {0, 16}), ("none", 0, {0}), ("centre", 0.5, {16}), ("centre", 0.25, {8})],
)
def test_lines_lie_where_weights_end(blend, overlap, phases):
    settings = Prediction(window_pixels=64, overlap=overlap, blend=blend)
    (regions,) = lattices(settings, 512)["steps"](GRID)
    top = round((10_000_000 - GRID.top) / 10)
    found = {int(top + row + 1) % settings.step_pixels for row in np.flatnonzero(np.diff(regions[:, 0]))}
    assert found == phases


def test_lattice_does_not_depend_on_the_grid():
    part = GRID.window(37, 101, 90, 80)
    for regions in lattices(PREDICTION, 512, 8).values():
        whole, cut = regions(GRID)[0][37:127, 101:181], regions(part)[0]
        assert (np.diff(whole, axis=0) == np.diff(cut, axis=0)).all()
        assert (np.diff(whole, axis=1) == np.diff(cut, axis=1)).all()


def test_unobserved_pixels_do_not_count():
    classes = noise(0.3)
    rows, columns = lines_at(GRID, 64)
    classes[:, 300:] = 0
    one = ratios(classes, every(64))
    rows, columns = [row for row in rows if row], [column for column in columns if 0 < column < 300]
    assert one["pairs"] == 300 * len(rows) + GRID.height * len(columns)
    with pytest.raises(CoverageError, match="observed"):
        ratios(np.zeros_like(classes), every(64))


def test_cuts_of_the_pass_do_not_show(monkeypatch):
    classes, sure = noise(0.3), noise(0.5, seed=2)
    at_once = ratios(classes, every(48, (0, 16)), 8, sure)
    monkeypatch.setattr(covermap.seams, "WIDE", 256)
    assert ratios(classes, every(48, (0, 16)), 8, sure)["pairs"] == at_once["pairs"]
    assert ratios(classes, every(48, (0, 16)), 8, sure)["class"]["ratio"] == pytest.approx(at_once["class"]["ratio"])


def test_found_and_expected_by_hand():
    on = np.array([[[10, 4], [5, 5]]])  # a cell of two strata: pairs, changes
    off = np.array([[[100, 10], [0, 0]]])  # of the second there is nothing to compare with
    assert found_and_expected(on, off).tolist() == [[[4]], [[1]]]


def test_interval_needs_two_cells():
    assert interval(np.array([3.0, 1]), np.array([2.0, 0])) == (None, None)
    assert interval(np.array([2.0, 4, 0]), np.array([1.0, 2, 0])) == (2, 2)
    assert interval(np.arange(9.0), np.ones(9), seed=1) == interval(np.arange(9.0), np.ones(9), seed=1)


# --- borders of inputs -----------------------------------------------------------------------------------------------


def scene(name, left, right, sensor=2, **properties):
    """An item over columns [left, right) of the grid and far beyond its rows."""
    outline = box(GRID.left + 10 * left, GRID.bounds[1] - 5000, GRID.left + 10 * right, GRID.top + 5000)
    return {
        "id": name,
        "collection": f"sentinel-{sensor}",
        "geometry": mapping(project(outline, GRID.crs, "EPSG:4326")),
        "properties": {"platform": f"sentinel-{sensor}a", "datetime": "2022-01-10T09:30:00Z", **properties},
        "assets": {},
    }


SCENES = [
    scene("a", -900, 300, **{"sat:relative_orbit": 24, "grid:code": "MGRS-21LYF"}),
    scene("b", -900, 300, **{"sat:relative_orbit": 24, "grid:code": "MGRS-21LYF"}),
    scene("c", 200, 1500, **{"sat:relative_orbit": 67, "grid:code": "MGRS-22LBL"}),
    scene("d", -900, 400, sensor=1, **{"sat:relative_orbit": 68}),
    scene("e", 410, 1500, sensor=1, **{"sat:relative_orbit": 68}),  # 100 m to the next slice: no border
]


def test_borders_of_inputs():
    borders = input_borders(SCENES, GRID)
    assert set(borders) == {"sentinel1_tracks", "sentinel2_orbits", "sentinel2_tiles", "utm_zones"}
    for kind in ("sentinel2_orbits", "sentinel2_tiles", "utm_zones"):
        lines = sum(np.diff(layer.astype(int), axis=1) != 0 for layer in borders[kind](GRID))
        at = np.unique(np.nonzero(lines)[1] + 1)
        # the borders are not quite straight, since edges are cut in lon/lat
        assert {200, 300} <= {int(column) for edge in at for column in (edge - 1, edge, edge + 1)}
        assert len(at) <= 6
    assert borders["sentinel1_tracks"](GRID) == []


def test_border_of_an_orbit_is_found():
    classes = noise(0.05)
    classes[:, 300:] = 3 - noise(0.2)[:, 300:]
    line = covered, box(GRID.left - 1000, GRID.bounds[1] - 1000, GRID.left + 3000, GRID.top + 1000)
    one = ratios(classes, lambda grid: line[0](grid, [line[1]]))["class"]
    assert one["ratio"] > 2
    assert one["horizontal_lines"] is None
    assert one["ratio"] > 2 * one["moved_high"]


# --- the step --------------------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    files = [tmp_path / name for name in ("map.tif", "confidence.tif", "scenes.json", "seams.json")]
    write_raster(files[0], noise(0.3)[None], GRID, nodata=0)
    write_raster(files[1], noise(0.5, seed=2)[None], GRID, nodata=255)
    files[2].write_text(json.dumps({"type": "FeatureCollection", "features": SCENES}))
    return files


def test_step_tells_every_kind(finished):
    measure_seams(*finished, PREDICTION, 256, 8)
    told_of = json.loads(finished[-1].read_text())
    assert set(told_of["lines"]) == {
        "steps", "windows", "blocks", "network", "sentinel1_tracks", "sentinel2_orbits", "sentinel2_tiles", "utm_zones"
    }  # fmt: skip
    assert told_of["lines"]["sentinel1_tracks"] is None
    for kind in ("steps", "windows", "sentinel2_orbits"):
        assert told_of["lines"][kind]["class"]["low"] < 1 < told_of["lines"][kind]["class"]["high"]
    assert told_of["network_pixels"] == 8
    first = finished[-1].read_bytes()
    measure_seams(*finished, PREDICTION, 256, 8)
    assert finished[-1].read_bytes() == first


def test_scenes_that_no_map_is_made_of_draw_no_border(finished):
    measure_seams(*finished, PREDICTION, 256, scenes=["a", "d"])
    lines = json.loads(finished[-1].read_text())["lines"]
    assert lines["sentinel2_orbits"]["pairs"] == pytest.approx(GRID.height, abs=20)
    measure_seams(*finished, PREDICTION, 256)
    both = json.loads(finished[-1].read_text())["lines"]
    assert both["sentinel2_orbits"]["pairs"] == pytest.approx(2 * GRID.height, abs=40)


@pytest.mark.filterwarnings("ignore", category=NotGeoreferencedWarning)
def test_broken_map_is_told(finished):
    finished[0].write_bytes(b"no raster")
    with pytest.raises(ProductError, match=r"map\.tif cannot be read as a raster"):
        measure_seams(*finished, PREDICTION, 256)
    assert not finished[-1].exists()
