"""The stack's part of ``benchmarks/sentinel2.py``: the composite, its memory, and how fast windows are read.

``python benchmarks/_stack.py 1024`` tries them on 1024 px; smaller blocks fit into GDAL's cache whole.
"""

import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import rasterio
import xarray
from _peers import report
from rasterio.windows import Window

from covermap.area_settings import Composite, Masks, Period
from covermap.composite import composite_reflectance
from covermap.grid import Grid
from covermap.raster import write_raster
from covermap.stack import read_stack, stack_block

ROWS = 256  # of a row band: what stack_block has in work at once
SIDE = 256  # of a window
FIELD_PIXELS = 32
START = date(2021, 1, 1)
GDAL_CACHE_MB = 64  # as for a data set that is larger than memory


def figures(dates: int = 24, bands: int = 10, pixels: int = 2048, cloudy: float = 0.4, windows: int = 100) -> dict:
    """Composite of a block and windows of its stack, in one process and one thread.

    - ``composite_ratio``: seconds of the faster of numpy's and xarray's median that skips NaN, over ours. Theirs is
      measured on 256 rows of one band and scaled to the block, since the whole takes minutes.
    - ``composite_peak_row_bands``: most memory allocated while a stack is written, over the bytes of 256 rows of one
      band of all dates; of two row bands, as more make no difference.
    - ``windows_per_s``: random windows of 256 px, all dates and bands, of a stack of scenes.
    - ``windows_ratio_geotiff``: that over the same from a GeoTIFF a date (512 px tiles, ZSTD level 1, interleaved by
      pixel, without predictor: the variant that reads fastest), all of them open.
    """
    random = np.random.default_rng(0)
    composite_reflectance(np.ones((2, 1, 1), np.uint16), np.ones((2, 1, 1), bool), "median")  # compiled once
    result = composite_figures(random, dates, bands, pixels, cloudy)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        grid = Grid(crs="EPSG:32721", left=600000, top=8000040, width=pixels, height=pixels)
        scenes = write_scenes(random, folder, grid, dates, bands, cloudy)
        result["composite_peak_row_bands"] = round(peak_bytes(scenes, grid, bands) / (dates * ROWS * pixels * 2), 1)
        return result | window_figures(random, folder, scenes, grid, bands, windows)


