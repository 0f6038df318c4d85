"""Heights of an area from Copernicus GLO-30: the step ``download_dem``."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from covermap.area_settings import Mirrors
from covermap.attribution import GLO30
from covermap.errors import ProductError
from covermap.grid import Grid
from covermap.remote import PROFILE, check_packed, open_remote, write_parts
from covermap.web import request

log = logging.getLogger(__name__)

DEGREE = 3600  # arc seconds
RIM_M = 12_000  # terrain so far away may lie over the area or shade it, at most
CRS = "EPSG:9518"  # WGS 84 + EGM2008 height, so that every reader knows what the heights count from
# From which latitude on columns are how many times wider than rows, by the edge of a tile nearer to the equator.
WIDENING = ((85, 10.0), (80, 5.0), (70, 3.0), (60, 2.0), (50, 1.5), (0, 1.0))
NAME = re.compile(r"Copernicus_DSM_COG_\d\d_[NS]\d\d_00_[EW]\d{3}_00_DEM")

Cell = tuple[int, int]  # longitude and latitude of the south-western corner of a tile [degrees]


@dataclass(frozen=True)
class Lattice:
    """Pixel centres on whole multiples of the pixel's sides [arc seconds]; the first ones, and how many there are.

    ``west_s`` may go on above 180 degrees where the area crosses the antimeridian.
    """

    west_s: float
    north_s: float
    column_s: float
    row_s: float
    width: int
    height: int

    @property
    def transform(self) -> Affine:
        """Affine map from (column, row) to degrees."""
        left, top = self.west_s - self.column_s / 2, self.north_s + self.row_s / 2
        return Affine(self.column_s / DEGREE, 0, left / DEGREE, 0, -self.row_s / DEGREE, top / DEGREE)

    def places(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Latitudes (y) and longitudes (x) of the pixels of a window [arc seconds]."""
        rows, columns = np.arange(window.height) + window.row_off, np.arange(window.width) + window.col_off
        return self.north_s - rows * self.row_s, self.west_s + columns * self.column_s


@dataclass(frozen=True)
class Source:
    """A mosaic of tiles on a server: its address, the metres in its name, the pixel's height, the tiles there are."""

    url: str
    number: int
    row_s: float
    tiles: frozenset[str]

    def has(self, cell: Cell) -> bool:
        return tile_name(cell, self.number) in self.tiles

    def address(self, cell: Cell) -> str:
        name = tile_name(cell, self.number)
        return f"{self.url}/{name}/{name}.tif"

    def lattice(self, cell: Cell) -> Lattice:
        """Where the pixels of a tile lie: from its north-western corner on; the far edges belong to the next tiles."""
        column_s = self.row_s * widening(cell[1])
        width, height = round(DEGREE / column_s), round(DEGREE / self.row_s)
        return Lattice(cell[0] * DEGREE, (cell[1] + 1) * DEGREE, column_s, self.row_s, width, height)


def download_dem(dem: Path, grid: Grid, mirrors: Mirrors) -> None:
    """Heights above EGM2008 around an area, from the tiles of Copernicus GLO-30.

    A tile that GLO-30 lacks and GLO-90 has is land that was not released at 30 m (Armenia and Azerbaijan in the 2021
    release): its heights are those of GLO-90, bilinear. A tile that both lack is sea: its heights are 0.

    Parameters
    ----------
    dem : output, GeoTIFF float32 in EPSG:9518 (WGS 84 + EGM2008 height) on the lattice of GLO-30: 1 arc second, columns
        wider beyond 50 degrees of latitude; where an area has tiles of two widths, on the finer one. The tags name the
        tiles that are sea or of GLO-90.
    grid : the area's; heights reach 12 km beyond it.
    mirrors : where the tiles are.

    Raises
    ------
    DownloadError
        A list of tiles, or a tile in it, cannot be read.
    ProductError
        A list or a tile is not what it should be.

    Notes
    -----
    Names, spacing and sizes of the tiles: https://copernicus-dem-30m.s3.amazonaws.com/readme.html (a tile's last column
    and row, which the original tiles share with their eastern and southern neighbours, are not in it).
    """
    lattice, cells = _area(grid)
    fine = Source(mirrors.glo30, 10, 1, _tiles(mirrors.glo30))
    missing = [cell for cell in cells if not fine.has(cell)]
    coarse = Source(mirrors.glo90, 30, 3, _tiles(mirrors.glo90) if missing else frozenset())
    unreleased = [cell for cell in missing if coarse.has(cell)]
    sea = [cell for cell in missing if not coarse.has(cell)]
    for what, some in (("at 90 m", unreleased), ("sea", sea)):
        if some:
            log.warning("%d of %d tiles are %s: %s", len(some), len(cells), what, _named(some))

    def read(window: Window) -> np.ndarray:
        latitude_s, longitude_s = lattice.places(window)
        out = np.zeros((window.height, window.width), np.float32)
        for source, cell in [(fine, c) for c in cells if fine.has(c)] + [(coarse, c) for c in unreleased]:
            rows = np.flatnonzero(np.ceil(latitude_s / DEGREE) - 1 == cell[1])
            columns = np.flatnonzero(np.floor(longitude_s / DEGREE) == cell[0])
            if len(rows) and len(columns):
                out[np.ix_(rows, columns)] = _heights(source, cell, latitude_s[rows], longitude_s[columns])
        return out

    tags = {"source": "Copernicus GLO-30", "attribution": GLO30, "glo90": _named(unreleased), "sea": _named(sea)}
    profile: dict[str, Any] = {**PROFILE, "dtype": "float32", "nodata": np.nan, "predictor": 3, "crs": CRS}
    profile |= {"transform": lattice.transform, "width": lattice.width, "height": lattice.height}
    source = [mirrors.glo30, mirrors.glo90, _named(unreleased), _named(sea)]
    write_parts(dem, profile, read, tags=tags, source=source, empty="")


