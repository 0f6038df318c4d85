"""Heights, orbits and labels that are to be downloaded reach the steps that read them."""

import hashlib
import json
import re
import shutil
import zipfile

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from covermap.grid import area_blocks, read_area
from covermap.legend import read_legend

from ..conftest import ROOT, run_snakemake, small_settings
from ..servers.bucket import bucket
from ..servers.clms import FakeClms, serve

SCENE = "S1A_IW_GRDH_1SDV_20220110T093000_20220110T093025_041389_04EBD0_ABCD"
ORBIT = "AUX_POEORB/S1A_OPER_AUX_POEORB_OPOD_20220130T080600_V20220109T225942_20220111T005942.EOF"


@pytest.fixture
def server(tmp_path):
    (tmp_path / "shop").mkdir()
    with bucket(tmp_path / "shop") as running:
        yield running


def downloading(folder, server):
    """Settings with all that can be downloaded, and the files on the server."""
    settings = small_settings(folder)
    west, _, _, north = read_area(folder / "area.geojson").bounds
    transform = from_origin(west - 0.05, north + 0.05, 0.0003, 0.0003)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:4326", "height": 700, "width": 700}
    profile["compress"] = "LZW"
    with rasterio.open(server.folder / "map_2021.tif", "w", transform=transform, **profile) as raster:
        raster.write(np.full((1, 700, 700), 15, np.uint8))
    for number in (10, 30):
        (server.folder / f"{number}").mkdir()
        name = f"Copernicus_DSM_COG_{number}_N50_00_E006_00_DEM"  # elsewhere: the demo lies in the sea
        (server.folder / f"{number}/tileList.txt").write_text(name)
    (server.folder / ORBIT).parent.mkdir()
    (server.folder / ORBIT).write_text("<Earth_Explorer_File/>")
    grid = b"undulations"
    (server.folder / "us_nga_egm08_25.tif").write_bytes(grid)
    told = {"name": "us_nga_egm08_25.tif", "file_size": len(grid), "sha256sum": hashlib.sha256(grid).hexdigest()}
    (server.folder / "files.geojson").write_text(json.dumps({"features": [{"properties": told}]}))
    settings["mirrors"] = {"glo30": f"{server.url}/10", "glo90": f"{server.url}/30", "orbits": server.url}
    settings["mirrors"]["geoid"] = server.url
    settings["sentinel1"] = {"orbits": "auto"}
    demo = settings["aois"]["demo"]
    demo["dem"] = "glo30"
    demo["labels"] |= {"path": "auto", "collection": f"{server.url}/map_{{year}}.tif", "year": 2021}
    return settings


def jobs(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"^(\w+)\s+\d+$", done.stdout + done.stderr, re.MULTILINE)) - {"total"}


def test_what_is_asked_for_is_downloaded(server, tmp_path):
    folder = tmp_path / "world"
    folder.mkdir()
    settings = downloading(folder, server)
    wanted = ["resources/dem/demo.tif", "resources/labels/demo.tif", f"resources/orbits/{SCENE}.EOF"]
    wanted.append("resources/geoid/us_nga_egm08_25.tif")
    done = run_snakemake(folder, settings, *wanted)
    assert jobs(done) == {"download_dem", "download_labels", "download_orbit", "download_geoid"}
    with rasterio.open(folder / wanted[0]) as raster:
        assert raster.crs.to_epsg() == 9518 and not raster.read(1).any()
    with rasterio.open(folder / wanted[1]) as raster:
        assert set(np.unique(raster.read(1))) == {15}
    assert (folder / wanted[2]).read_text() == "<Earth_Explorer_File/>"
    assert jobs(run_snakemake(folder, settings, *wanted, "-n", "--quiet", "rules")) == set()


def test_the_steps_wait_for_what_is_downloaded(copied_world, server, snakemake):
    scene = next((copied_world / "results/s1/demo").glob("*.tif"))
    block = next((copied_world / "results/labels/demo").glob("*.tif"))
    targets = [str(path.relative_to(copied_world)) for path in (scene, block)]
    known = downloading(copied_world, server)
    listing = copied_world / "results/scenes/demo.json"
    known["aois"]["demo"]["scenes"] = str(shutil.copy(listing, copied_world / "pinned.json"))
    snakemake(copied_world, known, str(listing.relative_to(copied_world)))
    planned = jobs(run_snakemake(copied_world, known, *targets, "-n", "--quiet", "rules"))
    fetched = {"download_dem", "download_geoid", "download_orbit", "download_labels", "download_scene"}
    assert planned == fetched | {"process_s1", "rasterize_labels"}
    known["aois"]["demo"] |= {"dem": "resources/demo/dem.tif", "sentinel1": {"geoid": "egm2008"}}
    planned = jobs(run_snakemake(copied_world, known, targets[0], "-n", "--quiet", "rules"))
    assert "download_geoid" in planned and "download_dem" not in planned


def ordering(folder, url):
    """Settings with Urban Atlas of the service at an address."""
    settings = small_settings(folder)
    shutil.copytree(ROOT / "resources" / "legends", folder / "resources" / "legends")
    settings["mirrors"] = {"clms": url}
    demo = settings["aois"]["demo"]
    demo["labels"] = {"source": "urban_atlas", "path": "auto", "year": 2018, "other_year": True}
    demo["reference"] = None
    return settings


def test_urban_atlas_is_ordered_and_rasterized(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with serve(FakeClms(polls=0)) as service:
        monkeypatch.setenv("CLMS_SERVICE_KEY_FILE", str(service.key(tmp_path / "key.json")))
        settings = ordering(tmp_path, service.url)
        area = read_area(tmp_path / "area.geojson")
        geopandas.GeoDataFrame({"CODE_2018": ["50000"]}, geometry=[area], crs=4326).to_crs(3035).to_file(
            tmp_path / "city.gpkg"
        )
        with zipfile.ZipFile(tmp_path / "city.zip", "w") as archive:
            archive.write(tmp_path / "city.gpkg", "Results/city.gpkg")
        service.delivery = (tmp_path / "city.zip").read_bytes()
        block = f"results/labels/demo/{next(iter(area_blocks(area, 'EPSG:32721', 256)))}.tif"
        assert jobs(run_snakemake(tmp_path, settings, block)) == {"download_urban_atlas", "rasterize_labels"}
    with rasterio.open(tmp_path / block) as raster:
        classes = raster.read(1)
    water = read_legend(tmp_path / "resources/legends/urban_atlas.csv").codes["50000"]
    assert set(np.unique(classes)) - {0} == {water} and (classes == water).mean() > 0.2
    monkeypatch.delenv("CLMS_SERVICE_KEY_FILE")
    assert jobs(run_snakemake(tmp_path, settings, block)) == set()  # what is there needs no key


def test_a_run_without_a_key_stops_before_it_fetches_anything(tmp_path, monkeypatch):
    monkeypatch.delenv("CLMS_SERVICE_KEY_FILE", raising=False)
    settings = ordering(tmp_path, "http://127.0.0.1:9")
    assert "download_urban_atlas" in jobs(run_snakemake(tmp_path, settings, "resources/labels/demo.gpkg", "-n"))
    done = run_snakemake(tmp_path, settings, "results/maps/demo.tif")
    assert done.returncode and "aois.demo: CLMS_SERVICE_KEY_FILE is not set" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "resources/demo").exists()
