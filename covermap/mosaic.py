"""The map: blocks put together into one single-band COG, with its colours; confidence and further layers beside it.

Whatever the blocks are, the map is made in regions of its own, so that memory is bounded and blocks never show.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.errors import RasterioError
from rasterio.features import geometry_mask
from rasterio.windows import Window
from shapely import STRtree, box, from_wkt, prepare
from shapely.geometry.base import BaseGeometry

from covermap import __version__
from covermap.area_settings import Period
from covermap.attribution import TAG, dated
from covermap.errors import CoverageError, ProductError
from covermap.files import scratch, whole
from covermap.grid import Grid, project
from covermap.legend import NO_LABEL, Legend
from covermap.model_settings import Layer, Tidy, halo_pixels
from covermap.predict import CONFIDENCE_NODATA
from covermap.raster import TILE, read_pixels
from covermap.room import room_for
from covermap.scenes import read_listing
from covermap.strips import strips_of
from covermap.styles import class_style, colour_table, confidence_style_of, write_attributes, write_qml, write_table

log = logging.getLogger(__name__)

REGION_PIXELS = 4 * TILE  # side of what is read, tidied and written at once, unless a halo is wide beside it
PROBABILITY = "probability"  # how the descriptions of bands begin that hold those of the classes
PROBABILITY_STEP = 0.004
COPIES = 2.4  # a band's draft beside its finished file with overviews, as multiples of what the predictions take


class Look(NamedTuple):
    """How a layer of the map is stored."""

    layer: str  # name of the band of the predictions, or of several: class, confidence, margin, entropy, probabilities
    nodata: int
    resampling: str  # of overviews
    tags: Mapping[str, str]
    names: Sequence[str]  # of the bands
    scale: float = 1
    unit: str = ""
    band_tags: Mapping[str, str] = {}
    colours: Mapping[int, tuple[int, int, int, int]] | None = None


class Sources(NamedTuple):
    """Predictions of blocks, and where they lie."""

    paths: Sequence[Path]
    blocks: Sequence[Grid]
    tree: STRtree


def mosaic(
    predictions: list[Path],
    map: Path,
    confidence: Path,
    style: Path,
    confidence_style: Path,
    attributes: Path,
    table: Path,
    listing: Path,
    grid: Grid,
    blocks: list[Grid],
    area: str,
    legend: Legend,
    period: Period,
    model: str,
    attribution: str,
    tidy: Tidy | None = None,
    provenance: dict[str, str] | None = None,
) -> None:
    """Class map and confidence of an area, as Cloud-Optimised GeoTIFFs, and the legend beside the map.

    Parameters
    ----------
    predictions : one raster a block.
    map, confidence : what is written. The map is one band, since a second one would be taken for transparency.
    style, confidence_style : QGIS styles, which it looks for beside each raster as ``.qml``.
    attributes : the map's attribute table, which GDAL looks for as ``{map}.aux.xml``.
    table : the same for ArcGIS, which looks for ``{map}.vat.dbf``.
    listing : scenes of the area, for the years of the attribution.
    grid : of the map.
    blocks : grid of each prediction.
    area : outline, WKT in lon/lat; there is no data beyond it.
    legend : classes, names and colours.
    period, model : go into the tags.
    attribution : whose data the map contains, for the tag of a TIFF that holds copyrights.
    tidy : what is done to the classes, across the borders of blocks; confidence stays that of the network.
    provenance : further tags.

    Raises
    ------
    CoverageError
        Not one pixel was observed.
    ProductError
        The list of scenes, or a prediction, cannot be read.
    RoomError
        The disk is full.
    """
    tags = common_tags(period, model, attribution, listing, provenance)
    sources, outline = sources_of(predictions, blocks), project(from_wkt(area), "EPSG:4326", grid.crs)
    looks = class_look(legend, tags), layer_look("confidence", tags)
    needed = sum(bytes_of(sources, grid, look.layer) for look in looks)
    with room_for(map, needed), whole(map) as map_part, whole(confidence) as confidence_part:
        counts = write_layer(map, map_part, sources, grid, outline, looks[0], tidy)
        write_layer(confidence, confidence_part, sources, grid, outline, looks[1])
        write_attributes(attributes, legend, counts, grid.pixel_m)
        write_table(table, legend, counts, grid.pixel_m)
        write_qml(style, class_style(legend))
        write_qml(confidence_style, confidence_style_of())


def mosaic_layer(
    predictions: list[Path],
    layer_file: Path,
    listing: Path,
    grid: Grid,
    blocks: list[Grid],
    area: str,
    legend: Legend,
    period: Period,
    model: str,
    attribution: str,
    layer: Layer,
    provenance: dict[str, str] | None = None,
) -> None:
    """A further layer of an area's map, as a Cloud-Optimised GeoTIFF of its own.

    Parameters
    ----------
    layer_file : what is written: uint8, per cent or, of probabilities, steps of 0.004 in a band for each class.
    layer : margin, entropy or probabilities.
    predictions, listing, grid, blocks, area, legend, period, model, attribution, provenance : as for the map.

    Raises
    ------
    CoverageError, ProductError, RoomError
        As for the map; or the predictions do not have the layer.
    """
    tags = common_tags(period, model, attribution, listing, provenance)
    sources, outline = sources_of(predictions, blocks), project(from_wkt(area), "EPSG:4326", grid.crs)
    look = layer_look(layer, tags, legend)
    with room_for(layer_file, bytes_of(sources, grid, layer)), whole(layer_file) as part:
        write_layer(layer_file, part, sources, grid, outline, look)


def common_tags(
    period: Period, model: str, attribution: str, listing: Path, provenance: Mapping[str, str] | None
) -> dict[str, str]:
    """Tags of every layer."""
    tags = {"period": f"{period.start}/{period.end}", "model": model, "covermap": __version__, **(provenance or {})}
    return {**tags, TAG: dated(attribution, read_listing(listing).values())}


def class_look(legend: Legend, tags: Mapping[str, str]) -> Look:
    """How classes are stored: with the colours, and their names in the tags of file and band."""
    names = {entry.id: entry.name for entry in legend.classes}
    told = {**tags, "classes": json.dumps(names, ensure_ascii=False)}
    band_tags = {f"class_{number}": name for number, name in names.items()}
    return Look("class", NO_LABEL, "mode", told, ["class"], band_tags=band_tags, colours=colour_table(legend))


def layer_look(layer: str, tags: Mapping[str, str], legend: Legend | None = None) -> Look:
    """How confidence or a further layer is stored; of probabilities the legend names the bands."""
    if layer == "probabilities" and legend:
        names = [entry.name for entry in legend.classes]
        return Look(layer, CONFIDENCE_NODATA, "average", tags, names, PROBABILITY_STEP)
    return Look(layer, CONFIDENCE_NODATA, "average", {**tags, "unit": "per cent"}, [layer], unit="%")


def sources_of(predictions: Sequence[Path], blocks: Sequence[Grid]) -> Sources:
    """Predictions, found by where they lie."""
    return Sources(predictions, blocks, STRtree([block.polygon for block in blocks]))


def bytes_of(sources: Sources, grid: Grid, layer: str) -> float:
    """About as much as a layer's file and its draft take on the disk, by what the predictions take of it."""
    total = 0.0
    for path, block in zip(sources.paths, sources.blocks, strict=True):
        part = block.cropped(grid.bounds)
        if part is not None and path.exists():
            with opened(path) as raster:
                share = len(bands_of(raster, path, layer)) / raster.count
            total += path.stat().st_size * share * part.width * part.height / (block.width * block.height)
    return COPIES * total


