"""One process that fetches one file from the faulty server, impatiently: ``python -m tests.servers.fetching JOB``.

``JOB`` is a JSON file with url, path, token (address), size, checksum, and largest_file [bytes], beyond which the
system refuses to write. Status 0: the file is there; 3: the one sentence on the standard output tells why it is not.
The log, with all that any library says, goes to the standard error.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
from pathlib import Path

from covermap import patience, transfer, web
from covermap.errors import CovermapError
from tests.servers.faulty import SECRET

IMPATIENT = {
    (web, "SILENCE_S"): 2.0,
    (web, "HEADERS_S"): 0.5,
    (web, "WINDOW_S"): 0.4,
    (patience, "FIRST_PAUSE_S"): 0.01,
    (patience, "LONGEST_PAUSE_S"): 0.1,
}


class Tokens:
    """A token at hand, and how to get another."""

    def __init__(self, address: str) -> None:
        self.address, self.token = address, ""

    def headers(self, url: str) -> dict[str, str]:
        if not self.token:
            self.renew()
        return {"Authorization": f"Bearer {self.token}"}

    def renew(self) -> None:
        self.token = web.request("POST", self.address, data={"secret": SECRET}).json()["access_token"]


def access_to(address: str, connections: int = 4) -> web.Access:
    """Access to the faulty server by its tokens."""
    tokens = Tokens(address)
    hosts = frozenset({"127.0.0.1"})
    return web.Access("faulty", connections, hosts, headers=tokens.headers, renew=tokens.renew)


def main(job: dict[str, str], size: int | None, checksum: tuple[str, str] | None, largest_file: int | None) -> int:
    for (module, name), value in IMPATIENT.items():
        setattr(module, name, value)
    logging.basicConfig(level="DEBUG")
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        path, access = Path(job["path"]), access_to(job["token"])
        transfer.fetch_file(job["url"], path, size=size, checksum=checksum, access=access)
    except CovermapError as error:
        print(error)
        return 3
    return 0


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text())
    pinned = tuple(asked["checksum"]) if asked["checksum"] else None
    sys.exit(main(asked, asked["size"], pinned, asked["largest_file"]))
