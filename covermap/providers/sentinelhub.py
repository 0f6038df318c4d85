"""Scenes of Sentinel Hub, on the Copernicus Data Space or elsewhere: its Catalog finds, its Process API renders them.

Rendered are Sentinel-2 bands as the digital numbers of the product, and terrain-corrected sigma0 of Sentinel-1 in dB,
on the pixels of the area's grid. Each request costs processing units of the account, which are told before it is sent.
Source: Sentinel Hub documentation, 'Catalog API', 'Process API', 'Processing Unit definition'.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covermap.errors import CoverageError, DownloadError, ProductError, SettingError
from covermap.files import unfinished, whole
from covermap.providers import Costs, Query
from covermap.scenes import Item, baseline_of, check_item, footprint, level_of, meets, moment, sensor_of
from covermap.slots import slot
from covermap.web import LONGEST_WAIT_S, Access, as_prepared, belongs, host, json_of, number, place, request

if TYPE_CHECKING:
    import requests
    from sentinelhub import DownloadRequest, SentinelHubDownloadClient, SHConfig

    from covermap.area_settings import Provider
    from covermap.grid import Grid

log = logging.getLogger(__name__)

OWN = "https://sh.dataspace.copernicus.eu"
OWN_TOKEN = "https://identity.dataspace.copernicus.eu/auth/realms/CDSE/protocol/openid-connect/token"
TOKEN_PATH = "/auth/realms/main/protocol/openid-connect/token"  # of other deployments
NAME, SECRET = "SH_CLIENT_ID", "SH_CLIENT_SECRET"
LARGEST_PIXELS = 2500  # along a side of a request
CONNECTIONS = 4
LIFE = 0.9  # of a token, after which another one is asked for
MOST_RETRIES = 20  # after 429; the client waits as long as the service tells it
UNIT_PIXELS, UNIT_BANDS = 512 * 512, 3
LEAST_UNITS = 0.005  # a request
SAME_SCENE = timedelta(seconds=1)  # slices of Sentinel-1 and rows of tiles of Sentinel-2 begin further apart
COLLECTIONS = {"L2A": "sentinel-2-l2a", "L1C": "sentinel-2-l1c", "sentinel1": "sentinel-1-grd"}
VOLATILE = {"created", "updated"}
FIXED_TIME = (1980, 1, 1, 0, 0, 0)


# --- search ----------------------------------------------------------------------------------------------------------


def search(query: Query, settings: Provider) -> list[Item]:
    """Items of the Catalog that answer a query, sorted by id.

    Raises
    ------
    SettingError
        No account, or the package ``sentinelhub`` is not installed.
    DownloadError
        The service does not answer.
    """
    found = {item["id"]: item for sensor in query.sensors for item in _searched(query, sensor, settings)}
    log.info("Sentinel Hub: %d scenes", len(found))
    return [found[name] for name in sorted(found)]


def _searched(query: Query, sensor: str, settings: Provider) -> Iterator[Item]:
    config = _config(settings)
    from sentinelhub import CRS, Geometry, SentinelHubCatalog

    catalog = SentinelHubCatalog(config)
    _take_over(catalog.client)
    collection = COLLECTIONS["sentinel1" if sensor == "sentinel1" else query.level]
    period = f"{query.period.start}T00:00:00Z", f"{query.period.end}T23:59:59Z"
    area, condition = Geometry(query.area, CRS.WGS84), _filter(query, sensor)
    pages = catalog.search(collection, time=period, geometry=area, filter=condition, limit=100)
    with _plainly(config), _of_scenes(config):
        found = [_pinned(answer, collection) for answer in pages]
    for item in found:
        check_item(item, Path(config.sh_base_url))
        in_time = query.period.start <= moment(item).date() <= query.period.end
        if sensor_of(item) == sensor and in_time and meets(item, query.area):
            yield item


@contextmanager
def _of_scenes(config: SHConfig) -> Iterator[None]:
    """An answer of the Catalog that is no list of scenes, as one sentence."""
    from sentinelhub.exceptions import MissingDataInRequestException

    strange = ValueError, KeyError, TypeError, AttributeError, RecursionError, MissingDataInRequestException
    try:
        yield
    except strange as error:  # the client believes what it gets
        raise DownloadError(
            f"{place(config.sh_base_url)} answers without a list of scenes ({type(error).__name__}): perhaps a login "
            "or a proxy stands before it, so check the address and run it again later"
        ) from None


def _filter(query: Query, sensor: str) -> str | None:
    """Condition in CQL2; the rest is chosen from what is found."""
    if sensor == "sentinel2":
        return f"eo:cloud_cover<={query.max_cloud:g}" if query.max_cloud < 100 else None
    direction = f" AND sat:orbit_state='{query.orbit_state}'" if query.orbit_state else ""
    return f"sar:instrument_mode='IW'{direction}"


def _pinned(item: Item, collection: str) -> Item:
    """The item without what changes, and without assets: its pixels are rendered."""
    properties = {key: value for key, value in item["properties"].items() if key not in VOLATILE}
    name = str(item["id"]).removesuffix(".SAFE")
    return {**item, "id": name, "collection": collection, "properties": properties, "assets": {}, "links": []}


# --- fetch -----------------------------------------------------------------------------------------------------------


def sources(item: Item) -> list[Path]:
    """None: nothing lies on disk."""
    return []


def costs(item: Item, settings: Provider, bands: Sequence[str], grid: Grid) -> Costs:
    """Bytes without compression, and processing units."""
    part = _part(item, grid)
    if part is None:
        return Costs(0)
    radar = sensor_of(item) == "sentinel1"
    size = part.width * part.height * len(bands) * (4 if radar else 2)
    return Costs(size, sum(processing_units(tile, bands, radar) for tile in tiles_of(part)))


def processing_units(grid: Grid, bands: Sequence[str], radar: bool) -> float:
    """Units of a request: pixels by 512 x 512, bands by three, twice for 32 bits, twice for orthorectification.

    ASSUME: the mask of data is no band; a plan may count orthorectification once.
    """
    area = max(grid.width * grid.height / UNIT_PIXELS, 0.01)
    return max(area * len(bands) / UNIT_BANDS * (4 if radar else 1), LEAST_UNITS)


def tiles_of(grid: Grid) -> list[Grid]:
    """Parts of a grid of about one size, none larger than a request may be."""
    rows, columns = (_cuts(side) for side in grid.shape)
    return [
        grid.window(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]


def _cuts(side: int) -> list[int]:
    count = math.ceil(side / LARGEST_PIXELS)
    return [round(side * number / count) for number in range(count + 1)]


def _part(item: Item, grid: Grid) -> Grid | None:
    """The part of the area's grid that a scene may cover."""
    from covermap.grid import project

    return grid.cropped(project(footprint(item), "EPSG:4326", grid.crs).bounds)


