"""The Copernicus Land Monitoring Service on loopback: list of datasets, tokens, orders, and the host of their files.

Written from its documentation ('Authentication', 'Download API') and the messages of its validation. It takes only what
they allow. What it is asked stands in ``asked``.
"""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.servers.loopback import running

CLIENT, USER = "36cf0c68", "n00015mf"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
FORMATS = {"GDB", "GML", "GPKG", "Geojson", "Shapefile"}  # that a geodatabase may become
SYSTEMS = {"EPSG:4326", "EPSG:3035", "EPSG:3857", "EPSG:4258"}
SECRET = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = SECRET.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
).decode()


def dataset(name: str, year: int, full_format: Any = "GDB") -> dict[str, Any]:
    """An entry of the list, as the portal tells it."""
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{name}-{year}")
    file = {"@id": str(identity), "full_format": full_format, "full_source": "EEA", "name": "VECTOR"}
    return {
        "@id": f"https://land.copernicus.eu/api/en/products/urban-atlas/{name}-{year}",
        "@type": "DataSet",
        "UID": identity.hex,
        "dataset_full_format": None,
        "dataset_download_information": {"items": [file] if full_format else []},
        "title": f"{name} {year}",
    }


OTHERS = [dataset("street-tree-layer-stl", year) for year in range(1900, 2020)]  # more than one page of them
ATLAS = [dataset("urban-atlas", 2012, {"title": "GDB", "token": "GDB"}), dataset("urban-atlas", 2018)]


