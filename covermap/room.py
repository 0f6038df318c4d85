"""Room on the disk: asked for before a long job writes, and named where it was too little."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyogrio.errors import DataLayerError, DataSourceError
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError

from covermap.errors import RoomError

MB = 1_000_000
# What Python, GDAL by rasterio and pyogrio, and SQLite say of a full disk
WRITING = (OSError, RasterioError, CPLE_BaseError, DataSourceError, DataLayerError, sqlite3.Error)


@contextmanager
def room_for(output: Path, needed_bytes: float) -> Iterator[None]:
    """Write ``output`` in a block: refused before where the disk has too little room, and explained where it fails.

    Parameters
    ----------
    output : what is written, and where.
    needed_bytes : about as much as all its parts take.

    Raises
    ------
    RoomError
        The disk has less room, or writing failed.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    free = _free_bytes(output)
    if free < needed_bytes:
        raise RoomError(f"{output} needs {_told(needed_bytes, free)}: make room and run again")
    try:
        yield
    except WRITING as error:
        free, fault = _free_bytes(output), " ".join(str(error.__cause__ or error).split())
        raise RoomError(
            f"{output} cannot be written whole ({fault}) and needs {_told(needed_bytes, free)}: make room and run again"
        ) from error


def _free_bytes(output: Path) -> int:
    return shutil.disk_usage(output.parent).free


def _told(needed_bytes: float, free_bytes: int) -> str:
    return f"about {needed_bytes / MB:,.1f} MB, its disk has {free_bytes / MB:,.1f} MB free"
