"""Finding scenes and fetching them."""

from __future__ import annotations

import json
import logging
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import rasterio
from rasterio.errors import RasterioError
from shapely import from_wkt, union_all
from shapely.geometry import box

from covermap.archives import BAD_ZIP
from covermap.area_settings import Composite, Period, Provider
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.files import whole
from covermap.grid import Grid
from covermap.labels import check_overlap, in_degrees
from covermap.providers import PROVIDERS, Query
from covermap.providers.stac import shown
from covermap.scenes import (
    MISSING,
    Item,
    footprint,
    level_of,
    moment,
    polarisations_of,
    sensor_of,
    told_gaps,
)
from covermap.section import Sensor
from covermap.selection import (
    at_most,
    clear_enough,
    cloud_cover,
    doubtful_months,
    gaps,
    newest_baseline,
    read_pinned,
    readable,
    why_missing,
)

log = logging.getLogger(__name__)

SECRET_PART = re.compile(
    r"://[^/?#]*@|[?&](x-(amz|goog)-[\w-]+|[\w-]*(signature|token|password|secret|key|keyid|pair-id)|sig|policy)=",
    re.IGNORECASE,
)
GLOBE = box(-180, -90, 180, 90)
MISSION = Period(start=date(2014, 1, 1), end=date(2099, 12, 31))


def search_scenes(
    listing: Path,
    area: str,
    period: Period,
    sensors: tuple[Sensor, ...],
    provider: Provider,
    level: str,
    max_cloud: float,
    orbit_state: str | None,
    relative_orbits: list[int],
    polarisations: list[str],
    composite: Composite,
    catalog: Path | None,
    pinned: Path | None,
    labels: Path | None,
) -> None:
    """Write the list of the scenes that an area needs.

    Parameters
    ----------
    listing
        Output: a FeatureCollection of STAC items sorted by id; the same answer gives the same bytes. What no scene
        covers, where ``provider.on_missing`` lets that be, stands in its member ``covermap:missing``: shares of the
        area by sensor and month or step.
    area
        Polygon in lon/lat as WKT.
    level
        L2A or L1C: Sentinel-2 scenes of another level are left out.
    max_cloud
        Sentinel-2 scenes with a greater ``eo:cloud_cover`` are left out [%]; of an acquisition the latest baseline's
        counts.
    orbit_state, relative_orbits
        The Sentinel-1 scenes that count; None, or none named: all.
    polarisations
        Sentinel-1 scenes that lack one of them are left out.
    composite
        Says which times must have a scene.
    catalog
        The file that the provider reads, where it reads one.
    pinned
        A list that a person chose instead of a search; its scenes of the area, sensors, level, polarisations and
        period are all taken, but each acquisition of a Sentinel-2 tile once.
    labels
        Label file, which must meet the area; checked here, before anything is fetched.

    Raises
    ------
    CoverageError
        A sensor has no scene, or none of a part of the area or of a time, or the labels lie elsewhere.
    ProductError
        The catalogue, the pinned list or the label file is broken.
    SettingError
        The provider needs an account, and there is none.
    DownloadError
        The service does not answer.
    """
    polygon = from_wkt(area)
    if labels:
        check_overlap(labels, polygon)
    tracks = orbit_state, tuple(relative_orbits), tuple(polarisations)
    query = Query(polygon, period, sensors, level, max_cloud, *tracks)
    module = import_module(PROVIDERS[provider.name])
    module.check_credentials(provider)
    search = partial(module.search, settings=provider)
    found = read_pinned(pinned, polygon, period, sensors) if pinned else _all_baselines(search, query)
    newest = newest_baseline(readable(found, query))
    items = newest if pinned else at_most(clear_enough(newest, max_cloud), provider.per_month, query)

    def why_none(sensor: str) -> str:
        one = replace(query, sensors=(sensor,))
        return _unreadable(found, sensor, query) or (
            PIN_OTHERS if pinned else _why_none(search, one, newest, provider.is_local)
        )

    source = str(pinned) if pinned else f"provider {provider.name}"
    _must_have_all(items, query, source, why_none)
    _write_listing(listing, items, _gaps_of(items, query, composite, source, provider.on_missing))


def _all_baselines(search: Callable[[Query], list[Item]], query: Query) -> list[Item]:
    """What a provider finds, and the clouded scenes that may stand in the way of a clear one of an older baseline.

    A service that leaves out clouds would otherwise give the older one where the newest is too cloudy.
    """
    found = {item["id"]: item for item in search(query)}
    for month in doubtful_months(found.values(), query):
        again = search(replace(query, period=month, sensors=("sentinel2",), max_cloud=100))
        found = {item["id"]: item for item in again} | found
    return [found[name] for name in sorted(found)]


