"""One run from products to report over a small world, and what it left."""

import json
import re
import subprocess
import sys
import zipfile
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.features import geometry_mask
from rio_cogeo.cogeo import cog_validate
from scipy import ndimage

from covermap.area_settings import Provider
from covermap.config import load
from covermap.grid import area_blocks, area_grid, project, read_area
from covermap.simulator.backscatter import backscatter, slope_factor
from covermap.simulator.landscape import make_landscape
from covermap.simulator.viewing import acquire

from ..conftest import PIXELS, ROOT, run_snakemake, small_settings


def test_lint_is_clean():
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shipped_configuration_plans_the_demo(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--forceall", "results/maps/demo.tif"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for rule in ("simulate_demo", "search_scenes", "stack_block", "train", "predict_block", "mosaic"):
        assert re.search(rf"^{rule}\s+\d+$", done.stdout, re.MULTILINE)


@pytest.fixture(scope="module")
def settings(small_world):
    return load(small_settings(small_world))


def test_the_map_is_a_valid_cog_with_colours_and_full_coverage(small_world, settings):
    path = small_world / "results/maps/demo.tif"
    valid, errors, warnings = cog_validate(path, strict=True, quiet=True)
    assert valid, (errors, warnings)
    with rasterio.open(path) as raster:
        assert (raster.count, raster.dtypes[0], raster.nodata) == (1, "uint8", 0)
        assert raster.crs.to_string() == settings.aois["demo"].crs
        values, colours = raster.read(1), raster.colormap(1)
        outline = project(read_area(small_world / "area.geojson"), "EPSG:4326", raster.crs.to_string())
        inside = geometry_mask([outline], values.shape, raster.transform, invert=True)
    assert len({colours[value][:3] for value in np.unique(values[inside])}) == len(np.unique(values[inside]))
    assert (values[inside] > 0).all()
    assert not values[~inside].any()
    assert (small_world / "results/maps/demo.qml").exists()


def test_confidence_lies_beside_the_map(small_world):
    path = small_world / "results/maps/demo.confidence.tif"
    assert cog_validate(path, strict=True, quiet=True)[0]
    with rasterio.open(path) as raster, rasterio.open(small_world / "results/maps/demo.tif") as classes:
        assert raster.bounds == classes.bounds
        confidence, mapped = raster.read(1), classes.read(1) > 0
    assert (confidence[mapped] <= 100).all() and (confidence[~mapped] == 255).all()
    assert 20 < confidence[mapped].mean() <= 100


def test_agreement_and_accuracy_are_written(small_world):
    figures = json.loads((small_world / "results/accuracy/demo/unet_demo.json").read_text())
    assert figures["held_out"]["pixels"] > 0
    for name in ("map", "label", "baseline"):
        assert 0.3 < figures["reference"][name]["overall"] <= 1


def test_the_report_stands_alone(small_world):
    page = (small_world / "results/reports/demo.html").read_text()
    assert "<h1>Demo</h1>" in page
    assert "Forest formation" in page and "never evidence of accuracy" in page
    assert not re.search(r"""(?:src|href)=["']https?:""", page)


def test_nothing_temporary_is_left(small_world):
    assert not [path for path in (small_world / "results").rglob("*") if path.name.startswith(".")]
    assert not list((small_world / "resources/scenes").rglob("*.zip"))


def test_a_second_run_does_nothing(small_world):
    done = run_snakemake(small_world, small_settings(small_world), "-n")
    assert "Nothing to be done" in done.stdout + done.stderr


AFTER_TRAINING = {"train", "calibrate", "predict_block", "mosaic", "describe_map", "evaluate", "report", "all"}


@pytest.mark.parametrize(
    ("path", "value", "reruns"),
    [
        ("models/unet_demo/training/epochs", 9, AFTER_TRAINING),
        ("models/unet_demo/prediction/overlap", 0.25, AFTER_TRAINING - {"train", "calibrate"}),
        (
            "aois/demo/masks/dilate_m",
            100,
            AFTER_TRAINING | {"stack_block", "pack_tiles", "map_baseline", "reference_block", "check_scene"},
        ),
        (
            "models/unet_demo/tiles/max_cloud",
            50,
            AFTER_TRAINING | {"index_tiles", "pack_tiles", "survey_split", "map_baseline"},
        ),
        (
            "aois/demo/labels/shoreline",
            {"water": ["water"]},
            AFTER_TRAINING
            | {"find_shoreline", "mask_shoreline", "sweep_shoreline", "index_tiles", "pack_tiles", "survey_split"}
            | {"map_baseline"},
        ),
    ],
)
def test_an_edit_reruns_what_depends_on_it(small_world, path, value, reruns):
    settings = small_settings(small_world)
    place = settings
    *parents, last = path.split("/")
    for name in parents:
        place = place[name]
    place[last] = value
    done = run_snakemake(small_world, settings, "-n", "--quiet", "rules")
    assert set(re.findall(r"^(\w+)\s+\d+$", done.stdout, re.MULTILINE)) - {"total"} == reruns


def test_radar_scenes_lie_where_the_land_is(small_world):
    """The terrain correction puts pixels back in place: cross-correlation with the land rendered from the truth."""
    landscape = make_landscape(PIXELS, 1)
    scenes = sorted((small_world / "results/s1/demo").glob("*.tif"))
    assert len(scenes) == 5
    for path in scenes:
        with rasterio.open(path) as raster:
            processed = raster.read()
            tags, bounds = raster.tags(), raster.bounds
        day = date.fromisoformat(tags["datetime"][:10])
        rendered = backscatter(landscape, day, 1) * slope_factor(acquire(landscape, day, 1), landscape)
        row, column = round((landscape.top - bounds.top) / 10), round((bounds.left - landscape.left) / 10)
        place = np.s_[row : row + processed.shape[1], column : column + processed.shape[2]]
        for band, expected in zip(processed[:2], (rendered.real, rendered.imag), strict=True):
            shift = displacement(band, expected[place])
            assert np.hypot(*shift) < 0.2, (path.name, shift)


def displacement(image, expected):
    """Rows and columns by which ``image`` is displaced: the peak of the cross-correlation of log power."""
    usable = np.isfinite(image)
    pair = []
    for power in (image, expected):
        log = np.log(np.clip(np.where(usable, power, np.nan), 1e-4, 10))
        log = np.where(np.isfinite(log), log - np.nanmean(log), 0)
        pair.append(ndimage.gaussian_filter(log, 1.0))
    spectra = [np.fft.rfft2(layer * np.hanning(len(layer))[:, None] * np.hanning(layer.shape[1])) for layer in pair]
    correlation = np.fft.fftshift(np.fft.irfft2(spectra[0] * spectra[1].conj(), pair[0].shape))
    row, column = np.unravel_index(correlation.argmax(), correlation.shape)
    shift = []
    for line, place in (
        (correlation[row - 1 : row + 2, column], row),
        (correlation[row, column - 1 : column + 2], column),
    ):
        curvature = line[0] - 2 * line[1] + line[2]
        shift.append(place + 0.5 * (line[0] - line[2]) / curvature)
    return np.array(shift) - np.array(correlation.shape) // 2


def test_the_displacement_of_a_known_shift_is_found():
    land = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(200, 200)), 3)
    power = np.exp(land / land.std())
    moved = np.exp(ndimage.shift(np.log(power), (0.4, -1.3), order=3, mode="wrap"))
    np.testing.assert_allclose(displacement(moved, power), (0.4, -1.3), atol=0.05)


def test_products_are_packed_whole(small_world, settings, tmp_path):
    """The downloaded zip is stored, not compressed, so that rasters are read in place."""
    from covermap.download import download_scene
    from covermap.scenes import read_listing

    name, item = next(iter(read_listing(small_world / "results/scenes/demo.json").items()))
    href = item["assets"]["product"]["href"]
    item = {**item, "assets": {"product": {**item["assets"]["product"], "href": str(small_world / href)}}}
    grid = area_grid(read_area(small_world / "area.geojson"), settings.aois["demo"].crs)
    download_scene(tmp_path / f"{name}.zip", item, Provider(name="demo"), ("VV",), grid)
    with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
        members = archive.infolist()
        assert all(member.compress_type == zipfile.ZIP_STORED for member in members)
        assert {Path(member.filename).parts[0] for member in members} == {f"{name}.SAFE"}


def test_blocks_of_the_small_world_are_four(settings, small_world):
    aoi = settings.aois["demo"]
    area = read_area(small_world / "area.geojson")
    assert len(area_blocks(area, aoi.crs, aoi.block_pixels)) == 4
    assert area_grid(area, aoi.crs).width % 6 == 0
