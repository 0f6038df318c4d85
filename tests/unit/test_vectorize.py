"""The map as polygons: no gaps, no overlaps, no more than memory holds."""

import sqlite3
from contextlib import closing

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from scipy.ndimage import binary_erosion

import covermap.vectorize
from covermap.errors import CoverageError, ProductError, RoomError, SettingError
from covermap.grid import Grid
from covermap.raster import write_raster
from covermap.vectorize import LAYER, count_edges, vectorize

from ._maps import LEGEND, NAMES, made, mapped

GRID = Grid(crs="EPSG:32721", left=600_000, top=8_500_020, width=4, height=3)
SMALL = np.array([[1, 1, 2, 2], [1, 3, 3, 2], [0, 3, 3, 2]], np.uint8)


@pytest.fixture(scope="module")
def map(tmp_path_factory):
    return mapped(tmp_path_factory.mktemp("maps"), made(tmp_path_factory.mktemp("predictions")))["map"]


def small(folder, classes=SMALL):
    path = folder / "small.tif"
    write_raster(path, classes[None], GRID, nodata=0, tags={"TIFFTAG_COPYRIGHT": "mine", "period": "2021"})
    return path


def test_each_patch_is_a_polygon_with_its_class(tmp_path):
    vectorize(small(tmp_path), tmp_path / "v.gpkg", LEGEND)
    rows = geopandas.read_file(tmp_path / "v.gpkg", layer=LAYER).sort_values("class")
    assert rows["class"].tolist() == [1, 2, 3] and rows["hectares"].tolist() == [0.03, 0.04, 0.04]
    assert rows["name"].tolist() == list(NAMES) and rows["key"].tolist() == ["water", "forest", "field"]
    assert rows["colour"].tolist() == [one.colour for one in LEGEND.classes] and rows.crs.to_epsg() == 32721
    expected = shapely.Polygon(
        [(600_000, 8_500_020), (600_020, 8_500_020), (600_020, 8_500_010), (600_010, 8_500_010), (600_010, 8_500_000),
         (600_000, 8_500_000)]
    )  # fmt: skip
    assert rows.geometry.iloc[0].equals(expected)
    metadata = pyogrio.read_info(tmp_path / "v.gpkg", layer=LAYER)["layer_metadata"]
    assert metadata["TIFFTAG_COPYRIGHT"] == "mine" and metadata["period"] == "2021"


def test_sides_between_pixels_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(covermap.vectorize, "ROWS", 2)
    with rasterio.open(small(tmp_path)) as raster:
        assert count_edges(raster) == (1 + 2 + 2) + (2 + 1)  # to the right, row by row, and down


@pytest.mark.parametrize("simplify_m", [None, 20, 60])
def test_polygons_neither_overlap_nor_leave_gaps(map, tmp_path, simplify_m):
    vectorize(map, tmp_path / "v.gpkg", LEGEND, simplify_m)
    rows = geopandas.read_file(tmp_path / "v.gpkg", layer=LAYER)
    with rasterio.open(map) as raster:
        observed, transform = raster.read(1) > 0, raster.transform
    assert rows.geometry.is_valid.all() and not rows.geometry.is_empty.any()
    assert rows.hectares.sum() == pytest.approx(rows.area.sum() / 1e4, rel=1e-4)
    assert rows.area.sum() / 1e4 == pytest.approx(observed.sum() / 100, rel=0.02 if simplify_m else 1e-9)
    if simplify_m:
        assert shapely.coverage_is_valid(rows.geometry.array)
    row, column = np.argwhere(binary_erosion(observed, iterations=12))[::50].T  # away from what has no data
    places = shapely.points(*(transform * (column + 0.37, row + 0.41)))
    met, _ = shapely.STRtree(rows.geometry.array).query(places, predicate="within")
    np.testing.assert_array_equal(met, np.arange(len(places)))  # each in one polygon


def test_simplified_borders_have_fewer_corners(map, tmp_path):
    corners = []
    for simplify_m in (None, 20):
        vectorize(map, tmp_path / "v.gpkg", LEGEND, simplify_m)
        corners.append(
            shapely.get_num_coordinates(geopandas.read_file(tmp_path / "v.gpkg", layer=LAYER).geometry.array).sum()
        )
    assert corners[1] < 0.6 * corners[0]


def test_the_same_map_gives_the_same_bytes_in_any_parts(map, tmp_path, monkeypatch):
    vectorize(map, tmp_path / "a.gpkg", LEGEND, 20)
    vectorize(map, tmp_path / "b.gpkg", LEGEND, 20)
    assert (tmp_path / "a.gpkg").read_bytes() == (tmp_path / "b.gpkg").read_bytes()
    monkeypatch.setattr(covermap.vectorize, "ROWS_AT_ONCE", 500)
    vectorize(map, tmp_path / "c.gpkg", LEGEND, 20)
    one, other = (geopandas.read_file(tmp_path / name, layer=LAYER) for name in ("a.gpkg", "c.gpkg"))
    assert one.equals(other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gpkg", "b.gpkg", "c.gpkg"]


def test_the_style_lies_in_the_package(map, tmp_path):
    vectorize(map, tmp_path / "v.gpkg", LEGEND, 20)
    with closing(sqlite3.connect(tmp_path / "v.gpkg")) as package:
        [(table, column, default, style)] = package.execute(
            "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        )
    assert (table, column, default) == (LAYER, "geom", 1) and "Formação Florestal &amp; Co." in style


def test_too_many_borders_are_refused(map, tmp_path, monkeypatch):
    monkeypatch.setattr(covermap.vectorize, "MAX_EDGES", 100)
    with pytest.raises(SettingError, match=r"sides, too many for polygons.*100.*min_unit_ha"):
        vectorize(map, tmp_path / "v.gpkg", LEGEND)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_drawn_is_named(tmp_path):
    with pytest.raises(CoverageError, match="holds no class"):
        vectorize(small(tmp_path, np.zeros_like(SMALL)), tmp_path / "v.gpkg", LEGEND)
    with pytest.raises(SettingError, match="has the class 6, the legend has 3"):
        vectorize(small(tmp_path, SMALL * 3), tmp_path / "v.gpkg", LEGEND)
    (tmp_path / "small.tif").write_bytes(b"no raster")
    with pytest.raises(ProductError, match="cannot be read as a raster"):
        vectorize(tmp_path / "small.tif", tmp_path / "v.gpkg", LEGEND)


def test_a_full_disk_is_explained(map, tmp_path, monkeypatch):
    monkeypatch.setattr(covermap.vectorize, "EDGE_BYTES", 10**12)
    with pytest.raises(RoomError, match=r"v.gpkg needs about .* MB free: make room"):
        vectorize(map, tmp_path / "v.gpkg", LEGEND)
    assert not list(tmp_path.iterdir())
