import logging
import shutil
import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform, transform_bounds
from shapely.geometry import LineString, Point, Polygon, box

from covermap.burn import burn
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.grid import Grid
from covermap.label_settings import Labels, Polygons
from covermap.labels import LABEL_SOURCES, check_overlap, from_raster, from_vector, rasterize_labels

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


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_raster_without_a_place_on_the_globe(tmp_path):
    crs = 'LOCAL_CS["a plan of the town",UNIT["metre",1]]'
    path = write_raster(tmp_path / "a.tif", np.full(BLOCK.shape, 3, np.uint8), crs=crs)
    with pytest.raises(ProductError, match=r"a\.tif cannot be brought to EPSG:32721 .*: warp them to a CRS"):
        from_raster(path, BLOCK, CODES)


def test_blocks_of_a_raster_are_parts_of_the_whole(tmp_path):
    """At noise of 30 m in degrees, taller than what is taken at once, every border counts."""
    step, grid = 0.000269494585, BLOCK.window(0, 0, 1030, 200)
    (west,), (north,) = transform(CRS, "EPSG:4326", [BLOCK.left], [BLOCK.top])
    codes = np.random.default_rng(0).choice(np.uint8([0, 3, 15, 33]), (360, 80))
    place = from_origin(west, north + 10 * step, step, step)
    path = write_raster(tmp_path / "a.tif", codes, crs="EPSG:4326", transform=place)
    whole = from_raster(path, grid, CODES)
    assert (np.bincount(whole.ravel(), minlength=256)[[0, 1, 2, 255]] > 40_000).all()
    for row, column, height, width in [(0, 0, 515, 100), (515, 100, 515, 100), (37, 91, 700, 13), (1029, 199, 1, 1)]:
        part = from_raster(path, grid.window(row, column, height, width), CODES)
        np.testing.assert_array_equal(part, whole[row : row + height, column : column + width])


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


def test_a_pattern_of_the_legend_stands_for_many_codes(tmp_path):
    """An exact code goes before patterns, and of those the first that fits."""
    path = write_polygons(
        tmp_path / "a.gpkg", [square(n, 0, 1, 1) for n in range(4)], ["Oak wood", "Oak park", "Pine wood", "sea"]
    )
    codes = {"Oak*": 1, "*wood": 2, "Oak park": 3, "?ea": 4}
    assert from_vector(path, BLOCK, codes, "code")[0, :4].tolist() == [1, 3, 2, 4]


def overlapping(path, **columns) -> Path:
    """Three polygons on one place: codes 3, 15 and 33."""
    data = {"code": [3, 15, 33], **columns}
    geopandas.GeoDataFrame(data, geometry=[square(0, 0, 2, 2)] * 3, crs=CRS).to_file(path)
    return path


@pytest.mark.parametrize(
    ("priority", "winner"), [(None, 255), ("legend", 1), ("rank", 2), ("share", 1)], ids=["file", "legend", "a", "b"]
)
def test_which_polygon_has_a_pixel_that_several_hold(tmp_path, caplog, priority, winner):
    caplog.set_level(logging.INFO)
    path = overlapping(tmp_path / "a.gpkg", rank=[1, 7, 2], share=[0.5, 0.1, None])
    assert from_vector(path, BLOCK, CODES, "code", Polygons(priority=priority))[0, 0] == winner
    assert "4 pixels of the block lie in polygons of several classes" in caplog.text


def test_by_the_legend_what_has_no_label_loses(tmp_path):
    path = write_polygons(tmp_path / "a.gpkg", [square(0, 0, 2, 2)] * 2, [15, 0])
    assert from_vector(path, BLOCK, CODES, "code", Polygons(priority="legend"))[0, 0] == 2