def fetch(item: Item, product: Path, settings: Provider, bands: Sequence[str], grid: Grid) -> None:
    """The scene's part of the area, as one raster beside ``item.json`` in a stored zip; finished requests are kept.

    Raises
    ------
    SettingError
        No account, or the package ``sentinelhub`` is not installed.
    CoverageError
        The scene does not meet the grid.
    DownloadError
        The service refuses, has no units left, or does not answer.
    """
    config, part = _config(settings), _part(item, grid)
    if part is None:
        raise CoverageError(f"scene {item['id']} does not touch the area {grid.bounds} in {grid.crs}")
    tiles = tiles_of(part)
    units = costs(item, settings, bands, grid).processing_units
    log.info("%s: %d requests, about %.1f processing units", item["id"], len(tiles), units)
    with unfinished(product, item=item["id"], bands=list(bands), part=part.model_dump()) as folder:
        paths = [folder / f"{number}.tif" for number in range(len(tiles))]
        with _plainly(config):
            _render_all(item, bands, tiles, paths, config)
        _assemble(item, bands, part, tiles, paths, folder / "data.tif")
        with whole(product) as zipped:
            _pack(item, bands, folder / "data.tif", zipped)


def _render_all(
    item: Item, bands: Sequence[str], tiles: Sequence[Grid], paths: Sequence[Path], config: SHConfig
) -> None:
    from sentinelhub import SentinelHubDownloadClient

    client = SentinelHubDownloadClient(config=config)
    _take_over(client)
    waiting = [(tile, path) for tile, path in zip(tiles, paths, strict=True) if not path.exists()]
    for first in range(0, len(waiting), CONNECTIONS):  # what has been paid for is on disk before more is asked for
        _render(client, item, bands, waiting[first : first + CONNECTIONS], config)


