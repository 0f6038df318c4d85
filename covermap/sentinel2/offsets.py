"""Which offset the numbers of a Sentinel-2 product have, by what it declares and by its processing baseline.

reflectance = (DN + offset) / quantification (ESA, Sentinel-2 Products Specification Document). Offsets exist from
processing baseline 04.00 on and in all of Collection 1 (05.00 and later, of any year).
"""

from __future__ import annotations

import math
from typing import Literal

from covermap.errors import ProductError
from covermap.scenes import BY_HAND

Rule = Literal["agreed", "declared", "baseline"]

OFFSETS_SINCE = "04.00"  # processing baseline, in operation from the day below on
OFFSETS_FROM_DAY = "2022-01-25"
OFFSET = -1000.0  # DN, of every band of every baseline since
SAME_DN = 0.01  # offsets that differ by less are one: declared ones are quotients of rounded numbers


def offset_by_baseline(baseline: str) -> tuple[float, str] | None:
    """Offset [DN] that a processing baseline means, and this as its source; None: it tells none."""
    if baseline in ("", BY_HAND):
        return None
    return (OFFSET if baseline >= OFFSETS_SINCE else 0.0), f"baseline {baseline}"


def agreed_offset(
    what: str, declared: tuple[float, str], meant: tuple[float, str] | None, rule: Rule
) -> tuple[float, str]:
    """Offset [DN] and its source, out of the declared one and that which the baseline or the metadata mean.

    Two offsets contradict each other where they differ by more than rounding; otherwise the declared one counts.

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
    if meant is None or math.isclose(declared[0], meant[0], rel_tol=0, abs_tol=SAME_DN):
        return declared
    if rule == "agreed":
        raise ProductError(
            f"product {what}: offset {declared[0]:g} ({declared[1]}) contradicts offset {meant[0]:g} ({meant[1]}): "
            "look whether dark water is near 0 or near 1000 in the pixels, and mend what is wrong or set "
            "sentinel2.offsets to 'declared' or 'baseline'"
        )
    return declared if rule == "declared" else meant
