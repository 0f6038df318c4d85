"""The geometry against the annotation of real products, and the whole chain on one of them with made-up pixels.

Agreement with the annotation is consistency, not absolute geolocation.
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
from scipy.interpolate import RegularGridInterpolator

from covermap.area_settings import Sentinel1
from covermap.errors import ProductError
from covermap.grid import Grid
from covermap.sentinel1 import distortion, flattening, geocoding, geoid, process_s1, radiometry, safe
from covermap.sentinel1.nodes import node_step, nodes
from covermap.sentinel1.orbit import state
from covermap.sentinel1.terrain import Terrain, read_dem

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "s1_grd"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real annotation is absent: {SHARED}")

PRODUCTS = sorted(SHARED.glob("*.SAFE"))
ROME = next(iter(SHARED.glob("S1B*.SAFE")), SHARED)
FRANCE = next(iter(SHARED.glob("S1A*.SAFE")), SHARED)
SIGMA0 = 3.0  # DN of 600 and more


@pytest.fixture(params=PRODUCTS, ids=lambda path: path.name[:3])
def image(request: pytest.FixtureRequest) -> safe.Image:
    return safe.images(safe.open_product(request.param))["VV"]


def test_geometry_agrees_with_the_geolocation_grid(image):
    time_s, slant_m, line, pixel, latitude, longitude, height, incidence = image.grid_points.T
    place = geocoding.geodetic_to_ecef(longitude, latitude, height)
    solved_s, solved_m = geocoding.zero_doppler(image.orbit, place)
    assert abs(solved_s - time_s).max() < 2e-6
    assert abs(solved_m - slant_m).max() < 0.01
    assert abs(geocoding.incidence_angle(image.orbit, solved_s, place) - incidence).max() < 0.01
    ground_m = geocoding.ground_range(image.ground_to_slant, time_s, slant_m, nearest=True)
    assert abs(ground_m / image.range_spacing_m - pixel).max() < 0.01
    assert abs(solved_s / image.line_interval_s - line).max() < 0.25  # the annotated line is a rounded number


def somewhere(image: safe.Image, point: int, side: int = 161) -> tuple[Grid, np.ndarray, np.ndarray]:
    """A small grid at a point of the geolocation grid, and the longitude and latitude of its nodes."""
    latitude, longitude = image.grid_points[point, 4:6]
    crs = f"EPSG:{32601 + int((longitude + 180) // 6)}"
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
    grid = Grid(crs=crs, left=x // 10 * 10, top=y // 10 * 10, width=side, height=side)
    return grid, *nodes(grid, "EPSG:4326")


def test_geometry_between_nodes_errs_by_less_than_a_thousandth_of_a_pixel(image):
    rng = np.random.default_rng(0)
    for point in range(0, len(image.grid_points), 9):
        grid, *degrees = somewhere(image, point)
        seen = geocoding.sight(image.orbit, *degrees, 0, 4000)
        layers = np.concatenate([seen.nodes, geocoding.incidence_nodes(image.orbit, *degrees, seen)])
        row, column = rng.integers(0, 161, (2, 300))
        height_m = rng.uniform(0, 4000, 300)
        at = geocoding.refine(layers, node_step(grid), range(161), 161)[:, row, column]
        time_s, slant_m = geocoding.time_and_range(at[:6], height_m, seen)
        x, y = grid.left + 10 * (column + 0.5), grid.top - 10 * (row + 0.5)
        place = geocoding.geodetic_to_ecef(
            *Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True).transform(x, y), height_m
        )
        exact_s, exact_m = geocoding.zero_doppler(image.orbit, place)
        assert abs(time_s - exact_s).max() / image.line_interval_s < 1e-5
        assert abs(slant_m - exact_m).max() < 0.005
        ground_m = [
            geocoding.ground_range(image.ground_to_slant, *pair) for pair in ((time_s, slant_m), (exact_s, exact_m))
        ]
        assert abs(ground_m[0] - ground_m[1]).max() / image.range_spacing_m < 1e-3
        incidence = geocoding.incidence_angle(image.orbit, exact_s, place)
        assert abs(geocoding.incidence_at(at[6:], height_m, seen) - incidence).max() < 3e-4


def test_level_ground_has_the_gamma0_of_the_annotated_incidence_angle(image):
    archive = safe.open_product(next(path for path in PRODUCTS if path.name[:3].lower() == image.name[:3]))
    tables = [safe.calibration(archive, image, table) for table in ("betaNought", "gamma")]
    points = image.grid_points
    inside = (points[:, 2] > 500) & (points[:, 2] < image.lines - 500) & (points[:, 3] > 500)
    for point in np.flatnonzero(inside & (points[:, 3] < image.samples - 500))[::23]:
        grid, *degrees = somewhere(image, point, 145)
        step, height_m = node_step(grid), float(points[point, 6])
        seen = geocoding.sight(image.orbit, *degrees, height_m, height_m)
        positions = np.mgrid[: degrees[0].shape[0], : degrees[0].shape[1]] * float(step)
        level = np.full(np.array(positions.shape[1:]) * step, height_m, np.float32)
        terrain = Terrain("level", "none", level, positions, height_m, height_m)
        radii = distortion.distances(image.orbit, *degrees, seen)

        def project(time_s: np.ndarray, slant_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ground_m = geocoding.ground_range(image.ground_to_slant, time_s, slant_m)
            return time_s / image.line_interval_s, ground_m / image.range_spacing_m

        line, sample = (int(np.median(a)) for a in project(seen.nodes[0], seen.nodes[3]))
        part = Window(sample - 15, line - 15, 31, 31)
        area = flattening.terrain_area(terrain, seen, radii, step, grid.shape, project, part, 16)
        beta, gamma = (
            radiometry.calibration_lut(
                table, (line + np.arange(-15, 16)) * image.line_interval_s, sample + np.arange(-15, 16)
            )
            for table in tables
        )
        gamma0 = flattening.flatten((300 / beta) ** 2, area)
        theta = np.radians(points[point, 7])
        assert abs(10 * np.log10(gamma0 / (300 / beta) ** 2 / np.tan(theta))).max() < 0.05
        # the tables have an incidence angle of their own, up to 0.3 degrees from the annotated one
        assert abs(10 * np.log10(gamma0 / (300 / gamma) ** 2)).max() < 0.08


def test_state_vectors_are_reproduced_and_velocity_is_the_derivative_of_position(image):
    position, velocity, _ = state(image.orbit, image.orbit.time_s)
    np.testing.assert_allclose(position, image.orbit.position_m, atol=1e-6)
    middle = np.array([image.lines * image.line_interval_s / 2])
    step = 0.01
    ahead, behind = (state(image.orbit, middle + sign * step)[0] for sign in (1, -1))
    np.testing.assert_allclose((ahead - behind) / (2 * step), state(image.orbit, middle)[1], atol=0.02)
    assert np.abs(velocity - image.orbit.velocity_m_s).max() < 1e-9


def test_tables_at_their_own_positions_and_between(image):
    archive = safe.open_product(next(path for path in PRODUCTS if path.name[:3].lower() == image.name[:3]))
    vectors = safe.calibration(archive, image, "sigmaNought")
    t0, t1 = vectors.time_s[3:5]
    pixel, low, high = vectors.pixel[3], vectors.value[3], vectors.value[4]
    lut = radiometry.calibration_lut(
        vectors, np.array([t0, t0 + 0.25 * (t1 - t0)]), np.array([pixel[7], pixel[7] + 10])
    )
    a, b = low[7], high[7]
    a10, b10 = low[7] + (low[8] - low[7]) * 10 / 40, high[7] + (high[8] - high[7]) * 10 / 40
    np.testing.assert_allclose(lut, [[a, a10], [0.75 * a + 0.25 * b, 0.75 * a10 + 0.25 * b10]], rtol=2e-7)


def test_noise_by_hand_at_a_swath_border():
    image = safe.images(safe.open_product(FRANCE))["VH"]
    noise = safe.noise(safe.open_product(FRANCE), image)
    got = radiometry.noise_power(noise, np.array([663, 664]), np.array([8759, 8760]), image.line_interval_s)
    rows = noise.along_range
    for j, (sample, block) in enumerate([(8759, noise.blocks[0]), (8760, noise.blocks[1])]):
        at = list(rows.pixel[0]).index(sample)
        k = list(block.line).index(660)
        for i, line in enumerate((663, 664)):
            weight = line * image.line_interval_s / rows.time_s[1]
            along_range = rows.value[0][at] * (1 - weight) + rows.value[1][at] * weight
            along_azimuth = block.value[k] + (block.value[k + 1] - block.value[k]) * (line - 660) / 10
            assert got[i, j] == pytest.approx(along_range * along_azimuth, rel=1e-6)


def test_empty_measurement_is_named(tmp_path):
    grid, _, _ = somewhere(safe.images(safe.open_product(FRANCE))["VV"], 100)
    wide, dem = grid.padded(1500), tmp_path / "dem.tif"
    transform = from_origin(wide.left, wide.top, 100, 100)
    size = {"width": wide.width // 10, "height": wide.height // 10, "count": 1, "dtype": "float32"}
    with rasterio.open(dem, "w", driver="GTiff", crs=grid.crs, transform=transform, **size) as raster:
        raster.write(np.full((size["height"], size["width"]), 400, "float32"), 1)
    with pytest.raises(ProductError, match=r"measurement/s1a-iw-grd-vv.*is no whole TIFF"):
        process_s1(FRANCE, dem, tmp_path / "out" / "scene.tif", {}, grid, Sentinel1(geoid=0), 1)
    assert [path.name for path in tmp_path.rglob("*")] == ["dem.tif"]


def relief(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Smooth ellipsoidal heights of 100 to 900 m."""
    return 500 + 250 * np.sin(longitude * 120) + 150 * np.cos(latitude * 150)


