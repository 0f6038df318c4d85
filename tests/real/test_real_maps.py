"""Real pixels through the ordinary rules. No claim of accuracy: the point is that real files pass through unharmed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.features import rasterize
from scipy.ndimage import map_coordinates, maximum_filter, minimum_filter
from shapely.geometry import shape

from covermap.area_settings import Period, Provider, Sentinel2
from covermap.config import load
from covermap.grid import Grid, area_grid, project, read_area
from covermap.legend import read_legend
from covermap.providers import Query, stac
from covermap.sentinel2 import clip_s2
from tests.real.worlds import BANDS, BANDS_L1C, OFFSETS, PLACES, slovenia, terramesh


def pixels_at(raster: rasterio.DatasetReader, transform, shape_yx: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of ``raster`` at the pixel centres of another north-up raster of the same CRS."""
    rows, columns = np.indices(shape_yx) + 0.5
    x, y = transform * (columns, rows)
    column, row = ~raster.transform * (x, y)
    return np.floor(row).astype(int), np.floor(column).astype(int)


def share_between(steps: np.ndarray, transform, numbers: np.ndarray, raster: rasterio.DatasetReader) -> float:
    """Share of pixels, of those over a raster, that lie between its pixels (its ``numbers``) as bilinear ones do."""
    rows, columns = np.indices(steps.shape) + 0.5
    column, row = ~raster.transform * (transform * (columns, rows))
    places = [row - 0.5, column - 0.5]
    truth = map_coordinates(numbers.astype(float), places, order=1, cval=np.nan)
    steep = map_coordinates(maximum_filter(numbers, 3) - minimum_filter(numbers, 3), places, order=0)
    inside = np.isfinite(truth)
    assert inside.mean() > 0.5
    return float((np.abs(steps - truth) <= 1 + 0.02 * steep)[inside].mean())  # the warp is exact to 0.01 pixels


def check_map(path: Path, config: dict, aoi: str) -> None:
    settings = load(config).aois[aoi]
    grid = area_grid(read_area(settings.area), settings.crs)
    legend = read_legend(settings.labels.legend)
    with rasterio.open(path) as raster:
        classes = raster.read(1)
        assert raster.crs == CRS.from_string(settings.crs)
        assert (raster.count, raster.dtypes[0], raster.nodata) == (1, "uint8", 0)
        assert raster.transform == grid.transform and raster.shape == grid.shape
        for entry in legend.classes:
            assert raster.colormap(1)[entry.id][:3] == entry.rgb
    assert classes.max() <= len(legend.classes)
    area = project(read_area(settings.area), "EPSG:4326", settings.crs).buffer(-10)
    inside = rasterize([area], out_shape=grid.shape, transform=grid.transform) == 1
    assert inside.mean() > 0.7 and (classes[inside] > 0).all()
    with rasterio.open(path.with_suffix(".confidence.tif")) as raster:
        confidence = raster.read(1)
        assert raster.nodata == 255
    assert confidence[classes > 0].max() <= 100


