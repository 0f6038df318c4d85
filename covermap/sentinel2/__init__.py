"""Sentinel-2: from a product as it is delivered to surface reflectance on the area's grid: the step ``clip_s2``.

reflectance = (DN + offset) / quantification, both as the product gives them; DN 0 is no data before the offset, 65535
is saturated.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.transform import array_bounds, from_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from covermap.errors import CoverageError, ProductError
from covermap.grid import Grid
from covermap.raster import new_raster
from covermap.sentinel2.product import AGAIN, DECLARED, OFFSETS_SINCE, SCL, STEPS, Band, Product, open_product
from covermap.settings import Sentinel2

log = logging.getLogger(__name__)

SATURATED = 65_535
DEFECTIVE, UNCLASSIFIED = 1, 7  # SCL
WARP_TOLERANCE_PIXELS = 0.01
WARP_MEMORY_MB = 256
GDAL_OPTIONS = {
    "GDAL_NUM_THREADS": 1,  # with more, a JP2 that is cut off reads as if it were whole
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
}


def clip_s2(product: Path, clipped: Path, item: dict[str, Any], grid: Grid, settings: Sentinel2, threads: int) -> None:
    """Surface reflectance and scene classification of one scene, on its window of the area's grid.

    Writes uint16 (band, y, x): ``settings.bands`` in order, 0.0001 of reflectance a step, offset applied, valid pixels
    1 to 65535 (saturated), 0 where the product has no data; then SCL, which is 0 wherever a band has no data. Bands of
    the grid's zone are copied pixel by pixel, each 20 or 60 m pixel repeated (or interpolated, where the settings say
    so); scenes of another zone or lattice are warped once. SCL is taken by nearest neighbour only.

    Each thread holds one band of the window at a time: memory is about 12 bytes a pixel and thread.

    Parameters
    ----------
    product : zip with one SAFE folder or with ``item.json`` and rasters; or an unzipped SAFE folder.
    clipped : GeoTIFF to write.
    item : STAC item of the scene.
    grid : the area's grid.

    Raises
    ------
    ProductError
        The product is broken, is not Level-2A, lacks a band, or tells no offset; names product, file and band.
    CoverageError
        The scene lies outside the grid.
    """
    scene = open_product(product)
    bands = [_wanted(scene, name) for name in settings.bands]
    window = _window(scene, settings.bands[0], bands[0], grid)
    if SCL not in scene.bands and settings.scl == "required":
        raise ProductError(
            f"product {scene.name} has no scene classification (SCL), so clouds cannot be masked: set sentinel2.scl to "
            "'optional' if all of it counts as clear"
        )
    tags = {
        "scene": item["id"],
        "datetime": item["properties"].get("datetime") or item["properties"].get("start_datetime"),
        "processing_baseline": scene.baseline,
        "offset": _joined(f"{round(band.offset, 6):g}" for band in bands),
        "offset_from": _joined(band.offset_from for band in bands),
        "quantification": _joined(f"{round(band.quantification, 6):g}" for band in bands),
    }
    names = (*settings.bands, SCL)
    resampling = Resampling[settings.resampling]
    read = partial(read_reflectance, scene.name, grid=window, resampling=resampling)
    with (
        new_raster(
            clipped,
            window,
            count=len(names),
            dtype="uint16",
            nodata=0,
            descriptions=names,
            tags=tags,
            interleave="band",
        ) as raster,
        ThreadPoolExecutor(threads) as pool,
    ):
        observed = np.ones(window.shape, bool)
        for start in range(0, len(bands), threads):  # as many bands as threads are in memory, never all
            part = slice(start, start + threads)
            for index, steps in enumerate(pool.map(read, settings.bands[part], bands[part]), start + 1):
                observed &= steps != 0
                raster.write(steps, index)
        if SCL in scene.bands:
            scl = read_classification(scene.name, scene.bands[SCL], window)
        else:
            scl = np.full(window.shape, UNCLASSIFIED, np.uint8)
        raster.write(np.where(observed, scl, 0).astype(np.uint16), len(names))
    log.info("%s: %d x %d px, offset %s (%s)", scene.name, *window.shape, tags["offset"], tags["offset_from"])


def reflectance_steps(dn: np.ndarray, offset: float, quantification: float, nodata: float | None = None) -> np.ndarray:
    """Surface reflectance in steps of 0.0001 from digital numbers.

    Parameters
    ----------
    dn : any shape and number type; integers: 0 is no data, and 65535 saturated in uint16; floats: NaN and infinity are.
    offset : added to the DN: BOA_ADD_OFFSET, or the offset of ``raster:bands`` over its scale.
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


def read_reflectance(product: str, name: str, band: Band, grid: Grid, resampling: Resampling) -> np.ndarray:
    """Reflectance uint16 (y, x) of one band on ``grid``, in steps of 0.0001; ``product`` is for messages."""
    dn, nodata = _read(product, name, band, grid, resampling)
    if band.quantification == STEPS and band.offset_from != DECLARED and np.issubdtype(dn.dtype, np.floating):
        largest = np.nanmax(dn, initial=0, where=dn != nodata)
        if 0 < largest <= 10:
            raise ProductError(
                f"product {product}, band {name}: floats up to {largest:.3g}, where digital numbers of 0.0001 were "
                "expected: declare scale 1 and offset 0 in the item's raster:bands"
            )
    return reflectance_steps(dn, band.offset, band.quantification, nodata)


