"""The simulator of Sentinel-1 scenes against its own statement of geometry, speckle and noise."""

import binascii
import hashlib
import re
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from defusedxml import ElementTree
from pyproj import Transformer
from shapely.geometry import Point, shape

from covermap.simulator import backscatter, projection, radar_noise, sentinel1, viewing
from covermap.simulator.landscape import Landscape

SEED, DAY = 5, viewing.SCENE_DAYS[0]
SIZE = 200


@pytest.fixture(scope="module")
def land() -> Landscape:
    """Two hills; forest in the west, grassland in fields in the east, a river between them."""
    row, column = np.mgrid[:SIZE, :SIZE]
    classes = np.where(column < SIZE // 2, 3, 12).astype(np.uint8)
    classes[:, SIZE // 2 - 4 : SIZE // 2 + 4] = 33
    hills = np.exp(-((row - 70) ** 2 + (column - 60) ** 2) / 500) + np.exp(
        -((row - 120) ** 2 + (column - 150) ** 2) / 900
    )
    return Landscape(
        crs="EPSG:32721",
        left=788_000.0,
        top=8_505_000.0,
        pixel_m=10.0,
        margin=20,
        classes=classes,
        parcels=(classes.astype(np.int32) + 64 * (row // 50) + 512 * (column // 50)).astype(np.int32),
        height_m=(300 + 70 * hills + 0.05 * row).astype(np.float32),
        previous=classes,
    )


@pytest.fixture(scope="module")
def level(land: Landscape) -> Landscape:
    return replace(land, height_m=np.full((SIZE, SIZE), 320, np.float32))


@pytest.fixture(scope="module")
def product(land: Landscape, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("products")
    item = sentinel1.simulate_sentinel1_scene(land, folder, DAY, SEED)
    return folder / f"{item['id']}.SAFE", item


def _xml(safe: Path, pattern: str) -> ElementTree:
    (path,) = safe.glob(pattern)
    return ElementTree.parse(path).getroot()


def _seconds(text: str) -> float:
    return (datetime.fromisoformat(text) - datetime(DAY.year, DAY.month, DAY.day)).total_seconds()


def _floats(element: ElementTree, path: str) -> np.ndarray:
    return np.array(element.find(path).text.split(), float)


def _image(safe: Path, polarisation: str) -> np.ndarray:
    (path,) = safe.glob(f"measurement/*-{polarisation}-*.tiff")
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def test_names_checksums_and_crc_belong_together(product):
    safe, item = product
    pattern = r"S1A_IW_GRDH_1SDV_20210810T0909\d\d_20210810T0909\d\d_039165_049F59_([0-9A-F]{4})"
    manifest = (safe / "manifest.safe").read_bytes()
    assert f"{binascii.crc_hqx(manifest, 0xFFFF):04X}" == re.fullmatch(pattern, item["id"])[1]
    streams = ElementTree.fromstring(manifest).findall(".//dataObjectSection/dataObject/byteStream")
    assert len(streams) == 8
    for stream in streams:
        content = (safe / stream.find("fileLocation").get("href")).read_bytes()
        assert len(content) == int(stream.get("size"))
        assert hashlib.md5(content).hexdigest() == stream.find("checksum").text


def test_item_tells_where_and_how_the_land_was_seen(product, land):
    item = product[1]
    x, y = land.left + SIZE * 5, land.top - SIZE * 5
    lon, lat = Transformer.from_crs(land.crs, "EPSG:4326", always_xy=True).transform(x, y)
    footprint = shape(item["geometry"])
    assert footprint.contains(Point(lon, lat)) and footprint.exterior.is_ccw
    assert item["bbox"] == pytest.approx(footprint.bounds)
    assert item["properties"]["sat:relative_orbit"] == 68
    assert item["properties"]["sat:absolute_orbit"] == 39165


def test_one_pass_a_month_on_one_track():
    assert [(day.year, day.month) for day in viewing.SCENE_DAYS] == [
        *((2021, month) for month in range(8, 13)),
        *((2022, month) for month in range(1, 8)),
    ]
    assert all((day - DAY).days % 12 == 0 for day in viewing.SCENE_DAYS)


def test_a_day_without_a_pass_is_refused(land, tmp_path):
    with pytest.raises(ValueError, match="2021-08-11"):
        sentinel1.simulate_sentinel1_scene(land, tmp_path, date(2021, 8, 11), SEED)
    assert not list(tmp_path.iterdir())


def test_geolocation_grid_is_zero_doppler_seen_to_the_right_from_the_annotated_orbit(product):
    root = _xml(product[0], "annotation/*-vv-*.xml")
    orbits = root.findall("generalAnnotation/orbitList/orbit")
    times = np.array([_seconds(orbit.find("time").text) for orbit in orbits])
    position, velocity = (
        np.array([[float(axis.text) for axis in orbit.find(name)] for orbit in orbits])
        for name in ("position", "velocity")
    )
    to_earth_fixed = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    first = _seconds(root.find(".//productFirstLineUtcTime").text)
    interval = float(root.find(".//azimuthTimeInterval").text)
    points = root.findall(".//geolocationGridPoint")
    assert len(points) == 210
    for point in points:
        value = {part.tag: part.text for part in point}
        time = _seconds(value["azimuthTime"])
        near = np.argsort(np.abs(times - time))[:8]
        weights = [
            np.prod([(time - times[m]) / (times[k] - times[m]) for m in near if m != k]) for k in near
        ]  # Lagrange
        satellite, course = weights @ position[near], weights @ velocity[near]
        seen = np.array(to_earth_fixed.transform(*(float(value[n]) for n in ("longitude", "latitude", "height"))))
        sight = seen - satellite
        assert abs(sight @ course / (course @ course)) < 2e-6  # seconds off zero Doppler
        assert np.linalg.norm(sight) == pytest.approx(float(value["slantRangeTime"]) * 299_792_458 / 2, abs=5e-3)
        assert np.cross(course, satellite) @ sight > 0  # right of the track
        assert course[2] < 0  # southward
        assert (time - first) / interval == pytest.approx(int(value["line"]), abs=1e-3)
        angle = np.degrees(np.arccos(-sight @ _up(value) / np.linalg.norm(sight)))
        assert float(value["incidenceAngle"]) == pytest.approx(angle, abs=1e-4)


def _up(value: dict[str, str]) -> np.ndarray:
    lat, lon = np.radians(float(value["latitude"])), np.radians(float(value["longitude"]))
    return np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])


def test_conversion_records_tie_slant_range_to_samples_both_ways(product):
    root = _xml(product[0], "annotation/*-vv-*.xml")
    records = root.findall(".//coordinateConversion/coordinateConversionList/coordinateConversion")
    times = np.array([_seconds(record.find("azimuthTime").text) for record in records])
    srgr, grsr = (np.array([_floats(r, f"{n}Coefficients") for r in records]) for n in ("srgr", "grsr"))
    near = float(records[0].find("sr0").text)
    assert srgr.shape[1] == grsr.shape[1] == 9
    assert np.all(np.ptp(srgr[:, 1]) > 0)
    for point in root.findall(".//geolocationGridPoint"):
        time, pixel = _seconds(point.find("azimuthTime").text), int(point.find("pixel").text)
        slant = float(point.find("slantRangeTime").text) * 299_792_458 / 2
        assert times[0] < time < times[-1]
        forward = [np.interp(time, times, srgr[:, k]) for k in range(9)]
        back = [np.interp(time, times, grsr[:, k]) for k in range(9)]
        assert np.polyval(forward[::-1], slant - near) / 10 == pytest.approx(pixel, abs=1e-3)
        assert np.polyval(back[::-1], pixel * 10.0) == pytest.approx(slant, abs=1e-2)


def test_samples_come_from_the_place_that_is_seen_there(land):
    """Rows and columns sent through the projection and back through the dense geometry name the sample itself."""
    seen_from = viewing.acquire(land, DAY, SEED)
    row, column = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    image, seen = projection.project(seen_from, land, (row + 1j * column).astype(np.complex64))
    line, sample = np.nonzero(seen)
    row, column = image[seen].real, image[seen].imag
    inside = (row > 1) & (row < SIZE - 2) & (column > 1) & (column < SIZE - 2)
    row, column, line, sample = (a[inside].astype(float) for a in (row, column, line, sample))
    top, left = row.astype(int), column.astype(int)
    corners = [land.height_m[top + r, left + c].astype(float) for r in (0, 1) for c in (0, 1)]
    down, right = row - top, column - left
    height = (corners[0] * (1 - right) + corners[1] * right) * (1 - down)
    height += (corners[2] * (1 - right) + corners[3] * right) * down
    x, y = land.left + 10 * (column + 0.5), land.top - 10 * (row + 0.5)
    found = viewing.image_coordinates(seen_from, (x, y, height))
    assert line.size > 30_000
    assert np.abs(found[0] - line).max() < 0.02
    assert np.abs(found[1] - sample).max() < 0.02


def test_height_moves_the_image_towards_the_satellite(land):
    """At 39 degrees a point 100 m higher is seen 100 / tan(39) = 123 m nearer, on the line where it was."""
    seen_from = viewing.acquire(land, DAY, SEED)
    x, y = np.full(2, land.left + 5 * SIZE), np.full(2, land.top - 5 * SIZE)
    line, sample = viewing.image_coordinates(seen_from, (x, y, np.array([300.0, 400.0])))
    assert np.diff(sample)[0] == pytest.approx(-12.35, abs=0.1)
    assert abs(np.diff(line)[0]) < 1


def test_slopes_brighten_as_the_area_in_a_sample_grows(level):
    """On a plane tilted by a towards the satellite, sigma nought grows by tan(39) / tan(39 - a)."""
    seen_from = viewing.acquire(level, DAY, SEED)
    assert backscatter.slope_factor(seen_from, level) == pytest.approx(1.0, abs=1e-3)
    heading = np.radians(sentinel1.describe(seen_from, level).heading_deg)
    towards = np.array([-np.cos(heading), np.sin(heading)])  # east, north: left of the course, back to the satellite
    row, column = np.mgrid[:SIZE, :SIZE]
    for tilt_deg in (15.0, -15.0):
        fall = np.tan(np.radians(tilt_deg)) * 10 * (column * towards[0] - row * towards[1])
        tilted = replace(level, height_m=(320 - (fall - fall.mean())).astype(np.float32))
        expected = np.tan(np.radians(39)) / np.tan(np.radians(39 - tilt_deg))
        assert np.median(backscatter.slope_factor(seen_from, tilted)) == pytest.approx(expected, rel=0.03)


def test_speckle_has_the_looks_and_the_correlation_of_real_scenes():
    factor = radar_noise.speckle((700, 650), np.random.default_rng(1))
    assert factor.mean() == pytest.approx(1, abs=0.01)
    assert factor.mean() ** 2 / factor.var() == pytest.approx(4.4, abs=0.15)
    log = np.log(factor) - np.log(factor).mean()
    assert 0.6 < (log[1:] * log[:-1]).mean() / log.var() < 0.8
    assert 0.6 < (log[:, 1:] * log[:, :-1]).mean() / log.var() < 0.8
    assert abs((log[8:] * log[:-8]).mean() / log.var()) < 0.03


def test_nothing_lies_outside_the_land_and_something_everywhere_on_it(product):
    for polarisation in ("vv", "vh"):
        image = _image(product[0], polarisation)
        assert image.dtype == np.uint16
        assert (image == 0).mean() == pytest.approx(1 - 200 * 200 / image.size, abs=0.02)
        frame = np.concatenate([image[:4].ravel(), image[-4:].ravel(), image[:, :4].ravel(), image[:, -4:].ravel()])
        assert not frame.any()
        rows = image.any(1)
        starts, ends = (image != 0).argmax(1), image.shape[1] - (image != 0)[:, ::-1].argmax(1)
        assert all(image[k, starts[k] : ends[k]].all() for k in np.flatnonzero(rows))


def test_calibrated_and_denoised_power_is_that_of_the_land(level, tmp_path):
    """DN^2 less noise, over the square of the calibration, is the sigma nought that went in, to 0.1 dB."""
    forest = replace(level, classes=np.full_like(level.classes, 3), parcels=np.zeros_like(level.parcels))
    item = sentinel1.simulate_sentinel1_scene(forest, tmp_path, DAY, SEED)
    safe = tmp_path / f"{item['id']}.SAFE"
    sigma = backscatter.backscatter(forest, DAY, SEED)[0, 0]
    for polarisation, expected in (("vv", sigma.real), ("vh", sigma.imag)):
        image = _image(safe, polarisation).astype(float)
        vector = _xml(safe, f"annotation/calibration/calibration-*-{polarisation}-*").find(".//calibrationVector")
        columns = np.arange(image.shape[1])
        factor = np.interp(columns, _floats(vector, "pixel"), _floats(vector, "sigmaNought"))
        noise = _noise_image(_xml(safe, f"annotation/calibration/noise-*-{polarisation}-*"), image.shape)
        got = ((image**2 - noise) / factor**2)[image > 0].mean()
        assert 10 * np.log10(got / expected) == pytest.approx(0, abs=0.1)


def _noise_image(root: ElementTree, size: tuple[int, int]) -> np.ndarray:
    vectors = root.findall("noiseRangeVectorList/noiseRangeVector")
    columns = np.arange(size[1])
    at_lines = [np.interp(columns, _floats(v, "pixel"), _floats(v, "noiseRangeLut")) for v in vectors]
    lines = [int(v.find("line").text) for v in vectors]
    assert lines[0] == 0 and lines[-1] == size[0] - 1
    made = np.stack([np.interp(np.arange(size[0]), lines, column) for column in np.array(at_lines).T], 1)
    for block in root.findall("noiseAzimuthVectorList/noiseAzimuthVector"):
        factor = np.interp(np.arange(size[0]), _floats(block, "line"), _floats(block, "noiseAzimuthLut"))
        part = slice(int(block.find("firstRangeSample").text), int(block.find("lastRangeSample").text) + 1)
        made[:, part] *= factor[:, None]
    return made


def test_noise_is_positive_in_range_and_steps_between_sub_swaths(product):
    root = _xml(product[0], "annotation/calibration/noise-*-vh-*")
    assert [block.find("swath").text for block in root.iter("noiseAzimuthVector")] == ["IW1", "IW2", "IW3"]
    noise = _noise_image(root, _image(product[0], "vh").shape)
    level_db = 10 * np.log10(noise / 600**2)
    assert noise.min() > 0
    assert level_db.min() > -30 and level_db.max() < -20
    border = int(root.findall(".//firstRangeSample")[1].text)
    assert np.abs(level_db[:, border] - level_db[:, border - 1]).min() > 0.5


def test_crops_and_water_change_with_the_season_and_forest_does_not(land):
    forest, grass = land.classes == 3, land.classes == 12
    dry, wet = (backscatter.backscatter(land, day, SEED).imag for day in (date(2021, 9, 15), date(2022, 1, 13)))
    change_db = 10 * np.log10(wet / dry)
    assert abs(change_db[forest].mean()) < 1
    assert change_db[grass].mean() > 2


def test_rain_lifts_open_land_alone(land, monkeypatch):
    rained = backscatter.backscatter(land, backscatter.RAIN_DAY, SEED)
    monkeypatch.setattr(backscatter, "RAIN_DAY", None)
    change_db = 10 * np.log10(rained.real / backscatter.backscatter(land, viewing.SCENE_DAYS[9], SEED).real)
    assert change_db[land.classes == 12] == pytest.approx(1.5, abs=1e-3)
    assert change_db[np.isin(land.classes, (3, 33))] == pytest.approx(0, abs=1e-3)


def test_same_seed_same_bytes_other_seed_other_speckle(product, land, tmp_path):
    safe, item = product
    assert sentinel1.simulate_sentinel1_scene(land, tmp_path, DAY, SEED) == item
    again = tmp_path / safe.name
    files = sorted(path.relative_to(safe) for path in safe.rglob("*") if path.is_file())
    assert len(files) == 9
    assert all((safe / path).read_bytes() == (again / path).read_bytes() for path in files)
    assert sentinel1.simulate_sentinel1_scene(land, tmp_path, DAY, SEED + 1)["id"] != item["id"]
    assert not list(tmp_path.glob(".*"))


def test_control_points_are_the_geolocation_grid(product):
    points = _xml(product[0], "annotation/*-vv-*.xml").findall(".//geolocationGridPoint")
    (path,) = product[0].glob("measurement/*-vv-*.tiff")
    with rasterio.open(path) as dataset:
        gcps, crs = dataset.gcps
    assert crs.to_epsg() == 4326
    got = np.array([(gcp.row, gcp.col, gcp.x, gcp.y, gcp.z) for gcp in gcps])
    names = ("line", "pixel", "longitude", "latitude", "height")
    expected = np.array([[float(point.find(name).text) for name in names] for point in points])
    assert np.abs(got - expected).max() < 1e-9
