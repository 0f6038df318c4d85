"""Rasters on a server: the windows that are wanted and no more, in parts, so that an interrupted run goes on."""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds
from rasterio.windows import Window
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from covermap.errors import CoverageError, DownloadError, ProductError
from covermap.files import unfinished, whole
from covermap.grid import Grid
from covermap.slots import slot
from covermap.web import REFUSED, Access, belongs, host, place, renew

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECTIONS = 4  # to a server at once, over all processes of this user
TRIES = 5
PAUSE_S = 1.0  # before the second one; longer each time
PART_PIXELS = 2048  # a multiple of the tiles that are written, so that none is written twice
REPORT_S = 30.0
PACKED_BYTES = {"float32": 2.8, "uint8": 0.1}  # of a pixel of heights, or of codes; about
LASTING = {400, 401, 403, 404, 405, 410}  # trying again is in vain
LATTICE_ERROR = 0.05  # of a pixel, over 100 000 pixels
VSI = "/vsicurl/"
PROFILE = {
    "driver": "GTiff",
    "count": 1,
    "tiled": True,
    "blockxsize": 512,
    "blockysize": 512,
    "compress": "ZSTD",
    "zstd_level": 1,
    "bigtiff": "IF_SAFER",
}
GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no search for files beside the raster
    "GDAL_HTTP_CONNECTTIMEOUT": 30,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1_000,  # bytes a second, for so many seconds: a server that only drips has failed
    "GDAL_HTTP_LOW_SPEED_TIME": 60,
    "GDAL_HTTP_MAX_RETRY": 5,
    "GDAL_HTTP_MULTIRANGE": "SERIAL",  # else each of the ranges that one window takes has a connection of its own
    "GDAL_HTTP_RETRY_CODES": "408,425,429,500,502,503,504",
    "GDAL_HTTP_RETRY_DELAY": 1,
    "GDAL_INGESTED_BYTES_AT_OPEN": 32_768,  # the header of a COG in one request
    "GTIFF_HAS_OPTIMIZED_READ_MULTI_RANGE": "YES",
}


def _without_queries(record: logging.LogRecord) -> bool:
    """A filter of logs: GDAL warns of each further try with the whole address, signature and all."""
    record.msg, record.args = re.sub(r"(https?://[^\s?]*)\?\S*", r"\1", record.getMessage()), None
    return True


logging.getLogger("rasterio").setLevel(logging.WARNING)  # below, it tells of each raster by its whole address
logging.getLogger("rasterio._env").addFilter(_without_queries)


@contextmanager
def open_remote(url: str, access: Access | None = None) -> Iterator[rasterio.DatasetReader]:
    """A raster on a server, of which windows are read by range requests, over one connection.

    The connection is one of the provider's slots, else of four that a server has; it is held until the block ends, so
    no other raster of that provider or server is to be opened within.

    Parameters
    ----------
    url : ``https://...``; what stands in its query is never told.
    access : signs the address, where it is of its hosts. A signature that is refused when the raster is opened is
        renewed once; one that ends while it is read is an error like others, so that the next try opens with a new one.

    Raises
    ------
    DownloadError
        It cannot be opened, or a window cannot be read while it is open.
    """
    held = (access.name, access.connections) if access else (host(url), CONNECTIONS)
    own = access if access and belongs(url, access) else None
    try:
        with slot(*held), rasterio.Env(**GDAL), _opened(url, own) as raster:
            yield raster
    except RasterioError as error:
        raise _failed(error, url) from None


def _opened(url: str, access: Access | None) -> rasterio.DatasetReader:
    """The raster, tried once more where its signature is refused."""
    path = _path(url, access)
    try:
        return rasterio.open(path)
    except RasterioError as error:
        status = _failed(error, url).status
        if access is None or status not in REFUSED:
            raise
    renew(url, access, (path.removeprefix(VSI).partition("#")[0], access.headers(url)), status)
    return rasterio.open(_path(url, access))


def _failed(error: RasterioError, url: str) -> DownloadError:
    _FAILURES[url] += 1
    reason = _reason(error)
    status = re.search(r"response[ _]code[:=] ?([45]\d\d)", reason)
    fix = "check its address" if status and int(status[1]) in LASTING else "run again later"
    return DownloadError(f"{place(url)} cannot be read ({reason}): {fix}", int(status[1]) if status else None)


_FAILURES: Counter[str] = Counter()


def _path(url: str, access: Access | None) -> str:
    """What GDAL opens. It keeps what it read of an address, also what was cut off: so each failure gives another one.

    They differ in the fragment, which no server is told (RFC 9110, section 4.2.5).
    """
    signed = access.sign(url) if access else url
    return f"{VSI}{signed}#{_FAILURES[url]}" if _FAILURES[url] else f"{VSI}{signed}"


