"""Clipping a whole Sentinel-2 tile and an area of 20 km out of it, against its JPEG 2000 decode and two peers.

The tile is simulated: a SAFE of Level-2A with ten bands and SCL, lossless JP2 in blocks of 1024 px, about 8 bits a
pixel as over land. ``benchmarks/sentinel2.py 2048`` makes a small one.

Figures: ``clip_over_decode_tile`` and ``clip_over_decode_aoi`` (time of ``clip_s2`` over that of decoding the blocks
that it touches, with the same threads and nothing else), ``clip_over_decode`` (the worse of them); ``ratio_odc`` and
``ratio_rioxarray`` (their time over ours for the area: ten bands and SCL on 10 m as a GeoTIFF of reflectance),
``ratio_odc_array`` and ``ratio_rioxarray_array`` (theirs until the digital numbers are in memory, over the whole of
ours); ``mpx_per_s`` (pixels of the whole tile, all bands); ``peak_gb`` (of the whole tile); and those of the stack
(``_stack.py``).
"""

import sys
import tempfile
from pathlib import Path

import _stack
import numpy as np
import rasterio
from _peers import PYTHON, ROOT, install, report, run
from rasterio.transform import from_origin

from covermap.area_settings import Sentinel2
from covermap.grid import Grid

TILE, TIME, THREADS, RUNS = "T33UUU", "20220510T101601", 2, 3
NAME = f"S2A_MSIL2A_{TIME}_N0400_R065_{TILE}_20220510T141010.SAFE"
GRANULE = f"GRANULE/L2A_{TILE}_A035930_{TIME}"
CRS, LEFT, TOP = "EPSG:32633", 300000, 5900040
PIXEL_M = {band: 10 if band in ("B02", "B03", "B04", "B08") else 20 for band in (*Sentinel2().bands, "SCL")}
METADATA = """<n1:Level-2A_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-2A.xsd">
<n1:General_Info><Product_Info><PROCESSING_BASELINE>04.00</PROCESSING_BASELINE></Product_Info>
<BOA_QUANTIFICATION_VALUE>10000</BOA_QUANTIFICATION_VALUE><BOA_ADD_OFFSET_VALUES_LIST>{}</BOA_ADD_OFFSET_VALUES_LIST>
</n1:General_Info></n1:Level-2A_User_Product>"""