@dataclass
class FakeClms:
    """The service's state; ``serve`` starts it.

    Attributes
    ----------
    delivery
        The zip that every order ends with.
    polls
        So often an order is asked for before it is finished.
    ending
        How orders end.
    kept
        Whether the files of finished orders are still there.
    """

    delivery: bytes = b""
    polls: int = 2
    ending: str = "Finished_ok"
    kept: bool = True
    datasets: list[dict[str, Any]] = field(default_factory=lambda: [*OTHERS, *ATLAS])
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    orders: list[dict[str, Any]] = field(default_factory=list)
    lost_answers: int = 0  # so many orders are taken without a word
    url: str = ""
    files_url: str = ""

    def key(self, path: Path, **changes: str) -> Path:
        """A service key as the portal shows it once, as a file."""
        told = {"client_id": CLIENT, "ip_range": None, "key_id": "edbb1444", "private_key": PEM, "title": "covermap"}
        path.write_text(json.dumps({**told, "token_uri": f"{self.url}/@@oauth2-token", "user_id": USER, **changes}))
        return path

    def count(self, pattern: str) -> int:
        """Requests whose path matches."""
        return sum(bool(re.search(pattern, path)) for _, path, _ in self.asked)

    def search(self, query: dict[str, list[str]]) -> dict[str, Any]:
        start, size = int(query.get("b_start", ["0"])[0]), int(query.get("b_size", ["25"])[0])
        fields = {"@id", "@type", "title", *query.get("metadata_fields", [])}
        found = self.datasets if query.get("portal_type") == ["DataSet"] else []
        items = [{name: each[name] for name in fields & set(each)} for each in found[start : start + size]]
        following = {"next": "http://elsewhere.invalid/api/en/@search?b_start=25"}  # never to be followed
        return {"@id": "", "batching": following, "items": items, "items_total": len(found)}

    def grant(self, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        if form.get("grant_type") != [GRANT]:
            return 400, {"error": "unsupported_grant_type"}
        try:
            claims = jwt.decode(
                form["assertion"][0],
                SECRET.public_key(),
                algorithms=["RS256"],
                audience=f"{self.url}/@@oauth2-token",
                issuer=CLIENT,
                options={"require": ["iss", "sub", "aud", "iat", "exp"]},
            )
        except jwt.PyJWTError:
            return 400, {"error": "invalid_grant"}
        if claims["sub"] != USER or claims["exp"] - claims["iat"] > 3600 or claims["iat"] > time.time() + 60:
            return 400, {"error": "invalid_grant"}
        token = uuid.uuid4().hex
        self.tokens.add(token)
        return 200, {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}

    def post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Take an order, or say what is wrong with it."""
        (order,) = body["Datasets"]
        if fault := self._fault(order):
            return 400, {"status": "error", "msg": fault}
        waiting = [told for task in self.tasks.values() if task["polls"] > 0 for told in task["told"]["Datasets"]]
        if any({**told, "DatasetTitle": ""} == {**order, "DatasetTitle": ""} for told in waiting):
            return 400, {"status": "error", "msg": "You have requested to download the same thing at least twice. "}
        number = str(10_000_000_000 + len(self.tasks))
        told = {"Datasets": [{**order, "DatasetTitle": "Urban Atlas"}], "Status": "Queued", "UserID": USER}
        self.tasks[number] = {"polls": self.polls, "told": told}
        self.orders.append(order)
        return 201, {"ErrorTaskIds": [], "TaskIds": [{"TaskID": number}]}

    def _fault(self, order: dict[str, Any]) -> str:
        known = {each["UID"]: each for each in self.datasets}
        if order.get("DatasetID") not in known:
            return "Error, the DatasetID is not valid"
        box = order.get("BoundingBox", [])
        if len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            return "Error, BoundingBox is not valid"
        if not (box[0] < box[2] and box[1] > box[3]):  # west, north, east, south, as in the documentation
            return "Error, BoundingBox is not valid"
        if order.get("OutputGCS") not in SYSTEMS:
            return "Error, defined GCS not in the list"
        files = known[order["DatasetID"]]["dataset_download_information"]["items"]
        if order.get("DatasetDownloadInformationID") not in [file["@id"] for file in files]:
            return "Error, this dataset is not downloadable"
        return "" if order.get("OutputFormat") in FORMATS else "Error, specified formats are not compatible"

    def status(self, number: str) -> tuple[int, Any]:
        if number not in self.tasks:
            return 404, "Error, the task does not exist"
        task = self.tasks[number]
        task["polls"] -= 1
        if task["polls"] >= 0:
            task["told"]["Status"] = "In_progress"
        else:
            task["told"]["Status"] = self.ending
            if self.ending == "Finished_ok":
                task["told"]["DownloadURL"] = f"{self.files_url}/clmsdatadownload/results/{number}.zip"
                task["told"]["FileSize"] = len(self.delivery)
            else:
                task["told"]["Message"] = "Error during\n the process"
        return 200, task["told"]


class Handler(BaseHTTPRequestHandler):
    """One connection to the portal, or to the host of files."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeClms
    lock: threading.Lock
    files: bool

    def log_message(self, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = self._record()
        if self.files:
            self._file(parts.path)
        elif parts.path == "/@search":
            self._json(200, self.fake.search(parse_qs(parts.query)))
        elif not self._known():
            self._json(401, {"message": "You are not authorized to access this resource."})
        elif parts.path == "/@datarequest_status_get":
            self._json(*self.fake.status(parse_qs(parts.query)["TaskID"][0]))
        elif parts.path == "/@datarequest_search":
            (wanted,) = parse_qs(parts.query)["status"]
            found = {name: task["told"] for name, task in self.fake.tasks.items() if task["told"]["Status"] == wanted}
            self._json(200, found)
        else:
            self._json(404, {"message": "Not found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        path = self._record().path
        if path == "/@@oauth2-token" and "Authorization" not in self.headers:
            self._json(*self.fake.grant(parse_qs(body)))
        elif not self._known():
            self._json(401, {"message": "You are not authorized to access this resource."})
        elif path == "/@datarequest_post" and self.headers.get("Accept") == "application/json":
            answer = self.fake.post(json.loads(body))
            if self.fake.lost_answers and answer[0] == 201:
                self.fake.lost_answers -= 1
                self.close_connection = True
                return
            self._json(*answer)
        else:
            self._json(404, {"message": "Not found"})

    def _record(self) -> Any:
        parts = urlsplit(self.path)
        with self.lock:
            self.fake.asked.append((self.command, parts.path, dict(self.headers)))
        return parts

    def _known(self) -> bool:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.fake.tokens

    def _json(self, status: int, answer: Any) -> None:
        self._send(status, "application/json", json.dumps(answer).encode())

    def _file(self, path: str) -> None:
        number = re.fullmatch(r"/clmsdatadownload/results/(\d+)\.zip", path)
        if self.fake.kept and number and number[1] in self.fake.tasks:
            self._send(200, "application/zip", self.fake.delivery)
        else:
            self._send(404, "text/html", b"<html>gone</html>")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve(fake: FakeClms) -> Iterator[FakeClms]:
    """The fake on two free ports of loopback, until the block ends."""
    shared = {"fake": fake, "lock": threading.Lock()}
    handlers = [type("Handler", (Handler,), {**shared, "files": files}) for files in (False, True)]
    with running(*handlers) as (fake.url, fake.files_url):
        yield fake
