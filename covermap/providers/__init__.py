"""Where scenes come from, by name. A new provider is one module and one line here; nothing is imported until used.

A provider is a module with two functions:

``search(area, period, sensors, catalog) -> list[dict]``
    STAC items of the scenes that meet ``area`` (shapely, lon/lat) within ``period``.
``fetch(item, product) -> None``
    The item's files as one stored zip at ``product``.
"""

PROVIDERS = {
    "demo": "covermap.providers.demo",
    "stac": "covermap.providers.stac",
}
