"""Urban Atlas from the Copernicus Land Monitoring Service: ordered, waited for, fetched.

Source: CLMS API documentation (https://eea.github.io/clms-api-docs), 'Authentication' and 'Download API'. The service
cuts a map to a box in the background, which takes minutes or hours; so an order that was placed is kept beside the
output until its file is there, and a job that begins again waits for the same one.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt
from rasterio.warp import transform_bounds

from covermap.area_settings import Mirrors
from covermap.clms_key import BRING, VARIABLE, WHERE, service_key
from covermap.errors import CoverageError, CovermapError, DownloadError, SettingError
from covermap.files import whole
from covermap.grid import Grid
from covermap.labels import RIM_M
from covermap.transfer import fetch_file
from covermap.vectors import read_polygons, unpacked, urban_atlas
from covermap.web import Access, json_of, request

log = logging.getLogger(__name__)

CRS = "EPSG:3035"  # of Urban Atlas itself
GRANT_S = 3600  # the longest life of a signed request for a token
PAGE = 100  # datasets of an answer
VECTORS = ("GPKG", "GDB", "Shapefile", "Geojson")  # formats that the service turns into a GeoPackage
WAITING = ("Queued", "In_progress")
ENDED = ("Rejected", "Finished_nok", "Cancelled")
GONE = {403, 404, 410}  # of a finished order's file, which is kept for 72 hours at most
FIRST_PAUSE_S, LONGEST_PAUSE_S, GROWTH = 10.0, 300.0, 1.5
LONGEST_WAIT_S = 2 * 3600.0
EPOCH = "2000-01-01T00:00:00Z"  # in place of the time of writing, so that the same map has the same bytes
ACCEPT = {"Accept": "application/json"}


class _Gone(Exception):
    """The service knows an order no longer, or its file was removed."""


class Dataset(NamedTuple):
    """What an order names: the dataset, and which of its files."""

    id: str
    file: str


def download_urban_atlas(labels: Path, grid: Grid, year: int, mirrors: Mirrors) -> None:
    """The part of Urban Atlas that an area needs.

    Parameters
    ----------
    labels
        Output, GeoPackage with one layer of polygons in EPSG:3035, to 1 km beyond the area's box; the attribute
        ``code_YEAR`` holds the class.
    grid
        The area's.
    year
        Of the edition: 2006, 2012, 2018 or 2021.
    mirrors
        Where the service is.

    Raises
    ------
    SettingError
        No service key, or one that is refused.
    DownloadError
        The service does not deliver, or not in time; what was ordered is waited for by the next run.
    ProductError
        What it delivers is broken, or no Urban Atlas of the year.
    CoverageError
        It has no polygon in the area.
    """
    labels.parent.mkdir(parents=True, exist_ok=True)
    zipped, note = labels.with_name(f".{labels.name}.zip"), labels.with_name(f".{labels.name}.order.json")
    _deliver(zipped, note, mirrors.clms, year, order_box(grid))
    try:
        _write_part(zipped, labels, grid, year)
    except CovermapError:  # what is wrong with this delivery would be wrong with it again: the next run orders anew
        _forget(zipped, note)
        raise
    _forget(zipped, note)


def _forget(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def order_box(grid: Grid) -> list[float]:
    """West, north, east, south of an area and 1 km around it [degrees], outward to four digits: 10 m."""
    around = grid.padded(math.ceil(RIM_M / grid.pixel_m))
    west, south, east, north = transform_bounds(grid.crs, "EPSG:4326", *around.bounds, densify_pts=41)
    down, up = (lambda value: math.floor(value * 1e4) / 1e4), (lambda value: math.ceil(value * 1e4) / 1e4)
    return [down(west), up(north), up(east), down(south)]


def _deliver(zipped: Path, note: Path, api: str, year: int, box: list[float]) -> None:
    """The file of an order: of the one that is kept, or of a new one where that is gone."""
    access = _access(api)
    wanted = {"api": api, "year": year, "box": box}
    kept = _kept(note, wanted)
    for task in [kept, None] if kept else [None]:
        try:
            if task is None:
                task = _place(api, access, year, box)
                with whole(note) as part:
                    part.write_text(json.dumps({**wanted, "task": task}), encoding="utf-8")
            else:
                log.info("order %s of Urban Atlas %d was placed before: waiting for it", task, year)
            _fetch(_wait(api, access, task, year, note), zipped, access)
            return
        except _Gone:
            log.warning("order %s of Urban Atlas %d is no longer there", task, year)
            note.unlink(missing_ok=True)
    raise DownloadError(f"{_host(api)} removed order {task} of Urban Atlas {year} at once: try again later, {BRING}")


def _kept(note: Path, wanted: dict[str, Any]) -> str | None:
    """The number of the order that an earlier run placed for the same."""
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        return str(told["task"]) if {name: told[name] for name in wanted} == wanted else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _access(api: str) -> Access:
    """Access by a token, which is asked for when it is first needed and when it was refused."""
    key, kept = service_key(), list[str]()

    def headers(url: str) -> dict[str, str]:
        if not kept:
            kept.append(_token(key))
        return {"Authorization": f"Bearer {kept[0]}"}

    return Access("clms", 2, frozenset({_host(api)}), headers=headers, renew=kept.clear)


def _token(key: dict[str, str]) -> str:
    """A token for a request that the key signs (RFC 7523, section 2.1)."""
    host = _host(key["token_uri"])
    form = {"grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion": _grant(key, int(time.time()))}
    answer = request("POST", key["token_uri"], data=form, headers=ACCEPT, accept=(400, 401, 403))
    if answer.status_code >= 400:
        raise SettingError(
            f"{host} refuses the service key of {VARIABLE} ({answer.status_code}): check the clock, or make another; "
            f"{WHERE}"
        )
    with _as_documented(host):
        return str(json_of(answer)["access_token"])


def _grant(key: dict[str, str], now_s: int) -> str:
    claims = {"iss": key["client_id"], "sub": key["user_id"], "aud": key["token_uri"]}
    try:
        return jwt.encode({**claims, "iat": now_s, "exp": now_s + GRANT_S}, key["private_key"], algorithm="RS256")
    except (jwt.PyJWTError, ValueError, TypeError):
        raise SettingError(f"{VARIABLE} names a file whose private_key is none of RSA: {WHERE}") from None


def _place(api: str, access: Access, year: int, box: list[float]) -> str:
    """Order a part of an edition; the number of the order, or of the same one that is under way already."""
    dataset = _find(api, year)
    order = {
        "DatasetID": dataset.id,
        "DatasetDownloadInformationID": dataset.file,
        "OutputFormat": "GPKG",
        "OutputGCS": CRS,
        "BoundingBox": box,
    }
    body = {"Datasets": [order]}
    answer = request("POST", f"{api}/@datarequest_post", access=access, json=body, headers=ACCEPT, accept=(400,))
    if answer.status_code == 400:
        if task := _under_way(api, access, order):  # a run that ended before it could keep the number
            return task
        raise DownloadError(f"{_host(api)} refuses the order of Urban Atlas {year}{_reason(answer, 'msg')}: {CHANGED}")
    with _as_documented(_host(api)):
        task = str(json_of(answer)["TaskIds"][0]["TaskID"])
    log.info("%s took the order of Urban Atlas %d for %s: its number is %s", _host(api), year, box, task)
    return task


CHANGED = f"the service may have moved to the Copernicus Data Space, so search it there, {BRING}"


def _find(api: str, year: int) -> Dataset:
    """The edition in the list of datasets, which anybody may read."""
    for item in _datasets(api):
        with _as_documented(_host(api)):
            if not re.search(rf"/urban-atlas/urban-atlas-{year}/?$", str(item["@id"])):
                continue
            files = (item.get("dataset_download_information") or {}).get("items") or []
            for file in files:
                if _format(file) in VECTORS:
                    return Dataset(str(item["UID"]), str(file["@id"]))
    raise DownloadError(f"{_host(api)} has no Urban Atlas {year} to be ordered as vectors: {CHANGED}")


def _format(file: dict[str, Any]) -> str:
    """Format of a dataset's file, which is told as a word or as a word of a vocabulary."""
    told = file.get("full_format")
    return str(told.get("token") if isinstance(told, dict) else told)


