"""A STAC API as others run it: stac-fastapi-pgstac over PostgreSQL and PostGIS, on loopback and of one test's own.

Run as a script, by the Python of ``.venv-servers``, it takes a list of items on the first line of its standard input,
prints the address of the API that has them, and serves until that input ends: nothing outlives a test that is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

PYTHON = Path(__file__).parents[2] / ".venv-servers" / "bin" / "python"
SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{folder}'
max_connections = 30
shared_buffers = 32MB
fsync = off
synchronous_commit = off
full_page_writes = off
"""

Items = list[dict[str, Any]]


def missing() -> str:
    """What has to be installed before there is a server, in a sentence; nothing is missing: an empty string."""
    if _programs() is None:
        return "no PostgreSQL with PostGIS: install Debian's postgresql-15-postgis-3"
    return "" if PYTHON.exists() else "no stac-fastapi-pgstac in .venv-servers: run make servers"


def _programs() -> Path | None:
    """Folder of the programs of the PostgreSQL that has PostGIS, where Debian puts it; of several the newest."""
    versions = [int(path.parts[-3]) for path in Path("/usr/share/postgresql").glob("*/extension/postgis.control")]
    return Path(f"/usr/lib/postgresql/{max(versions)}/bin") if versions else None


@contextmanager
def serve_pgstac(items: Items) -> Iterator[str]:
    """Address of an API that has the items, in collections of their names."""
    line = [str(PYTHON), __file__]
    pipe = subprocess.PIPE
    with subprocess.Popen(line, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as servers:
        print(json.dumps(items), file=servers.stdin, flush=True)
        url = servers.stdout.readline().strip()
        assert url, "the STAC API did not start: its standard error says why"
        yield url


@contextmanager
def _cluster() -> Iterator[Path]:
    """Folder with the socket of a PostgreSQL that is gone afterwards; it does not run as root, so as its own user."""
    with TemporaryDirectory(prefix="covermap-pgstac-") as name:
        folder, data = Path(name), Path(name) / "data"
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
            account = {"user": "postgres", "group": "postgres", "extra_groups": []}

        def run(program: str, *words: str) -> None:
            line = [f"{_programs()}/{program}", "--pgdata", str(data), *words]
            subprocess.run(line, check=True, cwd=folder, stdout=sys.stderr, timeout=60, **account)

        run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        with (data / "postgresql.conf").open("a") as file:
            file.write(SETTINGS.format(folder=folder))
        run("pg_ctl", "start", "--wait", "--silent", f"--log={folder}/log")
        try:
            yield folder
        finally:
            run("pg_ctl", "stop", "--mode=immediate", "--silent")


def _load(items: Items) -> None:
    """The tables of pgstac, with the items in their collections, in the database that the environment names."""
    from pypgstac.db import PgstacDB
    from pypgstac.load import Loader
    from pypgstac.migrate import Migrate

    with PgstacDB() as database:
        Migrate(database).run_migration()
        loader = Loader(database)
        loader.load_collections(iter([_collection(name) for name in sorted({item["collection"] for item in items})]))
        loader.load_items(iter(items))


def _collection(name: str) -> dict[str, Any]:
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": name,
        "license": "other",
        "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
        "links": [],
    }


def _serve() -> None:
    """Answer until the standard input ends."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config("stac_fastapi.pgstac.app:create_app", factory=True, log_level="warning"))

        def end() -> None:
            sys.stdin.read()
            server.should_exit = True

        threading.Thread(target=end, daemon=True).start()
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        server.run(sockets=[listening])


def main() -> None:
    """Serve the items of the standard input."""
    items = json.loads(sys.stdin.readline())
    with _cluster() as folder:
        os.environ |= {"PGUSER": "postgres", "PGPASSWORD": "none", "PGDATABASE": "postgres", "PGPORT": "5432"}
        os.environ["PGHOST"] = str(folder)
        _load(items)
        os.environ["PGHOST"] = quote(str(folder), safe="")  # the API makes an address of it
        _serve()


if __name__ == "__main__":
    main()
