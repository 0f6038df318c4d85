"""Scenes as STAC items: which sensor, when, where. Light enough for the Snakefile."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covermap.errors import ProductError

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

Item = dict[str, Any]

SCENE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
OTHER_LEVELS = {"l1c", "msil1c", "s2msi1c", "slc", "ocn"}  # words of ids, collections and types that no step reads


def read_listing(path: Path) -> dict[str, Item]:
    """Items of a list of scenes by id, in the order of the file; read again only when the file has changed.

    Raises
    ------
    ProductError
        The file is missing, no FeatureCollection of items, or holds an id twice.
    """
    try:
        return _read_listing(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ProductError(f"list of scenes {path} cannot be read ({error}): search again or mend the path") from None


@lru_cache(maxsize=64)
def _read_listing(path: Path, mtime_ns: int) -> dict[str, Item]:
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
        items = {item["id"]: item for item in features}
    except (ValueError, KeyError, TypeError) as error:
        raise ProductError(f"list of scenes {path} is no FeatureCollection of STAC items ({error!r})") from None
    if len(items) < len(features):
        raise ProductError(f"list of scenes {path} has {len(features)} items but {len(items)} ids: keep one item an id")
    for item in items.values():
        check_item(item, path)
    return items


def check_item(item: Item, source: Path) -> None:
    """Refuse an item without what every step relies on.

    Raises
    ------
    ProductError
        No id that can be a file's name, no geometry, no datetime, no assets; names the item and ``source``.
    """
    name = item.get("id")
    if not isinstance(name, str) or not SCENE_ID.fullmatch(name):
        raise ProductError(f"item {name!r} of {source}: expected an id of letters, digits, dots, dashes, underscores")
    if not isinstance(item.get("properties"), dict) or not isinstance(item.get("assets"), dict):
        raise ProductError(f"item {name} of {source} is no STAC item: expected properties and assets")
    try:
        footprint(item)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProductError(f"item {name} of {source} has no footprint: expected a polygon as geometry") from error
    try:
        moment(item)
    except (KeyError, TypeError, ValueError) as error:
        raise ProductError(f"item {name} of {source} has no datetime: expected an ISO 8601 date and time") from error


def sensor_of(item: Item) -> str:
    """``sentinel1`` or ``sentinel2``.

    Raises
    ------
    ProductError
        Another sensor, or a level that covermap does not read (such as L1C or SLC).
    """
    properties = item["properties"]
    keys = ("platform", "constellation", "sar:product_type", "s2:product_type")
    told = " ".join(str(word) for word in (item["id"], item.get("collection"), *map(properties.get, keys))).lower()
    words = set(re.split(r"[^a-z0-9]+", told))
    if words & OTHER_LEVELS:
        level = min(words & OTHER_LEVELS).upper()
        raise ProductError(f"item {item['id']} is of level {level}: expected Sentinel-2 L2A, or Sentinel-1 GRD or RTC")
    for number in "12":
        if re.search(rf"sentinel-?{number}", told) or words & {f"s{number}{unit}" for unit in "abcd"}:
            return f"sentinel{number}"
    raise ProductError(f"item {item['id']} is of no known sensor: expected the platform sentinel-1 or sentinel-2")


def moment(item: Item) -> datetime:
    """Time of acquisition in UTC: ``datetime``, or the start where the item gives a span."""
    properties = item["properties"]
    time = datetime.fromisoformat(properties.get("datetime") or properties["start_datetime"])
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def footprint(item: Item) -> BaseGeometry:
    """Outline in lon/lat; a crossed one, as at some data gaps, is repaired."""
    from shapely import make_valid
    from shapely.geometry import shape

    outline = shape(item["geometry"])
    if outline.is_empty or "Polygon" not in outline.geom_type:
        raise ValueError(f"{outline.geom_type} is no footprint")
    return outline if outline.is_valid else make_valid(outline)


def meets(item: Item, geometry: BaseGeometry) -> bool:
    """Whether the item's footprint shares more than a border with ``geometry`` (lon/lat)."""
    outline = footprint(item)
    return outline.intersects(geometry) and not outline.touches(geometry)
