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


def test_an_unknown_crs_is_explained():
    with pytest.raises(SettingError, match=r"crs EPSG:99999 is not known: .* EPSG:32721"):
        area_grid(box(0, 0, 1, 1), "EPSG:99999")


@pytest.mark.parametrize(
    ("area", "crs", "fits"),
    [
        (box(-54.4, -13.5, -54.3, -13.4), "EPSG:32633", "-54.40 to -54.30 and -13.50 to -13.40.* EPSG:32721$"),
        (box(15, 46, 15.1, 46.1), "EPSG:32733", "EPSG:32633$"),
        (box(-170, 60, -169, 61), "EPSG:32633", "EPSG:32602$"),
        (box(179, -17, 179.9, -16), "EPSG:3035", "EPSG:32760$"),
        (box(0, 86, 1, 87), "EPSG:32721", "EPSG:3413$"),
    ],
)
def test_a_crs_of_another_place_is_refused_with_one_that_fits(area, crs, fits):
    for make in (area_grid, lambda area, crs: area_blocks(area, crs, 512)):
        with pytest.raises(SettingError, match=f"^crs {crs} .*{fits}"):
            make(area, crs)


@pytest.mark.parametrize(
    ("area", "crs"),
    [
        (box(-51.5, -5, -51.4, -4.9), "EPSG:32621"),  # the next zone, south of the equator
        (box(-179.9, -17, -179.8, -16.9), "EPSG:32760"),  # across the date line
        (box(179.8, 65, 179.9, 65.1), "EPSG:32601"),
        (box(100, 80, 101, 80.1), "EPSG:3413"),
        (box(10, 50, 10.1, 50.1), "EPSG:3035"),
    ],
)
def test_a_crs_of_the_neighbourhood_is_taken(area, crs):
    assert area_grid(area, crs).width < 5000


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


@pytest.mark.parametrize("name", ["area.gpkg", "area.shp", "area.geojson", "area.json"])
def test_a_text_or_a_folder_is_no_area(tmp_path, name):
    path = tmp_path / name
    path.write_text("west south")
    with pytest.raises(SettingError, match=rf"{name} is (no vector file|not GeoJSON)"):
        read_area(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SettingError, match=rf"{name} is (no vector file|not GeoJSON)"):
        read_area(path)


def test_a_table_is_no_area(tmp_path):
    path = tmp_path / "area.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(SettingError, match=r"area\.csv is a table without geometry"):
        read_area(path)


def test_a_missing_or_empty_area_is_explained(tmp_path):
    with pytest.raises(SettingError, match="does not exist"):
        read_area(tmp_path / "none.geojson")
    with pytest.raises(SettingError, match="west < east"):
        read_area((3.0, 1.0, 2.0, 2.0))
