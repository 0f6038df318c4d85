"""Maps of codes on a server: the area's part of them, pixel for pixel."""

import logging
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from covermap import remote
from covermap.area_settings import Mirrors
from covermap.errors import CoverageError, DownloadError, ProductError
from covermap.grid import Grid
from covermap.labels import download_labels, from_raster
from covermap.mapbiomas import BIOMES, COLLECTIONS, addresses, why_not
from tests.servers.bucket import bucket

PIXEL_DEG = 0.000269494585235856472  # of MapBiomas at 30 m
CORNER = (round(-57.5 / PIXEL_DEG) * PIXEL_DEG, round(-12 / PIXEL_DEG) * PIXEL_DEG)
GRID = Grid(crs="EPSG:32721", left=455_040, top=8_660_040, width=300, height=240)  # -57.41, -12.12
CODES = {"0": 0, "3": 1, "15": 2, "33": 3}


def write_map(path, codes=None, dtype="uint8", corner=CORNER):
    if codes is None:
        codes = np.random.default_rng(0).choice([3, 15, 33], (900, 1000))
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": 1, "dtype": dtype, "crs": "EPSG:4326", "tiled": True, "compress": "LZW"}
    profile |= {"blockxsize": 256, "blockysize": 256, "height": codes.shape[0], "width": codes.shape[1]}
    with rasterio.open(path, "w", transform=from_origin(*corner, PIXEL_DEG, PIXEL_DEG), **profile) as raster:
        raster.write(codes.astype(dtype), 1)
    return path


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setitem(remote.GDAL, "GDAL_HTTP_RETRY_DELAY", 0.01)
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    (tmp_path / "shop").mkdir()
    with bucket(tmp_path / "shop") as running:
        yield running


def fetch(server, output, collection="10", year=2022):
    download_labels(output, GRID, collection, year, Mirrors(mapbiomas=server.url))
    return output


def test_the_areas_part_gives_the_labels_of_the_whole(server, tmp_path):
    codes = np.random.default_rng(0).choice([3, 15, 33], (1800, 2000))
    path = server.folder / "initiatives/brasil/collection_10/lulc/coverage/brazil_coverage_2022.tif"
    whole = write_map(path, codes)
    labels = fetch(server, tmp_path / "labels.tif")
    expected = from_raster(whole, GRID, CODES)
    assert set(np.unique(expected)) == {1, 2, 3}
    np.testing.assert_array_equal(from_raster(labels, GRID, CODES), expected)
    with rasterio.open(labels) as part, rasterio.open(whole) as full:
        row, column = full.index(*part.xy(0, 0))
        np.testing.assert_array_equal(part.read(1), full.read(1)[row:, column:][: part.height, : part.width])
        assert (part.nodata, part.dtypes[0], part.crs) == (0, "uint8", full.crs)
        assert part.tags()["collection"] == "10" and part.tags()["year"] == "2022"
        assert part.tags()["source"].endswith("/collection_10/lulc/coverage/brazil_coverage_2022.tif")
        assert 100 < part.width * 29.3 * 10 / GRID.width < 200  # 3 km with a rim of 1 km on each side
    assert server.sent_bytes < whole.stat().st_size / 4


def test_maps_of_biomes_are_put_together(server, tmp_path):
    codes = np.random.default_rng(1).choice([3, 15, 33], (900, 1000))
    west = np.arange(1000) < 320  # the biomes meet in the area
    for biome in BIOMES:
        part = {"AMAZONIA": np.where(west, codes, 0), "CERRADO": np.where(west, 0, codes)[:, 300:]}.get(biome)
        corner = (CORNER[0] + 300 * PIXEL_DEG, CORNER[1]) if biome == "CERRADO" else CORNER
        part = np.zeros((20, 20)) if part is None else part
        write_map(server.folder / f"COLECAO/4_1/DOWNLOADS/COLECOES/ANUAL/{biome}/{biome}-2018.tif", part, corner=corner)
    whole = write_map(tmp_path / "whole.tif", codes)
    labels = fetch(server, tmp_path / "labels.tif", "4", 2018)
    np.testing.assert_array_equal(from_raster(labels, GRID, CODES), from_raster(whole, GRID, CODES))


def test_the_address_of_another_map_serves_too(server, tmp_path):
    write_map(server.folder / "bolivia/2021.tif")
    labels = fetch(server, tmp_path / "labels.tif", f"{server.url}/bolivia/{{year}}.tif", 2021)
    assert (from_raster(labels, GRID, CODES) > 0).all()