def check_packed(raster: rasterio.DatasetReader, url: str) -> None:
    """Refuse a raster of which a wrong part would not be seen.

    Raises
    ------
    ProductError
        It is not compressed.
    """
    if not is_packed(raster):
        raise ProductError(
            f"{place(url)} holds its pixels uncompressed, of which nobody could tell whether a server sent the right "
            "part: bring it as a file, or name one that is compressed"
        )


def is_packed(raster: rasterio.DatasetReader) -> bool:
    """Whether a raster is compressed: bytes from another place of the file are then no tile, and GDAL looks at no more.

    It does not compare the Content-Range of an answer with the range that it asked for.
    """
    return "COMPRESSION" in raster.tags(ns="IMAGE_STRUCTURE")


def _may_pass(error: BaseException) -> bool:
    """Whether another try may help: GDAL itself does not try again after a body that was cut."""
    return isinstance(error, DownloadError) and (error.status not in LASTING)


def patiently(read: Callable[..., T], *words: Any) -> T:
    """The result of a function that opens a raster on a server and reads of it, after some tries."""
    tries = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(TRIES),
        wait=wait_exponential_jitter(multiplier=PAUSE_S, max=30, jitter=PAUSE_S),
        reraise=True,
    )
    return tries(read, *words)


def _reason(error: Exception) -> str:
    """What GDAL says, without addresses: their queries may hold signatures. Of a band it tells what follows a slash."""
    causes = [str(error), str(error.__cause__ or "")]
    return re.sub(r"\S*(/vsicurl/|https?://|[?#])\S*|\S+(?=, band \d)", "it", ": ".join(filter(None, causes)))


def parts_of(height: int, width: int) -> list[Window]:
    """Windows that cover a raster, row by row."""
    return [
        Window(left, top, min(PART_PIXELS, width - left), min(PART_PIXELS, height - top))
        for top in range(0, height, PART_PIXELS)
        for left in range(0, width, PART_PIXELS)
    ]


def write_parts(
    output: Path,
    profile: Mapping[str, Any],
    read: Callable[[Window], np.ndarray],
    *,
    tags: Mapping[str, object],
    source: object,
    empty: str,
) -> None:
    """Write a raster of one band from parts that are read from a server, four at once.

    Finished parts stay on disk when the job dies, and its retry goes on behind them.

    Parameters
    ----------
    profile : of the GeoTIFF; its width and height are those of the whole.
    read : values (y, x) of a window.
    tags : of the raster.
    source : what the parts depend on; others are not taken over.
    empty : the error where no part has a value.

    Raises
    ------
    CoverageError
        With the text of ``empty``.
    """
    windows = parts_of(profile["height"], profile["width"])
    layout = {key: value for key, value in profile.items() if key not in ("crs", "transform")}
    with unfinished(output, source=source, layout=layout, transform=profile["transform"]) as folder:
        files = [folder / f"{window.row_off}_{window.col_off}.tif" for window in windows]

        wanted = [place for place in zip(windows, files, strict=True) if not place[1].exists()]
        _check_room(output, profile, len(wanted) / len(windows))

        def fetch(place: tuple[Window, Path]) -> None:
            window, file = place
            _write(file, profile, window, patiently(read, window))

        _all_of(fetch, wanted, output)
        with whole(output) as part, rasterio.open(part, "w", **profile) as raster:
            raster.update_tags(**{key: str(value) for key, value in tags.items()})
            found = [_copy(file, raster, window) for window, file in zip(windows, files, strict=True)]
            if not any(found):
                raise CoverageError(empty)


def _check_room(output: Path, profile: Mapping[str, Any], share: float) -> None:
    """Refuse to begin where the share of the parts that is still to come, and the whole, would not fit on the disk."""
    about_bytes = profile["height"] * profile["width"] * PACKED_BYTES[profile["dtype"]] * (1 + share)
    free_bytes = shutil.disk_usage(output.parent).free
    if about_bytes > free_bytes:
        raise DownloadError(
            f"{output} needs about {about_bytes / 1e6:.0f} MB, but {output.parent} has {free_bytes / 1e6:.0f} MB free: "
            "make room and run it again"
        )


def _copy(file: Path, raster: rasterio.io.DatasetWriter, window: Window) -> bool:
    """Copy a part into the whole; whether it has any value."""
    with rasterio.open(file) as part:
        values = part.read(1)
        raster.write(values, 1, window=window)
        return bool((values != raster.nodata).any())  # NaN differs from itself too, and heights are never all absent


def _write(file: Path, profile: Mapping[str, Any], window: Window, values: np.ndarray) -> None:
    place = {"height": window.height, "width": window.width}
    corner = _shifted(profile["transform"], window.col_off, window.row_off)
    with whole(file) as part, rasterio.open(part, "w", **{**profile, **place, "transform": corner}) as raster:
        raster.write(values, 1)


def _shifted(origin: Affine, columns: int, rows: int) -> Affine:
    """A north-up lattice from another of its pixels on."""
    return Affine(origin.a, 0, origin.c + columns * origin.a, 0, origin.e, origin.f + rows * origin.e)


