"""Windows of rasters on a server: what goes wrong is told without the signature of the address."""

import logging

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from covermap import remote
from covermap.errors import DownloadError, ProductError
from covermap.grid import Grid
from tests.servers.bucket import bucket

SIGNATURE = "sig=ab/cd-hidden"  # GDAL tells what follows the last slash of an address
GRID = Grid(crs="EPSG:32632", left=505_000, top=4_995_000, width=30, height=30)


def write(path, **options):
    pixels = np.random.default_rng(0).integers(1, 200, (1, 1024, 1024)).astype(np.uint8)
    place = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_000_000, 10, 10)}
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "width": 1024, "height": 1024, "tiled": True}
    with rasterio.open(path, "w", **profile, **place, **options) as raster:
        raster.write(pixels)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setitem(remote.GDAL, "GDAL_HTTP_RETRY_DELAY", 0.01)
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "shop").mkdir()
    write(tmp_path / "shop" / "a.tif", compress="deflate")
    with bucket(tmp_path / "shop") as running:
        yield running


def test_no_log_tells_the_signature_of_an_address(server, caplog):
    caplog.set_level(logging.DEBUG)
    answers = ["503", "503"]
    server.fault = lambda path: answers.pop(0) if answers else ""
    with remote.open_remote(f"{server.url}/a.tif?{SIGNATURE}") as raster:
        raster.read(1)
    assert "503" in caplog.text and f"{server.url}/a.tif" in caplog.text
    assert "hidden" not in caplog.text


@pytest.mark.parametrize("status", ["403", "404"])
@pytest.mark.parametrize("is_open", [True, False])
def test_no_error_tells_the_signature_of_an_address(server, status, is_open):
    def read():
        server.fault = lambda path: "" if is_open else status
        with remote.open_remote(f"{server.url}/a.tif?{SIGNATURE}") as raster:
            server.fault = lambda path: status
            raster.read(1)

    with pytest.raises(DownloadError, match=r"^127\.0\.0\.1:\d+/a\.tif cannot be read") as error:
        read()
    assert "hidden" not in str(error.value)
    assert error.value.__suppress_context__


def test_codes_that_are_not_compressed_are_refused(server, tmp_path):
    write(server.folder / "plain.tif")
    with pytest.raises(ProductError, match=r"/plain\.tif holds its pixels uncompressed"):
        remote.copy_area([f"{server.url}/plain.tif"], tmp_path / "a.tif", GRID, rim_m=0, tags={}, empty="")
    assert not (tmp_path / "a.tif").exists()