def _render(
    client: SentinelHubDownloadClient,
    item: Item,
    bands: Sequence[str],
    some: Sequence[tuple[Grid, Path]],
    config: SHConfig,
) -> None:
    requests = [process_request(item, bands, tile, config).download_list[0] for tile, _ in some]
    answers = client.download(requests, max_threads=CONNECTIONS, decode_data=False)
    for answer, (_, path) in zip(answers, some, strict=True):
        with whole(path) as part:
            part.write_bytes(answer.content)


def process_request(item: Item, bands: Sequence[str], tile: Grid, config: SHConfig) -> Any:
    """Request for one part of a scene (Process API): a GeoTIFF with a band for each of ``bands``."""
    from sentinelhub import CRS, BBox, MimeType, SentinelHubRequest

    return SentinelHubRequest(
        evalscript=evalscript(bands, sensor_of(item) == "sentinel1"),
        input_data=[_input(item)],
        responses=[SentinelHubRequest.output_response("default", MimeType.TIFF)],
        bbox=BBox(tile.bounds, CRS(tile.crs.removeprefix("EPSG:"))),
        size=(tile.width, tile.height),
        config=config,
    )


def _input(item: Item) -> dict[str, Any]:
    """Which scene, and how it is made an image: nearest neighbour, as delivered, not as harmonised."""
    begin, end = moment(item) - SAME_SCENE, moment(item) + SAME_SCENE
    times = {"timeRange": {"from": f"{begin:%Y-%m-%dT%H:%M:%SZ}", "to": f"{end:%Y-%m-%dT%H:%M:%SZ}"}}
    if sensor_of(item) == "sentinel2":
        nearest = {"upsampling": "NEAREST", "downsampling": "NEAREST", "harmonizeValues": False}
        return {"type": COLLECTIONS[level_of(item)], "dataFilter": times, "processing": nearest}
    properties = item["properties"]
    chosen = {"acquisitionMode": "IW", "resolution": "HIGH", "polarization": properties.get("s1:polarization", "DV")}
    if state := properties.get("sat:orbit_state"):
        chosen["orbitDirection"] = str(state).upper()
    corrected = {"backCoeff": "SIGMA0_ELLIPSOID", "orthorectify": True, "demInstance": "COPERNICUS_30"}
    return {"type": COLLECTIONS["sentinel1"], "dataFilter": {**times, **chosen}, "processing": corrected}


def evalscript(bands: Sequence[str], radar: bool) -> str:
    """Script that gives the bands as they are: digital numbers, 0 without data; or dB, NaN without data."""
    names = json.dumps([*bands, "dataMask"])
    units = "" if radar else ', units: "DN"'
    kind, empty = ("FLOAT32", "NaN") if radar else ("UINT16", "0")
    each = [f"10 * Math.log10(sample.{band})" if radar else f"sample.{band}" for band in bands]
    return f"""//VERSION=3
function setup() {{
  return {{
    input: [{{bands: {names}{units}}}],
    output: {{id: "default", bands: {len(bands)}, sampleType: "{kind}"}}
  }};
}}
function evaluatePixel(sample) {{
  return sample.dataMask ? [{", ".join(each)}] : [{", ".join([empty] * len(bands))}];
}}
"""


