"""Polygons out of any vector file, in a zip or not: those near a place, valid, in its CRS."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pyproj import CRS, Transformer

from covermap.archives import BAD_ZIP, safe_members
from covermap.errors import ProductError, SettingError
from covermap.label_settings import POLYGONS, Polygons

if TYPE_CHECKING:
    from geopandas import GeoDataFrame, GeoSeries
    from pandas import Series

log = logging.getLogger(__name__)

VECTOR = re.compile(r"(.+?\.(?:gpkg|gdb|shp|fgb|geojson))(?:/.*)?", re.IGNORECASE)  # a geodatabase is a folder
CODE_FIELD = re.compile(r"code_?(\d{4})", re.IGNORECASE)  # of Urban Atlas: CODE2006, CODE_2012, code_2021
UNREADABLE = (RuntimeError, UnicodeDecodeError)  # the first is the base of all errors of pyogrio
NO_POLYGONS = re.compile(r"(Multi)?(Point|LineString)\b.*")
LONGEST_M, LONGEST_DEG = 1_000, 0.01  # of an edge: its middle then lies within 2 cm in another projection
FARTHEST_M = 5_000_000  # from a block: beyond it projections mean nothing, and whole numbers of `burn` grow too large
OF_A_MAC = re.compile(r"(.*/)?(__MACOSX/|\._).*")  # what a Mac packs beside each file, under the same ending
Bounds = tuple[float, float, float, float]


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
    packed = safe_members(labels, "bring the whole file again")
    members = [member for member in packed if not OF_A_MAC.fullmatch(member.filename)]
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
    labels: Path, layers: Iterable[Layer], crs: str, bounds: Bounds, polygons: Polygons = POLYGONS
) -> GeoDataFrame:
    """Valid polygons of layers of ``labels`` near ``bounds``, in ``crs`` and the order of the files; and their code.

    Which has a pixel that several hold is the order's matter: by an attribute, where ``polygons.priority`` names one.
    What is mended or left out is counted in the log.

    ASSUME: edges are straight in the file's CRS, so long ones get corners before they are projected.

    Raises
    ------
    SettingError
        ``polygons.where`` or the attribute of ``polygons.priority`` makes no sense.
    ProductError
        A file cannot be read.
    """
    import geopandas
    import pandas as pd

    frames = [_read_layer(labels, layer, crs, bounds, polygons) for layer in layers]
    frame = geopandas.GeoDataFrame(pd.concat(frames, ignore_index=True), geometry="geometry", crs=crs)
    if (by := _rank(polygons)) is not None:
        frame = frame.sort_values(by, kind="stable", na_position="first", ignore_index=True)
    return frame[["code", "geometry"]]


def _rank(polygons: Polygons) -> str | None:
    """The attribute by which polygons go before others."""
    return polygons.priority if polygons.priority != "legend" else None


def _read_layer(labels: Path, layer: Layer, crs: str, bounds: Bounds, polygons: Polygons) -> GeoDataFrame:
    import pandas as pd
    import pyogrio

    fields = sorted({layer.field, _rank(polygons) or layer.field})
    read = {"columns": fields, "where": polygons.where, "fid_as_index": True}
    try:
        near = _boxes(crs, layer.crs, bounds)
        found = [pyogrio.read_dataframe(layer.file, layer=layer.name, bbox=box, **read) for box in near]
    except (ValueError, *UNREADABLE) as error:
        if polygons.where:
            raise SettingError(
                f"labels {labels} cannot be filtered by {polygons.where!r} ({error}): mend polygons.where"
            ) from None
        raise ProductError(f"labels {labels} cannot be read as vectors ({error}): check path and source") from None
    frame = pd.concat([each for each in found if len(each)] or found[:1])
    frame = frame[~frame.index.duplicated()]
    _check_rank(labels, frame, polygons)
    frame = frame.sort_index()  # a spatial index gives features in an order of its own, another one for each block
    return _mended(labels, frame.assign(code=_codes(labels, frame[layer.field])), crs, bounds, polygons)


def _boxes(crs: str, to: Any, bounds: Bounds) -> list[Bounds]:
    """Where bounds lie in the CRS of a layer: in degrees every way to write it, from -180 to 180 and from 0 to 360."""
    west, south, east, north = bounds_in(to, crs, bounds)
    if not CRS.from_user_input(to).is_geographic:
        return [(west, south, east, north)]
    east += 360 if west > east else 0  # they cross the antimeridian
    turns = [turn for turn in (-360, 0, 360) if west + turn < 360 and east + turn > -180]
    return [(west + turn, south, east + turn, north) for turn in turns]


def bounds_in(to: Any, crs: Any, bounds: Bounds) -> Bounds:
    """Bounds in another CRS; in degrees west is above east where they cross the antimeridian.

    Raises
    ------
    pyproj.exceptions.ProjError
        No way leads from one to the other, as from the CRS of a building site.
    """
    first, last = (CRS.from_user_input(each).to_2d() for each in (crs, to))
    moved: Bounds = Transformer.from_crs(first, last, always_xy=True).transform_bounds(*bounds, densify_pts=41)
    return moved


def _codes(labels: Path, codes: Series) -> Series:
    """Codes of features; none where there are only blanks."""
    from pandas.api.types import is_scalar

    if codes.dtype.kind != "O":
        return codes
    if odd := [code for code in codes if not is_scalar(code)]:
        raise SettingError(
            f"labels {labels} hold {odd[0]} in the attribute {codes.name!r}: expected one number or word a feature, so "
            "name another attribute"
        )
    return codes.where(codes.astype(str).str.strip() != "")


def _check_rank(labels: Path, frame: GeoDataFrame, polygons: Polygons) -> None:
    by = _rank(polygons)
    if by is not None and (by not in frame or frame[by].dtype.kind not in "iuf"):
        raise SettingError(
            f"labels {labels} have no numbers in an attribute {by!r}: expected legend, or an attribute with numbers, "
            "for polygons.priority"
        )


def _mended(labels: Path, frame: GeoDataFrame, crs: str, bounds: Bounds, polygons: Polygons) -> GeoDataFrame:
    """Features as polygons in ``crs``, with what is no polygon, has no code or is too small left out."""
    from shapely import make_valid

    nothing = frame.geometry.isna() | frame["code"].isna()
    frame = _without(labels, frame, nothing, "features without a geometry or a code left out")
    frame = _without(labels, frame, _unbounded(frame.geometry), "features with broken coordinates left out")
    broken = ~frame.geometry.is_valid
    if broken.any():
        log.warning("%s: %d invalid geometries repaired", labels, broken.sum())
        frame.loc[broken, "geometry"] = make_valid(frame.geometry[broken].values)
    if not frame.geom_type.isin(("Polygon", "MultiPolygon")).all():
        frame = frame.set_geometry(_only_polygons(frame.geometry))
    frame = _without(labels, frame, frame.geometry.is_empty, "features that are no polygons left out")
    shapes, is_cut = _projected(frame.geometry, crs, bounds)
    frame = frame.set_geometry(shapes)
    if not polygons.min_area_m2:
        return frame
    small = (frame.geometry.area < polygons.min_area_m2) & ~is_cut
    return _without(labels, frame, small, f"polygons below {polygons.min_area_m2:g} m2 left out")


def _without(labels: Path, frame: GeoDataFrame, bad: Any, what: str) -> GeoDataFrame:
    """The features that are not bad; how many are is told in the log."""
    if not bad.any():
        return frame
    log.warning("%s: %d %s", labels, bad.sum(), what)
    return frame[~bad]


def _unbounded(shapes: GeoSeries) -> np.ndarray:
    """Which geometries have a coordinate that is infinite or no number."""
    from shapely import get_coordinates

    corners, owner = get_coordinates(shapes.to_numpy(), return_index=True)
    bad = np.zeros(len(shapes), bool)
    bad[owner[~np.isfinite(corners).all(axis=1)]] = True
    return bad


def _projected(shapes: GeoSeries, crs: str, bounds: Bounds) -> tuple[GeoSeries, Series]:
    """Polygons in a CRS, and which are cut: those that reach too far for it, as around the globe, to the part near by.

    The area of a cut polygon is unknown, but it is large.
    """
    cornered = shapes if shapes.crs == crs else _with_corners(shapes)
    moved = cornered.to_crs(crs)
    is_far = ~(np.abs(moved.bounds - np.array(bounds)) < FARTHEST_M).all(axis=1)  # or NaN, or infinite
    is_far &= ~shapes.is_empty
    if not is_far.any():
        return moved, is_far
    near = _cut(cornered[is_far], crs, bounds)
    return moved.where(~is_far, near.reindex(moved.index)), is_far


def _cut(shapes: GeoSeries, crs: str, bounds: Bounds) -> GeoSeries:
    """The parts of polygons around bounds, in the CRS of these."""
    width, height = bounds[2] - bounds[0], bounds[3] - bounds[1]
    around = (bounds[0] - width, bounds[1] - height, bounds[2] + width, bounds[3] + height)
    boxes = [around] if shapes.crs == crs else _boxes(crs, shapes.crs, around)
    parts = [shapes.clip_by_rect(*box).make_valid().to_crs(crs) for box in boxes]
    return _only_polygons(reduce(lambda one, other: one.union(other), parts))


def _with_corners(shapes: GeoSeries) -> GeoSeries:
    """Polygons with more corners on long edges."""
    longest = LONGEST_DEG if shapes.crs.is_geographic else LONGEST_M
    extent = shapes.bounds
    long = np.maximum(extent.maxx - extent.minx, extent.maxy - extent.miny) > longest
    return shapes.where(~long, shapes[long].segmentize(longest).reindex(shapes.index))


def _polygon_parts(shapes: Any) -> tuple[np.ndarray, np.ndarray]:
    """All polygons of geometries, and the number of the geometry of each; a collection may hold a multipolygon."""
    from shapely import get_parts, get_type_id

    parts, owner = get_parts(np.asarray(shapes, object), return_index=True)
    parts, of = get_parts(parts, return_index=True)
    polygons = get_type_id(parts) == 3
    return parts[polygons], owner[of][polygons]


def _only_polygons(shapes: GeoSeries) -> GeoSeries:
    """The polygons of each geometry, as one: a repaired one may have lines beside them, which would be drawn too."""
    from geopandas import GeoSeries
    from shapely import MultiPolygon, multipolygons

    found = np.full(len(shapes), MultiPolygon(), object)
    parts, owner = _polygon_parts(shapes)
    multipolygons(parts, indices=owner, out=found)
    return GeoSeries(found, index=shapes.index, crs=shapes.crs)


def _infos(labels: Path, files: Iterable[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """What is known of all layers with geometries."""
    import pyogrio

    try:
        found = [
            (file, pyogrio.read_info(file, layer=name))
            for file in files
            for name, geometry_type in pyogrio.list_layers(file)
            if geometry_type is not None
        ]
    except UNREADABLE as error:
        raise ProductError(f"labels {labels} cannot be read as vectors ({error}): check path and source") from None
    if not found:
        raise ProductError(f"labels {labels} cannot be read as vectors (no layer of shapes): check path and source")
    return found


def _as_layer(labels: Path, file: Path, info: dict[str, Any], field: str) -> Layer:
    name = info["layer_name"]
    if info["crs"] is None:
        raise ProductError(f"labels {labels} have no CRS in the layer {name!r}: assign the right one")
    if NO_POLYGONS.fullmatch(info["geometry_type"]):
        raise ProductError(
            f"labels {labels} hold {info['geometry_type']} in the layer {name!r}: expected polygons, so take the map "
            "of areas, or draw buffers around them"
        )
    if info["features"] == 0:
        raise ProductError(f"labels {labels} have no feature in the layer {name!r}: bring the right file")
    return Layer(file, name, info["crs"], field, info["features"])


def fullest_layer(labels: Path, files: Iterable[Path], attribute: str, named: str | None = None) -> Layer:
    """The layer that has the attribute.

    ASSUME: of several, the one with most features is the map; a table of changes beside it has fewer.

    Raises
    ------
    SettingError
        There is no layer of this name, or no such attribute.
    ProductError
        The file cannot be read; the layer has no CRS, no feature or no polygons.
    """
    infos = _infos(labels, files)
    layers = [(file, info) for file, info in infos if named in (None, info["layer_name"])]
    if not layers:
        known = sorted({info["layer_name"] for _, info in infos})
        raise SettingError(f"labels {labels} have no layer {named!r}: choose one of {', '.join(known)}")
    usable = [(file, info) for file, info in layers if attribute in info["fields"]]
    if not usable:
        fields = sorted({field for _, info in layers for field in info["fields"]})
        raise SettingError(
            f"labels {labels} have no attribute {attribute!r}: choose one of {', '.join(fields) or 'none'}"
        )
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
        if len(fields) == 1 and info["features"]:
            maps.setdefault(fields[0][1], []).append(_as_layer(labels, file, info, fields[0][0]))
    wanted = CODE_FIELD.fullmatch(attribute or "")
    year = wanted[1] if wanted else next(iter(maps)) if len(maps) == 1 else None
    if year not in maps:
        raise SettingError(
            f"labels {labels} are read as Urban Atlas{f' of {year}' if year else ''}, but have codes of "
            f"{', '.join(sorted(maps)) or 'no year'}: set labels.year to one of them, or source to vector"
        )
    return maps[year]


def extents(labels: Path) -> list[tuple[str | None, Bounds]]:
    """CRS and bounds of the first layer with features of each file."""
    try:
        with unpacked(labels) as files:
            found = [extent for file in files if (extent := _file_extent(file))]
    except UNREADABLE as error:
        raise ProductError(f"labels {labels} are neither raster nor vector ({error}): bring the whole file") from None
    if not found:
        raise ProductError(f"labels {labels} have no feature with a geometry: bring the right file")
    return found


def _file_extent(file: Path) -> tuple[str | None, Bounds] | None:
    import pyogrio

    for name, geometry_type in pyogrio.list_layers(file):
        info = pyogrio.read_info(file, layer=name, force_total_bounds=True)
        if geometry_type is not None and info["total_bounds"] is not None and info["features"]:
            return info["crs"], info["total_bounds"]
    return None
