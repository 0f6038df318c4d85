"""A public bucket on loopback: a folder of files with ranges, listed as S3 does, and faults on request."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.servers.loopback import running

PAGE = 2  # keys of a page of a list


@dataclass
class Bucket:
    """A running server. ``fault`` tells of each path what goes wrong: "", "cut", "reset", "no ranges" or a status."""

    url: str
    folder: Path
    fault: Callable[[str], str] = lambda path: ""
    paths: list[str] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)
    sent_bytes: int = 0
    listing: bytes = b""  # in the place of every list
    digest: str = ""  # told of all files in lists; empty: the right one


@contextmanager
def bucket(folder: Path) -> Iterator[Bucket]:
    """Serve a folder until the block ends."""
    shop = Bucket("", folder)
    with running(type("Handler", (_Handler,), {"shop": shop})) as (shop.url,):
        yield shop


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shop: Bucket

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        shop, address = self.shop, urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        if "list-type" in query:
            shop.queries.append(query)
            return self._answer(200, shop.listing or _listed(shop, query), {"Content-Type": "application/xml"})
        shop.paths.append(address.path)
        file, fault = shop.folder / unquote(address.path).lstrip("/"), shop.fault(address.path)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return None
        if fault.isdigit():
            return self._answer(int(fault), b"no", {})
        if not file.is_file():
            return self._answer(404, b"no such key", {})
        body = file.read_bytes()
        headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or fault == "no ranges":
            return self._answer(200, body, headers, fault)
        first, last = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
        if first > last:
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        return self._answer(206, body[first : last + 1], headers, fault)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], fault: str = "") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.close_connection = fault == "cut"
        part = body[: len(body) // 2] if fault == "cut" else body
        self.shop.sent_bytes += len(part)
        with suppress(ConnectionError):  # a reader may go when it sees that it gets no range
            self.wfile.write(part)


def _listed(shop: Bucket, query: dict[str, str]) -> bytes:
    """A page of ListObjectsV2; the token is the last key of the page before."""
    after = query.get("continuation-token") or query.get("start-after", "")
    folder = shop.folder
    keys = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    keys = [key for key in keys if key.startswith(query.get("prefix", "")) and key > after]
    more = len(keys) > PAGE
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><ETag>&quot;{shop.digest or _md5(folder / key)}&quot;"
        f"</ETag><Size>{(folder / key).stat().st_size}</Size></Contents>"
        for key in keys[:PAGE]
    )
    token = f"<NextContinuationToken>{escape(keys[PAGE - 1])}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
    ).encode()


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()
