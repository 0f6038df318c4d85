"""Which of the scenes found are taken, and what they leave without any. Light enough for the Snakefile."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from covermap.dates import step_of, steps_of
from covermap.scenes import (
    BY_HAND,
    SUPERSEDES,
    Item,
    baseline_of,
    footprint,
    is_wanted,
    level_of,
    meets,
    moment,
    platform_of,
    polarisations_of,
    product_name,
    read_listing,
    sensor_of,
    tile_of,
    track_of,
)

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from covermap.area_settings import Composite, Period
    from covermap.dates import Step
    from covermap.providers import Query

Places = dict[Hashable, dict[Hashable, list[Item]]]  # passes by tile or track, items by pass

log = logging.getLogger(__name__)

FOOTPRINT_ERROR_DEG = 0.005  # footprints are coarse: what is this near counts as covered
SMALLEST_GAP = 1e-4  # share of the area
COLLECTION_1 = "05.00"  # first baseline of the reprocessed archive: scenes of an older one may have been made again
LOST = date(2021, 12, 23)  # last day of Sentinel-1B
REPLACED = date(2025, 3, 26)  # first day of Sentinel-1C's data
ROUTINE_L2A = date(2018, 12, 1)


def pinned_items(pinned: Path, query: Query) -> list[Item]:
    """The items of a pinned list that are used for an area: those that can be, each Sentinel-2 acquisition once."""
    return newest_baseline(readable(read_pinned(pinned, query.area, query.period, query.sensors), query))


def cloud_cover(item: Item) -> float:
    """Share of clouds [%]; 0 where it is untold."""
    return float(item["properties"].get("eo:cloud_cover") or 0)


def clear_enough(items: Iterable[Item], max_cloud: float) -> list[Item]:
    """The items without Sentinel-2 scenes that have more clouds than ``max_cloud`` [%]; without a figure one stays."""
    clear = []
    for item in items:
        if sensor_of(item) == "sentinel2" and cloud_cover(item) > max_cloud:
            log.info("%s left out: %g %% of clouds, at most %g %%", item["id"], cloud_cover(item), max_cloud)
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


def with_polarisations(items: Iterable[Item], wanted: Iterable[str]) -> list[Item]:
    """The items without Sentinel-1 scenes that tell their polarisations and lack one of ``wanted``."""
    kept = []
    for item in items:
        told = polarisations_of(item) if sensor_of(item) == "sentinel1" else set()
        if told and (lacking := sorted({*wanted} - told)):
            log.info("%s left out: it has no %s", item["id"], " and no ".join(lacking))
        else:
            kept.append(item)
    return kept


def readable(items: Iterable[Item], query: Query) -> list[Item]:
    """The items of the level and with the polarisations that later steps read; what tells neither stays."""
    return with_polarisations(of_level(items, query.level), query.polarisations)


def doubtful_months(items: Iterable[Item], query: Query) -> list[Period]:
    """Months in which a later baseline of a Sentinel-2 acquisition may be missing, since it has too many clouds.

    That is where a service left out the clouds itself, and an item is of an older baseline than others, or than the
    reprocessed archive.
    """
    scenes = [item for item in items if sensor_of(item) == "sentinel2" and baseline_of(item)]
    if query.max_cloud >= 100 or any(cloud_cover(item) > query.max_cloud for item in scenes):
        return []
    newest = max([COLLECTION_1, *map(_baseline, scenes)])
    days = [moment(item).date() for item in scenes if _baseline(item) < newest]
    return [_month(first, query.period) for first in sorted({day.replace(day=1) for day in days})]


def _month(first: date, period: Period) -> Period:
    """The month that begins on ``first``, as far as it lies in a period."""
    last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    return period.model_copy(update={"start": max(first, period.start), "end": min(last, period.end)})


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


def at_most(items: Sequence[Item], per_month: Mapping[Any, int], query: Query) -> list[Item]:
    """The items with no more passes a month than ``per_month`` allows for their sensor.

    Of a Sentinel-1 track those that cover most of the area are taken. Of a Sentinel-2 tile each track is picked from
    on its own, since places that one track alone sees need its passes, however narrow they are: those that leave least
    of what no other tile or track sees, then those with the fewest clouds. Of equals the first. A pass is what a
    satellite takes on one day of one track or tile: all its slices or datastrips stay together. Items that do not tell
    their tile stay. Where Sentinel-1 is picked, scenes of other tracks than those that are asked for go, unless there
    are no others: that is told where scenes are chosen.
    """
    asked = [item for item in items if counts(item, query)]
    if "sentinel1" in per_month and any(sensor_of(item) == "sentinel1" for item in asked):
        items = asked
    left_out: set[str] = set()
    for (sensor, _), places in _passes(items, per_month).items():
        parts = _own_parts(places, query.area) if sensor == "sentinel2" else dict.fromkeys(places, query.area)
        for place, passes in places.items():
            ordered = sorted(passes.values(), key=partial(_rank, part=parts[place], area=query.area))
            left_out |= {item["id"] for scenes in ordered[per_month[sensor] :] for item in scenes}
    for name in sorted(left_out):
        log.info("%s left out: provider.per_month has enough of its month", name)
    return [item for item in items if item["id"] not in left_out]


def _passes(items: Iterable[Item], per_month: Mapping[Any, int]) -> dict[tuple[str, str], Places]:
    """Items by sensor and month, then tile or track, then pass, where passes are counted."""
    found: dict[tuple[str, str], Places] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for item in items:
        sensor = sensor_of(item)
        if sensor in per_month and (place := _place(item)):
            when = moment(item)
            taken = item["properties"].get("platform"), item["properties"].get("sat:absolute_orbit", when.date())
            found[sensor, f"{when:%Y-%m}"][place][taken].append(item)
    return found


def _place(item: Item) -> Hashable:
    """Tile and track, or track, of an item; None: untold."""
    if sensor_of(item) == "sentinel2":
        return (tile_of(item), track_of(item)) if tile_of(item) else None
    properties = item["properties"]
    return properties.get("sat:orbit_state"), properties.get("sat:relative_orbit")


def _own_parts(places: Places, area: BaseGeometry) -> dict[Hashable, BaseGeometry]:
    """What is seen of an area from each place and from no other one."""
    from shapely import union_all

    seen = {place: union_all([footprint(item) for item in chain(*passes.values())]) for place, passes in places.items()}
    others = {
        place: union_all([other for name, other in seen.items() if name != place and other.intersects(outline)])
        for place, outline in seen.items()
    }
    return {place: area.intersection(outline.difference(others[place])) for place, outline in seen.items()}


def _rank(scenes: Sequence[Item], part: BaseGeometry, area: BaseGeometry) -> tuple[float, float, str]:
    """The less the better: what a pass leaves of its ``part`` of the area, where it is a gap, clouds, then the time."""
    share = _left(part, scenes) / area.area
    clouds = fmean(map(cloud_cover, scenes), weights=[footprint(item).area or 1 for item in scenes])
    first = min(moment(item) for item in scenes)
    return round(share, 4) if share > SMALLEST_GAP else 0, round(clouds, 3), first.isoformat()


def counts(item: Item, query: Query) -> bool:
    """Whether a scene is not of an orbit direction or track that nobody asks for."""
    return sensor_of(item) != "sentinel1" or is_wanted(item, query)


def gaps(sensor: str, items: Iterable[Item], query: Query, composite: Composite) -> dict[str, float]:
    """Share of the area (0 to 1) without a scene of ``sensor``, by month or step, where there is such a share.

    Sentinel-1 is asked for every calendar month, Sentinel-2 for every step of the composite; where steps are single
    scenes, or gaps between them are filled, only for all of them together.
    """
    scenes = [item for item in items if sensor_of(item) == sensor]
    scenes = [item for item in scenes if counts(item, query)] or scenes  # none: that is told where scenes are chosen
    if sensor == "sentinel2" and composite.dates:
        scenes = [item for item in scenes if moment(item).date() in composite.dates]
    steps = _steps(sensor, scenes, query.period, composite)
    season = composite.season if sensor == "sentinel2" else None
    found: dict[str, float] = {}
    for number, step in enumerate(steps):
        of_step = [item for item in scenes if step_of(moment(item).date(), steps, season) == number]
        if (share := _uncovered(query.area, of_step)) > SMALLEST_GAP:
            found[_name(step, query.period)] = round(share, 4)
    return found


def _steps(sensor: str, scenes: Iterable[Item], period: Period, composite: Composite) -> list[Step]:
    if sensor == "sentinel1":
        monthly = composite.model_copy(update={"every": "month", "dates": (), "season": None})
        return steps_of(period, monthly, ())
    if composite.dates or composite.every == "scene" or composite.fill != "none":
        return [(period.start, period.end)]
    return steps_of(period, composite, [moment(item).date() for item in scenes])


def _uncovered(area: BaseGeometry, scenes: Iterable[Item]) -> float:
    """Share of an area in degrees, which is good enough to tell that there is some."""
    return _left(area, scenes) / area.area


def _left(part: BaseGeometry, scenes: Iterable[Item]) -> float:
    """What scenes leave of a part of an area [square degrees]."""
    from shapely import union_all

    covered = union_all([footprint(item) for item in scenes]).buffer(FOOTPRINT_ERROR_DEG)
    return float(part.difference(covered).area)


def _name(step: Step, period: Period) -> str:
    """A step in words: its month, or first and last day."""
    first, last = step
    if (first, last) == (period.start, period.end):
        return f"{first} to {last}"
    return f"{first:%Y-%m}" if (first.year, first.month) == (last.year, last.month) else f"{first} to {last}"


def why_missing(sensor: str, level: str, missing: Iterable[str]) -> str:
    """What is known about times in which the archive is thin; empty: nothing."""
    days = [date.fromisoformat(f"{name[:7]}-28") for name in missing]
    if sensor == "sentinel1" and any(LOST <= day < REPLACED for day in days):
        return f" (Sentinel-1B was lost on {LOST}: until 2025 many places have one orbit direction, or none)"
    if sensor == "sentinel2" and level == "L2A" and any(day < ROUTINE_L2A for day in days):
        return (
            f" (Level-2A was made everywhere from {ROUTINE_L2A:%B %Y} on; older dates exist where Collection 1 "
            "reprocessed them, else as Level-1C, which sentinel2.level takes as it is and sentinel2.processor corrects)"
        )
    return ""
