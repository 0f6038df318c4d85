"""Shorelines of real lakes and rivers: what a cloudy second date must not exclude."""

import csv

import numpy as np
import pytest
import rasterio

from covermap.area_settings import Composite, Masks, Period
from covermap.grid import Grid
from covermap.raster import read_window, write_raster
from covermap.shoreline import find_shoreline, mask_shoreline, sweep_shoreline

from ..conftest import DATA

SCENES = DATA / "s2_l2a"
DATES = {"S2A_33TWM_20230815_0_L2A": "2023-08-15", "S2B_33TWM_20230810_0_L2A": "2023-08-10"}  # clear, very cloudy
GRID = Grid(crs="EPSG:32633", left=499980, top=5200020, width=915, height=915, pixel_m=120)
WATER = 1

pytestmark = pytest.mark.skipif(not SCENES.exists(), reason=f"real data are absent: {SCENES}")


def kept(scene: str, band: str) -> np.ndarray:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(SCENES / scene / f"{band}.tif") as raster:
        return raster.read(1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Both scenes, and labels that say water where the scene classification of the clear date does."""
    folder = tmp_path_factory.mktemp("lakes")
    scenes = []
    for scene, day in DATES.items():
        bands = np.stack([kept(scene, band) for band in ("B03", "B08", "SCL")]).astype(np.uint16)
        scenes.append(folder / f"{scene}.tif")
        tags = {"datetime": f"{day}T10:00:00Z", "platform": scene[:3]}
        write_raster(scenes[-1], bands, GRID, nodata=0, descriptions=("B03", "B08", "SCL"), tags=tags)
    water = (kept(next(iter(DATES)), "SCL") == 6).astype(np.uint8)
    labels = folder / "labels.tif"
    write_raster(labels, np.stack([water, 100 * water]), GRID, nodata=None, descriptions=("class", "weight"))
    return folder, labels, scenes


def excluded(world, scenes, masks, name):
    """Share of the labelled water that is excluded, and the raster of the lowest NDWI."""
    folder, labels, _ = world
    period, lowest = Period(start="2023-08-01", end="2023-08-31"), folder / f"{name}.ndwi.tif"
    masked = folder / f"{name}.tif"
    find_shoreline(labels, scenes, lowest, GRID, period, (WATER,), masks, Composite())
    mask_shoreline(labels, lowest, masked, GRID, (WATER,), 0.0)
    before, after = (read_window(path, GRID, fill=0)[0] for path in (labels, masked))
    assert ((after == 255) <= (before == WATER)).all()
    return (after == 255).sum() / (before == WATER).sum(), lowest


def test_clouds_do_not_exclude_lakes(world):
    """A cloud has an NDWI about 0: without masks one cloudy date excludes three times as much as the clear one."""
    _, _, scenes = world
    clear_date, _ = excluded(world, scenes[:1], Masks(dilate_m=120), "one")
    both, _ = excluded(world, scenes, Masks(dilate_m=120), "both")
    unmasked, _ = excluded(world, scenes, Masks(classes=(), dilate_m=0), "unmasked")
    assert clear_date <= both < clear_date + 0.01
    assert 0.1 < both < 0.2
    assert unmasked > 0.5


def test_without_masks_the_rule_is_that_of_the_paper(world):
    folder, labels, scenes = world
    excluded(world, scenes, Masks(classes=(), dilate_m=0), "unmasked")
    green, near_infrared = (np.stack([kept(scene, band).astype(float) for scene in DATES]) for band in ("B03", "B08"))
    seen = np.stack([kept(scene, "SCL") for scene in DATES]) > 0
    assert (green[seen] > 0).mean() > 0.999
    total = green + near_infrared
    index = np.divide(green - near_infrared, total, out=np.ones_like(total), where=seen & (green * near_infrared > 0))
    expected = (read_window(labels, GRID, fill=0)[0] == WATER) & (index < 0).any(0)
    after = read_window(folder / "unmasked.tif", GRID, fill=0)[0]
    assert ((after == 255) == expected).all()


def test_the_sweep_of_real_water_rises_with_the_threshold(world):
    folder, _, scenes = world
    share, lowest = excluded(world, scenes, Masks(dilate_m=120), "both")
    table = folder / "real.csv"
    sweep_shoreline([lowest], table, folder / "real.svg", "real", 0.0, (-0.6, -0.4, -0.2, 0.2, 0.4, 0.6))
    with open(table, newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    areas = [row["excluded_ha"] for row in rows]
    assert areas == sorted(areas) and areas[0] < 0.01 * rows[0]["water_ha"] < 0.5 * areas[-1]
    labelled_ha = 2474 * 1.44
    assert rows[3]["excluded_ha"] == pytest.approx(share * labelled_ha)
    assert rows[0]["water_ha"] < labelled_ha
