import logging
import shutil
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform, transform_bounds
from shapely.geometry import LineString, Point, Polygon, box

from covermap.errors import CoverageError, ProductError, SettingError
from covermap.grid import Grid
from covermap.labels import LABEL_SOURCES, check_overlap, from_raster, from_vector, rasterize_labels
from covermap.settings import Labels

CRS = "EPSG:32721"
BLOCK = Grid(crs=CRS, left=780_000, top=8_500_020, width=8, height=6)
CODES = {"0": 0, "3": 1, "15": 2, "33": 255}


def write_raster(path: Path, values, grid=BLOCK, crs=CRS, nodata=None, **changes) -> Path:
    array = np.asarray(values)
    profile = {"driver": "GTiff", "count": 1, "height": array.shape[0], "width": array.shape[1], "dtype": array.dtype}
    profile.update({"crs": crs, "transform": grid.transform, "nodata": nodata, **changes})
    with rasterio.open(path, "w", **profile) as raster:
        for band in range(profile["count"]):
            raster.write(array, band + 1)
    return path


def write_polygons(path: Path, geometries, codes, crs=CRS) -> Path:
    geopandas.GeoDataFrame({"code": codes, "other": "x"}, geometry=geometries, crs=crs).to_file(path)
    return path


def square(column, row, width, height) -> Polygon:
    """Rectangle of whole pixels of BLOCK."""
    left, top = BLOCK.left + column * 10, BLOCK.top - row * 10
    return box(left, top - height * 10, left + width * 10, top)


# --- raster ---


def test_codes_become_classes_on_the_same_grid(tmp_path):
    codes = np.zeros(BLOCK.shape, np.uint8)
    codes[0, 0], codes[5, 7], codes[2, 3] = 3, 15, 33
    expected = np.zeros(BLOCK.shape, np.uint8)
    expected[0, 0], expected[5, 7], expected[2, 3] = 1, 2, 255
    np.testing.assert_array_equal(from_raster(write_raster(tmp_path / "a.tif", codes), BLOCK, CODES), expected)


def test_pixels_beyond_the_raster_have_no_label(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.full((2, 3), 3, np.uint8), BLOCK.window(4, 6, 2, 3))
    expected = np.zeros(BLOCK.shape, np.uint8)
    expected[4:, 6:] = 1
    np.testing.assert_array_equal(from_raster(path, BLOCK, CODES), expected)


def test_block_out_of_reach_is_empty_and_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write_raster(tmp_path / "a.tif", np.full((2, 3), 3, np.uint8), BLOCK.window(100, 100, 2, 3))
    assert not from_raster(path, BLOCK, CODES).any()
    assert "does not reach this block" in caplog.text


def test_float_codes_with_a_huge_nodata_in_degrees(tmp_path):
    """As MapBiomas mosaics come: EPSG:4326, float32, nodata -3.4e38; checked against the nearest source pixel."""
    step, nodata = 0.000269494585, np.float32(-3.4e38)
    (west,), (north,) = transform(CRS, "EPSG:4326", [BLOCK.left - 100], [BLOCK.top + 100])
    random = np.random.default_rng(0)
    codes = random.choice(np.array([nodata, 0, 3, 15], np.float32), (12, 12))
    path = write_raster(
        tmp_path / "a.tif", codes, crs="EPSG:4326", nodata=float(nodata), transform=from_origin(west, north, step, step)
    )
    columns, rows = np.meshgrid(np.arange(8), np.arange(6))
    x, y = BLOCK.left + (columns.ravel() + 0.5) * 10, BLOCK.top - (rows.ravel() + 0.5) * 10
    longitude, latitude = transform(CRS, "EPSG:4326", x, y)
    source = codes[
        ((north - np.array(latitude)) // step).astype(int), ((np.array(longitude) - west) // step).astype(int)
    ]
    expected = np.select([source == 3, source == 15], [1, 2], 0).reshape(BLOCK.shape)
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(from_raster(path, BLOCK, CODES), expected)


def test_nan_has_no_label(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.full(BLOCK.shape, np.nan, np.float32))
    assert not from_raster(path, BLOCK, CODES).any()


def test_nodata_is_no_label_even_if_the_legend_has_its_code(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.full(BLOCK.shape, 3, np.uint8), nodata=3)
    assert not from_raster(path, BLOCK, CODES).any()


@pytest.mark.parametrize(("value", "text"), [(np.uint8(99), "'99'"), (np.float32(3.5), "'3.5'")])
def test_unknown_code(tmp_path, value, text):
    path = write_raster(tmp_path / "a.tif", np.full(BLOCK.shape, value))
    with pytest.raises(SettingError, match=rf"a\.tif hold the code {text}, which their legend lacks: add a row"):
        from_raster(path, BLOCK, CODES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"crs": None}, "no CRS"),
        ({"count": 3}, "3 bands: expected one band"),
        ({"transform": BLOCK.transform @ rasterio.Affine.rotation(10)}, "rotated"),
    ],
)
def test_rasters_that_cannot_be_placed(tmp_path, changes, words):
    path = write_raster(tmp_path / "a.tif", np.full(BLOCK.shape, 3, np.uint8), **changes)
    with pytest.raises(ProductError, match=words):
        from_raster(path, BLOCK, CODES)