def test_parts_are_put_together_without_a_seam(server, tmp_path, monkeypatch):
    write_map(server.folder / "m/2021.tif")
    whole = fetch(server, tmp_path / "whole.tif", f"{server.url}/m/{{year}}.tif", 2021)
    monkeypatch.setattr(remote, "PART_PIXELS", 64)
    parts = fetch(server, tmp_path / "parts.tif", f"{server.url}/m/{{year}}.tif", 2021)
    with rasterio.open(whole) as one, rasterio.open(parts) as other:
        np.testing.assert_array_equal(one.read(1), other.read(1))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("write", "error", "words"),
    [
        (lambda path: None, DownloadError, r"127\.0\.0\.1:\d+/m/2021\.tif cannot be read \(.*404"),
        (lambda path: write_map(path, np.zeros((900, 1000))), CoverageError, r"m/2021\.tif has no code in the area"),
        (lambda path: write_map(path, corner=(10, 50)), CoverageError, r"m/2021\.tif has no code in the area"),
        (lambda path: write_map(path, dtype="float32"), ProductError, r"m/2021\.tif has 1 bands of float32"),
        (lambda path: path.write_text("<html>"), DownloadError, r"127\.0\.0\.1:\d+/m/2021\.tif cannot be read"),
    ],
)
def test_what_is_no_map_of_the_area_is_an_error_and_no_file(write, error, words, server, tmp_path):
    (server.folder / "m").mkdir()
    write(server.folder / "m/2021.tif")
    with pytest.raises(error, match=words):
        fetch(server, tmp_path / "labels.tif", f"{server.url}/m/{{year}}.tif", 2021)
    assert not (tmp_path / "labels.tif").exists()


def test_files_on_two_lattices_are_refused(server, tmp_path):
    folder = server.folder / "COLECAO/5/DOWNLOADS/COLECOES/ANUAL"
    for number, biome in enumerate(BIOMES):
        corner = (CORNER[0] + 0.4 * PIXEL_DEG * (number == 1), CORNER[1])
        write_map(folder / f"{biome}/{biome}-2018.tif", corner=corner)
    with pytest.raises(ProductError, match=r"CAATINGA-2018\.tif is not on the lattice of the map's other files"):
        fetch(server, tmp_path / "labels.tif", "5", 2018)


def test_a_signature_in_an_address_is_never_told(server):
    with pytest.raises(DownloadError) as caught, remote.open_remote(f"{server.url}/none.tif?sig=secret"):
        pass
    assert str(caught.value).startswith("127.0.0.1:") and "/none.tif cannot be read" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_log_tells_a_signature(server, caplog):
    caplog.set_level(logging.DEBUG)
    write_map(server.folder / "m.tif")
    (server.folder / "page.tif").write_text("<html>")
    faults = ["503", "429"]
    server.fault = lambda path: faults.pop() if faults else ""
    with pytest.raises(DownloadError), remote.open_remote(f"{server.url}/page.tif?sig=secret"):
        pass
    faults = ["503", "429"]
    with remote.open_remote(f"{server.url}/m.tif?sig=secret") as raster:
        raster.read()
    assert not faults
    assert re.search(r"HTTP error code: 503 - http://127\.0\.0\.1:\d+/m\.tif", caplog.text)
    assert "secret" not in caplog.text


READS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from covermap import remote

def read(number):
    with remote.open_remote(f"{sys.argv[1]}/{number}.tif") as raster:
        return raster.read().sum()

with ThreadPoolExecutor(6) as pool:
    print(sum(pool.map(read, range(8))))
"""


def test_processes_and_their_threads_share_the_connections_to_a_server(server, tmp_path, monkeypatch):
    for number in range(8):
        write_map(server.folder / f"{number}.tif")
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    most = watched(server)
    line = [sys.executable, "-c", READS, server.url]
    jobs = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = {job.communicate(timeout=100)[0] for job in jobs}
    assert [job.returncode for job in jobs] == [0, 0]
    assert len(sums) == 1 and int(sums.pop()) > 0
    assert 2 <= max(most) <= remote.CONNECTIONS


def watched(server):
    """How many requests were being answered at once, each time one came."""
    most, open_now, lock = [], [], threading.Lock()

    def slowly(path):
        with lock:
            open_now.append(path)
            most.append(len(open_now))
        time.sleep(0.02)
        with lock:
            open_now.remove(path)
        return ""

    server.fault = slowly
    return most


@pytest.mark.parametrize("name", COLLECTIONS)
def test_every_collection_has_addresses_of_its_years(name):
    known = COLLECTIONS[name]
    found = addresses(name, known.last, "https://example.org/maps")
    assert len(found) == (6 if name in ("4", "5") else 1)
    assert all(url.startswith("https://example.org/maps/") and str(known.last) in url for url in found)
    assert not any("{" in url for url in found)
    assert why_not(name, known.first) == why_not(name, known.last) == ""
    assert f"year is {known.last + 1}: collection {name} has {known.first} to" in why_not(name, known.last + 1)
