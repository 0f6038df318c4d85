"""Calibration, noise and the Lee filter against other tools and against the tables of real products by hand.

Orfeo ToolBox is a package of the system, not of Python: where it is absent these tests fail and say so.
"""

from __future__ import annotations

import shutil
import subprocess
import warnings
from bisect import bisect_right
from pathlib import Path

import numpy as np
import pytest
import rasterio
from defusedxml.ElementTree import parse
from rasterio.windows import Window

from covermap.sentinel1 import radiometry, safe, speckle

PRODUCTS = {"S1B": ("VV",), "S1A": ("VV", "VH")}
IMAGES = [(mission, polarisation) for mission, names in PRODUCTS.items() for polarisation in names]
LINES, SAMPLES = 120, 400
LOOKS = 4.4

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(params=IMAGES, ids="-".join)
def real(request: pytest.FixtureRequest, data: Path) -> tuple[safe.Archive, safe.Image]:
    """A real product and the annotation of one of its images."""
    mission, polarisation = request.param
    (product,) = (data / "s1_grd").glob(f"{mission}_*.SAFE")
    archive = safe.open_product(product)
    return archive, safe.images(archive)[polarisation]


def parts(image: safe.Image) -> list[Window]:
    """Both ends of the image, the border of two swaths, and its middle."""
    corners = [
        (0, 0),
        (image.lines - LINES, image.samples - SAMPLES),
        (image.lines // 2, 8700),
        (1000, image.samples // 2),
    ]
    return [Window(column, row, SAMPLES, LINES) for row, column in corners]


def numbers_of(window: Window) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(LINES) + window.row_off, np.arange(SAMPLES) + window.col_off


def orfeo(application: str, *arguments: object) -> None:
    """Run an application of Orfeo ToolBox."""
    if shutil.which(application) is None:
        pytest.fail(f"{application} is absent: apt-get install --no-install-recommends otb-bin")
    done = subprocess.run([application, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read(1)


def write(path: Path, image: np.ndarray) -> None:
    size = {"height": image.shape[0], "width": image.shape[1], "count": 1, "dtype": image.dtype.name}
    with rasterio.open(path, "w", driver="GTiff", **size) as raster:
        raster.write(image, 1)


# ---- calibration ----


@pytest.mark.parametrize("table", ["sigmaNought", "betaNought", "gamma"])
def test_calibration_is_that_of_xarray_sentinel(real, table):
    import xarray as xr
    from xarray_sentinel import sentinel1

    archive, image = real
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy.fromstring in the peer
        peer = sentinel1.open_calibration_dataset(
            archive.path / f"annotation/calibration/calibration-{image.name}.xml"
        )[table]
    vectors = safe.calibration(archive, image, table)
    for window in parts(image):
        line, pixel = numbers_of(window)
        dn = np.random.default_rng(1).integers(100, 2000, (LINES, SAMPLES)).astype(np.uint16)
        numbers = xr.DataArray(dn.astype(float), coords={"line": line, "pixel": pixel}, dims=("line", "pixel"))
        expected = sentinel1.calibrate_intensity(numbers, peer).to_numpy()
        lut = radiometry.calibration_lut(vectors, line * image.line_interval_s, pixel)
        known = np.isfinite(expected)  # the peer knows nothing beyond the outermost vectors
        assert known.mean() > 0.9
        np.testing.assert_allclose(radiometry.backscatter(dn, 0.0, lut)[known], expected[known], rtol=1e-6)


@pytest.mark.parametrize("removed", [False, True], ids=["noise_kept", "noise_removed"])
def test_calibration_is_that_of_orfeo(real, removed, tmp_path):
    archive, image = real
    product = tmp_path / archive.path.name
    shutil.copytree(archive.path, product, ignore=shutil.ignore_patterns("*.tiff"))
    (product / "measurement").mkdir(exist_ok=True)
    measurement = product / f"measurement/{image.name}.tiff"
    dn = np.random.default_rng(0).integers(100, 2000, (LINES, SAMPLES)).astype(np.uint16)
    with rasterio.open(
        measurement,
        "w",
        driver="GTiff",
        width=image.samples,
        height=image.lines,
        count=1,
        dtype="uint16",
        tiled=True,
        sparse_ok=True,
    ) as raster:
        raster.update_tags(TIFFTAG_IMAGEDESCRIPTION=f"Sentinel-1{image.name[2].upper()} IW GRD HR L1")
        for window in parts(image):
            raster.write(dn, 1, window=window)
    vectors, noise = safe.calibration(archive, image, "sigmaNought"), safe.noise(archive, image)
    for window in parts(image):
        box = f"{window.col_off}:{window.row_off}:{SAMPLES}:{LINES}"
        switch = str(removed).lower()
        output = tmp_path / "calibrated.tif"
        orfeo(
            "otbcli_SARCalibration", "-in", measurement, "-out", f"{output}?&box={box}", "double",
            "-lut", "sigma", "-removenoise", switch,
        )  # fmt: skip
        line, pixel = numbers_of(window)
        lut = radiometry.calibration_lut(vectors, line * image.line_interval_s, pixel)
        level = radiometry.noise_power(noise, line, pixel, image.line_interval_s) if removed else 0.0
        error = np.abs(radiometry.backscatter(dn, level, lut) - read(output))
        assert (error / (dn / lut) ** 2).max() < 1e-6  # of the power before the noise is removed


# ---- thermal noise ----


def by_hand(path: Path, image: safe.Image, line: int, pixel: int) -> float:
    """Noise at one pixel from the file's own numbers, one plain interpolation after the other."""
    root = parse(path).getroot()

    def texts(element: object, tag: str) -> list[float]:
        return [float(word) for word in element.findtext(tag).split()]  # type: ignore[attr-defined]

    def interpolated(at: float, positions: list[float], values: list[float]) -> float:
        if len(positions) == 1 or at <= positions[0]:
            return values[0]
        if at >= positions[-1]:
            return values[-1]
        k = bisect_right(positions, at) - 1
        weight = (at - positions[k]) / (positions[k + 1] - positions[k])
        return values[k] * (1 - weight) + values[k + 1] * weight

    vectors = root.findall("noiseRangeVectorList/noiseRangeVector")
    times = [
        (np.datetime64(vector.findtext("azimuthTime")) - image.first_line) / np.timedelta64(1, "s")
        for vector in vectors
    ]
    profile = [interpolated(pixel, texts(vector, "pixel"), texts(vector, "noiseRangeLut")) for vector in vectors]
    along_range = interpolated(line * image.line_interval_s, times, profile)
    for block in root.findall("noiseAzimuthVectorList/noiseAzimuthVector"):
        first_line, last_line, first_sample, last_sample = (
            int(block.findtext(tag))
            for tag in ("firstAzimuthLine", "lastAzimuthLine", "firstRangeSample", "lastRangeSample")
        )
        if first_line <= line <= last_line and first_sample <= pixel <= last_sample:
            return along_range * interpolated(line, texts(block, "line"), texts(block, "noiseAzimuthLut"))
    return 0.0


def test_noise_is_that_of_the_tables_by_hand(real):
    archive, image = real
    noise = safe.noise(archive, image)
    path = archive.path / f"annotation/calibration/noise-{image.name}.xml"
    border = noise.blocks[0].last_sample
    lines = [0, 1, 663, 8000, image.lines - 2, image.lines - 1]  # the last come after the last range vector
    pixels = [41, 5003, border, border + 1, 25003, image.samples - 101]  # the last is zero
    for line in lines:
        got = radiometry.noise_power(noise, np.array([line]), np.arange(image.samples), image.line_interval_s)[0]
        for pixel in pixels:
            assert got[pixel] == pytest.approx(by_hand(path, image, line, pixel), rel=1e-6)
        assert (got[:25800] > 0).all()


# ---- speckle ----


@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize("scene", ["S1A*_db.tif", "S1_2018*.tif", "stripes"])
def test_lee_is_that_of_orfeo_in_the_interior(scene, radius, data, tmp_path):
    if scene == "stripes":
        power = np.where(np.arange(300) // 40 % 2, 0.05, 1) * np.random.default_rng(2).gamma(
            LOOKS, 1 / LOOKS, (300, 300)
        )
    else:
        (path,) = (data / "s1_backscatter").glob(scene)
        power = 10 ** (read(path) / 10)
    power = power.astype(np.float32)
    assert np.isfinite(power).all() and power.min() > 0
    write(tmp_path / "power.tif", power)
    lee = ("-filter", "lee", "-filter.lee.rad", radius, "-filter.lee.nblooks", LOOKS)
    orfeo("otbcli_Despeckle", "-in", tmp_path / "power.tif", "-out", tmp_path / "lee.tif", "double", *lee)
    inside = np.s_[radius:-radius, radius:-radius]
    got = speckle.lee(power, 2 * radius + 1, LOOKS)
    np.testing.assert_allclose(got[inside], read(tmp_path / "lee.tif")[inside], rtol=1e-6)
