"""Real maps of labels: CORINE of Malta in three years and containers, the fields of Slovenia."""

import json

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from shapely.geometry import shape

from covermap.grid import Grid
from covermap.label_settings import Polygons
from covermap.labels import from_raster, from_vector
from covermap.legend import read_legend
from covermap.weak import near_borders
from tests.conftest import ROOT

MALTA = Grid(crs="EPSG:32633", left=422_400, top=3_998_400, width=4800, height=4200)
PARA = Grid(crs="EPSG:32721", left=187_020, top=9_786_000, width=2_048, height=2_048)
EDITIONS = {
    "clc2012_mt.gdb.zip": "CODE_12",
    "clc2018_mt.gpkg.zip": "CODE_18",
    "CLC2024_MT.zip": "code_24",
}


@pytest.mark.parametrize("name", EDITIONS)
def test_corine_of_malta(data, name):
    codes = read_legend(ROOT / "resources" / "legends" / "corine_level2.csv").codes
    classes = from_vector(data / "labels" / "clc_malta" / name, MALTA, codes, EDITIONS[name])
    land_km2 = ((classes > 0) & (classes != codes["523"])).sum() / 10_000
    assert land_km2 == pytest.approx(316, abs=4)  # the islands' area
    assert (classes == codes["112"]).sum() / 10_000 == pytest.approx(70, abs=12)
    parts = [from_vector(data / "labels" / "clc_malta" / name, part, codes, EDITIONS[name]) for part in quarters(MALTA)]
    np.testing.assert_array_equal(np.block([parts[:2], parts[2:]]), classes)


def quarters(grid):
    height, width = grid.height // 2, grid.width // 2
    return [grid.window(row, column, height, width) for row in (0, height) for column in (0, width)]


@pytest.mark.parametrize("year", [2018, 2022])
def test_mapbiomas_of_para(data, year):
    """Against GDAL where its projection is exact, in whole and in parts."""
    path, codes = data / "labels" / "mapbiomas" / f"MapBiomas_8_{year}.tif", {str(code): code for code in range(256)}
    with rasterio.open(path) as raster:
        exact = {"tolerance": 1e-6, "transform": PARA.transform, "width": PARA.width, "height": PARA.height}
        with WarpedVRT(raster, crs=PARA.crs, resampling=Resampling.nearest, **exact) as warped:
            theirs = warped.read(1).clip(0).astype(np.uint8)
    ours = from_raster(path, PARA, codes)
    assert (ours != theirs).mean() < 1e-5
    assert (ours > 0).mean() > 0.9 and len(np.unique(ours)) > 5
    parts = [from_raster(path, part, codes) for part in quarters(PARA)]
    np.testing.assert_array_equal(np.block([parts[:2], parts[2:]]), ours)


def test_fields_of_slovenia(data):
    """Against GDAL on the patch's pixels, and against its own raster, away from borders."""
    chip = data / "chips" / "eolearn_slovenia"
    raster = np.load(chip / "mask_timeless" / "LULC.npy")[..., 0]
    left, bottom, _, top = shape(json.loads((chip / "bbox.geojson").read_text())).bounds
    pixel_m = (top - bottom) / len(raster)  # 9.998 m, and across 9.995 m
    grid = Grid(crs="EPSG:32633", left=left, top=top, width=100, height=101, pixel_m=pixel_m)
    path = chip / "vector_timeless" / "LULC.gpkg"
    codes = {str(code): code for code in range(9)}
    for all_touched in (False, True):
        ours = from_vector(path, grid, codes, "LULC_ID", Polygons(all_touched=all_touched))
        frame = geopandas.read_file(path)
        gdal = rasterize(
            zip(frame.geometry, frame.LULC_ID.astype(int), strict=True),
            out_shape=grid.shape,
            transform=grid.transform,
            all_touched=all_touched,
        )
        assert (ours == gdal).mean() > 0.999
        pure = ~near_borders(raster.astype(np.uint8), 1) & (raster > 0)
        assert all_touched or (ours == raster)[pure].mean() > 0.995
