"""Sentinel-2 L2A products of the made-up land: reflectance by class and season, clouds, and a fallible scene class.

The SAFE folders have the names, metadata and image files of real ones (PSD-14), with these cuts: a real granule has
10,980 x 10,980 pixels of 10 m, these end about 1 km beyond the world; there are no AOT, WVP, TCI and QI_DATA files
and no DATASTRIP folder.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from covermap.simulator.clouds import binned, classify_scene, make_weather, through_weather
from covermap.simulator.granule import TILE, Granule, product_name
from covermap.simulator.landscape import Landscape
from covermap.simulator.overpass import RELATIVE_ORBIT, Acquisition, sensing_time
from covermap.simulator.random_fields import Floats
from covermap.simulator.reflectance import BANDS, ground_reflectance, in_window
from covermap.simulator.sentinel2_xml import manifest, product_xml, stamp, tile_xml

BANDS_10M = ("B02", "B03", "B04", "B08")


def simulate_sentinel2(landscape: Landscape, products: Path, acquisition: Acquisition, seed: int) -> dict[str, Any]:
    """Write one product below ``products`` and return its STAC item (href ``products/<NAME>.SAFE``).

    The folder appears whole or not at all; what an earlier run left is replaced.
    """
    name = product_name(acquisition)
    part = products / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    granule = Granule.of(landscape, acquisition)
    images = part / granule.folder / "IMG_DATA"
    for resolution in (10, 20, 60):
        (images / f"R{resolution}m").mkdir(parents=True)

    rng = np.random.default_rng([seed, 4, acquisition.start.toordinal()])
    weather = make_weather(rng, granule.shape, acquisition)
    seen: dict[str, Floats] = {}  # reflectance at 20 m, for the scene class
    for band, ground in zip(BANDS, ground_reflectance(landscape, granule.window, acquisition, seed), strict=True):
        reflectance = through_weather(ground, band, weather)
        if band == "B02":  # the coastal band sees what blue sees, a little darker over land and brighter in haze
            granule.write(images, "B01", 60, _noisy(rng, binned(0.88 * reflectance + 0.004, 6)), acquisition)
        if band not in BANDS_10M or band in ("B03", "B04", "B08"):
            seen[band] = binned(reflectance, 2)
        if band in BANDS_10M:
            granule.write(images, band, 10, _noisy(rng, reflectance), acquisition)
        else:
            granule.write(images, band, 20, _noisy(rng, seen[band]), acquisition)
    classes = in_window(landscape.classes, granule.window)[::2, ::2]
    parcels = in_window(landscape.parcels, granule.window)[::2, ::2]
    scene_class = classify_scene(rng, seen, weather, classes, parcels)
    granule.write(images, "SCL", 20, scene_class, None)

    shares = np.bincount(scene_class.ravel(), minlength=12) / scene_class.size * 100
    (part / "MTD_MSIL2A.xml").write_text(product_xml(granule, acquisition, part), "utf-8")
    (part / granule.folder / "MTD_TL.xml").write_text(tile_xml(granule, acquisition, shares), "utf-8")
    (part / "manifest.safe").write_text(manifest(granule, acquisition, part), "utf-8")
    whole = products / f"{name}.SAFE"
    shutil.rmtree(whole, ignore_errors=True)
    os.replace(part, whole)
    return _item(granule, acquisition, float(shares[8:11].sum()))


def _noisy(rng: np.random.Generator, reflectance: Floats) -> Floats:
    """Reflectance with the noise of the detectors."""
    return reflectance + (0.0012 + 0.008 * reflectance) * rng.standard_normal(reflectance.shape, np.float32)


def _item(granule: Granule, acquisition: Acquisition, cloud_percent: float) -> dict[str, Any]:
    """STAC item of the product."""
    name, ring = product_name(acquisition), granule.footprint
    longitudes, latitudes = zip(*ring, strict=True)
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
            "https://stac-extensions.github.io/sat/v1.0.0/schema.json",
            "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
        ],
        "id": name,
        "collection": "sentinel-2-l2a",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [min(longitudes), min(latitudes), max(longitudes), max(latitudes)],
        "properties": {
            "datetime": stamp(sensing_time(acquisition)),
            "platform": f"sentinel-{acquisition.satellite[1:].lower()}",
            "constellation": "sentinel-2",
            "instruments": ["msi"],
            "eo:cloud_cover": round(cloud_percent, 6),
            "s2:mgrs_tile": TILE[1:],
            "s2:processing_baseline": acquisition.baseline,
            "sat:orbit_state": "descending",
            "sat:relative_orbit": RELATIVE_ORBIT,
            "sat:absolute_orbit": acquisition.absolute_orbit,
            "proj:code": granule.crs,
        },
        "links": [],
        "assets": {
            "product": {
                "href": f"products/{name}.SAFE",
                "type": "application/vnd.esa.safe",
                "roles": ["data"],
            }
        },
    }
