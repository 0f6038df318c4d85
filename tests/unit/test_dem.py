"""Heights of GLO-30: from the right tiles, in their places, of the area alone, and never zero where there is land."""

import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from covermap import remote
from covermap.area_settings import Mirrors
from covermap.dem import download_dem, tile_name, widening
from covermap.errors import DownloadError, ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel1.terrain import read_dem
from covermap.terrain_layers import elevation_and_slope
from tests.servers.bucket import bucket

WEST_S, SOUTH_S = 6 * 3600, 49 * 3600  # corner of a world of four tiles around 7 E, 50 N
GRID = Grid(crs="EPSG:32632", left=355_020, top=5_540_040, width=120, height=90)  # 6.98 E, 49.99 N
FINE = {(6, 49): 1.0, (6, 50): 1.5}  # arc seconds a column; 7 E, 49 N was not released at 30 m; 7 E, 50 N is sea
SLOPES = (0.01, 0.02)  # metres an arc second east and north


def plane(longitude_s, latitude_s):
    return 100 + SLOPES[0] * (longitude_s - WEST_S) + SLOPES[1] * (latitude_s - SOUTH_S)


def write_tile(folder, cell, number, row_s, column_s, values=None):
    name = tile_name(cell, number)
    width, height = round(3600 / column_s), round(3600 / row_s)
    west_s, north_s = cell[0] * 3600, (cell[1] + 1) * 3600
    if values is None:
        longitude_s, latitude_s = west_s + np.arange(width) * column_s, north_s - np.arange(height) * row_s
        values = plane(longitude_s[None], latitude_s[:, None]).astype(np.float32)
    corner = (west_s - column_s / 2) / 3600, (north_s + row_s / 2) / 3600
    profile = {"driver": "GTiff", "count": 1, "dtype": "float32", "crs": "EPSG:4326", "tiled": True}
    profile |= {"height": values.shape[0], "width": values.shape[1], "compress": "DEFLATE", "predictor": 3}
    (folder / name).mkdir(parents=True, exist_ok=True)
    transform = from_origin(*corner, column_s / 3600, row_s / 3600)
    with rasterio.open(folder / name / f"{name}.tif", "w", transform=transform, **profile) as raster:
        raster.write(values, 1)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    for cell, column_s in FINE.items():
        write_tile(folder / "30", cell, 10, 1, column_s)
    write_tile(folder / "90", (7, 49), 30, 3, 3)
    (folder / "30/tileList.txt").write_text("".join(f"{tile_name(cell, 10)}\r\n" for cell in FINE))
    (folder / "90/tileList.txt").write_text("".join(f"{tile_name(cell, 30)}\n" for cell in [(6, 49), (6, 50), (7, 49)]))
    return folder


@pytest.fixture
def server(tiles, monkeypatch):
    monkeypatch.setitem(remote.GDAL, "GDAL_HTTP_RETRY_DELAY", 0.01)
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    with bucket(tiles) as running:  # a port of its own each time, since GDAL keeps what it has read of an address
        yield running


def mirrors(server):
    return Mirrors(glo30=f"{server.url}/30", glo90=f"{server.url}/90/")


def places(raster):
    """Longitude (x) and latitude (y) of pixel centres in arc seconds."""
    transform = raster.transform
    longitude = transform.c + transform.a * (np.arange(raster.width) + 0.5)
    latitude = transform.f + transform.e * (np.arange(raster.height) + 0.5)
    return longitude * 3600, latitude * 3600


def test_each_place_has_the_height_of_its_tile(server, tmp_path):
    download_dem(tmp_path / "dem.tif", GRID, mirrors(server))
    with rasterio.open(tmp_path / "dem.tif") as raster:
        height_m, tags, crs = raster.read(1), raster.tags(), raster.crs
        longitude_s, latitude_s = places(raster)
        west, south, east, north = raster.bounds
    for place_s in (longitude_s, latitude_s):
        np.testing.assert_allclose(place_s, np.round(place_s), atol=1e-5)  # the lattice of 1 arc second
    x, y = np.meshgrid(np.round(longitude_s), np.round(latitude_s))
    sea = (x >= 7 * 3600) & (y > 50 * 3600)
    assert sea.any() and (height_m[sea] == 0).all()
    off = np.abs(height_m - plane(x, y))[~sea]
    assert off.max() < 0.5 * SLOPES[0] + 1e-4  # half a pixel at the edge of a degree
    own = (x < 7 * 3600) & (y <= 50 * 3600)  # the tile that has this lattice
    assert np.array_equal(height_m[own], plane(x, y)[own].astype(np.float32))
    assert crs.to_epsg() == 9518
    assert (tags["glo90"], tags["sea"]) == ("N49E007", "N50E007")
    assert "DLR" in tags["attribution"]
    lon, lat = rasterio.warp.transform(GRID.crs, "EPSG:4326", GRID.bounds[::2], GRID.bounds[1::2])
    rims_deg = np.array([min(lon) - west, east - max(lon), min(lat) - south, north - max(lat)])
    rims_km = rims_deg * [71.6, 71.6, 111.2, 111.2]
    assert rims_km.min() > 11.9 and rims_km.max() < 12.6