def _all_of(fetch: Callable[[Any], None], places: Sequence[Any], output: Path) -> None:
    """Do all, some at once; the first failure ends it, and what has not begun is not begun."""
    pool = ThreadPoolExecutor(CONNECTIONS)
    began = said = time.monotonic()
    try:
        for number, _ in enumerate(pool.map(fetch, places), start=1):
            now = time.monotonic()
            if now - said > REPORT_S or number == len(places):
                left_min = (now - began) / number * (len(places) - number) / 60
                log.info("%s: %d of %d parts, about %.0f minutes to go", output, number, len(places), left_min)
                said = now
    finally:
        pool.shutdown(cancel_futures=True)


def copy_area(
    urls: Sequence[str], output: Path, grid: Grid, *, rim_m: float, tags: Mapping[str, object], empty: str
) -> None:
    """The part of a map of codes that a grid needs, pixel for pixel, as a file of its own.

    Parameters
    ----------
    urls : one raster of uint8 codes, or several on one lattice, of which the first with a code counts; 0 = no code.
    output : GeoTIFF uint8 on the map's own lattice, 0 = no data.
    grid, rim_m : the part: the bounds of a grid with a rim.
    empty : the error where the map has no code there.

    Raises
    ------
    DownloadError
        A file cannot be read.
    ProductError
        It is no raster of uint8 codes, or on another lattice than the first.
    CoverageError
        The map has no code in the area.
    """
    origin, crs = patiently(_lattice, urls[0])
    padded = grid.padded(math.ceil(rim_m / grid.pixel_m))
    left, top, width, height = _pixels(origin, transform_bounds(grid.crs, crs, *padded.bounds, densify_pts=41))
    corner = _shifted(origin, left, top)

    def read(window: Window) -> np.ndarray:
        codes = np.zeros((window.height, window.width), np.uint8)
        for url in urls:
            with open_remote(url) as raster:
                _check_codes(raster, url)
                here = read_where(raster, _on_lattice(raster, corner, window, url))
            codes = np.where(codes == 0, here, codes)
        return codes

    profile = {**PROFILE, "dtype": "uint8", "nodata": 0, "crs": crs, "transform": corner, "predictor": 2}
    write_parts(output, profile | {"width": width, "height": height}, read, tags=tags, source=list(urls), empty=empty)


def _lattice(url: str) -> tuple[Affine, CRS]:
    with open_remote(url) as raster:
        _check_codes(raster, url)
        return raster.transform, raster.crs


def _check_codes(raster: rasterio.DatasetReader, url: str) -> None:
    check_packed(raster, url)
    north_up = raster.transform.b == raster.transform.d == 0 and raster.transform.e < 0 < raster.transform.a
    if raster.count != 1 or raster.dtypes[0] != "uint8" or raster.crs is None or not north_up:
        raise ProductError(
            f"{place(url)} has {raster.count} bands of {raster.dtypes[0]}: expected one north-up band of uint8 codes "
            "with a CRS, so name another collection or bring a file"
        )


def _pixels(origin: Affine, bounds: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """Column, row, width and height of bounds on a lattice."""
    west, south, east, north = bounds
    left, top = math.floor((west - origin.c) / origin.a), math.floor((north - origin.f) / origin.e)
    right, bottom = math.ceil((east - origin.c) / origin.a), math.ceil((south - origin.f) / origin.e)
    return left, top, right - left, bottom - top


def _on_lattice(raster: rasterio.DatasetReader, corner: Affine, window: Window, url: str) -> Window:
    """A window, counted from a corner, counted from the raster's own."""
    own = raster.transform
    column, row = (corner.c - own.c) / own.a, (corner.f - own.f) / own.e
    pixel = own.a / corner.a, own.e / corner.e
    off = max(abs(column - round(column)), abs(row - round(row)), *(abs(1 - side) * 1e5 for side in pixel))
    if off > LATTICE_ERROR:
        raise ProductError(f"{place(url)} is not on the lattice of the map's other files: bring one file of the map")
    return Window(round(column) + window.col_off, round(row) + window.row_off, window.width, window.height)


def read_where(raster: rasterio.DatasetReader, window: Window) -> np.ndarray:
    """Band 1 (y, x) of a window that may reach beyond the raster; 0 where it does."""
    out = np.zeros((window.height, window.width), raster.dtypes[0])
    top, left = max(window.row_off, 0), max(window.col_off, 0)
    bottom = min(window.row_off + window.height, raster.height)
    right = min(window.col_off + window.width, raster.width)
    if top < bottom and left < right:
        rows = slice(top - window.row_off, bottom - window.row_off)
        columns = slice(left - window.col_off, right - window.col_off)
        out[rows, columns] = raster.read(1, window=Window.from_slices((top, bottom), (left, right)))
    return out
