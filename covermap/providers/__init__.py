"""Where scenes come from, by name. A new provider is one module and one line here; nothing is imported until used.

A provider is a module with three functions:

``search(area, period, sensors, catalog) -> list[dict]``
    STAC items of the scenes that meet ``area`` (shapely, lon/lat) within ``period``.
``fetch(item, product) -> None``
    The item's files as one stored zip at ``product``.
``sources(item) -> list[Path]``
    The files on disk that ``fetch`` reads, none where it reads others: a scene is fetched again when they change.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

PROVIDERS = {
    "demo": "covermap.providers.demo",
    "stac": "covermap.providers.stac",
}


def sources_of(item: dict[str, Any], provider: str) -> list[Path]:
    """The files on disk that a provider copies a scene from."""
    found: list[Path] = import_module(PROVIDERS[provider]).sources(item)
    return found
