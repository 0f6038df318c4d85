"""Scenes as STAC items: which sensor, when, where. Light enough for the Snakefile."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from covermap.errors import CoverageError, ProductError, SettingError

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from covermap.area_settings import Sentinel1, Sentinel2
    from covermap.providers import Query
Item = dict[str, Any]

SCENE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TREND = ("sigma0", "beta0", "gamma0")  # conventions in which backscatter falls with the incidence angle
OTHER_LEVELS = {"slc", "ocn"}  # words of ids, collections and types that no step reads
OPTICAL_LEVELS = {"l1c": "L1C", "msil1c": "L1C", "s2msi1c": "L1C", "l2a": "L2A", "msil2a": "L2A", "s2msi2a": "L2A"}
OPTICAL_PRODUCT = re.compile(  # Planetary Computer leaves the baseline out
    r"(?P<unit>S2[A-D])_MSI(?P<level>L1C|L2A)_(?P<time>\d{8}T\d{6})_(?:N(?P<baseline>\d{4})_)?R\d{3}_T(?P<tile>\w{5})_"
    r"(?P<made>\d{8}T\d{6})"
)
CLOUD_BANDS = ("B01", "B02", "B04", "B05", "B08", "B8A", "B09", "B10", "B11", "B12")  # of the cloud model, in order
MODES = {"SV": {"VV"}, "SH": {"HH"}, "DV": {"VV", "VH"}, "DH": {"HH", "HV"}}  # of polarisations, as products name them
BY_HAND = "99.99"  # baseline of products that a person made with Sen2Cor (99.33 since its release 3): tells nothing
MISSING = "covermap:missing"  # member of a list of scenes: what no scene covers
SUPERSEDES = "covermap:supersedes"  # property of an item: ids of the same acquisition by older processors


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


def read_missing(path: Path) -> dict[str, dict[str, float]]:
    """What no scene of a list covers, where that was allowed: shares of the area by sensor and month or step."""
    missing: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8")).get(MISSING, {})
    return missing


def told_gaps(missing: Mapping[str, float]) -> str:
    """Gaps in words, such as ``2021-03 (all of it) and 2021-04 (12.5 %)``; of many the first alone."""
    words = [f"{name} ({'all of it' if share > 0.9999 else f'{100 * share:.1f} %'})" for name, share in missing.items()]
    return ", ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")


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
        Another sensor, or a level that covermap does not read (such as SLC).
    """
    keys = ("platform", "constellation", "sar:product_type", "s2:product_type")
    told = _words(item["id"], item.get("collection"), *map(item["properties"].get, keys))
    words = set(told.split())
    if words & OTHER_LEVELS:
        level = min(words & OTHER_LEVELS).upper()
        raise ProductError(f"item {item['id']} is of level {level}: expected Sentinel-2, or Sentinel-1 GRD or RTC")
    for number in "12":
        if re.search(rf"sentinel ?{number}", told) or words & {f"s{number}{unit}" for unit in "abcd"}:
            return f"sentinel{number}"
    raise ProductError(f"item {item['id']} is of no known sensor: expected the platform sentinel-1 or sentinel-2")


def _words(*texts: object) -> str:
    """Small letters and digits of all texts, in words."""
    return re.sub(r"[^a-z0-9]+", " ", " ".join(map(str, texts)).lower())


def level_of(item: Item) -> str:
    """``L1C`` or ``L2A`` of a Sentinel-2 item, by the first field that tells it; empty: untold."""
    properties = item["properties"]
    fields = ("s2:product_uri", "s2:product_type", "product:type")
    for text in (*map(properties.get, fields), item["id"], item.get("collection")):
        levels = {OPTICAL_LEVELS[word] for word in _words(text).split() if word in OPTICAL_LEVELS}
        if len(levels) == 1:
            return levels.pop()
    return ""


def optical_bands(settings: Sentinel2) -> list[str]:
    """Bands of a Sentinel-2 product that a step reads, its scene classification and those of a cloud model included."""
    bands = {*settings.bands, *(CLOUD_BANDS if settings.cloud_model != "none" else ())}
    return sorted(bands) + ["SCL"] * (settings.level == "L2A")


def product_name(item: Item) -> re.Match[str] | None:
    """Name of the Sentinel-2 product that an item is made of, in its parts (OPTICAL_PRODUCT)."""
    return OPTICAL_PRODUCT.match(str(item["properties"].get("s2:product_uri") or item["id"]))


def baseline_of(item: Item) -> str:
    """Processing baseline of an item, such as ``05.09``, by its fields or else its product's name; empty: untold."""
    properties = item["properties"]
    for word in ("s2:processing_baseline", "processing:version"):
        if baseline := parsed_baseline(str(properties.get(word) or "")):
            return baseline
    named = re.search(r"_N(\d{4})_R\d{3}_", str(properties.get("s2:product_uri") or item["id"]))
    return parsed_baseline(named[1]) if named else ""


def parsed_baseline(text: str) -> str:
    """Processing baseline in the form ``05.09``, out of ``05.09``, ``5.9``, ``0509`` and the like; empty: it is none.

    The number 5.1 is 05.10, which lost its last zero; no baseline has a second part from 20 on, so 5.9 is 05.09. All
    from 99 on are 99.99: made by a person.
    """
    told = re.fullmatch(r"N?(\d\d?)\.(\d\d?)|N?(\d\d)(\d\d)", text.strip())
    if told is None:
        return ""
    major, minor = filter(None, told.groups())
    if major == "99":
        return BY_HAND
    return f"{major:0>2}.{'10' if minor == '1' else minor.zfill(2)}"


