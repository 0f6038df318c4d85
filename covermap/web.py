"""One answer over HTTP: redirects followed, errors as one sentence, credentials for the hosts they belong to alone.

A server that refuses, drips, hangs up or sends nonsense is a matter of course here. No message holds a query, a header
or a body.
"""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import responses
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from covermap import __version__
from covermap.errors import DownloadError
from covermap.patience import Passing, persist
from covermap.slots import slot

for _client in ("urllib3", "pystac_client", "sentinelhub", "requests_oauthlib", "oauthlib"):
    logging.getLogger(_client).setLevel(logging.ERROR)  # below, they log whole addresses, headers, bodies and tokens

log = logging.getLogger(__name__)

CONNECT_S = 30.0  # until a connection stands
SILENCE_S = 60.0  # between two bytes
HEADERS_S = 120.0  # until all headers of an answer are there
WINDOW_S = 60.0  # over which a body must come at SLOWEST_BYTES_S on average
SLOWEST_BYTES_S = 1000.0
LONGEST_WAIT_S = 900.0  # that a server may ask for by Retry-After
CHUNK = 2**19
SMALL_BYTES = 2**28  # the largest 'small answer'
HOPS = 10

PASSING = {408, 425, 429, 500, 502, 503, 504}
REFUSED = {401, 403}

NO_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
    urllib3.exceptions.LocationValueError,
)
NUMBER = "[0-9]{1,18}"
NOTHING: Mapping[str, Any] = {}


def _as_it_is(url: str) -> str:
    return url


def _no_headers(url: str) -> dict[str, str]:
    return {}


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Access:
    """How a provider wants to be asked.

    Attributes
    ----------
    name
        Of the provider, in messages and in the names of its slots.
    connections
        So many at once, over all processes of this user on this machine.
    hosts
        Credentials go to these hosts alone, over https (over http to loopback only), also after a redirect. A name that
        begins with a dot means all hosts below it; a name may carry a port (``127.0.0.1:8080``).
    headers
        Credentials for a URL of these hosts, e.g. ``{"Authorization": "Bearer ..."}``. Asked anew for each request.
    sign
        The URL of these hosts as it is asked for, e.g. with a signature in its query. Asked anew for each request.
    renew
        Called once after an answer 401 or 403, and only where ``headers`` and ``sign`` still give what was refused.
        It raises where nothing can be renewed. ``headers``, ``sign`` and ``renew`` may call :func:`request`, but
        without this Access: they run while its slot is held.
    """

    name: str
    connections: int = 4
    hosts: frozenset[str] = frozenset()
    headers: Callable[[str], dict[str, str]] = _no_headers
    sign: Callable[[str], str] = _as_it_is
    renew: Callable[[], None] = _nothing


def request(
    method: str,
    url: str,
    *,
    access: Access | None = None,
    params: Mapping[str, Any] | None = None,
    data: Mapping[str, str] | bytes | None = None,
    json: Any = None,
    headers: Mapping[str, str] | None = None,
    accept: tuple[int, ...] = (),
) -> requests.Response:
    """A small answer (up to 268 MB, read whole into memory), with the same retries.

    Parameters
    ----------
    headers
        Further headers; they go to the host of ``url`` alone, never to where a redirect leads.
    accept
        Statuses of 400 and more that are returned and not raised, e.g. ``(400, 401)`` of a token endpoint.

    Raises
    ------
    DownloadError
        With ``status``: no answer, or one of 400 and more that is not in ``accept``. A redirect of anything but GET and
        HEAD is refused: a body may hold a password.
    """
    body = {"params": params, "data": data, "json": json}

    def attempt() -> requests.Response:
        with answer(method, url, access, here=headers or NOTHING, **body) as response:
            if response.status_code not in accept:
                raise_for(response, url)
            content = _all_of(response, url)
        response.raw = io.BytesIO(content)  # where requests reads the body from
        return response

    return persist(attempt)


def json_of(response: requests.Response) -> Any:
    """What an answer of :func:`request` tells.

    Raises
    ------
    DownloadError
        It is no JSON, as of a proxy or a login that stands before the service.
    """
    try:
        return response.json()
    except (ValueError, RecursionError):  # the latter where it is nested without end
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip() or "something else"
        raise DownloadError(
            f"{place(response.url)} answers with {kind[:40]!r}, not with JSON: perhaps a login or a proxy stands "
            "before it, so check the address and run it again later"
        ) from None


def is_chunked(response: requests.Response) -> bool:
    """Whether the body has an end of its own; http.client knows no other coding under or over this one."""
    return bool(response.headers.get("Transfer-Encoding", "").lower() == "chunked")


