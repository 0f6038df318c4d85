"""Pixels of a Sentinel-2 band on a grid, by strips of whole blocks, so that no JP2 tile is decoded twice."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.transform import array_bounds, from_bounds
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from covermap.errors import ProductError
from covermap.grid import Grid
from covermap.sentinel2.product import AGAIN, SCL, STEPS, Band

SATURATED = 65_535
NO_CLASS = 255  # what stands for a number that is no class
STRIP_ROWS = 1024  # at least so many rows of the grid a strip, where blocks are smaller
RESAMPLED_ROWS = 4096  # a strip that is warped reads the blocks at its ends once more, so it is taller
WARP_TOLERANCE_PIXELS = 0.01
WARP_MEMORY_MB = 1024  # more than a strip needs: in parts the approximation of the warp would depend on the parts
GDAL_OPTIONS = {
    "GDAL_NUM_THREADS": 1,  # with more, a JP2 that is cut off reads as if it were whole
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
}

Convert = Callable[[np.ndarray, float], np.ndarray]  # of the product's numbers, and the one that is no data; 0: none


@dataclass(frozen=True)
class Layout:
    """Where the pixels of a band lie, and in which blocks they are kept; ``nodata`` is the number without data."""

    crs: CRS
    transform: Affine
    height: int
    width: int
    block_rows: int
    nodata: float

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in the band's CRS."""
        left, bottom, right, top = array_bounds(self.height, self.width, self.transform)
        return left, bottom, right, top


def layout_of(product: str, name: str, band: Band) -> Layout:
    """Layout of a band; ``product`` and ``name`` are for messages.

    Raises
    ------
    ProductError
        The raster is broken, lies nowhere, has another pixel than its name tells, or holds whole numbers of another
        quantification than its product has.
    """
    with _opened(product, name, band) as raster:
        if band.index > raster.count:
            raise ProductError(
                f"product {product}, band {name}: expected {band.index} layers or more in {band.path}, it has "
                f"{raster.count}: {AGAIN}"
            )
        crs, transform = _placed(product, name, raster, band)
        if band.pixel_m and crs.is_projected and abs(transform.a - band.pixel_m) > 0.01:
            raise ProductError(
                f"product {product}, band {name}: {band.path} has pixels of {transform.a:g} m, but {band.pixel_m} m by "
                f"its name: {AGAIN}"
            )
        _must_be_quantified(product, name, band, raster.dtypes[band.index - 1])
        nodata = raster.nodata if raster.nodata is not None else band.nodata
        if nodata is None:
            nodata = np.nan if np.issubdtype(raster.dtypes[0], np.floating) else 0
        return Layout(crs, transform, raster.height, raster.width, raster.block_shapes[band.index - 1][0], nodata)


def _must_be_quantified(product: str, name: str, band: Band, dtype: str) -> None:
    """Refuse whole numbers of a wrong scale; floats may be reflectance already."""
    meant = band.meant_quantification
    if meant and np.issubdtype(dtype, np.integer) and not math.isclose(band.quantification, meant, rel_tol=1e-6):
        raise ProductError(
            f"product {product}, band {name}: scale {1 / band.quantification:g} is declared for {dtype}, but digital "
            f"numbers of the product have {1 / meant:g}: mend scale and offset in the item's raster:bands, or set "
            "sentinel2.offsets to 'declared'"
        )


@contextmanager
def _opened(product: str, name: str, band: Band) -> Iterator[rasterio.DatasetReader]:
    """A band's raster, open; whatever goes wrong with it is a ProductError that names product and band."""
    try:
        with warnings.catch_warnings(), rasterio.Env(**GDAL_OPTIONS):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the metadata may place it
            with rasterio.open(band.path) as raster:
                yield raster
    except RasterioError as error:
        reason = str(error.__cause__ or error).strip().rstrip(".")
        raise ProductError(f"product {product}, band {name} cannot be read ({reason}): {AGAIN}") from error


