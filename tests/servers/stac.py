"""A STAC API on loopback: item search with paging, files with byte ranges, and a service that signs their addresses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from shapely.geometry import shape

from tests.servers.loopback import running

CORE = "https://api.stacspec.org/v1.0.0/core"
ITEM_SEARCH = "https://api.stacspec.org/v1.0.0/item-search"


@dataclass
class StacServer:
    """What the server has and what it was asked.

    ``items`` have hrefs relative to ``folder``, which the server completes. ``life_s`` is how long a token is good;
    ``signed`` files are given against one alone.
    """

    items: list[dict[str, Any]]
    folder: Path
    signed: bool = False
    life_s: float = 3600
    url: str = ""
    searches: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, tuple[str, float]] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)  # bytes sent by file
    failures: list[int] = field(default_factory=list)  # statuses of the next answers to searches

    def item(self, item: dict[str, Any]) -> dict[str, Any]:
        """An item with addresses, and with the times that a catalogue adds to its entries."""
        assets = {key: {**asset, "href": f"{self.url}/files/{asset['href']}"} for key, asset in item["assets"].items()}
        times = {"created": datetime.now(UTC).isoformat(), "updated": datetime.now(UTC).isoformat()}
        links = [{"rel": "self", "href": f"{self.url}/collections/{item['collection']}/items/{item['id']}"}]
        return {**item, "assets": assets, "properties": {**item["properties"], **times}, "links": links}

    def found(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Items that a search asks for (STAC API 1.0.0, Item Search: collections, intersects, datetime)."""
        known = {"collections", "intersects", "datetime", "limit", "token"}
        assert set(body) <= known, f"unknown parameters {set(body) - known}"
        start, end = (datetime.fromisoformat(time) for time in body["datetime"].split("/"))
        area = shape(body["intersects"])
        return [
            item
            for item in self.items
            if item["collection"] in body["collections"]
            and start <= datetime.fromisoformat(item["properties"]["datetime"]) <= end
            and shape(item["geometry"]).intersects(area)
        ]


def _handler(server: StacServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path.rstrip("/") == "":
                self.answer(_landing(server.url))
            elif found := re.fullmatch(r"/token/([\w-]+)", parts.path):
                self.answer(_token(server, found[1]))
            elif parts.path.startswith("/files/"):
                self.file(parts.path.removeprefix("/files/"), parse_qs(parts.query))
            else:
                self.answer({"code": "NotFound"}, 404)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.searches.append(body)
            if server.failures:
                self.answer({"code": "busy"}, server.failures.pop(0))
                return
            found, first = server.found(body), int(body.get("token", 0))
            page = found[first : first + body["limit"]]
            links = []
            if first + body["limit"] < len(found):
                following = {**body, "token": str(first + body["limit"])}
                links = [{"rel": "next", "href": f"{server.url}/search", "method": "POST", "body": following}]
            self.answer({"type": "FeatureCollection", "features": [server.item(one) for one in page], "links": links})

        def file(self, name: str, query: dict[str, list[str]]) -> None:
            path = server.folder / unquote(name)
            if server.signed and not _is_signed(server, query):
                self.answer({"code": "AuthenticationFailed"}, 403)
                return
            if not path.is_file():
                self.answer({"code": "NotFound"}, 404)
                return
            content = path.read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first, last = (int(asked[1]), int(asked[2] or len(content) - 1)) if asked else (0, len(content) - 1)
            part = content[first : last + 1]
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send(part, "application/octet-stream")
            if self.command == "GET":
                server.read[name] = server.read.get(name, 0) + len(part)

        def answer(self, content: Any, status: int = 200) -> None:
            self.send_response(status)
            self.send(json.dumps(content).encode(), "application/json")

        def send(self, content: bytes, kind: str) -> None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _landing(url: str) -> dict[str, Any]:
    links = [
        {"rel": "self", "href": url},
        {"rel": "root", "href": url},
        {"rel": "search", "href": f"{url}/search", "method": "POST", "type": "application/geo+json"},
    ]
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "loopback",
        "description": "a STAC API for tests",
        "conformsTo": [CORE, ITEM_SEARCH],
        "links": links,
    }


def _token(server: StacServer, collection: str) -> dict[str, str]:
    number = sum(name.startswith(collection) for name in server.tokens)
    token, ends = f"sig=secret-{collection}-{number}", datetime.now(UTC) + timedelta(seconds=server.life_s)
    server.tokens[f"{collection} {number}"] = (token, ends.timestamp())
    return {"msft:expiry": ends.isoformat().replace("+00:00", "Z"), "token": token}


def _is_signed(server: StacServer, query: dict[str, list[str]]) -> bool:
    given = f"sig={query.get('sig', [''])[0]}"
    now = datetime.now(UTC).timestamp()
    return any(token == given and ends > now for token, ends in server.tokens.values())


@contextmanager
def serve_stac(items: list[dict[str, Any]], folder: Path, **options: Any) -> Iterator[StacServer]:
    """A running server on a free port of loopback."""
    server = StacServer(items, folder, **options)
    with running(_handler(server)) as (server.url,):
        yield server