def _assemble(
    item: Item, bands: Sequence[str], part: Grid, tiles: Sequence[Grid], paths: Sequence[Path], output: Path
) -> None:
    """One raster of all parts; a part of another size or kind is refused and removed."""
    import numpy as np
    import rasterio
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    radar = sensor_of(item) == "sentinel1"
    kind: dict[str, Any] = {"dtype": "float32", "nodata": np.nan} if radar else {"dtype": "uint16", "nodata": 0}
    layout = {"width": part.width, "height": part.height, "crs": part.crs, "transform": part.transform}
    packed = {"tiled": True, "compress": "zstd", "zstd_level": 1, "predictor": 3 if radar else 2, "interleave": "band"}
    with (
        whole(output) as draft,
        rasterio.open(
            draft, "w", driver="GTiff", count=len(bands), bigtiff="if_safer", **kind, **layout, **packed
        ) as raster,
    ):
        raster.descriptions = tuple(bands)
        for tile, path in zip(tiles, paths, strict=True):
            try:
                with rasterio.open(path) as answer:
                    pixels = answer.read()
            except RasterioError:
                pixels = np.empty((0, 0, 0))
            if pixels.shape != (len(bands), *tile.shape) or pixels.dtype != kind["dtype"]:
                path.unlink()
                raise ProductError(
                    f"scene {item['id']}: Sentinel Hub sent {pixels.shape} of {pixels.dtype} for a part of "
                    f"{(len(bands), *tile.shape)} of {kind['dtype']}: run again"
                )
            if radar:
                pixels[~np.isfinite(pixels)] = np.nan  # the logarithm of nothing
            row, column = tile.offset_in(part)
            raster.write(pixels, window=Window(column, row, tile.width, tile.height))


def _pack(item: Item, bands: Sequence[str], raster: Path, zipped: Path) -> None:
    """A stored zip of the raster and its item."""
    from covermap.sentinel2.offsets import offset_by_baseline

    asset: dict[str, Any] = {"href": "data.tif", "type": "image/tiff", "roles": ["data"]}
    if sensor_of(item) == "sentinel2":
        meant = offset_by_baseline(baseline_of(item))
        asset["eo:bands"] = [{"name": band} for band in bands]
        if meant is not None:
            asset["raster:bands"] = [{"scale": 1e-4, "offset": meant[0] * 1e-4}] * len(bands)
    text = json.dumps({**item, "assets": {"data": asset}}, indent=1, sort_keys=True) + "\n"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr(zipfile.ZipInfo("item.json", FIXED_TIME), text)
        member = zipfile.ZipInfo("data.tif", FIXED_TIME)
        archive.writestr(member, raster.read_bytes())


# --- the service -----------------------------------------------------------------------------------------------------


def check_credentials(settings: Provider) -> None:
    """Refuse to begin without the package and an account.

    Raises
    ------
    SettingError
        Says what is missing and where to get it.
    """
    _config(settings)


def _config(settings: Provider) -> SHConfig:
    """Settings of the client: the account from the environment alone, no file of its own is read."""
    try:
        from sentinelhub import SHConfig
    except ImportError:
        raise SettingError(
            "provider sentinelhub needs the package sentinelhub: install covermap with the extra 'sentinelhub'"
        ) from None
    name, secret = os.environ.get(NAME), os.environ.get(SECRET)
    if not name or not secret:
        raise SettingError(
            f"provider sentinelhub has no account: set {NAME} and {SECRET} to those of an OAuth client, which "
            "https://shapps.dataspace.copernicus.eu/dashboard (or the dashboard of your service) makes"
        )
    token_url = settings.url + TOKEN_PATH if settings.url else OWN_TOKEN
    if not belongs(token_url, Access("sentinelhub", hosts=frozenset({host(token_url)}))):
        raise SettingError(f"provider.url is {settings.url}: expected https://, or all on the way could read {SECRET}")
    return SHConfig(
        use_defaults=True,
        sh_client_id=name,
        sh_client_secret=secret,
        sh_base_url=settings.url or OWN,
        sh_token_url=token_url,
        max_retries=MOST_RETRIES,
    )


