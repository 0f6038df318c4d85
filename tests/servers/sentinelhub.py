"""Sentinel Hub on loopback: token, Catalog and Process API, which refuse what the documented service would refuse."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from rasterio.io import MemoryFile
from rasterio.transform import from_bounds
from shapely.geometry import shape

from tests.servers.loopback import running

TOKEN = "/auth/realms/main/protocol/openid-connect/token"
SEARCH, PROCESS = "/api/v1/catalog/1.0.0/search", "/api/v1/process"
OPTICAL = {f"B{number:02d}" for number in range(1, 13)} | {"B8A", "dataMask", "CLM", "CLP"}
BANDS = {
    "sentinel-2-l2a": (OPTICAL - {"B10"}) | {"SCL", "AOT", "SNW", "CLD"},
    "sentinel-2-l1c": OPTICAL,
    "sentinel-1-grd": {"VV", "VH", "HH", "HV", "dataMask", "localIncidenceAngle", "scatteringArea", "shadowMask"},
}
CHOICES = {
    "acquisitionMode": {"SM", "IW", "EW", "WV"},
    "polarization": {"SH", "SV", "DH", "DV", "HH", "HV", "VV", "VH"},
    "orbitDirection": {"ASCENDING", "DESCENDING"},
    "resolution": {"HIGH", "MEDIUM"},
    "mosaickingOrder": {"mostRecent", "leastRecent", "leastCC"},
    "upsampling": {"NEAREST", "BILINEAR", "BICUBIC"},
    "downsampling": {"NEAREST", "BILINEAR", "BICUBIC", "BOX"},
    "harmonizeValues": {True, False},
    "backCoeff": {"BETA0", "SIGMA0_ELLIPSOID", "GAMMA0_ELLIPSOID", "GAMMA0_TERRAIN"},
    "orthorectify": {True, False},
    "demInstance": {"MAPZEN", "COPERNICUS", "COPERNICUS_30", "COPERNICUS_90"},
}
KINDS = {"UINT8": np.uint8, "UINT16": np.uint16, "FLOAT32": np.float32}


class Refused(Exception):
    """Why the service answers 400."""


@dataclass(frozen=True)
class Asked:
    """A valid request: what is to be rendered."""

    collection: str
    bands: tuple[str, ...]
    begin: datetime
    end: datetime
    bounds: tuple[float, float, float, float]
    crs: str
    width: int
    height: int


Render = Callable[[Asked], np.ndarray]  # numbers (band, y, x) of the bands but dataMask, as the product has them


@dataclass
class HubServer:
    """What the service has and what it was asked. ``units`` are left; each request takes some."""

    items: list[dict[str, Any]]
    render: Render
    account: tuple[str, str] = ("client", "secret-of-the-client")
    life_s: float = 3600
    page: int = 2
    units: float = 1e9
    url: str = ""
    searches: list[dict[str, Any]] = field(default_factory=list)
    processed: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, float] = field(default_factory=dict)
    failures: list[int] = field(default_factory=list)  # statuses of the next answers of the Process API
    retry_after: str = ""  # told with these
    leads: dict[str, str] = field(default_factory=dict)  # paths that redirect, and to where
    leading: int = 307  # status of redirects
    instead: dict[str, bytes] = field(default_factory=dict)  # what paths answer in place of what they should
    arrived: list[tuple[str, bytes]] = field(default_factory=list)  # path and body of each request

    def found(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        start, end = (datetime.fromisoformat(time) for time in body["datetime"].split("/"))
        area = shape(body["intersects"])
        (collection,) = body["collections"]
        return [
            item
            for item in self.items
            if item["collection"] == collection
            and start <= datetime.fromisoformat(item["properties"]["datetime"]) <= end
            and shape(item["geometry"]).intersects(area)
            and _meets_filter(item["properties"], body.get("filter"))
        ]


def _meets_filter(properties: dict[str, Any], text: str | None) -> bool:
    """CQL2 of comparisons that are joined by AND."""
    for part in text.split(" AND ") if text else []:
        found = re.fullmatch(r"([\w:]+)(<=|=)('?)([\w.]+)\3", part)
        if not found:
            raise Refused(f"cannot parse filter {part}")
        name, sign, quote, value = found.groups()
        given = properties.get(name)
        if (sign == "=" and given != value) or (sign == "<=" and not (not quote and float(given) <= float(value))):
            return False
    return True


def validated(body: dict[str, Any]) -> tuple[Asked, str]:
    """A request that the Process API would take, and the type of its numbers."""
    (data,) = body["input"]["data"]
    bounds, output = body["input"]["bounds"], body["output"]
    if data["type"] not in BANDS:
        raise Refused(f"collection {data['type']}")
    crs = re.fullmatch(r"http://www\.opengis\.net/def/crs/EPSG/0/(\d+)", bounds["properties"]["crs"])
    if not crs:
        raise Refused(f"crs {bounds['properties']['crs']}")
    for name, value in {**data["dataFilter"], **data["processing"]}.items():
        if name != "timeRange" and (name not in CHOICES or value not in CHOICES[name]):
            raise Refused(f"{name}: {value}")
    optical = {"upsampling", "downsampling", "harmonizeValues"}
    if bool(optical & set(data["processing"])) == (data["type"] == "sentinel-1-grd"):
        raise Refused(f"processing of {data['type']}: {sorted(data['processing'])}")
    width, height = output["width"], output["height"]
    if not (0 < width <= 2500 and 0 < height <= 2500):
        raise Refused(f"width and height must be at most 2500, got {width} x {height}")
    if [response["identifier"] for response in output["responses"]] != ["default"]:
        raise Refused("responses")
    if output["responses"][0]["format"]["type"] != "image/tiff":
        raise Refused("format")
    begin, end = (datetime.fromisoformat(data["dataFilter"]["timeRange"][word]) for word in ("from", "to"))
    bands, kind = _script(body["evalscript"], data["type"])
    return Asked(data["type"], bands, begin, end, tuple(bounds["bbox"]), f"EPSG:{crs[1]}", width, height), kind


def _script(text: str, collection: str) -> tuple[tuple[str, ...], str]:
    """Bands that an evalscript asks for and the type of its output; what it returns must fit its output."""
    inputs = re.search(r"input: \[\{bands: (\[[^\]]*\])(, units: \"DN\")?\}\]", text)
    output = re.search(r'output: \{id: "default", bands: (\d+), sampleType: "(\w+)"\}', text)
    returned = re.search(r"return sample\.dataMask \? \[(.*)\] : \[(.*)\];", text)
    if not text.startswith("//VERSION=3\n") or not (inputs and output and returned):
        raise Refused("evalscript")
    bands = json.loads(inputs[1])
    if unknown := set(bands) - BANDS[collection]:
        raise Refused(f"collection {collection} has no bands {sorted(unknown)}")
    if collection == "sentinel-1-grd" and inputs[2]:
        raise Refused("unit DN of sentinel-1-grd")
    used = re.findall(r"sample\.(\w+)", returned[1])
    if not (len(used) == int(output[1]) == returned[2].count(",") + 1) or set(used) | {"dataMask"} != set(bands):
        raise Refused("output of the evalscript")
    return tuple(used), output[2]


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            server.arrived.append((self.path, content))
            routes = {TOKEN: self.token, SEARCH: self.search, PROCESS: self.process}
            if self.path in server.leads:
                self.send(b"", "text/plain", server.leading, Location=server.leads[self.path] + self.path)
                return
            if self.path in server.instead:
                self.send(server.instead[self.path], "application/json", 200)
                return
            if self.path not in routes:
                self.answer({"error": {"message": "not found"}}, 404)
                return
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if self.path != TOKEN and server.tokens.get(token, 0) < time.time():
                self.answer({"error": {"message": "token expired or unknown"}}, 401)
                return
            try:
                routes[self.path](content)
            except (Refused, KeyError, ValueError) as error:
                self.answer({"error": {"status": 400, "message": f"invalid request: {error}"}}, 400)

        def token(self, content: bytes) -> None:
            given = {key: values[0] for key, values in parse_qs(content.decode()).items()}
            if given.get("grant_type") != "client_credentials" or server.account != (
                given.get("client_id"),
                given.get("client_secret"),
            ):
                self.answer({"error": "invalid_client", "error_description": "Invalid client credentials"}, 401)
                return
            token = f"secret-token-{len(server.tokens)}"
            server.tokens[token] = time.time() + server.life_s
            self.answer({"access_token": token, "expires_in": server.life_s, "token_type": "Bearer"})

        def search(self, content: bytes) -> None:
            body = json.loads(content)
            server.searches.append(body)
            found, first = server.found(body), int(body.get("next", 0))
            following = first + min(server.page, body["limit"])
            context = {"limit": server.page, "returned": 0} | ({"next": following} if following < len(found) else {})
            self.answer({"type": "FeatureCollection", "features": found[first:following], "context": context})

        def process(self, content: bytes) -> None:
            if server.failures:
                body = json.dumps({"error": {"message": "injected"}}).encode()
                more = {"Retry-After": server.retry_after} if server.retry_after else {}
                self.send(body, "application/json", server.failures.pop(0), **more)
                return
            body = json.loads(content)
            asked, kind = validated(body)
            server.units -= asked.width * asked.height / 512**2 * len(asked.bands) / 3
            if server.units < 0:
                self.answer({"error": {"message": "insufficient processing units"}}, 403)
                return
            server.processed.append(body)
            pixels = server.render(asked).astype(KINDS[kind])
            transform = from_bounds(*asked.bounds, asked.width, asked.height)
            place = {"crs": asked.crs, "transform": transform, "width": asked.width, "height": asked.height}
            with MemoryFile() as memory:
                with memory.open(driver="GTiff", count=len(pixels), dtype=pixels.dtype, **place) as raster:
                    raster.write(pixels)
                self.send(memory.read(), "image/tiff", 200)

        def answer(self, content: Any, status: int = 200) -> None:
            self.send(json.dumps(content).encode(), "application/json", status)

        def send(self, content: bytes, kind: str, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def serve_hub(items: list[dict[str, Any]], render: Render, **options: Any) -> Iterator[HubServer]:
    """A running service on a free port of loopback."""
    server = HubServer(items, render, **options)
    with running(_handler(server)) as (server.url,):
        yield server
