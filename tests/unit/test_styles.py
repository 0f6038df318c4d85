import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from covermap.legend import Legend, LegendClass
from covermap.styles import colour_table, render_reflectance, write_qml


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
    write_qml(tmp_path / "map.qml", legend)
    root = ElementTree.parse(tmp_path / "map.qml").getroot()
    assert root.tag == "qgis"
    assert root.find("pipe/rasterrenderer").get("type") == "paletted"
    entries = [entry.attrib for entry in root.iter("paletteEntry")]
    assert [(e["value"], e["color"], e["label"]) for e in entries] == [
        ("1", "#1f8d49", "Forest & woods"),
        ("2", "#2532e4", "Water"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["map.qml"]


def test_reflectance_is_stretched_band_by_band_from_2_to_98_per_cent():
    red = np.arange(1, 102, dtype=np.uint16).reshape(1, 101)  # percentile p lies at 1 + p
    picture = render_reflectance(red, 10 * red, 100 * red)
    assert picture[0, :3].tolist() == [[0] * 3] * 3
    assert picture[0, 98:].tolist() == [[255] * 3] * 3
    assert picture[0, 50].tolist() == [157] * 3  # 255 * 0.5 ** 0.7


def test_no_data_in_any_band_is_white():
    red = np.array([[0.1, 0.2, np.nan, 0.3]])
    blue = np.array([[0.1, 0.0, 0.2, 0.3]])
    picture = render_reflectance(red, red, blue)
    assert picture[0, 1].tolist() == picture[0, 2].tolist() == [255] * 3
    assert picture[0, 0].tolist() == [0] * 3
    assert (render_reflectance(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((2, 2))) == 255).all()


def test_a_band_of_one_value_makes_no_noise():
    flat = np.full((3, 3), 0.25)
    assert (render_reflectance(flat, flat, flat) == 0).all()
