"""Ground truth onto the grid: any raster or vector map through a legend."""

from __future__ import annotations

import logging
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from pyproj import CRS
from pyproj.exceptions import CRSError, ProjError
from rasterio.errors import RasterioError
from rasterio.windows import Window

from covermap.area_settings import Mirrors
from covermap.burn import burn
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.grid import Grid
from covermap.label_settings import POLYGONS, Polygons
from covermap.legend import EXCLUDED, NO_LABEL
from covermap.mapbiomas import addresses
from covermap.nearest import gather, nearest_pixels
from covermap.raster import write_raster
from covermap.remote import copy_area
from covermap.vectors import bounds_in, extents, fullest_layer, read_polygons, unpacked, urban_atlas

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from shapely.geometry.base import BaseGeometry

log = logging.getLogger(__name__)

RIM_M = 1_000  # downloaded beyond an area
ROWS = 512  # of a block that are taken from a raster at once


def download_labels(labels: Path, grid: Grid, collection: str, year: int, mirrors: Mirrors) -> None:
    """The part of a map on a server that an area needs, pixel for pixel.

    Parameters
    ----------
    labels
        Output, GeoTIFF uint8 on the map's own lattice, 0 = no data, to 1 km beyond the area.
    grid
        The area's.
    collection, year
        Of MapBiomas, or the address of another map with ``{year}`` in it.
    mirrors
        Where MapBiomas is.

    Raises
    ------
    DownloadError
        The map cannot be read.
    ProductError
        It is no map of uint8 codes.
    CoverageError
        It has no code in the area.
    """
    urls = addresses(collection, year, mirrors.mapbiomas)
    tags = {"source": urls[0], "collection": collection, "year": year}
    empty = f"{urls[0]} has no code in the area: check the area, or take another map"
    copy_area(urls, labels, grid, rim_m=RIM_M, tags=tags, empty=empty)


def rasterize_labels(
    labels: Path,
    rasterized: Path,
    block: Grid,
    codes: dict[str, int],
    source: str,
    attribute: str | None,
    polygons: Polygons = POLYGONS,
) -> None:
    """Write the labels of a block: uint8 bands ``class`` and ``weight``.

    Parameters
    ----------
    labels
        Map of the ground in any CRS, read as LABEL_SOURCES[source] does.
    rasterized
        Output. Class: ids of the legend, 0 no label, 255 excluded. Weight: 100 % where there is a class, else 0.
    codes
        Class id of every code of the source.
    attribute
        Vector sources: the attribute that holds the code. Of Urban Atlas None finds it, where there is one.
    polygons
        Vector sources: how polygons become pixels.

    Raises
    ------
    SettingError
        A code that the legend lacks, or no such attribute, layer or filter.
    ProductError
        The file is broken, has no CRS, or holds no codes.
    """
    classes = LABEL_SOURCES[source](labels, block, codes, attribute, polygons)
    weight = np.where((classes != NO_LABEL) & (classes != EXCLUDED), 100, 0).astype(np.uint8)
    log.info("%s: %.1f %% of the block has a label", labels, (weight > 0).mean() * 100)
    both = np.stack([classes, weight])
    write_raster(rasterized, both, block, nodata=None, descriptions=("class", "weight"), tags={"source": labels})


def from_raster(
    labels: Path,
    block: Grid,
    codes: dict[str, int],
    attribute: str | None = None,
    polygons: Polygons = POLYGONS,
) -> np.ndarray:
    """Class ids uint8 (y, x) of a raster of codes: the code at the centre of each pixel of ``block``.

    Codes become class ids before anything is moved, so that no resampling ever meets a code or a nodata value.
    """
    with _open(labels) as raster:
        if raster.count != 1:
            raise ProductError(f"labels {labels} have {raster.count} bands: expected one band of codes, so extract it")
        if raster.transform.b or raster.transform.d or raster.transform.e > 0:
            raise ProductError(f"labels {labels} are rotated or upside down: warp them to a north-up raster")
        strips = [
            block.window(row, 0, min(ROWS, block.height - row), block.width) for row in range(0, block.height, ROWS)
        ]
        classes = np.concatenate([_strip(raster, strip, codes) for strip in strips])
        if not classes.any():
            log.info("%s does not reach this block, or has no label in it", labels)
        return classes


def _strip(raster: rasterio.DatasetReader, strip: Grid, codes: dict[str, int]) -> np.ndarray:
    """Class ids uint8 (y, x) of a part of a block."""
    try:
        crs = CRS.from_wkt(raster.crs.to_wkt()).to_2d()  # else heights would ask for a model of them
        rows, columns = nearest_pixels(strip, crs, raster.transform, raster.shape)
    except (CRSError, ProjError) as error:
        raise ProductError(
            f"labels {raster.name} cannot be brought to {strip.crs} ({error}): warp them to a CRS that has an EPSG code"
        ) from None
    return gather(lambda window: _read_classes(raster, window, codes), rows, columns, raster.shape)


def _read_classes(raster: rasterio.DatasetReader, window: Window, codes: dict[str, int]) -> np.ndarray:
    """Class ids uint8 (y, x) of the codes in a window."""
    try:
        values, seen = raster.read(1, window=window), raster.read_masks(1, window=window) > 0
    except RasterioError as error:
        raise ProductError(f"labels {raster.name} cannot be read ({error}): bring the whole file again") from None
    if np.issubdtype(values.dtype, np.floating):
        seen &= np.isfinite(values)
    classes = np.full(values.shape, NO_LABEL, np.uint8)
    classes[seen] = _class_ids(Path(raster.name), values[seen], codes)
    return classes