@pytest.mark.parametrize("priority", ["none_such", "word"])
def test_a_priority_without_numbers(tmp_path, priority):
    path = overlapping(tmp_path / "a.gpkg", word=["a", "b", "c"])
    with pytest.raises(
        SettingError, match=rf"no numbers in an attribute '{priority}': expected legend, or an attribute"
    ):
        from_vector(path, BLOCK, CODES, "code", Polygons(priority=priority))


def test_small_polygons_are_left_out_and_counted(tmp_path, caplog):
    path = write_polygons(tmp_path / "a.gpkg", [square(0, 0, 4, 4), square(5, 0, 1, 1)], [3, 15])
    assert 2 not in from_vector(path, BLOCK, CODES, "code", Polygons(min_area_m2=101))
    assert "1 polygons below 101 m2 left out" in caplog.text


def test_a_filter(tmp_path):
    path = write_polygons(tmp_path / "a.gpkg", [square(0, 0, 2, 2), square(2, 0, 2, 2)], [3, 99])
    assert from_vector(path, BLOCK, CODES, "code", Polygons(where="code < 50"))[0, :4].tolist() == [1, 1, 0, 0]
    with pytest.raises(SettingError, match=r"cannot be filtered by 'size is great' .*: mend polygons.where"):
        from_vector(path, BLOCK, CODES, "code", Polygons(where="size is great"))


def test_a_layer_by_name(tmp_path):
    path = tmp_path / "a.gpkg"
    for layer, count, code in (("old", 1, 15), ("new", 2, 3)):
        frame = geopandas.GeoDataFrame({"code": [code] * count}, geometry=[square(0, 0, 2, 2)] * count, crs=CRS)
        frame.to_file(path, layer=layer)
    assert from_vector(path, BLOCK, CODES, "code", Polygons(layer="old"))[0, 0] == 2
    with pytest.raises(SettingError, match="have no layer 'other': choose one of new, old"):
        from_vector(path, BLOCK, CODES, "code", Polygons(layer="other"))


def test_all_touched(tmp_path):
    path = write_polygons(tmp_path / "a.gpkg", [square(2, 2, 1, 1).buffer(1, join_style="mitre")], [3])
    touched = from_vector(path, BLOCK, CODES, "code", Polygons(all_touched=True))
    assert (touched[1:4, 1:4] == 1).all() and touched.sum() == 9


@pytest.mark.parametrize("shapes", [[Point(0, 0)], [LineString([(0, 0), (1, 1)])]])
def test_a_layer_without_polygons(tmp_path, shapes):
    path = write_polygons(tmp_path / "a.gpkg", shapes, [3])
    with pytest.raises(ProductError, match=r"hold (Point|LineString) in the layer 'a': expected polygons"):
        from_vector(path, BLOCK, CODES, "code")


def test_an_empty_layer(tmp_path):
    path = tmp_path / "a.gpkg"
    geopandas.GeoDataFrame({"code": []}, geometry=[], crs=CRS).to_file(path, geometry_type="Polygon")
    with pytest.raises(ProductError, match="no feature in the layer 'a': bring the right file"):
        from_vector(path, BLOCK, CODES, "code")


@pytest.mark.parametrize("share", [0.01, 0.6])
@pytest.mark.parametrize("name", ["a.gpkg", "a.fgb", "a.shp", "a.geojson"])
def test_a_truncated_vector_file(tmp_path, name, share):
    path = write_polygons(tmp_path / name, [square(n % 8, 0, 1, 1) for n in range(400)], ["3"] * 400)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ProductError, match=r"cannot be read as vectors"):
        from_vector(path, BLOCK, CODES, "code")


def test_a_broken_zip_and_one_without_a_map(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ProductError, match="is no whole zip"):
        from_vector(path, BLOCK, CODES, "code")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("read.me", "nothing")
    with pytest.raises(ProductError, match=r"hold no \.gpkg, \.gdb, \.shp, \.fgb or \.geojson"):
        from_vector(path, BLOCK, CODES, "code")