def test_truncated_raster(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.random.default_rng(0).choice(np.uint8([3, 15]), (300, 300)))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ProductError, match=r"a\.tif cannot be read"):
        from_raster(path, BLOCK.window(0, 0, 300, 300), CODES)


# --- vector ---


def test_pixel_centres_decide_and_the_later_polygon_wins(tmp_path):
    half = square(4, 0, 1, 1).buffer(0).intersection(box(BLOCK.left + 44, 0, BLOCK.left + 50, 1e8))
    under_half = square(6, 0, 1, 1).intersection(box(BLOCK.left + 66, 0, BLOCK.left + 70, 1e8))
    path = write_polygons(
        tmp_path / "a.gpkg", [square(0, 0, 3, 3), square(2, 2, 2, 2), half, under_half], [3, 15, 3, 3]
    )
    expected = np.zeros(BLOCK.shape, np.uint8)
    expected[:3, :3], expected[2:4, 2:4], expected[0, 4] = 1, 2, 1
    np.testing.assert_array_equal(from_vector(path, BLOCK, CODES, "code"), expected)


def test_vectors_in_another_crs_and_with_text_codes(tmp_path):
    frame = geopandas.GeoSeries([square(1, 1, 4, 3)], crs=CRS).to_crs("EPSG:4326")
    path = write_polygons(tmp_path / "a.geojson", frame, ["15"], "EPSG:4326")
    expected = np.zeros(BLOCK.shape, np.uint8)
    expected[1:4, 1:5] = 2
    np.testing.assert_array_equal(from_vector(path, BLOCK, CODES, "code"), expected)


def test_faults_of_a_layer_are_mended_and_counted(tmp_path, caplog):
    x, y = BLOCK.left, BLOCK.top
    bow = Polygon([(x, y), (x + 40, y - 40), (x + 40, y), (x, y - 40)])  # crosses itself in the middle
    line = LineString([(x, y - 55), (x + 80, y - 55)])
    path = write_polygons(
        tmp_path / "a.gpkg", [bow, line, Point(x + 75, y - 5), None, square(6, 0, 1, 1)], [3.0, 15, 15, 3, None]
    )
    classes = from_vector(path, BLOCK, CODES, "code")
    expected = np.zeros(BLOCK.shape, np.uint8)
    expected[1:3, 0] = expected[1:3, 3] = 1
    assert (classes[expected == 1] == 1).all()
    assert not classes[5].any() and classes[0, 7] == 0 and classes[0, 6] == 0
    assert "1 invalid geometries repaired" in caplog.text
    assert "2 features that are no polygons left out" in caplog.text
    assert "without a geometry or a code left out" in caplog.text


def test_no_polygon_in_the_block(tmp_path):
    assert not from_vector(write_polygons(tmp_path / "a.gpkg", [square(90, 90, 2, 2)], [3]), BLOCK, CODES, "code").any()


@pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.fgb", "a.geojson", "a.gdb"])
def test_vectors_in_a_zip(tmp_path, name):
    file = write_polygons(tmp_path / name, [square(0, 0, 4, 6), square(4, 0, 4, 6)], ["3", "15"])
    shutil.make_archive(str(tmp_path / "zipped"), "zip", write_into(tmp_path / "in" / "data", file).parent)
    expected = from_vector(file, BLOCK, CODES, "code")
    assert (expected[:, :4] == 1).all() and (expected[:, 4:] == 2).all()
    np.testing.assert_array_equal(from_vector(tmp_path / "zipped.zip", BLOCK, CODES, "code"), expected)
    west, south, east, north = transform_bounds(CRS, "EPSG:4326", *BLOCK.bounds)
    check_overlap(tmp_path / "zipped.zip", box(west, south, east, north))