def _open(labels: Path) -> rasterio.DatasetReader:
    try:
        raster = rasterio.open(labels)
    except RasterioError as error:
        raise ProductError(f"labels {labels} cannot be read as a raster ({error}): check path and source") from None
    if raster.crs is None:
        raster.close()
        raise ProductError(f"labels {labels} have no CRS: assign the right one, e.g. with gdal_edit.py -a_srs")
    return raster


def _class_ids(labels: Path, values: np.ndarray, codes: dict[str, int]) -> np.ndarray:
    """Class id of every value, through its code as text."""
    import pandas as pd

    place, unique = pd.factorize(values)
    return np.array([_class_id(labels, value, codes) for value in unique], np.uint8)[place]


def _class_id(labels: Path, value: Any, codes: dict[str, int]) -> int:
    """Class id of a code of the legend; else of the first one with ``*`` or ``?`` in it that fits."""
    code = _code(value)
    if code in codes:
        return codes[code]
    patterns = [pattern for pattern in codes if fnmatchcase(code, pattern)]
    if not patterns:
        raise SettingError(
            f"labels {labels} hold the code {code!r}, which their legend lacks: add a row with it, with an empty class "
            "where it means no label"
        )
    return codes[patterns[0]]


def _code(value: Any) -> str:
    """A code as the legend writes it: whole numbers without a point."""
    return f"{value:.0f}" if isinstance(value, float | np.floating) and value.is_integer() else str(value).strip()


def from_vector(
    labels: Path, block: Grid, codes: dict[str, int], attribute: str | None, polygons: Polygons = POLYGONS
) -> np.ndarray:
    """Class ids uint8 (y, x) of the polygons of a vector layer: that of the polygon which holds the pixel's centre.

    ASSUME: where polygons overlap, the later in the file wins, unless ``polygons.priority`` says otherwise.
    """
    with unpacked(labels) as files:
        layer = fullest_layer(labels, files, str(attribute), polygons.layer)
        frame = read_polygons(labels, [layer], block.crs, block.padded(1).bounds, polygons)
    return _burnt(labels, frame, block, codes, polygons)


def from_urban_atlas(
    labels: Path, block: Grid, codes: dict[str, int], attribute: str | None, polygons: Polygons = POLYGONS
) -> np.ndarray:
    """Class ids uint8 (y, x) of all cities of Urban Atlas in a file, as :func:`from_vector` gives them."""
    with unpacked(labels) as files:
        layers = urban_atlas(labels, files, attribute)
        frame = read_polygons(labels, layers, block.crs, block.padded(1).bounds, polygons)
    return _burnt(labels, frame, block, codes, polygons)


def _burnt(labels: Path, frame: GeoDataFrame, block: Grid, codes: dict[str, int], polygons: Polygons) -> np.ndarray:
    """Class ids of the pixels of polygons; none means no label.

    ASSUME: by the legend's order, what has no label loses against all classes, and so does what is excluded.
    """
    if frame.empty:
        log.info("%s has no polygon in this block: no labels", labels)
        return np.zeros(block.shape, np.uint8)
    ids, shapes = _class_ids(labels, frame["code"].to_numpy(), codes), frame.geometry.to_numpy()
    if polygons.priority == "legend":
        order = np.argsort(-np.where(ids == NO_LABEL, EXCLUDED + 1, ids.astype(int)), kind="stable")
        ids, shapes = ids[order], shapes[order]
    classes, twice = burn(shapes, ids, block, polygons.all_touched)
    if twice:
        log.info("%s: %d pixels of the block lie in polygons of several classes", labels, twice)
    return classes


def check_overlap(labels: Path, area: BaseGeometry) -> None:
    """Refuse labels whose bounds do not meet ``area`` (lon/lat): known before hours of work.

    Raises
    ------
    CoverageError
        The labels lie elsewhere.
    ProductError
        The file is missing, cannot be read or has no CRS.
    """
    from shapely import union_all
    from shapely.affinity import translate

    if not labels.exists():
        raise ProductError(f"labels {labels} do not exist: check the path")
    extent = union_all(_extents(labels))
    if not any(translate(extent, turn).intersects(area) for turn in (-360, 0, 360)):
        raise CoverageError(
            f"labels {labels} cover {in_degrees(extent)}, but the area is {in_degrees(area)}: bring labels of the area "
            "or check its coordinates"
        )


def in_degrees(area: BaseGeometry) -> str:
    """Where an area in lon/lat lies, for a message."""
    west, south, east, north = area.bounds
    return f"{west:.4f} to {east:.4f} E, {south:.4f} to {north:.4f} N"


def _extents(labels: Path) -> list[BaseGeometry]:
    """Boxes in lon/lat of a raster, or of the first layer with features of each vector file.

    One that crosses the antimeridian goes on beyond 180 degrees.
    """
    from shapely.geometry import box

    try:
        with rasterio.open(labels) as raster:
            found = [(raster.crs, raster.bounds)]
    except RasterioError:
        found = extents(labels)
    if any(crs is None for crs, _ in found):
        raise ProductError(f"labels {labels} have no CRS: assign the right one")
    try:
        degrees = [bounds_in("EPSG:4326", crs, bounds) for crs, bounds in found]
    except ProjError as error:
        raise ProductError(
            f"labels {labels} cannot be brought to degrees ({error}): warp them to a CRS that has an EPSG code"
        ) from None
    return [box(west, south, east + (360 if west > east else 0), north) for west, south, east, north in degrees]


# Name -> classes of a block. A new source is one function and one line here.
LABEL_SOURCES: dict[str, Callable[[Path, Grid, dict[str, int], str | None, Polygons], np.ndarray]] = {
    "mapbiomas": from_raster,
    "raster": from_raster,
    "vector": from_vector,
    "urban_atlas": from_urban_atlas,
}
