"""What a map will take, told before anything is fetched."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from shapely import from_wkt

from covermap.area_settings import Period, Provider
from covermap.files import whole
from covermap.grid import Grid
from covermap.providers import PROVIDERS, Costs
from covermap.scenes import (
    Item,
    baseline_of,
    footprint,
    moment,
    read_listing,
    read_missing,
    sensor_of,
    tile_of,
    told_gaps,
)

# ASSUME: what an untold scene has, in bytes: a GRD product of two polarisations; ten bands and classes of a tile
TYPICAL_BYTES = {"sentinel1": 1_000_000_000, "sentinel2": 700_000_000}
PACKED = 0.7  # what compression leaves of a scene on the grid
CONNECTION_MB_S, CONNECTIONS = 20, 4  # of the Copernicus Data Space (quotas of general users)
SCENES_AT_ONCE = 4  # ASSUME: so many downloaded products wait on disk for the step that reads them
GB = 1e9


def plan(
    listing: Path,
    plan: Path,
    area: str,
    period: Period,
    provider: Provider,
    scenes: list[str],
    bands: dict[str, tuple[str, ...]],
    fetched: dict[str, tuple[str, ...]],
    grid: Grid,
) -> None:
    """Write, and print, how many scenes a map needs and what they take; nothing is fetched.

    Parameters
    ----------
    listing : scenes of the area.
    plan : output, text.
    area : polygon in lon/lat as WKT.
    period : of the area.
    provider : where the scenes come from.
    scenes : ids of those that the map is made of.
    bands : that are read, by sensor.
    fetched : bands that are fetched, by sensor; none: whole products.
    grid : of the area.
    """
    listed = read_listing(listing)
    items = [listed[name] for name in scenes]
    module = import_module(PROVIDERS[provider.name])
    costs = {item["id"]: module.costs(item, provider, fetched[sensor_of(item)], grid) for item in items}
    lines = [
        f"{period.start} to {period.end}, provider {provider.name}: {len(items)} of {len(listed)} scenes",
        "",
        *_by_month(items, period),
        "",
        *_amounts(items, costs),
        *_disk(items, costs, area, bands, grid),
        *[f"not covered: {sensor}, {told_gaps(absent)}" for sensor, absent in read_missing(listing).items()],
        "",
        *_by_tile(items),
    ]
    text = "\n".join(lines).rstrip() + "\n"
    with whole(plan) as part:
        part.write_text(text, encoding="utf-8")
    print(text)


def _by_month(items: Iterable[Item], period: Period) -> list[str]:
    """Table of scenes by month and sensor."""
    counts = Counter((f"{moment(item):%Y-%m}", sensor_of(item)) for item in items)
    sensors = sorted({sensor for _, sensor in counts})
    rows = [[month, *[str(counts[month, sensor]) for sensor in sensors]] for month in period.months]
    totals = ["all", *[str(sum(counts[month, sensor] for month in period.months)) for sensor in sensors]]
    return ["".join(f"{cell:>11}" for cell in row) for row in (["month", *sensors], *rows, totals)]


def _amounts(items: Sequence[Item], costs: dict[str, Costs]) -> list[str]:
    untold = [item["id"] for item in items if costs[item["id"]].size_bytes is None]
    size_bytes = sum(_bytes(item, costs) for item in items)
    units = sum(cost.processing_units for cost in costs.values())
    slow, fast = (size_bytes / 1e6 / CONNECTION_MB_S / count / 3600 for count in (1, CONNECTIONS))
    guessed = f" ({len(untold)} scenes do not tell their size, which is guessed)" if untold else ""
    return [
        f"to fetch:    {size_bytes / GB:.1f} GB{guessed}",
        f"hours:       {fast:.1f} to {slow:.1f} of transfer, at {CONNECTIONS} or 1 x {CONNECTION_MB_S} MB/s",
        f"processing units: {units:.0f}",
    ]


def _bytes(item: Item, costs: dict[str, Costs]) -> int:
    told = costs[item["id"]].size_bytes
    return TYPICAL_BYTES[sensor_of(item)] if told is None else told


def _disk(
    items: Sequence[Item], costs: dict[str, Costs], area: str, bands: dict[str, tuple[str, ...]], grid: Grid
) -> list[str]:
    """Largest products that wait at once, and what is kept of all: their pixels on the grid."""
    polygon = from_wkt(area)
    pixels = grid.width * grid.height * min(1.0, polygon.area / polygon.envelope.area)
    kept = 0.0
    for item in items:
        share = footprint(item).intersection(polygon).area / polygon.area
        bytes_a_pixel = (4 if sensor_of(item) == "sentinel1" else 2) * (len(bands[sensor_of(item)]) + 1)
        kept += share * pixels * bytes_a_pixel * PACKED
    waiting = sum(sorted((_bytes(item, costs) for item in items), reverse=True)[:SCENES_AT_ONCE])
    return [f"disk:        {waiting / GB:.1f} GB for products in work, {kept / GB:.1f} GB for scenes on the grid"]


def _by_tile(items: Iterable[Item]) -> list[str]:
    """Which Sentinel-2 tiles have how many scenes, of which baselines."""
    tiles: dict[str, list[str]] = defaultdict(list)
    for item in items:
        if sensor_of(item) == "sentinel2":
            tiles[tile_of(item) or "untold"].append(baseline_of(item) or "untold")
    if not tiles:
        return []
    rows = [f"{tile:>11}{len(baselines):>11}  {', '.join(sorted(set(baselines)))}" for tile, baselines in tiles.items()]
    return [f"{'tile':>11}{'sentinel2':>11}  baselines", *sorted(rows)]
