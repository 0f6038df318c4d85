"""How high the geoid lies above the ellipsoid: models that are installed or downloaded, never a silent zero.

The step ``download_geoid`` brings the one that Copernicus heights count from.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
from pyproj import CRS, Transformer
from pyproj.datadir import get_data_dir, get_user_data_dir
from rasterio.errors import RasterioError
from rasterio.windows import Window

from covermap.errors import DownloadError, SettingError
from covermap.files import whole
from covermap.sentinel1.nodes import horizontal

log = logging.getLogger(__name__)

Model = Literal["egm96", "egm2008"]
GRIDS = {"egm96": ("us_nga_egm96_15.tif", "egm96_15.gtx"), "egm2008": ("us_nga_egm08_25.tif", "egm08_25.gtx")}
UNDULATION_M = (-120.0, 100.0)  # the Earth's geoid lies between -107 and 86 m


@dataclass(frozen=True)
class Geoid:
    """A constant undulation [m], or a grid of undulations; ``name`` tells which in the product's tags."""

    name: str
    source: float | Path

    def undulation(self, longitude_deg: np.ndarray, latitude_deg: np.ndarray) -> np.ndarray:
        """Height [m] of the geoid above the ellipsoid, float64 of the shape of the coordinates (WGS 84)."""
        if isinstance(self.source, Path):
            return _from_grid(self.source, np.asarray(longitude_deg), np.asarray(latitude_deg))
        return np.full(np.shape(longitude_deg), self.source)


def open_geoid(geoid: Model | float | Path) -> Geoid:
    """The geoid that a setting means.

    Parameters
    ----------
    geoid : name of a model, whose grid is searched in PROJ's folders; a grid file that GDAL reads (GTX, GeoTIFF ...)
        with undulations in metres; or one undulation in metres.

    Raises
    ------
    SettingError
        The model's grid is not installed, or the file does not exist.
    """
    if isinstance(geoid, Path):
        if not geoid.is_file():
            raise SettingError(f"sentinel1.geoid {geoid} does not exist: give a grid of undulations, or a model's name")
        return Geoid(geoid.name, geoid)
    if isinstance(geoid, str):
        path = _find(geoid)
        if path is None:
            folders = ", ".join(map(str, proj_folders()))
            raise SettingError(
                f"the grid of the geoid {geoid} is in none of PROJ's folders ({folders}): {_instead(geoid)}"
            )
        return Geoid(f"{geoid} ({path.name})", path)
    return Geoid(f"{geoid:g} m", float(geoid))


def download_geoid(geoid: Path, url: str) -> None:
    """The grid of EGM2008, 2.5 minutes wide: the one in PROJ's folders where it is installed, else that of a server.

    Parameters
    ----------
    geoid : output, GeoTIFF of undulations in metres on WGS 84.
    url : a server with PROJ's grids and their list ``files.geojson``, which tells sizes and SHA-256.

    Raises
    ------
    DownloadError
        The grid is not installed, and the server does not deliver it whole; says what to do without it.
    SettingError
        The grid that is installed is broken.

    Notes
    -----
    PROJ documentation, 'Resource files' and 'Network capabilities': https://cdn.proj.org.
    """
    if installed := _find("egm2008"):
        _copy(geoid, installed)
        return
    try:
        _fetch(geoid, url, GRIDS["egm2008"][0])
    except DownloadError as error:
        raise DownloadError(f"{error}; or {_instead('egm2008')}", error.status) from None


def _copy(geoid: Path, installed: Path) -> None:
    try:
        with rasterio.open(installed) as grid:
            place = {key: grid.profile[key] for key in ("width", "height", "dtype", "crs", "transform", "nodata")}
            with whole(geoid) as part, rasterio.open(part, "w", "GTiff", count=1, compress="DEFLATE", **place) as copy:
                copy.write(grid.read(1), 1)
    except RasterioError as error:
        raise SettingError(f"geoid {installed} cannot be read ({error}): install it anew, or remove it") from error
    log.info("%s is a copy of %s", geoid, installed)


def _fetch(geoid: Path, url: str, name: str) -> None:
    from covermap.transfer import fetch_file  # not needed where heights are read
    from covermap.web import json_of, request

    listing = f"{url}/files.geojson"
    answer = json_of(request("GET", listing))
    try:
        told = [feature["properties"] for feature in answer["features"]]
        size, digest = next((int(one["file_size"]), str(one["sha256sum"])) for one in told if one.get("name") == name)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise DownloadError(f"{listing} tells no size and SHA-256 of {name}: check mirrors.geoid") from None
    fetch_file(f"{url}/{name}", geoid, size=size, checksum=("sha256", digest))


