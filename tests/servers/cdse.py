"""The Copernicus Data Space on loopback: catalogue, identity and download service, of a folder of SAFE products.

Written from its documentation ('APIs: OData', 'APIs: Token generation', 'Quotas and limitations'). It takes only what
that allows, and answers 400 to the rest. What it is asked stands in ``asked``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import operator
import re
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import blake3
import shapely
from shapely.geometry import shape

from tests.servers.loopback import running

TOKEN_PATH = "/auth/realms/CDSE/protocol/openid-connect/token"
NAME, PASSWORD = "somebody@example.org", "a secret p+ss/word&"
RELATIONS = {"eq": operator.eq, "ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
WORDS = {"$filter", "$orderby", "$top", "$skip", "$count", "$expand"}
ATTRIBUTE = re.compile(
    r"Attributes/OData\.CSC\.(\w+)Attribute/any\(att:att/Name eq '(\w+)' and "
    r"att/OData\.CSC\.\1Attribute/Value (eq|le|lt|ge|gt) (.+)\)"
)
DATE = re.compile(r"ContentDate/Start (ge|gt|le|lt) (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)")
AREA = re.compile(r"OData\.CSC\.Intersects\(area=geography'SRID=4326;(POLYGON\(\(.*\)\))'\)")
COLLECTION = re.compile(r"Collection/Name eq '(SENTINEL-[12])'")

Test = Callable[["Entry"], bool]


class BadQuery(Exception):
    """What the documentation does not allow."""


@dataclass(frozen=True)
class Entry:
    """A product on disk, as the catalogue knows it."""

    safe: Path
    item: dict[str, Any]

    @cached_property
    def number(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, self.safe.name))

    @cached_property
    def zipped(self) -> bytes:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            for path in sorted(path for path in self.safe.rglob("*") if path.is_file()):
                name = f"{self.safe.name}/{path.relative_to(self.safe).as_posix()}"
                archive.writestr(zipfile.ZipInfo(name, (2021, 1, 1, 0, 0, 0)), path.read_bytes())
        return content.getvalue()

    @cached_property
    def is_radar(self) -> bool:
        return self.safe.name.startswith("S1")

    @cached_property
    def attributes(self) -> dict[str, tuple[str, Any]]:
        told = self.item["properties"]
        platform = told["platform"]
        found: dict[str, tuple[str, Any]] = {
            "origin": ("String", "ESA"),
            "orbitNumber": ("Integer", told["sat:absolute_orbit"]),
            "relativeOrbitNumber": ("Integer", told["sat:relative_orbit"]),
            "orbitDirection": ("String", told["sat:orbit_state"].upper()),
            "platformShortName": ("String", platform[:-1].upper()),
            "platformSerialIdentifier": ("String", platform[-1].upper()),
            "processingDate": ("DateTimeOffset", "2023-01-01T00:00:00+00:00"),
        }
        if self.is_radar:
            return found | {
                "productType": ("String", "IW_GRDH_1S"),
                "operationalMode": ("String", "IW"),
                "polarisationChannels": ("String", "&".join(told["sar:polarizations"])),
                "processorVersion": ("String", "003.40"),
            }
        return found | {
            "productType": ("String", f"S2MSI{self.safe.name[8:10]}"),
            "cloudCover": ("Double", told["eo:cloud_cover"]),
            "tileId": ("String", told["s2:mgrs_tile"]),
            "processorVersion": ("String", told["s2:processing_baseline"]),
            "operationalMode": ("String", "INS-NOBS"),
        }

    @cached_property
    def start(self) -> datetime:
        """When the datatake began for Sentinel-2, as its name tells, else when the product does."""
        told = f"{self.safe.name[11:26]}.024+0000"
        return datetime.fromisoformat(self.item["properties"]["datetime"] if self.is_radar else told)

    def told(self, expand: bool) -> dict[str, Any]:
        """The product in an answer."""
        mission = "Sentinel-1/SAR/IW_GRDH_1S" if self.is_radar else "Sentinel-2/MSI/L2A"
        instant = f"{self.start:%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"
        end = self.item["properties"].get("end_datetime", instant)
        listed = [
            {"@odata.type": f"#OData.CSC.{kind}Attribute", "Name": name, "Value": value, "ValueType": kind}
            for name, (kind, value) in self.attributes.items()
        ]
        sums = {"MD5": hashlib.md5(self.zipped).hexdigest(), "BLAKE3": blake3.blake3(self.zipped).hexdigest()}
        return {
            "@odata.mediaContentType": "application/octet-stream",
            "Id": self.number,
            "Name": self.safe.name,
            "ContentType": "application/octet-stream",
            "ContentLength": len(self.zipped),
            "OriginDate": "2023-01-01T01:00:00.000Z",
            "PublicationDate": f"2023-01-01T{datetime.now():%H:%M:%S.%f}Z",  # changes, as in life
            "ModificationDate": f"2023-01-01T{datetime.now():%H:%M:%S.%f}Z",
            "Online": True,
            "EvictionDate": "9999-12-31T23:59:59.999Z",
            "S3Path": f"/eodata/{mission}/{self.start:%Y/%m/%d}/{self.safe.name}",
            "Checksum": [{"Value": value, "Algorithm": name} for name, value in sums.items()],
            "ContentDate": {"Start": instant, "End": end},
            "Footprint": f"geography'SRID=4326;{shape(self.item['geometry']).wkt}'",
            "GeoFootprint": self.item["geometry"],
            **({"Attributes": listed} if expand else {}),
        }


def parse_filter(text: str) -> Test:
    """What a $filter asks for; BadQuery where it is not written as documented."""
    tests = [_term(term) for term in _split(text, " and ")]
    return lambda entry: all(test(entry) for test in tests)


def _split(text: str, word: str) -> list[str]:
    """Parts of a text between words that stand in no brackets and quotes."""
    parts, depth, quoted, begin = [], 0, False, 0
    for place, letter in enumerate(text):
        quoted ^= letter == "'"
        depth += 0 if quoted else {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0 and not quoted and text.startswith(word, place):
            parts.append(text[begin:place])
            begin = place + len(word)
    return [*parts, text[begin:]]


def _term(text: str) -> Test:
    if match := COLLECTION.fullmatch(text):
        return lambda entry: entry.is_radar == (match[1] == "SENTINEL-1")
    if match := DATE.fullmatch(text):
        return lambda entry: RELATIONS[match[1]](entry.start, datetime.fromisoformat(match[2]))
    if match := AREA.fullmatch(text):
        area = shapely.from_wkt(match[1])
        return lambda entry: shape(entry.item["geometry"]).intersects(area)
    if match := ATTRIBUTE.fullmatch(text):
        return _about_attribute(*match.groups())
    if text.startswith("(") and text.endswith(")"):
        tests = [_term(term) for term in _split(text[1:-1], " or ")]
        return lambda entry: any(test(entry) for test in tests)
    raise BadQuery(f"Invalid field in filter: {text}")


def _about_attribute(kind: str, name: str, relation: str, text: str) -> Test:
    kinds = {"String": r"'.*'", "Integer": r"\d+", "Double": r"\d+(\.\d+)?"}
    if kind not in kinds or not re.fullmatch(kinds[kind], text) or (kind == "String" and relation != "eq"):
        raise BadQuery(f"Invalid value of {name}: {text}")
    value = text.strip("'") if kind == "String" else float(text)

    def test(entry: Entry) -> bool:
        found, is_there = entry.attributes.get(name, ("", None))
        return found == kind and bool(RELATIONS[relation](is_there, value))

    return test


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: str


@dataclass
class FakeCdse:
    """The service's state; ``serve`` starts it.

    Attributes
    ----------
    page
        Most products of an answer, whatever ``$top`` asks for: pages without a thousand products.
    life_s
        Of an access token.
    sessions
        Most logins.
    rotates
        Whether a refresh token is good for one time.
    redirects
        Whether products are sent by another host, to which the catalogue leads.
    failing
        Statuses of the next answers, by a pattern of the path.
    cut
        Bytes of the next file body, which then ends, and with it the life of all access tokens.
    answers
        So many of the requests in ``asked`` are answered; the others wait for ``waiting`` to end.
    """

    entries: list[Entry]
    page: int = 1000
    most_skipped: int = 10_000
    life_s: float = 600
    sessions: int = 100
    rotates: bool = True
    redirects: bool = False
    failing: list[tuple[str, int]] = field(default_factory=list)
    cut: int | None = None
    answers: float = math.inf
    waiting: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)
    tokens: dict[str, float] = field(default_factory=dict)
    refreshing: set[str] = field(default_factory=set)
    logins: int = 0
    url: str = ""
    download_url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def paths(self, pattern: str) -> list[str]:
        """Paths of the requests that match."""
        return [asked.path for asked in self.asked if re.search(pattern, asked.path)]

    def grants(self) -> list[str]:
        """Kinds of grant that tokens were asked with, in order."""
        return [parse_qs(asked.body)["grant_type"][0] for asked in self.asked if asked.path == TOKEN_PATH]

    def products(self, query: dict[str, list[str]]) -> dict[str, Any]:
        """Answer of the catalogue."""
        if set(query) - WORDS:
            raise BadQuery(f"Invalid option {sorted(set(query) - WORDS)}")
        one = {word: values[0] for word, values in query.items()}
        top, skip = int(one.get("$top", 20)), int(one.get("$skip", 0))
        if not 0 < top <= 1000 or not 0 <= skip <= self.most_skipped:
            raise BadQuery(f"Invalid $top {top} or $skip {skip}")
        if one.get("$expand") not in (None, "Attributes"):
            raise BadQuery(f"Invalid $expand {one['$expand']}")
        test = parse_filter(one.get("$filter", ""))
        found = [entry for entry in self.entries if test(entry)]
        if "$orderby" in one:
            if one["$orderby"] not in ("ContentDate/Start", "ContentDate/Start asc"):
                raise BadQuery(f"Invalid $orderby {one['$orderby']}")
            found.sort(key=lambda entry: (entry.start, entry.number))
        end = skip + min(top, self.page)
        answer = {"@odata.context": "$metadata#Products", "value": [e.told("$expand" in one) for e in found[skip:end]]}
        if end < len(found):
            following = urlencode({**one, "$skip": end})
            answer["@odata.nextLink"] = (
                f"http://elsewhere.invalid/odata/v1/Products?{following}"  # never to be followed
            )
        return answer

    def grant(self, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        """Answer of the identity service, as Keycloak gives it."""
        told = {key: values[0] for key, values in form.items()}
        if told.pop("client_id", "") != "cdse-public":
            return 401, {"error": "invalid_client"}
        if told.get("grant_type") == "password":
            if (told.get("username"), told.get("password")) != (NAME, PASSWORD):
                return 401, {"error": "invalid_grant", "error_description": "Invalid user credentials"}
            if self.logins >= self.sessions:
                return 429, {"error": f"Max session number {self.sessions} exceeded."}
            self.logins += 1
        elif told.get("grant_type") != "refresh_token":
            return 400, {"error": "unsupported_grant_type"}
        elif told.get("refresh_token") not in self.refreshing:
            return 400, {"error": "invalid_grant", "error_description": "Token is not active"}
        elif self.rotates:
            self.refreshing.remove(told["refresh_token"])
        access, refresh = f"access-{uuid.uuid4()}", f"refresh-{uuid.uuid4()}"
        self.tokens[access] = time.monotonic() + self.life_s
        self.refreshing.add(refresh)
        life = {"expires_in": self.life_s, "refresh_expires_in": 3600}
        return 200, {"access_token": access, "refresh_token": refresh, "token_type": "Bearer", **life}

    def end_sessions(self) -> None:
        """Forget all tokens, as after an hour."""
        self.tokens.clear()
        self.refreshing.clear()

    def allows(self, header: str) -> bool:
        return self.tokens.get(header.removeprefix("Bearer "), 0) > time.monotonic()

    def content(self, path: str) -> bytes | None:
        """Body of a product or of a file in it."""
        match = re.fullmatch(r"/odata/v1/Products\(([\w-]+)\)((?:/Nodes\([^()/]+\))*)/\$value", path)
        entry = next((entry for entry in self.entries if match and entry.number == match[1]), None)
        if match is None or entry is None:
            return None
        nodes = [unquote(node) for node in re.findall(r"Nodes\(([^()]+)\)", match[2])]
        if not nodes:
            return entry.zipped
        file = entry.safe.parent.joinpath(*nodes)
        return file.read_bytes() if nodes[0] == entry.safe.name and file.is_file() else None


class Handler(BaseHTTPRequestHandler):
    """One connection to the catalogue, or to the download host."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms between its headers and its body
    fake: FakeCdse
    downloads: bool

    def log_message(self, *words: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        parts = self._record(body)
        if self._fails(parts.path):
            return
        if parts.path != TOKEN_PATH or "form-urlencoded" not in self.headers.get("Content-Type", ""):
            self._json(404, {"detail": "Not found"})
        elif "Authorization" in self.headers:  # Keycloak takes it for the client's name and secret
            self._json(401, {"error": "invalid_client"})
        else:
            with self.fake.lock:
                status, answer = self.fake.grant(parse_qs(body))
            self._json(status, answer)

    def do_GET(self) -> None:
        parts = self._record("")
        if self._fails(parts.path):
            return
        if parts.path == "/odata/v1/Products" and not self.downloads:
            try:
                self._json(200, self.fake.products(parse_qs(parts.query)))
            except (BadQuery, ValueError) as error:
                self._json(400, {"detail": {"message": str(error)}})
        elif parts.path.endswith("/$value"):
            self._value(parts.path)
        else:
            self._json(404, {"detail": "Not found"})

    def _record(self, body: str) -> Any:
        parts = urlsplit(self.path)
        asked = Asked(self.command, unquote(parts.path), parse_qs(parts.query), dict(self.headers), body)
        with self.fake.lock:
            self.fake.asked.append(asked)
            waits = len(self.fake.asked) > self.fake.answers
        if waits:
            self.fake.waiting.wait()
        return parts

    def _fails(self, path: str) -> bool:
        with self.fake.lock:
            for failure in self.fake.failing:
                if re.search(failure[0], unquote(path)):
                    self.fake.failing.remove(failure)
                    self._json(failure[1], {"detail": "as you wish"})
                    return True
        return False

    def _json(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _value(self, path: str) -> None:
        if self.fake.redirects and not self.downloads:
            self.send_response(301)
            self.send_header("Location", self.fake.download_url + path)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif not self.fake.allows(self.headers.get("Authorization", "")):
            self._json(401, {"detail": "Expired signature!"})
        elif (body := self.fake.content(path)) is None:
            self._json(404, {"detail": "Not found"})
        else:
            self._send(body)

    def _send(self, body: bytes) -> None:
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(wanted[1]) if wanted and self.headers.get("If-Range", tag) == tag else 0
        if begin >= len(body) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body) - begin))
        self.send_header("ETag", tag)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        end = len(body)
        with self.fake.lock:
            if self.fake.cut is not None and begin + self.fake.cut < end:
                end, self.fake.cut, self.close_connection = begin + self.fake.cut, None, True
                self.fake.tokens.clear()
        self.wfile.write(body[begin:end])


@contextmanager
def serve(fake: FakeCdse) -> Iterator[FakeCdse]:
    """The fake on two free ports of loopback, until the block ends."""
    handlers = [type("Handler", (Handler,), {"fake": fake, "downloads": downloads}) for downloads in (False, True)]
    with running(*handlers) as (fake.url, fake.download_url):
        yield fake