def opened(path: Path) -> rasterio.DatasetReader:
    """An open prediction.

    Raises
    ------
    ProductError
        It is missing or broken.
    """
    try:
        return rasterio.open(path)
    except RasterioError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ProductError:
    return ProductError(f"{path} cannot be read as a raster ({error}): remove it and run again")


def bands_of(raster: rasterio.DatasetReader, path: Path, layer: str) -> list[int]:
    """Numbers of the bands of a prediction that hold a layer.

    Raises
    ------
    ProductError
        There is none.
    """
    names = [description or "" for description in raster.descriptions]
    if layer == "probabilities":
        found = [number for number, name in enumerate(names, 1) if name.startswith(PROBABILITY)]
    else:
        found = [number for number, name in enumerate(names, 1) if name == layer]
    if not found:
        raise ProductError(
            f"{path} has no layer {layer}, only {', '.join(names)}: add it to prediction.layers of the model"
        )
    return found


def read_region(sources: Sources, region: Grid, look: Look) -> np.ndarray:
    """Pixels (band, y, x) of any part of the lattice, put together from the predictions that it meets."""
    out = np.full((len(look.names), *region.shape), look.nodata, np.uint8)
    for number in sources.tree.query(region.polygon):
        path, part = sources.paths[number], sources.blocks[number].cropped(region.bounds)
        if part is None:
            continue
        row, column = part.offset_in(region)
        with opened(path) as raster:
            bands = bands_of(raster, path, look.layer)
            if len(bands) != len(look.names):
                raise ProductError(
                    f"{path} has {len(bands)} bands of {look.layer}, the legend has {len(look.names)} classes: remove "
                    "it and run again"
                )
            try:
                values = read_pixels(raster, part, fill=look.nodata, indexes=bands)
            except RasterioError as error:
                raise _unreadable(path, error) from error
        out[:, row : row + part.height, column : column + part.width] = values
    return out


def write_layer(
    output: Path,
    part: Path,
    sources: Sources,
    grid: Grid,
    outline: BaseGeometry,
    look: Look,
    tidy: Tidy | None = None,
) -> np.ndarray:
    """Write a layer as a COG under the name ``part``; return the pixels of each value of its first band, (256,)."""
    with scratch(output) as draft:
        counts = assemble(draft, sources, grid, outline, look, tidy)
        if not counts.sum() - counts[look.nodata]:
            raise CoverageError(f"{output}: no pixel of the area was observed: check the scenes and their clouds")
        write_cog(draft, part, look.resampling)
    must_hold(part, counts)
    log.info("%s: %d of %d pixels mapped", output.name, counts.sum() - counts[look.nodata], grid.width * grid.height)
    return counts


