"""Whose data a map is made of, as their licences want it told. Light enough for the Snakefile."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from covermap.scenes import Item, moment

if TYPE_CHECKING:
    from covermap.label_settings import LabelMap

TAG = "TIFFTAG_COPYRIGHT"  # of a map; it takes ASCII alone
YEARS = "{years}"  # stands for those of the scenes, until these are known

SIMULATED = "Simulated data"
SENTINEL = "Contains modified Copernicus Sentinel data"
GLO30 = (
    "produced using Copernicus WorldDEM-30 (c) DLR e.V. 2010-2014 and (c) Airbus Defence and Space GmbH 2014-2018 "
    "provided under COPERNICUS by the European Union and ESA; all rights reserved"
)
CLMS = "generated using European Union's Copernicus Land Monitoring Service information"


def attribution(provider: str, heights: bool, labels: Iterable[LabelMap | None]) -> str:
    """What is to be told of a map, in its tags and its report, with ``{years}`` where :func:`dated` puts them.

    The notice with the years is that of the 'Legal notice on the use of Copernicus Sentinel Data and Service
    Information'; Sentinel Hub asks to be named behind it (its FAQ).

    Parameters
    ----------
    provider : of the area's scenes.
    heights : whether Copernicus GLO-30 was downloaded for it.
    labels : of the areas that its model learned from; of files nobody knows whose they are, Urban Atlas apart.
    """
    if provider == "demo":
        return SIMULATED
    scenes = f"{SENTINEL} {YEARS}" + "/Sentinel Hub" * (provider == "sentinelhub")
    return "; ".join([scenes, *[f"heights {GLO30}"] * heights, *filter(None, [attribution_of_labels(labels)])])


def attribution_of_labels(labels: Iterable[LabelMap | None]) -> str:
    """Whose labels a network learned from; of files nobody knows whose they are, Urban Atlas apart."""
    return "; ".join(sorted({*map(_of_labels, labels)} - {""}))


def dated(told: str, scenes: Iterable[Item]) -> str:
    """An attribution with the years in which scenes were taken."""
    years = sorted({moment(item).year for item in scenes})
    return told.replace(YEARS, ", ".join(map(str, years)))


def _of_labels(labels: LabelMap | None) -> str:
    if labels is not None and labels.source == "urban_atlas":
        return f"Urban Atlas{f' {labels.year}' if labels.year else ''}, {CLMS}"
    if labels is None or labels.path != "auto" or "://" in str(labels.collection):
        return ""
    return f"MapBiomas Project, collection {labels.collection}, {labels.year}, CC BY 4.0"
