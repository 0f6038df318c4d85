"""The best orbit file for a scene, out of a bucket that lists itself as S3 does."""

from pathlib import Path

import pytest

from covermap.errors import CoverageError, DownloadError
from covermap.orbits import download_orbit
from covermap.sentinel1.orbit import own_name
from tests.servers.bucket import bucket

SCENE = "S1A_IW_GRDH_1SDV_20230823T140500_20230823T140525_049999_060000_ABCD"
VALID = "V20230822T225942_20230824T005942"
PRECISE = f"AUX_POEORB/S1A_OPER_AUX_POEORB_OPOD_20230912T080600_{VALID}.EOF"
AGAIN = f"AUX_POEORB/S1A_OPER_AUX_POEORB_OPOD_20240101T080600_{VALID}.EOF"
RESTITUTED = "AUX_RESORB/S1A_OPER_AUX_RESORB_OPOD_20230823T155900_V20230823T123139_20230823T154909.EOF"
OTHERS = [
    f"AUX_POEORB/S1B_OPER_AUX_POEORB_OPOD_20240201T080600_{VALID}.EOF",
    "AUX_POEORB/S1A_OPER_AUX_POEORB_OPOD_20230913T080600_V20230823T225942_20230825T005942.EOF",
    "AUX_POEORB/S1A_OPER_AUX_POEORB_OPOD_20230911T080600_V20230821T225942_20230823T005942.EOF",
    "AUX_POEORB/S1A_OPER_AUX_POEORB_OPOD_20230914T080600_V20230824T225942_20230826T005942.EOF",
    "AUX_RESORB/S1A_OPER_AUX_RESORB_OPOD_20230823T170000_V20230823T140500_20230823T172000.EOF",
    "AUX_RESORB/S1A_OPER_AUX_RESORB_OPOD_20230823T180000_V20230823T150000_20230823T182000.EOF",
    "index.html",
]


@pytest.fixture
def server(tmp_path):
    (tmp_path / "shop").mkdir()
    with bucket(tmp_path / "shop") as running:
        yield running


def offer(server, *keys):
    for key in keys:
        (server.folder / key).parent.mkdir(exist_ok=True)
        (server.folder / key).write_text(f"<Earth_Explorer_File>{key}</Earth_Explorer_File>")


@pytest.mark.parametrize(
    ("offered", "best"),
    [
        ([*OTHERS, RESTITUTED], RESTITUTED),
        ([*OTHERS, RESTITUTED, PRECISE], PRECISE),
        ([*OTHERS, AGAIN, PRECISE, RESTITUTED], AGAIN),
    ],
)
@pytest.mark.parametrize("scene", [SCENE, f"{SCENE}_COG"])
def test_the_best_orbit_file_comes_whole(offered, best, scene, server, tmp_path):
    offer(server, *offered)
    download_orbit(tmp_path / f"{scene}.EOF", scene, server.url)
    assert (tmp_path / f"{scene}.EOF").read_bytes() == (server.folder / best).read_bytes()
    assert server.paths == [f"/{best}"]
    assert [path.name for path in tmp_path.glob("*.EOF")] == [f"{scene}.EOF"]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (f"<File_Name>{Path(PRECISE).stem}</File_Name>", Path(PRECISE).name),
        ("<File_Name>../../S1A_OPER_AUX_POEORB_OPOD</File_Name>", "scene.EOF"),
        ("", "scene.EOF"),
    ],
)
def test_a_file_that_was_renamed_still_tells_its_own_name(header, name, tmp_path):
    (tmp_path / "scene.EOF").write_text(f"<Earth_Explorer_File>{header}</Earth_Explorer_File>")
    assert own_name(tmp_path / "scene.EOF") == name


def test_only_what_may_be_of_the_scene_is_listed(server, tmp_path):
    offer(server, *OTHERS, PRECISE)
    download_orbit(tmp_path / "a.EOF", SCENE, server.url)
    asked = [(query["prefix"], query["start-after"]) for query in server.queries]
    prefix = "AUX_POEORB/S1A_OPER_AUX_POEORB_OPOD_"
    assert set(asked) == {(prefix, f"{prefix}20230823T140525")}
    assert ["continuation-token" in query for query in server.queries] == [False, True]  # four files, two a page


def test_a_scene_without_an_orbit_is_told(server, tmp_path):
    offer(server, *OTHERS)
    with pytest.raises(CoverageError, match=rf"no precise or restituted orbit file of {SCENE}: run again a day after"):
        download_orbit(tmp_path / "a.EOF", SCENE, server.url)
    assert not list(tmp_path.glob("*.EOF"))


def test_a_name_that_tells_no_orbit_is_refused(server, tmp_path):
    with pytest.raises(CoverageError, match="scene demo_1 has no name of a product"):
        download_orbit(tmp_path / "a.EOF", "demo_1", server.url)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html><body>moved</body></html>",
        b"no list",
        b"<ListBucketResult><Contents><Key>AUX_POEORB/a</Key></Contents></ListBucketResult>",
        b'<!DOCTYPE a [<!ENTITY b "c">]><ListBucketResult>&b;</ListBucketResult>',
    ],
)
def test_what_is_no_list_is_never_taken_for_an_empty_one(answer, server, tmp_path):
    server.listing = answer
    with pytest.raises(DownloadError, match=r"gives no list of files as S3 does: check mirrors\.orbits"):
        download_orbit(tmp_path / "a.EOF", SCENE, server.url)


def test_a_list_without_an_end_is_not_followed_for_ever(server, tmp_path, monkeypatch):
    def endless(shop, query):
        token = f"<NextContinuationToken>{len(shop.queries)}</NextContinuationToken>"
        return f"<ListBucketResult>{token}</ListBucketResult>".encode()

    monkeypatch.setattr("tests.servers.bucket._listed", endless)
    with pytest.raises(DownloadError, match=r"gives a list of files without end: check mirrors\.orbits"):
        download_orbit(tmp_path / "a.EOF", SCENE, server.url)
    assert len(server.queries) == 200


@pytest.mark.parametrize("content", ['{"wait": "yes"}', "<html><body>busy</body></html>", "<Earth_Explorer_File><a>"])
def test_what_is_no_orbit_is_not_kept(content, server, tmp_path):
    offer(server, PRECISE)
    (server.folder / PRECISE).write_text(content)
    server.digest = "abc-2"  # of a file that was uploaded in parts, which tells nothing
    with pytest.raises(DownloadError, match=r"POEORB.*\.EOF is no orbit file: expected XML with the root"):
        download_orbit(tmp_path / "a.EOF", SCENE, server.url)
    assert not (tmp_path / "a.EOF").exists()


def test_another_file_than_the_one_listed_is_refused(server, tmp_path):
    offer(server, PRECISE)
    server.digest = "0" * 32
    with pytest.raises(DownloadError, match="md5"):
        download_orbit(tmp_path / "a.EOF", SCENE, server.url)
    assert not (tmp_path / "a.EOF").exists()
