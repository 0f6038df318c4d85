"""Real Sentinel-2: offsets of four baselines, and two scenes that Earth Search shifted already."""

import json
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform as transform_points
from scipy.ndimage import map_coordinates, maximum_filter, minimum_filter

from covermap.area_settings import Composite, Masks, Period, Sentinel2
from covermap.errors import ProductError
from covermap.grid import Grid
from covermap.masks import clear_mask
from covermap.sentinel2 import clip_s2, open_product
from covermap.sentinel2.safe import read_metadata
from covermap.stack import read_stack, stack_block

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SAFES = DATA / "s2_safe_metadata"
SCENES = DATA / "s2_l2a"
ASSETS = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "scl": "SCL"}
SETTINGS = Sentinel2(bands=("B02", "B03", "B04", "B08"))
LEFT, TOP, PIXEL_M = 499980, 5200020, 120  # of T33TWM as it is kept here


def absent(folder: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not folder.exists(), reason=f"real data are absent: {folder}")


@absent(SAFES)
@pytest.mark.parametrize("number", range(4))
def test_offsets_of_real_metadata(number):
    safe = sorted(SAFES.glob("*.SAFE"))[number]
    item = json.loads((safe / "expected_output.json").read_text())
    numbers, images, baseline, name = read_metadata((safe / "MTD_MSIL2A.xml").read_bytes(), safe.name)
    compared = 0
    for asset in item["assets"].values():
        if len(asset.get("eo:bands", ())) == 1:
            offset, quantification = numbers[asset["eo:bands"][0]["name"]]
            (declared,) = asset["raster:bands"]
            assert (1 / quantification, offset / quantification) == (declared["scale"], declared["offset"])
            assert str(Path(asset["href"]).with_suffix("")) in images
            compared += 1
    assert compared > 20
    assert baseline == item["properties"]["s2:processing_baseline"]
    assert name == safe.name.removeprefix("esa_")
    scene = open_product(safe)
    assert scene.bands == {}  # the trees hold no images
    assert len(scene.absent) == 13


@absent(SAFES)
def test_real_metadata_in_the_folder_of_another_product_are_refused(tmp_path):
    standard = [safe for safe in sorted(SAFES.glob("*.SAFE")) if safe.name.startswith("S2")]
    for one, other in pairwise(standard):
        (tmp_path / one.name).mkdir()
        (tmp_path / one.name / "MTD_MSIL2A.xml").write_bytes((other / "MTD_MSIL2A.xml").read_bytes())
        with pytest.raises(ProductError, match=f"MTD_MSIL2A.xml is of product {other.name}: expected"):
            open_product(tmp_path / one.name)
    with pytest.raises(ProductError, match="expected one product"):
        open_product(SAFES)


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> list[tuple[Path, dict]]:
    """Both scenes as zips with the item and its local rasters."""
    folder = tmp_path_factory.mktemp("twm")
    made = []
    for scene in sorted(SCENES.iterdir()):
        item = json.loads((scene / f"{scene.name}.json").read_text())
        with zipfile.ZipFile(folder / f"{scene.name}.zip", "w") as archive:
            archive.writestr("item.json", json.dumps(item))
            for band in ASSETS.values():
                archive.write(scene / f"{band}.tif", f"{band}.tif")
        made.append((folder / f"{scene.name}.zip", item))
    return made


def kept(item: dict, band: str) -> np.ndarray:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(SCENES / item["id"] / f"{band}.tif") as r:
        return r.read(1)


@absent(SCENES)
def test_real_scenes_are_copied_and_no_offset_is_applied_twice(tmp_path, products):
    """The items declare an offset of -0.1, and that it is in the pixels already."""
    grid = Grid(crs="EPSG:32633", left=LEFT + 54000, top=TOP - 48000, width=240, height=120)
    row, column = 400, 450
    for product, item in products:
        assert item["properties"]["earthsearch:boa_offset_applied"] is True
        assert item["assets"]["blue"]["raster:bands"][0]["offset"] == -0.1
        clip_s2(product, tmp_path / "clipped.tif", item, grid, SETTINGS, 2)
        with rasterio.open(tmp_path / "clipped.tif") as raster:
            assert raster.tags()["offset"] == "0"
            for band, pixels in zip(raster.descriptions, raster.read(), strict=True):
                dn = kept(item, band)[row : row + 10, column : column + 20]
                assert (pixels == np.kron(dn, np.ones((12, 12), int))).all(), (item["id"], band)