def _all_of(response: requests.Response, url: str) -> bytes:
    if response.raw.length_remaining is None and not is_chunked(response):
        raise Passing(f"{place(url)} sends a body without a length, of which nobody could tell whether it is whole")
    chunks, count = [], 0
    for chunk in steady(response, url, decode=True):
        chunks.append(chunk)
        count += len(chunk)
        if count > SMALL_BYTES:
            raise DownloadError(f"{place(url)} sends more than {SMALL_BYTES} bytes: fetch it as a file")
    return b"".join(chunks)


@contextmanager
def answer(
    method: str,
    url: str,
    access: Access | None,
    everywhere: Mapping[str, str] = NOTHING,
    here: Mapping[str, str] = NOTHING,
    **body: Any,
) -> Iterator[requests.Response]:
    """The answer at the end of all redirects, its body still to be read; the headers ``here`` stay with this host.

    The provider's slot is held until the block ends.

    Raises
    ------
    DownloadError
        There is none, or a redirect leads where it must not; Passing where it may pass.
    """
    with slot(access.name, access.connections) if access else nullcontext():
        response = _ask(method, url, access, {**everywhere, **here}, body)
        try:
            for _ in range(HOPS):
                if not response.is_redirect:
                    break
                target = _target(response, method, url)
                response.close()
                here = here if host(target) == host(url) else NOTHING
                url = target
                response = _ask(method, url, access, {**everywhere, **here}, NOTHING)
            else:
                raise DownloadError(f"{place(url)} redirects without end: check the address")
            yield response
        finally:
            response.close()


def _target(response: requests.Response, method: str, url: str) -> str:
    try:
        target = urljoin(url, _session().get_redirect_target(response) or "")
        before, after = urlsplit(url).scheme, urlsplit(target).scheme
    except ValueError:
        raise DownloadError(f"{place(url)} redirects to what is no address: check the address") from None
    if method.upper() not in {"GET", "HEAD"}:
        raise DownloadError(f"{place(url)} redirects a {method} to {place(target)}: use that address")
    if after not in {"http", "https"} or (before == "https" and after == "http"):
        raise DownloadError(f"{place(url)} redirects from {before} to {after}: not followed, for it would be unsafe")
    return target


def _ask(
    method: str, url: str, access: Access | None, headers: Mapping[str, str], body: Mapping[str, Any]
) -> requests.Response:
    """The answer to one request; where it refuses our credentials, they are renewed once."""
    if access is None or not belongs(url, access):
        return _send(method, url, headers, body)
    sent = credentials(url, access)
    response = _send(method, sent[0], {**headers, **sent[1]}, body)
    if response.status_code not in REFUSED:
        return response
    response.close()
    renew(url, access, sent, response.status_code)
    signed, secret = credentials(url, access)
    return _send(method, signed, {**headers, **secret}, body)


def credentials(url: str, access: Access) -> tuple[str, dict[str, str]]:
    """The signed address and the headers that go to a host of this access."""
    return access.sign(url), access.headers(url)


def renew(url: str, access: Access, refused: tuple[str, dict[str, str]], status: int) -> None:
    """Renew the credentials that were refused; of several threads that were, one does it."""
    with _RENEWING:
        if refused == credentials(url, access):
            log.info("%s answered %d: credentials of %s are renewed", place(url), status, access.name)
            access.renew()


_RENEWING = threading.Lock()


def belongs(url: str, access: Access) -> bool:
    """Whether credentials may go to ``url``."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    name = parts.hostname or ""
    if parts.scheme != "https" and name not in {"localhost", "127.0.0.1", "::1"}:
        return False
    return any(one in {name, host(url)} or (one.startswith(".") and name.endswith(one)) for one in access.hosts)


def _send(method: str, url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> requests.Response:
    try:
        return _session().request(
            method,
            url,
            headers=dict(headers),
            auth=as_prepared,
            timeout=(CONNECT_S, SILENCE_S),
            allow_redirects=False,
            stream=True,
            **body,
        )
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, UnicodeEncodeError) as error:
        raise failure(error, url) from None


def as_prepared(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
    """The request as it is, for requests' ``auth``: without one, what ``.netrc`` knows replaces our headers."""
    return prepared


def steady(response: requests.Response, url: str, decode: bool = False) -> Iterator[bytes]:
    """The body as it comes, as long as it does not drip."""
    mark, count = time.monotonic(), 0
    while chunk := _read(response, url, decode):
        yield chunk
        count += len(chunk)
        seconds = time.monotonic() - mark
        if seconds >= WINDOW_S:
            if count < SLOWEST_BYTES_S * seconds:
                raise Passing(f"{place(url)} sends less than {SLOWEST_BYTES_S:.0f} bytes a second")
            mark, count = time.monotonic(), 0


