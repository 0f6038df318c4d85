"""Pinned lists of scenes as a search would bring them: made up, but of the shape and size of real ones.

``python -m tests.pinned`` writes tests/fixtures/mato_grosso.json, a year over the state: Sentinel-1A passes each of
its tracks every 12 days, one a month is pinned, in slices of 170 km; Sentinel-2 tiles are those of the grid of the
three UTM zones, four dates each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from pyproj import Transformer
from shapely.affinity import translate
from shapely.geometry import Polygon, box
from shapely.geometry.base import BaseGeometry

from covermap.grid import read_area

ROOT = Path(__file__).parents[1]
AREA, FIXTURE = ROOT / "resources/aois/mato_grosso.geojson", ROOT / "tests/fixtures/mato_grosso.json"

TRACK_DEG = 360 / 175  # longitude between neighbouring tracks, at the equator
SWATH_DEG, SLICE_DEG = 2.3, 1.55  # with overlap, and along the track
LEAN = 0.22  # longitude that a descending track loses for each degree that it goes south
ZONES = (20, 21, 22)  # of UTM
COLUMNS = {1: "ABCDEFGH", 2: "JKLMNPQR", 0: "STUVWXYZ"}  # of the MGRS, by zone modulo 3
ROWS = "ABCDEFGHJKLMNPQRSTUV"
DAYS = [date(2018, month, 15) for month in (2, 5, 8, 11)]  # of Sentinel-2

Item = dict[str, Any]


def mato_grosso() -> bytes:
    """The list of the state, one item a line."""
    area = read_area(AREA)
    return as_listing([*_radar(area), *_optical(area)])


def as_listing(items: Iterable[Item]) -> bytes:
    """A file of a list, without a byte too much."""
    lines = ",\n".join(json.dumps(item, separators=(",", ":")) for item in items)
    return f'{{"type":"FeatureCollection","features":[\n{lines}\n]}}\n'.encode()


def _radar(area: BaseGeometry) -> Iterator[Item]:
    west, south, east, north = area.bounds
    slices = math.ceil((north - south) / SLICE_DEG) + 1
    for track in range(math.ceil((east - west + 4) / TRACK_DEG)):
        centre = west - 1 + track * TRACK_DEG
        for number in range(slices):
            latitude = south - 0.5 + number * SLICE_DEG
            lean = LEAN * (latitude - south)
            half = SWATH_DEG / 2
            corners = [(-half, 0), (half, 0.2), (half + LEAN * SLICE_DEG, SLICE_DEG + 0.3)]
            corners.append((LEAN * SLICE_DEG - half, SLICE_DEG + 0.1))
            outline = translate(Polygon(corners), centre + lean, latitude)
            if outline.intersects(area):
                yield from (_slice(outline, track, number, month) for month in range(1, 13))


def _slice(outline: Polygon, track: int, number: int, month: int) -> Item:
    day, second = 1 + track, 10 + number * 25 % 50
    start = f"2018{month:02d}{day:02d}T09{30 + number:02d}{second:02d}"
    orbit = 20000 + month * 100 + track
    name = f"S1A_IW_GRDH_1SDV_{start}_{start[:-2]}{second + 5:02d}_0{orbit}_02{track:04X}_{number:04X}"
    properties = {
        "datetime": f"2018-{month:02d}-{day:02d}T09:{30 + number:02d}:{second:02d}Z",
        "platform": "sentinel-1a",
        "sat:orbit_state": "descending",
        "sat:relative_orbit": 10 + 5 * track,
    }
    return _item(name, "sentinel-1-grd", outline, properties, "Sentinel-1/SAR/GRD")


def _optical(area: BaseGeometry) -> Iterator[Item]:
    for zone in ZONES:
        to_degrees = Transformer.from_crs(f"EPSG:{32700 + zone}", "EPSG:4326", always_xy=True)
        stripe = area.intersection(box(6 * zone - 186, -90, 6 * zone - 180, 90))
        for column in range(1, 9):
            for row in range(78, 93):
                square = box(column * 1e5, row * 1e5 - 9800, column * 1e5 + 109_800, row * 1e5 + 1e5)
                x, y = to_degrees.transform(*square.exterior.coords.xy)
                outline = Polygon(zip(x, y, strict=True))
                if outline.intersects(stripe):
                    rows = ROWS if zone % 2 else ROWS[5:] + ROWS[:5]
                    band = "MLK"[int(-outline.centroid.y // 8)]
                    tile = f"{zone}{band}{COLUMNS[zone % 3][column - 1]}{rows[row % 20]}"
                    yield from (granule(outline, tile, day) for day in DAYS)


def granule(outline: Polygon, tile: str, day: date, level: str = "L2A") -> Item:
    """Product of a Sentinel-2 tile, of Collection 1."""
    properties = {
        "datetime": f"{day}T14:00:49Z",
        "platform": "sentinel-2a",
        "eo:cloud_cover": 10 + day.month,
        "s2:processing_baseline": "05.00",
        "s2:mgrs_tile": tile,
    }
    name = f"S2A_MSI{level}_{day:%Y%m%d}T140049_N0500_R067_T{tile}_20230801T120000"
    return _item(name, f"sentinel-2-{level.lower()}", outline, properties, f"Sentinel-2/MSI/{level}")


def _item(name: str, collection: str, outline: Polygon, properties: dict[str, Any], folder: str) -> Item:
    """As provider cdse pins it, with corners to 100 m."""
    ring = [[round(x, 3), round(y, 3)] for x, y in outline.exterior.coords]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "bbox": [*map(min, *ring), *map(max, *ring)],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
        "links": [],
        "assets": {"product": {"href": f"s3://eodata/{folder}/{name}.SAFE", "file:size": 1_000_000_000}},
    }


if __name__ == "__main__":
    FIXTURE.parent.mkdir(exist_ok=True)
    FIXTURE.write_bytes(mato_grosso())