def tile_of(item: Item) -> str:
    """MGRS tile of a Sentinel-2 item, such as ``33TWM``; empty: untold."""
    if name := product_name(item):
        return name["tile"]
    properties = item["properties"]
    told = properties.get("s2:mgrs_tile") or properties.get("grid:code") or ""
    return str(told).removeprefix("MGRS-").removeprefix("T")


def platform_of(item: Item) -> str:
    """Satellite of a Sentinel-2 item, such as ``sentinel-2a``; empty: untold."""
    told = str(item["properties"].get("platform") or "").lower()
    name = product_name(item)
    return told or (f"sentinel-{name['unit'][1:].lower()}" if name else "")


def track_of(item: Item) -> str:
    """Relative orbit of a Sentinel-2 item, such as ``24``, by its field or else its product's name; empty: untold."""
    properties = item["properties"]
    named = re.search(r"_R(\d{3})_", str(properties.get("s2:product_uri") or item["id"]))
    told = properties.get("sat:relative_orbit") or (named and named[1]) or ""
    return str(told).lstrip("0")


def polarisations_of(item: Item) -> set[str]:
    """Polarisations of a Sentinel-1 item, such as VV and VH, by its fields or else its product's name; none: untold.

    Sources: STAC extension SAR; Sentinel Hub documentation, 'Sentinel-1 GRD'; Sentinel-1 Product Specification,
    'Naming Convention'.
    """
    properties = item["properties"]
    if told := set(re.findall("[VH]{2}", str(properties.get("sar:polarizations")).upper())):
        return told
    named = re.search(r"_1S([SD][VH])_", item["id"])
    return MODES.get(str(properties.get("s1:polarization") or (named and named[1])), set())


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


def met_by(items: Sequence[Item], outlines: Mapping[str, BaseGeometry]) -> dict[str, list[Item]]:
    """The items that meet each of many outlines (lon/lat), in their order; as :func:`meets`, but fast."""
    from shapely import STRtree, touches

    footprints, places = [footprint(item) for item in items], list(outlines.values())
    tree = STRtree(footprints)
    met: dict[str, list[Item]] = {name: [] for name in outlines}
    names = list(outlines)
    for place, scene in sorted(tree.query(places, predicate="intersects").T.tolist()):
        if not touches(footprints[scene], places[place]):
            met[names[place]].append(items[scene])
    return met


def is_grd(item: Item) -> bool:
    """Whether a Sentinel-1 item holds a product, which is still to be processed, not backscatter on a map."""
    hrefs = {key: PurePosixPath(str(asset.get("href")).rstrip("/")) for key, asset in item["assets"].items()}
    return any(
        path.suffix.lower() == ".safe" or (path.suffix.lower() == ".zip" and key.lower() == "product")
        for key, path in hrefs.items()
    )


def one_view(
    items: Iterable[Item], settings: Sentinel1, dem: Path | str | None, aoi: str, directions: str = "one"
) -> list[Item]:
    """The items of an area without the Sentinel-1 scenes that the settings leave out.

    What is left is seen from one side, unless ``directions`` say otherwise, and, where its backscatter depends on the
    incidence angle, from one track a side, so that a stack may average it; that is told here, before anything is
    fetched.

    Parameters
    ----------
    settings : of the area; ``orbit_state`` and ``relative_orbits`` choose.
    dem : of the area.
    aoi : the area's name, for messages.
    directions : of the composite: ``one``, ``apart`` or ``together``.

    Raises
    ------
    CoverageError
        The settings leave out all Sentinel-1 scenes, or those of one direction where both are wanted.
    SettingError
        Scenes of two orbit directions, GRD products of two tracks without one incidence angle, or without a DEM.
    """
    items = list(items)
    radar = [item for item in items if sensor_of(item) == "sentinel1"]
    chosen = [item for item in radar if is_wanted(item, settings)]
    if radar and not chosen:
        raise CoverageError(
            f"aois.{aoi}: of its {len(radar)} Sentinel-1 scenes none is of sentinel1.orbit_state "
            f"{settings.orbit_state or 'any'} and sentinel1.relative_orbits {list(settings.relative_orbits) or 'any'}: "
            f"there are {_counted(radar, 'sat:orbit_state')}, of the tracks {_counted(radar, 'sat:relative_orbit')}, "
            "so choose among these"
        )
    _check_directions(aoi, chosen, directions)
    for state in sorted({_told(item, "sat:orbit_state") for item in chosen}):
        _check_products(
            aoi, [item for item in chosen if is_grd(item) and _told(item, "sat:orbit_state") == state], settings, dem
        )
    left_out = {item["id"] for item in radar} - {item["id"] for item in chosen}
    return [item for item in items if item["id"] not in left_out]


def _check_directions(aoi: str, scenes: Sequence[Item], directions: str) -> None:
    states = {_told(item, "sat:orbit_state") for item in scenes}
    if directions == "one" and len(states) > 1:
        raise SettingError(
            f"aois.{aoi}: its Sentinel-1 scenes are {_counted(scenes, 'sat:orbit_state')}, and two orbit "
            "directions must not be averaged: set sentinel1.orbit_state to one, or composite.directions to apart"
        )
    if directions == "apart" and scenes and states != {"ascending", "descending"}:
        raise CoverageError(
            f"aois.{aoi}: composite.directions is apart, but its Sentinel-1 scenes are "
            f"{_counted(scenes, 'sat:orbit_state')}: expected both ascending and descending ones, or directions: one"
        )


def _check_products(aoi: str, products: Sequence[Item], settings: Sentinel1, dem: Path | str | None) -> None:
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


def is_wanted(item: Item, settings: Sentinel1 | Query) -> bool:
    """Whether a Sentinel-1 scene is of the orbit direction and one of the tracks that are asked for."""
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
