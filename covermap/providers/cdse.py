"""Scenes of the Copernicus Data Space Ecosystem: searched by OData without an account, fetched file by file with one.

Protocol: CDSE documentation, 'APIs: OData'. A SAFE's manifest tells sizes and checksums of its files in one answer,
where listing its nodes takes one for each folder and tells no checksum. Files come by token from the download service,
or by keys from the object store; all that goes over the network has its checksum.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from covermap.errors import DownloadError, ProductError
from covermap.files import unfinished, whole
from covermap.providers import Costs, Query
from covermap.providers.cdse_access import OWN, Service, account, has_keys, service_at, store_access, token_access
from covermap.providers.cdse_files import MANIFEST, SafeFile, is_whole, needed, read_manifest, unpack
from covermap.providers.stac import pack_safe
from covermap.scenes import OPTICAL_PRODUCT, SUPERSEDES, Item, check_item, footprint, level_of, meets, sensor_of
from covermap.transfer import fetch_file
from covermap.web import Access, json_of, request

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from covermap.area_settings import Provider
    from covermap.grid import Grid

log = logging.getLogger(__name__)

FIRST_DAY = date(2014, 4, 3)  # launch of Sentinel-1A
PAGE, MOST_SKIPPED = 1000, 10_000  # products of an answer, and how far its pages reach (documentation: top, skip)
SHORTEST_SPAN = timedelta(seconds=1)  # in which no mission has begun so many products
CORNERS = 40  # of a polygon in a query, whose address must not get too long
ALL_OF_IT = 0.95  # share of a product's bytes from which on it is fetched as one file
COLLECTIONS = {"sentinel1": "SENTINEL-1", "sentinel2": "SENTINEL-2"}
PIXELS = dict.fromkeys(("B02", "B03", "B04", "B08"), 36) | dict.fromkeys(("B01", "B09", "B10"), 1)  # others have 9
ALL_PIXELS = {"L2A": 290, "L1C": 237}  # ASSUME: bytes go by pixels; bands at all their resolutions, and a true colour


# --- search ---


def search(query: Query, settings: Provider) -> list[Item]:
    """Items of the products that answer ``query``, sorted by id; each acquisition once, and none that is on tape.

    Raises
    ------
    DownloadError
        The catalogue does not answer, or with something else than products.
    """
    service = service_at(settings.url)
    found: dict[str, Item] = {}
    for sensor in query.sensors:
        products = [product for span in _months(query) for product in _in_span(service, query, sensor, *span)]
        for product in _once(products):
            if (item := _item(product, sensor)) and meets(item, query.area):
                found[item["id"]] = item
    log.info("%s: %d scenes", urlsplit(service.catalogue).hostname, len(found))
    return [found[name] for name in sorted(found)]


def _months(query: Query) -> Iterator[tuple[datetime, datetime]]:
    """The query's period in months, as the documentation asks for; the future has no scenes."""
    day = max(query.period.start, FIRST_DAY)
    last = min(query.period.end, datetime.now(UTC).date())
    while day <= last:
        next_month = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        end = min(next_month, last + timedelta(days=1))
        yield _midnight(day), _midnight(end)
        day = end


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _in_span(service: Service, query: Query, sensor: str, start: datetime, end: datetime) -> Iterator[dict[str, Any]]:
    """Products of a span of time, page by page; a span with more of them than pages reach is halved."""
    words = {
        "$filter": odata_filter(query, sensor, start, end),
        "$orderby": "ContentDate/Start asc",
        "$top": str(PAGE),
        "$expand": "Attributes",
    }
    found: dict[str, dict[str, Any]] = {}
    asked: str | None = urlencode(words, quote_via=quote, safe="$/(),:;'")
    while asked is not None:
        products, skip, asked = _page(service, asked)
        if skip > MOST_SKIPPED:
            if end - start < SHORTEST_SPAN:
                raise DownloadError(
                    f"{service.catalogue}/Products tells of more than {MOST_SKIPPED} products within a second from "
                    f"{start:%Y-%m-%dT%H:%M:%S} on: try again later"
                )
            middle = start + (end - start) / 2
            yield from _in_span(service, query, sensor, start, middle)
            yield from _in_span(service, query, sensor, middle, end)
            return
        found |= {product["Id"]: product for product in products}
    yield from found.values()