OURS = """
import sys
import time
from pathlib import Path
from covermap.grid import Grid
from covermap.sentinel2 import clip_s2
from covermap.area_settings import Sentinel2
product, out, grid, threads, runs = sys.argv[1:]
item = {"id": "simulated", "properties": {"datetime": "2022-05-10T10:16:01Z"}}
seconds = []
for _ in range(int(runs)):
    start = time.perf_counter()
    clip_s2(Path(product), Path(out), item, Grid.model_validate_json(grid), Sentinel2(), int(threads))
    seconds.append(time.perf_counter() - start)
print(min(seconds))
"""
DECODE = """
import sys
import time
from concurrent.futures import ThreadPoolExecutor
import rasterio
from rasterio.windows import Window, from_bounds
threads, runs, left, bottom, right, top, *paths = sys.argv[1:]
bounds = [float(side) for side in (left, bottom, right, top)]

def decode(task):
    path, row, columns = task
    with rasterio.Env(GDAL_NUM_THREADS=1), rasterio.open(path) as raster:
        height, width = raster.block_shapes[0]
        for column in columns:
            size = min(width, raster.width - column * width), min(height, raster.height - row * height)
            raster.read(1, window=Window(column * width, row * height, *size))

tasks = []
for path in paths:
    with rasterio.open(path) as raster:
        height, width = raster.block_shapes[0]
        (row0, row1), (column0, column1) = from_bounds(*bounds, raster.transform).round().toranges()
        columns = range(column0 // width, -(-column1 // width))
        tasks += [(path, row, columns) for row in range(row0 // height, -(-row1 // height))]
seconds = []
for _ in range(int(runs)):
    start = time.perf_counter()
    with ThreadPoolExecutor(int(threads)) as pool:
        list(pool.map(decode, tasks))
    seconds.append(time.perf_counter() - start)
print(min(seconds))
"""
WRITE = """
import numpy as np
import rasterio
from rasterio.transform import from_origin

def write(out, crs, box, layers):
    height, width = layers[0].shape
    profile = {"driver": "GTiff", "count": len(layers), "height": height, "width": width, "dtype": "uint16", "crs": crs,
               "transform": from_origin(box[0], box[3], 10, 10), "nodata": 0, "tiled": True, "blockxsize": 512,
               "blockysize": 512, "interleave": "band", "compress": "ZSTD", "zstd_level": 1, "predictor": 2,
               "NUM_THREADS": 2}
    with rasterio.open(out, "w", **profile) as raster:
        for index, layer in enumerate(layers, 1):
            if index < len(layers):  # the last is SCL
                layer = np.where(layer == 0, 0, np.maximum(layer, 1001) - 1000)
            raster.write(layer.astype("uint16"), index)
"""
ODC = """
import sys
import time
import odc.stac
import pystac
from datetime import datetime
from odc.geo.geobox import GeoBox
out, threads, runs, crs, left, bottom, right, top, *paths = sys.argv[1:]
box = [float(side) for side in (left, bottom, right, top)]
grid = GeoBox.from_bbox(box, crs=crs, resolution=10)
geometry = grid.geographic_extent.json
item = pystac.Item("simulated", geometry, grid.geographic_extent.boundingbox.bbox, datetime(2022, 5, 10), {})
names = [path.split("_")[-2] for path in paths]
for name, path in zip(names, paths):
    item.add_asset(name, pystac.Asset(path, media_type="image/jp2", roles=["data"]))
arrays, files = [], []
for _ in range(int(runs)):
    start = time.perf_counter()
    loaded = odc.stac.load([item], bands=names, geobox=grid, dtype="uint16", nodata=0, pool=int(threads))
    arrays.append(time.perf_counter() - start)
    write(out, crs, box, [loaded[name].values[0] for name in names])
    files.append(time.perf_counter() - start)
assert loaded[names[0]].shape[1:] == grid.shape and int(loaded[names[0]].min()) > 0
print(min(arrays), min(files))
"""
RIOXARRAY = """
import sys
import time
from concurrent.futures import ThreadPoolExecutor
import rioxarray
from affine import Affine
out, threads, runs, crs, left, bottom, right, top, *paths = sys.argv[1:]
box = [float(side) for side in (left, bottom, right, top)]
shape = int(box[3] - box[1]) // 10, int(box[2] - box[0]) // 10

def load(path):
    with rioxarray.open_rasterio(path, lock=False) as raster:
        part = raster.rio.clip_box(*box)
        return part.rio.reproject(crs, shape=shape, transform=Affine(10, 0, box[0], 0, -10, box[3])).to_numpy()

arrays, files = [], []
for _ in range(int(runs)):
    start = time.perf_counter()
    with ThreadPoolExecutor(int(threads)) as pool:
        loaded = list(pool.map(load, paths))
    arrays.append(time.perf_counter() - start)
    write(out, crs, box, [layer[0] for layer in loaded])
    files.append(time.perf_counter() - start)
assert loaded[0].shape[1:] == shape and loaded[0].min() > 0
print(min(arrays), min(files))
"""


