"""Urban Atlas by order: tokens, orders that outlive a job, and what is delivered."""

import io
import json
import zipfile

import geopandas
import numpy as np
import pytest
from shapely.geometry import box

from covermap import clms, patience
from covermap.area_settings import Mirrors
from covermap.clms import download_urban_atlas, order_box
from covermap.clms_key import service_key
from covermap.errors import CoverageError, DownloadError, ProductError, SettingError
from covermap.grid import Grid
from covermap.labels import from_urban_atlas
from tests.servers.clms import PEM, FakeClms, serve

GRID = Grid(crs="EPSG:32631", left=450_000, top=5_410_020, width=40, height=40)  # Paris
CODES = {"11100": 1, "14100": 2}


def city(code_field="CODE_2018", codes=("11100", "14100"), left=450_000, **more):
    """Two halves of the area, in the projection of Urban Atlas."""
    halves = [box(left, 5_409_620, left + 200, 5_410_020), box(left + 200, 5_409_620, left + 400, 5_410_020)]
    frame = geopandas.GeoDataFrame({code_field: codes, **more}, geometry=halves, crs="EPSG:32631")
    return frame.to_crs("EPSG:3035")


def delivery(tmp_path, **cities):
    """A zip of a GeoPackage for each city, in a folder and beside a report."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Results/report.pdf", b"%PDF")
        for name, frame in cities.items():
            frame.to_file(tmp_path / f"{name}.gpkg")
            archive.write(tmp_path / f"{name}.gpkg", f"Results/{name}/{name}.gpkg")
    return content.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(clms, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    with serve(FakeClms(delivery(tmp_path, paris=city()))) as running:
        monkeypatch.setenv("CLMS_SERVICE_KEY_FILE", str(running.key(tmp_path / "key.json")))
        yield running


def fetch(server, folder, year=2018):
    labels = folder / "labels" / "paris.gpkg"
    download_urban_atlas(labels, GRID, year, Mirrors(clms=server.url))
    return labels


def test_a_part_is_ordered_waited_for_and_read(server, tmp_path, caplog):
    caplog.set_level("DEBUG")
    labels = fetch(server, tmp_path)
    classes = from_urban_atlas(labels, GRID, CODES, "code_2018")
    assert (classes[:, :20] == 1).all() and (classes[:, 20:] == 2).all()
    (order,) = server.orders
    assert (order["OutputFormat"], order["OutputGCS"], order["BoundingBox"]) == ("GPKG", "EPSG:3035", order_box(GRID))
    assert server.count("status_get") == 3 and server.count("oauth2") == 1
    assert "order 10000000000 of Urban Atlas 2018 is In_progress" in caplog.text
    assert [path.name for path in labels.parent.iterdir()] == ["paris.gpkg"]
    for secret in (PEM.splitlines()[1], *server.tokens):
        assert secret not in caplog.text
    assert not any("Authorization" in headers for _, path, headers in server.asked if "results" in path)


def test_the_same_delivery_gives_the_same_bytes(server, tmp_path):
    first, second = (fetch(server, tmp_path / name).read_bytes() for name in "ab")
    assert first == second


def test_the_box_holds_the_area_and_a_kilometre():
    west, north, east, south = order_box(GRID)
    assert west < 2.3185 - 0.0130 and east > 2.3185 + 0.0054 + 0.0130  # of a degree of longitude at 48.8 N: 73 km
    assert north - south == pytest.approx(2.4 / 111.2, abs=4e-4)


def test_cities_are_put_together_and_changes_left_out(server, tmp_path):
    change = city(CODE_2012=["11100", "11100"])
    east = city("code_2018", ["14100", "11100"], left=450_400)
    server.delivery = delivery(tmp_path, paris=city(), creteil=east, change=change)
    frame = geopandas.read_file(fetch(server, tmp_path))
    assert list(frame["code_2018"]) == ["14100", "11100", "11100", "14100"] and frame.crs.to_epsg() == 3035


def test_the_edition_of_another_year_is_another_dataset(server, tmp_path):
    server.delivery = delivery(tmp_path, paris=city("CODE2012"))
    assert list(geopandas.read_file(fetch(server, tmp_path, 2012))["code_2012"]) == ["11100", "14100"]
    assert server.orders[0]["DatasetID"] == server.datasets[-2]["UID"]


def test_an_interrupted_job_waits_for_its_order(server, tmp_path, monkeypatch):
    monkeypatch.setattr(clms, "LONGEST_WAIT_S", 0.0)
    with pytest.raises(DownloadError, match=r"order 10000000000 .* is In_progress after 0 min: run it again later"):
        fetch(server, tmp_path)
    assert not (tmp_path / "labels" / "paris.gpkg").exists()
    monkeypatch.setattr(clms, "LONGEST_WAIT_S", 60.0)
    fetch(server, tmp_path)
    assert len(server.orders) == 1


def test_an_order_of_something_else_is_not_waited_for(server, tmp_path):
    note = tmp_path / "labels" / ".paris.gpkg.order.json"
    note.parent.mkdir()
    note.write_text(json.dumps({"api": server.url, "year": 2012, "box": order_box(GRID), "task": "7"}))
    fetch(server, tmp_path)
    assert len(server.orders) == 1 and server.count("status_get") == 3


def test_an_order_whose_answer_was_lost_is_found_again(server, tmp_path):
    server.lost_answers = 1
    fetch(server, tmp_path)
    assert len(server.orders) == 1 and server.count("datarequest_post") == 2 and server.count("datarequest_search") >= 1


def test_an_order_that_was_removed_is_placed_anew(server, tmp_path, monkeypatch):
    monkeypatch.setattr(clms, "LONGEST_WAIT_S", 0.0)
    with pytest.raises(DownloadError):
        fetch(server, tmp_path)
    monkeypatch.setattr(clms, "LONGEST_WAIT_S", 60.0)
    server.tasks.clear()
    fetch(server, tmp_path)
    assert len(server.orders) == 2


def test_a_file_that_is_never_there_ends(server, tmp_path):
    server.kept = False
    with pytest.raises(DownloadError, match=r"removed order 10000000000 of Urban Atlas 2018 at once: try again later"):
        fetch(server, tmp_path)
    assert len(server.orders) == 1 and not list((tmp_path / "labels").iterdir())


def test_a_token_that_was_taken_back_is_renewed(server, tmp_path, monkeypatch):
    monkeypatch.setattr(clms.time, "sleep", lambda pause_s: server.tokens.clear())
    fetch(server, tmp_path)
    assert server.count("oauth2") == 3


@pytest.mark.parametrize("ending", ["Rejected", "Finished_nok", "Cancelled"])
def test_an_order_that_fails_says_why_and_is_forgotten(server, tmp_path, ending):
    server.ending = ending
    with pytest.raises(DownloadError, match=rf"ended as {ending} \(Error during the process\).*labels\.path"):
        fetch(server, tmp_path)
    assert not list((tmp_path / "labels").iterdir())


@pytest.mark.parametrize(
    ("year", "datasets", "words"),
    [
        (2021, None, "has no Urban Atlas 2021 to be ordered as vectors: the service may have moved"),
        (2018, [{"@id": "/urban-atlas/urban-atlas-2018", "UID": "u", "dataset_download_information": None}], "has no"),
        (2018, [{"UID": "u"}], "answers in another form than its documentation tells"),
    ],
)
def test_an_edition_that_cannot_be_ordered(server, tmp_path, year, datasets, words):
    server.datasets = datasets or server.datasets
    with pytest.raises(DownloadError, match=words):
        fetch(server, tmp_path, year)


def test_a_refused_order_tells_the_services_reason(server, tmp_path, monkeypatch):
    monkeypatch.setattr(clms, "CRS", "EPSG:2154")
    with pytest.raises(DownloadError, match=r"refuses the order of Urban Atlas 2018 \(Error, defined GCS not in the l"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (lambda folder: b"PK\3\4 cut off", ProductError, "is no whole zip"),
        (lambda folder: delivery(folder), ProductError, "hold no .gpkg"),
        (
            lambda folder: delivery(folder, a=city("CODE_2012")),
            SettingError,
            "Urban Atlas of 2018, but have codes of 2012",
        ),
        (lambda folder: delivery(folder, a=city(left=800_000)), CoverageError, "has no polygon in the area"),
    ],
)
def test_a_wrong_delivery_leaves_nothing(server, tmp_path, content, error, words):
    server.delivery = content(tmp_path)
    with pytest.raises(error, match=words):
        fetch(server, tmp_path)
    assert not list((tmp_path / "labels").iterdir())


@pytest.mark.parametrize("name", ["../evil.gpkg", "/evil.gpkg"])
def test_a_delivery_that_leads_out_of_its_folder_is_refused(server, tmp_path, name):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, b"")
    server.delivery = content.getvalue()
    with pytest.raises(ProductError, match="unsafe member"):
        fetch(server, tmp_path)


def test_without_a_key_it_says_where_to_get_one(monkeypatch):
    monkeypatch.delenv("CLMS_SERVICE_KEY_FILE", raising=False)
    with pytest.raises(SettingError, match=r"CLMS_SERVICE_KEY_FILE is not set.*land\.copernicus\.eu.*or bring a file"):
        service_key()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_uri": "http://land.copernicus.eu/@@oauth2-token"}, "token_uri is no address of https"),
        ({"client_id": "another"}, r"refuses the service key of CLMS_SERVICE_KEY_FILE \(400\)"),
        ({"private_key": "none"}, "private_key is none of RSA"),
    ],
)
def test_a_key_that_does_not_fit(server, tmp_path, changes, words):
    server.key(tmp_path / "key.json", **changes)
    with pytest.raises(SettingError, match=words) as caught:
        fetch(server, tmp_path)
    assert "BEGIN" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"client_id": "a"}'])
def test_a_file_that_is_no_key(tmp_path, monkeypatch, text):
    (tmp_path / "key.json").write_text(text)
    monkeypatch.setenv("CLMS_SERVICE_KEY_FILE", str(tmp_path / "key.json"))
    with pytest.raises(SettingError, match="is not a service key with client_id, user_id, token_uri, private_key"):
        service_key()


def test_labels_of_no_year_take_the_only_one(tmp_path):
    city("CODE2012").to_file(tmp_path / "a.gpkg")
    assert set(np.unique(from_urban_atlas(tmp_path / "a.gpkg", GRID, CODES, None))) == {1, 2}
    city("code_2018").to_file(tmp_path / "a.gpkg", layer="b")
    with pytest.raises(SettingError, match=r"as Urban Atlas, but have codes of 2012, 2018: set labels\.year to one"):
        from_urban_atlas(tmp_path / "a.gpkg", GRID, CODES, None)
    assert set(np.unique(from_urban_atlas(tmp_path / "a.gpkg", GRID, CODES, "code_2018"))) == {1, 2}