@absent(SCENES)
def test_real_scenes_are_warped_to_another_zone(tmp_path, products):
    (x,), (y,) = transform_points("EPSG:32633", "EPSG:32634", [LEFT + 60000], [TOP - 60000])
    grid = Grid(crs="EPSG:32634", left=round(x / 60) * 60, top=round(y / 60) * 60, width=200, height=200)
    xs = grid.left + 5 + 10 * np.tile(np.arange(200), 200)
    ys = grid.top - 5 - 10 * np.repeat(np.arange(200), 200)
    there = np.array(transform_points("EPSG:32634", "EPSG:32633", xs, ys))
    column, row = (np.array([there[0] - LEFT, TOP - there[1]]) / PIXEL_M).reshape(2, 200, 200)
    inside = (np.abs(row % 1 - 0.5) < 0.49) & (np.abs(column % 1 - 0.5) < 0.49)
    assert inside.mean() > 0.9
    here = row.astype(int), column.astype(int)
    for product, item in products:
        clip_s2(product, tmp_path / "clipped.tif", item, grid, SETTINGS, 2)
        with rasterio.open(tmp_path / "clipped.tif") as raster:
            for band, pixels in zip(raster.descriptions, raster.read(), strict=True):
                dn = kept(item, band).astype(int)
                if band == "SCL":
                    assert (pixels == dn[here])[inside].all(), item["id"]
                    continue
                truth = map_coordinates(dn.astype(float), [row - 0.5, column - 0.5], order=1)
                steep = (maximum_filter(dn, 3) - minimum_filter(dn, 3))[here]
                assert (np.abs(pixels - truth) <= 1 + 0.02 * steep).all(), (item["id"], band)


@absent(SCENES)
def test_two_real_dates_make_a_composite(tmp_path, products):
    """On a lattice of 120 m the composite is the mean of both dates where both are clear, else the clear one."""
    grid = Grid(crs="EPSG:32633", left=LEFT, top=TOP, width=915, height=915, pixel_m=PIXEL_M)
    scenes = []
    for product, item in products:
        scenes.append(tmp_path / f"{item['id']}.tif")
        clip_s2(product, scenes[-1], item, grid, SETTINGS, 2)
    stack = tmp_path / "x0y0.zarr.zip"
    masks, period = Masks(dilate_m=0, unmask_from=1), Period(start="2023-08-01", end="2023-08-31")
    stack_block([], scenes, stack, grid, period, ("sentinel2",), SETTINGS.bands, (), masks, Composite())
    got = read_stack(stack, slice(0, 915), slice(0, 915))
    scl = np.stack([kept(item, "SCL") for _, item in products])
    red = np.stack([kept(item, "B04") for _, item in products]).astype(int)
    seen = np.stack([np.all([kept(item, band) > 0 for band in SETTINGS.bands], 0) for _, item in products])
    clear = seen & ~np.isin(scl, (*masks.classes, 12))  # two pixels of this lossy copy are 12
    assert (clear.sum(0) == got["clear"][0]).all()
    both, one = clear.all(0), clear.sum(0) == 1
    assert both.mean() > 0.15
    assert one.mean() > 0.5
    assert (got["s2"][0, 2] == (red.sum(0) + 1) // 2)[both].all()
    assert (got["s2"][0, 2] == (red * clear).sum(0))[one].all()
    overruled = got["unmasked"][0] == 1
    assert (overruled <= (got["clear"][0] == 0)).all()  # of two observations both are masked
    twice = overruled & (seen & (scl > 1) & (scl < 12)).all(0)
    assert twice.sum() > 3900
    assert (got["s2"][0, 2] == (red.sum(0) + 1) // 2)[twice].all()


@absent(SCENES)
def test_a_grown_mask_takes_the_rims_of_real_clouds(products):
    """The clear date tells what lies below the other's clouds; figures of docs/masks.md."""
    clear_date, cloudy_date = (item for _, item in products)
    scl, classes = kept(cloudy_date, "SCL"), Masks().classes
    blue, ground = (kept(item, "B02").astype(int) for item in (cloudy_date, clear_date))
    known = clear_mask(kept(clear_date, "SCL"), classes, 2) & (scl > 0) & (blue > 0) & (ground > 0)
    known &= kept(clear_date, "SCL") != 6
    brighter = blue - ground
    brighter -= int(np.median(brighter[known & clear_mask(scl, classes, 5)]))
    masked, bright = {}, {}
    for dilation, erosion in ((0, 0), (1, 0), (2, 0), (0, 1)):
        clear = known & clear_mask(scl, classes, dilation, erosion)
        masked[dilation, erosion] = 1 - clear.sum() / known.sum()
        bright[dilation, erosion] = (brighter[clear] > 500).mean()
    assert [round(share, 3) for share in masked.values()] == [0.778, 0.894, 0.938, 0.739]
    assert [round(share, 3) for share in bright.values()] == [0.195, 0.094, 0.059, 0.213]
