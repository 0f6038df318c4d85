"""The made-up world: land that looks like land, labels wrong as real ones are, products with the true structure."""

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from defusedxml import ElementTree
from pyproj import Transformer
from rasterio.warp import Resampling, reproject
from scipy import ndimage
from shapely.geometry import shape

from covermap import simulator
from covermap.simulator import labels, overpass, reflectance, sentinel2
from covermap.simulator.catalog import world_polygon
from covermap.simulator.landscape import CLASSES, CROP, MARGIN, PASTURE, SHARES, Landscape, make_landscape
from covermap.simulator.overpass import ACQUISITIONS
from covermap.simulator.reflectance import BANDS

SEED = 7
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def land() -> Landscape:
    return make_landscape(1024, SEED)


@pytest.fixture(scope="module")
def small() -> Landscape:
    return make_landscape(256, SEED)


@pytest.fixture(scope="module")
def world_labels(land: Landscape, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, np.ndarray]:
    """Labels at their own 30 m (cut to the world) and on the 10 m pixels of the world."""
    path = tmp_path_factory.mktemp("labels") / "mapbiomas.tif"
    labels.write_labels(path, land, SEED)
    near = np.zeros((1024, 1024), np.uint8)
    corner = rasterio.Affine(10, 0, 778_240, 0, -10, 8_515_200)
    with rasterio.open(path) as raster:
        assert raster.crs.to_epsg() == 4326
        assert raster.transform.a == labels.PIXEL_DEG
        reproject(rasterio.band(raster, 1), near, dst_crs=land.crs, dst_transform=corner, resampling=Resampling.nearest)
        return raster.read(1)[60:-60, 60:-60], near