def _page(service: Service, asked: str) -> tuple[list[dict[str, Any]], int, str | None]:
    """Products of one answer, and how many the next one skips and its query; the host of the link is not followed."""
    url = f"{service.catalogue}/Products"
    answer = json_of(request("GET", f"{url}?{asked}"))
    try:
        products = [_checked(product) for product in answer["value"]]
        link = next((value for key, value in answer.items() if key.lower() == "@odata.nextlink"), None)
        following = urlsplit(link or "").query or None
        skip = int(parse_qs(following or "").get("$skip", ["0"])[0])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownloadError(f"{url} answers with something else than products ({error!r}): try again later") from None
    if following and skip <= int(parse_qs(asked).get("$skip", ["0"])[0]):
        raise DownloadError(f"{url} leads back from a page to one before it ($skip {skip}): try again later")
    return products, skip, following


def _checked(product: dict[str, Any]) -> dict[str, Any]:
    """An entry of the catalogue with what the choice among entries takes.

    Raises
    ------
    ValueError, KeyError or TypeError
        It is something else.
    """
    texts = [product["Id"], product["Name"], *(told["Name"] for told in product.get("Attributes") or ())]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError("an Id or Name is no text")
    return product


def odata_filter(query: Query, sensor: str, start: datetime, end: datetime) -> str:
    """What the catalogue is asked for, in the words of its documentation.

    Parameters
    ----------
    sensor
        ``sentinel1`` (GRD of the interferometric wide swath, at high resolution) or ``sentinel2`` (of the level).
    start, end
        First instant, and first one that is too late.
    """
    words = [
        f"Collection/Name eq '{COLLECTIONS[sensor]}'",
        f"OData.CSC.Intersects(area=geography'SRID=4326;{outline(query.area)}')",
        f"ContentDate/Start ge {start:%Y-%m-%dT%H:%M:%S}.{start.microsecond // 1000:03d}Z",
        f"ContentDate/Start lt {end:%Y-%m-%dT%H:%M:%S}.{end.microsecond // 1000:03d}Z",
    ]
    if sensor == "sentinel2":
        words.append(_attribute("String", "productType", "eq", f"'S2MSI{query.level[1:]}'"))
        if query.max_cloud < 100:
            words.append(_attribute("Double", "cloudCover", "le", str(float(query.max_cloud))))
    else:
        words.append(_attribute("String", "productType", "eq", "'IW_GRDH_1S'"))
        if query.orbit_state:
            words.append(_attribute("String", "orbitDirection", "eq", f"'{query.orbit_state.upper()}'"))
        tracks = [_attribute("Integer", "relativeOrbitNumber", "eq", str(track)) for track in query.relative_orbits]
        words += [f"({' or '.join(tracks)})"] if tracks else []
    return " and ".join(words)


def _attribute(kind: str, name: str, relation: str, value: str) -> str:
    kind = f"OData.CSC.{kind}Attribute"
    return f"Attributes/{kind}/any(att:att/Name eq '{name}' and att/{kind}/Value {relation} {value})"


def outline(area: BaseGeometry) -> str:
    """A polygon of few corners around ``area`` as WKT: the catalogue takes no multipolygon, and a long address fails.

    It may reach beyond the area by 1 % of the area's extent, so what is found still has to be compared with the area.
    """
    import shapely
    from shapely.geometry.polygon import orient

    hull = shapely.convex_hull(area)
    if shapely.get_num_coordinates(hull) > CORNERS:
        west, south, east, north = hull.bounds
        rim = 0.01 * max(east - west, north - south)
        globe = shapely.box(-180, -90, 180, 90)
        hull = hull.buffer(rim).simplify(rim).intersection(globe)  # which moves the rim inwards by less than itself
    ring = orient(hull).exterior
    return "POLYGON((" + ",".join(f"{x:.6f} {y:.6f}" for x, y in ring.coords) + "))"


