"""Areas made of real chips: a STAC ItemCollection over them and the configuration that maps them.

Each function writes what it must into ``folder`` and returns a configuration, as ``config/config.yaml`` would hold it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_bounds
from rasterio.warp import transform_geom
from shapely.geometry import box, mapping, shape

LEGENDS = Path(__file__).parent / "legends"
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
BANDS_L1C = (*BANDS[:10], "B10", *BANDS[10:])
SMALL = {
    "network": "unet",
    "options": {"width": 8, "depth": 2},
    "tiles": {"pixels": 32, "stride_pixels": 16, "cell_pixels": 64, "buffer_pixels": 8, "validation": 0.3, "test": 0.2},
    "training": {"epochs": 2, "batch": 4, "threads": 1},
    "prediction": {"window_pixels": 64, "batch": 2},
}
RIM_M = 90  # the area keeps this distance from the chip's border, so that its grid lies within the chip


def stac_item(name: str, sensor: str, time: str, crs: str, bounds: tuple[float, ...], assets: dict[str, Any]) -> Any:
    """Item of analysis-ready rasters; ``sensor`` is sentinel-1a or sentinel-2a."""
    geometry = transform_geom(crs, "EPSG:4326", mapping(box(*bounds)))
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": geometry,
        "bbox": list(shape(geometry).bounds),
        "properties": {"datetime": time, "platform": sensor},
        "links": [],
        "assets": assets,
    }


def write_catalog(folder: Path, items: list[dict[str, Any]]) -> str:
    """ItemCollection of ``items``; its absolute path."""
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return str(path)


def write_area(path: Path, crs: str, bounds: tuple[float, ...]) -> str:
    """GeoJSON of the part of a chip that is mapped; its absolute path."""
    left, bottom, right, top = bounds
    inner = box(left + RIM_M, bottom + RIM_M, right - RIM_M, top - RIM_M)
    path.write_text(json.dumps(transform_geom(crs, "EPSG:4326", mapping(inner))))
    return str(path)


def slovenia(folder: Path, data: Path) -> dict[str, Any]:
    """Five dates of 13 bands as one GeoTIFF a band, and land-use polygons; Sentinel-2 only, no SCL.

    The patch keeps 68 times and five scenes, but not which are which: the first five times are taken.
    """
    chip = data / "chips" / "eolearn_slovenia"
    scenes = np.load(chip / "REFERENCE_SCENES.npy")  # (date, y, x, band) reflectance
    times = json.loads((chip / "timestamps.json").read_text())[: len(scenes)]
    crs, bounds = "EPSG:32633", shape(json.loads((chip / "bbox.geojson").read_text())).bounds
    items = []
    for time, scene in zip(times, scenes, strict=True):
        name = f"slovenia_{time[:10]}"
        assets = write_bands(folder / name, np.rint(scene * 10_000).astype(np.uint16), crs, bounds)
        items.append(stac_item(name, "sentinel-2a", f"{time}Z", crs, bounds, assets))
    area = {
        "area": write_area(folder / "slovenia.geojson", crs, bounds),
        "crs": crs,
        "period": {"start": times[0][:10], "end": times[-1][:10]},
        "provider": {"name": "stac", "catalog": write_catalog(folder, items)},
        "sensors": ["sentinel2"],
        "labels": {
            "source": "vector",
            "path": str(chip / "vector_timeless" / "LULC.gpkg"),
            "legend": str(LEGENDS / "slovenia_lulc.csv"),
            "attribute": "LULC_ID",
        },
        "model": "tiny",
        "block_pixels": 128,
        "sentinel2": {"scl": "optional"},
    }
    tiles = {"pixels": 32, "stride_pixels": 16, "cell_pixels": 32, "buffer_pixels": 0, "validation": 0.3, "test": 0.2}
    model = {**SMALL, "train_on": ["slovenia"], "sensors": ["sentinel2"], "tiles": tiles}
    return {"targets": ["slovenia"], "aois": {"slovenia": area}, "models": {"tiny": model}}


def write_bands(folder: Path, scene: np.ndarray, crs: str, bounds: tuple[float, ...]) -> dict[str, Any]:
    """One GeoTIFF a band of ``scene`` (y, x, band), as assets with hrefs relative to the folder's parent."""
    folder.mkdir()
    height, width, _ = scene.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": scene.dtype, "crs": crs}
    profile["transform"] = from_bounds(*bounds, width, height)
    for number, band in enumerate(BANDS_L1C):
        with rasterio.open(folder / f"{band}.tif", "w", **profile) as raster:
            raster.write(scene[..., number], 1)
    fields = {"type": "image/tiff", "raster:bands": [{"scale": 0.0001, "offset": 0}]}
    return {band: {"href": f"{folder.name}/{band}.tif", **fields} for band in BANDS_L1C}


PLACES = {"paranagua": "282D_485L_3_3", "temuco": "433D_629L_3_1"}
OFFSETS = {"paranagua": 0, "temuco": -0.1}  # darkest pixels at DN 1 and 1050: products without and with the offset


def terramesh(folder: Path, data: Path) -> dict[str, Any]:
    """Two places, each with Sentinel-2 L2A, Sentinel-1 RTC in dB and a land-cover raster, used where they lie."""
    items, areas = [], {}
    for place, name in PLACES.items():
        files = {kind: data / "chips" / "terramesh" / kind / f"{name}.tif" for kind in ("S2L2A", "S1RTC", "LULC")}
        times = {}
        for kind in ("LULC", "S1RTC"):  # the land cover carries the time of the optical scene
            with rasterio.open(files[kind]) as raster:
                times[kind], crs, bounds = raster.tags()["datetime"], raster.crs.to_string(), tuple(raster.bounds)
        numbers = {"scale": 0.0001, "offset": OFFSETS[place]}
        optical = {
            "href": str(files["S2L2A"]),
            "type": "image/tiff",
            "eo:bands": [{"name": band} for band in BANDS],
            "raster:bands": [numbers] * len(BANDS),
        }
        radar = {"href": str(files["S1RTC"]), "type": "image/tiff"}
        items.append(stac_item(f"{place}_s2", "sentinel-2a", times["LULC"], crs, bounds, {"data": optical}))
        items.append(stac_item(f"{place}_s1", "sentinel-1a", times["S1RTC"], crs, bounds, {"data": radar}))
        labels = {"source": "raster", "path": str(files["LULC"]), "legend": str(LEGENDS / "terramesh_lulc.csv")}
        areas[place] = {
            "area": write_area(folder / f"{place}.geojson", crs, bounds),
            "crs": crs,
            "period": {"start": f"{times['LULC'][:8]}01", "end": f"{times['LULC'][:8]}30"},
            "labels": labels,
            "model": f"tiny_{place}",  # one each: their months differ
            "block_pixels": 512,
            "sentinel2": {"scl": "optional"},
        }
    provider = {"name": "stac", "catalog": write_catalog(folder, items)}
    areas = {place: {**area, "provider": provider} for place, area in areas.items()}
    models = {f"tiny_{place}": {**SMALL, "train_on": [place]} for place in PLACES}
    return {"targets": list(PLACES), "aois": areas, "models": models}