def _must_have_all(items: Sequence[Item], query: Query, source: str, why: Callable[[str], str]) -> None:
    """Refuse a list without a scene of one of the sensors."""
    for sensor in query.sensors:
        count = sum(sensor_of(item) == sensor for item in items)
        log.info("%s: %d scenes", sensor, count)
        if not count:
            raise CoverageError(
                f"{source} has no {sensor} scene of the area {in_degrees(query.area)} "
                f"from {query.period.start} to {query.period.end}: {why(sensor)}"
            )


def _gaps_of(
    items: Sequence[Item], query: Query, composite: Composite, source: str, on_missing: str
) -> dict[str, dict[str, float]]:
    """What no scene covers, by sensor, where that is allowed."""
    found = {sensor: gaps(sensor, items, query, composite) for sensor in query.sensors}
    missing = {sensor: absent for sensor, absent in found.items() if absent}
    for sensor, absent in missing.items():
        _tell_gaps(source, sensor, query.level, absent, on_missing)
    return missing


def _tell_gaps(source: str, sensor: str, level: str, missing: dict[str, float], on_missing: str) -> None:
    """Refuse times and places without a scene, or warn of them where they are allowed."""
    told = f"{source} has no {sensor} scene for part of the area: {told_gaps(missing)}"
    if on_missing == "error":
        raise CoverageError(
            f"{told}{why_missing(sensor, level, missing)}: change the period, the area, the clouds or tracks allowed "
            "or the provider, or set provider.on_missing to skip"
        )
    log.warning("%s; it stays without", told)


def download_scene(product: Path, item: dict[str, Any], provider: Provider, bands: list[str], grid: Grid) -> None:
    """Fetch a scene's files as one zip at ``product``, whole or absent.

    Parameters
    ----------
    product : output.
    item : STAC item of the scene.
    provider : where it comes from.
    bands : that will be read: Sentinel-2 bands with SCL, or polarisations; a provider may bring more. None: all.
    grid : the area's grid; a provider that sends windows brings no more than it and a rim.

    Raises
    ------
    ProductError
        A file is missing, is cut off, or is no raster where its name says so.
    DownloadError
        The service does not deliver.
    """
    import_module(PROVIDERS[provider.name]).fetch(item, product, provider, bands, grid)
    try:
        check_stored(product, item)
    except ProductError:
        product.unlink()  # a rerun would take it for the scene, whatever became of its source
        raise


RASTER_NAME = re.compile(r"\.(jp2|tiff?)$", re.IGNORECASE)
JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"
CODESTREAM_START = b"\xff\x4f\xff\x51"
END_OF_CODESTREAM = b"\xff\xd9"


def check_stored(product: Path, item: dict[str, Any]) -> None:
    """Check sums of all files of a stored zip, and that every raster in it goes on to its end.

    Nothing is decoded: a JPEG 2000 must hold its boxes and the end of its codestream (ISO/IEC 15444-1, annexes A.4.4
    and I.4), a TIFF all its strips or tiles (TIFF 6.0, section 3).

    Raises
    ------
    ProductError
        Names the scene, the file and its source.
    """
    with zipfile.ZipFile(product) as archive:
        for member in archive.infolist():
            try:
                with archive.open(member) as stream:
                    fault = _fault(stream, member, product)
                    _skip(stream, member.file_size)  # the sum is known at the end
            except BAD_ZIP as error:
                fault = f"is broken ({error})"
            if fault:
                source = _source(archive, member.filename, item)
                raise ProductError(f"scene {item['id']}: {source} {fault}: bring the whole file again")


def _source(archive: zipfile.ZipFile, name: str, item: dict[str, Any]) -> str:
    """Where a file of a stored zip comes from."""
    if "item.json" in archive.namelist():
        stored = json.loads(archive.read("item.json"))["assets"]
        keys = [key for key, asset in stored.items() if asset.get("href") == name]
        return ", ".join(shown(str(item["assets"][key]["href"])) for key in keys)
    return f"{name} of {', '.join(shown(str(asset.get('href'))) for asset in item['assets'].values())}"


def _fault(stream: IO[bytes], member: zipfile.ZipInfo, product: Path) -> str:
    start = stream.read(len(JP2_START))
    if start == JP2_START:
        return _jp2_fault(stream, member.file_size)
    if start.startswith(CODESTREAM_START):  # JPEG 2000 without boxes
        return _codestream_fault(stream, member.file_size - len(start))
    if RASTER_NAME.search(member.filename):
        return _tiff_fault(f"/vsizip/{{{product}}}/{member.filename}", member.file_size)
    return ""


def _jp2_fault(stream: IO[bytes], size: int) -> str:
    """What is wrong with a JP2 file of ``size`` bytes, read up to the end of its codestream; empty: nothing."""
    place = len(JP2_START)
    while place < size:
        header = stream.read(8)
        place += len(header)
        if len(header) < 8:
            break
        length, kind = struct.unpack(">I4s", header)
        rest = size - place if length == 0 else length - 8
        if length == 1:
            extended = stream.read(8)
            place += len(extended)
            rest = int.from_bytes(extended, "big") - 16
        if rest < 0 or place + rest > size:
            return f"is cut off: it has {size} bytes and should have {place + rest}"
        if kind == b"jp2c":
            return _codestream_fault(stream, rest)
        _skip(stream, rest)
        place += rest
    return f"is cut off: no pixels in {size} bytes"