def _placed(product: str, name: str, raster: rasterio.DatasetReader, band: Band) -> tuple[CRS, Affine]:
    """CRS and transform of a raster: its own, or those that the product's metadata declare."""
    if raster.crs is not None:
        return raster.crs, raster.transform
    if band.place is None:
        raise ProductError(f"product {product}, band {name} has no CRS: declare proj:code and proj:bbox in the item")
    code, bounds = band.place
    try:
        return CRS.from_string(code), from_bounds(*bounds, raster.width, raster.height)
    except (CRSError, TypeError) as error:
        raise ProductError(
            f"product {product}, band {name}: the item places it at {bounds} of {code!r} ({error}): mend the item"
        ) from error


def must_cover(product: str, name: str, layout: Layout, first: str, expected: Layout) -> None:
    """Refuse a band that does not cover what the first one does, up to a pixel."""
    tolerance = max(abs(layout.transform.a), abs(expected.transform.a))
    apart = [abs(one - other) for one, other in zip(layout.bounds, expected.bounds, strict=True)]
    if layout.crs != expected.crs or max(apart) > tolerance:
        raise ProductError(
            f"product {product}, band {name}: it covers {_told(layout)}, but {first} {_told(expected)}: {AGAIN}"
        )


def _told(layout: Layout) -> str:
    size = f"{layout.height} x {layout.width} px from {layout.transform.c:g}, {layout.transform.f:g}"
    return f"{size} of {layout.crs.to_string()}"


def repeats(layout: Layout, grid: Grid) -> int:
    """Pixels of ``grid`` along a pixel of a band whose pixels all end on its lattice; 0 for another lattice."""
    transform = layout.transform
    if layout.crs != CRS.from_string(grid.crs) or transform.b or transform.d or transform.a != -transform.e:
        return 0
    times = transform.a / grid.pixel_m
    shifts = (transform.c - grid.left) / grid.pixel_m, (grid.top - transform.f) / grid.pixel_m
    exact = all(abs(number - round(number)) < 1e-6 for number in (times, *shifts))
    return round(times) if exact else 0


def _is_copied(times: int, resampling: Resampling) -> bool:
    """Whether pixels are copied or repeated, and nothing is computed."""
    return times == 1 or (times > 1 and resampling == Resampling.nearest)


