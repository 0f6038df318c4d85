"""Scenes as STAC items: which sensor, when, where. Light enough for the Snakefile."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from covermap.errors import CoverageError, ProductError, SettingError

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from covermap.settings import Sentinel1
Item = dict[str, Any]

SCENE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TREND = ("sigma0", "beta0", "gamma0")  # conventions in which backscatter falls with the incidence angle
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


def is_grd(item: Item) -> bool:
    """Whether a Sentinel-1 item holds a product, which is still to be processed, not backscatter on a map."""
    hrefs = {key: PurePosixPath(str(asset.get("href")).rstrip("/")) for key, asset in item["assets"].items()}
    return any(
        path.suffix.lower() == ".safe" or (path.suffix.lower() == ".zip" and key.lower() == "product")
        for key, path in hrefs.items()
    )


def one_view(items: Iterable[Item], settings: Sentinel1, dem: Path | None, aoi: str) -> list[Item]:
    """The items of an area without the Sentinel-1 scenes that the settings leave out.

    What is left is seen from one side and, where its backscatter depends on the incidence angle, from one track, so
    that a stack may average it; that is told here, before anything is fetched.

    Parameters
    ----------
    settings : of the area; ``orbit_state`` and ``relative_orbits`` choose.
    dem : of the area.
    aoi : the area's name, for messages.

    Raises
    ------
    CoverageError
        The settings leave out all Sentinel-1 scenes.
    SettingError
        Scenes of two orbit directions, GRD products of two tracks without one incidence angle, or without a DEM.
    """
    items = list(items)
    radar = [item for item in items if sensor_of(item) == "sentinel1"]
    chosen = [item for item in radar if _is_wanted(item, settings)]
    if radar and not chosen:
        raise CoverageError(
            f"aois.{aoi}: of its {len(radar)} Sentinel-1 scenes none is of sentinel1.orbit_state "
            f"{settings.orbit_state or 'any'} and sentinel1.relative_orbits {list(settings.relative_orbits) or 'any'}: "
            f"there are {_counted(radar, 'sat:orbit_state')}, of the tracks {_counted(radar, 'sat:relative_orbit')}, "
            "so choose among these"
        )
    if len({_told(item, "sat:orbit_state") for item in chosen}) > 1:
        raise SettingError(
            f"aois.{aoi}: its Sentinel-1 scenes are {_counted(chosen, 'sat:orbit_state')}, and two orbit "
            "directions must not be averaged: set sentinel1.orbit_state to one"
        )
    _check_products(aoi, [item for item in chosen if is_grd(item)], settings, dem)
    left_out = {item["id"] for item in radar} - {item["id"] for item in chosen}
    return [item for item in items if item["id"] not in left_out]


def _check_products(aoi: str, products: Sequence[Item], settings: Sentinel1, dem: Path | None) -> None:
    if products and dem is None:
        raise SettingError(
            f"aois.{aoi}.dem is not set, but {len(products)} of its Sentinel-1 scenes are GRD products, such as "
            f"{products[0]['id']}: give a DEM for their terrain correction"
        )
    tracks = {_told(item, "sat:relative_orbit") for item in products}
    if len(tracks) > 1 and settings.normalise_deg is None and settings.convention in TREND:
        angle = "" if settings.convention == "beta0" else ", or bring them to one angle by sentinel1.normalise_deg"
        raise SettingError(
            f"aois.{aoi}: its Sentinel-1 scenes are of the tracks {_counted(products, 'sat:relative_orbit')}, whose "
            f"{settings.convention} differs with the incidence angle: choose one by sentinel1.relative_orbits{angle}"
        )


def _is_wanted(item: Item, settings: Sentinel1) -> bool:
    state, tracks = settings.orbit_state, [str(track) for track in settings.relative_orbits]
    return state in (None, _told(item, "sat:orbit_state")) and (
        not tracks or _told(item, "sat:relative_orbit") in tracks
    )


def _told(item: Item, key: str) -> str:
    return str(item["properties"].get(key, "unknown")).lower()


def _counted(items: Iterable[Item], key: str) -> str:
    """Such as ``ascending (2 scenes) and descending (3 scenes)``."""
    counts = Counter(_told(item, key) for item in items)
    return " and ".join(f"{value} ({count} scene{'s' * (count > 1)})" for value, count in sorted(counts.items()))
