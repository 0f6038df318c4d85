"""Finding scenes and fetching them."""

from __future__ import annotations

import json
import logging
import re
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import rasterio
from rasterio.errors import RasterioError
from shapely import from_wkt, union_all
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry

from covermap.errors import CoverageError, ProductError
from covermap.files import whole
from covermap.labels import check_overlap, in_degrees
from covermap.providers import PROVIDERS
from covermap.scenes import (
    SUPERSEDES,
    Item,
    footprint,
    level_of,
    meets,
    moment,
    platform_of,
    product_name,
    read_listing,
    sensor_of,
    tile_of,
)
from covermap.sentinel2.offsets import BY_HAND, baseline_of
from covermap.settings import Period, Provider, Sensor

log = logging.getLogger(__name__)

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
    catalog: Path | None,
    pinned: Path | None,
    labels: Path | None,
) -> None:
    """Write the list of the scenes that an area needs.

    Parameters
    ----------
    listing
        Output: a FeatureCollection of STAC items sorted by id; the same answer gives the same bytes.
    area
        Polygon in lon/lat as WKT.
    level
        L2A or L1C: Sentinel-2 scenes of another level are left out.
    max_cloud
        Sentinel-2 scenes with a greater ``eo:cloud_cover`` are left out [%]; of an acquisition the latest baseline's
        counts.
    catalog
        The file that the provider reads, where it reads one.
    pinned
        A list that a person chose instead of a search; its scenes of the area, sensors, level and period are all
        taken, but each acquisition of a Sentinel-2 tile once.
    labels
        Label file, which must meet the area; checked here, before anything is fetched.

    Raises
    ------
    CoverageError
        A sensor has no scene, or the labels lie elsewhere.
    ProductError
        The catalogue, the pinned list or the label file is broken.
    """
    polygon = from_wkt(area)
    if labels:
        check_overlap(labels, polygon)
    search = partial(import_module(PROVIDERS[provider.name]).search, catalog=catalog)
    found = read_pinned(pinned, polygon, period, sensors) if pinned else search(polygon, period, sensors)
    newest = newest_baseline(of_level(found, level))
    items = newest if pinned else clear_enough(newest, max_cloud)
    for sensor in sensors:
        scenes = [item for item in items if sensor_of(item) == sensor]
        if not scenes:
            reason = _of_other_level(found, sensor, level)
            if not reason:
                reason = PIN_OTHERS if pinned else _why_none(search, polygon, period, sensor, newest, max_cloud)
            raise CoverageError(
                f"{pinned or f'provider {provider.name}'} has no {sensor} scene of the area {in_degrees(polygon)} "
                f"from {period.start} to {period.end}: {reason}"
            )
        log.info("%s: %d scenes", sensor, len(scenes))
        _warn_of_gaps(sensor, scenes, polygon)
    _write_listing(listing, items)


def download_scene(product: Path, item: dict[str, Any], provider: str) -> None:
    """Fetch a scene's files as one zip at ``product``, whole or absent.

    Raises
    ------
    ProductError
        A file is missing, is cut off, or is no raster where its name says so.
    """
    import_module(PROVIDERS[provider]).fetch(item, product)
    try:
        check_stored(product, item)
    except ProductError:
        product.unlink()  # a rerun would take it for the scene, whatever became of its source
        raise


RASTER_NAME = re.compile(r"\.(jp2|tiff?)$", re.IGNORECASE)
JP2_START = b"\0\0\0\x0cjP  \r\n\x87\n"
CODESTREAM_START = b"\xff\x4f\xff\x51"
END_OF_CODESTREAM = b"\xff\xd9"
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


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
            except UNREADABLE as error:
                fault = f"is broken ({error})"
            if fault:
                source = _source(archive, member.filename, item)
                raise ProductError(f"scene {item['id']}: {source} {fault}: bring the whole file again")


def _source(archive: zipfile.ZipFile, name: str, item: dict[str, Any]) -> str:
    """Where a file of a stored zip comes from."""
    if "item.json" in archive.namelist():
        stored = json.loads(archive.read("item.json"))["assets"]
        keys = [key for key, asset in stored.items() if asset.get("href") == name]
        return ", ".join(str(item["assets"][key]["href"]) for key in keys)
    return f"{name} of {', '.join(str(asset.get('href')) for asset in item['assets'].values())}"


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


def _cloud_cover(item: Item) -> float:
    return float(item["properties"].get("eo:cloud_cover") or 0)


def clear_enough(items: Iterable[Item], max_cloud: float) -> list[Item]:
    """The items without Sentinel-2 scenes that have more clouds than ``max_cloud`` [%]; without a figure one stays."""
    clear = []
    for item in items:
        if sensor_of(item) == "sentinel2" and _cloud_cover(item) > max_cloud:
            log.info("%s left out: %g %% of clouds, at most %g %%", item["id"], _cloud_cover(item), max_cloud)
        else:
            clear.append(item)
    return clear


def of_level(items: Iterable[Item], level: str) -> list[Item]:
    """The items without Sentinel-2 scenes that tell another level (L2A or L1C); one that tells none stays."""
    kept = []
    for item in items:
        if sensor_of(item) == "sentinel2" and level_of(item) not in ("", level):
            log.info("%s left out: it is of level %s, not %s", item["id"], level_of(item), level)
        else:
            kept.append(item)
    return kept


