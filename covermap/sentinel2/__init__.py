"""Sentinel-2: from a product as it is delivered to reflectance on the area's grid: the step ``clip_s2``.

reflectance = (DN + offset) / quantification, both as the product gives them; DN 0 is no data before the offset, 65535
is saturated.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.io import DatasetWriter
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from covermap.area_settings import Sentinel2
from covermap.errors import CoverageError, ProductError
from covermap.grid import Grid
from covermap.raster import TILE, new_raster
from covermap.scenes import CLOUD_BANDS, SUPERSEDES, platform_of, tile_of
from covermap.sentinel2 import clouds
from covermap.sentinel2.item import DECLARED, product_of_item, untold
from covermap.sentinel2.offsets import Rule
from covermap.sentinel2.product import AGAIN, SCL, STEPS, Band, Product, must_be_of_level, open_files
from covermap.sentinel2.reading import (
    NO_CLASS,
    Layout,
    cut,
    layout_of,
    must_be_numbers,
    must_cover,
    nearest_classes,
    read_strip,
    reflectance_steps,
    repeats,
    strips_of,
)
from covermap.sentinel2.safe import product_of_safe
from covermap.strips import in_order

log = logging.getLogger(__name__)

METADATA = re.compile(r"MTD_MSI(L1C|L2A)\.xml")
DEFECTIVE, CLASSES = 1, 12  # SCL
FEW_FOREIGN = 0.01  # share of pixels of SCL that are no class, as lossy copies have them
NEAREST = Resampling.nearest
WRITTEN_ROWS = 3 * TILE  # whole tiles of the file, and whole cells of the cloud model
MANY_BELOW_ZERO = 0.05  # share of valid pixels: more is a sign of an offset that was applied before

Read = Callable[[Grid], np.ndarray]


@dataclass(frozen=True)
class Source:
    """What becomes one layer of the file: how a strip of it is read, and where strips end."""

    name: str
    read: Read
    strips: list[slice]


def clip_s2(product: Path, clipped: Path, item: dict[str, Any], grid: Grid, settings: Sentinel2, threads: int) -> None:
    """Reflectance and scene classification of one scene, on its window of the area's grid.

    Writes uint16 (band, y, x): ``settings.bands`` in order, 0.0001 of reflectance a step, offset applied, valid pixels
    1 to 65535 (saturated), 0 where the product has no data; then SCL, which is 0 wherever a band has no data. Bands of
    the grid's zone are copied pixel by pixel, each 20 or 60 m pixel repeated (or interpolated, where
    ``settings.resampling`` says so); scenes of another zone or lattice are warped once, by ``settings.warp``. SCL is
    taken by nearest neighbour only. Level-1C has the product's cloud mask as classes: 9 opaque cloud, 10 cirrus, 11
    snow, 8 what ``cloud_model`` alone calls cloud, 7 the rest.

    Works on strips of whole blocks, so that each block is decoded once and while others are written. Memory is about
    (2 x threads + 4) x 2 bytes a pixel of a strip, which has 1024 to 1536 rows (4096 where pixels are interpolated),
    one bit a pixel of the window, 1.2 bytes with a cloud model, and GDAL's cache of blocks.

    Parameters
    ----------
    product : zip with one SAFE folder or with ``item.json`` and rasters; or an unzipped SAFE folder.
    clipped : GeoTIFF to write; its tags tell scene, offset and its source, quantification, baseline, the older products
        of the acquisition, and the pixels of each class (``scl_counts``, 0 to 11).
    item : STAC item of the scene.
    grid : the area's grid.

    Raises
    ------
    ProductError
        The product is broken, is of another level, lacks a band, has metadata of another product, or tells no offset or
        two; names product, file, band.
    CoverageError
        The scene lies outside the grid.
    SettingError
        The cloud model is not installed.
    """
    scene = open_product(product, settings.level, settings.offsets)
    wanted = (*settings.bands, *(band for band in _model_bands(settings) if band not in settings.bands))
    bands = {name: _wanted(scene, name) for name in wanted}
    layouts = {name: layout_of(scene.name, name, band) for name, band in bands.items()}
    first = wanted[0]
    for name, layout in layouts.items():
        must_cover(scene.name, name, layout, first, layouts[first])
    window = _window(scene.name, layouts[first], grid)
    classes = _class_source(scene, layouts[first], window, settings)
    sources = [_band_source(scene.name, name, bands[name], layouts[name], window, settings) for name in wanted]
    about = _about(scene, item, [bands[name] for name in settings.bands])
    names = (*settings.bands, SCL)
    with new_raster(
        clipped, window, count=len(names), dtype="uint16", nodata=0, descriptions=names, tags=about, interleave="band"
    ) as raster:
        found = _write(raster, [*sources, classes], window, settings, threads, scene.name)
        raster.update_tags(**found)
    log.info("%s: %d x %d px, offset %s (%s)", scene.name, *window.shape, about["offset"], about["offset_from"])


def open_product(product: Path, level: str = "L2A", offsets: Rule = "agreed") -> Product:
    """What a product holds, from its metadata alone; see ``clip_s2`` for the kinds.

    Parameters
    ----------
    level : L2A or L1C, which the product must be.
    offsets : which offset counts where a declared one contradicts the baseline.

    Raises
    ------
    ProductError
        The file is missing, broken or unsafe, of another level, holds two products, or neither a SAFE nor an item with
        rasters.
    """
    files = open_files(product)
    if "item.json" in files.names:
        return product_of_item(files, level, offsets)
    found = sorted(name for name in files.names if METADATA.fullmatch(PurePosixPath(name).name))
    if not found:
        raise ProductError(
            f"product {product} has neither MTD_MSI{level}.xml nor item.json: expected a Level-{level[1:]} product, "
            f"{AGAIN}"
        )
    if len(found) > 1:
        raise ProductError(f"product {product} holds {' and '.join(found)}: expected one product, {AGAIN}")
    must_be_of_level(str(product), PurePosixPath(found[0]).stem.removeprefix("MTD_MSI"), level)
    return product_of_safe(files, found[0], level, offsets)


def _model_bands(settings: Sentinel2) -> tuple[str, ...]:
    return CLOUD_BANDS if settings.cloud_model != "none" else ()


def _wanted(scene: Product, name: str) -> Band:
    if name in scene.absent:
        raise ProductError(
            f"product {scene.name} has no band {name}: {scene.absent[name]}, which its metadata list, is absent: "
            f"{AGAIN}"
        )
    if name not in scene.bands:
        raise ProductError(
            f"product {scene.name} has no band {name}, it has {', '.join(sorted(scene.bands)) or 'none'}: {AGAIN}"
        )
    if not scene.bands[name].offset_from:
        raise untold(scene, name)
    return scene.bands[name]


def _window(product: str, layout: Layout, grid: Grid) -> Grid:
    """Window of ``grid`` that the scene covers."""
    bounds = layout.bounds
    if layout.crs != (target := CRS.from_string(grid.crs)):
        bounds = transform_bounds(layout.crs, target, *bounds, densify_pts=21)
    if not all(map(math.isfinite, bounds)) or (window := grid.cropped(bounds)) is None:
        raise CoverageError(f"product {product} lies outside the area: take it off the list of scenes")
    return window


def _about(scene: Product, item: dict[str, Any], bands: list[Band]) -> dict[str, str]:
    """Tags that are known before a pixel is read."""
    properties = item["properties"]
    tags = {
        "scene": item["id"],
        "datetime": properties.get("datetime") or properties.get("start_datetime"),
        "platform": platform_of(item),
        "mgrs_tile": tile_of(item),
        "level": scene.level,
        "processing_baseline": scene.baseline,
        "supersedes": ",".join(properties.get(SUPERSEDES, ())),
        "offset": _joined(f"{round(band.offset, 6):g}" for band in bands),
        "offset_from": _joined(band.offset_from for band in bands),
        "quantification": _joined(f"{round(band.quantification, 6):g}" for band in bands),
    }
    return {key: value for key, value in tags.items() if value}


def _joined(texts: Iterable[str]) -> str:
    """One text where all are the same, else all of them."""
    every = list(texts)
    return every[0] if len(set(every)) == 1 else ",".join(every)


def _band_source(product: str, name: str, band: Band, layout: Layout, window: Grid, settings: Sentinel2) -> Source:
    """Reflectance of a band as a layer of the file."""
    resampling = Resampling[settings.resampling if repeats(layout, window) else settings.warp]

    def convert(dn: np.ndarray, nodata: float) -> np.ndarray:
        if band.quantification == STEPS and band.offset_from != DECLARED:
            must_be_numbers(product, name, dn, nodata)
        return reflectance_steps(dn, band.offset, band.quantification, nodata)

    def read(grid: Grid) -> np.ndarray:
        return read_strip(product, name, band, layout, grid, resampling, convert)

    return Source(name, read, strips_of(layout, window, resampling))


def _class_source(scene: Product, first: Layout, window: Grid, settings: Sentinel2) -> Source:
    """Scene classification, or a cloud mask in its codes, as a layer of the file."""
    if SCL in scene.bands:
        band = scene.bands[SCL]
        layout = layout_of(scene.name, SCL, band)
        must_cover(scene.name, SCL, layout, "the bands", first)
        return Source(SCL, partial(nearest_classes, scene.name, band, layout), strips_of(layout, window, NEAREST))
    if isinstance(scene.clouds, str):
        band = clouds.mask_band(scene.clouds, first)
        layout = layout_of(scene.name, clouds.MASK, band)
        must_cover(scene.name, clouds.MASK, layout, "the bands", first)
        read = partial(clouds.classes_of_layers, scene.name, band, layout)
        return Source(SCL, read, strips_of(layout, window, NEAREST))
    if scene.clouds is None and settings.scl == "required":
        missing = "scene classification (SCL)" if scene.level != "L1C" else "cloud mask (MSK_CLASSI or MSK_CLOUDS)"
        if SCL in scene.absent:
            missing += f": {scene.absent[SCL]}, which its metadata list, is absent"
        raise ProductError(
            f"product {scene.name} has no {missing}, so clouds cannot be masked: set sentinel2.scl to 'optional' if "
            "all of it counts as clear"
        )
    polygons = clouds.read_polygons(scene.clouds, scene.name, first.crs.to_string(), window.crs) if scene.clouds else []
    return Source(SCL, partial(clouds.classes_of_polygons, polygons), cut(0, window.height, WRITTEN_ROWS))


def _write(
    raster: DatasetWriter, sources: list[Source], window: Grid, settings: Sentinel2, threads: int, product: str
) -> dict[str, str]:
    """Write all layers, the classes last; what is found out on the way, as tags."""
    observed = np.full((window.height, -(-window.width // 8)), 0xFF, np.uint8)  # a bit a pixel: every band has data
    cells: dict[str, list[np.ndarray]] = {name: [] for name in _model_bands(settings)}
    lowest = valid = 0
    layers = groupby(_strips(sources, window, threads), key=itemgetter(0))
    for name, strips in islice(layers, len(sources) - 1):
        for row, steps in _recut(strips):
            if name in cells:
                cells[name].append(clouds.cell_means(steps))
            if name in settings.bands:
                _write_rows(raster, steps, settings.bands.index(name) + 1, row)
                seen = steps != 0
                observed[row : row + len(steps)] &= np.packbits(seen, axis=1)
                lowest, valid = lowest + int(np.count_nonzero(steps == 1)), valid + int(np.count_nonzero(seen))
    cloudy = _cloudy(cells, settings, threads)
    _, strips = next(layers)
    counts = _write_classes(raster, _recut(strips), observed, cloudy, product)
    return {"scl_counts": ",".join(map(str, counts))} | _below_zero(lowest, valid, product)


def _strips(sources: list[Source], window: Grid, threads: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and pixels of every strip of every layer in order, read by threads, a few ahead."""

    def read(task: tuple[Source, slice]) -> tuple[str, np.ndarray]:
        source, rows = task
        return source.name, source.read(window.window(rows.start, 0, rows.stop - rows.start, window.width))

    return in_order(read, [(source, rows) for source in sources for rows in source.strips], threads, ahead=2)


