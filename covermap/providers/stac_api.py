"""Scenes of a STAC API: searched by pystac-client, read as windows of cloud-optimised rasters or as whole files.

STAC API 1.0.0 (Item Search). Known services: Earth Search v1, Planetary Computer and the Copernicus Data Space; any
other API is asked for the collections that the settings name.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import rasterio
import requests
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from shapely.geometry import mapping
from urllib3.util import Retry

from covermap.errors import CoverageError, DownloadError, SettingError
from covermap.files import whole
from covermap.providers import Query, cdse_access
from covermap.providers.stac import shown
from covermap.remote import is_packed, open_remote, patiently
from covermap.scenes import Item
from covermap.transfer import fetch_file
from covermap.web import Access, as_prepared, failure, json_of, place, request

if TYPE_CHECKING:
    from covermap.area_settings import Provider
    from covermap.grid import Grid

log = logging.getLogger(__name__)

Assets = Mapping[str, dict[str, Any]]

PAGE = 100  # items an answer: with their assets some 2 MB
TIMEOUT_S = (30, 120)
CONNECTIONS = 4
RIM_PIXELS = 60  # of the area's grid around it: windows of filters and resampling reach over the border
LATTICE_M = 60  # windows begin on whole pixels of every band
STRIP_ROWS = 2048  # of a window, at once in memory
WHOLE_FROM = 0.6  # a window that is a greater share of its file is no saving
VOLATILE = {"created", "updated", "published", "expires", "unpublished"}  # of an entry in a catalogue, not of a scene
PLACE = {"proj:shape", "proj:transform", "proj:bbox", "proj:geometry", "file:size", "file:checksum", "file:header_size"}
NO_ITEMS = (ClientTypeError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # of another answer
SHA256 = "1220"  # multihash: function 0x12, 32 bytes

COLLECTIONS: dict[str, dict[str, tuple[str, ...]]] = {  # by host; Earth Search's older L2A is partly displaced
    "": {"sentinel1": ("sentinel-1-grd",), "L2A": ("sentinel-2-l2a",), "L1C": ("sentinel-2-l1c",)},
    "earth-search.aws.element84.com": {"L2A": ("sentinel-2-c1-l2a",)},
}
SIGNERS = {"planetarycomputer.microsoft.com": "https://planetarycomputer.microsoft.com/api/sas/v1/token"}
SIGNED_HOSTS = (".blob.core.windows.net",)  # whose addresses a token of Planetary Computer opens
COPERNICUS = ".dataspace.copernicus.eu"
SIGNER_KEY = "PC_SDK_SUBSCRIPTION_KEY"
KEYED = {"sentinel-1-rtc"}  # collections that Planetary Computer signs for accounts alone


def search(query: Query, settings: Provider) -> Iterator[Item]:
    """Items of the API as they are, less the times of their entries in the catalogue and links.

    Raises
    ------
    DownloadError
        The API does not answer, or answers with an error.
    """
    collections = list(settings.collections) or _known_collections(query, _host(str(settings.catalog)))
    retry = Retry(total=5, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None)
    period = f"{query.period.start}T00:00:00Z/{query.period.end}T23:59:59.999Z"
    try:
        io = StacApiIO(timeout=TIMEOUT_S, max_retries=retry)
        io.session.auth = as_prepared
        client = Client.open(str(settings.catalog), stac_io=io)
        found = client.search(collections=collections, intersects=mapping(query.area), datetime=period, limit=PAGE)
        yield from (_pinned(item, settings) for item in found.items_as_dicts())
    except (APIError, requests.RequestException, NotImplementedError, *NO_ITEMS) as error:
        raise DownloadError(
            f"STAC API {settings.catalog} cannot be searched for {', '.join(collections)} "
            f"({_why_not_searched(error, str(settings.catalog))}): check the address and the collections, or search "
            "again later",
            getattr(error, "status_code", None),
        ) from None


def _why_not_searched(error: Exception, url: str) -> str:
    """What went wrong, in words that hold no secret; pystac-client keeps no more than the text of what it caught."""
    if status := getattr(error, "status_code", None):
        return f"HTTP {status}"
    caught = error.__context__ if isinstance(error.__context__, requests.RequestException) else error
    if isinstance(caught, requests.exceptions.RetryError):
        return str(getattr(caught.args[0], "reason", "HTTP"))  # too many 503 error responses
    return str(failure(caught, url)) if isinstance(caught, requests.RequestException) else type(error).__name__


def _known_collections(query: Query, host: str) -> list[str]:
    known = {**COLLECTIONS[""], **COLLECTIONS.get(host, {})}
    wanted = [sensor if sensor == "sentinel1" else query.level for sensor in query.sensors]
    return [name for key in wanted for name in known[key]]


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _pinned(item: Item, settings: Provider) -> Item:
    """What of an item stays the same, without signatures that are made anew when it is fetched."""
    properties = {key: value for key, value in item["properties"].items() if key not in VOLATILE}
    assets = {key: {**asset, "href": _unsigned(asset, settings)} for key, asset in item["assets"].items()}
    for asset in assets.values():
        asset.pop("alternate", None)
    return {**item, "properties": properties, "assets": assets, "links": []}


def _unsigned(asset: Mapping[str, Any], settings: Provider) -> str:
    href = address(asset)
    is_ours = _host(href).endswith(SIGNED_HOSTS) or (settings.url is not None and _host(href) == _host(settings.url))
    return shown(href) if _signing(settings) and is_ours else href


def address(asset: Mapping[str, Any]) -> str:
    """Where an asset can be had over HTTP: its href, or the alternative that is one (STAC alternate-assets)."""
    href = str(asset.get("href"))
    others = asset.get("alternate")
    if not is_http(href) and isinstance(others, dict):
        hrefs = [str(other.get("href")) for other in others.values() if isinstance(other, dict)]
        return next(filter(is_http, hrefs), href)
    return href


def is_http(href: str) -> bool:
    """Whether an address is fetched over HTTP; others, such as s3://, are not."""
    return href.startswith(("https://", "http://"))


