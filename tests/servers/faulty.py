"""A loopback HTTP server of files that does wrong what servers do wrong, by name and in the order asked for.

Files want a Bearer token, which ``/token`` gives for a secret; the host ``localhost`` plays the object store to which
``127.0.0.1`` redirects, and which must never see the token.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

FAULTS = (
    "429",
    "429_retry_after",
    "500",
    "503",
    "503_until",
    "reset",
    "cut",
    "length_too_long",
    "length_too_short",
    "corrupt",
    "slow_body",
    "slow_headers",
    "expired",
    "refused",
    "away",
    "range_ignored",
    "other_part",
    "changed",
    "behind",
    "part",
    "accepted",
    "json",
    "web_page",
    "no_length",
    "chunked_cut",
)
SECRET = "Open-Sesame-4711"
SIGNATURE = "sig-0815-secret"


def plan(seed: int, longest: int = 6) -> list[str]:
    """Faults at random, some requests without one."""
    source = random.Random(seed)
    return [source.choice((*FAULTS, "")) for _ in range(source.randint(0, longest))]


class Faulty(ThreadingHTTPServer):
    """Serves ``files`` by path; each request for one takes the next of ``faults``, then none."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files: dict[str, bytes], faults: Iterable[str] = (), seed: int = 0, rate: float = 0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.random, self.rate = files, list(faults), random.Random(seed), rate
        self.lock = threading.Lock()
        self.granted = 0
        self.refusing = False
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.leaks: list[str] = []
        self.open_now = self.most_open = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def token(self) -> str:
        return f"token-{self.granted}-of-a-secret"

    def next_fault(self) -> str:
        with self.lock:
            return self.faults.pop(0) if self.faults else ""

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up here all the time."""


@contextmanager
def serving(files: dict[str, bytes], faults: Iterable[str] = (), *, seed: int = 0, rate: float = 0) -> Iterator[Faulty]:
    """A server while the block runs; ``rate`` limits each body [bytes/s]."""
    server = Faulty(files, faults, seed, rate)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Faulty

    def log_message(self, *words: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        if self.path == "/moved":
            self._answer(307, Location=f"http://localhost:{self.server.server_port}/token")
        elif self.path != "/token" or form.get("secret") != [SECRET]:
            self._answer(401)
        elif self.server.refusing:
            self._answer(400, json.dumps({"error": "invalid_grant"}).encode())
        else:
            self._answer(200, json.dumps({"access_token": self.server.token}).encode())

    def do_GET(self) -> None:
        server, path = self.server, urlsplit(self.path).path
        away = self.headers["Host"].startswith("localhost")
        with server.lock:
            server.asked.append((self.headers["Host"], self.path, dict(self.headers)))
            if away and "Authorization" in self.headers:
                server.leaks.append(self.path)
        if path not in server.files:
            self._answer(404)
        elif not away and self.headers.get("Authorization", "") != f"Bearer {server.token}":
            self._answer(401)
        else:
            self._file(path, "" if away else server.next_fault())

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, path: str, fault: str) -> None:
        if fault == "429_retry_after":
            return self._answer(429, Retry_After="1")
        if fault == "503_until":
            return self._answer(503, Retry_After=self.date_time_string(int(time.time()) + 1))
        if fault in {"429", "500", "503"}:
            return self._answer(int(fault), b"too bad")
        if fault == "away":
            where = f"http://localhost:{self.server.server_port}{path}?signature={SIGNATURE}"
            return self._answer(302, Location=where)
        if fault == "web_page":
            self.send_response(200)
            return self._body(b"<html>Please log in</html>", "", {"Content-Type": "text/html; charset=utf-8"})
        if fault in {"accepted", "json"}:
            body = b'{"state": "the file is on its way"}'
            return self._answer(202 if fault == "accepted" else 200, body, Content_Type="application/json")
        content = self.server.files[path]
        etag = f'"{hashlib.sha256(content).hexdigest()[:12]}"'
        if fault == "changed":
            content, etag = bytes(reversed(content)), '"another"'
        start = self._start(etag, len(content), fault)
        if start is None or (start and fault == "behind"):
            return self._answer(416, Content_Range=f"bytes */{len(content)}")
        return self._content(content, start, fault, {"ETag": etag, "Accept-Ranges": "bytes"})

    def _content(self, content: bytes, start: int, fault: str, headers: dict[str, str]) -> None:
        is_part, end = bool(start) or fault == "part", len(content)
        if fault == "part":  # as much as it likes, also where nobody asked for a part
            end = self.server.random.randint(min(start + 1, end), end)
        if fault == "other_part" and start:
            start += 1 if start + 1 < end else -1
        if is_part:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self.send_response(206 if is_part else 200)
        self._body(content[start:end], fault, headers)

    def _start(self, etag: str, length: int, fault: str) -> int | None:
        """First byte of the answer: 0 for the whole file, None where there is none so far behind."""
        match = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        valid = self.headers.get("If-Range", etag) == etag or fault == "changed"
        if not match or not valid or fault == "range_ignored":
            return 0
        return int(match[1]) if int(match[1]) < length else None

    def _body(self, body: bytes, fault: str, headers: dict[str, str]) -> None:
        length = len(body)
        if fault == "chunked_cut":
            headers["Transfer-Encoding"] = "chunked"
        elif fault != "no_length":
            wrong = {"length_too_long": length + 9, "length_too_short": max(0, length - 9)}
            headers["Content-Length"] = str(wrong.get(fault, length))
        if fault in {"length_too_long", "length_too_short", "no_length"}:
            headers["Connection"] = "close"
            self.close_connection = True
        for name, value in headers.items():
            self.send_header(name, value)
        if fault == "slow_headers":
            return self._drip(b"".join(self._headers_buffer) + b"X-Slow: " + b"s" * 400)
        self.end_headers()
        return self._send(body, fault)

    def _send(self, body: bytes, fault: str) -> None:
        end = self.server.random.randint(0, max(0, len(body) - 1))
        if fault == "slow_body":
            self._paced(body[:end])
            self._drip(body[end:])
        elif fault == "corrupt" and body:
            self._paced(body[:end] + bytes([body[end] ^ 1]) + body[end + 1 :])
        elif fault == "chunked_cut":
            self.wfile.write(b"%x\r\n" % len(body) + body[:end])
            self._hang_up()
        elif fault in {"reset", "cut", "expired", "refused"}:
            self._paced(body[:end])
            if fault in {"expired", "refused"}:
                self.server.granted += 1
                self.server.refusing = fault == "refused"
            self._hang_up(reset=fault == "reset")
        else:
            self._paced(body)

    def _paced(self, body: bytes) -> None:
        """All but the last bytes count as an open transfer: the client may be gone before we look again."""
        step = int(self.server.rate / 100) or len(body) or 1
        self._count(1)
        for start in range(0, max(0, len(body) - step), step):
            self.wfile.write(body[start : start + step])
            time.sleep(0.01)
        self._count(-1)
        self.wfile.write(body[(len(body) - 1) // step * step :] if body else b"")

    def _count(self, change: int) -> None:
        with self.server.lock:
            self.server.open_now += change
            self.server.most_open = max(self.server.most_open, self.server.open_now)

    def _drip(self, body: bytes) -> None:
        with suppress(OSError):
            for start in range(len(body)):
                self.wfile.write(body[start : start + 1])
                time.sleep(0.02)
        self._hang_up()

    def _hang_up(self, reset: bool = False) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
