import ctypes
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import rasterio

from covermap.legend import Legend, LegendClass
from covermap.styles import class_style, colour_table, title_of, write_attributes, write_qml


@pytest.fixture
def legend():
    classes = (
        LegendClass(id=1, key="forest", name="Forest & woods", colour="#1F8D49"),
        LegendClass(id=2, key="water", name="Water", colour="#2532E4"),
    )
    return Legend(classes=classes, codes={"3": 1, "33": 2})


def test_colour_table_has_all_values_and_shows_only_classes(legend):
    table = colour_table(legend)
    assert sorted(table) == list(range(256))
    assert table[1] == (0x1F, 0x8D, 0x49, 255)
    assert table[2] == (0x25, 0x32, 0xE4, 255)
    assert all(table[value][3] == 0 for value in range(256) if value not in (1, 2))


def test_qml_names_and_colours_the_classes(tmp_path, legend):
    write_qml(tmp_path / "map.qml", class_style(legend))
    root = ElementTree.parse(tmp_path / "map.qml").getroot()
    assert root.tag == "qgis"
    assert root.find("pipe/rasterrenderer").get("type") == "paletted"
    entries = [entry.attrib for entry in root.iter("paletteEntry")]
    assert [(e["value"], e["color"], e["label"]) for e in entries] == [
        ("1", "#1f8d49", "Forest & woods"),
        ("2", "#2532e4", "Water"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["map.qml"]


def asked_of_gdal(path):
    """Columns (name, type, usage), rows and categories of a raster's first band, as the GDAL of rasterio reads them."""
    libraries = [*(Path(rasterio.__file__).parents[1] / "rasterio.libs").glob("libgdal*")]
    if not libraries:
        pytest.skip("rasterio brings no GDAL of its own here")
    library, handle, number, text = ctypes.CDLL(str(libraries[0])), ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p

    def gdal(name, answer, *kinds):
        function = getattr(library, name)
        function.restype, function.argtypes = answer, kinds
        return function

    library.GDALAllRegister()
    data = gdal("GDALOpen", handle, text, number)(str(path).encode(), 0)
    band = gdal("GDALGetRasterBand", handle, handle, number)(data, 1)
    table = gdal("GDALGetDefaultRAT", handle, handle)(band)
    width, height = (gdal(f"GDALRATGet{of}Count", number, handle)(table) for of in ("Column", "Row"))
    name, kind, usage = (
        gdal(f"GDALRATGet{of}Col", answer, handle, number)
        for of, answer in (("NameOf", text), ("TypeOf", number), ("UsageOf", number))
    )
    columns = [(name(table, k).decode(), kind(table, k), usage(table, k)) for k in range(width)]
    value = gdal("GDALRATGetValueAsString", text, handle, number, number)
    rows = [[value(table, row, k).decode() for k in range(width)] for row in range(height)]
    categories = gdal("GDALGetRasterCategoryNames", ctypes.POINTER(text), handle)(band)
    names = [categories[k].decode() for k in range(height + 1)]
    gdal("GDALClose", None, handle)(data)
    return columns, rows, names


def test_gdal_reads_the_attribute_table_beside_the_map(tmp_path, legend):
    profile = {"driver": "GTiff", "width": 3, "height": 2, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "map.tif", "w", **profile) as raster:
        raster.write(np.array([[[1, 1, 0], [2, 1, 1]]], np.uint8))
    counts = np.bincount([1, 1, 0, 2, 1, 1], minlength=256)
    counts[2] = 3_000_000_000  # more than 32 bits hold
    write_attributes(tmp_path / "map.tif.aux.xml", legend, counts, pixel_m=10)
    columns, rows, names = asked_of_gdal(tmp_path / "map.tif")
    assert columns == [  # GDALRATFieldType: 0 integer, 1 real, 2 text; GDALRATFieldUsage: 5 MinMax, 2 Name, 6 Red ...
        ("value", 0, 5), ("class", 2, 0), ("name", 2, 2), ("red", 0, 6), ("green", 0, 7), ("blue", 0, 8),
        ("pixels", 1, 1), ("hectares", 1, 0),
    ]  # fmt: skip
    assert rows == [
        ["1", "forest", "Forest & woods", "31", "141", "73", "4", "0.04"],
        ["2", "water", "Water", "37", "50", "228", "3000000000", "30000000"],
    ]
    assert names == ["", "Forest & woods", "Water"]
    with rasterio.open(tmp_path / "map.tif") as raster:
        assert raster.read(1)[1, 0] == 2 and raster.nodata is None


def test_areas_have_titles():
    assert [title_of(area) for area in ("upper_valley", "x", "Demo")] == ["Upper valley", "X", "Demo"]
