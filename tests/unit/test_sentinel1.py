"""Sentinel-1: pure functions against hand-made answers, and the step on a small product that the test writes itself."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from covermap.config import Sentinel1
from covermap.errors import CoverageError, CovermapError, ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel1 import geocoding, process_s1, radiometry
from covermap.sentinel1.orbit import Orbit, state
from covermap.sentinel1.speckle import lee

# A satellite on a circle over the Greenwich meridian, northwards, over an Earth that stands still: the time of closest
# approach of a place (x, y, z) is where the circle's angle is atan2(z, x).
RADIUS_M, RATE = 7_070_000.0, 1.06e-3
LONGITUDE, LATITUDE = 2.6, 1.0
LINES, SAMPLES, INTERVAL_S = 240, 260, 1.47e-3
SIGMA0 = {"VV": 3.0, "VH": 0.8}
GRID = Grid(crs="EPSG:32631", left=454_020, top=111_480, width=190, height=180)


def place(longitude: float, latitude: float, height_m: float) -> np.ndarray:
    return geocoding.geodetic_to_ecef(np.array(longitude), np.array(latitude), np.array(height_m))


def angle(xyz: np.ndarray) -> np.ndarray:
    return np.arctan2(xyz[..., 2], xyz[..., 0])


START = float(angle(place(LONGITUDE, LATITUDE, 0.0))) - LINES / 2 * INTERVAL_S * RATE  # at the first line


def circle(time_s: np.ndarray) -> np.ndarray:
    u = START + RATE * time_s
    return RADIUS_M * np.stack([np.cos(u), np.zeros_like(u), np.sin(u)], axis=-1)


def make_orbit() -> Orbit:
    times = np.arange(-80.0, 81.0, 10.0)
    u = START + RATE * times
    velocity = RADIUS_M * RATE * np.stack([-np.sin(u), np.zeros_like(u), np.cos(u)], axis=-1)
    return Orbit(times, circle(times), velocity)


MIDDLE_M = float(np.linalg.norm(place(LONGITUDE, LATITUDE, 0.0) - circle(np.array(LINES / 2 * INTERVAL_S))))
RECORDS_S = np.array([-0.3, 0.7])
RECORDS = np.array([[MIDDLE_M - 800, 0.6, 3e-7], [MIDDLE_M - 790, 0.599, 3.1e-7]])


def line_and_sample(longitude: float, latitude: float, height_m: float) -> tuple[float, float]:
    """Where a place lies in the image, in closed form and by tabulating the range polynomial."""
    xyz = place(longitude, latitude, height_m)
    time_s = (angle(xyz) - START) / RATE
    slant_m = np.linalg.norm(xyz - circle(time_s))
    coefficients = [np.interp(time_s, RECORDS_S, column) for column in RECORDS.T]
    ground_m = np.arange(-500.0, 4000.0)
    slants = sum(c * ground_m**k for k, c in enumerate(coefficients))
    return float(time_s / INTERVAL_S), float(np.interp(slant_m, slants, ground_m) / 10)


def height(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    return 150 + 60 * np.sin((longitude - LONGITUDE) * 200) * np.cos((latitude - LATITUDE) * 150)


def targets() -> list[tuple[float, float]]:
    return [(454_323.0 + 660.7 * i, 111_181.0 - 590.9 * j) for i in range(3) for j in range(3)]


def write_safe(folder: Path) -> Path:
    """A product in both polarisations: constant backscatter, nine bright targets, no data in the last 30 samples."""
    product = folder / "S1A_IW_GRDH_1SDV_20230501T000000_TEST.SAFE"
    (product / "annotation/calibration").mkdir(parents=True)
    (product / "measurement").mkdir()
    orbit_number = '<a xmlns:s="x"><s:relativeOrbitNumber type="start">7</s:relativeOrbitNumber></a>'
    (product / "manifest.safe").write_text(orbit_number)
    to_degrees = Transformer.from_crs(GRID.crs, "EPSG:4326", always_xy=True)
    line, sample = np.mgrid[:LINES, :SAMPLES].astype(float)
    lut = 400 + sample / 10 + line / 20
    noise = (200 + sample) * np.where(sample < 100, 1.0, 1.5 + line / 1000)
    for number, (name, sigma0) in enumerate(SIGMA0.items(), 1):
        power = np.full(line.shape, sigma0)
        for x, y in targets():
            longitude, latitude = to_degrees.transform(x, y)
            at_line, at_sample = line_and_sample(longitude, latitude, float(height(longitude, latitude)))
            power += 500 * sigma0 * np.exp(-((line - at_line) ** 2 + (sample - at_sample) ** 2) / (2 * 1.2**2))
        dn = np.sqrt(power * lut**2 + noise).round().astype("uint16")
        dn[:, -30:] = 0
        stem = f"s1a-iw-grd-{name.lower()}-20230501t000000-{number:03d}"
        (product / f"annotation/{stem}.xml").write_text(annotation(name))
        (product / f"annotation/calibration/calibration-{stem}.xml").write_text(calibration())
        (product / f"annotation/calibration/noise-{stem}.xml").write_text(noise_tables())
        write_tiff(product / f"measurement/{stem}.tiff", dn)
    return product


def write_tiff(path: Path, image: np.ndarray, **profile: object) -> None:
    bands = image if image.ndim == 3 else image[None]
    size = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype.name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **size, **profile) as raster:
            raster.write(bands)


def at(seconds: float) -> str:
    return str(np.datetime64("2023-05-01T00:00:00", "us") + np.timedelta64(round(seconds * 1e6), "us"))


def numbers(values: object) -> str:
    return " ".join(f"{value:.15e}" for value in np.ravel(values))


def annotation(polarisation: str) -> str:
    orbit = make_orbit()
    states = "".join(
        f"<orbit><time>{at(t)}</time>"
        + "".join(
            f"<{kind}>" + "".join(f"<{a}>{v:.9f}</{a}>" for a, v in zip("xyz", vector, strict=True)) + f"</{kind}>"
            for kind, vector in (("position", p), ("velocity", v))
        )
        + "</orbit>"
        for t, p, v in zip(orbit.time_s, orbit.position_m, orbit.velocity_m_s, strict=True)
    )
    records = "".join(
        f"<coordinateConversion><azimuthTime>{at(t)}</azimuthTime><gr0>0</gr0>"
        f"<grsrCoefficients>{numbers(c)}</grsrCoefficients></coordinateConversion>"
        for t, c in zip(RECORDS_S, RECORDS, strict=True)
    )
    points = "".join(
        f"<geolocationGridPoint><azimuthTime>{at(0)}</azimuthTime><slantRangeTime>0.005</slantRangeTime><line>0</line>"
        f"<pixel>0</pixel><latitude>{LATITUDE + i}</latitude><longitude>{LONGITUDE + j}</longitude><height>0</height>"
        "<incidenceAngle>30</incidenceAngle></geolocationGridPoint>"
        for i in (-0.012, 0.012)
        for j in (-0.012, 0.012)
    )
    return f"""<product><adsHeader><productType>GRD</productType><polarisation>{polarisation}</polarisation></adsHeader>