def _take_over(client: SentinelHubDownloadClient) -> None:
    """Send the requests of a client ourselves, each with one of the account's connections as long as it takes.

    The client's own pauses are without one. What ``.netrc`` knows does not take the place of the token, which is not
    asked for by the client: it would follow a redirect to another host, secret and all.
    """
    import requests

    def send(request: DownloadRequest) -> requests.Response:
        headers = client._prepare_headers(request)
        with slot("sentinelhub", CONNECTIONS):
            answer = requests.request(
                request.request_type.value,
                str(request.url),
                json=request.post_values,
                headers=headers,
                auth=as_prepared,
                timeout=client.config.download_timeout_seconds,
                allow_redirects=False,
            )
        _check_direct(answer)
        pause_ms = number(answer.headers.get("Retry-After", ""))
        if pause_ms is None or pause_ms > 1000 * LONGEST_WAIT_S:  # the client knows numbers alone, and no end
            answer.headers.pop("Retry-After", None)
        return answer

    client._do_download = send  # type: ignore[method-assign]
    client._get_session_headers = lambda: {"Authorization": f"Bearer {_token(client.config)}"}  # type: ignore[method-assign]


def _check_direct(answer: requests.Response) -> None:
    if 300 <= answer.status_code < 400:
        target = place(answer.headers.get("Location", "")) or "nowhere"
        raise DownloadError(
            f"{place(answer.url)} redirects to {target}: not followed, so set provider.url to where the service is",
            answer.status_code,
        )


_TOKENS: dict[tuple[str, str], tuple[str, float]] = {}


def _token(config: SHConfig) -> str:
    """This process's token of an account: asked for once, and another one before its end."""
    key = config.sh_token_url, config.sh_client_id
    text, renew_at = _TOKENS.get(key, ("", 0.0))
    if time.time() >= renew_at:
        text, renew_at = _TOKENS[key] = _new_token(config)
    return text


def _new_token(config: SHConfig) -> tuple[str, float]:
    """A token, and when to ask for another one [s since 1970]."""
    asked_at = time.time()
    account = {"client_id": config.sh_client_id, "client_secret": config.sh_client_secret}
    grant = {"grant_type": "client_credentials", **account}
    answer = request("POST", config.sh_token_url, data=grant, accept=(400, 401))
    if answer.status_code >= 400:
        raise SettingError(
            f"{config.sh_token_url} refuses {NAME} and {SECRET} (HTTP {answer.status_code}): make another OAuth client"
        )
    told = json_of(answer)
    try:
        text, renew_at = told["access_token"], asked_at + LIFE * float(told["expires_in"])
    except (ValueError, KeyError, TypeError, OverflowError):
        text, renew_at = "", 0.0
    if not isinstance(text, str) or not text or not math.isfinite(renew_at):
        raise DownloadError(
            f"{place(config.sh_token_url)} answers without a token: perhaps a login or a proxy stands before it, so "
            "check the address and run it again later"
        )
    return text, renew_at


@contextmanager
def _plainly(config: SHConfig) -> Iterator[None]:
    """What goes wrong with the service, as one sentence without what was sent."""
    import requests
    from sentinelhub.exceptions import DownloadFailedException, OutOfRequestsException

    try:
        yield
    except OutOfRequestsException:
        raise DownloadError(
            f"{config.sh_base_url} has refused requests for long (429): look at the units and requests left in the "
            "dashboard, and run again later",
            429,
        ) from None
    except (DownloadFailedException, requests.RequestException) as error:
        cause = getattr(error, "request_exception", error)
        answer = getattr(cause, "response", None)
        status = None if answer is None else int(answer.status_code)
        told = _reason(answer.text) if answer is not None else type(cause).__name__
        raise DownloadError(
            f"{config.sh_base_url} does not deliver (HTTP {status}: {told}): " + _what_to_do(status), status
        ) from None


def _reason(text: str) -> str:
    """What the service says of a fault, shortened."""
    try:
        told = json.loads(text)["error"]
        text = str(told.get("message", told) if isinstance(told, dict) else told)
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:200]


def _what_to_do(status: int | None) -> str:
    if status in (401, 403):
        return f"check {NAME} and {SECRET}, and the processing units left in the dashboard"
    return "run again later" if status is None or status >= 500 else "check the area, its crs and the bands"
