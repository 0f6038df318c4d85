import xml.etree.ElementTree as ElementTree

import pytest

from covermap.legend import Legend, LegendClass
from covermap.styles import colour_table, title_of, write_qml


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


def test_areas_have_titles():
    assert [title_of(area) for area in ("upper_valley", "x", "Demo")] == ["Upper valley", "X", "Demo"]