<generalAnnotation><productInformation><pass>Ascending</pass></productInformation><orbitList>{states}</orbitList>
</generalAnnotation><imageAnnotation><imageInformation><productFirstLineUtcTime>{at(0)}</productFirstLineUtcTime>
<azimuthTimeInterval>{INTERVAL_S}</azimuthTimeInterval><rangePixelSpacing>10</rangePixelSpacing>
<numberOfSamples>{SAMPLES}</numberOfSamples><numberOfLines>{LINES}</numberOfLines></imageInformation>
<processingInformation><thermalNoiseCorrectionPerformed>false</thermalNoiseCorrectionPerformed></processingInformation>
</imageAnnotation><coordinateConversion><coordinateConversionList>{records}</coordinateConversionList>
</coordinateConversion><geolocationGrid><geolocationGridPointList>{points}</geolocationGridPointList></geolocationGrid>
</product>"""


def calibration() -> str:
    pixel = np.array([0, 100, SAMPLES - 1])
    vectors = "".join(
        f"<calibrationVector><azimuthTime>{at(line * INTERVAL_S)}</azimuthTime><pixel>0 100 {SAMPLES - 1}</pixel>"
        f"<sigmaNought>{numbers(400 + pixel / 10 + line / 20)}</sigmaNought></calibrationVector>"
        for line in (-40, 100, 300)
    )
    return f"<calibration><calibrationVectorList>{vectors}</calibrationVectorList></calibration>"


def noise_tables() -> str:
    pixel = np.array([0, 99, 100, SAMPLES - 1])
    pixels = " ".join(map(str, pixel))
    vectors = "".join(
        f"<noiseRangeVector><azimuthTime>{at(line * INTERVAL_S)}</azimuthTime><pixel>{pixels}</pixel>"
        f"<noiseRangeLut>{numbers(200 + pixel)}</noiseRangeLut></noiseRangeVector>"
        for line in (0, 120)
    )
    lines = np.array([0, LINES - 1])
    blocks = "".join(
        f"<noiseAzimuthVector><firstAzimuthLine>0</firstAzimuthLine><firstRangeSample>{first}</firstRangeSample>"
        f"<lastAzimuthLine>{LINES - 1}</lastAzimuthLine><lastRangeSample>{last}</lastRangeSample>"
        f"<line>{numbers(line)}</line><noiseAzimuthLut>{numbers(value)}</noiseAzimuthLut></noiseAzimuthVector>"
        for first, last, line, value in ((0, 99, [0], [1.0]), (100, SAMPLES - 1, lines, 1.5 + lines / 1000))
    )
    return f"""<noise><noiseRangeVectorList>{vectors}</noiseRangeVectorList>
