"""A hub of weights on loopback: pointers to files, and redirects of the files themselves to a store on another host."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

from tests.servers.bucket import Bucket, bucket
from tests.servers.loopback import running


@dataclass
class Hub:
    """A running server. ``digests`` are told of files in the place of the right ones."""

    url: str
    store: Bucket
    digests: dict[str, str] = field(default_factory=dict)
    pointers: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def put(self, repository: str, revision: str, file: str, content: bytes) -> None:
        """Add a file."""
        path = self.store.folder / repository / revision / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    """Serve a folder until the block ends."""
    with bucket(folder) as store:
        shop = Hub("", store)
        with running(type("Handler", (_Handler,), {"hub": shop})) as (shop.url,):
            yield shop


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        shop, path = self.hub, urlsplit(self.path).path
        shop.asked.append((path, dict(self.headers)))
        owner, name, what, revision, file = path.strip("/").split("/")
        stored = f"{owner}/{name}/{revision}/{file}"
        content = shop.store.folder / stored
        if not content.is_file():
            return self._answer(401, b"Repository not found")
        if what == "raw":
            return self._answer(200, shop.pointers.get(stored) or self._pointer(stored, content.read_bytes()))
        store = shop.store.url.replace("127.0.0.1", "localhost")
        return self._answer(302, b"", Location=f"{store}/{stored}?Signature=abc")

    def _pointer(self, stored: str, content: bytes) -> bytes:
        digest = self.hub.digests.get(stored) or hashlib.sha256(content).hexdigest()
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(content)}\n".encode()

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