def newest_baseline(items: Sequence[Item]) -> list[Item]:
    """The items with each Sentinel-2 acquisition of a tile once: that of the latest processing baseline.

    An acquisition is a tile, a platform and the time in the product's name, or the item's own to the second. Products
    of one baseline are both kept where they may be the two parts of a tile that two ground stations received; of those
    that tell the same start of their datastrip, the one made last is. What is kept names the others' ids in the
    property ``covermap:supersedes``.
    """
    acquisitions: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in items:
        acquisitions[_acquisition(item)].append(item)
    kept: dict[str, Item] = {}
    for same in acquisitions.values():
        newest = max(map(_baseline, same))
        winners = _last_made([item for item in same if _baseline(item) == newest])
        older = sorted({item["id"] for item in same} - {item["id"] for item in winners})
        for name in older:
            log.info("%s left out: %s has the later baseline %s or was made later", name, winners[0]["id"], newest)
        kept.update({item["id"]: _superseding(item, older) for item in winners})
    return [kept[item["id"]] for item in items if item["id"] in kept]


def _last_made(same: Sequence[Item]) -> list[Item]:
    """Of products of one acquisition and baseline the last one of each datastrip, sorted by id."""
    strips = {_datastrip(item): item for item in sorted(same, key=_made)}
    return sorted(strips.values(), key=lambda item: str(item["id"]))


def _superseding(item: Item, older: Sequence[str]) -> Item:
    """The item with the ids of what it replaces, those that it names already included."""
    named = sorted({*item["properties"].get(SUPERSEDES, ()), *older})
    return {**item, "properties": {**item["properties"], SUPERSEDES: named}} if named else item


def _acquisition(item: Item) -> tuple[str, ...]:
    tile = tile_of(item)
    if sensor_of(item) != "sentinel2" or not tile:
        return (item["id"],)
    name = product_name(item)
    return platform_of(item), tile, name["time"] if name else f"{moment(item):%Y%m%dT%H%M%S}"


def _baseline(item: Item) -> str:
    """Processing baseline; one that is untold or that a person's own processor left (99.99) comes before all."""
    baseline = baseline_of(item)
    return "00.00" if baseline in ("", BY_HAND) else baseline


def _made(item: Item) -> tuple[str, str]:
    """When a product was made, as far as it is told, then its id."""
    name, told = product_name(item), item["properties"].get("s2:generation_time")
    return (name["made"] if name else re.sub(r"[^0-9T]", "", str(told or ""))[:15]), item["id"]


def _datastrip(item: Item) -> str:
    """Start of the datastrip that a product is cut from; its id where that is untold."""
    told = re.search(r"_S(\d{8}T\d{6})_", str(item["properties"].get("s2:datastrip_id")))
    return told[1] if told else item["id"]


def read_pinned(pinned: Path, area: BaseGeometry, period: Period, sensors: Sequence[str]) -> list[Item]:
    """Items of a pinned list that belong to the area and period, those of other sensors left out; the log names all."""
    scenes = []
    for name, item in read_listing(pinned).items():
        if not meets(item, area):
            log.warning("%s of %s left out: it does not meet the area", name, pinned)
        elif not period.start <= moment(item).date() <= period.end:
            log.warning("%s of %s left out: it is not of %s to %s", name, pinned, period.start, period.end)
        elif sensor_of(item) in sensors:
            scenes.append(item)
    return scenes


PIN_OTHERS = "pin scenes of this area, period and sensor, or take the sensor out of the area's sensors"


def _of_other_level(found: Sequence[Item], sensor: str, level: str) -> str:
    """What to change where all scenes of a sensor are of another level; empty: they are not."""
    scenes = [item for item in found if sensor_of(item) == sensor]
    if not scenes or of_level(scenes, level):
        return ""
    other = level_of(scenes[0])
    return f"{len(scenes)} are of level {other}, so set sentinel2.level to {other} or bring those of level {level}"


def _why_none(
    search: Callable[..., list[Item]],
    area: BaseGeometry,
    period: Period,
    sensor: str,
    found: Sequence[Item],
    max_cloud: float,
) -> str:
    """Whether scenes were too cloudy, or are of other days or elsewhere, and what to change."""
    clouds = [_cloud_cover(item) for item in found if sensor_of(item) == sensor]
    if clouds:
        return (
            f"{len(clouds)} have more clouds than max_cloud {max_cloud:g} %, the clearest {min(clouds):g} %, so raise "
            "max_cloud or widen the period"
        )
    other_days = sorted(moment(item).date() for item in search(area, MISSION, [sensor]))
    if other_days:
        return f"{len(other_days)} are of days outside, from {other_days[0]} to {other_days[-1]}, so change the period"
    elsewhere = search(GLOBE, period, [sensor])
    if elsewhere:
        extent = in_degrees(union_all([footprint(item) for item in elsewhere]))
        return f"{len(elsewhere)} of the period lie elsewhere, at {extent}, so check the area or bring its scenes"
    return "it has none of any other place in this period either, so take another provider or other sensors"


def _warn_of_gaps(sensor: str, scenes: Sequence[Item], area: BaseGeometry) -> None:
    covered = union_all([footprint(item) for item in scenes])
    share = area.difference(covered).area / area.area  # of one area in degrees: good enough for a warning
    if share > 1e-4:
        log.warning("%.1f %% of the area has no %s scene at all and stays without it", 100 * share, sensor)


def _write_listing(listing: Path, items: Iterable[Item]) -> None:
    content = {"type": "FeatureCollection", "features": sorted(items, key=lambda item: item["id"])}
    with whole(listing) as part:
        part.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
