"""The demo world's scenes: a static STAC catalogue on disk, written by the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from covermap.providers import stac
from covermap.scenes import Item

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from covermap.settings import Period

CATALOG = Path("resources/demo/catalog.json")

fetch = stac.fetch
sources = stac.sources


def search(area: BaseGeometry, period: Period, sensors: Sequence[str], catalog: Path | None = None) -> list[Item]:
    """Items of the demo world; see :func:`covermap.providers.stac.search`."""
    return stac.search(area, period, sensors, catalog or CATALOG)
