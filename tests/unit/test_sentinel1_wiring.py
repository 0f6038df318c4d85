"""The step on products whose terrain, processor or polarisations differ: what its parts find reaches the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.transform import from_origin

from covermap.area_settings import Sentinel1
from covermap.grid import Grid
from covermap.sentinel1 import process_s1, radiometry
from covermap.sentinel1.distortion import LAYOVER, SHADOW
from tests.unit.sentinel1_world import (
    GRID,
    INTERVAL_S,
    SAMPLES,
    SIGMA0,
    at,
    height,
    line_and_sample,
    numbers,
    read,
    write_dem,
    write_safe,
    write_tiff,
)

TALL_M = 200.0
TOP = 90  # column of GRID where the ridge ends in a cliff
FOOT = TOP - 20  # column where it starts to rise, by 45 degrees
RIM_LINES, RIM_SAMPLES = 12, 10


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safe(tmp_path_factory.mktemp("product"))


@pytest.fixture(scope="module")
def dem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dem(tmp_path_factory.mktemp("dem") / "dem.tif")


# ---- layover and shadow ----


def write_ridge(path: Path, tall_m: float) -> Path:
    """Level ground to 3 km around the area, and a ridge northwards: it rises towards the east and falls off."""
    around = GRID.padded(300)
    column = np.arange(around.width) - 300
    profile = np.where((column > FOOT) & (column <= TOP), (column - FOOT) / (TOP - FOOT), 0) * tall_m
    heights = np.tile(profile.astype(np.float32), (around.height, 1))
    write_tiff(path, heights, crs=GRID.crs, transform=from_origin(around.left, around.top, 10, 10))
    return path


def distorted(product: Path, dem: Path, folder: Path, grid: Grid = GRID) -> tuple[np.ndarray, float]:
    """Layer ``layover_shadow`` on the grid, 0 where there is no data, and tan of the mean incidence angle."""
    settings = Sentinel1(
        processor="native", geoid=0, speckle_filter="none", layers=("incidence_angle", "layover_shadow")
    )
    process_s1(product, dem, folder / "out.tif", {}, grid, settings)
    pixels, about = read(folder / "out.tif")
    row, column = round((grid.top - about.bounds.top) / 10), round((about.bounds.left - grid.left) / 10)
    layer = np.zeros(grid.shape, np.uint8)
    layer[row : row + pixels.shape[1], column : column + pixels.shape[2]] = np.nan_to_num(pixels[3])
    return layer, float(np.tan(np.radians(np.nanmean(pixels[2]))))


def test_ridge_lies_over_the_ground_towards_the_radar_and_hides_what_is_behind(product, tmp_path):
    mask, slope = distorted(product, write_ridge(tmp_path / "ridge.tif", TALL_M), tmp_path)
    columns = np.arange(GRID.width)
    before, behind = TOP - TALL_M / slope / 10, TOP + TALL_M * slope / 10  # the satellite looks to the east
    for row in mask[60:120]:
        laid_over, hidden = ((row & kind) != 0 for kind in (LAYOVER, SHADOW))
        assert laid_over[(columns > before + 3) & (columns < TOP)].all()
        assert not laid_over[(columns < before - 3) | (columns > TOP + 3)].any()
        assert hidden[(columns > TOP + 1) & (columns < behind - 2)].all()
        assert not hidden[(columns < TOP) | (columns > behind + 3)].any()


def test_level_ground_is_neither_laid_over_nor_hidden(product, tmp_path):
    mask, _ = distorted(product, write_ridge(tmp_path / "level.tif", 0.0), tmp_path)
    assert not mask.any()


@pytest.mark.parametrize(("columns", "kind"), [(slice(10, FOOT - 15), LAYOVER), (slice(TOP + 3, 150), SHADOW)])
def test_ridge_beside_the_area_reaches_into_it(columns, kind, product, tmp_path):
    ridge = write_ridge(tmp_path / "ridge.tif", TALL_M)
    whole, _ = distorted(product, ridge, tmp_path)
    part = GRID.window(60, columns.start, 60, columns.stop - columns.start)
    mask, _ = distorted(product, ridge, tmp_path, part)
    expected = whole[60:120, columns]
    assert (expected == kind).sum() > 60 * 3
    assert (mask != expected).mean() < 0.02  # nodes lie elsewhere: a pixel at the edge may fall to the other side


# ---- border noise ----


def write_old(folder: Path, version: str) -> Path:
    """A product with tables of old processors, whose rim is nearly dark in VV and less so in VH; a dark lake amid."""
    product = write_safe(folder)
    manifest = product / "manifest.safe"
    manifest.write_text(manifest.read_text().replace("003.40", version))
    vectors = "".join(
        f"<noiseVector><azimuthTime>{at(line * INTERVAL_S)}</azimuthTime><line>{line}</line>"
        f"<pixel>0 {SAMPLES - 1}</pixel><noiseLut>{numbers([200, 200])}</noiseLut></noiseVector>"
        for line in (0, 200)
    )
    for path in product.glob("annotation/calibration/noise*"):
        path.write_text(f"<noise><noiseVectorList>{vectors}</noiseVectorList></noise>")
    for path in product.glob("annotation/calibration/calibration*"):
        dn = f"<dn>{numbers([300, 300, 300])}</dn></calibrationVector>"
        path.write_text(path.read_text().replace("</calibrationVector>", dn))
    random = np.random.default_rng(5)
    for path in product.glob("measurement/*.tiff"):
        with rasterio.open(path) as raster:
            dn = raster.read(1)
        rim = np.zeros(dn.shape, bool)
        rim[:RIM_LINES] = rim[:, :RIM_SAMPLES] = True
        low, high = (1, 21) if "-vv-" in path.name else (40, 60)  # the noise's floor is 30
        dn[rim & (dn > 0)] = random.integers(low, high, (rim & (dn > 0)).sum())
        dn[100:140, 80:120] = 9
        write_tiff(path, dn)
    return product


def image_places(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Every fifth pixel of the grid: row, column, line and sample."""
    row, column = (index.ravel() * 5 for index in np.indices((grid.height // 5, grid.width // 5)))
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform(grid.left + 10 * (column + 0.5), grid.top - 10 * (row + 0.5))
    heights = height(longitude, latitude)
    image = np.array([line_and_sample(*one) for one in zip(longitude, latitude, heights, strict=True)])
    return row, column, image[:, 0], image[:, 1]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("polarisations", [("VV", "VH"), ("VH",)])
@pytest.mark.parametrize(
    ("version", "tag"),
    [("002.72", "masked"), ("002.90", "masked by the processor"), ("003.40", "masked by the processor")],
)
def test_border_noise_of_old_processors_is_no_data(version, tag, polarisations, dem, tmp_path, monkeypatch):
    monkeypatch.setattr(radiometry, "BORDER_PIXELS", 60)  # so that the small image has an inner part
    settings = Sentinel1(processor="native", polarisations=polarisations, speckle_filter="none", layers=())
    process_s1(write_old(tmp_path, version), dem, tmp_path / "out.tif", {}, GRID.padded(60), settings)
    power, about = read(tmp_path / "out.tif")
    assert about.tags["border_noise"] == tag
    bounds = about.bounds
    grid = Grid(crs=GRID.crs, left=bounds.left, top=bounds.top, width=power.shape[2], height=power.shape[1])
    row, column, line, sample = image_places(grid)
    inside = (line > 1) & (sample > 1) & (line < 235) & (sample < SAMPLES - 35)
    rim = inside & ((line < RIM_LINES - 2) | (sample < RIM_SAMPLES - 2))
    inner = inside & (line > RIM_LINES + 1) & (sample > RIM_SAMPLES + 1)
    lake = (np.abs(line - 120) < 18) & (np.abs(sample - 100) < 18)
    assert min(rim.sum(), lake.sum()) > 30
    seen = np.isfinite(power[:, row, column])
    assert (seen[:, rim] == (tag != "masked")).all()
    assert seen[:, inner].all()
    assert seen[:, lake].all()


# ---- polarisations ----


def test_products_in_hh_and_hv_come_out_like_those_in_vv_and_vh(product, dem, tmp_path):
    arctic = write_safe(tmp_path)
    arctic = arctic.rename(arctic.with_name(arctic.name.replace("1SDV", "1SDH")))
    for path in list(arctic.rglob("*-grd-*")):
        path.rename(path.with_name(path.name.replace("-vv-", "-hh-").replace("-vh-", "-hv-")))
    for path in arctic.glob("annotation/*.xml"):
        path.write_text(path.read_text().replace(">VV<", ">HH<").replace(">VH<", ">HV<"))
    for safe, polarisations, name in ((product, ("VV", "VH"), "v.tif"), (arctic, ("HH", "HV"), "h.tif")):
        settings = Sentinel1(processor="native", polarisations=polarisations, speckle_filter="none", layers=())
        process_s1(safe, dem, tmp_path / name, {}, GRID, settings)
    power, about = read(tmp_path / "h.tif")
    assert about.descriptions == ("HH", "HV")
    np.testing.assert_array_equal(power, read(tmp_path / "v.tif")[0])
    np.testing.assert_allclose(np.nanmedian(power, axis=(1, 2)), list(SIGMA0.values()), rtol=0.01)
