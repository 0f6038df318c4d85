"""The granule of a Sentinel-2 product: its name, where it lies, and how its images are written."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import transform

from covermap.simulator.landscape import Landscape
from covermap.simulator.overpass import RELATIVE_ORBIT, Acquisition, generation_time
from covermap.simulator.random_fields import Floats

TILE = "T21LYF"
BEYOND_M = 1000  # how far the granule reaches beyond the world
COARSEST_M = 60  # granule corners lie on multiples of it, from the equator's false northing and from easting 0
FALSE_NORTHING_M = 10_000_000


@dataclass(frozen=True)
class Granule:
    """Where the granule lies: corner [m], pixels of 10 m a side, window in the landscape, folder and image prefix."""

    crs: str
    left: int
    top: int
    size: int
    window: tuple[slice, slice]
    folder: str
    prefix: str

    @classmethod
    def of(cls, landscape: Landscape, acquisition: Acquisition) -> Granule:
        """Granule that reaches at least BEYOND_M past the world, from a corner on the lattice of 60 m."""
        pixel, world = landscape.pixel_m, landscape.classes.shape[0] - 2 * landscape.margin
        inset = landscape.margin * pixel - BEYOND_M
        left = int((landscape.left + inset) // COARSEST_M) * COARSEST_M
        top = FALSE_NORTHING_M - int((FALSE_NORTHING_M - landscape.top + inset) // COARSEST_M) * COARSEST_M
        column, row = round((left - landscape.left) / pixel), round((landscape.top - top) / pixel)
        most = landscape.classes.shape[0] - max(row, column) - 4
        size = min((world + 2 * BEYOND_M / pixel + 12) // 6, most // 6) * 6
        window = slice(row, row + int(size)), slice(column, column + int(size))
        sensed = acquisition.start + timedelta(seconds=4)
        folder = f"GRANULE/L2A_{TILE}_A{acquisition.absolute_orbit:06d}_{sensed:%Y%m%dT%H%M%S}"
        return cls(landscape.crs, left, top, int(size), window, folder, f"{TILE}_{acquisition.start:%Y%m%dT%H%M%S}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    @property
    def footprint(self) -> list[list[float]]:
        """Closed ring of corners, [longitude, latitude]."""
        right, bottom = self.left + 10 * self.size, self.top - 10 * self.size
        x = [self.left, self.left, right, right, self.left]
        y = [self.top, bottom, bottom, self.top, self.top]
        longitude, latitude = transform(self.crs, "EPSG:4326", x, y)
        return [[round(lon, 7), round(lat, 7)] for lon, lat in zip(longitude, latitude, strict=True)]

    def write(
        self, images: Path, band: str, resolution: int, values: NDArray[Any], acquisition: Acquisition | None
    ) -> None:
        """Write reflectance of ``acquisition`` (or codes, where it is None) as lossless JPEG 2000."""
        numbers = values if acquisition is None else digital_numbers(values, acquisition.baseline)
        path = images / f"R{resolution}m" / f"{self.prefix}_{band}_{resolution}m.jp2"
        corner = Affine(resolution, 0, self.left, 0, -resolution, self.top)
        profile = {"driver": "JP2OpenJPEG", "count": 1, "dtype": numbers.dtype.name, "crs": self.crs}
        lossless = {"QUALITY": "100", "REVERSIBLE": "YES", "tiled": True, "blockxsize": 1024, "blockysize": 1024}
        height, width = numbers.shape
        with rasterio.open(path, "w", width=width, height=height, transform=corner, **profile, **lossless) as raster:
            raster.write(numbers, 1)


def product_name(acquisition: Acquisition) -> str:
    """Name of the product without ``.SAFE`` (Sentinel-2 Products Specification Document, naming convention)."""
    made = generation_time(acquisition)
    return (
        f"{acquisition.satellite}_MSIL2A_{acquisition.start:%Y%m%dT%H%M%S}_N{acquisition.baseline.replace('.', '')}"
        f"_R{RELATIVE_ORBIT:03d}_{TILE}_{made:%Y%m%dT%H%M%S}"
    )


def digital_numbers(reflectance: Floats, baseline: str) -> NDArray[np.uint16]:
    """DN = reflectance * 10,000, plus 1,000 from processing baseline 04.00 on; 0 is left for 'no data'."""
    offset = 1000 if baseline >= "04.00" else 0
    return np.clip(np.rint(reflectance * 10_000) + offset, 1, 65_534).astype(np.uint16)