def _read(response: requests.Response, url: str, decode: bool) -> bytes:
    try:
        return bytes(response.raw.read1(CHUNK, decode_content=decode) or b"")
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise failure(error, url) from None


def raise_for(response: requests.Response, url: str) -> None:
    """An error for an answer of 400 and more, and for a redirect to nowhere."""
    status = response.status_code
    if status < 300:
        return
    message = f"{place(url)} answered {status} ({responses.get(status, 'unknown')})"
    if status in PASSING:
        pause_s = retry_after_s(response)
        if pause_s > LONGEST_WAIT_S:
            raise DownloadError(f"{message} and asks to wait for {pause_s:.0f} s: run it again then", status)
        raise Passing(message, status, pause_s)
    fix = "check account and credentials" if status in REFUSED else "check the address, or search its scenes again"
    raise DownloadError(f"{message}: {fix}", status)


def number(text: str) -> int | None:
    """A whole number as headers tell it; None: it is none."""
    return int(text) if re.fullmatch(NUMBER, text) else None


def retry_after_s(response: requests.Response) -> float:
    """Seconds to wait as the server asks (RFC 9110, section 10.2.3: a number or a date); 0 where it does not."""
    text = response.headers.get("Retry-After", "").strip()
    if (seconds := number(text)) is not None:
        return float(seconds)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def failure(error: Exception, url: str) -> DownloadError:
    """Our error for one of requests, whose texts hold whole addresses and may hold passwords of proxies."""
    where, causes = place(url), list(_causes(error))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return DownloadError(f"{where}: the certificate of the host does not hold: check clock, proxy and address")
    if isinstance(error, requests.exceptions.InvalidProxyURL):
        return DownloadError(f"{where}: the address of the proxy is none: check HTTP_PROXY and HTTPS_PROXY")
    is_our_header = isinstance(error, requests.exceptions.InvalidHeader) and len(causes) == 1  # else the answer's
    if is_our_header or isinstance(error, UnicodeEncodeError):
        return DownloadError(f"{where}: the credentials hold characters that no header can: check them")
    if isinstance(error, NO_ADDRESS):
        return DownloadError(f"{where} is no address: expected https://host/path")
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return Passing(f"{where}: nothing came in time ({CONNECT_S:.0f} s to connect, {SILENCE_S:.0f} s to go on)")
    reasons = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    return Passing(f"{where}: the connection failed ({reasons[-1] if reasons else 'closed before the end'})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it came from, of which requests and urllib3 keep some among its arguments."""
    yield error
    for inner in (*error.args, getattr(error, "reason", None), error.__cause__):
        if isinstance(inner, BaseException):
            yield from _causes(inner)


def host(url: str) -> str:
    """Host and port, without the user and password that an address may hold."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def place(url: str) -> str:
    """Host and path: all of an address that may be told."""
    try:
        return host(url) + urlsplit(url).path
    except ValueError:
        return url.partition("?")[0].rpartition("@")[2]


class _Prompt(HTTPConnection):
    """Hangs up where the headers of an answer drip: the socket's own timeout counts from byte to byte."""

    def getresponse(self) -> Any:
        late = threading.Event()
        timer = threading.Timer(HEADERS_S, self._hang_up, [late])
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()
        finally:
            timer.cancel()
        if late.is_set():  # headers that were cut off look like whole ones
            raise TimeoutError("headers")
        return response

    def _hang_up(self, late: threading.Event) -> None:
        late.set()
        with suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


class _PromptHTTPS(_Prompt, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Prompt


class _PoolHTTPS(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PromptHTTPS


class _Adapter(HTTPAdapter):
    """Connections of our kind, to hosts and to proxies."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _PoolHTTPS}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if isinstance(manager, urllib3.ProxyManager):
            manager.pool_classes_by_scheme = {"http": _Pool, "https": _PoolHTTPS}
        return manager


class _Session(requests.Session):
    """Looks at no redirect, which requests does even where it is not to follow: it would read the body to its end."""

    def resolve_redirects(self, *args: Any, **kwargs: Any) -> Iterator[requests.Response]:
        return iter(())


_LOCAL = threading.local()


def _session() -> requests.Session:
    """This thread's session, never one from before a fork: two processes must not read one socket."""
    if getattr(_LOCAL, "process", None) != os.getpid():
        session = _Session()
        session.headers["User-Agent"] = f"covermap/{__version__}"
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # credentials travel by Access alone
        session.mount("http://", _Adapter())
        session.mount("https://", _Adapter())
        _LOCAL.session, _LOCAL.process = session, os.getpid()
    live: requests.Session = _LOCAL.session
    return live
