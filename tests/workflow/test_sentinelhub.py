"""The demo world by Sentinel Hub: what is rendered goes through the same steps to the same pixels as the products."""

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_bounds

from covermap.area_settings import Provider
from covermap.config import load
from covermap.download import download_scene
from covermap.grid import area_grid, read_area
from covermap.providers import Query, sentinelhub
from covermap.sentinel1 import process_s1
from covermap.sentinel2 import clip_s2

from ..conftest import small_settings
from ..servers.sentinelhub import Asked, serve_hub


@pytest.fixture(autouse=True)
def account(monkeypatch):
    monkeypatch.setattr(sentinelhub, "_TOKENS", {})
    monkeypatch.setenv("SH_CLIENT_ID", "client")
    monkeypatch.setenv("SH_CLIENT_SECRET", "secret-of-the-client")


def read_nearest(path: Path, asked: Asked, band: int = 1):
    """Pixels of a raster at the centres of what is asked, NaN or 0 beyond it."""
    transform = from_bounds(*asked.bounds, asked.width, asked.height)
    with rasterio.open(path) as raster:
        assert raster.crs == asked.crs
        pixels, inverse = raster.read(band), ~raster.transform
    columns, rows = np.meshgrid(np.arange(asked.width) + 0.5, np.arange(asked.height) + 0.5)
    columns, rows = (np.floor(index).astype(int) for index in inverse @ (transform @ (columns, rows)))
    inside = (rows >= 0) & (rows < pixels.shape[0]) & (columns >= 0) & (columns < pixels.shape[1])
    found = np.full(rows.shape, np.nan if pixels.dtype.kind == "f" else 0, pixels.dtype)
    found[inside] = pixels[rows[inside], columns[inside]]
    return found


def render_world(world: Path, items):
    """Sentinel-2 out of the demo's products, Sentinel-1 out of its finished backscatter."""

    def render(asked: Asked):
        (item,) = [
            item
            for item in items
            if item["collection"] == asked.collection
            and asked.begin <= datetime.fromisoformat(item["properties"]["datetime"]) <= asked.end
        ]
        if asked.collection == "sentinel-1-grd":
            power = [read_nearest(world / f"results/s1/demo/{item['id']}.tif", asked, band) for band in (1, 2)]
            with np.errstate(invalid="ignore"):  # below the noise: the service has no data there
                return 10 * np.log10(np.stack(power))
        safe = world / "resources/demo/products" / f"{item['id']}.SAFE"
        images = [sorted(safe.rglob(f"*_{band}_*m.jp2"))[0] for band in asked.bands]  # the finest comes first
        return np.stack([read_nearest(image, asked) for image in images])

    return render


@pytest.fixture(scope="module")
def world(small_world):
    """Settings, grid and items of the demo."""
    config = load(small_settings(small_world))
    aoi = config.aois["demo"]
    area = read_area(small_world / "area.geojson")
    items = json.loads((small_world / "results/scenes/demo.json").read_text())["features"]
    hub = {"sentinel-1": "sentinel-1-grd", "sentinel-2": "sentinel-2-l2a"}
    items = [{**item, "collection": hub[item["properties"]["platform"][:10]]} for item in items]
    return config, aoi.period, area, area_grid(area, aoi.crs), items


def test_sentinel2_is_clipped_to_the_same_pixels(small_world, world, tmp_path, monkeypatch):
    monkeypatch.setattr(sentinelhub, "LARGEST_PIXELS", 300)
    config, period, area, grid, items = world
    settings = config.section("sentinel2", "demo")
    with serve_hub(items, render_world(small_world, items)) as server:
        provider = Provider(name="sentinelhub", url=server.url)
        found = sentinelhub.search(Query(area, period, ("sentinel2",), max_cloud=60), provider)
        expected = sorted(path.stem for path in (small_world / "results/s2/demo").glob("*.tif"))
        assert [item["id"] for item in found] == expected
        for item in found:
            product, clipped = tmp_path / f"{item['id']}.zip", tmp_path / f"{item['id']}.tif"
            download_scene(product, item, provider, (*settings.bands, "SCL"), grid)
            clip_s2(product, clipped, item, grid, settings, 1)
            with rasterio.open(clipped) as one, rasterio.open(small_world / "results/s2/demo" / clipped.name) as other:
                window = other.window(*one.bounds)
                assert np.array_equal(one.read(), other.read(window=window))


def test_sentinel1_goes_on_behind_the_terrain_correction(small_world, world, tmp_path):
    config, _, _, grid, items = world
    settings = config.section("sentinel1", "demo").model_copy(update={"speckle_filter": "none"})
    with serve_hub(items, render_world(small_world, items)) as server:
        provider = Provider(name="sentinelhub", url=server.url)
        item = next(item for item in items if item["collection"] == "sentinel-1-grd")
        download_scene(tmp_path / "a.zip", item, provider, ("VV", "VH"), grid)
    process_s1(tmp_path / "a.zip", None, tmp_path / "a.tif", item, grid, settings)
    with rasterio.open(tmp_path / "a.tif") as one:
        found, bounds = one.read(1), one.bounds
    with rasterio.open(small_world / "results/s1/demo" / f"{item['id']}.tif") as other:
        expected = other.read(1, window=other.window(*bounds))
    both = np.isfinite(found) & np.isfinite(expected) & (expected > 0)
    assert both.mean() > 0.9
    np.testing.assert_allclose(found[both], expected[both], rtol=1e-4)
