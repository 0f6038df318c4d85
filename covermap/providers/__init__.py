"""Where scenes come from, by name. A new provider is one module and one line here; nothing is imported until used.

A provider is a module with five functions:

``check_credentials(settings) -> None``
    Refuses to begin where a download will need an account and there is none, with a SettingError that says where to
    get one. Nobody is asked.
``search(query, settings) -> list[Item]``
    STAC items of the scenes that answer a :class:`Query`, sorted by id, without anything that changes from one search
    to the next. A provider may return more than was asked for, never less: the caller sorts out again.
``fetch(item, product, settings, bands, grid) -> None``
    The item's files as one stored zip at ``product``, whole or absent. ``bands`` are those that will be read:
    Sentinel-2 bands with ``SCL`` where the level has it, or polarisations, none: all of the product; ``grid`` is the
    area's, for providers that send windows. More of either is no fault.
``costs(item, settings, bands, grid) -> Costs``
    What ``fetch`` will take, told without asking anybody.
``sources(item) -> list[Path]``
    The files on disk that ``fetch`` reads, none where it reads others: a scene is fetched again when they change.

``settings`` is the area's section ``provider``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from covermap.area_settings import Period

PROVIDERS = {
    "demo": "covermap.providers.demo",
    "stac": "covermap.providers.stac",
    "cdse": "covermap.providers.cdse",
    "sentinelhub": "covermap.providers.sentinelhub",
}


@dataclass(frozen=True)
class Query:
    """What scenes are looked for.

    ``area`` is a polygon in lon/lat; ``level`` and ``max_cloud`` [%] are about Sentinel-2; ``orbit_state``,
    ``relative_orbits`` and ``polarisations``, all of which a scene must have, about Sentinel-1 (none named: all).
    """

    area: BaseGeometry
    period: Period
    sensors: tuple[str, ...]
    level: str = "L2A"
    max_cloud: float = 100
    orbit_state: str | None = None
    relative_orbits: tuple[int, ...] = ()
    polarisations: tuple[str, ...] = ()


class Costs(NamedTuple):
    """What a scene takes: bytes over the network (None: untold), and processing units of Sentinel Hub."""

    size_bytes: int | None = None
    processing_units: float = 0


def told_bytes(item: dict[str, Any]) -> int | None:
    """Bytes of an item's assets, where all tell them (STAC file extension); None: some do not."""
    sizes = [asset.get("file:size") for asset in item["assets"].values()]
    return sum(sizes) if sizes and all(isinstance(size, int) for size in sizes) else None


def sources_of(item: dict[str, Any], provider: str) -> list[Path]:
    """The files on disk that a provider copies a scene from."""
    found: list[Path] = import_module(PROVIDERS[provider]).sources(item)
    return found
