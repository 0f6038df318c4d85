"""A small area with stacks and labels, made once: two blocks of 256 px, three classes in stripes of fields."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from covermap.area_settings import Composite, Masks, Period
from covermap.grid import Grid
from covermap.raster import write_raster
from covermap.stack import stack_block

PERIOD = Period(start="2022-01-01", end="2022-02-28")
BANDS = ("B04", "B08")


@dataclass(frozen=True)
class Area:
    """Files of the small area."""

    grid: Grid
    blocks: dict[str, Grid]
    stacks: dict[str, Path]
    labels: dict[str, Path]
    classes: np.ndarray
    s1: list[Path]
    s2: list[Path]


def write_scenes(folder, grid, classes):
    random = np.random.default_rng(0)
    power = np.array([0.02, 0.1, 0.3])[classes - 1]
    paths = []
    for month in (1, 2):
        speckled = power * random.gamma(4.4, 1 / 4.4, (2, *grid.shape))
        paths.append(folder / f"s1_{month}.tif")
        tags = {
            "datetime": f"2022-{month:02d}-10T09:30:00Z",
            "convention": "sigma0_ellipsoid",
            "orbit_state": "descending",
        }
        write_raster(paths[-1], speckled.astype(np.float32), grid, nodata=np.nan, descriptions=("VV", "VH"), tags=tags)
    bands = np.stack([np.array([900, 400, 1500])[classes - 1], np.array([2000, 3500, 2200])[classes - 1]])
    bands = bands + random.normal(0, 150, bands.shape)
    scl = np.full((1, *grid.shape), 4)
    optical = folder / "s2_1.tif"
    tags = {"datetime": "2022-01-20T14:00:00Z"}
    scene = np.concatenate([bands, scl]).astype(np.uint16)
    write_raster(optical, scene, grid, nodata=0, descriptions=(*BANDS, "SCL"), tags=tags)
    return paths, [optical]


def stack_of(s1, s2, path, block, period=PERIOD, bands=BANDS, polarisations=("VV", "VH")):
    sensors = ("sentinel1", "sentinel2")
    stack_block(s1, s2, path, block, period, sensors, bands, polarisations, Masks(dilate_m=0), Composite())
    return path


@pytest.fixture(scope="session")
def area(tmp_path_factory):
    folder = tmp_path_factory.mktemp("area")
    grid = Grid(crs="EPSG:32721", left=2560 * 300, top=10_000_000 - 2560 * 3000, width=512, height=256)
    y, x = np.mgrid[: grid.height, : grid.width]
    classes = ((x // 24 + y // 32) % 3 + 1).astype(np.uint8)
    s1, s2 = write_scenes(folder, grid, classes)
    blocks = {"x300y-3001": grid.window(0, 0, 256, 256), "x301y-3001": grid.window(0, 256, 256, 256)}
    stacks, labels = {}, {}
    for name, block in blocks.items():
        stacks[name] = stack_of(s1, s2, folder / f"{name}.zarr.zip", block)
        _, column = block.offset_in(grid)
        label = classes[:, column : column + 256]
        labels[name] = folder / f"{name}.tif"
        layers = np.stack([label, np.full_like(label, 100)])
        write_raster(labels[name], layers, block, nodata=0, descriptions=("class", "weight"))
    return Area(grid, blocks, stacks, labels, classes, s1, s2)
