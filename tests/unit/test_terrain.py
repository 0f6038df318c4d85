"""Heights above the ellipsoid: what a DEM's heights refer to, geoid grids, gaps, and every CRS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from pyproj import CRS, Transformer
from rasterio.transform import from_origin

from covermap.errors import CoverageError, ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel1 import geocoding, geoid
from covermap.sentinel1.geoid import open_geoid
from covermap.sentinel1.nodes import node_step
from covermap.sentinel1.terrain import Terrain, read_dem

GRID = Grid(crs="EPSG:32631", left=454_020, top=111_480, width=90, height=80)
WEST, NORTH, PIXEL = 2.55, 1.05, 1 / 1200
SEA_M = -20.0


def model(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Undulation without an edge at the date line, linear over a degree near the area."""
    return 30 * np.cos(np.radians(longitude)) + latitude / 2


def write_geoid(path: Path, driver: str = "GTX", degrees: float = 1.0) -> Path:
    longitude, latitude = np.arange(-180, 180, degrees), np.arange(90, -90 - degrees / 2, -degrees)
    values = model(*np.meshgrid(longitude, latitude)).astype("float32")
    corner = from_origin(-180 - degrees / 2, 90 + degrees / 2, degrees, degrees)
    return write(path, values, corner, "EPSG:4326", driver)


def write(
    path: Path, values: np.ndarray, transform: rasterio.Affine, crs: str | CRS | None, driver: str = "GTiff"
) -> Path:
    crs = crs.to_wkt() if isinstance(crs, CRS) else crs
    size = {"width": values.shape[1], "height": values.shape[0], "count": 1, "dtype": values.dtype.name}
    nodata = {} if driver == "GTX" else {"nodata": -9999}
    with rasterio.open(path, "w", driver=driver, crs=crs, transform=transform, **nodata, **size) as raster:
        raster.write(values, 1)
    return path