def fetch_assets(item: Item, assets: Assets, folder: Path, settings: Provider, grid: Grid) -> dict[str, Path]:
    """Files of assets in ``folder``, by key: of cloud-optimised rasters the part that ``grid`` needs.

    What is there already is kept, so that an interrupted job goes on.

    Raises
    ------
    CoverageError
        A raster does not meet the grid.
    DownloadError
        The server does not deliver.
    """
    access = access_of(item, settings)
    windows = not _is_copernicus(settings)  # whose files are read with a header, which GDAL would not send

    def one(key: str) -> Path:
        asset = assets[key]
        url = _must_be_http(item, key, asset)
        path = folder / (re.sub(r"[^\w.-]", "_", key) + _suffix(url, asset))
        if not path.exists() and not (windows and _is_cog(asset) and patiently(copy_window, url, path, grid, access)):
            fetch_file(url, path, size=asset.get("file:size"), checksum=_checksum(asset), access=access)
        return path

    return dict(zip(assets, _at_once(one, assets), strict=True))


def _suffix(url: str, asset: Mapping[str, Any]) -> str:
    """Suffix of a file: of its address, or where that ends in ``$value``, by its type."""
    told = PurePosixPath(urlsplit(url).path).suffix.lower()
    return told or {"image/jp2": ".jp2", "application/xml": ".xml"}.get(str(asset.get("type")), "")


def _at_once(function: Callable[[str], Path], keys: Iterable[str]) -> list[Path]:
    """Results of some calls at a time; the first failure ends it."""
    pool = ThreadPoolExecutor(CONNECTIONS)
    try:
        return list(pool.map(function, keys))
    finally:
        pool.shutdown(cancel_futures=True)


def check_reachable(item: Item, assets: Assets) -> None:
    """Refuse an item none of whose assets can be had over HTTP, such as those of a bucket where the reader pays."""
    if not any(is_http(address(asset)) for asset in assets.values()):
        key = min(assets)
        _must_be_http(item, key, assets[key])


def _must_be_http(item: Item, key: str, asset: Mapping[str, Any]) -> str:
    url = address(asset)
    if not is_http(url):
        raise SettingError(
            f"item {item['id']}: its asset {key!r} lies at {shown(url)}, which provider stac cannot read: expected "
            "https, so take provider cdse or another catalogue"
        )
    return url


def _is_cog(asset: Mapping[str, Any]) -> bool:
    kind, suffix = str(asset.get("type")), PurePosixPath(urlsplit(str(asset.get("href"))).path).suffix.lower()
    return "geotiff" in kind or (kind in ("None", "image/tiff") and suffix in (".tif", ".tiff"))


def _checksum(asset: Mapping[str, Any]) -> tuple[str, str] | None:
    """Algorithm and digest of an asset (STAC file extension: a multihash); None: untold, or of another function."""
    told = str(asset.get("file:checksum") or "")
    return ("sha256", told.removeprefix(SHA256)) if told.startswith(SHA256) and len(told) == 68 else None


def copy_window(url: str, path: Path, grid: Grid, access: Access) -> bool:
    """Write the part of a remote raster that ``grid`` needs, with a rim, on the raster's own pixels.

    Returns
    -------
    Whether it was written: not where the raster has no place of its own, is hardly larger than its part, or is not
    compressed, so that a wrong part could not be told from the right one.

    Raises
    ------
    CoverageError
        The raster does not meet the grid.
    """
    with open_remote(url, access) as raster:
        if raster.crs is None or not is_packed(raster):
            return False
        window = _window(raster, grid)
        if window is None:
            raise CoverageError(
                f"{place(url)} does not meet the area {grid.bounds} in {grid.crs}: remove its scene from the list"
            )
        if window.width * window.height > WHOLE_FROM * raster.width * raster.height:
            return False
        with whole(path) as part, rasterio.open(part, "w", **_profile(raster, window)) as target:
            target.descriptions = raster.descriptions
            for row in range(0, window.height, STRIP_ROWS):
                rows = min(STRIP_ROWS, window.height - row)
                pixels = raster.read(window=Window(window.col_off, window.row_off + row, window.width, rows))
                target.write(pixels, window=Window(0, row, window.width, rows))
    log.info("%s: %d x %d of %s", path.name, window.height, window.width, place(url))
    return True


