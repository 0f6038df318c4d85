"""The demo world by the Copernicus Data Space, by token and by keys: the same map as from disk."""

import json
import shutil
from pathlib import Path

import numpy as np
import rasterio

from tests.conftest import small_settings
from tests.servers.cdse import NAME, PASSWORD, Entry, FakeCdse, serve
from tests.servers.store import KEY, SECRET, serve_store


def class_band(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read(1)


def test_the_map_is_that_of_the_demo_provider(small_world, tmp_path, snakemake, monkeypatch):
    """First all scenes come by token, then again by keys up to the map: of the same scenes, so the map of both."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("CDSE_USERNAME", NAME)
    monkeypatch.setenv("CDSE_PASSWORD", PASSWORD)
    demo, folder = small_world / "resources" / "demo", tmp_path / "world"
    shutil.copytree(demo, folder / "resources" / "demo", ignore=shutil.ignore_patterns("products"))
    items = json.loads((demo / "catalog.json").read_text())["features"]
    settings = small_settings(folder)
    entries = [Entry(demo / "products" / f"{item['id']}.SAFE", item) for item in items]
    scenes = [path for sensor in ("s1", "s2") for path in (small_world / "results" / sensor / "demo").glob("*.tif")]
    scenes = sorted(path.relative_to(small_world).as_posix() for path in scenes)
    with serve(FakeCdse(entries)) as fake, serve_store(entries, tmp_path / "store") as keys:
        settings["aois"]["demo"]["provider"] = {"name": "cdse", "url": fake.url}
        snakemake(folder, settings, *scenes)
        by_token = {scene: (folder / scene).read_bytes() for scene in scenes}
        for scene in scenes:
            (folder / scene).unlink()
        asked = len(fake.asked)
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("CDSE_PASSWORD")
        snakemake(folder, settings, "results/maps/demo.tif")
        assert len(fake.asked) == asked
    assert all((folder / scene).read_bytes() == content for scene, content in by_token.items())
    listed = [json.loads((world / "results/scenes/demo.json").read_text()) for world in (small_world, folder)]
    assert len({tuple(item["id"] for item in listing["features"]) for listing in listed}) == 1
    np.testing.assert_array_equal(*(class_band(world / "results/maps/demo.tif") for world in (small_world, folder)))
    for name in ("demo.tif", "demo.confidence.tif"):
        with rasterio.open(folder / "results" / "maps" / name) as raster:
            assert raster.tags()["TIFFTAG_COPYRIGHT"] == "Contains modified Copernicus Sentinel data 2021, 2022"
    assert fake.grants() == ["password"]
    logs = "".join(path.read_text() for path in (folder / "results" / "logs").rglob("*.log"))
    assert not any(secret in logs for secret in (NAME, PASSWORD, "access-", "refresh-", KEY, SECRET))