def _area(grid: Grid) -> tuple[Lattice, list[Cell]]:
    """The lattice of the heights around a grid, and the tiles that it meets."""
    padded = grid.padded(math.ceil(RIM_M / grid.pixel_m))
    west, south, east, north = transform_bounds(grid.crs, "EPSG:4326", *padded.bounds, densify_pts=41)
    east += 360 * (east < west)  # across the antimeridian
    north_s, south_s = min(math.ceil(north * DEGREE), 90 * DEGREE), max(math.floor(south * DEGREE), 1 - 90 * DEGREE)
    latitudes = range(math.ceil(south_s / DEGREE) - 1, math.ceil(north_s / DEGREE))
    column_s = min(map(widening, latitudes))
    first, last = math.floor(west * DEGREE / column_s), math.ceil(east * DEGREE / column_s)
    lattice = Lattice(first * column_s, north_s, column_s, 1, last - first + 1, north_s - south_s + 1)
    longitudes = range(math.floor(first * column_s / DEGREE), math.floor(last * column_s / DEGREE) + 1)
    return lattice, [(longitude, latitude) for latitude in latitudes for longitude in longitudes]


def widening(latitude: int) -> float:
    """How many times the columns of a tile are wider than its rows, by the latitude of its southern edge."""
    nearer = latitude if latitude >= 0 else -latitude - 1
    return next(factor for least, factor in WIDENING if nearer >= least)


def tile_name(cell: Cell, number: int) -> str:
    """Name of a tile; ``number`` is 10 in GLO-30 and 30 in GLO-90 (tenths of an arc second)."""
    longitude, latitude = (cell[0] + 180) % 360 - 180, cell[1]
    place = f"{'SN'[latitude >= 0]}{abs(latitude):02d}_00_{'WE'[longitude >= 0]}{abs(longitude):03d}_00"
    return f"Copernicus_DSM_COG_{number}_{place}_DEM"


def _named(cells: Collection[Cell]) -> str:
    return ", ".join(tile_name(cell, 10)[22:-4].replace("_00", "").replace("_", "") for cell in cells) or "none"


def _tiles(url: str) -> frozenset[str]:
    """Names of the tiles that a mosaic has."""
    tiles = frozenset(NAME.findall(request("GET", f"{url}/tileList.txt").text))
    if not tiles:
        raise ProductError(f"{url}/tileList.txt names no tile: expected names such as {tile_name((6, 50), 10)}")
    return tiles


def _heights(source: Source, cell: Cell, latitude_s: np.ndarray, longitude_s: np.ndarray) -> np.ndarray:
    """Heights float32 (y, x) of a tile at places within it, bilinear where they are not its own pixels.

    ASSUME: beyond the last row and column, whose neighbours are in other tiles, lies the last one: at most a pixel of
    GLO-90, or of the wider columns of two, at the edge of a degree.
    """
    tile = source.lattice(cell)
    rows, columns = (tile.north_s - latitude_s) / tile.row_s, (longitude_s - tile.west_s) / tile.column_s
    top, left = int(rows[0]), int(columns[0])
    bottom, right = min(math.ceil(rows[-1]) + 1, tile.height), min(math.ceil(columns[-1]) + 1, tile.width)
    with open_remote(source.address(cell)) as raster:
        check_packed(raster, source.address(cell))
        _check_tile(raster, tile, tile_name(cell, source.number))
        window = Window.from_slices((top, bottom), (left, right))
        height_m = raster.read(1, window=window, masked=True, out_dtype="float32").filled(np.nan)
    return _between(_between(height_m, rows - top, 0), columns - left, 1)


def _check_tile(raster: rasterio.DatasetReader, tile: Lattice, name: str) -> None:
    expected = tile.transform
    turns = 360 * round((raster.transform.c - expected.c) / 360)
    off = np.abs(np.subtract(raster.transform[:6], expected[:6]) - [0, 0, turns, 0, 0, 0]).max()
    if raster.shape != (tile.height, tile.width) or off > 1e-6:
        raise ProductError(
            f"DEM tile {name} has {raster.width} x {raster.height} pixels from {raster.transform.c:.5f}, "
            f"{raster.transform.f:.5f}: expected {tile.width} x {tile.height} from {expected.c:.5f}, {expected.f:.5f}"
        )


def _between(values: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Values at positions along an axis, linear between the two nearest."""
    lower = np.minimum(positions.astype(int), values.shape[axis] - 1)
    share = (positions - lower).astype(np.float32)
    if not share.any():
        return values.take(lower, axis)
    upper = np.minimum(lower + 1, values.shape[axis] - 1)
    share = share[:, None] if axis == 0 else share
    return values.take(lower, axis) * (1 - share) + values.take(upper, axis) * share