def test_of_a_zip_with_two_maps_the_fuller_one_is_told(tmp_path, caplog):
    one = write_polygons(tmp_path / "one.gpkg", [square(0, 0, 2, 2)], [15])
    two = write_polygons(tmp_path / "two.gpkg", [square(0, 0, 2, 2)] * 2, [3, 3])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in (one, two):
            archive.write(file, file.name)
    assert from_vector(tmp_path / "a.zip", BLOCK, CODES, "code")[0, 0] == 1
    assert "2 layers have code; two is taken" in caplog.text


def test_names_that_are_not_utf_8(tmp_path):
    """A shapefile of Latin-1 without a .cpg, with an umlaut in its attribute and in its codes."""
    path = tmp_path / "a.shp"
    frame = geopandas.GeoDataFrame({"Fläche": ["Äcker"]}, geometry=[square(0, 0, 2, 2)], crs=CRS)
    frame.to_file(path, encoding="ISO-8859-1")
    path.with_suffix(".cpg").unlink()
    assert from_vector(path, BLOCK, {"Äcker": 1}, "Fläche")[0, 0] == 1


def test_a_polygon_around_the_globe(tmp_path):
    """Which has no place in a UTM zone; it is taken where the block is."""
    path = write_polygons(tmp_path / "a.gpkg", [box(-180, -90, 180, 90)], [3], "EPSG:4326")
    assert (from_vector(path, BLOCK, CODES, "code") == 1).all()


def test_long_edges_are_straight_where_they_were_drawn(tmp_path):
    """A parallel of latitude is none of UTM's straight lines: 20 degrees of it bend by kilometres."""
    (_,), (latitude,) = transform(CRS, "EPSG:4326", [BLOCK.left + 40], [BLOCK.top - 30])
    path = write_polygons(tmp_path / "a.gpkg", [box(-64, latitude, -44, latitude + 1)], [3], "EPSG:4326")
    classes = from_vector(path, BLOCK, CODES, "code")
    assert (classes[:3] == 1).all() and not classes[3:].any()


@pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.geojson", "a.gdb"])
def test_blocks_of_a_file_are_parts_of_the_whole(tmp_path, name):
    """Of many polygons one over another: the last in the file wins in every block, whatever order an index gives."""
    random = np.random.default_rng(0)
    corners = random.uniform((BLOCK.left, BLOCK.top - 60), (BLOCK.left + 80, BLOCK.top), (300, 1, 2))
    shapes = [Polygon(each) for each in corners + random.uniform(-15, 15, (300, 3, 2))]
    ids = random.integers(1, 100, 300)
    path = write_polygons(tmp_path / name, shapes, ids)
    whole, _ = burn(np.array(shapes, object), ids.astype(np.uint8), BLOCK)
    codes = {str(id): id for id in range(100)}
    for row in range(0, 6, 2):
        for column in range(0, 8, 2):
            part = from_vector(path, BLOCK.window(row, column, 2, 2), codes, "code")
            np.testing.assert_array_equal(part, whole[row : row + 2, column : column + 2])


@pytest.mark.parametrize("source", LABEL_SOURCES)
def test_all_sources_read_one_map_alike(tmp_path, source):
    """The contract: class ids uint8 on the block's grid, 0 without a label, 255 excluded, an unknown code an error."""
    codes = np.zeros(BLOCK.shape, np.uint8)
    codes[:3, :4], codes[3:, 4:] = 15, 33
    if source in ("mapbiomas", "raster"):
        path, attribute = write_raster(tmp_path / "a.tif", codes), None
    else:
        path, attribute = tmp_path / "a.gpkg", "code_2018"
        shapes = [square(0, 0, 4, 3), square(4, 3, 4, 3)]
        geopandas.GeoDataFrame({attribute: ["15", "33"]}, geometry=shapes, crs=CRS).to_file(path)
    expected = np.select([codes == 15, codes == 33], [2, 255], 0)
    found = LABEL_SOURCES[source](path, BLOCK, CODES, attribute, Polygons())
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    assert not LABEL_SOURCES[source](path, BLOCK.window(500, 500, 6, 8), CODES, attribute, Polygons()).any()
    with pytest.raises(SettingError, match="the code '33', which their legend lacks"):
        LABEL_SOURCES[source](path, BLOCK, {"0": 0, "15": 2}, attribute, Polygons())


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


