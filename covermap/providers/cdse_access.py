"""Who may read the Copernicus Data Space: tokens that all processes share, and signatures of its object store.

Credentials come from the environment or ``.netrc`` alone. Neither they nor the tokens stand in a log or a message.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from requests.utils import get_netrc_auth

from covermap.errors import DownloadError, SettingError
from covermap.slots import runtime_folder, usable
from covermap.web import Access, belongs, json_of, request

CONNECTIONS = 4  # at once for a user (CDSE documentation, 'Quotas and limitations')
CLIENT = "cdse-public"
LIFE = 0.9  # of a token, after which it is renewed: the rest is for the clocks and the way
REGION = "default"
NO_ACCOUNT = (
    "register at https://dataspace.copernicus.eu, then set CDSE_USERNAME and CDSE_PASSWORD, or add a line 'machine {} "
    "login ... password ...' to ~/.netrc"
)


class Service(NamedTuple):
    """Addresses of the service, and the hosts that tokens go to."""

    catalogue: str
    download: str
    token: str
    store: str
    hosts: frozenset[str]


OWN = Service(
    catalogue="https://catalogue.dataspace.copernicus.eu/odata/v1",
    download="https://download.dataspace.copernicus.eu/odata/v1",
    token="https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token",
    store="https://eodata.dataspace.copernicus.eu",
    hosts=frozenset({".dataspace.copernicus.eu"}),
)


def service_at(url: str | None) -> Service:
    """The service itself, or one at another address that has all of its paths.

    The object store may have an address of its own in CDSE_S3_ENDPOINT, as it has inside of the clouds that hold it.
    """
    service = OWN
    if url is not None:
        odata = f"{url}/odata/v1"
        service = Service(odata, odata, url + urlsplit(OWN.token).path, url, frozenset({urlsplit(url).netloc}))
    return service._replace(store=os.environ.get("CDSE_S3_ENDPOINT", service.store).rstrip("/"))


def has_keys() -> bool:
    """Whether the object store is read with keys, which need no token: CDSE_S3_ACCESS and CDSE_S3_SECRET.

    Raises
    ------
    SettingError
        One of the two alone.
    """
    keys = {name: bool(os.environ.get(name)) for name in ("CDSE_S3_ACCESS", "CDSE_S3_SECRET")}
    if len(set(keys.values())) > 1:
        raise SettingError(
            f"{min(keys, key=lambda name: keys[name])} is not set, but the other of CDSE_S3_ACCESS and CDSE_S3_SECRET "
            "is: set both (https://eodata-s3keysmanager.dataspace.copernicus.eu makes them), or none"
        )
    return all(keys.values())


def account(service: Service) -> tuple[str, str]:
    """Name and password.

    Raises
    ------
    SettingError
        There are none, which says where to get them; or they would travel for all to read.
    """
    if not belongs(service.token, Access("cdse", hosts=service.hosts)):
        raise SettingError(f"provider.url leads to {service.token}: expected https://, or all on the way could read it")
    name, password = os.environ.get("CDSE_USERNAME"), os.environ.get("CDSE_PASSWORD")
    if name and password:
        return name, password
    if name or password:
        raise SettingError("one of CDSE_USERNAME and CDSE_PASSWORD is not set: set both, or none and use ~/.netrc")
    found = get_netrc_auth(service.token)
    if found and all(found):  # an entry may lack its password
        return found[0], found[1]
    raise SettingError(
        f"provider cdse has no account to download with: {NO_ACCOUNT.format(urlsplit(service.token).hostname)}"
    )


def token_access(service: Service) -> Access:
    """Access by a token, which is asked for when it is first needed."""
    return Access(
        name="cdse",
        connections=CONNECTIONS,
        hosts=service.hosts,
        headers=lambda _: {"Authorization": f"Bearer {token(service)}"},
        renew=lambda: _renew(service),
    )


def token(service: Service, refused: str | None = None) -> str:
    """The token that all processes of this user share; another one where it is spent or was refused.

    A user has 100 sessions, each login begins one and it lasts an hour: so one login is refreshed by whoever comes
    first, while the others wait.

    Raises
    ------
    SettingError
        No account, or its name and password are refused.
    DownloadError
        The service does not answer, or refuses a further session.
    """
    name, password = account(service)
    with _shared(service, name) as file:
        kept = _read(file)
        if kept.get("renew_at", 0.0) > time.time() and kept["access_token"] != refused:
            return str(kept["access_token"])
        kept = _refreshed(service, kept) or _logged_in(service, name, password)
        _write(file, kept)
        return str(kept["access_token"])


def _renew(service: Service) -> None:
    token(service, refused=token(service))


@contextmanager
def _shared(service: Service, name: str) -> Iterator[IO[str]]:
    """The file of an account's token, locked, for this user's eyes alone."""
    key = hashlib.sha256(f"{service.token} {name}".encode()).hexdigest()[:16]
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    path = runtime_folder() / f"cdse-{key}.json"
    with usable(path):
        file = os.fdopen(os.open(path, flags, 0o600), "r+")
    with file:
        with usable(path):
            os.fchmod(file.fileno(), 0o600)
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, also by a kill
        yield file


def _read(file: IO[str]) -> dict[str, Any]:
    """What the file holds; nothing where its writer was killed."""
    try:
        kept = json.load(file)
    except (ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) and _are_tokens(kept) else {}


def _are_tokens(kept: dict[str, Any]) -> bool:
    """Whether there are an access token, a refresh token and the time to renew them."""
    texts, renew_at = (kept.get("access_token"), kept.get("refresh_token")), kept.get("renew_at")
    has_texts = all(isinstance(text, str) and text for text in texts)
    return has_texts and isinstance(renew_at, float) and math.isfinite(renew_at)


def _write(file: IO[str], kept: dict[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    json.dump(kept, file)
    file.flush()


def _refreshed(service: Service, kept: dict[str, Any]) -> dict[str, Any] | None:
    """Tokens by the last one's refresh token; None where there is none, or its session has ended."""
    if not kept:
        return None
    return _asked(service, {"grant_type": "refresh_token", "refresh_token": kept["refresh_token"]})