def assemble(
    draft: Path, sources: Sources, grid: Grid, outline: BaseGeometry, look: Look, tidy: Tidy | None
) -> np.ndarray:
    """Write a layer into a tiled GeoTIFF, region by region; return the pixels of each value of its first band."""
    profile = {
        "driver": "GTiff",
        "count": len(look.names),
        "dtype": "uint8",
        "width": grid.width,
        "height": grid.height,
        "crs": grid.crs,
        "transform": grid.transform,
        "nodata": look.nodata,
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "interleave": "band",
        "compress": "ZSTD",
        "zstd_level": 1,
        "sparse_ok": True,
        "bigtiff": "IF_SAFER",
    }
    prepare(outline)
    finish, halo, tidied_tags = tidying(tidy, grid.pixel_m) if tidy else (None, 0, {})
    counts, changed = np.zeros(256, np.int64), 0
    with rasterio.open(draft, "w", **profile) as raster:
        for region in regions_of(grid, max(REGION_PIXELS, -(-4 * halo // TILE) * TILE)):
            row, column = region.offset_in(grid)
            if not outline.intersects(region.polygon):
                counts[look.nodata] += region.width * region.height
                continue
            read = read_region(sources, region.padded(halo), look)
            inner = np.s_[:, halo : halo + region.height, halo : halo + region.width]
            values = read[inner] if finish is None else finish(read[0])[None][inner]
            beyond = beyond_of(outline, region)
            changed += int(np.count_nonzero((values != read[inner]) & ~beyond))
            values = np.where(beyond, np.uint8(look.nodata), values)
            raster.write(values, window=Window(column, row, region.width, region.height))
            counts += np.bincount(values[0].ravel(), minlength=256)
        describe(raster, look, {**tidied_tags, "tidied_pixels": str(changed)} if finish else {})
    if finish:
        log.info("tidied: %d pixels have another class", changed)
    return counts


def regions_of(grid: Grid, side: int) -> Iterator[Grid]:
    """Squares that cover a grid, from north to south."""
    for rows in strips_of(grid.height, side):
        for columns in strips_of(grid.width, side):
            yield grid.window(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)


def beyond_of(outline: BaseGeometry, region: Grid) -> np.ndarray:
    """Where a pixel's centre lies beyond an outline: bool (y, x)."""
    if outline.contains_properly(region.polygon):
        return np.zeros(region.shape, bool)
    near = outline.intersection(box(*region.padded(1).bounds))
    return geometry_mask([near], region.shape, region.transform)


def tidying(tidy: Tidy, pixel_m: float) -> tuple[Callable[[np.ndarray], np.ndarray] | None, int, dict[str, str]]:
    """What tidies classes (y, x), how many pixels around them it must see, and what is told of it."""
    from covermap.postprocess import tidied

    told = {name: str(value) for name, value in tidy.model_dump().items() if value is not None}
    if not told:
        return None, 0, {}
    return lambda classes: tidied(classes, tidy, pixel_m), halo_pixels(tidy, pixel_m), told


def describe(raster: rasterio.io.DatasetWriter, look: Look, more: Mapping[str, str]) -> None:
    """Names, tags, units and colours of a layer's bands."""
    raster.update_tags(**look.tags, **more)
    raster.descriptions = tuple(look.names)
    if look.scale != 1:
        raster.scales = (look.scale,) * raster.count
    if look.unit:
        raster.units = (look.unit,) * raster.count
    if look.band_tags:
        raster.update_tags(1, **look.band_tags)
    if look.colours:
        raster.write_colormap(1, dict(look.colours))


def write_cog(source: Path, output: Path, resampling: str) -> None:
    """Copy a raster as a Cloud-Optimised GeoTIFF with overviews of the given resampling."""
    rasterio.shutil.copy(
        source,
        output,
        driver="COG",
        compress="DEFLATE",
        blocksize=TILE,
        overview_resampling=resampling,
        resampling=resampling,
        bigtiff="IF_SAFER",
    )


def must_hold(part: Path, counts: np.ndarray) -> None:
    """Read a finished file back, overviews and all: of what goes wrong in writing, GDAL does not tell everything.

    Raises
    ------
    OSError
        A tile is missing, or the pixels are not those that were written.
    """
    found = np.zeros(256, np.int64)
    try:
        with rasterio.open(part) as raster:
            levels = len(raster.overviews(1))
            for _, window in raster.block_windows(1):
                found += np.bincount(raster.read(window=window)[0].ravel(), minlength=256)
        for level in range(levels):
            with rasterio.open(part, overview_level=level) as raster:
                for _, window in raster.block_windows(1):
                    raster.read(window=window)
    except RasterioError as error:
        raise OSError(f"read back, it is broken: {error}") from None
    if (found != counts).any():
        raise OSError("read back, it is not what was written")