def test_of_the_tiles_only_the_area_is_fetched(server, tiles, tmp_path):
    download_dem(tmp_path / "dem.tif", GRID, mirrors(server))
    whole = sum(path.stat().st_size for path in tiles.rglob("*.tif"))
    assert 0 < server.sent_bytes < whole / 3
    assert not any("aux" in path or "ovr" in path for path in server.paths)


def test_the_heights_become_ellipsoidal_by_what_the_file_says(server, tmp_path):
    download_dem(tmp_path / "dem.tif", GRID, mirrors(server))
    terrain = read_dem(tmp_path / "dem.tif", GRID, geoid=47.5)
    with rasterio.open(tmp_path / "dem.tif") as raster:
        assert terrain.highest_m <= raster.read(1).max() + 47.5
    assert terrain.lowest_m > 47
    assert abs(elevation_and_slope(tmp_path / "dem.tif", GRID)[0].max() + 47.5 - terrain.highest_m) < 1
    try:
        assert "egm2008" in read_dem(tmp_path / "dem.tif", GRID).geoid
    except SettingError as error:  # the grid is not on this computer
        assert "us_nga_egm08_25.tif" in str(error)


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(server, tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PART_PIXELS", 512)
    monkeypatch.setattr(remote, "CONNECTIONS", 1)
    monkeypatch.setitem(remote.GDAL, "GDAL_HTTP_MAX_RETRY", 1)
    dem = tmp_path / "dem.tif"
    gone = tile_name((7, 49), 30)
    server.fault = lambda path: "503" if gone in path else ""
    with pytest.raises(DownloadError, match=rf"127\.0\.0\.1:\d+/90/{gone}/{gone}\.tif cannot be read .*503"):
        download_dem(dem, GRID, mirrors(server))
    assert not dem.exists()
    finished = [path.name for path in tmp_path.rglob(".dem.tif.*/*.tif")]
    assert finished
    server.fault = lambda path: ""
    written = written_parts(monkeypatch)
    download_dem(dem, GRID, mirrors(server))
    assert written and not {*finished} & {*written}
    with bucket(tiles) as fresh:
        download_dem(tmp_path / "first.tif", GRID, mirrors(fresh))
    assert dem.read_bytes() == (tmp_path / "first.tif").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dem.tif", "first.tif"]


def written_parts(monkeypatch):
    """A list that names each part as it is written."""
    names, write = [], remote._write
    monkeypatch.setattr(remote, "_write", lambda file, *words: (names.append(file.name), write(file, *words)))
    return names


def test_parts_of_another_mirror_are_not_taken_over(server, tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PART_PIXELS", 512)
    monkeypatch.setitem(remote.GDAL, "GDAL_HTTP_MAX_RETRY", 1)
    write_tile(tiles / "other", (6, 49), 10, 1, 1, np.full((3600, 3600), 7, np.float32))
    write_tile(tiles / "other", (6, 50), 10, 1, 1.5, np.full((3600, 2400), 7, np.float32))
    (tiles / "other/tileList.txt").write_text((tiles / "30/tileList.txt").read_text())
    gone = tile_name((7, 49), 30)
    server.fault = lambda path: "404" if gone in path else ""
    with pytest.raises(DownloadError, match=gone):
        download_dem(tmp_path / "dem.tif", GRID, mirrors(server))
    assert list(tmp_path.rglob(".dem.tif.*/*.tif"))
    server.fault = lambda path: ""
    download_dem(tmp_path / "dem.tif", GRID, Mirrors(glo30=f"{server.url}/other", glo90=f"{server.url}/90"))
    with rasterio.open(tmp_path / "dem.tif") as raster:
        height_m, longitude_s = raster.read(1), places(raster)[0]
    assert (height_m[:, np.round(longitude_s) < 7 * 3600] == 7).all()


KILLED = """
import sys
from pathlib import Path
from covermap import remote
from covermap.dem import download_dem
from covermap.grid import Grid
from covermap.area_settings import Mirrors
remote.PART_PIXELS = 512
download_dem(Path(sys.argv[1]), Grid.model_validate_json(sys.argv[2]), Mirrors(glo30=sys.argv[3], glo90=sys.argv[4]))
"""


def test_a_killed_run_leaves_no_file_under_its_name_and_is_gone_on_with(server, tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PART_PIXELS", 512)
    dem, parts = tmp_path / "dem.tif", 0
    server.fault = lambda path: time.sleep(0.1) or ""
    words = [str(dem), GRID.model_dump_json(), f"{server.url}/30", f"{server.url}/90"]
    run = subprocess.Popen([sys.executable, "-c", KILLED, *words])
    while run.poll() is None and parts < 2:
        parts = len(list(tmp_path.glob(".dem.tif.*/[0-9]*.tif")))
        time.sleep(0.01)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert not dem.exists()
    finished = {path.name for path in tmp_path.glob(".dem.tif.*/[0-9]*.tif")}
    written = written_parts(monkeypatch)
    server.fault = lambda path: ""
    download_dem(dem, GRID, mirrors(server))
    assert len(finished) >= 2 and not finished & {*written}
    with bucket(tiles) as third:
        download_dem(tmp_path / "first.tif", GRID, mirrors(third))
    assert dem.read_bytes() == (tmp_path / "first.tif").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dem.tif", "first.tif"]


@pytest.mark.parametrize("fault", ["503", "429", "cut", "reset"])
def test_a_passing_fault_is_outlived(fault, server, tiles, tmp_path):
    asked = {}

    def at_times(path):
        asked[path] = asked.get(path, 0) + 1
        return fault if path.endswith(".tif") and asked[path] % 7 == 2 else ""

    server.fault = at_times
    download_dem(tmp_path / "dem.tif", GRID, mirrors(server))
    with bucket(tiles) as sound:
        download_dem(tmp_path / "again.tif", GRID, mirrors(sound))
    assert (tmp_path / "dem.tif").read_bytes() == (tmp_path / "again.tif").read_bytes()


@pytest.mark.parametrize("fault", ["404", "500", "cut", "reset", "no ranges"])
def test_a_lasting_fault_is_an_error_and_no_file(fault, server, tmp_path, monkeypatch):
    monkeypatch.setitem(remote.GDAL, "GDAL_HTTP_MAX_RETRY", 1)
    server.fault = lambda path: fault if path.endswith(".tif") else ""
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:\d+/\d0/(\w+)/\1\.tif cannot be read"):
        download_dem(tmp_path / "dem.tif", GRID, mirrors(server))
    assert not [path for path in tmp_path.rglob("*.tif")]


def test_a_full_disk_is_told_before_anything_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_000_000))
    with pytest.raises(DownloadError, match=r"dem\.tif needs about \d MB, but .* has 1 MB free: make room"):
        download_dem(tmp_path / "dem.tif", GRID, mirrors(server))
    assert not any(path.endswith(".tif") for path in server.paths)


def test_a_list_without_tiles_is_no_sea(server, tiles, tmp_path):
    (tiles / "moved").mkdir()
    (tiles / "moved/tileList.txt").write_text("<html>elsewhere</html>")
    with pytest.raises(ProductError, match=r"moved/tileList\.txt names no tile: expected names such as Copernicus"):
        download_dem(tmp_path / "dem.tif", GRID, Mirrors(glo30=f"{server.url}/moved", glo90=f"{server.url}/90"))


def test_a_tile_of_another_lattice_is_refused(server, tiles, tmp_path):
    write_tile(tiles / "odd", (6, 49), 10, 1, 1, np.zeros((20, 20), np.float32))
    (tiles / "odd/tileList.txt").write_text(tile_name((6, 49), 10))
    with pytest.raises(ProductError, match=r"N49_00_E006_00_DEM has 20 x 20 pixels .* expected 3600 x 3600 from 5\.9"):
        download_dem(tmp_path / "dem.tif", GRID, Mirrors(glo30=f"{server.url}/odd", glo90=f"{server.url}/90"))


def test_longitudes_go_on_across_the_antimeridian(server, tiles, tmp_path):
    write_tile(tiles / "fiji", (-180, -17), 10, 1, 1, np.full((3600, 3600), 7, np.float32))
    (tiles / "fiji/tileList.txt").write_text(tile_name((-180, -17), 10))
    grid = Grid(crs="EPSG:32701", left=176_040, top=8_160_000, width=60, height=60)  # 179.96 E
    download_dem(tmp_path / "dem.tif", grid, Mirrors(glo30=f"{server.url}/fiji", glo90=f"{server.url}/90"))
    with rasterio.open(tmp_path / "dem.tif") as raster:
        longitude_s = places(raster)[0]
        height_m = raster.read(1)
        assert raster.tags()["sea"] == "S17E179"
    assert longitude_s[0] < 180 * 3600 < longitude_s[-1] < 181 * 3600
    east = np.round(longitude_s) >= 180 * 3600
    assert (height_m[:, east] == 7).all() and (height_m[:, ~east] == 0).all()
    assert np.isfinite(read_dem(tmp_path / "dem.tif", grid, geoid=0.0).height_m).all()


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        ((6, 50), "Copernicus_DSM_COG_10_N50_00_E006_00_DEM"),
        ((-61, -1), "Copernicus_DSM_COG_10_S01_00_W061_00_DEM"),
        ((0, 0), "Copernicus_DSM_COG_10_N00_00_E000_00_DEM"),
        ((180, -17), "Copernicus_DSM_COG_10_S17_00_W180_00_DEM"),
    ],
)
def test_tiles_are_named_by_their_south_western_corner(cell, name):
    assert tile_name(cell, 10) == name


@pytest.mark.parametrize(
    ("latitude", "factor"),
    [(0, 1), (49, 1), (50, 1.5), (-50, 1), (-51, 1.5), (60, 2), (-71, 3), (80, 5), (-86, 10), (89, 10)],
)
def test_columns_widen_towards_the_poles(latitude, factor):
    assert widening(latitude) == factor
