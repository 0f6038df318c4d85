"""Where the annual maps of MapBiomas are: every collection has its own addresses. Light enough for the settings."""

from __future__ import annotations

import re
from typing import NamedTuple

BIOMES = ("AMAZONIA", "CAATINGA", "CERRADO", "MATAATLANTICA", "PAMPA", "PANTANAL")


class Collection(NamedTuple):
    """First and last year, and the path of a year's map below the mirror; ``{biome}``: one file each."""

    first: int
    last: int
    path: str


# Maps of Brazil by Landsat (30 m), and "10m-": by Sentinel-2. Collection 4 is 4.1; 10 holds the files of 10.1.
COLLECTIONS = {
    "4": Collection(1985, 2018, "COLECAO/4_1/DOWNLOADS/COLECOES/ANUAL/{biome}/{biome}-{year}.tif"),
    "5": Collection(1985, 2019, "COLECAO/5/DOWNLOADS/COLECOES/ANUAL/{biome}/{biome}-{year}.tif"),
    "6": Collection(1985, 2020, "brasil/collection-6/lclu/coverage/brasil_coverage_{year}.tif"),
    "7": Collection(1985, 2021, "brasil/collection-7/lclu/coverage/brasil_coverage_{year}.tif"),
    "7.1": Collection(1985, 2021, "brasil/collection-71/lclu/coverage/brasil_coverage_{year}.tif"),
    "8": Collection(1985, 2022, "initiatives/brasil/collection_8/lclu/coverage/brasil_coverage_{year}.tif"),
    "9": Collection(1985, 2023, "initiatives/brasil/collection_9/lclu/coverage/brasil_coverage_{year}.tif"),
    "10": Collection(1985, 2024, "initiatives/brasil/collection_10/lulc/coverage/brazil_coverage_{year}.tif"),
    "11": Collection(
        1985, 2025, "initiatives/brasil/collection11/lulc/coverage/brazil_coverage/brazil_coverage-col11_{year}.tif"
    ),
    "10m-2": Collection(
        2016,
        2023,
        "initiatives/brasil/lulc_10m/collection_2/integration/"
        "mapbiomas_10m_collection2_integration_v1-classification_{year}.tif",
    ),
    "10m-3": Collection(2017, 2024, "initiatives/brasil/lulc_10m/collection_3/brazil_lulc_10m_{year}.tif"),
    "10m-4": Collection(
        2017,
        2025,
        "initiatives/brasil/lulc_10m/collection4/coverage/brazil_coverage/brazil_coverage-col4_10m_{year}.tif",
    ),
}


def why_not(collection: str, year: int) -> str:
    """Why there is no map of a year in a collection; empty: there is. An address with ``{year}`` may have any year."""
    if "://" in collection:
        usable = re.fullmatch(r"https?://[^\s?#@]+", collection) and "{year}" in collection
        wanted = "an address that begins with https:// or http://, has {year} in it, and no name, password or question"
        return "" if usable else f"collection is {collection!r}: expected {wanted}"
    if collection not in COLLECTIONS:
        return (
            f"collection is {collection!r}: expected one of {', '.join(COLLECTIONS)}, or the address of another map "
            "with {year} in it"
        )
    known = COLLECTIONS[collection]
    if not known.first <= year <= known.last:
        return f"year is {year}: collection {collection} has {known.first} to {known.last}"
    return ""


def addresses(collection: str, year: int, mirror: str) -> list[str]:
    """Addresses of a year's map: one file, or one for each biome."""
    template = collection if "://" in collection else f"{mirror}/{COLLECTIONS[collection].path}"
    biomes = BIOMES if "{biome}" in template else ("",)
    return [template.replace("{year}", str(year)).replace("{biome}", biome) for biome in biomes]