def _once(products: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each acquisition once: of two entries the one made last, with the names of the others."""
    kept: dict[str, list[dict[str, Any]]] = {}
    for product in products:
        if not product.get("Online", True):
            log.warning("%s left out: it is on tape, order it at the service", product["Name"])
            continue
        name = product["Name"].removesuffix(".SAFE")
        acquisition = re.sub(r"_[0-9A-F]{4}$", "", name) if name.startswith("S1") else name
        kept.setdefault(acquisition, []).append(product)
    return [_latest(entries) for entries in kept.values()]


def _latest(entries: list[dict[str, Any]]) -> dict[str, Any]:
    *others, latest = sorted(entries, key=_made)
    for product in others:
        log.info("%s (%s) left out: %s was made later", product["Name"], product["Id"], latest["Name"])
    older = {product["Name"] for product in others} - {latest["Name"]}
    return {**latest, SUPERSEDES: sorted(name.removesuffix(".SAFE") for name in older)}


def _made(product: dict[str, Any]) -> tuple[str, ...]:
    told = _attributes(product)
    return (
        str(told.get("processorVersion", "")),
        str(told.get("processingDate", "")),
        str(product.get("PublicationDate", "")),
        product["Id"],
    )


def _attributes(product: dict[str, Any]) -> dict[str, Any]:
    return {attribute.get("Name"): attribute.get("Value") for attribute in product.get("Attributes") or ()}


def _item(product: dict[str, Any], sensor: str) -> Item | None:
    """STAC item of an entry of the catalogue, of what never changes in it; None where it cannot be used, which is told.

    The product's asset is its place in the object store; its number in the catalogue stands in ``cdse:id``.
    """
    name = product["Name"].removesuffix(".SAFE")
    try:
        item = {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": name,
            "collection": _collection(name, sensor),
            "geometry": product["GeoFootprint"],
            "properties": _properties(product, sensor),
            "links": [],
            "assets": {"product": _asset(product)},
        }
        check_item(item, Path(urlsplit(OWN.catalogue).path))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ProductError) as error:
        log.warning("%s left out: its entry in the catalogue is of no use (%s)", name, error or repr(error))
        return None
    return {**item, "bbox": list(footprint(item).bounds)}


def _collection(name: str, sensor: str) -> str:
    if sensor == "sentinel1":
        return "sentinel-1-grd"
    if match := OPTICAL_PRODUCT.match(name):
        return f"sentinel-2-{match['level'].lower()}"
    raise ValueError("the format before December 2016, of many granules: expected one of Collection 1")


def _properties(product: dict[str, Any], sensor: str) -> dict[str, Any]:
    told = _attributes(product)
    start, end = (_instant(product["ContentDate"][word]) for word in ("Start", "End"))
    own = _radar_properties(told, start, end) if sensor == "sentinel1" else _optical_properties(product, told)
    found = own | {
        "datetime": start,
        "platform": f"sentinel-{sensor[-1]}{str(told['platformSerialIdentifier']).lower()}",
        "constellation": f"sentinel-{sensor[-1]}",
        "sat:orbit_state": str(told.get("orbitDirection") or "").lower(),
        "sat:relative_orbit": told.get("relativeOrbitNumber"),
        "sat:absolute_orbit": told.get("orbitNumber"),
        "cdse:id": product["Id"],
        SUPERSEDES: product.get(SUPERSEDES),
    }
    return {key: value for key, value in sorted(found.items()) if value not in (None, "", [])}


def _instant(text: str) -> str:
    """A time in one way of writing: the catalogue has changed its own."""
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"


def _radar_properties(told: dict[str, Any], start: str, end: str) -> dict[str, Any]:
    return {
        "start_datetime": start,
        "end_datetime": end,
        "instruments": ["c-sar"],
        "processing:version": told.get("processorVersion"),
        "sar:frequency_band": "C",
        "sar:instrument_mode": told.get("operationalMode"),
        "sar:polarizations": re.findall("[VH]{2}", str(told.get("polarisationChannels"))),
        "sar:product_type": "GRD",
    }


def _optical_properties(product: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    name = OPTICAL_PRODUCT.match(product["Name"])
    baseline = (name and name["baseline"]) or ""
    return {
        "instruments": ["msi"],
        "eo:cloud_cover": told.get("cloudCover"),
        "s2:datastrip_id": told.get("datastripId"),
        "s2:mgrs_tile": name and name["tile"],
        "s2:processing_baseline": f"{baseline[:2]}.{baseline[2:]}" if baseline else None,
        "s2:product_type": told.get("productType"),
        "s2:product_uri": product["Name"],
    }


def _asset(product: dict[str, Any]) -> dict[str, Any]:
    place = product.get("S3Path") or f"/eodata/{product['Name']}"
    sums = {entry["Algorithm"].lower(): entry["Value"] for entry in product.get("Checksum") or () if entry.get("Value")}
    return {
        "href": f"s3:/{place}",
        "type": "application/vnd.esa.safe",
        "roles": ["data"],
        "file:size": int(product.get("ContentLength") or 0),
        "cdse:checksums": dict(sorted(sums.items())),
    }


# --- fetch ---


class _Source(NamedTuple):
    """Where a product's files are to be had: the address of each by its path in the SAFE, and who may ask."""

    address: Callable[[str], str]
    access: Access
    whole: str | None


def check_credentials(settings: Provider) -> None:
    """Refuse to begin without what a download takes; nobody is asked whether it is right.

    Raises
    ------
    SettingError
        There are no keys and no account; says where to get them.
    """
    if not has_keys():
        account(service_at(settings.url))


def fetch(item: Item, product: Path, settings: Provider, bands: Iterable[str], grid: Grid) -> None:
    """The files of the item's SAFE that reading ``bands`` takes, as one stored zip at ``product``; none: all of them.

    Each has the checksum of its manifest. What is whole is kept for the next try where this one fails. However they
    come, by keys or token, one by one or in one zip, the same files give the same bytes.

    Raises
    ------
    SettingError
        There are no credentials, or they are refused.
    DownloadError
        The service does not answer, or with something else than the product.
    ProductError
        The product lacks a band, or is not whole.
    """
    check_credentials(settings)
    source, bands = _source(item, service_at(settings.url)), sorted(set(bands))
    with unfinished(product, source=source.address(""), bands=bands) as parts:
        folder = parts / f"{item['id']}.SAFE"
        fetch_file(source.address(MANIFEST), folder / MANIFEST, access=source.access)
        files = needed(read_manifest((folder / MANIFEST).read_bytes(), item["id"]), bands, item["id"])
        if not _in_one(item, source, files, folder):
            _one_by_one(source, files, folder)
        with whole(product) as part:
            pack_safe(folder, part)
    log.info("%s: %.1f MB in %d files", product, product.stat().st_size / 1e6, len(files) + 1)


def _source(item: Item, service: Service) -> _Source:
    number, href = item["properties"].get("cdse:id"), item["assets"].get("product", {}).get("href", "")
    if not number or not href.startswith("s3://"):
        raise ProductError(f"item {item['id']} is not of provider cdse (it has no cdse:id): search its scenes again")
    if has_keys():
        store = f"{service.store}/{quote(href.removeprefix('s3://'))}"
        return _Source(lambda path: f"{store}/{quote(path)}", store_access(service), None)
    product = f"{service.download}/Products({quote(number)})"

    def address(path: str) -> str:
        nodes = [f"{item['id']}.SAFE", *path.split("/")]
        return "/".join([product, *(f"Nodes({quote(node)})" for node in nodes), "$value"])

    return _Source(address, token_access(service), f"{product}/$value")


def _in_one(item: Item, source: _Source, files: list[SafeFile], folder: Path) -> bool:
    """Fetch the whole product where nearly all of it is needed, as of Sentinel-1; False: it is not, or that failed."""
    asset = item["assets"]["product"]
    left = [file for file in files if not is_whole(folder / file.path, file)]
    if source.whole is None or sum(file.size for file in left) < ALL_OF_IT * asset.get("file:size", 0):
        return False
    zipped = folder.with_suffix(".zip")
    sums = asset.get("cdse:checksums", {})
    checksum = next(((name, sums[name]) for name in ("blake3", "md5") if name in sums), None)
    try:
        fetch_file(source.whole, zipped, checksum=checksum, access=source.access)
        unpack(zipped, folder, left)
    except (DownloadError, ProductError) as error:
        log.warning("%s; its files are fetched one by one", error)
        return False
    finally:
        zipped.unlink(missing_ok=True)
    return True


def _one_by_one(source: _Source, files: list[SafeFile], folder: Path) -> None:
    def bring(file: SafeFile) -> None:
        address, path = source.address(file.path), folder / file.path
        fetch_file(address, path, size=file.size, checksum=file.checksum, access=source.access)

    with ThreadPoolExecutor(source.access.connections) as pool:
        tasks = [pool.submit(bring, file) for file in sorted(files, key=lambda file: -file.size)]
        try:
            for task in tasks:
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def costs(item: Item, settings: Provider, bands: Iterable[str], grid: Grid) -> Costs:
    """What ``fetch`` takes: of a Sentinel-1 product by its polarisations, of a Sentinel-2 product by its pixels."""
    size, wanted = item["assets"]["product"].get("file:size", 0), set(bands)
    if not wanted:
        share = 1.0
    elif sensor_of(item) == "sentinel1":
        share = len(wanted) / max(len(item["properties"].get("sar:polarizations", ())), len(wanted))
    else:
        share = sum(PIXELS.get(band, 9) for band in wanted) / ALL_PIXELS[level_of(item) or "L2A"]
    return Costs(round(size * min(share, 1.0)) or None)


def sources(item: Item) -> list[Path]:
    """None: a product of the service never changes."""
    return []
