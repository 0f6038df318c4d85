"""Work on rows of an image at a time, so that memory never holds what the disk can."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from covermap.grid import Grid

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def strips_of(length: int, rows: int) -> list[slice]:
    """Consecutive slices of at most ``rows`` that cover ``length``."""
    return [slice(start, min(start + rows, length)) for start in range(0, length, rows)]


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Results of ``work`` in the order of the items, made by threads.

    The items are drawn by the caller's own thread, only as far ahead as there are threads, so that reading, working
    and writing go on beside each other in bounded memory.
    """
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