def _datasets(api: str) -> Iterator[dict[str, Any]]:
    """All datasets, page by page; the service's own links to the next page may lead to another host."""
    fields = ["UID", "dataset_full_format", "dataset_download_information"]
    start, total = 0, 1
    while start < total:
        params = {"portal_type": "DataSet", "metadata_fields": fields, "b_size": PAGE, "b_start": start}
        answer = request("GET", f"{api}/@search", params=params, headers=ACCEPT)
        with _as_documented(_host(api)):
            told = json_of(answer)
            items, total = list(told["items"]), int(told["items_total"])
        if not items:
            return
        yield from items
        start += len(items)


def _under_way(api: str, access: Access, order: dict[str, Any]) -> str | None:
    """The number of an order of the same that waits or is worked at."""
    for status in WAITING:
        answer = request("GET", f"{api}/@datarequest_search", access=access, params={"status": status}, headers=ACCEPT)
        with _as_documented(_host(api)):
            for task, told in json_of(answer).items():
                if any(_is_same(order, dataset) for dataset in told["Datasets"]):
                    return str(task)
    return None


def _is_same(order: dict[str, Any], told: dict[str, Any]) -> bool:
    return all(told.get(name) == order[name] for name in ("DatasetID", "BoundingBox", "OutputFormat", "OutputGCS"))