@pytest.fixture(scope="module")
def slovenian_run(data, snakemake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slovenia")
    config = slovenia(folder, data)
    snakemake(folder, config, "results/maps/slovenia.tif")
    return folder, config


@pytest.mark.long
def test_slovenia_is_mapped(slovenian_run):
    folder, config = slovenian_run
    check_map(folder / "results/maps/slovenia.tif", config, "slovenia")


@pytest.mark.long
def test_slovenian_reflectance_is_the_chip(slovenian_run, data):
    folder, _ = slovenian_run
    chip = np.load(data / "chips/eolearn_slovenia/REFERENCE_SCENES.npy")
    clips = sorted((folder / "results/s2/slovenia").glob("*.tif"))
    assert len(clips) == len(chip) == 5
    for date, path in enumerate(clips):
        with rasterio.open(path) as clip, rasterio.open(folder / path.stem / "B04.tif") as source:
            steps, numbers = clip.read(clip.descriptions.index("B04") + 1), chip[date, ..., BANDS_L1C.index("B04")]
            assert share_between(steps, clip.transform, numbers * 10_000, source) > 0.99


@pytest.mark.long
def test_slovenian_polygons_are_the_patch_s_own_raster(slovenian_run, data):
    folder, config = slovenian_run
    reference = np.load(data / "chips/eolearn_slovenia/mask_timeless/LULC.npy")[..., 0]
    codes = read_legend(Path(config["aois"]["slovenia"]["labels"]["legend"])).codes
    reference = np.array([codes.get(str(code), 0) for code in range(reference.max() + 1)])[reference]
    pure = minimum_filter(reference, 3) == maximum_filter(reference, 3)  # the map's pixels lie across the patch's own
    same = counted = 0
    with rasterio.open(next(folder.glob("slovenia_*/B02.tif"))) as source:
        for path in sorted((folder / "results/labels/slovenia").glob("*.tif")):
            with rasterio.open(path) as labels:
                classes, weight = labels.read()
                row, column = pixels_at(source, labels.transform, classes.shape)
            assert np.array_equal(weight, np.where(classes > 0, 100, 0))
            inside = (row >= 0) & (row < source.height) & (column >= 0) & (column < source.width)
            expected = np.where(pure, reference, 0)[row[inside], column[inside]]
            same += (classes[inside] == expected)[expected > 0].sum()
            counted += (expected > 0).sum()
    assert counted > 5000
    assert same / counted > 0.995


@pytest.fixture(scope="module")
def terramesh_run(data, snakemake, tmp_path_factory):
    folder = tmp_path_factory.mktemp("terramesh")
    config = terramesh(folder, data)
    snakemake(folder, config, *(f"results/maps/{place}.tif" for place in PLACES))
    return folder, config


@pytest.mark.parametrize("place", PLACES)
def test_terramesh_is_mapped(terramesh_run, place):
    folder, config = terramesh_run
    check_map(folder / f"results/maps/{place}.tif", config, place)


@pytest.mark.parametrize("place", PLACES)
def test_terramesh_pixels_are_the_chip_s(terramesh_run, data, place):
    folder, config = terramesh_run
    chips = data / "chips" / "terramesh"
    with (
        rasterio.open(folder / f"results/s2/{place}/{place}_s2.tif") as clip,
        rasterio.open(chips / f"S2L2A/{PLACES[place]}.tif") as source,
    ):
        steps = clip.read(clip.descriptions.index("B11") + 1)
        numbers = source.read(BANDS.index("B11") + 1) + OFFSETS[place] * 10_000
        assert share_between(steps, clip.transform, np.maximum(numbers, 1), source) > 0.99
    codes = read_legend(Path(config["aois"][place]["labels"]["legend"])).codes
    for path in (folder / f"results/labels/{place}").glob("*.tif"):
        with rasterio.open(path) as labels, rasterio.open(chips / f"LULC/{PLACES[place]}.tif") as source:
            classes = labels.read(1)
            row, column = pixels_at(source, labels.transform, classes.shape)
            inside = (row >= 0) & (row < source.height) & (column >= 0) & (column < source.width)
            code = source.read(1)[row[inside], column[inside]]
        assert not classes[~inside].any()
        assert (classes[inside] == np.array([codes[str(c)] for c in range(10)])[code]).mean() > 0.99


def test_terramesh_backscatter_keeps_its_level(terramesh_run, data):
    folder, _ = terramesh_run
    for place, name in PLACES.items():
        with rasterio.open(data / f"chips/terramesh/S1RTC/{name}.tif") as source:
            rows, columns = (slice(15, size - 15) for size in source.shape)
            expected = 10 * np.log10((10 ** (source.read()[:, rows, columns] / 10)).mean((1, 2)))
        with rasterio.open(folder / f"results/s1/{place}/{place}_s1.tif") as processed:
            found = 10 * np.log10(np.nanmean(processed.read(), (1, 2)))
        np.testing.assert_allclose(found, expected, atol=0.2)  # filtered and resampled, over nearly the same area


def test_earth_search_scenes_are_clipped_through_their_own_items(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes = sorted((data / "s2_l2a").glob("*/S2*.json"))
    catalog = tmp_path / "catalog.json"
    links = [{"rel": "item", "href": str(path)} for path in scenes]
    catalog.write_text(json.dumps({"type": "Catalog", "id": "33TWM", "stac_version": "1.0.0", "links": links}))
    footprint = shape(json.loads(scenes[0].read_text())["geometry"])
    period = Period(start="2023-08-01", end="2023-08-31")
    provider = Provider(name="stac", catalog=catalog)
    items = stac.search(Query(footprint.centroid.buffer(0.05), period, ("sentinel2",)), provider)
    assert [item["id"] for item in items] == [path.stem for path in scenes]
    settings = Sentinel2(bands=("B02", "B03", "B04", "B08"))
    with rasterio.open(scenes[0].with_name("B04.tif")) as raster:
        cells = raster.read(1)  # 915 px of 120 m
    transform = json.loads(scenes[0].read_text())["assets"]["red"]["proj:transform"]
    grid = Grid(crs="EPSG:32633", left=transform[2] + 48_000, top=transform[5] - 48_000, width=120, height=120)
    for item in items:
        stac.fetch(item, tmp_path / f"{item['id']}.zip", provider, (*settings.bands, "SCL"), grid)
        clip_s2(tmp_path / f"{item['id']}.zip", tmp_path / f"{item['id']}.tif", item, grid, settings, 1)
    with rasterio.open(tmp_path / f"{items[0]['id']}.tif") as clip:
        red, scl = clip.read(3), clip.read(5)
        assert clip.descriptions == ("B02", "B03", "B04", "B08", "SCL")
    np.testing.assert_array_equal(red, cells[400:410, 400:410].repeat(12, 0).repeat(12, 1))  # offset already applied
    assert scl.max() > 0