def _find(model: str) -> Path | None:
    """Grid of a model in one of PROJ's folders."""
    places = (folder / name for folder in proj_folders() for name in GRIDS[model])
    return next((place for place in places if place.is_file()), None)


def _instead(model: str) -> str:
    """How to have a model's grid, or to go without it."""
    debian = " or `apt-get install proj-data`" if model == "egm96" else ""
    return (
        f"install it with `pyproj sync --file {GRIDS[model][0]}`{debian}, or set sentinel1.geoid to its file or to the "
        "undulation in metres"
    )


def proj_folders() -> list[Path]:
    """Where PROJ keeps grids: the environment's folders, pyproj's, the user's, the system's."""
    named = [os.environ.get("PROJ_DATA", ""), os.environ.get("PROJ_LIB", ""), get_data_dir()]
    folders = [part for folder in named for part in folder.split(os.pathsep) if part]
    folders += [get_user_data_dir(), f"{sys.prefix}/share/proj", "/usr/local/share/proj", "/usr/share/proj"]
    return [Path(folder) for folder in dict.fromkeys(folders)]


def _from_grid(path: Path, longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Bilinear in the grid; a grid around the whole Earth has no edge at the date line."""
    try:
        with rasterio.open(path) as raster:
            if raster.crs is None:
                raise SettingError(f"geoid {path} has no CRS: expected a grid of undulations on WGS 84")
            crs = horizontal(CRS.from_wkt(raster.crs.to_wkt()))
            x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(longitude, latitude)
            transform = raster.transform
            column, row = (x - transform.c) / transform.a - 0.5, (y - transform.f) / transform.e - 0.5
            turn = round(360 / transform.a) if crs.is_geographic else 0
            around = 0 < turn <= raster.width
            if around:
                start = np.nanmin(column) if np.isfinite(column).any() else 0.0
                column = start + (column - start + turn / 2) % turn - turn / 2
            values = _bilinear(raster, row, column, turn if around else 0)
    except RasterioError as error:
        raise SettingError(
            f"geoid {path} cannot be read ({error}): expected a grid of undulations in metres"
        ) from error
    known = values[np.isfinite(longitude) & np.isfinite(latitude)]
    if np.isnan(known).any():
        raise SettingError(f"geoid {path} does not reach over the whole DEM: expected a grid that covers it")
    if known.size and not UNDULATION_M[0] <= known.min() <= known.max() <= UNDULATION_M[1]:
        raise SettingError(
            f"geoid {path} has values from {known.min():.0f} to {known.max():.0f}: expected undulations in metres"
        )
    return values


def _bilinear(raster: rasterio.DatasetReader, row: np.ndarray, column: np.ndarray, turn: int) -> np.ndarray:
    """Values between the pixels of a raster, NaN outside; only the rows and columns around the positions are read."""
    out = np.full(row.shape, np.nan)
    last = raster.height - 1
    inside = (row >= -0.5) & (row <= last + 0.5)  # half a pixel beyond the outermost centres at most
    if not turn:
        inside &= (column >= -0.5) & (column <= raster.width - 0.5)
    if not inside.any():
        return out
    row, column = np.clip(row[inside], 0, last), column[inside]
    if not turn:
        column = np.clip(column, 0, raster.width - 1)
    top, left = int(np.floor(row.min())), int(np.floor(column.min()))
    rows = Window.from_slices((top, min(int(row.max()) + 2, raster.height)), (0, raster.width))
    columns = np.arange(left, int(np.floor(column.max())) + 2)
    columns = columns % turn if turn else np.minimum(columns, raster.width - 1)
    if not turn or columns[-1] - columns[0] == len(columns) - 1:
        rows = Window.from_slices(rows.toslices()[0], (int(columns[0]), int(columns[-1]) + 1))
        columns = columns - columns[0]
    values = raster.read(1, window=rows, masked=True).astype(np.float64).filled(np.nan)[:, columns]
    i, j = (np.floor(row) - top).astype(int), (np.floor(column) - left).astype(int)
    down, right = row - top - i, column - left - j
    below = np.minimum(i + 1, len(values) - 1)
    upper = values[i, j] * (1 - right) + values[i, j + 1] * right
    out[inside] = upper * (1 - down) + (values[below, j] * (1 - right) + values[below, j + 1] * right) * down
    return out