def read_classification(product: str, band: Band, grid: Grid) -> np.ndarray:
    """Scene classification uint8 (y, x) on ``grid`` by nearest neighbour, 0 where the product has none.

    Lossy copies exist: a few values that are no class count as defective (1); more than 1 % of them are an error.
    """
    scl, nodata = _read(product, SCL, band, grid, Resampling.nearest)
    scl = np.nan_to_num(np.where(scl == nodata, 0, scl))
    foreign = (scl < 0) | (scl > 11)
    if (share := foreign.mean()) > 0.01:
        raise ProductError(
            f"product {product}, band SCL: {share:.0%} of the pixels, such as {scl[foreign][0]}, are no class of "
            f"0..11: {AGAIN}"
        )
    if share:
        log.warning("%s: %d pixels of SCL are no class, taken as defective", product, foreign.sum())
    return np.where(foreign, DEFECTIVE, scl).astype(np.uint8)


def _wanted(scene: Product, name: str) -> Band:
    if name not in scene.bands:
        raise ProductError(
            f"product {scene.name} has no band {name}, it has {', '.join(sorted(scene.bands)) or 'none'}: {AGAIN}"
        )
    band = scene.bands[name]
    if not band.offset_from:
        raise ProductError(
            f"product {scene.name}, band {name}: baseline {scene.baseline or 'untold'} and no declared offset, which "
            f"products have since {OFFSETS_SINCE}: expected scale and offset in the item's raster:bands, or "
            "earthsearch:boa_offset_applied where the pixels hold it already"
        )
    return band


def _window(scene: Product, name: str, band: Band, grid: Grid) -> Grid:
    """Window of ``grid`` that the scene covers, by its first band."""
    with _opened(scene.name, name, band) as raster:
        crs, transform = _placed(scene.name, name, raster, band)
        bounds = array_bounds(raster.height, raster.width, transform)
        if crs != (target := CRS.from_string(grid.crs)):
            bounds = transform_bounds(crs, target, *bounds, densify_pts=21)
    if not all(map(math.isfinite, bounds)) or (window := grid.cropped(bounds)) is None:
        raise CoverageError(f"product {scene.name} lies outside the area: take it off the list of scenes")
    return window


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


def _read(product: str, name: str, band: Band, grid: Grid, resampling: Resampling) -> tuple[np.ndarray, float]:
    """Numbers (y, x) of a band on ``grid`` as the product keeps them, and the value where it has none."""
    with _opened(product, name, band) as raster:
        crs, transform = _placed(product, name, raster, band)
        nodata = raster.nodata if raster.nodata is not None else band.nodata
        if nodata is None:
            nodata = np.nan if np.issubdtype(raster.dtypes[0], np.floating) else 0
        times = _repeats(crs, transform, grid)
        if times == 1 or (times and resampling == Resampling.nearest):
            return _repeated(raster, band.index, transform, grid, times, nodata), nodata
        with WarpedVRT(
            raster,
            src_crs=crs,
            src_transform=transform,
            src_nodata=nodata,
            crs=CRS.from_string(grid.crs),
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            nodata=nodata,
            resampling=resampling,
            tolerance=WARP_TOLERANCE_PIXELS,
            warp_mem_limit=WARP_MEMORY_MB,
        ) as warped:
            return warped.read(band.index), nodata


def _repeats(crs: CRS, transform: Affine, grid: Grid) -> int:
    """Pixels of ``grid`` along a pixel of a raster whose pixels all end on its lattice; 0 for another lattice."""
    if crs != CRS.from_string(grid.crs) or transform.b or transform.d or transform.a != -transform.e:
        return 0
    times = transform.a / grid.pixel_m
    shifts = (transform.c - grid.left) / grid.pixel_m, (grid.top - transform.f) / grid.pixel_m
    exact = all(abs(number - round(number)) < 1e-6 for number in (times, *shifts))
    return round(times) if exact else 0


def _repeated(
    raster: rasterio.DatasetReader, index: int, transform: Affine, grid: Grid, times: int, fill: float
) -> np.ndarray:
    """Pixels (y, x) of ``grid``, each pixel of the raster ``times`` by ``times``; ``fill`` beyond the raster."""
    row0, column0 = round((transform.f - grid.top) / grid.pixel_m), round((grid.left - transform.c) / grid.pixel_m)
    row1, column1 = row0 + grid.height, column0 + grid.width
    rows = slice(max(row0 // times, 0), min(-(-row1 // times), raster.height))
    columns = slice(max(column0 // times, 0), min(-(-column1 // times), raster.width))
    out = np.full(grid.shape, fill, raster.dtypes[index - 1])
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return out
    pixels = raster.read(index, window=Window.from_slices(rows, columns))
    if times > 1:
        pixels = pixels.repeat(times, 0).repeat(times, 1)
    top, left = rows.start * times - row0, columns.start * times - column0  # where the pixels start in out, or before
    pixels = pixels[max(-top, 0) :, max(-left, 0) :][: grid.height - max(top, 0), : grid.width - max(left, 0)]
    out[max(top, 0) :, max(left, 0) :][: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


def _joined(texts: Iterable[str]) -> str:
    """One text where all are the same, else all of them."""
    every = list(texts)
    return every[0] if len(set(every)) == 1 else ",".join(every)