def by_brute_force(image: safe.Image, longitude: float, latitude: float) -> tuple[float, float]:
    """Line and sample of a place: closest approach by shrinking a search, ground range by bisection."""
    place = geocoding.geodetic_to_ecef(np.array(longitude), np.array(latitude), relief(longitude, latitude))
    low, high = 0.0, image.lines * image.line_interval_s
    for _ in range(60):
        third = (high - low) / 3
        times = np.array([low + third, high - third])
        near, far = np.linalg.norm(state(image.orbit, times)[0] - place, axis=1)
        low, high = (low, high - third) if near < far else (low + third, high)
    time_s = (low + high) / 2
    slant_m = np.linalg.norm(state(image.orbit, np.array([time_s]))[0] - place)
    records = image.ground_to_slant
    coefficients = [np.interp(time_s, records.time_s, column) for column in records.coefficients.T]
    low, high = 0.0, image.samples * image.range_spacing_m
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.polyval(coefficients[::-1], middle) < slant_m else (low, middle)
    return time_s / image.line_interval_s, middle / image.range_spacing_m


def digital_numbers(image: safe.Image, line: np.ndarray, sample: np.ndarray, sigma0: np.ndarray) -> np.ndarray:
    """DN of a backscatter by the tables of the product, interpolated by their line numbers; swath borders excluded."""
    archive = safe.open_product(ROME)
    vectors, noise = safe.calibration(archive, image, "sigmaNought"), safe.noise(archive, image)
    positions = [*np.meshgrid(line, sample, indexing="ij")]

    def table(of: radiometry.Vectors) -> np.ndarray:
        lines = of.time_s / image.line_interval_s
        return RegularGridInterpolator((lines, of.pixel[0]), np.stack(of.value))(np.stack(positions, axis=-1))

    (block,) = (one for one in noise.blocks if one.first_sample <= sample[0] and sample[-1] <= one.last_sample)
    noise_power = table(noise.along_range) * np.interp(line, block.line, block.value)[:, None]
    return np.sqrt(sigma0 * table(vectors) ** 2 + noise_power).round().astype("uint16")