def _window(raster: rasterio.DatasetReader, grid: Grid) -> Window | None:
    """Pixels of a raster that a grid and its rim need, ends on its lattice of 60 m; None: there are none."""
    bounds = transform_bounds(grid.crs, raster.crs, *grid.padded(RIM_PIXELS).bounds, densify_pts=21)
    step = max(1, round(LATTICE_M / raster.res[0])) if raster.crs.is_projected else 1
    columns, rows = zip(*(~raster.transform @ corner for corner in (bounds[:2], bounds[2:])), strict=True)
    left, top = (max(0, step * math.floor(min(ends) / step)) for ends in (columns, rows))
    right = min(raster.width, step * math.ceil(max(columns) / step))
    bottom = min(raster.height, step * math.ceil(max(rows) / step))
    return Window(left, top, right - left, bottom - top) if left < right and top < bottom else None


def _profile(raster: rasterio.DatasetReader, window: Window) -> dict[str, Any]:
    integers = raster.dtypes[0].startswith(("int", "uint"))
    return {
        "driver": "GTiff",
        "count": raster.count,
        "dtype": raster.dtypes[0],
        "nodata": raster.nodata,
        "crs": raster.crs,
        "transform": raster.window_transform(window),
        "width": window.width,
        "height": window.height,
        "tiled": True,
        "compress": "zstd",
        "zstd_level": 1,
        "predictor": 2 if integers else 3,
        "interleave": "band",
        "bigtiff": "if_safer",
    }


def told_inside(assets: Assets, paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Assets as the stored item tells them: less the place and size of a whole file where a part was taken."""
    gone = {key: PLACE if _is_cog(assets[key]) else set() for key in paths}
    return {key: {name: value for name, value in assets[key].items() if name not in gone[key]} for key in paths}


# --- signing ---------------------------------------------------------------------------------------------------------


def access_of(item: Item, settings: Provider) -> Access:
    """How the hosts of an item want to be asked: signed where a service signs addresses, else without anything."""
    service = _signing(settings)
    if _is_copernicus(settings):
        return cdse_access.token_access(cdse_access.OWN)
    if service is None:
        return Access("stac", connections=CONNECTIONS)
    signer = Signer(service, str(item.get("collection")), loopback=settings.url is not None)
    hosts = frozenset({".blob.core.windows.net"} | ({_host(service)} if signer.loopback else set()))
    return Access("stac", connections=CONNECTIONS, hosts=hosts, sign=signer.sign, renew=signer.forget)


def _signing(settings: Provider) -> str | None:
    """Address of the service that signs those of an API's files."""
    return settings.url or SIGNERS.get(_host(str(settings.catalog)))


def _is_copernicus(settings: Provider) -> bool:
    return settings.url is None and _host(str(settings.catalog)).endswith(COPERNICUS)


def check_credentials(settings: Provider) -> None:
    """Refuse to begin without an account, where the files of an API need one; nobody is asked whether it is right.

    Raises
    ------
    SettingError
        There is none; says where to get it.
    """
    if _is_copernicus(settings):
        cdse_access.account(cdse_access.OWN)
    keyed = sorted(KEYED & {*settings.collections}) if _signing(settings) in SIGNERS.values() else []
    if keyed and not os.environ.get(SIGNER_KEY):
        raise SettingError(
            f"{SIGNER_KEY} is not set, but Planetary Computer gives {keyed[0]} to accounts alone: set it to the key of "
            "yours (https://planetarycomputer.microsoft.com/docs/concepts/sas tells how to get one), or take "
            "sentinel-1-grd"
        )


class Signer:
    """Addresses with the token of a collection, which is asked for anew before it ends (Azure shared access)."""

    MARGIN_S = 300

    def __init__(self, service: str, collection: str, loopback: bool = False) -> None:
        self.url = f"{service.rstrip('/')}/{quote(collection, safe='')}"
        self.loopback = loopback
        self._token, self._ends = "", 0.0
        self._lock = threading.Lock()

    def sign(self, url: str) -> str:
        """The address with a token, where its host is one that takes it and it has none yet."""
        parts = urlsplit(url)
        known = (parts.hostname or "").endswith(SIGNED_HOSTS) or (self.loopback and parts.hostname == _host(self.url))
        return parts._replace(query=self._current()).geturl() if known and not parts.query else url

    def forget(self) -> None:
        """Ask for another token next time."""
        with self._lock:
            self._ends = 0.0

    def _current(self) -> str:
        with self._lock:
            if time.time() > self._ends - self.MARGIN_S:
                self._token, self._ends = self._asked()
            return self._token

    def _asked(self) -> tuple[str, float]:
        key = os.environ.get(SIGNER_KEY)
        headers = {"Ocp-Apim-Subscription-Key": key} if key else {}
        told = json_of(request("GET", self.url, headers=headers))
        try:
            return str(told["token"]), datetime.fromisoformat(told["msft:expiry"]).timestamp()
        except (ValueError, KeyError, TypeError):
            raise DownloadError(f"{self.url} gave no token: expected token and msft:expiry; run again later") from None