# --- the antimeridian, and polygons that reach far ---

FIJI = Grid(crs="EPSG:32701", left=160_000, top=8_000_000, width=3000, height=8)  # 179.79 E to 179.93 W


@pytest.mark.parametrize("west", [-180, 180])  # of the eastern half: 180 W, or 180 E and on
def test_polygons_on_both_sides_of_the_antimeridian(tmp_path, west):
    halves = [box(179, -19, 180, -17), box(west, -19, west + 1, -17)]
    classes = from_vector(write_polygons(tmp_path / "a.gpkg", halves, [3, 15], "EPSG:4326"), FIJI, CODES, "code")
    left, _ = transform("EPSG:4326", FIJI.crs, [180], [-18.06])
    column = round((left[0] - FIJI.left) / 10)
    assert (classes[:, : column - 20] == 1).all() and (classes[:, column + 20 :] == 2).all() and classes.all()


def test_small_polygons_in_a_block_across_the_antimeridian(tmp_path):
    islands = [box(179.9, -19, 179.95, -17), box(-179.98, -19, -179.95, -17)]
    path = write_polygons(tmp_path / "a.gpkg", islands, [3, 15], "EPSG:4326")
    whole = from_vector(path, FIJI, CODES, "code")
    assert (whole == 1).any() and (whole == 2).any()
    for column in (0, 1000, 2000):
        part = FIJI.window(0, column, 8, 1000)
        np.testing.assert_array_equal(from_vector(path, part, CODES, "code"), whole[:, column : column + 1000])


def test_a_polygon_around_the_globe_at_the_antimeridian(tmp_path):
    path = write_polygons(tmp_path / "a.gpkg", [box(-180, -90, 180, 90)], [3], "EPSG:4326")
    assert (from_vector(path, FIJI, CODES, "code") == 1).all()


def test_degrees_from_0_to_360(tmp_path):
    path = write_polygons(tmp_path / "a.gpkg", [box(300, -20, 310, -10)], [3], "EPSG:4326")
    assert (from_vector(path, BLOCK, CODES, "code") == 1).all()
    check_overlap(path, box(-54.5, -13.6, -54.3, -13.5))
    with pytest.raises(CoverageError, match="cover 300"):
        check_overlap(path, box(-70.5, -13.6, -70.3, -13.5))


def test_bounds_that_cross_the_antimeridian_overlap(tmp_path):
    path = write_raster(tmp_path / "a.tif", np.full(FIJI.shape, 3, np.uint8), FIJI, FIJI.crs)
    check_overlap(path, box(179.8, -18.1, 179.9, -18.0))
    check_overlap(path, box(-179.99, -18.1, -179.95, -18.0))
    with pytest.raises(CoverageError):
        check_overlap(path, box(0, -18.1, 1, -18.0))


def test_two_cities_do_not_cover_what_lies_between(tmp_path):
    for number, west in enumerate((10, 30)):
        write_polygons(tmp_path / f"{number}.gpkg", [box(west, 50, west + 1, 51)], [3], "EPSG:4326")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in (0, 1):
            archive.write(tmp_path / f"{number}.gpkg", f"{number}.gpkg")
    check_overlap(tmp_path / "a.zip", box(30.5, 50.5, 30.6, 50.6))
    with pytest.raises(CoverageError):
        check_overlap(tmp_path / "a.zip", box(20, 50, 21, 51))