@pytest.fixture(scope="module")
def rome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Grid, list[tuple[float, float]]]:
    """A copy of the product with constant backscatter and bright targets, a DEM, a grid, the targets' places."""
    folder = tmp_path_factory.mktemp("rome")
    product = folder / ROME.name
    shutil.copytree(ROME, product, ignore=shutil.ignore_patterns("measurement"))
    (product / "measurement").mkdir()
    image = safe.images(safe.open_product(product))["VV"]
    grid = Grid(crs="EPSG:32633", left=283_020, top=4_660_020, width=320, height=300)
    transform = from_origin(12.3, 42.15, 1 / 3600, 1 / 3600)
    size = {"width": 900, "height": 900, "count": 1, "dtype": "float32"}
    with rasterio.open(folder / "dem.tif", "w", driver="GTiff", crs="EPSG:4979", transform=transform, **size) as raster:
        rows, columns = np.mgrid[:900, :900]
        raster.write(relief(12.3 + (columns + 0.5) / 3600, 42.15 - (rows + 0.5) / 3600).astype("float32"), 1)
    to_degrees = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    targets = [(283_520.0 + 1034.5 * i, 4_659_513.0 - 987.3 * j) for i in range(3) for j in range(3)]
    found = np.array([by_brute_force(image, *to_degrees.transform(*target)) for target in targets])
    (top, left), (bottom, right) = found.min(axis=0).astype(int) - 150, found.max(axis=0).astype(int) + 150
    line, sample = np.arange(top, bottom), np.arange(left, right)
    sigma0 = np.full((len(line), len(sample)), SIGMA0)
    for at_line, at_sample in found:
        distance2 = (line[:, None] - at_line) ** 2 + (sample - at_sample) ** 2
        sigma0 += 1000 * SIGMA0 * np.exp(-distance2 / (2 * 1.5**2))
    size = {"width": image.samples, "height": image.lines, "count": 1, "dtype": "uint16"}
    tiles = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True}
    with rasterio.open(product / f"measurement/{image.name}.tiff", "w", driver="GTiff", **size, **tiles) as raster:
        window = Window.from_slices((top, bottom), (left, right))
        raster.write(digital_numbers(image, line, sample, sigma0), 1, window=window)
    return product, folder / "dem.tif", grid, targets


