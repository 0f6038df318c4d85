"""Elevation and slope of the ground, whatever the DEM's CRS and however the grid is cut."""

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from covermap.errors import ProductError
from covermap.grid import Grid
from covermap.terrain_layers import NO_TERRAIN, elevation_and_slope, horn_slope

GRID = Grid(crs="EPSG:32631", left=454_020, top=111_480, width=90, height=80)
DEGREES = from_origin(2.55, 1.05, 1 / 1200, 1 / 1200)


def write(path, values, transform=DEGREES, crs="EPSG:4326"):
    size = {"width": values.shape[1], "height": values.shape[0], "count": 1, "dtype": values.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, nodata=-9999, **size) as raster:
        raster.write(values, 1)
    return path


def on_grid(path, values):
    """A DEM on the lattice of the grid, three pixels wider on each side."""
    around = GRID.padded(3)
    return write(path, np.broadcast_to(values, around.shape).astype("float32"), around.transform, around.crs)


def rough(seed=0):
    return np.random.default_rng(seed).uniform(100, 900, (120, 120)).astype("float32")


def test_a_plane_has_its_heights_and_one_slope(tmp_path):
    row, column = np.mgrid[:86, :96]
    dem = on_grid(tmp_path / "dem.tif", 500 + 3.0 * column - 4.0 * row)  # 0.3 and 0.4 m a metre: 0.5 along the fall
    elevation, slope = elevation_and_slope(dem, GRID)
    np.testing.assert_array_equal(elevation, (500 + 3 * column - 4 * row)[3:-3, 3:-3])
    assert set(slope.ravel()) == {2657}  # atan(0.5)
    assert elevation.dtype == slope.dtype == np.int16


def test_a_ridge_is_flat_on_its_crest_by_horns_weights():
    height_m = np.array([[0, 10, 0], [0, 10, 0], [0, 10, 0]])
    assert horn_slope(height_m, 10.0) == 0
    height_m = np.array([[0, 0, 80], [0, 0, 0], [0, 0, 0]])  # one corner of eight: 1/8 of a metre along and across
    np.testing.assert_allclose(horn_slope(height_m, 80.0), np.degrees(np.arctan(np.hypot(1, 1) / 8)))


def test_a_dem_in_degrees_is_in_its_place(tmp_path):
    column = np.mgrid[:120, :120][1]
    dem = write(tmp_path / "dem.tif", (2.0 * column).astype("float32"))  # a cell is 92.7 m east at one degree north
    elevation, slope = elevation_and_slope(dem, GRID)
    x, _ = rasterio.warp.transform(GRID.crs, "EPSG:4326", [GRID.left + 5, GRID.left + 895], [GRID.top - 5] * 2)
    expected = [2 * ((lon - 2.55) * 1200 - 0.5) for lon in x]
    np.testing.assert_allclose(elevation[0, [0, -1]], expected, atol=0.5)
    assert abs(np.median(slope) / 100 - np.degrees(np.arctan(2 / 92.7))) < 0.01


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32632"])
def test_cutting_changes_nothing(tmp_path, crs):
    if crs == "EPSG:4326":
        dem = write(tmp_path / "dem.tif", rough())
    else:  # the neighbouring zone, whose lattice is turned
        x, y = rasterio.warp.transform(GRID.crs, crs, [GRID.left + 450], [GRID.top - 400])
        dem = write(tmp_path / "dem.tif", rough(), from_origin(x[0] - 1800, y[0] + 1800, 30, 30), crs)
    whole = elevation_and_slope(dem, GRID)
    assert (whole != NO_TERRAIN).all()
    for row, column, height, width in ((0, 0, 31, 90), (31, 0, 49, 7), (31, 7, 1, 1), (17, 16, 48, 32), (79, 89, 1, 1)):
        part = elevation_and_slope(dem, GRID.window(row, column, height, width))
        np.testing.assert_array_equal(part, whole[:, row : row + height, column : column + width])


def test_no_height_no_terrain(tmp_path):
    values = np.full((86, 96), 200.0)
    values[43, 53] = -9999
    elevation, slope = elevation_and_slope(on_grid(tmp_path / "dem.tif", values), GRID)
    assert np.argwhere(elevation == NO_TERRAIN).tolist() == [[40, 50]]
    beside = [[y, x] for y in (39, 40, 41) for x in (49, 50, 51) if (y, x) != (40, 50)]
    assert np.argwhere(slope == NO_TERRAIN).tolist() == beside


def test_beyond_the_dem_is_no_terrain(tmp_path):
    dem = on_grid(tmp_path / "dem.tif", 200.0)
    elevation, slope = elevation_and_slope(dem, GRID.window(70, 0, 20, 10))  # the DEM has three of its last ten rows
    assert (elevation[:13] == 200).all() and (elevation[13:] == NO_TERRAIN).all()
    assert (slope[:12] == 0).all() and (slope[12:] == NO_TERRAIN).all()
    assert (elevation_and_slope(dem, GRID.window(500, 0, 5, 5)) == NO_TERRAIN).all()


def test_what_is_no_dem_is_named(tmp_path):
    text = tmp_path / "notes.tif"
    text.write_text("no raster")
    with pytest.raises(ProductError, match=r"DEM .*notes.tif cannot be read"):
        elevation_and_slope(text, GRID)
    with pytest.raises(ProductError, match=r"bare.tif has no CRS"):
        elevation_and_slope(write(tmp_path / "bare.tif", rough(), crs=None), GRID)
    with pytest.raises(ProductError, match=r"feet.tif has heights from 0 to 20000 m: expected metres"):
        elevation_and_slope(write(tmp_path / "feet.tif", np.full((120, 120), 20_000.0)), GRID)