@pytest.mark.parametrize("far_m", [1e7, 3e8, 3e9])
def test_a_vast_polygon_in_the_crs_of_the_grid(tmp_path, far_m):
    """Its slanted side goes through the corner of BLOCK, and products of whole numbers would overflow."""
    x, y = BLOCK.left, BLOCK.top
    half = Polygon([(x - far_m, y + far_m), (x + far_m, y - far_m), (x - far_m, y - far_m)])
    classes = from_vector(write_polygons(tmp_path / "a.gpkg", [half], [3]), BLOCK, CODES, "code")
    rows, columns = np.indices(BLOCK.shape)
    off = rows != columns
    np.testing.assert_array_equal(classes[off], (rows > columns)[off])


def test_a_polygon_that_was_cut_is_not_small(tmp_path):
    path = write_polygons(tmp_path / "a.gpkg", [square(0, 0, 8, 6)], [3])
    globe = write_polygons(tmp_path / "b.gpkg", [box(-180, -90, 180, 90)], [3], "EPSG:4326")
    large = Polygons(min_area_m2=1e9)
    assert (from_vector(globe, BLOCK, CODES, "code", large) == 1).all()
    assert not from_vector(path, BLOCK, CODES, "code", large).any()


# --- odd features ---


@pytest.mark.parametrize("odd", [np.inf, np.nan])
def test_features_with_broken_coordinates_are_left_out_and_counted(tmp_path, caplog, odd):
    x, y = BLOCK.left, BLOCK.top
    broken = Polygon([(x, y), (x + 80, odd), (x + 80, y - 60), (x, y - 60)])
    path = write_polygons(tmp_path / "a.gpkg", [square(0, 0, 8, 6), broken], [3, 15])
    assert (from_vector(path, BLOCK, CODES, "code") == 1).all()
    assert "1 features with broken coordinates" in caplog.text


def test_blank_codes_are_none_and_infinite_ones_are_told(tmp_path, caplog):
    path = write_polygons(tmp_path / "a.gpkg", [square(0, 0, 8, 6)] * 3, ["3", "", " "])
    assert (from_vector(path, BLOCK, CODES, "code") == 1).all()
    assert "2 features without a geometry or a code left out" in caplog.text
    with pytest.raises(SettingError, match="hold the code 'inf'"):
        from_vector(write_polygons(tmp_path / "b.gpkg", [square(0, 0, 8, 6)], [np.inf]), BLOCK, CODES, "code")


def test_features_without_a_geometry_lie_in_no_block(tmp_path, caplog):
    path = write_polygons(tmp_path / "a.gpkg", [square(0, 0, 8, 6), None], [3, 15])
    assert (from_vector(path, BLOCK, CODES, "code") == 1).all()
    assert "left out" not in caplog.text


@pytest.mark.parametrize("code", ["[1, 2]", '{"a": 2}'])
def test_codes_that_are_lists_are_refused(tmp_path, code):
    path = write_polygons(tmp_path / "a.geojson", [square(0, 0, 8, 6)], ["CODE"])
    path.write_text(path.read_text().replace('"CODE"', code))
    with pytest.raises(SettingError, match="in the attribute 'code': expected one number or word a feature"):
        from_vector(path, BLOCK, CODES, "code")


def test_the_crs_of_a_building_site_is_refused(tmp_path):
    site = 'LOCAL_CS["site",UNIT["metre",1]]'
    path = write_raster(tmp_path / "a.tif", np.full(BLOCK.shape, 3, np.uint8), crs=site)
    with pytest.raises(ProductError, match="cannot be brought to degrees"):
        check_overlap(path, box(0, 0, 1, 1))


def test_what_a_mac_packs_beside_a_file_is_not_read(tmp_path):
    one = write_polygons(tmp_path / "one.gpkg", [square(0, 0, 8, 6)], [3])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(one, "one.gpkg")
        archive.writestr("__MACOSX/._one.gpkg", b"\0\5\x16\7")
        archive.writestr("._one.gpkg", b"\0\5\x16\7")
    assert (from_vector(tmp_path / "a.zip", BLOCK, CODES, "code") == 1).all()


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
