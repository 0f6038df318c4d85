"""Provider sentinelhub against a service on loopback that validates what it is asked."""

import json
import logging
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_bounds
from shapely.geometry import box, mapping

from covermap.area_settings import Period, Provider, Sentinel1, Sentinel2
from covermap.download import download_scene
from covermap.errors import CoverageError, DownloadError, ProductError, SettingError
from covermap.grid import Grid, area_grid
from covermap.providers import Query, sentinelhub
from covermap.sentinel1 import process_s1
from covermap.sentinel2 import clip_s2
from tests.servers.sentinelhub import PROCESS, SEARCH, TOKEN, Refused, serve_hub, validated

CRS = "EPSG:32632"
AREA = box(10.50, 50.42, 10.56, 50.46)
GRID = area_grid(AREA, CRS)
AUGUST = Period(start="2021-08-01", end="2021-08-31")
OPTICAL = "S2A_MSIL2A_20210810T102601_N0500_R108_T32UPB_20230210T120000"
RADAR = "S1A_IW_GRDH_1SDV_20210812T053000_20210812T053025_039000_049000_ABCD"
WANTED = ("B02", "B04", "SCL")


def item(name, time, collection="sentinel-2-l2a", area=AREA, **properties):
    platform = "sentinel-1a" if collection == "sentinel-1-grd" else "sentinel-2a"
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "geometry": mapping(area),
        "properties": {"datetime": time, "platform": platform, "updated": "2026-01-01T00:00:00Z", **properties},
        "assets": {"data": {"href": "s3://eodata/somewhere"}},
        "links": [{"rel": "self", "href": "https://example.org"}],
    }


def optical(cloud=3.0, **more):
    return item(f"{OPTICAL}.SAFE", "2021-08-10T10:30:25Z", **{"eo:cloud_cover": cloud}, **more)


def radar():
    told = {"sat:orbit_state": "descending", "sar:instrument_mode": "IW", "s1:polarization": "DV"}
    return item(RADAR, "2021-08-12T05:30:00Z", "sentinel-1-grd", **told)


