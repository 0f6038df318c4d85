"""Running servers on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def running(*handlers: type[BaseHTTPRequestHandler]) -> Iterator[list[str]]:
    """Addresses of servers, one for each handler, on free ports until the block ends."""
    with ExitStack() as stack:
        yield [f"http://127.0.0.1:{_started(stack, handler).server_port}" for handler in handlers]


def _started(stack: ExitStack, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    stack.callback(server.shutdown)
    return server
