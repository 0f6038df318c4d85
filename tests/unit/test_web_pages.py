"""A web page, of a proxy or a login, in place of what a service says: one clear sentence."""

import pytest
from shapely.geometry import box

from covermap.area_settings import Period, Provider
from covermap.errors import DownloadError
from covermap.providers import Query, cdse, cdse_access, sentinelhub, stac, stac_api
from covermap.web import json_of, request
from tests.unit.test_transfer import saying

PAGE = b"<html>Please log in</html>"
QUERY = Query(box(10, 50, 11, 51), Period(start="2021-08-01", end="2021-08-31"), ("sentinel2",))


def answer(kind, body):
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)


ASKING = {
    "cdse, search": lambda url: cdse.search(QUERY, Provider(name="cdse", url=url)),
    "cdse, token": lambda url: cdse_access.token(cdse_access.service_at(url)),
    "stac, search": lambda url: stac.search(QUERY, Provider(name="stac", catalog=url)),
    "stac, token": lambda url: stac_api.Signer(url, "sentinel-2-l2a", loopback=True).sign(f"{url}/a.tif"),
    "sentinelhub, token": lambda url: sentinelhub.search(QUERY, Provider(name="sentinelhub", url=url)),
}


@pytest.fixture(autouse=True)
def account(monkeypatch, tmp_path):
    for name in ("CDSE_USERNAME", "CDSE_PASSWORD", "SH_CLIENT_ID", "SH_CLIENT_SECRET"):
        monkeypatch.setenv(name, "a-secret")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@pytest.mark.parametrize("who", ASKING)
def test_a_page_in_place_of_an_answer(who):
    with saying(answer(b"text/html; charset=utf-8", PAGE)) as port, pytest.raises(DownloadError) as caught:
        ASKING[who](f"http://127.0.0.1:{port}")
    text = str(caught.value)
    assert f"127.0.0.1:{port}" in text and "\n" not in text
    assert "log in" not in text and "a-secret" not in text
    assert "check the address" in text


@pytest.mark.parametrize("body", [b'{"features": [1]}', b'{"value": [1], "links": 3}'])
@pytest.mark.parametrize("who", ASKING)
def test_json_of_something_else(who, body):
    with saying(answer(b"application/json", body)) as port, pytest.raises(DownloadError) as caught:
        ASKING[who](f"http://127.0.0.1:{port}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [PAGE, b"", b"\xff\xfe{", b"[" * 200_000])
def test_what_is_no_json(body):
    with saying(answer(b"text/html", body)) as port:
        found = request("GET", f"http://127.0.0.1:{port}/list?key=hidden")
        with pytest.raises(DownloadError, match=r"^127\.0\.0\.1:\d+/list answers with 'text/html', not with JSON: "):
            json_of(found)


def test_json_is_read():
    with saying(answer(b"application/json", b'{"a": [1]}')) as port:
        assert json_of(request("GET", f"http://127.0.0.1:{port}/")) == {"a": [1]}