def strips_of(layout: Layout, grid: Grid, resampling: Resampling) -> list[slice]:
    """Rows of ``grid`` in consecutive strips, which end where blocks of the band do if its pixels are copied."""
    times = repeats(layout, grid)
    if not _is_copied(times, resampling):
        return cut(0, grid.height, RESAMPLED_ROWS)
    block = layout.block_rows * times
    above = round((layout.transform.f - grid.top) / grid.pixel_m)  # rows of the band above the grid
    return cut(above, grid.height, block * -(-STRIP_ROWS // block))


def cut(above: int, height: int, step: int) -> list[slice]:
    """Slices that cover ``height`` and end where ``above`` and the rows before make a multiple of ``step``."""
    borders = [0, *range(-above % step or step, height, step), height]
    return [slice(start, stop) for start, stop in pairwise(borders)]


def read_strip(
    product: str, name: str, band: Band, layout: Layout, grid: Grid, resampling: Resampling, convert: Convert
) -> np.ndarray:
    """Converted numbers (y, x) of a band on ``grid``, a strip of the whole; 0 beyond the band.

    Opens the file for itself, so that any number of threads may read at once; only the blocks that the grid meets are
    decoded.

    Raises
    ------
    ProductError
        The raster is broken; names product and band.
    """
    times = repeats(layout, grid)
    with _opened(product, name, band) as raster:
        if _is_copied(times, resampling):
            return _repeated(raster, band.index, layout, grid, times, convert)
        return convert(_warped(raster, band.index, layout, grid, resampling), layout.nodata)


def _warped(
    raster: rasterio.DatasetReader, index: int, layout: Layout, grid: Grid, resampling: Resampling
) -> np.ndarray:
    """Pixels (y, x) of ``grid``, interpolated."""
    scale = layout.transform.a / grid.pixel_m  # by itself GDAL guesses it from a strip's outline, and blurs
    with WarpedVRT(
        raster,
        src_crs=layout.crs,
        src_transform=layout.transform,
        src_nodata=layout.nodata,
        crs=CRS.from_string(grid.crs),
        transform=grid.transform,
        width=grid.width,
        height=grid.height,
        nodata=layout.nodata,
        resampling=resampling,
        tolerance=WARP_TOLERANCE_PIXELS,
        warp_mem_limit=WARP_MEMORY_MB,
        XSCALE=scale,
        YSCALE=scale,
    ) as warped:
        pixels: np.ndarray = warped.read(index)
    return pixels


def _repeated(
    raster: rasterio.DatasetReader, index: int, layout: Layout, grid: Grid, times: int, convert: Convert
) -> np.ndarray:
    """Pixels (y, x) of ``grid``, each converted pixel of the raster ``times`` by ``times``; 0 beyond the raster."""
    row0 = round((layout.transform.f - grid.top) / grid.pixel_m)
    column0 = round((grid.left - layout.transform.c) / grid.pixel_m)
    row1, column1 = row0 + grid.height, column0 + grid.width
    rows = slice(max(row0 // times, 0), min(-(-row1 // times), layout.height))
    columns = slice(max(column0 // times, 0), min(-(-column1 // times), layout.width))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return np.zeros(grid.shape, np.uint16)
    pixels = convert(raster.read(index, window=Window.from_slices(rows, columns)), layout.nodata)
    if times > 1:
        pixels = pixels.repeat(times, 1).repeat(times, 0)
    top, left = rows.start * times - row0, columns.start * times - column0  # where the pixels start in out, or before
    pixels = pixels[max(-top, 0) :, max(-left, 0) :][: grid.height - max(top, 0), : grid.width - max(left, 0)]
    if pixels.shape == grid.shape:
        return pixels
    out = np.zeros(grid.shape, pixels.dtype)
    out[max(top, 0) :, max(left, 0) :][: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


def reflectance_steps(dn: np.ndarray, offset: float, quantification: float, nodata: float | None = None) -> np.ndarray:
    """Reflectance in steps of 0.0001 from digital numbers.

    Parameters
    ----------
    dn : any shape and number type; integers: 0 is no data, and 65535 saturated in uint16; floats: NaN and infinity are.
    offset : added to the DN: BOA_ADD_OFFSET or RADIO_ADD_OFFSET, or the offset of ``raster:bands`` over its scale.
    quantification : DN of reflectance 1 (one over the scale).
    nodata : a further value without data.

    Returns
    -------
    uint16 of the same shape: 0 no data, else 1 to 65535; 65535 is saturated.
    """
    if dn.dtype == np.uint16 and dn.size > SATURATED + 1:  # a table: the same formula once a value
        return reflectance_steps(np.arange(SATURATED + 1, dtype=np.uint16), offset, quantification, nodata)[dn]
    empty = ~np.isfinite(dn) if np.issubdtype(dn.dtype, np.floating) else dn == 0
    if nodata is not None:
        empty |= dn == nodata
    steps = np.clip(np.rint((dn.astype(np.float64) + offset) * (STEPS / quantification)), 1, SATURATED)
    if dn.dtype == np.uint16:
        steps[dn == SATURATED] = SATURATED
    return np.where(empty, 0, steps).astype(np.uint16)


def must_be_numbers(product: str, name: str, dn: np.ndarray, nodata: float) -> None:
    """Refuse floats so small that they are reflectance, where digital numbers of 0.0001 were expected."""
    largest = np.nanmax(dn, initial=0, where=dn != nodata) if np.issubdtype(dn.dtype, np.floating) else 0
    if 0 < largest <= 10:
        raise ProductError(
            f"product {product}, band {name}: floats up to {largest:.3g}, where digital numbers of 0.0001 were "
            "expected: declare scale 1 and offset 0 in the item's raster:bands"
        )


def scene_classes(scl: np.ndarray, nodata: float) -> np.ndarray:
    """Scene classification uint8 of the same shape: 0 where there is none, NO_CLASS for numbers that are no class."""
    scl = np.nan_to_num(np.where(scl == nodata, 0, scl))
    return np.where((scl < 0) | (scl > 11), NO_CLASS, scl).astype(np.uint8)


def nearest_classes(product: str, band: Band, layout: Layout, grid: Grid) -> np.ndarray:
    """Scene classification uint8 (y, x) on ``grid`` by nearest neighbour, 0 where the product has none."""
    return read_strip(product, SCL, band, layout, grid, Resampling.nearest, scene_classes)
