"""The object store of the Copernicus Data Space on loopback: hadro, which checks signatures, with a few products."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.servers.cdse import Entry

KEY, SECRET = "key-of-somebody", "the secret of/some+body="


@contextmanager
def serve_store(entries: Iterable[Entry], folder: Path) -> Iterator[dict[str, str]]:
    """Variables of the environment that lead to products, which stand in the store where the catalogue says.

    ``folder`` becomes the store; the products are links, so it lies on their disk.
    """
    for entry in entries:
        shutil.copytree(entry.safe, folder / entry.told(False)["S3Path"].strip("/"), copy_function=os.link)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keys = ["--access-key", KEY, "--secret-key", SECRET, "--region", "default"]
    line = [sys.executable, "-m", "hadro", str(folder), "--port", str(port), *keys]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for(port, server)
            endpoint = f"http://127.0.0.1:{port}"
            yield {"CDSE_S3_ACCESS": KEY, "CDSE_S3_SECRET": SECRET, "CDSE_S3_ENDPOINT": endpoint}
        finally:
            server.terminate()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise RuntimeError(f"hadro ended with status {server.returncode} before it answered")
