"""Grids, blocks and areas."""

import json

import pytest
from shapely.geometry import box

from covermap.errors import SettingError
from covermap.grid import Grid, area_blocks, area_grid, false_origin, project, read_area

UTM21S = Grid(crs="EPSG:32721", left=778_240, top=8_515_200, width=512, height=256)


def test_windows_and_offsets():
    window = UTM21S.window(10, 20, 30, 40)
    assert window.bounds == (778_440, 8_514_800, 778_840, 8_515_100)
    assert window.offset_in(UTM21S) == (10, 20)
    assert UTM21S.padded(2).offset_in(UTM21S) == (-2, -2)
    with pytest.raises(SettingError, match="lattice"):
        window.model_copy(update={"left": window.left + 3}).offset_in(UTM21S)


def test_cropping_takes_whole_pixels_and_stays_inside():
    assert UTM21S.cropped((778_245, 8_515_181, 778_251, 8_520_000)) == UTM21S.window(0, 0, 2, 2)
    assert UTM21S.cropped(UTM21S.bounds) == UTM21S
    assert UTM21S.cropped((0, 0, 1, 1)) is None


def test_an_area_grid_holds_the_area_on_the_60_m_lattice():
    area = box(-54.4, -13.55, -54.3, -13.45)
    grid = area_grid(area, "EPSG:32721")
    assert grid.polygon.contains(project(area, "EPSG:4326", "EPSG:32721"))
    assert grid.left % 60 == 0
    assert (10_000_000 - grid.top) % 60 == 0
    assert grid.width * 10 % 60 == grid.height * 10 % 60 == 0


def test_blocks_keep_their_names_when_an_area_grows():
    small, large = box(-54.4, -13.5, -54.35, -13.45), box(-54.5, -13.6, -54.3, -13.4)
    few, many = (area_blocks(area, "EPSG:32721", 512) for area in (small, large))
    assert set(few) < set(many)
    assert all(many[name] == grid for name, grid in few.items())
    assert few["x152y-292"].bounds == (778_240, 10_000_000 - 292 * 5120, 783_360, 10_000_000 - 291 * 5120)


def test_blocks_cover_the_area_once():
    area = box(-54.5, -13.6, -54.3, -13.4)
    outline = project(area, "EPSG:4326", "EPSG:32721")
    squares = [grid.polygon for grid in area_blocks(area, "EPSG:32721", 512).values()]
    assert sum(square.intersection(outline).area for square in squares) == pytest.approx(outline.area)


def test_false_origin():
    assert false_origin("EPSG:32721") == (0, 10_000_000)
    assert false_origin("EPSG:32633") == (0, 0)
    with pytest.raises(SettingError, match="metres"):
        false_origin("EPSG:4326")


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}, "Self-intersection"),
        ({"type": "Point", "coordinates": [0, 0]}, "no polygon"),
        ({"type": "Polygon", "coordinates": [[[500, 0], [900, 0], [900, 9], [500, 0]]]}, "longitudes"),
        (None, "not GeoJSON"),
    ],
)
def test_a_bad_area_is_explained(tmp_path, geometry, words):
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(geometry) if geometry else "no json")
    with pytest.raises(SettingError, match=words) as caught:
        read_area(path)
    assert "area.geojson" in str(caught.value)


def test_a_missing_or_empty_area_is_explained(tmp_path):
    with pytest.raises(SettingError, match="does not exist"):
        read_area(tmp_path / "none.geojson")
    with pytest.raises(SettingError, match="west < east"):
        read_area((3.0, 1.0, 2.0, 2.0))