@pytest.fixture(scope="module")
def safe(small: Landscape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One product from before baseline 04.00."""
    products = tmp_path_factory.mktemp("products")
    item = sentinel2.simulate_sentinel2(small, products, ACQUISITIONS[0], SEED)
    return products / f"{item['id']}.SAFE"


def inside(field: np.ndarray) -> np.ndarray:
    return field[MARGIN:-MARGIN, MARGIN:-MARGIN]


def band(safe: Path, name: str) -> np.ndarray:
    with rasterio.open(next(safe.glob(f"GRANULE/*/IMG_DATA/R*m/*_{name}_*.jp2"))) as raster:
        return raster.read(1)


def test_same_seed_same_land_another_seed_another_land(small: Landscape) -> None:
    again, other = make_landscape(256, SEED), make_landscape(256, SEED + 1)
    for name in ("classes", "parcels", "height_m", "previous"):
        assert np.array_equal(getattr(small, name), getattr(again, name))
        assert not np.array_equal(getattr(small, name), getattr(other, name))


def test_every_class_is_frequent_and_spread(land: Landscape) -> None:
    classes = inside(land.classes)
    assert set(np.unique(classes)) == set(CLASSES)
    for code in CLASSES:
        count = ndimage.label(classes == code)[1]
        assert (classes == code).mean() > 0.008
        assert count > 8
        quarters = [(quarter == code).any() for half in np.split(classes, 2) for quarter in np.split(half, 2, 1)]
        assert sum(quarters) >= 3
    for code, share in SHARES.items():
        assert (land.classes == code).mean() == pytest.approx(share, rel=0.35)


def test_parcels_hold_one_class_and_fields_have_real_sizes(land: Landscape) -> None:
    sizes = np.bincount(land.parcels.ravel())
    assert sizes.min() > 0
    means = np.bincount(land.parcels.ravel(), land.classes.ravel()) / sizes
    squares = np.bincount(land.parcels.ravel(), land.classes.ravel().astype(float) ** 2) / sizes
    assert np.abs(squares - means**2).max() < 1e-6
    for code in (CROP, PASTURE):
        hectares = sizes[np.unique(land.parcels[land.classes == code])] / 100
        assert 20 < np.median(hectares) < 200


def test_heights_are_rolling_with_a_few_steep_slopes(land: Landscape) -> None:
    slope = np.degrees(np.arctan(np.hypot(*np.gradient(land.height_m, 10))))
    assert 240 < land.height_m.min() < land.height_m.max() < 560
    assert np.median(slope) < 6
    assert 12 < slope.max() < 30


def test_a_year_changes_whole_parcels_of_a_twentieth_of_the_land(land: Landscape) -> None:
    changed = land.previous != land.classes
    assert 0.04 < changed.mean() < 0.06
    share = np.bincount(land.parcels[changed], minlength=land.parcels.max() + 1) / np.bincount(land.parcels.ravel())
    assert ((share > 0.3) | (share < 0.05)).mean() > 0.97


def test_labels_agree_with_the_truth_in_three_pixels_of_four(
    land: Landscape, world_labels: tuple[np.ndarray, np.ndarray]
) -> None:
    truth, near = inside(land.classes), world_labels[1]
    assert (near != 0).all()
    assert 0.70 < (near == truth).mean() < 0.78
    scores = []
    for code in CLASSES:
        given = np.bincount(near[truth == code], minlength=34)
        assert given.argmax() == code, f"class {code} is mostly labelled {given.argmax()}"
        assert given[code] / given.sum() > 0.55
        scores.append(2 * given[code] / ((near == code).sum() + given.sum()))
    assert sum(score < 0.75 for score in scores) >= 4


def test_label_errors_are_coherent(land: Landscape, world_labels: tuple[np.ndarray, np.ndarray]) -> None:
    wrong = world_labels[1] != inside(land.classes)
    at_30_m = wrong[1::3, 1::3]
    joins = (at_30_m[:, :-1] & at_30_m[:, 1:]).mean() / at_30_m.mean() ** 2
    independent = np.random.default_rng(0).permutation(at_30_m.ravel()).reshape(at_30_m.shape)
    by_chance = (independent[:, :-1] & independent[:, 1:]).mean() / independent.mean() ** 2
    assert by_chance == pytest.approx(1, abs=0.05)
    assert joins > 1.8
    sizes = np.bincount(ndimage.label(wrong)[0][wrong])
    assert sizes[sizes > 200].sum() > 0.4 * wrong.sum()  # much of the error lies in patches of hectares


def test_labels_show_the_year_before_where_the_land_changed(land: Landscape) -> None:
    given = labels.weak_labels(land, SEED)
    changed = ndimage.binary_erosion(land.previous != land.classes, iterations=4)
    assert (given == land.previous)[changed].mean() > 0.7
    assert (given == land.classes)[changed].mean() < 0.2


def test_offset_of_1000_from_baseline_0400_on(small: Landscape, safe: Path, tmp_path: Path) -> None:
    late = replace(ACQUISITIONS[0], baseline="04.00")
    item = sentinel2.simulate_sentinel2(small, tmp_path, late, SEED)
    newer = tmp_path / f"{item['id']}.SAFE"
    for name in BANDS:
        old, new = band(safe, name).astype(int), band(newer, name).astype(int)
        lit = old > 1  # DN 1 stands for 'nearly black or less'
        assert lit.mean() > 0.99
        assert (new - old == 1000)[lit].all()
    offsets = [
        [float(entry.text) for entry in ElementTree.parse(product / "MTD_MSIL2A.xml").iter("BOA_ADD_OFFSET")]
        for product in (safe, newer)
    ]
    assert offsets == [[], [-1000.0] * 13]
    assert "_N0301_" in safe.name
    assert "_N0400_" in newer.name


def test_granule_lies_on_the_60_m_lattice_and_says_so(safe: Path, small: Landscape) -> None:
    tile = ElementTree.parse(next(safe.glob("GRANULE/*/MTD_TL.xml")))
    for entry in tile.iter("Geoposition"):
        assert int(entry.findtext("ULX")) % 60 == 0
        assert (10_000_000 - int(entry.findtext("ULY"))) % 60 == 0
    left, top = int(tile.findtext(".//ULX")), int(tile.findtext(".//ULY"))
    assert 900 < 778_240 - left < 1200
    assert 900 < top - 8_515_200 < 1200
    rows = {int(entry.get("resolution")): int(entry.findtext("NROWS")) for entry in tile.iter("Size")}
    images = {element.text for element in ElementTree.parse(safe / "MTD_MSIL2A.xml").iter("IMAGE_FILE")}
    found = sorted(safe.glob("GRANULE/*/IMG_DATA/R*m/*.jp2"))
    assert images == {path.relative_to(safe).with_suffix("").as_posix() for path in found}
    assert len(found) == len(BANDS) + 2
    for path in found:
        resolution = int(path.stem[-3:-1])
        with rasterio.open(path) as raster:
            assert raster.crs.to_epsg() == 32721
            assert raster.transform == rasterio.Affine(resolution, 0, left, 0, -resolution, top)
            assert raster.shape == (rows[resolution], rows[resolution])
            assert raster.shape[0] * resolution >= 2560 + 1900
            assert (raster.read(1) > 0).all()


def test_manifest_knows_every_file(safe: Path) -> None:
    listed = {}
    for entry in ElementTree.parse(safe / "manifest.safe").iter("dataObject"):
        listed[entry.find(".//fileLocation").get("href")[2:]] = entry.findtext(".//checksum")
    files = [path for path in safe.rglob("*") if path.is_file() and path.name != "manifest.safe"]
    assert listed == {
        path.relative_to(safe).as_posix(): hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        for path in files
    }


def test_dry_season_reflectance_meets_the_published_means(land: Landscape) -> None:
    published = np.array([322, 595, 429, 997, 2498, 3018, 2972, 3248, 2116, 1086])
    part = slice(200, 1000), slice(200, 1000)
    for acquisition in (ACQUISITIONS[0], ACQUISITIONS[-1]):
        bands = reflectance.ground_reflectance(land, part, acquisition, SEED)
        means = np.array([values.mean() for values in bands]) * 10_000
        np.testing.assert_allclose(means, published, rtol=0.25)


def test_cloudy_dates_are_cloudy_and_clear_dates_are_not(tmp_path: Path, small: Landscape, safe: Path) -> None:
    item = sentinel2.simulate_sentinel2(small, tmp_path, ACQUISITIONS[2], SEED)
    cloudy = band(tmp_path / f"{item['id']}.SAFE", "SCL")
    assert set(np.unique(cloudy)) <= set(range(2, 12))
    assert 100 * np.isin(cloudy, (8, 9, 10)).mean() == pytest.approx(item["properties"]["eo:cloud_cover"], abs=1e-4)
    assert np.isin(cloudy, (8, 9, 10)).mean() > 0.3
    assert (cloudy == 3).mean() > 0.05
    assert np.isin(band(safe, "SCL"), (8, 9, 10)).mean() < 0.15


def test_sun_stands_where_the_seasons_put_it() -> None:
    # At solar noon (12 h less 3.622 h of longitude, less the equation of time) the zenith angle is the latitude's
    # distance from the tropic, 23.44 deg; the sun stands in the south in December and in the north in June.
    zenith, azimuth = overpass.sun_angles(datetime(2021, 12, 21, 15, 35, 20))
    assert zenith == pytest.approx(23.44 - 13.5, abs=0.2)
    assert azimuth == pytest.approx(180, abs=6)  # half a minute of time is a degree, so near the zenith
    zenith, azimuth = overpass.sun_angles(datetime(2022, 6, 21, 15, 39, 10))
    assert zenith == pytest.approx(23.44 + 13.5, abs=0.2)
    assert min(azimuth, 360 - azimuth) < 2
    zenith, azimuth = overpass.sun_angles(datetime(2022, 3, 20, 12, 44, 45))  # equinox, three hours before noon
    assert np.cos(np.radians(zenith)) == pytest.approx(np.cos(np.radians(13.5)) * np.cos(np.radians(45)), abs=0.005)
    assert 60 < azimuth < 90


def test_whole_world_is_the_same_from_one_process_and_from_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "SCENE_DAYS", ())
    monkeypatch.setattr(simulator, "ACQUISITIONS", ACQUISITIONS[:2])
    sums = []
    for threads in (1, 2):
        world = tmp_path / str(threads)
        (world / "products" / ".left_over.part").mkdir(parents=True)
        names = {"catalog": "catalog.json", "dem": "dem.tif", "labels": "mapbiomas_2021.tif", "truth": "truth.tif"}
        outputs = {key: world / name for key, name in names.items()}
        simulator.simulate_demo(**outputs, pixels=256, seed=SEED, threads=threads)
        files = {path.relative_to(world).as_posix(): path for path in sorted(world.rglob("*")) if path.is_file()}
        assert not [name for name in files if "part" in name]
        assert max(path.stat().st_mtime_ns for path in files.values()) == outputs["catalog"].stat().st_mtime_ns
        sums.append({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()})
        items = json.loads(outputs["catalog"].read_text())["features"]
        assert [item["id"] for item in items] == sorted(item["id"] for item in items)
        assert all((world / item["assets"]["product"]["href"]).is_dir() for item in items)
        assert len(items) == 2
        for item in items:  # core schema of STAC; those of the extensions are not on disk
            pystac.Item.from_dict({**item, "stac_extensions": []}).validate()
            pystac.Collection.from_file(str(world / item["links"][0]["href"])).validate()
    assert sums[0] == sums[1]


def test_dem_and_truth_lie_where_the_land_lies(tmp_path: Path, small: Landscape) -> None:
    simulator.write_dem(tmp_path / "dem.tif", small)
    simulator.write_truth(tmp_path / "truth.tif", small)
    with rasterio.open(tmp_path / "truth.tif") as truth:
        assert truth.transform == rasterio.Affine(10, 0, 778_240, 0, -10, 8_515_200)
        assert np.array_equal(truth.read(1), inside(small.classes))
    rows, columns = np.array([100, 250, 400]), np.array([390, 130, 300])
    longitude, latitude = Transformer.from_crs(small.crs, "EPSG:4326", always_xy=True).transform(
        small.left + 10 * (columns + 0.5), small.top - 10 * (rows + 0.5)
    )
    with rasterio.open(tmp_path / "dem.tif") as dem:
        assert dem.crs.to_epsg() == 4979
        heights = dem.read(1)
        row, column = rasterio.transform.rowcol(dem.transform, longitude, latitude, op=lambda value: value)
    found = ndimage.map_coordinates(heights, [np.subtract(row, 0.5), np.subtract(column, 0.5)], order=1)
    np.testing.assert_allclose(found, small.height_m[rows, columns], atol=1.5)


def test_demo_area_is_the_world_inset() -> None:
    stored = json.loads((ROOT / "resources/aois/demo.geojson").read_text())
    assert stored == world_polygon(2048)
    area = shape(stored["features"][0]["geometry"])
    assert area.is_valid
    outline = np.array(area.segmentize(0.001).exterior.coords)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32721", always_xy=True).transform(*outline.T)
    for gap in (x.min() - 778_240, 778_240 + 20_480 - x.max(), 8_515_200 - y.max(), y.min() - 8_515_200 + 20_480):
        assert 5 < gap < 25
