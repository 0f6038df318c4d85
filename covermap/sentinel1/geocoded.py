"""What every way of processing a scene hands over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from covermap.grid import Grid


@dataclass(frozen=True)
class Geocoded:
    """A scene on its window of the area's grid, made while it is read.

    ``strips`` yields the first row and the pixels float32 (band, rows, x), NaN = no data, from north to south;
    ``bands`` are their names.
    """

    window: Grid
    bands: tuple[str, ...]
    strips: Iterable[tuple[int, np.ndarray]]
    tags: dict[str, Any]
