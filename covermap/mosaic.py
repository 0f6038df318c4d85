"""The map: blocks put together into one single-band COG, with its colours, and the confidence beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.features import geometry_mask
from rasterio.windows import Window
from shapely import from_wkt

from covermap import __version__
from covermap.area_settings import Period
from covermap.attribution import TAG, dated
from covermap.errors import CoverageError
from covermap.files import scratch, whole
from covermap.grid import Grid, project
from covermap.legend import NO_LABEL, Legend
from covermap.predict import CONFIDENCE_NODATA
from covermap.raster import read_window
from covermap.scenes import read_listing
from covermap.styles import colour_table, write_attributes, write_qml

log = logging.getLogger(__name__)


def mosaic(
    predictions: list[Path],
    map: Path,
    confidence: Path,
    style: Path,
    attributes: Path,
    listing: Path,
    grid: Grid,
    blocks: list[Grid],
    area: str,
    legend: Legend,
    period: Period,
    model: str,
    attribution: str,
) -> None:
    """Class map and confidence of an area, as Cloud-Optimised GeoTIFFs, and the legend beside the map.

    Parameters
    ----------
    predictions : one raster a block.
    map, confidence : what is written. The map is one band, since a second one would be taken for transparency.
    style, attributes : the map's QGIS style, and its attribute table, which GDAL looks for as ``{map}.aux.xml``.
    listing : scenes of the area, for the years of the attribution.
    grid : of the map.
    blocks : grid of each prediction.
    area : outline, WKT in lon/lat; there is no data beyond it.
    legend : classes, names and colours.
    period, model : go into the tags.
    attribution : whose data the map contains, for the tag of a TIFF that holds copyrights.

    Raises
    ------
    CoverageError
        Not one pixel was observed.
    ProductError
        The list of scenes cannot be read.
    """
    outline = project(from_wkt(area), "EPSG:4326", grid.crs)
    tags = {"period": f"{period.start}/{period.end}", "model": model, "covermap": __version__}
    tags[TAG] = dated(attribution, read_listing(listing).values())
    names = {entry.id: entry.name for entry in legend.classes}
    layers = (
        (map, 1, NO_LABEL, "mode", {**tags, "classes": json.dumps(names, ensure_ascii=False)}, colour_table(legend)),
        (confidence, 2, CONFIDENCE_NODATA, "average", {**tags, "unit": "per cent"}, None),
    )
    for output, band, nodata, resampling, layer_tags, colours in layers:
        with whole(output) as part, scratch(output) as draft:
            counts = assemble(draft, predictions, grid, blocks, outline, band, nodata, layer_tags, colours)
            if not counts.sum() - counts[nodata]:
                raise CoverageError(f"{output}: no pixel of the area was observed: check the scenes and their clouds")
            write_cog(draft, part, resampling)
        if output == map:
            write_attributes(attributes, legend, counts, grid.pixel_m)
    write_qml(style, legend)


def assemble(
    draft: Path,
    predictions: list[Path],
    grid: Grid,
    blocks: list[Grid],
    outline: object,
    band: int,
    nodata: int,
    tags: Mapping[str, str],
    colours: dict[int, tuple[int, int, int, int]] | None,
) -> np.ndarray:
    """Write one band of all blocks into a tiled GeoTIFF, block by block; return the pixels of each value, (256,)."""
    profile = {
        "driver": "GTiff",
        "count": 1,
        "dtype": "uint8",
        "width": grid.width,
        "height": grid.height,
        "crs": grid.crs,
        "transform": grid.transform,
        "nodata": nodata,
        "tiled": True,
        "compress": "ZSTD",
        "zstd_level": 1,
        "sparse_ok": True,
        "bigtiff": "IF_SAFER",
    }
    counts = np.zeros(256, np.int64)
    with rasterio.open(draft, "w", **profile) as raster:
        for path, block in zip(predictions, blocks, strict=True):
            part = block.cropped(grid.bounds)
            if part is None:
                continue
            values = read_window(path, part, fill=nodata, indexes=[band])[0]
            beyond = geometry_mask([outline], part.shape, part.transform)
            values = np.where(beyond, np.uint8(nodata), values)
            row, column = part.offset_in(grid)
            raster.write(values, 1, window=Window(column, row, part.width, part.height))
            counts += np.bincount(values.ravel(), minlength=256)
        raster.update_tags(**tags)
        if colours:
            raster.write_colormap(1, colours)
    log.info("%d of %d pixels mapped", counts.sum() - counts[nodata], grid.width * grid.height)
    return counts


def write_cog(source: Path, output: Path, resampling: str) -> None:
    """Copy a raster as a Cloud-Optimised GeoTIFF with overviews of the given resampling."""
    rasterio.shutil.copy(
        source,
        output,
        driver="COG",
        compress="DEFLATE",
        blocksize=512,
        overview_resampling=resampling,
        resampling=resampling,
        bigtiff="IF_SAFER",
    )
