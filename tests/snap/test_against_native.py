"""SNAP and the native chain on one scene, where SNAP is installed: a real product's annotation with made-up pixels.

Both get the same heights, the same orbit and the same settings. What remains, and how much of it is granted here:
half a pixel of the DEM in the place of a height (smooth relief: centimetres), 0.1 m in slant range and the bistatic
term of newer releases (0.2 px in azimuth), the interval that a table is read from at its ends (1e-5), rounding.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.transform import from_origin
from rasterio.windows import Window

from covermap.area_settings import Sentinel1
from covermap.grid import Grid
from covermap.sentinel1 import process_s1, safe
from covermap.sentinel1.gpt import find_snap

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        find_snap() is None,
        reason="SNAP is not installed: no gpt on the PATH or in $SNAP_HOME/bin, no esa_snappy that reaches one",
    ),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]

MIDDLE = 8000, 13000  # line and sample around which the pixels are made
REACH = 800  # lines and samples on either side


@pytest.fixture(scope="module")
def scene(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Grid]:
    """A copy of the product with speckle over fields of three brightnesses and some bright points, a DEM, a grid."""
    folder = tmp_path_factory.mktemp("scene")
    real = next((data / "s1_grd").glob("S1B*.SAFE"))
    product = folder / real.name
    shutil.copytree(real, product, ignore=shutil.ignore_patterns("*.tiff"))
    image = safe.images(safe.open_product(product))["VV"]
    write_pixels(product / f"measurement/{image.name}.tiff", image)
    point = image.grid_points[np.hypot(*(image.grid_points[:, 2:4] - MIDDLE).T).argmin()]
    offset = (MIDDLE - point[2:4]) * 10  # metres along the image, which runs south and west
    longitude, latitude = point[5] - offset[1] / 83_000, point[4] - offset[0] / 111_000
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32633", always_xy=True).transform(longitude, latitude)
    grid = Grid(crs="EPSG:32633", left=x // 60 * 60 - 2520, top=y // 60 * 60 + 2520, width=504, height=504)
    return product, write_relief(folder / "dem.tif", longitude, latitude), grid


def write_pixels(path: Path, image: safe.Image) -> None:
    random = np.random.default_rng(20211223)
    line, sample = np.indices((2 * REACH, 2 * REACH))
    brightness = np.array([250.0, 400.0, 700.0])[(line // 200 + sample // 160) % 3]
    power = brightness**2 * random.gamma(4.4, 1 / 4.4, brightness.shape)
    for row in range(100, 2 * REACH, 200):
        for column in range(100, 2 * REACH, 200):
            power += 4e7 * np.exp(-((line - row) ** 2 + (sample - column) ** 2) / (2 * 1.5**2))
    size = {"width": image.samples, "height": image.lines, "count": 1, "dtype": "uint16"}
    with rasterio.open(path, "w", driver="GTiff", **size) as raster:
        for first in range(0, image.lines, 1024):
            rows = min(1024, image.lines - first)
            around = np.full((rows, image.samples), 300, np.uint16)
            window = Window(0, first, image.samples, rows)
            raster.write(around, 1, window=window)
        made = Window(MIDDLE[1] - REACH, MIDDLE[0] - REACH, 2 * REACH, 2 * REACH)
        raster.write(np.sqrt(power).clip(1, 65535).round().astype(np.uint16), 1, window=made)


def write_relief(path: Path, longitude: float, latitude: float) -> Path:
    """Ellipsoidal heights of 200 to 600 m, of slopes below 5 degrees."""
    left, top, step = longitude - 0.1, latitude + 0.1, 1 / 3600
    rows, columns = np.mgrid[:720, :720]
    heights = 400 + 120 * np.sin(columns / 60) + 80 * np.cos(rows / 50)
    size = {"width": 720, "height": 720, "count": 1, "dtype": "float32", "nodata": -9999}
    transform = from_origin(left, top, step, step)
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:4979", transform=transform, **size) as raster:
        raster.write(heights.astype("float32"), 1)
    return path


def both(
    scene: tuple[Path, Path, Grid], folder: Path, **settings: object
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, str]]]:
    """Bands of both chains where both have data, and their tags."""
    product, dem, grid = scene
    bands, tags = {}, {}
    for processor in ("native", "snap"):
        output = folder / f"{processor}.tif"
        wanted = Sentinel1(processor=processor, polarisations=("VV",), **{"negative_power": "floor", **settings})
        inputs = {"product": product, "dem": dem, "orbit": None}
        process_s1(**inputs, processed=output, item={"id": "rome"}, grid=grid, settings=wanted)
        with rasterio.open(output) as raster:
            assert raster.bounds == grid.bounds
            bands[processor], tags[processor] = raster.read(), raster.tags()
    assert (np.isfinite(bands["native"]) == np.isfinite(bands["snap"])).mean() > 0.999
    return bands, tags


def difference_db(bands: dict[str, np.ndarray]) -> np.ndarray:
    """SNAP less native in dB, away from the rim, where the filter's window and the DEM end."""
    inner = np.s_[0, 20:-20, 20:-20]
    return 10 * np.log10(bands["snap"][inner] / bands["native"][inner])


