"""Work on rows of an image at a time, so that memory never holds what the disk can."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def strips_of(length: int, rows: int) -> list[slice]:
    """Consecutive slices of at most ``rows`` that cover ``length``."""
    return [slice(start, min(start + rows, length)) for start in range(0, length, rows)]


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int = 1) -> Iterator[Result]:
    """Results of ``work`` in the order of the items, made by threads.

    The items are drawn by the caller's own thread, only ``ahead`` times as far ahead as there are threads, so that
    reading, working and writing go on beside each other in bounded memory. What has not begun when the caller gives up
    is never done.
    """
    with ThreadPoolExecutor(threads) as pool:
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) > ahead * threads:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
