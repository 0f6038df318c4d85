"""The areas of published systems, as they are shipped: each plans its map without network."""

import re
import shutil
import subprocess
import sys
from datetime import date
from itertools import pairwise

import geopandas
import pytest
import shapely
import yaml
from pyproj import Geod
from shapely.geometry import box

from covermap.grid import area_blocks, read_area
from covermap.scenes import read_listing, sensor_of
from tests.pinned import AREA, FIXTURE, as_listing, granule, mato_grosso

from ..conftest import ROOT, environment, run_snakemake
from ..servers.cdse import NAME, PASSWORD, FakeCdse, serve

HEAVY = {"torch", "rasterio", "xarray", "zarr", "geopandas", "pandas", "sklearn", "scipy", "numba"}
COMMAND = "snakemake -n results/maps/mato_grosso.tif --configfile tests/fixtures/mato_grosso.yaml"
TILES = {"klingenberg_2016": "33UVS", "klingenberg_2018": "33UVS", "paris": "31UDQ", "ankara": "36SVJ"}
AREAS = ["mato_grosso", *TILES]


@pytest.fixture
def folder(tmp_path):
    """A working directory with what is shipped."""
    for name in ("resources/legends", "resources/aois", "tests/fixtures"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def shipped():
    return yaml.safe_load((ROOT / "config" / "config.yaml").read_text())


def jobs_of(done):
    """Jobs of a dry run by rule."""
    assert done.returncode == 0, done.stdout + done.stderr
    return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", done.stdout, re.MULTILINE)}


def must_be_light(done):
    """Planning takes neither what reads rasters nor what teaches networks."""
    imported = set(re.findall(r"^import time:.*\| +([^.\s]+)", done.stderr, re.MULTILINE))
    assert {"snakemake", "covermap", "shapely"} <= imported
    assert not HEAVY & imported


def taught_by(settings, aoi):
    """An area and those that its model, or the one whose weights that applies, learns from."""
    model = settings["models"][settings["aois"][aoi]["model"]]
    return sorted({aoi, *settings["models"].get(model.get("weights"), model)["train_on"]})


def to_bring(settings, areas):
    """Files of labels that no rule makes or downloads."""
    labels = [settings["aois"][aoi].get("labels") for aoi in areas]
    return [some["path"] for some in labels if some and some["path"] != "auto"]


def pin(folder, settings, aoi):
    """Pin a list of one tile that holds the area, for its dates or each month of its period; its length."""
    area = settings["aois"][aoi]
    west, south, east, north = area["area"]
    outline = box(west - 0.05, south - 0.05, east + 0.05, north + 0.05)
    months = range(area["period"]["start"].month, area["period"]["end"].month + 1)
    days = area["composite"].get("dates") or [date(2018, month, 15) for month in months]
    items = [granule(outline, TILES[aoi], day, area["sentinel2"].get("level", "L2A")) for day in days]
    if area["provider"]["name"] == "stac":
        for item in items:
            item["assets"] = {
                band: {"href": f"https://example.org/{item['id']}/{band}.tif"} for band in ("B02", "B03", "B04", "SCL")
            }
    (folder / f"{aoi}.json").write_bytes(as_listing(items))
    area["scenes"] = f"{aoi}.json"
    return len(items)


def test_mato_grosso_plans_all_of_its_jobs_from_a_pinned_list(folder, monkeypatch):
    """By the command of the documentation."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    assert COMMAND in (ROOT / "docs" / "data-sources.md").read_text()
    shutil.copytree(ROOT / "config", folder / "config")
    line = [sys.executable, "-m", *COMMAND.split(), "--snakefile", ROOT / "Snakefile"]
    done = subprocess.run(line, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    jobs, scenes = jobs_of(done), read_listing(FIXTURE).values()
    radar = sum(sensor_of(item) == "sentinel1" for item in scenes)
    assert (jobs["process_s1"], jobs["clip_s2"]) == (radar, len(scenes) - radar) == (444, 600)
    assert jobs["download_scene"] == len(scenes)
    assert jobs["download_orbit"] == radar
    assert jobs["predict_block"] == jobs["stack_block"] == jobs["rasterize_labels"] > 600
    assert jobs["search_scenes"] == jobs["download_dem"] == jobs["download_labels"] == jobs["train"] == 1
    must_be_light(done)


def test_the_list_of_mato_grosso_is_the_generated_one():
    assert FIXTURE.read_bytes() == mato_grosso()


@pytest.mark.parametrize("aoi", AREAS)
def test_an_area_plans_its_search_without_network_and_labels(folder, shipped, aoi):
    done = run_snakemake(folder, shipped, f"results/maps/{aoi}.tif", "-n", "--quiet", "rules")
    jobs, areas = jobs_of(done), taught_by(shipped, aoi)
    assert jobs["search_scenes"] == len(areas)
    assert jobs["mosaic"] == jobs["train"] == 1
    assert "clip_s2" not in jobs
    absent = to_bring(shipped, areas)
    assert (
        re.findall(r"^covermap: aois\.\w+\.labels\.path is (\S+), which is not there yet", done.stderr, re.M) == absent
    )
    assert done.stderr.count("covermap: ") == len(absent)


@pytest.mark.parametrize("aoi", TILES)
def test_an_area_plans_all_of_its_jobs_from_a_pinned_list(folder, shipped, aoi, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    areas = taught_by(shipped, aoi)
    scenes = sum([pin(folder, shipped, area) for area in areas])
    done = run_snakemake(folder, shipped, f"results/maps/{aoi}.tif", "-n", "--quiet", "rules")
    jobs = jobs_of(done)
    assert jobs["clip_s2"] == jobs["download_scene"] == scenes
    assert jobs["search_scenes"] == len(areas)
    assert jobs["stack_block"] == jobs["predict_block"] * len(areas)
    assert jobs["rasterize_labels"] == jobs["pack_tiles"] == jobs["predict_block"]
    assert jobs.get("find_shoreline", 0) == jobs["predict_block"] * aoi.startswith("klingenberg")
    assert jobs["train"] == jobs["mosaic"] == 1
    must_be_light(done)


@pytest.mark.parametrize("words", [[], ["--touch"]])
def test_a_run_whose_labels_were_not_brought_stops_before_all_jobs(folder, shipped, words):
    done = run_snakemake(folder, shipped, "results/maps/klingenberg_2018.tif", *words)
    assert done.returncode and "covermap: aois.klingenberg_2016.labels.path is resources/labels/" in done.stderr
    assert "which does not exist: mend the path or bring the file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "results").exists() and not (folder / "resources" / "scenes").exists()


def test_a_summary_needs_no_labels(folder, shipped):
    done = run_snakemake(folder, shipped, "results/maps/klingenberg_2016.tif", "--summary")
    assert done.returncode == 0, done.stderr
    assert "results/scenes/klingenberg_2016.json" in done.stdout
    assert done.stderr.count("which is not there yet") == 1


def test_a_plan_needs_all_other_files(folder, shipped):
    shipped["aois"]["klingenberg_2016"] |= {"scenes": "none.json"}
    done = run_snakemake(folder, shipped, "-n", "results/maps/klingenberg_2016.tif")
    assert done.returncode and "aois.klingenberg_2016.scenes is none.json, which does not exist" in done.stderr


def test_the_search_of_mato_grosso_sends_the_documented_query(folder, shipped, monkeypatch):
    """Through the workflow, to a service that validates the query and has no scene."""
    for name, value in (("CDSE_USERNAME", NAME), ("CDSE_PASSWORD", PASSWORD), ("XDG_RUNTIME_DIR", str(folder))):
        monkeypatch.setenv(name, value)
    with serve(FakeCdse([])) as fake:
        shipped["aois"]["mato_grosso"]["provider"]["url"] = fake.url
        done = run_snakemake(folder, shipped, "results/scenes/mato_grosso.json")
    assert "provider cdse has no sentinel1 scene of the area -61.6300 to -50.2200 E" in done.stderr
    assert "the service knows none, so check" in done.stderr
    assert not (folder / "results/scenes/mato_grosso.json").exists()
    assert {request.path for request in fake.asked} == {"/odata/v1/Products"}
    others = [{key: value for key, value in request.query.items() if key != "$filter"} for request in fake.asked]
    assert others == [{"$orderby": ["ContentDate/Start asc"], "$top": ["1000"], "$expand": ["Attributes"]}] * 24
    asked = [request.query["$filter"][0] for request in fake.asked]
    (polygon,) = {re.search(r"POLYGON\(\(.*?\)\)", text)[0] for text in asked}
    found = shapely.from_wkt(polygon)
    assert found.covers(read_area(AREA)) and len(found.exterior.coords) <= 41
    first_days = [f"2018-{month:02d}-01" for month in range(1, 13)] + ["2019-01-01"]
    months = list(pairwise(first_days))
    assert asked == [documented(sensor, polygon, *month) for sensor in ("SENTINEL-1", "SENTINEL-2") for month in months]


def documented(collection, polygon, first_day, next_day):
    """The $filter of a month, as the documentation of the catalogue writes it."""
    of_sensor = {
        "SENTINEL-1": [("String", "productType", "eq 'IW_GRDH_1S'"), ("String", "orbitDirection", "eq 'DESCENDING'")],
        "SENTINEL-2": [("String", "productType", "eq 'S2MSI2A'"), ("Double", "cloudCover", "le 60.0")],
    }
    attributes = [
        f"Attributes/OData.CSC.{kind}Attribute/any(att:att/Name eq '{name}' and "
        f"att/OData.CSC.{kind}Attribute/Value {wanted})"
        for kind, name, wanted in of_sensor[collection]
    ]
    words = [
        f"Collection/Name eq '{collection}'",
        f"OData.CSC.Intersects(area=geography'SRID=4326;{polygon}')",
        f"ContentDate/Start ge {first_day}T00:00:00.000Z",
        f"ContentDate/Start lt {next_day}T00:00:00.000Z",
    ]
    return " and ".join(words + attributes)


@pytest.fixture
def nobody(folder, monkeypatch):
    """An environment without any account."""
    for name in ("CDSE_USERNAME", "CDSE_PASSWORD", "CDSE_S3_ACCESS", "CDSE_S3_SECRET", "CLMS_SERVICE_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))  # no .netrc


@pytest.mark.parametrize("entry", ["", "machine identity.dataspace.copernicus.eu login me"])
@pytest.mark.parametrize("target", ["maps/mato_grosso.tif", "plans/mato_grosso.txt"])
def test_a_run_without_an_account_stops_before_all_jobs(folder, shipped, nobody, target, entry):
    (folder / ".netrc").write_text(entry)
    done = run_snakemake(folder, shipped, f"results/{target}")
    words = "aois.mato_grosso: provider cdse has no account to download with: register at https://dataspace"
    assert done.returncode and f"covermap: {words}" in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "results").exists() and not (folder / "resources/labels").exists()


def test_a_job_that_fetches_nothing_needs_no_account(folder, shipped, nobody):
    area = shipped["aois"]["klingenberg_2016"]
    outline = box(*area["area"])
    (folder / "resources/labels").mkdir()
    geopandas.GeoDataFrame({"ATKIS_mod": [1]}, geometry=[outline], crs=4326).to_file(folder / area["labels"]["path"])
    block = next(iter(area_blocks(outline, area["crs"], area["block_pixels"])))
    done = run_snakemake(folder, shipped, f"results/labels/klingenberg_2016/{block}.tif")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["plans/{}.txt", "scenes/{}.json"])
@pytest.mark.parametrize("aoi", ["klingenberg_2016", "paris"])
def test_a_search_needs_no_labels_and_no_key_of_theirs(folder, shipped, nobody, monkeypatch, aoi, target):
    """Asked for them, the run would stop before the search, which a catalogue without scenes ends."""
    (folder / "items.json").write_text('{"type": "FeatureCollection", "features": []}')
    shipped["aois"][aoi]["provider"] = {"name": "stac", "catalog": "items.json"}
    done = run_snakemake(folder, shipped, f"results/{target.format(aoi)}")
    assert "provider stac has no sentinel2 scene of the area" in done.stderr
    assert "MissingInputException" not in done.stderr and "covermap: aois" not in done.stderr


def test_the_outline_of_mato_grosso_has_its_area():
    outline = read_area(AREA)
    area_km2 = abs(Geod(ellps="WGS84").geometry_area_perimeter(outline)[0]) / 1e6
    assert area_km2 == pytest.approx(903_207, rel=0.01)  # IBGE
