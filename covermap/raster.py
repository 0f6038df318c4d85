"""Raster files of the house: whole or absent, one profile, tags that say where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from covermap import __version__
from covermap.errors import ProductError, RoomError
from covermap.files import whole
from covermap.grid import Grid

TILE = 512
PLACE = ("OFFSET", "SIZE")  # of a tile in its file, as GDAL tells it


@contextmanager
def new_raster(
    output: Path,
    grid: Grid,
    *,
    count: int,
    dtype: np.dtype | str,
    nodata: float | None,
    descriptions: Sequence[str] = (),
    tags: Mapping[str, object] | None = None,
    interleave: str = "pixel",
) -> Iterator[rasterio.io.DatasetWriter]:
    """GeoTIFF on ``grid`` open for writing: 512 px tiles, ZSTD level 1, whole or absent.

    ``interleave="band"`` keeps each band apart, for files that are written and read band by band.

    Raises
    ------
    RoomError
        What was written did not fit on the disk.
    """
    profile = {
        "driver": "GTiff",
        "count": count,
        "height": grid.height,
        "width": grid.width,
        "dtype": dtype,
        "crs": grid.crs,
        "transform": grid.transform,
        "nodata": nodata,
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "interleave": interleave,
        "compress": "ZSTD",
        "zstd_level": 1,
        "predictor": 3 if np.issubdtype(dtype, np.floating) else 2,
        "bigtiff": "IF_SAFER",
    }
    with whole(output) as part:
        with rasterio.open(part, "w", **profile) as raster:
            raster.descriptions = tuple(descriptions) or (None,) * count
            raster.update_tags(covermap=__version__, **{key: str(value) for key, value in (tags or {}).items()})
            yield raster
        if not is_whole(part):
            raise RoomError(f"{output} cannot be written whole: make room on the disk and run again")


def is_whole(path: Path) -> bool:
    """Whether a GeoTIFF holds all of its tiles: where the disk is full, GDAL may be silent when it closes a file."""
    size = path.stat().st_size
    try:
        with rasterio.open(path) as raster:
            for band in raster.indexes:
                for (row, column), _ in raster.block_windows(band):
                    place = (raster.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", band) for what in PLACE)
                    if sum(int(number or 0) for number in place) > size:
                        return False
    except RasterioError:
        return False
    return True


def write_raster(
    output: Path,
    array: np.ndarray,
    grid: Grid,
    *,
    nodata: float | None,
    descriptions: Sequence[str] = (),
    tags: Mapping[str, object] | None = None,
) -> None:
    """GeoTIFF of ``array`` (band, y, x) on ``grid``: 512 px tiles, ZSTD level 1, whole or absent."""
    with new_raster(
        output, grid, count=len(array), dtype=array.dtype, nodata=nodata, descriptions=descriptions, tags=tags
    ) as raster:
        raster.write(array)


def grid_of(raster: rasterio.DatasetReader) -> Grid:
    """Grid of an open north-up raster with square pixels."""
    transform = raster.transform
    return Grid(
        crs=raster.crs.to_string(),
        left=transform.c,
        top=transform.f,
        width=raster.width,
        height=raster.height,
        pixel_m=transform.a,
    )


def read_grid(path: Path) -> Grid:
    """Grid of a raster file, as of ``grid_of``.

    Raises
    ------
    ProductError
        The file is missing or broken.
    """
    try:
        with rasterio.open(path) as raster:
            return grid_of(raster)
    except RasterioError as error:
        raise ProductError(f"{path} cannot be read as a raster ({error}): remove it and run again") from error


def read_window(path: Path, grid: Grid, *, fill: float, indexes: Sequence[int] | None = None) -> np.ndarray:
    """Pixels (band, y, x) of ``grid`` out of a raster on the same lattice; ``fill`` where the raster has none.

    Raises
    ------
    ProductError
        The file is missing or broken.
    SettingError
        The raster lies on another lattice.
    """
    try:
        with rasterio.open(path) as raster:
            return read_pixels(raster, grid, fill=fill, indexes=indexes)
    except RasterioError as error:
        raise ProductError(f"{path} cannot be read as a raster ({error}): remove it and run again") from error


def read_pixels(
    raster: rasterio.DatasetReader, grid: Grid, *, fill: float, indexes: Sequence[int] | None = None
) -> np.ndarray:
    """What ``read_window`` returns, from a raster that is open."""
    source = grid_of(raster)
    row, column = grid.offset_in(source)
    bands = list(indexes or raster.indexes)
    out = np.full((len(bands), *grid.shape), fill, raster.dtypes[0])
    rows = slice(max(row, 0), min(row + grid.height, source.height))
    columns = slice(max(column, 0), min(column + grid.width, source.width))
    if rows.start < rows.stop and columns.start < columns.stop:
        inside = np.s_[:, rows.start - row : rows.stop - row, columns.start - column : columns.stop - column]
        out[inside] = raster.read(bands, window=Window.from_slices(rows, columns))
    return out
