"""Ground truth onto the grid: any raster or vector map through a legend."""

from __future__ import annotations

import logging
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.warp import Resampling, reproject, transform_bounds
from rasterio.windows import Window

from covermap.archives import BAD_ZIP, safe_members
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.grid import Grid
from covermap.legend import EXCLUDED, NO_LABEL
from covermap.mapbiomas import addresses
from covermap.raster import write_raster
from covermap.remote import copy_area
from covermap.settings import Mirrors

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from shapely.geometry.base import BaseGeometry

log = logging.getLogger(__name__)

RIM_M = 1_000  # downloaded beyond an area
RIM_PIXELS = 2  # read beyond a block, so that its border pixels have their nearest neighbours
VECTOR = re.compile(r"(.+?\.(?:gpkg|gdb|shp|fgb|geojson))(?:/.*)?", re.IGNORECASE)  # a geodatabase is a folder
CODE_FIELD = re.compile(r"code_?(\d{4})", re.IGNORECASE)  # of Urban Atlas: CODE2006, CODE_2012, code_2021


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
    labels: Path, rasterized: Path, block: Grid, codes: dict[str, int], source: str, attribute: str | None
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

    Raises
    ------
    SettingError
        A code that the legend lacks, or no such attribute.
    ProductError
        The file is broken or has no CRS.
    """
    classes = LABEL_SOURCES[source](labels, block, codes, attribute)
    weight = np.where((classes != NO_LABEL) & (classes != EXCLUDED), 100, 0).astype(np.uint8)
    log.info("%s: %.1f %% of the block has a label", labels, (weight > 0).mean() * 100)
    both = np.stack([classes, weight])
    write_raster(rasterized, both, block, nodata=None, descriptions=("class", "weight"), tags={"source": labels})


def from_raster(labels: Path, block: Grid, codes: dict[str, int], attribute: str | None = None) -> np.ndarray:
    """Class ids uint8 (y, x) of a raster of codes: the code at the centre of each pixel of ``block``.

    Codes become class ids before anything is moved, so that no resampling ever meets a code or a nodata value.
    """
    with _open(labels) as raster:
        if raster.count != 1:
            raise ProductError(f"labels {labels} have {raster.count} bands: expected one band of codes, so extract it")
        window = _window(raster, block)
        if window is None:
            log.info("%s does not reach this block: no labels", labels)
            return np.zeros(block.shape, np.uint8)
        try:
            values, seen = raster.read(1, window=window), raster.read_masks(1, window=window) > 0
        except RasterioError as error:
            raise ProductError(f"labels {labels} cannot be read ({error}): bring the whole file again") from None
        if np.issubdtype(values.dtype, np.floating):
            seen &= np.isfinite(values)
        classes = np.full(values.shape, NO_LABEL, np.uint8)
        classes[seen] = _class_ids(labels, values[seen], codes)
        moved = np.full(block.shape, NO_LABEL, np.uint8)
        reproject(
            classes,
            moved,
            src_transform=raster.window_transform(window),
            src_crs=raster.crs,
            dst_transform=block.transform,
            dst_crs=block.crs,
            resampling=Resampling.nearest,
        )
        return moved


def _open(labels: Path) -> rasterio.DatasetReader:
    try:
        raster = rasterio.open(labels)
    except RasterioError as error:
        raise ProductError(f"labels {labels} cannot be read as a raster ({error}): check path and source") from None
    if raster.crs is None:
        raster.close()
        raise ProductError(f"labels {labels} have no CRS: assign the right one, e.g. with gdal_edit.py -a_srs")
    return raster


def _window(raster: rasterio.DatasetReader, block: Grid) -> Window | None:
    """Pixels of ``raster`` that the block needs."""
    if raster.transform.b or raster.transform.d or raster.transform.e > 0:
        raise ProductError(f"labels {raster.name} are rotated or upside down: warp them to a north-up raster")
    bounds = transform_bounds(block.crs, raster.crs, *block.bounds, densify_pts=41)
    origin, pixel = raster.transform, (raster.transform.a, -raster.transform.e)
    left = max(math.floor((bounds[0] - origin.c) / pixel[0]) - RIM_PIXELS, 0)
    right = min(math.ceil((bounds[2] - origin.c) / pixel[0]) + RIM_PIXELS, raster.width)
    top = max(math.floor((origin.f - bounds[3]) / pixel[1]) - RIM_PIXELS, 0)
    bottom = min(math.ceil((origin.f - bounds[1]) / pixel[1]) + RIM_PIXELS, raster.height)
    return Window(left, top, right - left, bottom - top) if left < right and top < bottom else None


def _class_ids(labels: Path, values: np.ndarray, codes: dict[str, int]) -> np.ndarray:
    """Class id of every value, through its code as text."""
    unique, place = np.unique(values, return_inverse=True)
    return np.array([_class_id(labels, value, codes) for value in unique], np.uint8)[place]


def _class_id(labels: Path, value: Any, codes: dict[str, int]) -> int:
    code = _code(value)
    if code not in codes:
        raise SettingError(
            f"labels {labels} hold the code {code!r}, which their legend lacks: add a row with it, with an empty class "
            "where it means no label"
        )
    return codes[code]


def _code(value: Any) -> str:
    """A code as the legend writes it: whole numbers without a point."""
    return f"{value:.0f}" if isinstance(value, float | np.floating) and value == round(value) else str(value).strip()


def from_vector(labels: Path, block: Grid, codes: dict[str, int], attribute: str | None) -> np.ndarray:
    """Class ids uint8 (y, x) of the polygons of a vector layer: that of the polygon which holds the pixel's centre.

    ASSUME: where polygons overlap, the later in the file wins.
    """
    with unpacked(labels) as files:
        frame = read_polygons(labels, [_layer(labels, files, str(attribute))], block.crs, block.bounds)
    return _burn(labels, frame, block, codes)


def from_urban_atlas(labels: Path, block: Grid, codes: dict[str, int], attribute: str | None) -> np.ndarray:
    """Class ids uint8 (y, x) of all cities of Urban Atlas in a file, as :func:`from_vector` gives them."""
    with unpacked(labels) as files:
        frame = read_polygons(labels, urban_atlas(labels, files, attribute), block.crs, block.bounds)
    return _burn(labels, frame, block, codes)


def _burn(labels: Path, frame: GeoDataFrame, block: Grid, codes: dict[str, int]) -> np.ndarray:
    ids = [_class_id(labels, value, codes) for value in frame["code"]]
    shapes = [(geometry, id) for geometry, id in zip(frame.geometry, ids, strict=True) if not geometry.is_empty]
    if not shapes:
        log.info("%s has no polygon in this block: no labels", labels)
        return np.zeros(block.shape, np.uint8)
    return rasterize(shapes, out_shape=block.shape, transform=block.transform, fill=NO_LABEL, dtype=np.uint8)


class Layer(NamedTuple):
    """A layer of a vector file, and its attribute that holds the code."""

    file: Path
    name: str
    crs: str
    field: str
    features: int


@contextmanager
def unpacked(labels: Path) -> Iterator[list[Path]]:
    """The vector files in a zip, in a folder that is gone when the block ends; any other file is one itself.

    GDAL reads a GeoPackage in a zip without unpacking it, but hundreds of times slower.
    """
    if labels.suffix.lower() != ".zip":
        yield [labels]
        return
    members = safe_members(labels, "bring the whole file again")
    names = sorted({match[1] for member in members if (match := VECTOR.fullmatch(member.filename))})
    if not names:
        raise ProductError(
            f"labels {labels} hold no .gpkg, .gdb, .shp, .fgb or .geojson: unpack zips that are in this zip"
        )
    with TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(labels) as archive:
                archive.extractall(folder, members)
        except BAD_ZIP as error:
            raise ProductError(f"labels {labels} cannot be unpacked ({error}): bring the whole file again") from None
        yield [Path(folder, name) for name in names]


def read_polygons(
    labels: Path, layers: Iterable[Layer], crs: str, bounds: tuple[float, float, float, float]
) -> GeoDataFrame:
    """Valid polygons of layers of ``labels`` near ``bounds``, in ``crs`` and the order of the files; and their code."""
    import geopandas
    import pandas as pd

    frames = [_read_layer(labels, layer, crs, bounds) for layer in layers]
    return geopandas.GeoDataFrame(pd.concat(frames, ignore_index=True), geometry="geometry", crs=crs)


def _read_layer(labels: Path, layer: Layer, crs: str, bounds: tuple[float, float, float, float]) -> GeoDataFrame:
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError
    from shapely import make_valid

    try:
        near = transform_bounds(crs, layer.crs, *bounds, densify_pts=41)
        frame = pyogrio.read_dataframe(layer.file, layer=layer.name, columns=[layer.field], bbox=near)
    except (DataSourceError, DataLayerError) as error:
        raise ProductError(f"labels {labels} cannot be read as vectors ({error}): check path and source") from None
    frame = frame.rename(columns={layer.field: "code"})
    usable = frame.geometry.notna() & frame["code"].notna()
    if not usable.all():
        log.warning("%s: %d features without a geometry or a code left out", labels, (~usable).sum())
    frame = frame[usable]
    broken = ~frame.geometry.is_valid
    if broken.any():
        log.warning("%s: %d invalid geometries repaired", labels, broken.sum())
        frame.loc[broken, "geometry"] = make_valid(frame.geometry[broken].values)
    frame = frame.to_crs(crs)
    return frame.set_geometry(_polygonal(labels, frame))


def _infos(labels: Path, files: Iterable[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """What is known of all layers with geometries."""
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        return [
            (file, pyogrio.read_info(file, layer=name))
            for file in files
            for name, geometry_type in pyogrio.list_layers(file)
            if geometry_type is not None
        ]
    except (DataSourceError, DataLayerError) as error:
        raise ProductError(f"labels {labels} cannot be read as vectors ({error}): check path and source") from None


def _as_layer(labels: Path, file: Path, info: dict[str, Any], field: str) -> Layer:
    if info["crs"] is None:
        raise ProductError(f"labels {labels} have no CRS in the layer {info['layer_name']!r}: assign the right one")
    return Layer(file, info["layer_name"], info["crs"], field, info["features"])


def _layer(labels: Path, files: Iterable[Path], attribute: str) -> Layer:
    """The layer that has the attribute.

    ASSUME: of several, the one with most features is the map; a table of changes beside it has fewer.
    """
    infos = _infos(labels, files)
    usable = [(file, info) for file, info in infos if attribute in info["fields"]]
    if not usable:
        known = sorted({field for _, info in infos for field in info["fields"]})
        raise SettingError(f"labels {labels} have no attribute {attribute!r}: choose one of {', '.join(known)}")
    file, info = max(usable, key=lambda each: each[1]["features"])
    if len(usable) > 1:
        log.warning("%s: %d layers have %s; %s is taken", labels, len(usable), attribute, info["layer_name"])
    return _as_layer(labels, file, info, attribute)


def urban_atlas(labels: Path, files: Iterable[Path], attribute: str | None) -> list[Layer]:
    """The maps of cities among the layers of files: each has the code of one year, a map of changes has two.

    Parameters
    ----------
    labels
        What the files are part of, for messages.
    attribute
        ``code_YEAR``, in whatever spelling the files have it; None: the only year that there is.

    Raises
    ------
    SettingError
        No map of that year, or of several years without one being named.
    ProductError
        A file cannot be read, or a layer has no CRS.
    """
    maps: dict[str, list[Layer]] = {}
    for file, info in _infos(labels, files):
        fields = [match for name in info["fields"] if (match := CODE_FIELD.fullmatch(name))]
        if len(fields) == 1:
            maps.setdefault(fields[0][1], []).append(_as_layer(labels, file, info, fields[0][0]))
    wanted = CODE_FIELD.fullmatch(attribute or "")
    year = wanted[1] if wanted else next(iter(maps)) if len(maps) == 1 else None
    if year not in maps:
        raise SettingError(
            f"labels {labels} are read as Urban Atlas{f' of {year}' if year else ''}, but have codes of "
            f"{', '.join(sorted(maps)) or 'no year'}: set labels.year to one of them, or source to vector"
        )
    return maps[year]


def _polygonal(labels: Path, frame: GeoDataFrame) -> list[BaseGeometry]:
    """The polygons of each geometry: a repaired one may have lines beside them, which would be drawn too."""
    from shapely import MultiPolygon, get_parts, get_type_id

    found, others = [], 0
    for geometry in frame.geometry:
        parts = get_parts(get_parts([geometry]))  # a collection may hold a multipolygon
        polygons = parts[get_type_id(parts) == 3]
        others += len(polygons) == 0
        found.append(MultiPolygon(list(polygons)))
    if others:
        log.warning("%s: %d features that are no polygons left out", labels, others)
    return found


def check_overlap(labels: Path, area: BaseGeometry) -> None:
    """Refuse labels whose bounds do not meet ``area`` (lon/lat): known before hours of work.

    Raises
    ------
    CoverageError
        The labels lie elsewhere.
    ProductError
        The file is missing, cannot be read or has no CRS.
    """
    from shapely.geometry import box

    if not labels.exists():
        raise ProductError(f"labels {labels} do not exist: check the path")
    extent = box(*_extent(labels))
    if not extent.intersects(area):
        raise CoverageError(
            f"labels {labels} cover {in_degrees(extent)}, but the area is {in_degrees(area)}: bring labels of the area "
            "or check its coordinates"
        )


def in_degrees(area: BaseGeometry) -> str:
    """Where an area in lon/lat lies, for a message."""
    west, south, east, north = area.bounds
    return f"{west:.4f} to {east:.4f} E, {south:.4f} to {north:.4f} N"


def _extent(labels: Path) -> tuple[float, float, float, float]:
    """Bounds in lon/lat of a raster, or of the first layer with features of each vector file."""
    try:
        with rasterio.open(labels) as raster:
            found = [(raster.crs, raster.bounds)]
    except RasterioError:
        found = _vector_extents(labels)
    if any(crs is None for crs, _ in found):
        raise ProductError(f"labels {labels} have no CRS: assign the right one")
    degrees = [transform_bounds(crs, "EPSG:4326", *bounds, densify_pts=41) for crs, bounds in found]
    west, south, east, north = zip(*degrees, strict=True)
    return min(west), min(south), max(east), max(north)


def _vector_extents(labels: Path) -> list[tuple[str | None, tuple[float, float, float, float]]]:
    from pyogrio.errors import DataSourceError

    try:
        with unpacked(labels) as files:
            found = [extent for file in files if (extent := _file_extent(file))]
    except DataSourceError as error:
        raise ProductError(f"labels {labels} are neither raster nor vector ({error}): bring the whole file") from None
    if not found:
        raise ProductError(f"labels {labels} have no feature with a geometry: bring the right file")
    return found


def _file_extent(file: Path) -> tuple[str | None, tuple[float, float, float, float]] | None:
    import pyogrio

    for name, geometry_type in pyogrio.list_layers(file):
        info = pyogrio.read_info(file, layer=name, force_total_bounds=True)
        if geometry_type is not None and info["total_bounds"] is not None and info["features"]:
            return info["crs"], info["total_bounds"]
    return None


# Name -> classes of a block. A new source is one function and one line here.
LABEL_SOURCES: dict[str, Callable[[Path, Grid, dict[str, int], str | None], np.ndarray]] = {
    "mapbiomas": from_raster,
    "raster": from_raster,
    "vector": from_vector,
    "urban_atlas": from_urban_atlas,
}