@pytest.mark.parametrize("convention", ["sigma0", "beta0", "gamma0"])
def test_backscatter_agrees(scene, tmp_path, convention):
    bands, tags = both(scene, tmp_path, convention=convention, speckle_filter="none", layers=[])
    difference = difference_db(bands)
    assert abs(np.nanmean(difference)) < 0.05
    assert np.nanquantile(abs(difference), 0.9) < 1.5
    assert tags["snap"]["convention"] == tags["native"]["convention"] == convention


@pytest.mark.parametrize(("name", "typical_db"), [("lee", 0.2), ("refined_lee", 0.5)])
def test_filtered_backscatter_agrees(scene, tmp_path, name, typical_db):
    bands, _ = both(scene, tmp_path, speckle_filter=name, layers=[])
    difference = difference_db(bands)
    assert abs(np.nanmean(difference)) < 0.05
    assert np.nanmedian(abs(difference)) < typical_db


def test_bright_points_lie_in_the_same_place(scene, tmp_path):
    bands, _ = both(scene, tmp_path, speckle_filter="none", layers=[])
    native, snap = bands["native"][0], bands["snap"][0]
    peaks = native[10:-10, 10:-10]
    order = np.argsort(peaks, axis=None)[::-1]
    found: list[tuple[int, int]] = []
    for row, column in np.stack(np.unravel_index(order[:2000], peaks.shape), axis=1) + 10:
        if all(np.hypot(row - r, column - c) > 30 for r, c in found):
            found.append((row, column))
    assert len(found) >= 4
    for row, column in found:
        here = np.s_[row - 5 : row + 6, column - 5 : column + 6]
        np.testing.assert_allclose(centroid(snap[here]), centroid(native[here]), atol=0.25)


def centroid(power: np.ndarray) -> np.ndarray:
    weight = np.maximum(power - np.median(power), 0)
    return np.array([(weight * axis).sum() / weight.sum() for axis in np.indices(power.shape)])


def test_decibels_are_those_of_the_linear_result(scene, tmp_path):
    bands = {}
    for units in ("linear", "dB"):
        (tmp_path / units).mkdir()
        bands[units], _ = both(scene, tmp_path / units, units=units, layers=[])
    linear, decibels = bands["linear"]["snap"][0], bands["dB"]["snap"][0]
    valid = np.isfinite(linear) & (linear > 1e-3)
    np.testing.assert_allclose(decibels[valid], 10 * np.log10(linear[valid]), atol=0.01)


def test_incidence_angles_agree(scene, tmp_path):
    bands, _ = both(scene, tmp_path, layers=["incidence_angle"])
    assert np.nanmax(abs(bands["snap"][1] - bands["native"][1])) < 0.05