<noiseAzimuthVectorList>{blocks}</noiseAzimuthVectorList></noise>"""


def write_dem(path: Path, crs: str | None = "EPSG:4979", shift_deg: float = 0.0, kind: str = "float32") -> Path:
    row, column = np.mgrid[:180, :180]
    left, top = LONGITUDE - 0.025 + shift_deg, LATITUDE + 0.025
    heights = height(left + (column + 0.5) / 3600, top - (row + 0.5) / 3600).astype(kind)
    write_tiff(path, heights, crs=crs, transform=from_origin(left, top, 1 / 3600, 1 / 3600), nodata=-9999)
    return path


def zipped(product: Path) -> Path:
    file = product.with_suffix(".zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(product.rglob("*")):
            archive.write(path, path.relative_to(product.parent).as_posix())
    return file


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safe(tmp_path_factory.mktemp("product"))


@pytest.fixture(scope="module")
def dem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dem(tmp_path_factory.mktemp("dem") / "dem.tif")


def read(path: Path) -> tuple[np.ndarray, SimpleNamespace]:
    with rasterio.open(path) as raster:
        about = SimpleNamespace(bounds=raster.bounds, descriptions=raster.descriptions, tags=raster.tags())
        return raster.read(), about


# ---- geometry ----


def test_ecef_of_known_places():
    np.testing.assert_allclose(place(0, 0, 10), [6_378_147, 0, 0], atol=1e-6)
    np.testing.assert_allclose(place(90, 0, 0), [0, 6_378_137, 0], atol=1e-6)
    np.testing.assert_allclose(place(0, 90, 0), [0, 0, 6_356_752.314245], atol=1e-5)


def test_orbit_is_reproduced_between_its_state_vectors():
    times = np.linspace(-70, 70, 141)
    position, velocity, acceleration = state(make_orbit(), times)
    np.testing.assert_allclose(position, circle(times), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(velocity, axis=1), RADIUS_M * RATE, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(acceleration, axis=1), RADIUS_M * RATE**2, rtol=1e-6)


def test_too_few_state_vectors_are_an_error():
    orbit = make_orbit()
    with pytest.raises(ProductError, match="7 state vectors"):
        state(Orbit(orbit.time_s[:7], orbit.position_m[:7], orbit.velocity_m_s[:7]), np.zeros(1))


def test_zero_doppler_against_the_closed_form():
    longitude, latitude = np.meshgrid(LONGITUDE + np.linspace(-1, 1, 5), LATITUDE + np.linspace(-2, 2, 7))
    xyz = geocoding.geodetic_to_ecef(longitude, latitude, 300.0)
    time_s, slant_m = geocoding.zero_doppler(make_orbit(), xyz)
    expected_s = (angle(xyz) - START) / RATE
    np.testing.assert_allclose(time_s, expected_s, atol=1e-8)
    np.testing.assert_allclose(slant_m, np.linalg.norm(xyz - circle(expected_s), axis=-1), atol=1e-3)


def test_incidence_angle_below_and_beside_the_satellite():
    time_s = np.zeros(1)
    below = circle(time_s) * (6_371_000 / RADIUS_M)
    assert geocoding.incidence_angle(make_orbit(), time_s, below)[0] == pytest.approx(0, abs=1e-3)
    u = np.arccos(6_371_000 / RADIUS_M)  # the satellite stands on this place's horizon
    horizon = 6_371_000 * (np.cos(u) * circle(time_s) / RADIUS_M + np.sin(u) * np.array([[0, 1, 0]]))
    assert geocoding.incidence_angle(make_orbit(), time_s, horizon)[0] == pytest.approx(90, abs=1e-6)


def test_ground_range_is_linear_in_time_or_takes_the_nearest_record():
    records = geocoding.GroundToSlant(np.array([0.0, 1.0]), np.zeros(2), np.array([[8e5, 0.5], [8e5, 0.4]]), 20_000.0)
    time_s = np.array([-3.0, 0.0, 0.25, 0.75, 1.0, 9.0])
    slant_m = np.full(6, 8e5 + 1000)
    expected = 1000 / np.array([0.5, 0.5, 0.475, 0.425, 0.4, 0.4])
    np.testing.assert_allclose(geocoding.ground_range(records, time_s, slant_m), expected, atol=1e-6)
    nearest = 1000 / np.array([0.5, 0.5, 0.5, 0.4, 0.4, 0.4])
    np.testing.assert_allclose(geocoding.ground_range(records, time_s, slant_m, nearest=True), nearest, atol=1e-6)
    far = geocoding.ground_range(records, np.zeros(3), np.array([7e5, np.nan, 9e5]))
    np.testing.assert_allclose(far, [-10_000, np.nan, 30_000])


def test_geometry_between_nodes_errs_by_less_than_a_thousandth_of_a_pixel():
    step, orbit = 16, make_orbit()
    rng = np.random.default_rng(1)
    height_m = rng.uniform(0, 4000, (193, 193))
    row, column = np.mgrid[:193, :193]
    longitude, latitude = LONGITUDE + column / 11_131.9, LATITUDE - row / 11_057.0
    seen = geocoding.sight(orbit, longitude[::step, ::step], latitude[::step, ::step], 0, 4000)
    layers = geocoding.refine(seen.nodes, step, range(193), 193)
    time_s, slant_m = geocoding.time_and_range(layers, height_m, seen)
    dense_s, dense_m = geocoding.zero_doppler(orbit, geocoding.geodetic_to_ecef(longitude, latitude, height_m))
    assert abs(time_s - dense_s).max() / INTERVAL_S < 0.001
    assert abs(slant_m - dense_m).max() / 0.6 / 10 < 0.001


def test_refine_is_exact_for_planes_and_strips_fit_together():
    row, column = np.mgrid[:9, :11].astype(float)
    plane = (3 * row - 2 * column + 1)[None]
    nodes = np.array([[[3 * i - 2 * j + 1 for j in (0, 4, 8, 12)] for i in (0, 4, 8)]], float)
    whole = geocoding.refine(nodes, 4, range(9), 11)
    np.testing.assert_allclose(whole, plane)
    np.testing.assert_array_equal(geocoding.refine(nodes, 4, range(5, 9), 11), whole[:, 5:])


def test_bilinear_half_pixels_edges_and_no_data():
    image = np.array([[1, 2, 4], [3, 4, np.nan]], np.float32)
    row = np.array([0.0, 0.5, 0.0, -0.5, -0.51, 1.0, 0.4, 0.6, 1.49, np.nan])
    column = np.array([1.0, 0.5, 1.5, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0, 0.0])
    expected = [2, 2.5, 3, 1, np.nan, np.nan, 4, np.nan, 3, np.nan]
    np.testing.assert_allclose(geocoding.bilinear(image, row, column), expected)


# ---- radiometry ----


def test_table_is_bilinear_in_time_and_pixel_and_constant_beyond():
    pixel = np.array([0.0, 10.0])
    vectors = radiometry.Vectors(np.array([0.0, 2.0]), (pixel, pixel), (np.array([1.0, 2.0]), np.array([3.0, 6.0])))
    lut = radiometry.calibration_lut(vectors, np.array([-1.0, 0.5, 2.0, 5.0]), np.array([0, 5, 10, 20]))
    np.testing.assert_allclose(lut, [[1, 1.5, 2, 2], [1.5, 2.25, 3, 3], [3, 4.5, 6, 6], [3, 4.5, 6, 6]])
    one = radiometry.Vectors(np.array([1.0]), (pixel,), (np.array([1.0, 2.0]),))
    np.testing.assert_allclose(radiometry.calibration_lut(one, np.array([0.0, 3.0]), np.array([5])), [[1.5], [1.5]])


def test_noise_is_the_range_table_times_the_azimuth_factor_of_each_block():
    pixel = np.array([0.0, 3.0])
    table = radiometry.Vectors(np.array([0.0, 4.0]), (pixel, pixel), (np.array([10.0, 40.0]), np.array([30.0, 60.0])))
    blocks = (
        radiometry.NoiseBlock(0, 5, 0, 1, np.array([3.0]), np.array([2.0])),  # one value: constant
        radiometry.NoiseBlock(0, 5, 2, 3, np.array([0.0, 4.0]), np.array([1.0, 3.0])),
        radiometry.NoiseBlock(6, 7, 0, 3, np.array([6.0]), np.array([1.0])),  # no vector of its own: the last one
    )
    power = radiometry.noise_power(radiometry.Noise(table, blocks), np.array([2, 5, 6, 8]), np.arange(4), 1.0)
    np.testing.assert_allclose(
        power, [[40, 60, 40 * 2, 50 * 2], [60, 80, 50 * 3, 60 * 3], [30, 40, 50, 60], [0, 0, 0, 0]], rtol=1e-6
    )


def test_power_below_the_noise_stays_negative_and_zero_is_no_data():
    sigma0 = radiometry.sigma_nought(
        np.array([[0, 10, 20]], np.uint16), np.float32(144), np.full((1, 3), 2, np.float32)
    )
    np.testing.assert_allclose(sigma0, [[np.nan, -11, 64]])
    assert sigma0.dtype == np.float32


# ---- speckle ----


def lee_by_loops(power: np.ndarray, window: int, looks: float) -> np.ndarray:
    out = np.full(power.shape, np.nan)
    half = window // 2
    for row, column in np.argwhere(~np.isnan(power)):
        part = power[max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1].astype(float)
        values = part[~np.isnan(part)]
        mean, variance = values.mean(), values.var(ddof=1) if len(values) > 1 else 0.0
        weight = 1 - mean**2 / looks / variance if mean > 0 and variance > mean**2 / looks else 0.0
        out[row, column] = mean + weight * (power[row, column] - mean)
    return out


@pytest.mark.parametrize("window", [3, 7])
def test_lee_equals_the_loop_over_pixels(window):
    rng = np.random.default_rng(5)
    power = rng.gamma(4.4, 1 / 4.4, (23, 31)) * np.where(np.arange(31) < 15, 0.05, 1)
    power -= 0.06  # some means are below zero
    power[rng.random(power.shape) < 0.1] = np.nan
    power[4, 4] = 300
    power = power.astype(np.float32)
    np.testing.assert_allclose(lee(power, window, 4.4), lee_by_loops(power, window, 4.4), rtol=1e-5, atol=1e-7)


def test_lee_keeps_constants_and_points_and_never_moves_no_data():
    field = np.full((15, 15), 0.25, np.float32)
    np.testing.assert_array_equal(lee(field, 7, 4.4), field)
    field[7, 7] = 1000
    assert lee(field, 7, 4.4)[7, 7] > 900
    rng = np.random.default_rng(2)
    hole = np.where(rng.random((40, 40)) < 0.3, np.nan, rng.gamma(4.4, 1, (40, 40))).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(lee(hole, 7, 4.4)), np.isnan(hole))
    below = rng.normal(-0.01, 0.02, (40, 40)).astype(np.float32)
    smooth = lee(below, 7, 4.4)
    assert np.isfinite(smooth).all()
    assert smooth[10:30, 10:30].mean() == pytest.approx(below[10:30, 10:30].mean(), abs=0.002)


# ---- the step ----


def test_targets_and_constant_field_come_out_in_place(product, dem, tmp_path):
    item = {"id": "S1A_TEST", "properties": {"datetime": "2023-05-01T00:00:00Z"}}
    process_s1(product, dem, tmp_path / "out.tif", item, GRID, Sentinel1(speckle_filter="none"), 2)
    power, raster = read(tmp_path / "out.tif")
    assert power.dtype == np.float32
    assert raster.descriptions == ("VV", "VH")
    tags = raster.tags
    assert tags["convention"] == "sigma0_ellipsoid"
    assert (tags["orbit_state"], tags["relative_orbit"], tags["scene"]) == ("ascending", "7", "S1A_TEST")
    assert (tags["noise_removed"], tags["speckle_filter"], tags["dem"]) == ("yes", "none", "dem.tif")
    rows, columns = np.indices(power.shape[1:])
    for band, sigma0 in zip(power, SIGMA0.values(), strict=True):
        far = np.isfinite(band)
        for x, y in targets():
            row, column = (raster.bounds.top - y) / 10 - 0.5, (x - raster.bounds.left) / 10 - 0.5
            distance = np.hypot(rows - row, columns - column)
            far &= distance > 14
            weight = np.where(distance < 8, band - sigma0, 0)
            assert (weight * rows).sum() / weight.sum() == pytest.approx(row, abs=0.1)
            assert (weight * columns).sum() / weight.sum() == pytest.approx(column, abs=0.1)
        assert far.sum() > 5_000
        assert abs(10 * np.log10(band[far] / sigma0)).max() < 0.02  # so no data has not bled in either


def test_zip_folder_threads_and_a_part_of_the_area_agree(product, dem, tmp_path):
    settings = Sentinel1()
    process_s1(product, dem, tmp_path / "a.tif", {}, GRID, settings)
    process_s1(zipped(product), dem, tmp_path / "b.tif", {}, GRID, settings, 2)
    part = GRID.window(37, 41, 60, 50)
    process_s1(product, dem, tmp_path / "c.tif", {}, part, settings)
    whole, raster = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "b.tif")[0], whole)
    row = round((raster.bounds.top - part.top) / 10)
    column = round((part.left - raster.bounds.left) / 10)
    # nodes lie elsewhere: a thousandth of a pixel on the flank of a target
    np.testing.assert_allclose(read(tmp_path / "c.tif")[0], whole[:, row : row + 60, column : column + 50], rtol=2e-3)


def test_output_is_cropped_to_the_pixels_with_data(product, dem, tmp_path):
    process_s1(product, dem, tmp_path / "out.tif", {}, GRID.padded(2000), Sentinel1())
    power, raster = read(tmp_path / "out.tif")
    valid = np.isfinite(power).any(axis=0)
    assert valid[0].any() and valid[-1].any() and valid[:, 0].any() and valid[:, -1].any()
    assert max(power.shape) < 350
    assert (raster.bounds.left - GRID.left) % 10 == 0
    assert (raster.bounds.top - GRID.top) % 10 == 0


def test_heights_above_the_geoid_need_the_geoid(product, dem, tmp_path):
    above_sea = write_dem(tmp_path / "above.tif", "EPSG:4326")
    with pytest.raises(SettingError, match=r"set sentinel1.geoid_m to the geoid undulation"):
        process_s1(product, above_sea, tmp_path / "out.tif", {}, GRID, Sentinel1())
    with pytest.raises(SettingError, match=r"remove sentinel1.geoid_m"):
        process_s1(product, dem, tmp_path / "out.tif", {}, GRID, Sentinel1(geoid_m=20))
    process_s1(product, above_sea, tmp_path / "zero.tif", {}, GRID, Sentinel1(geoid_m=0))
    process_s1(product, dem, tmp_path / "ellipsoidal.tif", {}, GRID, Sentinel1())
    np.testing.assert_array_equal(read(tmp_path / "zero.tif")[0], read(tmp_path / "ellipsoidal.tif")[0])
    whole_metres = write_dem(tmp_path / "int16.tif", "EPSG:4326", kind="int16")
    process_s1(product, whole_metres, tmp_path / "int16_out.tif", {}, GRID, Sentinel1(geoid_m=0))
    assert read(tmp_path / "int16_out.tif")[1].tags["geoid"] == "0.0 m"


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], Path]:
    def broken(product: Path) -> Path:
        (path,) = product.glob(name)
        path.write_text(change(path.read_text()))
        return product

    return broken


def remove(name: str) -> Callable[[Path], Path]:
    def broken(product: Path) -> Path:
        for path in product.glob(name):
            path.unlink()
        return product

    return broken


def truncated(product: Path) -> Path:
    (path,) = product.glob("measurement/*vh*")
    path.write_bytes(path.read_bytes()[:60_000])
    return product


def emptied(product: Path) -> Path:
    (path,) = product.glob("measurement/*vv*")
    path.write_bytes(b"")
    return product


def wrong_size(product: Path) -> Path:
    (path,) = product.glob("measurement/*vv*")
    write_tiff(path, np.ones((LINES, SAMPLES - 1), np.uint16))
    return product


def escaping(product: Path) -> Path:
    file = zipped(product)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"{product.name}/../../evil.xml", "x")
    return file


def two_scenes(product: Path) -> Path:
    file = zipped(product)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("OTHER.SAFE/manifest.safe", "x")
    return file


def half_zip(product: Path) -> Path:
    file = zipped(product)
    file.write_bytes(file.read_bytes()[:50_000])
    return file


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'

BROKEN = [
    (remove("manifest.safe"), "neither a manifest.safe nor an item.json"),
    (remove("annotation/*.xml"), r"no annotation/\*.xml"),
    (remove("annotation/calibration/calibration-*vv*"), "has no annotation/calibration/calibration-s1a-iw-grd-vv"),
    (remove("annotation/calibration/noise-*vh*"), "has no annotation/calibration/noise-s1a-iw-grd-vh"),
    (remove("measurement/*vh*"), "has no measurement/s1a-iw-grd-vh"),
    (remove("annotation/*vh*.xml"), "has no VH, only VV: set sentinel1.polarisations"),
    (emptied, "measurement/s1a-iw-grd-vv-20230501t000000-001.tiff is no whole TIFF"),
    (truncated, "cannot be read to its end|is no whole TIFF"),
    (wrong_size, "has 240 lines of 259 samples of uint16, expected 240 lines of 260 samples"),
    (edit("annotation/*vv*.xml", lambda text: BOMB + text), "declares entities or a DTD"),
    (edit("annotation/*vv*.xml", lambda text: text[:3000]), "is not well-formed XML"),
    (edit("annotation/*vv*.xml", lambda text: text.replace(">GRD<", ">SLC<")), "is of type 'SLC': expected GRD"),
    (edit("annotation/*vv*.xml", lambda text: text.replace("grsrCoefficients", "other")), "has no grsrCoefficients"),
    (
        edit("annotation/*vv*.xml", lambda text: text.replace("<gr0>0<", "<gr0>zero<")),
        "'zero' where numbers are expected",
    ),
    (edit("annotation/*vv*.xml", lambda text: text.replace("<gr0>0<", "<gr0>nan<")), "not finite"),
    (
        edit("annotation/*vv*.xml", lambda text: text.replace("T00:00:00", "T00:03:00", 1)),
        "order of time|does not cover",
    ),
    (
        edit("annotation/calibration/noise*vv*", lambda text: text.replace("0 99 100", "0 99")),
        "4 values at 3 positions",
    ),
    (edit("manifest.safe", lambda text: text.replace("relativeOrbitNumber", "x")), "has no relativeOrbitNumber"),
    (escaping, "leads out of the archive"),
    (two_scenes, "holds 2 SAFE folders"),
    (half_zip, "is not a whole zip file"),
    (lambda product: product / "absent.zip", "does not exist"),
]


@pytest.mark.parametrize(("breaking", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_broken_products_are_named_and_leave_nothing(breaking, message, dem, tmp_path):
    broken = breaking(write_safe(tmp_path / "in"))
    with pytest.raises(CovermapError, match=message):
        process_s1(broken, dem, tmp_path / "results" / "out.tif", {}, GRID, Sentinel1())
    assert not list(tmp_path.glob("results/*"))


def test_area_elsewhere_and_bad_heights_are_named(product, dem, tmp_path):
    out = tmp_path / "results" / "out.tif"
    away = Grid(crs="EPSG:32631", left=600_000, top=300_000, width=50, height=50)
    with pytest.raises(CoverageError, match="does not touch the area"):
        process_s1(product, dem, out, {}, away, Sentinel1())
    beside = Grid(crs="EPSG:32631", left=449_000, top=111_000, width=50, height=50)
    with pytest.raises(CoverageError, match="remove it from the list of scenes"):
        process_s1(product, write_dem(tmp_path / "beside.tif", shift_deg=-0.05), out, {}, beside, Sentinel1())
    cases = [
        (write_dem(tmp_path / "nowhere.tif", None), ProductError, "has no CRS"),
        (write_dem(tmp_path / "away.tif", shift_deg=2), CoverageError, "does not touch the area"),
        (write_dem(tmp_path / "part.tif", shift_deg=0.024), CoverageError, "has no height at"),
        (tmp_path / "absent.tif", ProductError, "cannot be read"),
        (None, SettingError, "set the area's dem"),
    ]
    for heights, kind, message in cases:
        with pytest.raises(kind, match=message):
            process_s1(product, heights, out, {}, GRID, Sentinel1())
    undeclared = np.full((180, 180), -32768, "int16")
    transform = from_origin(LONGITUDE - 0.025, LATITUDE + 0.025, 1 / 3600, 1 / 3600)
    write_tiff(tmp_path / "undeclared.tif", undeclared, crs="EPSG:4979", transform=transform)
    with pytest.raises(ProductError, match="heights from -32768"):
        process_s1(product, tmp_path / "undeclared.tif", out, {}, GRID, Sentinel1())
    assert not out.parent.exists()


# ---- analysis-ready backscatter ----


def assets(folder: Path, rasters: dict[str, np.ndarray], left: float, top: float, crs: str = GRID.crs) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "assets.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("item.json", json.dumps({"id": "rtc"}))
        for name, image in rasters.items():
            write_tiff(folder / name, image, crs=crs, transform=from_origin(left, top, 10, 10))
            archive.write(folder / name, name)
    return folder / "assets.zip"


def test_assets_on_the_lattice_are_copied_and_keep_their_window(tmp_path):
    rng = np.random.default_rng(3)
    vv, vh = rng.normal(-10, 2, (2, 40, 50)).astype(np.float32)
    vv[:5, :7] = np.nan
    product = assets(tmp_path, {"vv.tif": vv, "vh.tif": vh}, GRID.left - 200, GRID.top - 500)
    item = {"id": "rtc", "properties": {"sat:orbit_state": "descending", "sat:relative_orbit": 12}}
    process_s1(product, None, tmp_path / "out.tif", item, GRID, Sentinel1(speckle_filter="none"))
    power, raster = read(tmp_path / "out.tif")
    assert (raster.bounds.left, raster.bounds.top) == (GRID.left, GRID.top - 500)
    np.testing.assert_allclose(power, 10 ** (np.stack([vv, vh])[:, :, 20:] / 10), rtol=1e-6)
    assert (raster.tags["relative_orbit"], raster.tags["convention"]) == ("12", "as delivered")


def test_assets_off_the_lattice_are_bilinear_in_power(tmp_path):
    row, column = np.mgrid[:60, :60]
    plane = (1 + 0.01 * row + 0.02 * column).astype(np.float32)
    both = np.stack([plane, 2 * plane])
    product = assets(tmp_path, {"both.tif": both}, GRID.left - 4, GRID.top + 3)
    settings = Sentinel1(speckle_filter="none", assets_unit="power")
    process_s1(product, None, tmp_path / "out.tif", {}, GRID.padded(3_000), settings)
    power, _ = read(tmp_path / "out.tif")
    at = 1 + 0.01 * (row + 0.3) + 0.02 * (column + 0.4)
    np.testing.assert_allclose(power[:, 1:58, 1:58], np.stack([at, 2 * at])[:, 1:58, 1:58], rtol=1e-6)


def test_broken_assets_are_named(tmp_path):
    image = np.ones((20, 20), np.float32)
    out = tmp_path / "results" / "out.tif"
    with pytest.raises(ProductError, match=r"expected vv.tif and vh.tif, or one raster"):
        process_s1(assets(tmp_path / "a", {"vv.tif": image}, GRID.left, GRID.top), None, out, {}, GRID, Sentinel1())
    away = assets(tmp_path / "b", {"vv.tif": image, "vh.tif": image}, GRID.left + 50_000, GRID.top)
    with pytest.raises(CoverageError, match="does not touch the area"):
        process_s1(away, None, out, {}, GRID, Sentinel1())
    cut = assets(tmp_path / "d", {"both.tif": np.stack([image, image])}, GRID.left, GRID.top)
    (tmp_path / "d" / "both.tif").write_bytes(b"II*")
    with zipfile.ZipFile(cut, "w") as archive:
        archive.writestr("item.json", "{}")
        archive.write(tmp_path / "d" / "both.tif", "both.tif")
    with pytest.raises(ProductError, match="cannot be read"):
        process_s1(cut, None, out, {}, GRID, Sentinel1())
    empty = assets(tmp_path / "c", {"vv.tif": image * np.nan, "vh.tif": image * np.nan}, GRID.left, GRID.top)
    with pytest.raises(CoverageError):
        process_s1(empty, None, out, {}, GRID, Sentinel1())
    assert not out.parent.exists()
