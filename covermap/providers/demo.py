"""The demo world's scenes: a static STAC catalogue on disk, written by the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from covermap.providers import Query, stac
from covermap.scenes import Item

if TYPE_CHECKING:
    from covermap.area_settings import Provider

CATALOG = Path("resources/demo/catalog.json")

check_credentials = stac.check_credentials
fetch = stac.fetch
costs = stac.costs
sources = stac.sources


def search(query: Query, settings: Provider) -> list[Item]:
    """Items of the demo world; see :func:`covermap.providers.stac.search_catalog`."""
    return stac.search_catalog(query, CATALOG)