def test_targets_come_out_where_they_are_and_a_constant_field_constant(rome, tmp_path):
    product, dem, grid, targets = rome
    settings = Sentinel1(polarisations=("VV",), speckle_filter="none")
    process_s1(product, dem, tmp_path / "out.tif", {"id": "rome"}, grid, settings)
    with rasterio.open(tmp_path / "out.tif") as raster:
        power, tags, left, top = raster.read(1), raster.tags(), raster.bounds.left, raster.bounds.top
    assert (tags["scene"], tags["orbit_state"], tags["relative_orbit"]) == ("rome", "descending", "22")
    rows, columns = np.indices(power.shape)
    far = np.isfinite(power)
    for x, y in targets:
        row, column = (top - y) / 10 - 0.5, (x - left) / 10 - 0.5
        near = np.hypot(rows - row, columns - column) < 9
        weight = np.where(near, power - SIGMA0, 0)
        assert (weight * rows).sum() / weight.sum() == pytest.approx(row, abs=0.1)
        assert (weight * columns).sum() / weight.sum() == pytest.approx(column, abs=0.1)
        far &= np.hypot(rows - row, columns - column) > 20
    assert far.sum() > 50_000
    assert abs(10 * np.log10(power[far] / SIGMA0)).max() < 0.02


def test_real_dem_is_raised_by_the_geoid_that_its_crs_names():
    dem = SHARED.parent / "dem" / "Rome-30m-DEM.tif"
    if not any((folder / name).is_file() for folder in geoid.proj_folders() for name in geoid.GRIDS["egm96"]):
        pytest.skip("PROJ has no grid of EGM96 here: apt-get install proj-data")
    grid = Grid(crs="EPSG:32633", left=291_000, top=4_656_000, width=400, height=400)
    terrain = read_dem(dem, grid)
    assert terrain.geoid.startswith("egm96 (")
    grid_file = geoid.open_geoid("egm96").source
    shift = Transformer.from_pipeline(
        "+proj=pipeline +step +proj=unitconvert +xy_in=deg +xy_out=rad "
        f"+step +proj=vgridshift +grids={grid_file} +multiplier=1 +step +proj=unitconvert +xy_in=rad +xy_out=deg"
    )
    with rasterio.open(dem) as raster:
        rows, columns = (slice(100, 300, 25) for _ in "yx")
        above_sea = raster.read(1)[rows, columns]
        x, y = raster.transform * np.meshgrid(np.arange(100, 300, 25) + 0.5, np.arange(100, 300, 25) + 0.5)
        whole = read_dem(dem, grid.padded(400))
    ellipsoidal = shift.transform(x, y, above_sea.astype(float))[2]
    assert 45 < (ellipsoidal - above_sea).mean() < 52
    inside = geocoding.bilinear(whole.height_m, *np.mgrid[100:300:25, 100:300:25].astype(float))
    np.testing.assert_allclose(inside, ellipsoidal, atol=0.01)
