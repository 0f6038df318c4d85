"""Which offset the numbers of a Sentinel-2 product have, by what it declares and by its processing baseline.

reflectance = (DN + offset) / quantification (ESA, Sentinel-2 Products Specification Document). Offsets exist from
processing baseline 04.00 on and in all of Collection 1 (05.00 and later, of any year).
"""

from __future__ import annotations

import re
from typing import Any, Literal

from covermap.errors import ProductError

Rule = Literal["agreed", "declared", "baseline"]

OFFSETS_SINCE = "04.00"  # processing baseline, in operation from the day below on
OFFSETS_FROM_DAY = "2022-01-25"
OFFSET = -1000.0  # DN, of every band of every baseline since
BY_HAND = "99.99"  # baseline of products that a person made with the processor: it tells nothing


def baseline_of(item: dict[str, Any]) -> str:
    """Processing baseline of an item, such as ``05.09``, by its fields or else its product's name; empty: untold."""
    properties = item["properties"]
    for word in ("s2:processing_baseline", "processing:version"):
        if told := re.fullmatch(r"(\d\d?)\.(\d\d?)", str(properties.get(word) or "")):
            return f"{told[1]:0>2}.{told[2]:0<2}"
    named = re.search(r"_N(\d\d)(\d\d)_R\d{3}_", str(properties.get("s2:product_uri") or item["id"]))
    return f"{named[1]}.{named[2]}" if named else ""


def offset_by_baseline(baseline: str) -> float | None:
    """Offset [DN] that a processing baseline means; None: it tells none."""
    if baseline in ("", BY_HAND):
        return None
    return OFFSET if baseline >= OFFSETS_SINCE else 0.0


def agreed_offset(
    what: str, declared: tuple[float, str], meant: tuple[float, str] | None, rule: Rule
) -> tuple[float, str]:
    """Offset [DN] and its source, out of the declared one and that which the baseline or the metadata mean.

    Two offsets contradict each other where one alone is zero; otherwise the declared one counts.

    Parameters
    ----------
    what : product and band, for messages.
    declared, meant : offset and its source; None: untold.
    rule : which one counts where they contradict each other.

    Raises
    ------
    ProductError
        They contradict each other and the rule is ``agreed``.
    """
    if meant is None or (declared[0] == 0) == (meant[0] == 0):
        return declared
    if rule == "agreed":
        raise ProductError(
            f"product {what}: offset {declared[0]:g} ({declared[1]}) contradicts offset {meant[0]:g} ({meant[1]}): "
            "look whether dark water is near 0 or near 1000 in the pixels, and set sentinel2.offsets to 'declared' or "
            "'baseline'"
        )
    return declared if rule == "declared" else meant
