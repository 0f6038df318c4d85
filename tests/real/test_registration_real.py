"""Real ground: two dates of one Sentinel-2 tile, and Sentinel-1 backscatter, moved by known amounts."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from covermap.area_settings import Masks
from covermap.masks import clear_mask
from covermap.registration import combined, moved, patch_places, patch_shift

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SCENES = DATA / "s2_l2a"
RADAR = DATA / "s1_backscatter" / "S1A__IW___A_20150309T173017_VV_grd_mli_geo_norm_db.tif"
CLEAR, CLOUDY = "S2A_33TWM_20230815_0_L2A", "S2B_33TWM_20230810_0_L2A"
SHIFTS = [(0.4, -1.3), (2.5, 0.25), (-0.1, 0.1)]

pytestmark = [
    pytest.mark.skipif(not DATA.exists(), reason=f"real data are absent: {DATA}"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]


def read(path):
    with rasterio.open(path) as raster:
        return raster.read(1)


def clear_reflectance(scene, band):
    scl = read(SCENES / scene / "SCL.tif")
    values = read(SCENES / scene / f"{band}.tif").astype(np.float32)
    clear = clear_mask(np.where(scl > 11, 1, scl).astype(np.uint8), Masks().classes, 1)
    return np.where(clear, values, np.nan)


def shift_between(image, reference, side=128):
    places = patch_places(*image.shape, side, 64)
    parts = [np.s_[row : row + side, column : column + side] for row, column in places]
    found = [patch_shift(image[part], reference[part], 4) for part in parts]
    return combined([shift for shift in found if shift is not None])


@pytest.mark.parametrize("band", ["B02", "B08"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_real_band_is_found_where_it_was_moved_to(band, shift):
    image = clear_reflectance(CLEAR, band)
    found = shift_between(moved(image[None], *shift, nodata=np.nan)[0], image)
    assert found[:2] == pytest.approx(shift, abs=0.05) and found.trusted and found.patches > 40


@pytest.mark.parametrize("shift", [(0, 0), *SHIFTS])
def test_real_dates_lie_on_one_another_under_clouds(shift):
    """80 % of the other date is cloudy; both products lie within 0.1 px of 120 m of one another."""
    other = clear_reflectance(CLOUDY, "B08")
    found = shift_between(moved(clear_reflectance(CLEAR, "B08")[None], *shift, nodata=np.nan)[0], other)
    assert found[:2] == pytest.approx(shift, abs=0.15) and found.trusted


@pytest.mark.parametrize("shift", SHIFTS)
def test_real_backscatter_is_found_where_it_was_moved_to(shift):
    decibels = read(RADAR)
    power = np.where(decibels == -99, np.nan, 10 ** (decibels / 10))
    displaced = moved(power[None], *shift, nodata=np.nan)[0]
    images = [10 * np.log10(np.maximum(each, 1e-4)) for each in (displaced, power)]
    found = shift_between(*images, side=64)
    assert found[:2] == pytest.approx(shift, abs=0.05) and found.trusted