def _wait(api: str, access: Access, task: str, year: int, note: Path) -> str:
    """Address of the file of an order, once it is finished."""
    pause_s, began = FIRST_PAUSE_S, time.monotonic()
    while True:
        status, told = _status(api, access, task)
        if status == "Finished_ok":
            with _as_documented(_host(api)):
                return str(told["DownloadURL"])
        if status in ENDED:
            note.unlink(missing_ok=True)
            message = " ".join(str(told.get("Message") or "no reason told").split())[:200]
            raise DownloadError(f"order {task} of Urban Atlas {year} ended as {status} ({message}): {CHANGED}")
        waited_s = time.monotonic() - began
        if waited_s + pause_s > LONGEST_WAIT_S:
            raise DownloadError(
                f"order {task} of Urban Atlas {year} is {status} after {waited_s / 60:.0f} min: run it again later, "
                f"which waits for the same order, {BRING}"
            )
        log.info("order %s of Urban Atlas %d is %s for %.0f min", task, year, status, waited_s / 60)
        time.sleep(pause_s)
        pause_s = min(LONGEST_PAUSE_S, pause_s * GROWTH)


def _status(api: str, access: Access, task: str) -> tuple[str, dict[str, Any]]:
    """Status of an order, and all that is told of it."""
    url = f"{api}/@datarequest_status_get"
    answer = request("GET", url, access=access, params={"TaskID": task}, headers=ACCEPT, accept=(404,))
    if answer.status_code == 404:
        raise _Gone
    with _as_documented(_host(api)):
        told = json_of(answer)
        return str(told["Status"]), told


def _fetch(url: str, zipped: Path, access: Access) -> None:
    try:
        fetch_file(url, zipped, access=access)
    except DownloadError as error:
        if error.status in GONE:
            raise _Gone from None
        raise


@contextmanager
def _as_documented(host: str) -> Iterator[None]:
    """An error for an answer of another form than the documentation's."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise DownloadError(f"{host} answers in another form than its documentation tells: {CHANGED}") from None


def _reason(answer: Any, name: str) -> str:
    """What the service says of a refusal, in brackets."""
    try:
        return f" ({' '.join(str(json_of(answer)[name]).split())[:200]})"
    except (DownloadError, KeyError, TypeError):
        return ""


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _write_part(zipped: Path, labels: Path, grid: Grid, year: int) -> None:
    """The polygons of all cities in a delivery that lie around an area, as one layer."""
    around = grid.padded(math.ceil(RIM_M / grid.pixel_m))
    near = transform_bounds(grid.crs, CRS, *around.bounds, densify_pts=41)
    with unpacked(zipped) as files:
        frame = read_polygons(zipped, urban_atlas(zipped, files, f"code_{year}"), CRS, near)
    if frame.empty:
        raise CoverageError(f"Urban Atlas {year} has no polygon in the area of {labels}: it covers cities and around")
    log.info("%s: %d polygons of Urban Atlas %d", labels, len(frame), year)
    with whole(labels) as part, _time_of_writing(EPOCH):
        frame.rename(columns={"code": f"code_{year}"}).to_file(part, driver="GPKG", layer="urban_atlas")


@contextmanager
def _time_of_writing(time: str) -> Iterator[None]:
    """What GDAL takes for the time now."""
    import pyogrio

    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": time})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})