def _logged_in(service: Service, name: str, password: str) -> dict[str, Any]:
    kept = _asked(service, {"grant_type": "password", "username": name, "password": password})
    if kept is None:
        raise SettingError(
            f"{urlsplit(service.token).hostname} refuses the name and password of CDSE_USERNAME and CDSE_PASSWORD, or "
            "of ~/.netrc: mend them, and try them at https://dataspace.copernicus.eu"
        )
    return kept


def _asked(service: Service, grant: dict[str, str]) -> dict[str, Any] | None:
    """Tokens for a grant, and when to renew them; None where it is refused."""
    asked_at = time.time()
    try:
        answer = request("POST", service.token, data={"client_id": CLIENT, **grant}, accept=(400, 401))
    except DownloadError as error:
        if error.status == 429:
            raise DownloadError(
                f"{urlsplit(service.token).hostname} has too many sessions of this account (429): end other programs "
                "that log in, or wait for an hour, after which they lapse",
                429,
            ) from None
        raise
    if answer.status_code >= 400:
        return None
    told = json_of(answer)
    try:
        kept = {name: told[name] for name in ("access_token", "refresh_token")}
        kept["renew_at"] = asked_at + LIFE * float(told["expires_in"])
    except (ValueError, KeyError, TypeError, OverflowError):
        kept = {}
    if not _are_tokens(kept):
        raise DownloadError(
            f"{urlsplit(service.token).hostname} answers without a token: expected one; try again later"
        )
    return kept


def store_access(service: Service) -> Access:
    """Access to the object store: each request is signed with the account's keys."""
    host = urlsplit(service.store).netloc
    return Access("cdse-s3", CONNECTIONS, frozenset({host}), headers=signed_headers)


def signed_headers(url: str) -> dict[str, str]:
    """Headers that sign a GET of ``url`` by CDSE_S3_ACCESS and CDSE_S3_SECRET, for 15 minutes from now.

    Source: Amazon S3 API Reference, 'Signature calculations for the Authorization header' (version 4). The address
    must be quoted as it is asked for, and have no query.
    """
    parts = urlsplit(url)
    time_stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    scope = f"{time_stamp[:8]}/{REGION}/s3/aws4_request"
    headers = {"host": parts.netloc, "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": time_stamp}
    signed, lines = ";".join(headers), "".join(f"{name}:{value}\n" for name, value in headers.items())
    plain = "\n".join(["GET", parts.path, parts.query, lines, signed, headers["x-amz-content-sha256"]])
    text = "\n".join(["AWS4-HMAC-SHA256", time_stamp, scope, hashlib.sha256(plain.encode()).hexdigest()])
    key = f"AWS4{os.environ['CDSE_S3_SECRET']}".encode()
    for part in scope.split("/"):
        key = _mac(key, part)
    credential = f"Credential={os.environ['CDSE_S3_ACCESS']}/{scope}"
    told = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={signed}, Signature={_mac(key, text).hex()}"
    return {name: value for name, value in headers.items() if name != "host"} | {"Authorization": told}


def _mac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
