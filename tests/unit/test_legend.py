"""Legends."""

from pathlib import Path

import pytest

from covermap.errors import SettingError
from covermap.legend import EXCLUDED, NO_LABEL, read_legend
from covermap.mapbiomas import COLLECTIONS

LEGENDS = Path("resources/legends")
HEAD = "code,class,name,colour\n"
KEYED = "collection,code,class,name,name_pt,colour,note\n"


def written(tmp_path, text, head=HEAD):
    path = tmp_path / "legend.csv"
    path.write_text(head + text)
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


def test_a_code_has_the_class_of_its_collection_and_ids_are_those_of_all(tmp_path):
    path = written(
        tmp_path,
        "4,19,crop,Crop,Lavoura,#ff00ff,\n5 6,19,soy,Soy,Soja,#ff0000,\n"
        "5 6,20,cane,Cane,,#00ff00,\n,3,wood,Wood,Mata,#0000ff,\n",
        KEYED,
    )
    old, new = read_legend(path, "4"), read_legend(path, "6")
    assert old.codes == {"19": 1, "3": 4}
    assert new.codes == {"19": 2, "20": 3, "3": 4}
    assert old.classes == new.classes
    with pytest.raises(SettingError, match=r"code 19 for other classes in other collections: .* one of 4, 5, 6"):
        read_legend(path)
    with pytest.raises(SettingError, match="no row for collection '7': expected one of 4, 5, 6"):
        read_legend(path, "7")


def test_a_legend_without_collections_serves_every_collection(tmp_path):
    path = written(tmp_path, "3,forest,Forest,#00ff00\n")
    assert read_legend(path, "10") == read_legend(path)


def test_names_come_in_a_language_and_in_english_where_it_lacks_them(tmp_path):
    path = written(tmp_path, ",3,wood,Wood,Mata,#0000ff,\n,4,cane,Cane,,#00ff00,\n", KEYED)
    assert [entry.name for entry in read_legend(path, None, "pt").classes] == ["Mata", "Cane"]
    assert [entry.name for entry in read_legend(path, None, "tr").classes] == ["Wood", "Cane"]
    assert read_legend(path, None, "pt").codes == read_legend(path).codes


def test_excluded_is_no_class_but_a_value(tmp_path):
    legend = read_legend(written(tmp_path, "1,grass,Grass,#aabb00\n8,excluded,Unclassifiable,\n0,,none,\n"))
    assert legend.codes == {"1": 1, "8": EXCLUDED, "0": NO_LABEL}
    assert [entry.key for entry in legend.classes] == ["grass"]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffcode,class,name,colour\r\n3,forest,Forêt,#00ff00\r\n",
        "code;class;name;colour\n3;forest;Forêt;#00ff00\n",
        "\ufeffcode;class;name;colour\r\n3;forest;Forêt;#00ff00\r\n",
        "code,class,name,colour\n3 , forest , Forêt , #00ff00\n",
    ],
    ids=["mark", "semicolons", "both", "blanks"],
)
def test_tables_are_read_as_spreadsheets_write_them(tmp_path, content):
    path = tmp_path / "legend.csv"
    path.write_bytes(content.encode())
    legend = read_legend(path)
    assert legend.codes == {"3": 1} and legend.classes[0].name == "Forêt"


def test_the_shipped_legends_are_valid():
    for path in LEGENDS.glob("*.csv"):
        collections = {"mapbiomas_full.csv": COLLECTIONS, "urban_atlas.csv": ["2006", "2012", "2018", "2021"]}
        for collection in collections.get(path.name, [None]):
            assert read_legend(path, collection).classes


@pytest.mark.parametrize(
    ("name", "classes", "languages"),
    [
        ("mapbiomas", 12, ["pt"]),
        ("mapbiomas_full", 35, ["pt"]),
        ("mapbiomas_deepforest12", 12, ["pt"]),
        ("mapbiomas_deepforest13", 13, ["pt"]),
        ("urban_atlas", 27, ["fr", "tr"]),
        ("urban_atlas_10", 10, ["fr", "tr"]),
        ("klingenberg", 7, ["de"]),
        ("corine_level2", 15, ["de", "fr"]),
        ("eurosat", 10, []),
        ("worldcover", 11, []),
    ],
)
def test_a_shipped_legend_has_its_classes_each_with_a_colour_and_names_of_its_own(name, classes, languages):
    collection = "10" if name == "mapbiomas_full" else None
    legends = [read_legend(LEGENDS / f"{name}.csv", collection, language) for language in ["en", *languages]]
    for legend in legends:
        assert (
            len({entry.name for entry in legend.classes}) == len({entry.colour for entry in legend.classes}) == classes
        )
    for legend in legends[1:]:
        same = [entry.name for entry, other in zip(legend.classes, legends[0].classes, strict=True) if entry == other]
        assert same in ([], ["Citrus"])  # a name in both languages


