"""A made-up world with a known truth, in the files that real satellites and agencies deliver.

It checks the software; it is no evidence of the accuracy of any map of the real world. Nothing here is imported from
the rest of covermap: it has its own geometry and constants, so that an error cannot cancel itself.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

import rasterio

from covermap.simulator.catalog import write_catalog, write_dem, write_truth
from covermap.simulator.labels import write_labels
from covermap.simulator.landscape import Landscape, make_landscape
from covermap.simulator.overpass import ACQUISITIONS
from covermap.simulator.sentinel1 import simulate_sentinel1_scene
from covermap.simulator.sentinel2 import simulate_sentinel2
from covermap.simulator.viewing import SCENE_DAYS

__all__ = ["make_landscape", "simulate_demo"]

LOG = logging.getLogger(__name__)
Simulate = Callable[[Landscape, Path, Any, int], dict[str, Any]]


def simulate_demo(
    catalog: Path, dem: Path, labels: Path, truth: Path, pixels: int, seed: int, threads: int = 1
) -> None:
    """Write the world of the demo: products and their catalogue, elevation model, weak labels and the true map.

    Parameters
    ----------
    catalog : STAC ItemCollection; products go to ``products`` beside it. Written last: where it is, all is whole.
    dem : heights above the ellipsoid, one arc second, EPSG:4979.
    labels : weak labels, MapBiomas codes, EPSG:4326, 30 m.
    truth : true map of the same codes, 10 m; for the evaluation only.
    pixels : side of the world in pixels of 10 m.
    seed : the same seed gives the same bytes.
    threads : worker processes, one product each at a time.
    """
    catalog.unlink(missing_ok=True)
    products = catalog.parent / "products"
    shutil.rmtree(products, ignore_errors=True)  # what an interrupted run left
    products.mkdir(parents=True)
    landscape = make_landscape(pixels, seed)
    LOG.info("landscape of %d x %d pixels made from seed %d", pixels, pixels, seed)
    _whole(dem, partial(write_dem, landscape=landscape))
    _whole(truth, partial(write_truth, landscape=landscape))
    _whole(labels, partial(write_labels, landscape=landscape, seed=seed))
    tasks: list[tuple[Simulate, Any]] = [(simulate_sentinel1_scene, day) for day in SCENE_DAYS]
    tasks += [(simulate_sentinel2, acquisition) for acquisition in ACQUISITIONS]
    items = []
    for item in _simulated(landscape, products, seed, tasks, threads):
        items.append(item)
        LOG.info("product %d of %d: %s", len(items), len(tasks), item["id"])
    _whole(catalog, partial(write_catalog, items=items))


def _whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a file beside ``path`` and give it its name when it is whole."""
    unfinished = path.with_name(f".{path.stem}.part{path.suffix}")
    write(unfinished)
    os.replace(unfinished, path)


def _simulated(
    landscape: Landscape, products: Path, seed: int, tasks: list[tuple[Simulate, Any]], threads: int
) -> Iterator[dict[str, Any]]:
    """Make products, in this process or shared out to ``threads`` others, and yield their items in order."""
    if threads == 1:
        yield from (make(landscape, products, when, seed) for make, when in tasks)
        return
    with _spawnable(), ProcessPoolExecutor(threads, get_context("spawn"), _begin, (landscape,)) as pool:
        yield from pool.map(partial(_make, products, seed), tasks)


_LANDSCAPE: list[Landscape] = []  # of a worker process: handed over once, not with every product


def _begin(landscape: Landscape) -> None:
    """Start a worker: keep the landscape; end when the parent was killed, so that nothing writes beside a rerun."""
    _LANDSCAPE.append(landscape)
    parent = parent_process()
    if parent is not None:
        Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _make(products: Path, seed: int, task: tuple[Simulate, Any]) -> dict[str, Any]:
    """One product, in a worker process."""
    make, when = task
    with rasterio.Env(GDAL_NUM_THREADS="1"):
        return make(_LANDSCAPE[0], products, when, seed)


@contextmanager
def _spawnable() -> Iterator[None]:
    """Children start with one thread each, and without the main module: a workflow script has no guard against it."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    before = {name: os.environ.get(name) for name in limits}
    main = sys.modules["__main__"]
    script = vars(main).pop("__file__", None)
    os.environ.update(limits)
    try:
        yield
    finally:
        if script is not None:
            main.__file__ = script
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