def texture(side: int, random: np.random.Generator) -> np.ndarray:
    """Fields of several sizes under noise: uint16 (side, side), as reflectance with its offset."""
    relief = np.full((side, side), 3000, np.int16)
    for size, spread in ((600, 700), (90, 400), (20, 250)):
        cells = random.normal(0, spread, (-(-side // size),) * 2).astype(np.int16)
        relief += cells.repeat(size, 0).repeat(size, 1)[:side, :side]
    for row in range(0, side, 1024):
        strip = relief[row : row + 1024]
        strip += (30 * random.standard_normal(strip.shape, np.float32)).astype(np.int16)
    return relief.clip(1001, 20_000).astype(np.uint16)


def make_product(folder: Path, side: int) -> tuple[Path, list[str]]:
    """A SAFE folder of ``side`` px of 10 m, and the paths of its images."""
    product, random, paths = folder / NAME, np.random.default_rng(0), []
    ground = {10: texture(side, random), 20: texture(side // 2, random)}
    for band, pixel_m in PIXEL_M.items():
        path = product / GRANULE / "IMG_DATA" / f"R{pixel_m}m" / f"{TILE}_{TIME}_{band}_{pixel_m}m.jp2"
        path.parent.mkdir(parents=True, exist_ok=True)
        dn = np.roll(ground[pixel_m], 37 * len(paths), axis=1)
        if band == "SCL":
            dn = (dn // 500 % 8 + 2).astype(np.uint8)
        profile = {"driver": "JP2OpenJPEG", "count": 1, "dtype": dn.dtype, "crs": CRS, "REVERSIBLE": "YES"}
        place = from_origin(LEFT, TOP, pixel_m, pixel_m)
        size = {"width": dn.shape[1], "height": dn.shape[0], "tiled": True, "blockxsize": 1024, "blockysize": 1024}
        with rasterio.open(path, "w", **profile, **size, transform=place, QUALITY=100, YCBCR420="NO") as raster:
            raster.write(dn, 1)
        paths.append(str(path))
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{number}">-1000</BOA_ADD_OFFSET>' for number in range(13))
    (product / "MTD_MSIL2A.xml").write_text(METADATA.format(offsets))
    return product, paths


def ours(product: Path, out: Path, grid: Grid, runs: int) -> tuple[float, float]:
    """Best seconds of ``clip_s2``, and peak gigabytes."""
    words = [product, out, grid.model_dump_json(), THREADS, runs]
    _, peak_gb, printed = run(
        [sys.executable, "-c", OURS, *map(str, words)], PYTHONPATH=str(ROOT), GDAL_CACHEMAX="256", OMP_NUM_THREADS="1"
    )
    return float(printed), peak_gb


def decode(paths: list[str], grid: Grid, runs: int) -> float:
    """Best seconds of decoding the blocks that the grid touches."""
    words = [THREADS, runs, *grid.bounds, *paths]
    return float(run([sys.executable, "-c", DECODE, *map(str, words)], GDAL_CACHEMAX="256")[2])


def theirs(script: str, out: Path, paths: list[str], grid: Grid) -> tuple[float, float]:
    """Best seconds of a peer until its arrays are in memory, and until its file is written."""
    words = [out, THREADS, RUNS, grid.crs, *grid.bounds, *paths]
    array, file = run([PYTHON, "-c", WRITE + script, *map(str, words)], GDAL_CACHEMAX="256")[2].split()
    return float(array), float(file)


def main() -> None:
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 10_980
    install("odc-stac==0.5.3", "rioxarray==0.19.0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        product, paths = make_product(folder, side)
        tile = Grid(crs=CRS, left=LEFT, top=TOP, width=side, height=side)
        aoi = tile.window(side * 3 // 10 // 6 * 6, side * 4 // 10 // 6 * 6, min(2000, side // 2), min(2000, side // 2))
        decode_tile, (clip_tile, peak_gb) = decode(paths, tile, 1), ours(product, folder / "tile.tif", tile, 1)
        print(f"tile: clip {clip_tile:.1f} s, decode {decode_tile:.1f} s", flush=True)
        decode_aoi, (clip_aoi, _) = decode(paths, aoi, RUNS), ours(product, folder / "aoi.tif", aoi, RUNS)
        print(f"area: clip {clip_aoi:.2f} s, decode {decode_aoi:.2f} s", flush=True)
        odc, rio = (theirs(script, folder / "theirs.tif", paths, aoi) for script in (ODC, RIOXARRAY))
        print(f"area: odc-stac {odc[1]:.2f} s, rioxarray {rio[1]:.2f} s", flush=True)
    report(
        "sentinel2",
        clip_over_decode=round(max(clip_tile / decode_tile, clip_aoi / decode_aoi), 2),
        clip_over_decode_tile=round(clip_tile / decode_tile, 2),
        clip_over_decode_aoi=round(clip_aoi / decode_aoi, 2),
        ratio_odc=round(odc[1] / clip_aoi, 2),
        ratio_odc_array=round(odc[0] / clip_aoi, 2),
        ratio_rioxarray=round(rio[1] / clip_aoi, 2),
        ratio_rioxarray_array=round(rio[0] / clip_aoi, 2),
        mpx_per_s=round(side**2 * len(paths) / clip_tile / 1e6, 1),
        peak_gb=round(peak_gb, 2),
        **_stack.figures(),
    )


if __name__ == "__main__":
    main()