@pytest.mark.parametrize("name", ["mapbiomas", "mapbiomas_full", "mapbiomas_deepforest12", "mapbiomas_deepforest13"])
def test_the_legends_of_mapbiomas_have_the_same_codes(name):
    codes = {collection: set(read_legend(LEGENDS / f"{name}.csv", collection).codes) for collection in COLLECTIONS}
    assert all(found >= {"3", "15", "19", "20", "33", "75", "0", "27"} for found in codes.values())
    assert codes["10"] == set(read_legend(LEGENDS / "mapbiomas_full.csv", "10").codes)


def test_an_annual_crop_of_collection_4_is_a_temporary_crop_of_later_ones():
    legends = [read_legend(LEGENDS / "mapbiomas_full.csv", collection) for collection in ("4", "11")]
    keys = [legend.classes[legend.codes["19"] - 1].key for legend in legends]
    assert keys == ["annual_perennial_crop", "temporary_crop"]


def test_the_parks_of_urban_atlas_are_split_from_2021_on_and_2006_has_codes_of_its_own():
    old, later, split = (
        read_legend(LEGENDS / "urban_atlas.csv", edition).codes for edition in ("2006", "2018", "2021")
    )
    assert split["14110"] == split["14120"] == split["14130"] == later["14100"]
    assert "14110" not in later and "20000" not in later
    assert old["30000"] == later["31000"] and old["20000"] == later["91000"] == NO_LABEL


FULL = "".join(f"{code},class{code},Class,#00ff00\n" for code in range(255))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3,forest,Forest,#00ff00\n3,grass,Grass,#aabb00\n", "code 3 twice: keep one"),
        ("3,forest,Forest,green\n", "expected #RRGGBB"),
        ("3,forest,Forest,#00ff00\n4,forest,Wood,#00ff00\n", "two names"),
        ("3,forest,Forest,#00ff00\n4,forest,Forest,#00ff01\n", "two names or colours"),
        ("0,,none,\n", "0 classes"),
        (FULL, "255 classes: expected 1 to 254"),
        ("", "must have rows"),
        ("3,forest,,#00ff00\n", "class forest has no name"),
        ("3,for\0est,Forest,#00ff00\n", "line 2 has the code '3' and the class .* control characters"),
        ("3,forest\n", "line 2 is short"),
        ("3,forest,Forest,#00ff00\n,,,\n", "line 3 has no code"),
        ("3,industry,Industry, commerce,#00ff00\n", "line 2 has more values than .* in quotes"),
    ],
)
def test_a_bad_legend_is_explained(tmp_path, text, words):
    with pytest.raises(SettingError, match=words):
        read_legend(written(tmp_path, text))


@pytest.mark.parametrize(
    ("head", "text", "words"),
    [
        (KEYED, "4 5,19,a,A,,#ff00ff,\n5 6,19,b,B,,#ff0000,\n", "code 19 twice for collection 5"),
        (KEYED, ",19,a,A,,#ff00ff,\n5,19,b,B,,#ff0000,\n", "code 19 twice: keep one"),
        (KEYED, ",1,a,A,Á,#ff00ff,\n,2,a,A,Ã,#ff00ff,\n", "class a has two names"),
        ("code,class,name,nome,colour\n", "1,a,A,Á,#ff00ff\n", "column 'nome': expected code, class, name, colour and"),
        ("code,class,name,colour,colour\n", "1,a,A,#ff00ff,#ff00ff\n", "column 'colour' twice"),
        ("code\tclass\tname\tcolour\n", "1\ta\tA\t#ff00ff\n", "must have rows and the columns code"),
    ],
)
def test_bad_columns_are_explained(tmp_path, head, text, words):
    with pytest.raises(SettingError, match=words):
        read_legend(written(tmp_path, text, head))


def test_a_folder_or_a_picture_is_no_legend(tmp_path):
    with pytest.raises(SettingError, match="cannot be read as text"):
        read_legend(tmp_path)
    path = tmp_path / "legend.csv"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00")
    with pytest.raises(SettingError, match=r"legend\.csv cannot be read as text"):
        read_legend(path)


def test_an_empty_file_is_no_legend(tmp_path):
    with pytest.raises(SettingError, match="must have rows"):
        read_legend(written(tmp_path, "", ""))


def test_a_table_in_another_encoding_is_explained(tmp_path):
    path = tmp_path / "legend.csv"
    path.write_bytes((HEAD + "3,forest,Forêt,#00ff00\n").encode("cp1252"))
    with pytest.raises(SettingError, match="expected a CSV in UTF-8"):
        read_legend(path)