def _codestream_fault(stream: IO[bytes], rest: int) -> str:
    _skip(stream, rest - len(END_OF_CODESTREAM))
    return "" if stream.read(len(END_OF_CODESTREAM)) == END_OF_CODESTREAM else "is cut off: its pixels have no end"


def _tiff_fault(path: str, size: int) -> str:
    try:
        with rasterio.open(path) as raster:
            bands = raster.indexes if raster.profile.get("interleave") == "band" else (1,)
            for band in bands:
                for (row, column), _ in raster.block_windows(band):
                    place, count = (
                        int(raster.get_tag_item(f"BLOCK_{word}_{column}_{row}", "TIFF", bidx=band) or 0)
                        for word in ("OFFSET", "SIZE")
                    )
                    if place + count > size:
                        return f"is cut off: it has {size} bytes and should have {place + count} or more"
    except RasterioError as error:
        return f"is no whole raster ({error})"
    return ""


def _skip(stream: IO[bytes], count: int) -> None:
    """Read on, since a seek would leave bytes out of the check sum."""
    while count > 0 and (chunk := stream.read(min(count, 2**22))):
        count -= len(chunk)


PIN_OTHERS = "pin scenes of this area, period and sensor, or take the sensor out of the area's sensors"


def _unreadable(found: Sequence[Item], sensor: str, query: Query) -> str:
    """What to change where all scenes of a sensor are of another level or polarisation; empty: they are not."""
    scenes = [item for item in found if sensor_of(item) == sensor]
    if not scenes or readable(scenes, query):
        return ""
    if sensor == "sentinel1":
        kinds = sorted({" and ".join(sorted(polarisations_of(item), reverse=True)) for item in scenes})
        return (
            f"{len(scenes)} are of {' or '.join(kinds)}, without all of {', '.join(query.polarisations)}, so set "
            "sentinel1.polarisations to what they have or bring others"
        )
    other = level_of(scenes[0])
    setting = f"sentinel2.level to {other}" + " and sentinel2.processor to none" * (other == "L2A")
    return f"{len(scenes)} are of level {other}, so set {setting} or bring those of level {query.level}"


def _why_none(search: Callable[[Query], list[Item]], query: Query, found: Sequence[Item], local: bool) -> str:
    """Whether scenes were too cloudy, or are of other days or elsewhere, and what to change.

    A service is not asked for the whole archive; ``local`` catalogues are.
    """
    (sensor,) = query.sensors
    clouds = [cloud_cover(item) for item in found if sensor_of(item) == sensor]
    if not clouds and sensor == "sentinel2" and query.max_cloud < 100:  # some services leave them out themselves
        clouds = [cloud_cover(item) for item in search(replace(query, max_cloud=100))]
    if clouds:
        return (
            f"{len(clouds)} have more clouds than max_cloud {query.max_cloud:g} %, the clearest {min(clouds):g} %, so "
            "raise max_cloud or widen the period"
        )
    if not local:
        known = why_missing(sensor, query.level, query.period.months)
        return f"the service knows none{known}, so check the area and the period, and from when on it holds such scenes"
    other_days = sorted(moment(item).date() for item in search(replace(query, period=MISSION)))
    if other_days:
        return f"{len(other_days)} are of days outside, from {other_days[0]} to {other_days[-1]}, so change the period"
    elsewhere = search(replace(query, area=GLOBE))
    if elsewhere:
        extent = in_degrees(union_all([footprint(item) for item in elsewhere]))
        return f"{len(elsewhere)} of the period lie elsewhere, at {extent}, so check the area or bring its scenes"
    return "it has none of any other place in this period either, so take another provider or other sensors"


def _refuse_secrets(items: Iterable[Item]) -> None:
    """Refuse addresses that would show a signature or a password to whoever reads the list or the workflow's notes."""
    for item in items:
        for key, asset in item["assets"].items():
            if SECRET_PART.search(href := str(asset.get("href"))):
                raise SettingError(
                    f"scene {item['id']}: the address {shown(href)} of its asset {key!r} holds a signature or a "
                    "password, which would stand in the list for all to read: bring addresses without it, and set "
                    "provider.url to the service that signs them"
                )


def _write_listing(listing: Path, items: Sequence[Item], missing: dict[str, dict[str, float]]) -> None:
    _refuse_secrets(items)
    content: dict[str, Any] = {
        "type": "FeatureCollection",
        "features": sorted(items, key=lambda item: item["id"]),
    }
    if missing:
        content[MISSING] = missing
    with whole(listing) as part:
        part.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
