"""Files over loopback: four at once with their checksums, against four ``curl``, which check nothing.

One server process sends the files from memory with sendfile; both sides write to the same folder, in memory where
/dev/shm is. Figures: ``fraction_of_curl`` (rate with BLAKE3, which the Copernicus Data Space gives, by that of curl;
median of pairs run in turn), the same with MD5 and without a checksum, and the rates [MB/s]. Time is from the start of
the processes to the end of the last one, with the imports of ours done before.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import blake3

from covermap.transfer import fetch_file
from covermap.web import Access

FILES = 4
MEGABYTES = int(os.environ.get("COVERMAP_BENCH_MB", "512"))
REPEATS = 7

Checksum = tuple[str, str] | None


class Handler(BaseHTTPRequestHandler):
    """Sends one file, whatever is asked for."""

    protocol_version = "HTTP/1.1"
    source: Path

    def do_GET(self) -> None:
        with self.source.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.flush()
            sent = 0
            while sent < length:
                sent += os.sendfile(self.connection.fileno(), file.fileno(), sent, length - sent)

    def log_message(self, *words: object) -> None:
        """Quiet."""


def serve(source: Path, port: multiprocessing.Queue[int]) -> None:
    Handler.source = source
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.put(server.server_port)
    server.serve_forever()


def with_curl(url: str, folder: Path) -> float:
    """Seconds of four curl side by side."""
    start = time.perf_counter()
    line = ["curl", "--silent", "--fail", "--output"]
    running = [subprocess.Popen([*line, folder / f"{number}", url]) for number in range(FILES)]
    if any([process.wait() for process in running]):
        sys.exit("curl failed")
    return time.perf_counter() - start


def with_ours(url: str, folder: Path, checksum: Checksum) -> float:
    """Seconds of four processes of ours side by side, as Snakemake starts them."""
    context = multiprocessing.get_context("fork")
    start = time.perf_counter()
    running = [context.Process(target=fetch_one, args=(url, folder / f"{number}", checksum)) for number in range(FILES)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        sys.exit("our download failed")
    return time.perf_counter() - start


def fetch_one(url: str, path: Path, checksum: Checksum) -> None:
    fetch_file(url, path, size=MEGABYTES * 2**20, checksum=checksum, access=Access("benchmark"))


def rate(way: Callable[[Path], float], home: Path) -> float:
    """Megabytes a second of one way."""
    with tempfile.TemporaryDirectory(dir=home) as folder:
        return FILES * MEGABYTES * 2**20 / 1e6 / way(Path(folder))


def measure(url: str, home: Path, checksums: dict[str, Checksum]) -> dict[str, object]:
    """Each way in turn, so that what else the machine does meets all of them."""
    ways: dict[str, Callable[[Path], float]] = {"curl": lambda folder: with_curl(url, folder)}
    for name, checksum in checksums.items():
        ways[name] = lambda folder, checksum=checksum: with_ours(url, folder, checksum)  # type: ignore[misc]
    rates = {name: [] for name in ways}  # type: dict[str, list[float]]
    for _ in range(REPEATS):
        for name, way in ways.items():
            rates[name].append(rate(way, home))
    fractions = {
        name: round(
            statistics.median(ours / theirs for ours, theirs in zip(rates[name], rates["curl"], strict=True)), 3
        )
        for name in checksums
    }
    median = {f"{name}_mb_s": round(statistics.median(values)) for name, values in rates.items()}
    return {
        "fraction_of_curl": fractions["blake3"],
        "fraction_of_curl_md5": fractions["md5"],
        "fraction_of_curl_unchecked": fractions["unchecked"],
        **median,
    }


def main() -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        home = Path(name)
        content = os.urandom(2**20) * MEGABYTES
        (home / "source").write_bytes(content)
        checksums: dict[str, Checksum] = {
            "blake3": ("blake3", blake3.blake3(content).hexdigest()),
            "md5": ("md5", hashlib.md5(content).hexdigest()),
            "unchecked": None,
        }
        del content
        port: multiprocessing.Queue[int] = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(home / "source", port), daemon=True)
        server.start()
        figures = measure(f"http://127.0.0.1:{port.get()}/file", home, checksums)
        server.terminate()
    print(json.dumps({"benchmark": "download", "figures": figures}))


if __name__ == "__main__":
    main()
