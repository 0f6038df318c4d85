"""The grid that Copernicus heights count from: downloaded whole, or the one that is installed, and then used."""

import hashlib
import json

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from covermap.area_settings import Sentinel1
from covermap.errors import DownloadError, SettingError
from covermap.sentinel1 import geoid, process_s1
from covermap.sentinel1.geoid import download_geoid, open_geoid
from tests.servers.bucket import bucket
from tests.unit.sentinel1_world import GRID, read, write_dem, write_safe

NAME = "us_nga_egm08_25.tif"


def write_grid(path, value_m=30.0, driver="GTiff"):
    """A grid around the whole Earth, of 2 degrees, centres on the nodes; it rises by 0.1 m a degree northwards."""
    values = np.repeat((value_m + 0.1 * np.arange(90, -91, -2.0))[:, None], 180, axis=1).astype(np.float32)
    profile = {"count": 1, "dtype": "float32", "crs": "EPSG:4326", "height": 91, "width": 180}
    with rasterio.open(path, "w", driver=driver, transform=from_origin(-181, 91, 2, 2), **profile) as raster:
        raster.write(values, 1)
    return path


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A server of PROJ's grids, on a computer that has none."""
    monkeypatch.setattr(geoid, "proj_folders", lambda: [tmp_path / "proj"])
    (tmp_path / "proj").mkdir()
    (tmp_path / "shop").mkdir()
    write_grid(tmp_path / "shop" / NAME)
    with bucket(tmp_path / "shop") as running:
        offer(running)
        yield running


def offer(shop, **more):
    content = (shop.folder / NAME).read_bytes()
    told = {"name": NAME, "file_size": len(content), "sha256sum": hashlib.sha256(content).hexdigest(), **more}
    others = {"name": "us_nga_egm96_15.tif", "file_size": 1, "sha256sum": "0"}
    features = [{"type": "Feature", "properties": entry} for entry in (others, told)]
    (shop.folder / "files.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def test_the_grid_comes_whole(shop, tmp_path):
    download_geoid(tmp_path / "geoid" / NAME, shop.url)
    assert (tmp_path / "geoid" / NAME).read_bytes() == (shop.folder / NAME).read_bytes()
    assert shop.paths == ["/files.geojson", f"/{NAME}"]


@pytest.mark.parametrize(("name", "driver"), [(NAME, "GTiff"), ("egm08_25.gtx", "GTX")])
def test_the_one_that_is_installed_is_taken_and_nobody_is_asked(name, driver, shop, tmp_path):
    write_grid(tmp_path / "proj" / name, 40, driver)
    download_geoid(tmp_path / "geoid" / NAME, shop.url)
    assert shop.paths == []
    longitude, latitude = np.array([0.0, 179.9, -77.0]), np.array([0.0, 10.0, -33.5])
    found = open_geoid(tmp_path / "geoid" / NAME).undulation(longitude, latitude)
    np.testing.assert_allclose(found, 40 + 0.1 * latitude, atol=1e-4)


@pytest.mark.parametrize("size", [3, 30_000])
def test_an_installed_one_that_is_broken_is_told(size, shop, tmp_path):
    (tmp_path / "proj" / NAME).write_bytes((shop.folder / NAME).read_bytes()[:size])
    with pytest.raises(SettingError, match=rf"proj/{NAME} cannot be read .*: install it anew, or remove it"):
        download_geoid(tmp_path / NAME, shop.url)
    assert not list(tmp_path.glob("*.tif"))


FAULTS = {
    "other bytes": (lambda shop: offer(shop, sha256sum="0" * 64), r"us_nga_egm08_25\.tif"),
    "other size": (lambda shop: offer(shop, file_size=17), r"us_nga_egm08_25\.tif"),
    "not in the list": (lambda shop: offer(shop, name="a.tif"), "tells no size and SHA-256 .*: check mirrors.geoid"),
    "list without sums": (lambda shop: offer(shop, file_size=None), "tells no size and SHA-256"),
    "a web page": (lambda shop: (shop.folder / "files.geojson").write_text("<html>"), r"files\.geojson"),
    "another list": (lambda shop: (shop.folder / "files.geojson").write_text("[]"), "tells no size and SHA-256"),
    "no list": (lambda shop: (shop.folder / "files.geojson").unlink(), r"files\.geojson answered 404"),
    "no grid": (lambda shop: (shop.folder / NAME).unlink(), rf"{NAME} answered 404"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_whole_is_no_file_and_says_what_to_do(fault, shop, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    spoil, message = FAULTS[fault]
    spoil(shop)
    with pytest.raises(DownloadError, match=rf"{message}.*; or install it with `pyproj sync --file {NAME}`, or set"):
        download_geoid(tmp_path / NAME, shop.url)
    assert not (tmp_path / NAME).exists()


def test_a_scene_is_processed_with_it_and_never_without(shop, tmp_path):
    product = write_safe(tmp_path)
    dem = write_dem(tmp_path / "dem.tif", "EPSG:9518")
    settings = Sentinel1(speckle_filter="none", layers=())
    with pytest.raises(SettingError, match="the grid of the geoid egm2008 is in none of PROJ's folders"):
        process_s1(product, dem, tmp_path / "none.tif", {}, GRID, settings)
    assert not (tmp_path / "none.tif").exists()
    download_geoid(tmp_path / NAME, shop.url)
    process_s1(product, dem, tmp_path / "grid.tif", {}, GRID, settings, geoid=tmp_path / NAME)
    given = settings.model_copy(update={"geoid": 30.1})  # of the grid at 1 degree north
    process_s1(product, dem, tmp_path / "given.tif", {}, GRID, given)
    process_s1(product, dem, tmp_path / "zero.tif", {}, GRID, settings.model_copy(update={"geoid": 0.0}))
    by_grid, by_hand, flat = (read(tmp_path / f"{name}.tif")[0] for name in ("grid", "given", "zero"))
    seen = np.isfinite(by_grid) & np.isfinite(by_hand) & np.isfinite(flat)
    assert np.abs(by_grid - by_hand)[seen].mean() < 0.01 * np.abs(by_grid - flat)[seen].mean()
    with rasterio.open(tmp_path / "grid.tif") as raster:
        assert raster.tags()["geoid"] == NAME
    other = write_dem(tmp_path / "other.tif", "EPSG:4326+5773")  # EGM96
    with pytest.raises(SettingError, match=r"declares heights above EGM96 height .*, but sentinel1\.geoid is egm2008"):
        named = settings.model_copy(update={"geoid": "egm2008"})
        process_s1(product, other, tmp_path / "none.tif", {}, GRID, named, geoid=tmp_path / NAME)
