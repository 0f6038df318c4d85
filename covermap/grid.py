"""Areas, blocks and windows: where every pixel of covermap lies.

All grids of one CRS share one lattice that starts at the CRS's false origin, so a block keeps its name and its
pixels when an area grows, and Sentinel-2 pixels of the same zone need no resampling.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from covermap.errors import CoverageError, SettingError

if TYPE_CHECKING:
    from affine import Affine
    from pyproj import CRS
    from shapely.geometry.base import BaseGeometry

RIM_DEG = 10  # an area may lie this far outside the area of use of its CRS
PIXEL_M = 10.0  # of all grids of areas
SNAP_M = 60  # the coarsest Sentinel-2 pixel: 10, 20 and 60 m pixels all end on multiples of it


class Grid(BaseModel):
    """North-up raster geometry in a projected CRS, as plain numbers that Snakemake can compare.

    ``left`` and ``top`` are the outer corner of the first pixel in metres.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    crs: str
    left: float
    top: float
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    pixel_m: float = Field(PIXEL_M, gt=0)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.height, self.width

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in metres."""
        return self.left, self.top - self.height * self.pixel_m, self.left + self.width * self.pixel_m, self.top

    @property
    def transform(self) -> Affine:
        """Affine map from (column, row) to metres."""
        from affine import Affine

        return Affine(self.pixel_m, 0, self.left, 0, -self.pixel_m, self.top)

    @property
    def polygon(self) -> BaseGeometry:
        """Outline in the grid's CRS."""
        from shapely.geometry import box

        return box(*self.bounds)

    def offset_in(self, other: Grid) -> tuple[int, int]:
        """Row and column of this grid's first pixel in ``other``; both must lie on one lattice."""
        row, column = (other.top - self.top) / self.pixel_m, (self.left - other.left) / self.pixel_m
        if self.crs != other.crs or self.pixel_m != other.pixel_m or row % 1 or column % 1:
            raise SettingError(f"grid {self} is not on the lattice of {other}: expected the same CRS, pixel and phase")
        return int(row), int(column)

    def window(self, row: int, column: int, height: int, width: int) -> Grid:
        """Part of this grid, or beyond it, that starts at pixel (row, column)."""
        left, top = self.left + column * self.pixel_m, self.top - row * self.pixel_m
        return self.model_copy(update={"left": left, "top": top, "width": width, "height": height})

    def padded(self, pixels: int) -> Grid:
        """This grid with ``pixels`` more on every side."""
        return self.window(-pixels, -pixels, self.height + 2 * pixels, self.width + 2 * pixels)

    def cropped(self, bounds: tuple[float, float, float, float]) -> Grid | None:
        """Smallest window of this grid that holds ``bounds`` (metres), or None where they do not meet."""
        left, bottom, right, top = bounds
        tiny = 1e-6  # a corner that lies on a pixel border up to rounding belongs to that border
        column0 = max(0, math.floor((left - self.left) / self.pixel_m + tiny))
        row0 = max(0, math.floor((self.top - top) / self.pixel_m + tiny))
        column1 = min(self.width, math.ceil((right - self.left) / self.pixel_m - tiny))
        row1 = min(self.height, math.ceil((self.top - bottom) / self.pixel_m - tiny))
        if column1 <= column0 or row1 <= row0:
            return None
        return self.window(row0, column0, row1 - row0, column1 - column0)


def read_area(area: Path | tuple[float, float, float, float]) -> BaseGeometry:
    """Polygon of an area in lon/lat: a file that GDAL reads, or west, south, east, north in degrees.

    Raises
    ------
    SettingError
        File missing or unreadable, no polygon in it, self-crossing, empty or beyond the globe.
    """
    from shapely import force_2d, is_valid_reason
    from shapely.geometry import box

    if isinstance(area, Path):
        polygon = force_2d(_read_polygons(area))
    else:
        west, south, east, north = area
        if not (west < east and south < north):
            raise SettingError(f"area {list(area)} is empty: expected west, south, east, north with west < east")
        polygon = box(*area)
    if not polygon.is_valid:
        raise SettingError(f"area {area} is not a valid polygon ({is_valid_reason(polygon)}): mend it, e.g. in QGIS")
    west, south, east, north = polygon.bounds
    if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
        raise SettingError(f"area {area} spans {polygon.bounds}: expected longitudes and latitudes in degrees")
    return polygon


def _read_polygons(path: Path) -> BaseGeometry:
    from shapely import union_all
    from shapely.errors import GEOSException
    from shapely.geometry import shape

    if not path.exists():
        raise SettingError(f"area {path} does not exist: give a polygon file or west, south, east, north")
    if path.suffix in {".geojson", ".json"}:  # by hand, since importing geopandas takes a second
        try:
            data = json.loads(path.read_text())
            features = data.get("features", [data])
            shapes = [shape(feature.get("geometry", feature)) for feature in features]
        except (OSError, ValueError, KeyError, AttributeError, TypeError, GEOSException) as error:
            raise SettingError(f"area {path} is not GeoJSON ({error}): give a FeatureCollection of polygons") from None
    else:
        import geopandas

        try:
            frame = geopandas.read_file(path)
        except (RuntimeError, OSError, ValueError):  # GDAL's own words name its drivers, not the fault
            raise SettingError(f"area {path} is no vector file that GDAL reads: give a GeoPackage or GeoJSON") from None
        if not isinstance(frame, geopandas.GeoDataFrame):
            raise SettingError(f"area {path} is a table without geometry: expected at least one polygon")
        if frame.crs is None:
            raise SettingError(f"area {path} has no CRS: assign one")
        shapes = list(frame.to_crs("EPSG:4326").geometry)
    shapes = [geometry for geometry in shapes if geometry and geometry.geom_type in {"Polygon", "MultiPolygon"}]
    if not shapes:
        raise SettingError(f"area {path} has no polygon: expected at least one")
    if len(shapes) == 1 or not all(geometry.is_valid for geometry in shapes):
        return next((geometry for geometry in shapes if not geometry.is_valid), shapes[0])
    return union_all(shapes)