def write_into(folder: Path, file: Path) -> Path:
    """A folder with a vector file and what belongs to it."""
    folder.mkdir(parents=True)
    for part in file.parent.glob(f"{file.stem}.*"):
        (shutil.copytree if part.is_dir() else shutil.copy)(part, folder / part.name)
    return folder


def test_unknown_attribute_names_the_known(tmp_path):
    path = write_polygons(tmp_path / "a.gpkg", [square(0, 0, 2, 2)], [3])
    with pytest.raises(SettingError, match=r"no attribute 'CODE': choose one of code, other"):
        from_vector(path, BLOCK, CODES, "CODE")


def test_unknown_code_of_a_polygon(tmp_path):
    path = write_polygons(tmp_path / "a.gpkg", [square(0, 0, 2, 2)], [99])
    with pytest.raises(SettingError, match="the code '99'"):
        from_vector(path, BLOCK, CODES, "code")


def test_of_several_layers_the_fullest_is_the_map(tmp_path, caplog):
    path = tmp_path / "a.gpkg"
    for layer, count, code in (("changes", 1, 15), ("map", 2, 3)):
        frame = geopandas.GeoDataFrame({"code": [code] * count}, geometry=[square(0, 0, 2, 2)] * count, crs=CRS)
        frame.to_file(path, layer=layer)
    assert from_vector(path, BLOCK, CODES, "code")[0, 0] == 1
    assert "2 layers have code; map is taken" in caplog.text


def test_layer_without_crs(tmp_path):
    path = tmp_path / "a.shp"
    geopandas.GeoDataFrame({"code": [3]}, geometry=[square(0, 0, 2, 2)]).to_file(path)
    with pytest.raises(ProductError, match="no CRS"):
        from_vector(path, BLOCK, CODES, "code")


# --- the step ---


def test_classes_and_weights_land_in_one_file(tmp_path):
    codes = np.full(BLOCK.shape, 3, np.uint8)
    codes[0], codes[1] = 33, 0
    labels = write_raster(tmp_path / "a.tif", codes)
    rasterize_labels(labels, tmp_path / "out.tif", BLOCK, CODES, "raster", None)
    with rasterio.open(tmp_path / "out.tif") as raster:
        classes, weight = raster.read()
        assert raster.descriptions == ("class", "weight")
        assert (raster.dtypes, raster.nodata, raster.transform) == (("uint8",) * 2, None, BLOCK.transform)
    assert (classes[0] == 255).all() and (classes[1] == 0).all() and (classes[2:] == 1).all()
    assert (weight[:2] == 0).all() and (weight[2:] == 100).all()


def test_nothing_is_written_when_it_fails(tmp_path):
    labels = write_raster(tmp_path / "a.tif", np.full(BLOCK.shape, 9, np.uint8))
    with pytest.raises(SettingError):
        rasterize_labels(labels, tmp_path / "out.tif", BLOCK, CODES, "raster", None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_every_source_of_the_settings_is_there():
    assert set(LABEL_SOURCES) == set(Labels.model_fields["source"].annotation.__args__)


# --- overlap ---


@pytest.fixture(params=["raster", "vector"])
def labels(request, tmp_path) -> Path:
    """Labels of BLOCK, which lies near 54.41 W, 13.55 S."""
    if request.param == "raster":
        return write_raster(tmp_path / "a.tif", np.full(BLOCK.shape, 3, np.uint8))
    return write_polygons(tmp_path / "a.gpkg", [square(0, 0, 8, 6)], [3])


def test_overlap(labels):
    check_overlap(labels, box(-54.5, -13.6, -54.3, -13.5))
    with pytest.raises(CoverageError, match=r"cover -54\.\d+ to .* but the area is 10\.0000 to 11\.0000 E"):
        check_overlap(labels, box(10, 50, 11, 51))


def test_overlap_of_what_is_no_map(tmp_path):
    with pytest.raises(ProductError, match="do not exist"):
        check_overlap(tmp_path / "none.tif", box(0, 0, 1, 1))
    (tmp_path / "a.tif").write_text("text")
    with pytest.raises(ProductError, match="neither raster nor vector"):
        check_overlap(tmp_path / "a.tif", box(0, 0, 1, 1))
    geopandas.GeoDataFrame({"code": []}, geometry=[], crs=CRS).to_file(tmp_path / "empty.gpkg")
    with pytest.raises(ProductError, match="no feature"):
        check_overlap(tmp_path / "empty.gpkg", box(0, 0, 1, 1))