def seconds(function: Callable, *arguments: object) -> tuple[float, np.ndarray]:
    """Of a call, and its result."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def composite_figures(random: np.random.Generator, dates: int, bands: int, pixels: int, cloudy: float) -> dict:
    """Medians of a whole block, band by band in row bands."""
    ours, shape = 0.0, (dates, ROWS, pixels)
    for _ in range(0, pixels, ROWS):
        used = random.random(shape, np.float32) > cloudy
        for _ in range(bands):
            observations = random.integers(1, 10_000, shape, np.uint16)
            spent, median = seconds(composite_reflectance, observations, used, "median")
            ours += spent
    floats, theirs = np.where(used, observations, np.float32(np.nan)), []
    for peer in (lambda: np.nanmedian(floats, 0), lambda: xarray.DataArray(floats).median("dim_0").values):
        with np.errstate(all="ignore"):
            spent, expected = seconds(peer)
        theirs.append(spent * bands * pixels / ROWS)
        assert np.nanmax(np.abs(median - expected)) <= 0.5  # a mean of two integers is rounded
    return {"composite_ratio": round(min(theirs) / ours, 1), "composite_s": round(ours, 1)}


def fields(random: np.random.Generator, grid: Grid, low: float, high: float) -> np.ndarray:
    """Values (y, x) of fields of 320 m."""
    size = (-(-grid.height // FIELD_PIXELS), -(-grid.width // FIELD_PIXELS))
    coarse = random.uniform(low, high, size)
    return np.kron(coarse, np.ones((FIELD_PIXELS, FIELD_PIXELS)))[: grid.height, : grid.width]


def write_scenes(
    random: np.random.Generator, folder: Path, grid: Grid, dates: int, bands: int, cloudy: float
) -> list[Path]:
    """Scenes of fields with noise, of which clouds hide whole fields."""
    land = [fields(random, grid, 300, 4000) for _ in range(bands)]
    paths = []
    for number in range(dates):
        noisy = [plane * random.uniform(0.8, 1.2) + random.normal(0, 40, grid.shape) for plane in land]
        scl = np.where(fields(random, grid, 0, 1) < cloudy, 9, 4)
        paths.append(folder / f"s{number:02d}.tif")
        pixels = np.clip([*noisy, scl], 1, 65535).astype(np.uint16)
        names = (*(f"B{band}" for band in range(bands)), "SCL")
        tags = {"datetime": f"{START + timedelta(days=number)}T14:00:00Z"}
        write_raster(paths[-1], pixels, grid, nodata=0, descriptions=names, tags=tags)
    return paths


def make_stack(scenes: list[Path], stack: Path, grid: Grid, bands: int, **composite: str) -> None:
    period = Period(start=START, end=START + timedelta(days=len(scenes)))
    names = tuple(f"B{band}" for band in range(bands))
    masks = Masks(dilate_m=0)
    stack_block([], scenes, stack, grid, period, ("sentinel2",), names, (), masks, Composite(**composite))


def peak_bytes(scenes: list[Path], grid: Grid, bands: int) -> int:
    """Most memory allocated while a stack of two row bands is written."""
    stack = scenes[0].with_name("part.zarr.zip")
    make_stack(scenes[:1], stack, grid.window(0, 0, 8, 8), bands)  # what is imported once does not count
    tracemalloc.start()
    make_stack(scenes, stack, grid.window(0, 0, min(grid.height, 2 * ROWS), grid.width), bands)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def window_figures(
    random: np.random.Generator, folder: Path, scenes: list[Path], grid: Grid, bands: int, windows: int
) -> dict:
    """Random windows of a stack of all scenes, and of the same pixels as a GeoTIFF a date."""
    stack = folder / "whole.zarr.zip"
    written, _ = seconds(lambda: make_stack(scenes, stack, grid, bands, every="scene"))
    rasters = write_geotiffs(folder, stack, grid)
    corners = random.integers(0, grid.width - SIDE + 1, (windows, 2)).tolist()
    with rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_MB):
        opened = [rasterio.open(path) for path in rasters]

        def theirs(row: int, column: int) -> np.ndarray:
            return np.stack([raster.read(window=Window(column, row, SIDE, SIDE)) for raster in opened])

        def ours(row: int, column: int) -> np.ndarray:
            return read_stack(stack, slice(row, row + SIDE), slice(column, column + SIDE), ("s2",))["s2"]

        assert (ours(*corners[0]) == theirs(*corners[0])).all()
        spent = [seconds(lambda read=read: [read(*corner) for corner in corners][-1])[0] for read in (ours, theirs)]
        for raster in opened:
            raster.close()
    return {
        "windows_per_s": round(windows / spent[0], 1),
        "windows_ratio_geotiff": round(spent[1] / spent[0], 1),
        "stack_mb": round(stack.stat().st_size / 1e6),
        "geotiff_mb": round(sum(path.stat().st_size for path in rasters) / 1e6),
        "stack_s": round(written, 1),
    }


def write_geotiffs(folder: Path, stack: Path, grid: Grid) -> list[Path]:
    """A GeoTIFF for every date of a stack."""
    profile = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "ZSTD", "zstd_level": 1}
    paths = []
    for number, pixels in enumerate(read_stack(stack, slice(None), slice(None), ("s2",))["s2"]):
        paths.append(folder / f"date{number:02d}.tif")
        size = {"count": len(pixels), "height": grid.height, "width": grid.width, "dtype": "uint16"}
        place = {"crs": grid.crs, "transform": grid.transform}
        with rasterio.open(paths[-1], "w", driver="GTiff", **size, **place, **profile, interleave="pixel") as raster:
            raster.write(pixels)
    return paths


if __name__ == "__main__":
    report("stack", **figures(pixels=int(sys.argv[1]) if len(sys.argv) > 1 else 2048))