def project(geometry: BaseGeometry, source: str, target: str) -> BaseGeometry:
    """Geometry in another CRS; long edges are cut first, since a straight line seldom stays one."""
    from pyproj import Transformer
    from shapely import segmentize, transform

    length = max(geometry.bounds[2] - geometry.bounds[0], geometry.bounds[3] - geometry.bounds[1])
    transformer = Transformer.from_crs(source, target, always_xy=True)
    return transform(segmentize(geometry, length / 64), transformer.transform, interleaved=False)


@cache
def projected(crs: str) -> CRS:
    """The CRS by its code, in metres.

    Raises
    ------
    SettingError
        There is none of this code, or it is not projected in metres.
    """
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        parsed = CRS.from_user_input(crs)
    except CRSError:
        raise SettingError(f"crs {crs} is not known: give the code of a CRS in metres, such as EPSG:32721") from None
    if not parsed.is_projected or any(axis.unit_name != "metre" for axis in parsed.axis_info):
        raise SettingError(f"crs {crs} ({parsed.name}) is not projected in metres: choose a UTM zone or the like")
    return parsed


def false_origin(crs: str) -> tuple[float, float]:
    """Easting and northing of the lattice's origin: 0 east, and the equator's northing in a southern UTM zone."""
    zone = projected(crs).utm_zone
    return 0.0, 10_000_000.0 if zone and zone.endswith("S") else 0.0


def _in_metres(area: BaseGeometry, crs: str) -> BaseGeometry:
    """``area`` (lon/lat) in a CRS that is made for its place; far from there metres are none.

    Raises
    ------
    SettingError
        The area lies more than 10 degrees outside the CRS's area of use.
    """
    parsed, (west, south, east, north) = projected(crs), area.bounds
    use = parsed.area_of_use
    if use is not None:
        reach = use.east - use.west + (360 if use.east < use.west else 0) + 2 * RIM_DEG
        from_west = (west - use.west + RIM_DEG) % 360
        fits = reach >= 360 or from_west + east - west <= reach
        if not fits or south < use.south - RIM_DEG or north > use.north + RIM_DEG:
            raise SettingError(
                f"crs {crs} ({parsed.name}) is made for longitudes {use.west:g} to {use.east:g} and latitudes "
                f"{use.south:g} to {use.north:g}, but the area lies at {west:.2f} to {east:.2f} and {south:.2f} to "
                f"{north:.2f}: choose the CRS of this place, such as {_utm((west + east) / 2, (south + north) / 2)}"
            )
    moved = project(area, "EPSG:4326", crs)
    if not all(map(math.isfinite, moved.bounds)):
        raise SettingError(f"area {area.bounds} has no place in crs {crs}: choose a CRS that covers it")
    return moved


def _utm(longitude: float, latitude: float) -> str:
    """EPSG code of the UTM zone of a place; beyond 84 N and 80 S, of the polar projection."""
    south = latitude < 0
    if not -80 <= latitude <= 84:
        return "EPSG:3031" if south else "EPSG:3413"
    return f"EPSG:{327 if south else 326}{int((longitude + 180) // 6) % 60 + 1:02d}"


def area_grid(area: BaseGeometry, crs: str, pixel_m: float = PIXEL_M) -> Grid:
    """Grid that holds ``area`` (lon/lat), its corners on whole multiples of 60 m from the CRS's false origin."""
    east0, north0 = false_origin(crs)
    bounds = _in_metres(area, crs).bounds
    left, right = (
        SNAP_M * r((x - east0) / SNAP_M) + east0 for r, x in ((math.floor, bounds[0]), (math.ceil, bounds[2]))
    )
    bottom, top = (
        SNAP_M * r((y - north0) / SNAP_M) + north0 for r, y in ((math.floor, bounds[1]), (math.ceil, bounds[3]))
    )
    width, height = round((right - left) / pixel_m), round((top - bottom) / pixel_m)
    return Grid(crs=crs, left=left, top=top, width=width, height=height, pixel_m=pixel_m)


def area_blocks(area: BaseGeometry, crs: str, pixels: int, pixel_m: float = PIXEL_M) -> dict[str, Grid]:
    """Squares of the CRS's lattice that ``area`` (lon/lat) touches, by name.

    The lattice starts at the false origin and is the same for every area: when an area grows, its finished blocks
    keep their names (``x152y-292``: columns counted east, rows north) and their files.
    """
    from shapely import prepare
    from shapely.geometry import box

    side, (east0, north0) = pixels * pixel_m, false_origin(crs)
    polygon = _in_metres(area, crs)
    prepare(polygon)
    left, bottom, right, top = polygon.bounds
    blocks = {}
    for y in range(math.floor((bottom - north0) / side), math.ceil((top - north0) / side)):
        for x in range(math.floor((left - east0) / side), math.ceil((right - east0) / side)):
            corner = (east0 + x * side, north0 + (y + 1) * side)
            if polygon.intersects(box(corner[0], corner[1] - side, corner[0] + side, corner[1])):
                blocks[f"x{x}y{y}"] = Grid(
                    crs=crs, left=corner[0], top=corner[1], width=pixels, height=pixels, pixel_m=pixel_m
                )
    if not blocks:
        raise CoverageError(f"area {area.bounds} touches no block of {crs}: check the area and the CRS")
    return blocks
