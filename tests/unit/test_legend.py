"""Legends."""

from pathlib import Path

import pytest

from covermap.errors import SettingError
from covermap.legend import read_legend

HEAD = "code,class,name,colour\n"


def written(tmp_path, text):
    path = tmp_path / "legend.csv"
    path.write_text(HEAD + text)
    return path


def test_ids_follow_the_file_and_codes_share_a_class(tmp_path):
    legend = read_legend(
        written(tmp_path, "0,,none,\n3,forest,Forest,#00ff00\n15,grass,Grass,#aabb00\n5,forest,Forest,#00FF00\n")
    )
    assert legend.codes == {"0": 0, "3": 1, "15": 2, "5": 1}
    assert [(entry.id, entry.key, entry.rgb) for entry in legend.classes] == [
        (1, "forest", (0, 255, 0)),
        (2, "grass", (170, 187, 0)),
    ]


def test_the_shipped_legends_are_valid():
    for path in Path("resources/legends").glob("*.csv"):
        assert read_legend(path).classes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3,forest,Forest,#00ff00\n3,grass,Grass,#aabb00\n", "code 3 twice"),
        ("3,forest,Forest,green\n", "expected #RRGGBB"),
        ("3,forest,Forest,#00ff00\n4,forest,Wood,#00ff00\n", "two names"),
        ("0,,none,\n", "0 classes"),
        ("", "must have rows"),
        ("3,forest\n", "line 2 is short"),
    ],
)
def test_a_bad_legend_is_explained(tmp_path, text, words):
    with pytest.raises(SettingError, match=words):
        read_legend(written(tmp_path, text))


def test_a_folder_or_a_picture_is_no_legend(tmp_path):
    with pytest.raises(SettingError, match="cannot be read as text"):
        read_legend(tmp_path)
    path = tmp_path / "legend.csv"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    with pytest.raises(SettingError, match=r"legend\.csv cannot be read as text"):
        read_legend(path)