def _recut(strips: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
    """First row and pixels of strips that hold whole tiles of the file, so that each tile is written once."""
    row, left = 0, None
    for _, strip in strips:
        left = strip if left is None else np.concatenate([left, strip])
        whole = len(left) // WRITTEN_ROWS * WRITTEN_ROWS
        if whole:
            yield row, left[:whole]
            row, left = row + whole, left[whole:]
    if left is not None and len(left):
        yield row, left


def _write_rows(raster: DatasetWriter, pixels: np.ndarray, index: int, row: int) -> None:
    raster.write(pixels, index, window=Window(0, row, pixels.shape[1], len(pixels)))


def _write_classes(
    raster: DatasetWriter,
    strips: Iterable[tuple[int, np.ndarray]],
    observed: np.ndarray,
    cloudy: np.ndarray | None,
    product: str,
) -> np.ndarray:
    """Write the classes, 0 where a band has no data; pixels of each class.

    Lossy copies exist: a few values that are no class count as defective; more than 1 % of them are an error.
    """
    counts, foreign = np.zeros(CLASSES, int), 0
    for row, found in strips:
        seen = np.unpackbits(observed[row : row + len(found)], axis=1, count=found.shape[1])
        foreign += int((found == NO_CLASS).sum())
        classes = np.where(found == NO_CLASS, DEFECTIVE, found) * seen.astype(np.uint16)
        if cloudy is not None:
            classes = clouds.with_second_opinion(classes, cloudy, row)
        _write_rows(raster, classes.astype(np.uint16), raster.count, row)
        counts += np.bincount(classes.ravel(), minlength=CLASSES)
    if (share := foreign / (raster.height * raster.width)) > FEW_FOREIGN:
        raise ProductError(f"product {product}, band SCL: {share:.0%} of the pixels are no class of 0..11: {AGAIN}")
    if foreign:
        log.warning("%s: %d pixels of SCL are no class, taken as defective", product, foreign)
    return counts


def _cloudy(cells: dict[str, list[np.ndarray]], settings: Sentinel2, threads: int) -> np.ndarray | None:
    """What the cloud model calls cloud, bool by cell; None without a model."""
    if not cells:
        return None
    means = np.stack([np.concatenate(cells[name]) for name in CLOUD_BANDS])
    return clouds.cloud_probability(means, threads) >= settings.cloud_probability


def _below_zero(lowest: int, valid: int, product: str) -> dict[str, str]:
    """The tag ``below_zero`` where many valid pixels are at the lowest step, which is where zero and less end up."""
    share = lowest / max(valid, 1)
    if share <= MANY_BELOW_ZERO:
        return {}
    log.warning(
        "%s: %.0f %% of the valid pixels are zero or less with the offset: was it applied to them before?",
        product,
        100 * share,
    )
    return {"below_zero": f"{share:.4f}"}