def number_of(x, y, band):
    """What the world holds at a place: known without the service."""
    return (x // 10 * 7 + y // 10 * 13 + band * 101) % 3000 + 1000


def centres(raster):
    """Eastings and northings (y, x) of a raster's pixels."""
    return raster.transform @ np.meshgrid(np.arange(raster.width) + 0.5, np.arange(raster.height) + 0.5)


def render(asked):
    transform = from_bounds(*asked.bounds, asked.width, asked.height)
    columns, rows = np.meshgrid(np.arange(asked.width) + 0.5, np.arange(asked.height) + 0.5)
    x, y = transform @ (columns, rows)
    numbers = np.stack([number_of(x, y, number) for number in range(len(asked.bands))])
    if asked.collection == "sentinel-1-grd":
        return 10 * np.log10(numbers / 1e5)
    return np.stack([np.where(band == "SCL", 4, layer) for band, layer in zip(asked.bands, numbers, strict=True)])


@pytest.fixture(autouse=True)
def account(monkeypatch, tmp_path):
    monkeypatch.setattr(sentinelhub, "_TOKENS", {})
    monkeypatch.setenv("SH_CLIENT_ID", "client")
    monkeypatch.setenv("SH_CLIENT_SECRET", "secret-of-the-client")
    monkeypatch.chdir(tmp_path)


def hub(server):
    return Provider(name="sentinelhub", url=server.url)


def test_search_asks_the_catalog_and_pins_what_it_finds():
    others = [optical(cloud=70), item("far", "2021-08-10T10:30:25Z", area=box(0, 0, 1, 1), **{"eo:cloud_cover": 0})]
    again = [{**optical(), "id": f"{OPTICAL[:-1]}{number}.SAFE"} for number in range(1, 6)]
    with serve_hub([*again, radar(), *others], render) as server:
        query = Query(AREA, AUGUST, ("sentinel1", "sentinel2"), max_cloud=60, orbit_state="descending")
        found = sentinelhub.search(query, hub(server))
    assert [one["id"] for one in found] == [RADAR, *(one["id"].removesuffix(".SAFE") for one in again)]
    assert all(one["assets"] == {} and one["links"] == [] and "updated" not in one["properties"] for one in found)
    radar_search, optical_search = server.searches[0], server.searches[1]
    assert radar_search["filter"] == "sar:instrument_mode='IW' AND sat:orbit_state='descending'"
    assert optical_search["filter"] == "eo:cloud_cover<=60"
    assert optical_search["datetime"] == "2021-08-01T00:00:00Z/2021-08-31T23:59:59Z"
    assert [search.get("next") for search in server.searches[1:]] == [None, 2, 4]


def first(server, sensor):
    return sentinelhub.search(Query(AREA, AUGUST, (sensor,)), hub(server))[0]


def test_large_areas_are_put_together_from_small_requests(monkeypatch):
    monkeypatch.setattr(sentinelhub, "LARGEST_PIXELS", 150)
    with serve_hub([optical()], render) as server:
        found = first(server, "sentinel2")
        download_scene(Path("one.zip"), found, hub(server), WANTED, GRID)
        requests = [sentinelhub.tiles_of(sentinelhub._part(found, GRID)), server.processed]
        download_scene(Path("two.zip"), found, hub(server), WANTED, GRID)
    assert len(requests[0]) == 3 * 4 and len(server.processed) == 2 * len(requests[0])
    assert Path("one.zip").read_bytes() == Path("two.zip").read_bytes()
    clip_s2(Path("one.zip"), Path("clip.tif"), found, GRID, Sentinel2(bands=("B02", "B04")), 1)
    with rasterio.open("clip.tif") as clip:
        pixels, (x, y) = clip.read(), centres(clip)
        part = Grid(crs=CRS, left=clip.bounds.left, top=clip.bounds.top, width=clip.width, height=clip.height)
    expected = np.maximum(number_of(x, y, 1) - 1000, 1)  # the offset of baseline 05.00
    assert np.array_equal(pixels[1], expected)
    assert (pixels[2] == 4).all()
    assert part == sentinelhub._part(found, GRID)


def test_backscatter_goes_through_the_chain_as_delivered():
    with serve_hub([radar()], render) as server:
        found = first(server, "sentinel1")
        download_scene(Path("one.zip"), found, hub(server), ("VV", "VH"), GRID)
    body = server.processed[0]["input"]["data"][0]
    assert body["processing"] == {
        "backCoeff": "SIGMA0_ELLIPSOID",
        "orthorectify": True,
        "demInstance": "COPERNICUS_30",
    }
    assert body["dataFilter"]["timeRange"] == {"from": "2021-08-12T05:29:59Z", "to": "2021-08-12T05:30:01Z"}
    assert body["dataFilter"]["orbitDirection"] == "DESCENDING"
    settings = Sentinel1(speckle_filter="none")
    process_s1(Path("one.zip"), None, Path("s1.tif"), found, GRID, settings)
    with rasterio.open("s1.tif") as raster:
        vh, (x, y) = raster.read(2), centres(raster)
    inner = np.s_[3:-3, 3:-3]
    np.testing.assert_allclose(vh[inner], (number_of(x, y, 1) / 1e5)[inner], rtol=1e-5)


def test_units_are_counted_and_told_before_they_are_spent(caplog):
    caplog.set_level(logging.INFO)
    square = Grid(crs=CRS, left=0, top=0, width=512, height=512)
    assert sentinelhub.processing_units(square, ("B02", "B03", "B04"), radar=False) == 1
    assert sentinelhub.processing_units(square, ("VV", "VH"), radar=True) == pytest.approx(8 / 3)
    assert sentinelhub.processing_units(square.window(0, 0, 9, 9), ("B02",), radar=False) == 0.005
    with serve_hub([optical()], render) as server:
        found = first(server, "sentinel2")
        expected = sentinelhub.costs(found, hub(server), WANTED, GRID)
        left = server.units
        download_scene(Path("one.zip"), found, hub(server), WANTED, GRID)
    assert left - server.units == pytest.approx(expected.processing_units, abs=1e-6)
    part = sentinelhub._part(found, GRID)
    assert expected.size_bytes == part.width * part.height * 3 * 2
    assert f"1 requests, about {expected.processing_units:.1f} processing units" in caplog.text


def test_what_was_paid_for_is_kept(monkeypatch):
    monkeypatch.setattr(sentinelhub, "LARGEST_PIXELS", 250)
    monkeypatch.setattr(sentinelhub, "CONNECTIONS", 1)
    with serve_hub([optical()], render) as server:
        found = first(server, "sentinel2")
        server.units = 0.9 * sentinelhub.costs(found, hub(server), WANTED, GRID).processing_units
        with pytest.raises(DownloadError, match=r"HTTP 403: insufficient processing units\): check SH_CLIENT_ID"):
            download_scene(Path("one.zip"), found, hub(server), WANTED, GRID)
        done, server.units = len(server.processed), 1e9
        assert not Path("one.zip").exists() and done
        download_scene(Path("one.zip"), found, hub(server), WANTED, GRID)
    assert len(server.processed) == len(sentinelhub.tiles_of(sentinelhub._part(found, GRID)))


def test_an_answer_of_another_size_is_never_kept():
    answers = [lambda asked: render(asked)[:2], render]
    with serve_hub([optical()], lambda asked: answers.pop(0)(asked)) as server:
        found = first(server, "sentinel2")
        with pytest.raises(ProductError, match=r"sent \(2, .* for a part of \(3, "):
            download_scene(Path("one.zip"), found, hub(server), WANTED, GRID)
        assert not Path("one.zip").exists()
        download_scene(Path("one.zip"), found, hub(server), WANTED, GRID)
    assert zipfile.is_zipfile("one.zip")


def test_a_scene_beside_the_area_is_refused():
    with serve_hub([optical()], render) as server:
        beside = GRID.model_copy(update={"left": GRID.left + 100_000})
        with pytest.raises(CoverageError, match="does not touch the area"):
            download_scene(Path("one.zip"), first(server, "sentinel2"), hub(server), WANTED, beside)


def test_faults_are_told_without_secrets(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with serve_hub([optical()], render, failures=[400]) as server:
        found = first(server, "sentinel2")
        with pytest.raises(DownloadError, match=r"does not deliver \(HTTP 400: injected\): check the area") as error:
            download_scene(Path("one.zip"), found, hub(server), WANTED, GRID)
        server.tokens.clear()
        with pytest.raises(DownloadError, match="HTTP 401: token expired or unknown"):
            download_scene(Path("one.zip"), found, hub(server), WANTED, GRID)
    assert "secret" not in caplog.text + str(error.value)
    assert not Path("one.zip").exists()


def test_no_log_tells_a_secret_and_netrc_takes_no_place_of_a_token(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    (tmp_path / "netrc").write_text("default login me password hidden\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serve_hub([optical()], render) as server:
        download_scene(Path("one.zip"), first(server, "sentinel2"), hub(server), WANTED, GRID)
        assert server.tokens and not any(word in caplog.text for word in (*server.tokens, "secret", "hidden"))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("path", [TOKEN, SEARCH, PROCESS])
def test_no_request_follows_to_another_host(path, status):
    with serve_hub([optical()], render) as there, serve_hub([optical()], render, leading=status) as server:
        found = first(server, "sentinel2")
        sentinelhub._TOKENS.clear()
        other = there.url.replace("127.0.0.1", "localhost")
        server.leads = {path: other}
        with pytest.raises(DownloadError, match=rf"127\.0\.0\.1:.*redirects .*to {other[7:]}{path}") as error:
            first(server, "sentinel2")
            download_scene(Path("one.zip"), found, hub(server), WANTED, GRID)
        assert there.arrived == [] and not Path("one.zip").exists()
        assert [asked for asked, _ in server.arrived].count(path) == (1 if path == PROCESS else 2)
    assert "secret" not in str(error.value)


def test_the_secret_goes_over_https_alone():
    with pytest.raises(SettingError, match=r"provider\.url is http://hub\.example\.org: expected https://"):
        sentinelhub.check_credentials(Provider(name="sentinelhub", url="http://hub.example.org"))
    sentinelhub.check_credentials(Provider(name="sentinelhub", url="https://hub.example.org"))


@pytest.mark.parametrize(
    "answer",
    [
        b'{"features": []}',
        b'{"features": [], "context": null}',
        b'{"features": null, "context": {}}',
        b'{"features": [1], "context": {}}',
        b'{"features": [{"id": "a"}], "context": {}}',
        b'{"features": [{"id": "a", "properties": 3}], "context": {}}',
        b"[]",
        b"\xff\xfe{",
        b"<html>Please log in</html>",
        b"[" * 200_000,
    ],
)
def test_what_is_no_list_of_scenes_is_told(answer):
    told = r"^127\.0\.0\.1:\d+ answers without a list of scenes \(\w+\): perhaps a login"
    with serve_hub([], render, instead={SEARCH: answer}) as server, pytest.raises(DownloadError, match=told):
        first(server, "sentinel2")


@pytest.mark.parametrize(
    "answer",
    [
        b'{"access_token": null, "expires_in": 600}',
        b'{"access_token": "", "expires_in": 600}',
        b'{"access_token": ["t"], "expires_in": 600}',
        b'{"access_token": "t"}',
        b'{"access_token": "t", "expires_in": "soon"}',
        b'{"access_token": "t", "expires_in": NaN}',
        b'{"access_token": "t", "expires_in": 1' + b"0" * 400 + b"}",
        b"[1]",
    ],
)
def test_what_is_no_token_is_neither_kept_nor_sent(answer):
    with serve_hub([optical()], render, instead={TOKEN: answer}) as server:
        with pytest.raises(DownloadError, match=r"^127\.0\.0\.1:\d+/auth/\S+ answers without a token: perhaps a login"):
            first(server, "sentinel2")
        assert [path for path, _ in server.arrived] == [TOKEN] and sentinelhub._TOKENS == {}


def test_one_token_serves_a_process_until_shortly_before_its_end(monkeypatch):
    with serve_hub([optical()], render, life_s=100) as server:
        began = time.time()
        download_scene(Path("one.zip"), first(server, "sentinel2"), hub(server), WANTED, GRID)
        assert len(server.tokens) == 1
        monkeypatch.setattr(sentinelhub.time, "time", lambda: began + 95)
        first(server, "sentinel2")
        assert len(server.tokens) == 2


@pytest.mark.parametrize(
    ("told", "kept"), [("1500", "1500"), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("9" * 12, None)]
)
def test_what_the_client_could_not_wait_for_is_not_told_to_it(told, kept):
    from sentinelhub import SentinelHubDownloadClient

    with serve_hub([optical()], render, failures=[429], retry_after=told) as server:
        config = sentinelhub._config(hub(server))
        client = SentinelHubDownloadClient(config=config)
        sentinelhub._take_over(client)
        pinned = sentinelhub._pinned(optical(), "sentinel-2-l2a")
        asked = sentinelhub.process_request(pinned, WANTED, GRID, config).download_list[0]
        assert client._do_download(asked).headers.get("Retry-After") == kept


FETCHES = """
import json, sys
from pathlib import Path
from covermap.grid import Grid
from covermap.providers import sentinelhub
from covermap.area_settings import Provider

sentinelhub.LARGEST_PIXELS = 150
item, grid, url, product = json.loads(sys.argv[1])
sentinelhub.fetch(item, Path(product), Provider(name="sentinelhub", url=url), ("B02",), Grid(**grid))
"""


def test_processes_share_the_connections_of_the_account(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    open_now, most = [], []

    def slowly(asked):
        open_now.append(asked)
        most.append(len(open_now))
        time.sleep(0.1)
        open_now.remove(asked)
        return render(asked)

    with serve_hub([optical()], slowly) as server:
        found = first(server, "sentinel2")
        words = [[found, GRID.model_dump(), server.url, f"{number}.zip"] for number in range(2)]
        jobs = [subprocess.Popen([sys.executable, "-c", FETCHES, json.dumps(each)]) for each in words]
        assert [job.wait(timeout=100) for job in jobs] == [0, 0]
    assert Path("0.zip").read_bytes() == Path("1.zip").read_bytes()
    assert len(most) == 2 * 3 * 4
    assert 2 <= max(most) <= sentinelhub.CONNECTIONS


@pytest.mark.parametrize("name", ["SH_CLIENT_ID", "SH_CLIENT_SECRET"])
def test_no_account_is_told_at_once(monkeypatch, name):
    monkeypatch.delenv(name)
    with pytest.raises(SettingError, match=r"no account: set SH_CLIENT_ID and SH_CLIENT_SECRET .*dashboard"):
        sentinelhub.check_credentials(Provider(name="sentinelhub"))


def test_a_refused_account_is_a_setting(monkeypatch):
    monkeypatch.setenv("SH_CLIENT_SECRET", "secret-but-wrong")
    with serve_hub([optical()], render) as server, pytest.raises(SettingError, match="refuses SH_CLIENT_ID") as error:
        first(server, "sentinel2")
    assert "wrong" not in str(error.value)


@pytest.mark.parametrize("side", ["width", "height"])
def test_the_service_refuses_requests_that_are_too_large(side):
    tile = GRID.model_copy(update={side: 2501})
    config = sentinelhub._config(Provider(name="sentinelhub"))
    body = sentinelhub.process_request(sentinelhub._pinned(optical(), "sentinel-2-l2a"), WANTED, tile, config).payload
    with pytest.raises(Refused, match="at most 2500"):
        validated(json.loads(json.dumps(body)))


def test_bands_that_a_level_lacks_are_refused():
    config = sentinelhub._config(Provider(name="sentinelhub"))
    pinned = sentinelhub._pinned(optical(), "sentinel-2-l2a")
    body = sentinelhub.process_request(pinned, ("B10",), GRID, config).payload
    with pytest.raises(Refused, match="has no bands"):
        validated(body)


def test_parts_of_a_grid_cover_it_once():
    grid = Grid(crs=CRS, left=600, top=6000, width=5001, height=2500)
    tiles = sentinelhub.tiles_of(grid)
    assert [tile.shape for tile in tiles] == [(2500, 1667)] * 3
    assert sum(tile.width * tile.height for tile in tiles) == grid.width * grid.height
