"""The map as polygons: one layer of a GeoPackage, simplified on shared borders, with the style that QGIS applies."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyogrio
import rasterio
import shapely
from geopandas import GeoDataFrame
from rasterio.errors import RasterioError
from rasterio.features import shapes
from rasterio.windows import Window
from shapely.geometry import shape

from covermap.attribution import TAG
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.files import whole
from covermap.legend import Legend
from covermap.room import room_for
from covermap.strips import strips_of
from covermap.styles import M2_OF_HECTARE, polygon_style

log = logging.getLogger(__name__)

LAYER = "classes"
MAX_EDGES = 10_000_000  # sides of pixels between two classes: about 400 bytes of memory each
EDGE_BYTES = 25  # of the disk
ROWS = 512
ROWS_AT_ONCE = 50_000
WRITTEN = "2000-01-01T00:00:00.000Z"  # instead of today, so that equal maps are equal bytes
NOTE = 'covermap: the areas of one class that touch each other by a side; "hectares" are those of the polygon as it is'
STYLES = """CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256),
f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT,
styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), update_time DATETIME)"""


def vectorize(map: Path, vector: Path, legend: Legend, simplify_m: float | None = None) -> None:
    """Polygons of a class map, as a GeoPackage: class, key, name, colour, hectares.

    Borders between two polygons are simplified once for both (Visvalingam and Whyatt 1993,
    doi:10.1179/000870493786962263), so that neither gaps nor overlaps arise. What memory must hold are the borders,
    not the pixels; a map with too many is refused.

    Parameters
    ----------
    map : classes, one band.
    vector : what is written.
    legend : classes, names and colours.
    simplify_m : about the side of the smallest corner of a border that is kept [m]; none: every pixel's.

    Raises
    ------
    CoverageError
        The map holds no class.
    ProductError
        The map cannot be read.
    SettingError
        The map has more borders than memory should hold.
    RoomError
        The disk is full.
    """
    try:
        with rasterio.open(map) as raster:
            tags = {TAG: raster.tags().get(TAG, ""), "period": raster.tags().get("period", "")}
            edges = count_edges(raster)
            if edges > MAX_EDGES:
                raise SettingError(
                    f"{map} has borders of {edges:,} pixels' sides, too many for polygons: expected at most "
                    f"{MAX_EDGES:,}, so set postprocess.min_unit_ha of the model, or a greater one"
                )
            classes, polygons = class_polygons(raster, simplify_m)
            crs = raster.crs
    except RasterioError as error:
        raise ProductError(f"{map} cannot be read as a raster ({error}): remove it and run again") from error
    if not len(polygons):
        raise CoverageError(f"{map} holds no class: no pixel of the area was observed")
    known = {entry.id for entry in legend.classes}
    if unknown := {*classes.tolist()} - known:
        raise SettingError(f"{map} has the class {min(unknown)}, the legend has {len(known)}: make the map again")
    with room_for(vector, EDGE_BYTES * edges), whole(vector) as part:
        for number, frame in enumerate(frames_of(classes, polygons, legend)):
            write_rows(part, frame.set_crs(crs), tags, bool(number))
        add_style(part, polygon_style(legend))
    log.info("%d polygons, %d sides of pixels between them", len(polygons), edges)


def count_edges(raster: rasterio.DatasetReader) -> int:
    """Sides of pixels between two values of a raster's first band, strip by strip."""
    edges, above = 0, np.empty((0, raster.width), np.uint8)
    for rows in strips_of(raster.height, ROWS):
        values = np.concatenate([above, raster.read(1, window=Window.from_slices(rows, (0, raster.width)))])
        inner = values[len(above) :]  # (rows, x)
        edges += int(np.count_nonzero(inner[:, 1:] != inner[:, :-1]) + np.count_nonzero(values[1:] != values[:-1]))
        above = values[-1:]
    return edges


def class_polygons(raster: rasterio.DatasetReader, simplify_m: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Class ids, uint8 (n,), and polygons (n,) in the CRS of a raster, of pixels that touch by a side.

    Borders are cut at every pixel's corner first: only where both sides of one have the same corners, it stays one.
    """
    found = [(value, shape(polygon)) for polygon, value in shapes(rasterio.band(raster, 1)) if value]
    classes, polygons = np.array([value for value, _ in found], np.uint8), np.array([one for _, one in found])
    if not simplify_m or not len(polygons):
        return classes, polygons
    a, _, c, _, e, f = raster.transform[:6]
    in_pixels = shapely.transform(polygons, lambda xy: np.round((xy - (c, f)) / (a, e)))
    corners = shapely.transform(shapely.segmentize(in_pixels, 1), np.round)
    simple = shapely.coverage_simplify(corners, simplify_m / a)
    return classes, shapely.transform(simple, lambda xy: xy * (a, e) + (c, f))


def frames_of(classes: np.ndarray, polygons: np.ndarray, legend: Legend) -> Iterator[GeoDataFrame]:
    """Rows of the layer, a part of them at a time."""
    looks = {entry.id: (entry.key, entry.name, entry.colour) for entry in legend.classes}
    for rows in strips_of(len(classes), ROWS_AT_ONCE):
        keys, names, colours = zip(*map(looks.__getitem__, classes[rows].tolist()), strict=True)
        hectares = shapely.area(polygons[rows]) / M2_OF_HECTARE
        columns = {"class": classes[rows].astype(np.int32), "key": keys, "name": names, "colour": colours}
        yield GeoDataFrame({**columns, "hectares": hectares.round(4)}, geometry=polygons[rows])


def write_rows(output: Path, rows: GeoDataFrame, tags: dict[str, str], append: bool) -> None:
    """Add rows to the layer of a GeoPackage, which is made with the first ones."""
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": WRITTEN})
    metadata = {} if append else {"layer_metadata": {key: value for key, value in tags.items() if value}}
    layer_options = {"DESCRIPTION": NOTE, "GEOMETRY_NAME": "geom"}
    made = {} if append else {"layer_options": layer_options, "dataset_options": {"VERSION": "1.2"}}  # all GIS know it
    rows.to_file(output, layer=LAYER, driver="GPKG", engine="pyogrio", append=append, **metadata, **made)


def add_style(output: Path, style: str) -> None:
    """Put a style into a GeoPackage where QGIS looks for that of the layer (table ``layer_styles``)."""
    row = ("", "", LAYER, "geom", LAYER, style, "", 1, "classes by name and colour", "", None, WRITTEN)
    with closing(sqlite3.connect(output)) as package, package:
        package.execute(STYLES)
        package.execute(f"INSERT INTO layer_styles VALUES (1, {', '.join('?' * len(row))})", row)
        package.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, last_change) VALUES (?, ?, ?, ?)",
            ("layer_styles", "attributes", "layer_styles", WRITTEN),
        )