def plane(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    return 300 + 1000 * (longitude - 2.6) - 2000 * (latitude - 1)


def write_dem(path: Path, crs: str | CRS, gap: slice | None = None) -> Path:
    row, column = np.mgrid[:120, :120]
    values = plane(WEST + (column + 0.5) * PIXEL, NORTH - (row + 0.5) * PIXEL).astype("float32")
    if gap:
        values[:, gap] = -9999
    return write(path, values, from_origin(WEST, NORTH, PIXEL, PIXEL), crs)


def at_pixels(terrain: Terrain) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Height, longitude and latitude of the grid's pixels."""
    positions = geocoding.refine(terrain.nodes, node_step(GRID), range(GRID.height), GRID.width)
    x, y = np.meshgrid(GRID.left + 10 * (np.arange(90) + 0.5), GRID.top - 10 * (np.arange(80) + 0.5))
    longitude, latitude = Transformer.from_crs(GRID.crs, "EPSG:4326", always_xy=True).transform(x, y)
    return geocoding.bilinear(terrain.height_m, *positions), longitude, latitude


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PROJ folder with a made-up EGM96 and nothing else."""
    folder = tmp_path / "proj"
    folder.mkdir()
    write_geoid(folder / "egm96_15.gtx")
    monkeypatch.setattr(geoid, "proj_folders", lambda: [tmp_path / "empty", folder])
    return folder


# ---- geoid grids ----


@pytest.mark.parametrize(("name", "driver"), [("a.gtx", "GTX"), ("a.tif", "GTiff")])
def test_undulation_is_bilinear_and_has_no_edge_at_the_date_line(tmp_path, name, driver):
    found = open_geoid(write_geoid(tmp_path / name, driver))
    longitude = np.array([0, 10, -180, 180, 179.5, -179.5, 359.0, 540.0, 0, 0])
    latitude = np.array([0, 20, 0, 0, 0, 0, 0, 0, 90, -90])
    np.testing.assert_allclose(found.undulation(longitude, latitude), model(longitude, latitude), atol=2e-3)
    half = found.undulation(np.array([[100.5, -179.5]]), np.array([[0.5, 0.5]]))
    neighbours = [[model(np.array([a, a, b, b]), np.array([0, 1, 0, 1])).mean() for a, b in ((100, 101), (180, 181))]]
    np.testing.assert_allclose(half, neighbours, atol=1e-5)


@given(longitude=st.floats(-180, 360), latitude=st.floats(-90, 90))
def test_undulation_keeps_to_the_model(tmp_path_factory, longitude, latitude):
    path = tmp_path_factory.getbasetemp() / "whole.gtx"
    if not path.exists():
        write_geoid(path, degrees=2.0)
    found = open_geoid(path).undulation(np.array([longitude]), np.array([latitude]))
    assert found[0] == pytest.approx(model(longitude, latitude), abs=0.01)  # 2 degrees of a cosine


def test_part_of_a_grid_is_enough_and_beyond_it_is_an_error(tmp_path):
    values = np.arange(12.0, dtype="float32").reshape(3, 4)
    part = open_geoid(write(tmp_path / "part.tif", values, from_origin(10, 50, 1, 1), "EPSG:4979"))
    np.testing.assert_allclose(part.undulation(np.array([10.5, 12.0]), np.array([49.5, 48.5])), [0, 5.5])
    with pytest.raises(SettingError, match="does not reach over the whole DEM"):
        part.undulation(np.array([10.5, 9.0]), np.array([49.5, 48.5]))


def test_models_that_are_not_installed_and_files_that_are_no_geoid_are_named(tmp_path, models):
    assert open_geoid("egm96").name == "egm96 (egm96_15.gtx)"
    with pytest.raises(SettingError, match=r"`pyproj sync --file us_nga_egm08_25.tif`, or set sentinel1.geoid"):
        open_geoid("egm2008")
    (models / "egm96_15.gtx").unlink()
    with pytest.raises(SettingError, match="or `apt-get install proj-data`"):
        open_geoid("egm96")
    with pytest.raises(SettingError, match="does not exist"):
        open_geoid(tmp_path / "absent.gtx")
    (tmp_path / "broken.tif").write_bytes(b"II*")
    high = write(tmp_path / "high.tif", np.full((4, 4), 900, "float32"), from_origin(0, 4, 1, 1), "EPSG:4326")
    nowhere = write(tmp_path / "nowhere.tif", np.ones((4, 4), "float32"), from_origin(0, 4, 1, 1), None)
    for path, message in (
        (tmp_path / "broken.tif", "cannot be read"),
        (high, "expected undulations"),
        (nowhere, "CRS"),
    ):
        with pytest.raises(SettingError, match=message):
            open_geoid(path).undulation(np.array([2.0]), np.array([2.0]))


# ---- what heights refer to ----


@pytest.mark.parametrize(
    ("crs", "setting", "raised", "about"),
    [
        ("EPSG:4979", None, False, "none, the DEM has ellipsoidal heights"),
        ("EPSG:9707", None, True, "egm96 (egm96_15.gtx)"),
        ("EPSG:9707", "egm96", True, "egm96 (egm96_15.gtx)"),
        ("EPSG:4326", "egm96", True, "egm96 (egm96_15.gtx)"),
        ("EPSG:4326", 12.5, 12.5, "12.5 m"),
        ("EPSG:4326", -3, -3, "-3 m"),
        ("EPSG:9518", 0.0, 0.0, "0 m"),  # EGM2008, but the user knows better
    ],
)
def test_heights_become_ellipsoidal(tmp_path, models, crs, setting, raised, about):
    terrain = read_dem(write_dem(tmp_path / "dem.tif", crs), GRID, setting)
    height_m, longitude, latitude = at_pixels(terrain)
    geoid_m = model(longitude, latitude) if raised is True else float(raised)
    np.testing.assert_allclose(height_m, plane(longitude, latitude) + geoid_m, atol=0.02)
    assert (terrain.name, terrain.geoid) == ("dem.tif", about)
    assert terrain.lowest_m <= height_m.min() and height_m.max() <= terrain.highest_m


def test_grid_file_of_ones_own(tmp_path):
    own = write_geoid(tmp_path / "own.tif", "GTiff")
    terrain = read_dem(write_dem(tmp_path / "dem.tif", "EPSG:4326"), GRID, own)
    height_m, longitude, latitude = at_pixels(terrain)
    np.testing.assert_allclose(height_m, plane(longitude, latitude) + model(longitude, latitude), atol=0.02)
    assert terrain.geoid == "own.tif"


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:3857", "EPSG:4258", "EPSG:3035+5773", "EPSG:32631+5773"])
def test_dem_in_any_crs(tmp_path, models, crs):
    horizontal = CRS.from_user_input(crs.split("+")[0])
    west, south, east, north = Transformer.from_crs("EPSG:4326", horizontal, always_xy=True).transform_bounds(
        2.57, 0.98, 2.62, 1.02
    )
    pixel = (east - west) / 300
    columns, rows = np.arange(300), np.arange(int((north - south) / pixel))
    x, y = np.meshgrid(west + pixel * (columns + 0.5), north - pixel * (rows + 0.5))
    longitude, latitude = Transformer.from_crs(horizontal, "EPSG:4326", always_xy=True).transform(x, y)
    values = plane(longitude, latitude).astype("float32")
    dem = write(tmp_path / "dem.tif", values, from_origin(west, north, pixel, pixel), CRS.from_user_input(crs))
    terrain = read_dem(dem, GRID, None if "+" in crs else "egm96")
    height_m, longitude, latitude = at_pixels(terrain)
    np.testing.assert_allclose(height_m, plane(longitude, latitude) + model(longitude, latitude), atol=0.05)


def test_settings_that_are_lacking_or_contradict_the_crs_are_named(tmp_path, models):
    feet = CRS.from_user_input("EPSG:4326+6360")  # NAVD88 in US feet
    cases = [
        ("EPSG:4326", None, SettingError, "set sentinel1.geoid to egm96"),
        ("EPSG:32631+5703", None, SettingError, "does not declare"),
        ("EPSG:9518", None, SettingError, "egm2008 is in none of PROJ's folders"),
        ("EPSG:9518", "egm96", SettingError, "declares heights above EGM2008 height .* is egm96"),
        ("EPSG:4979", "egm96", SettingError, "remove sentinel1.geoid"),
        ("EPSG:4979", 0.0, SettingError, "remove sentinel1.geoid"),
        (feet, 10.0, ProductError, "expected up in metres"),
    ]
    for number, (crs, setting, kind, message) in enumerate(cases):
        path = write(
            tmp_path / f"{number}.tif",
            np.full((120, 120), 5, "float32"),
            from_origin(WEST, NORTH, PIXEL, PIXEL),
            CRS.from_user_input(crs),
        )
        with pytest.raises(kind, match=message):
            read_dem(path, GRID, setting)


# ---- gaps ----


def test_gaps_are_no_height_or_sea_as_the_setting_says(tmp_path, models):
    dem = write_dem(tmp_path / "dem.tif", "EPSG:9707", gap=slice(47, 51))
    missing = np.isnan(at_pixels(read_dem(dem, GRID))[0])
    assert 0.2 < missing.mean() < 0.9
    terrain = read_dem(dem, GRID, gaps="sea")
    height_m, longitude, latitude = at_pixels(terrain)
    inside = missing & (longitude > WEST + 47.5 * PIXEL) & (longitude < WEST + 50.5 * PIXEL)
    assert inside.sum() > 1000
    np.testing.assert_allclose(height_m[inside], model(longitude, latitude)[inside], atol=0.01)
    land = ~missing & (longitude < WEST + 46 * PIXEL)
    np.testing.assert_allclose(
        height_m[land], (plane(longitude, latitude) + model(longitude, latitude))[land], atol=0.02
    )
    assert terrain.geoid == "egm96 (egm96_15.gtx); gaps are sea at egm96 (egm96_15.gtx)"


def test_sea_reaches_beyond_the_dem_and_needs_a_geoid(tmp_path, models):
    row, column = np.mgrid[:120, :50]
    coast = (300 + 0.0 * row * column).astype("float32")
    dem = write(tmp_path / "coast.tif", coast, from_origin(WEST, NORTH, PIXEL, PIXEL), "EPSG:4979")
    with pytest.raises(SettingError, match=r"set sentinel1\.geoid, so that it is known how high the sea lies"):
        read_dem(dem, GRID, gaps="sea")
    terrain = read_dem(dem, GRID, SEA_M, gaps="sea")
    height_m, longitude, _ = at_pixels(terrain)
    np.testing.assert_allclose(height_m[longitude < WEST + 49 * PIXEL], 300)
    np.testing.assert_allclose(height_m[longitude > WEST + 51 * PIXEL], SEA_M)
    assert terrain.geoid == "none, the DEM has ellipsoidal heights; gaps are sea at -20 m"
    assert np.isnan(at_pixels(read_dem(dem, GRID))[0][longitude > WEST + 51 * PIXEL]).all()


def test_dem_without_any_height_is_sea_only_where_it_reaches_and_is_told_so(tmp_path, models):
    dem = write_dem(tmp_path / "empty.tif", "EPSG:9707", gap=slice(0, 120))
    with pytest.raises(CoverageError, match="has no height in the area"):
        read_dem(dem, GRID)
    height_m, longitude, latitude = at_pixels(read_dem(dem, GRID, gaps="sea"))
    np.testing.assert_allclose(height_m, model(longitude, latitude), atol=0.01)
    away = GRID.window(0, 5_000, 50, 50)
    for gaps in ("error", "sea"):
        with pytest.raises(CoverageError, match="does not touch the area"):
            read_dem(dem, away, gaps=gaps)


@pytest.mark.parametrize(("west", "known"), [(179.0, "all"), (-181.0, "all"), (-180.0, "east"), (178.0, "west")])
def test_a_dem_in_degrees_across_the_antimeridian_is_never_read_from_the_other_side_of_the_globe(west, known, tmp_path):
    grid = Grid(crs="EPSG:32601", left=165_540, top=600_000, width=400, height=200)  # 180 degrees in its middle
    path = tmp_path / "dem.tif"
    longitude = west + (np.arange(2400) + 0.5) / 1200
    size = {"width": 2400, "height": 240, "count": 1, "dtype": "float32", "crs": "EPSG:4979"}
    with rasterio.open(
        path, "w", driver="GTiff", transform=from_origin(west, 5.5, 1 / 1200, 1 / 1200), **size
    ) as raster:
        raster.write(np.broadcast_to(100 * ((longitude + 360) % 360 - 179), (240, 2400)).astype("float32"), 1)
    terrain = read_dem(path, grid)
    rows = range(grid.height)
    positions = geocoding.refine(terrain.nodes, node_step(grid), rows, grid.width)
    height_m = geocoding.bilinear(terrain.height_m, *positions)
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    x, y = np.meshgrid(grid.left + 10 * np.arange(grid.width) + 5, grid.top - 10 * np.arange(grid.height) - 5)
    expected = 100 * (to_degrees.transform(x, y)[0] % 360 - 179)
    assert expected.min() < 100 < expected.max()
    seen = np.isfinite(height_m)
    assert {"all": seen.all(), "east": seen[expected > 101].all(), "west": seen[expected < 99].all()}[known]
    np.testing.assert_allclose(height_m[seen], expected[seen], atol=0.05)  # half a pixel at its ends is constant
