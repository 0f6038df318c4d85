"""The Sentinel-1 chain on a full-size scene, against sarsen's terrain correction and Orfeo's calibration and Lee.

The scene is a real SAFE (annotation, calibration, noise) with synthetic pixels: a constant backscatter under speckle.

Figures: ``mpx_per_s`` (pixels of the 10 m result with data, one polarisation from noise to dB),
``peak_gb``; ``ratio_sarsen`` (its terrain correction's time over that of our whole chain on the same 2,048 x 2,048 px);
``ratio_orfeo`` (time of its two applications over ours for calibration and Lee of the same lines and samples);
``minutes_dual`` (a whole scene of two polarisations).
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from _peers import DATA, PYTHON, ROOT, install, report, run
from pyproj import Transformer
from rasterio.transform import from_origin
from rasterio.windows import Window

from covermap.grid import Grid
from covermap.sentinel1 import radiometry, safe

SCENE = "S1B_IW_GRDH_1SDV_20211223T051122_20211223T051147_030148_039993_5371.SAFE"
CRS = "EPSG:32633"
PART = 2048  # side of the part of the grid that sarsen corrects [px]
BOX = 8192  # side of the part of the image that Orfeo calibrates [px]

OURS = """
import sys
import time
from pathlib import Path
from covermap.area_settings import Sentinel1
from covermap.grid import Grid
from covermap.sentinel1 import process_s1
product, dem, out, grid, geoid, polarisations, repeats = sys.argv[1:]
settings = {"geoid": float(geoid)} if geoid else {}
settings = Sentinel1(units="dB", layers=(), polarisations=polarisations.split(","), **settings)
seconds = []
for _ in range(int(repeats)):
    start = time.perf_counter()
    process_s1(Path(product), Path(dem), Path(out), {}, Grid.model_validate_json(grid), settings, 2)
    seconds.append(time.perf_counter() - start)
print(seconds[-1])
"""
SARSEN = """
import sys
import time
import sarsen
product, dem, out = sys.argv[1:]
for _ in range(2):
    start = time.perf_counter()
    sarsen.terrain_correction(
        sarsen.Sentinel1SarProduct(product, "IW/VV"), dem, interp_method="linear", output_urlpath=out
    )
print(time.perf_counter() - start)
"""
RADIOMETRY = """
import sys
from pathlib import Path
import rasterio
from rasterio.windows import Window
from covermap.area_settings import Sentinel1
from covermap.sentinel1 import native, safe
product, out, box = sys.argv[1:]
archive = safe.open_product(Path(product))
image = safe.images(archive)["VV"]
part = Window(0, 0, int(box), int(box))
power, _ = native.calibrated(archive, image, part, Sentinel1(), 2, None)
with rasterio.open(out, "w", driver="GTiff", width=part.width, height=part.height, count=1, dtype="float32") as raster:
    raster.write(power, 1)
"""


def make_scene(folder: Path, polarisations: int = 1) -> Path:
    """The product with pixels: speckle of four looks on a backscatter of -8 dB, and the annotated noise."""
    product = folder / SCENE
    shutil.copytree(
        DATA / "s1_grd" / SCENE, product, ignore=shutil.ignore_patterns("*.tiff"), copy_function=shutil.copy
    )
    for path in [product, *product.rglob("*")]:
        path.chmod(0o755)
    archive = safe.open_product(product)
    image = safe.images(archive)["VV"]
    vectors, noise = safe.calibration(archive, image, "sigmaNought"), safe.noise(archive, image)
    random, samples = np.random.default_rng(0), np.arange(image.samples)
    size = {"width": image.samples, "height": image.lines, "count": 1, "dtype": "uint16"}
    measurement = product / f"measurement/{image.name}.tiff"
    with rasterio.open(
        measurement, "w", driver="GTiff", **size, TIFFTAG_IMAGEDESCRIPTION="Sentinel-1B IW GRD HR L1"
    ) as raster:
        for start in range(0, image.lines, 512):
            line = np.arange(start, min(start + 512, image.lines))
            lut = radiometry.calibration_lut(vectors, line * image.line_interval_s, samples)
            noise_power = radiometry.noise_power(noise, line, samples, image.line_interval_s)
            power = 0.158 * random.standard_gamma(4.4, lut.shape, np.float32) / 4.4 * lut**2 + noise_power
            raster.write(np.sqrt(power).astype("uint16"), 1, window=Window(0, start, image.samples, len(line)))
        raster.update_tags(TIFFTAG_IMAGEDESCRIPTION="Sentinel-1B IW GRD HR L1")
    return product


def second_polarisation(product: Path) -> None:
    """VH with the tables and pixels of VV: only the work matters."""
    for path in list(product.rglob("*vv*")):
        if path.suffix != ".tiff":
            text = path.read_text().replace("<polarisation>VV<", "<polarisation>VH<")
            path.with_name(path.name.replace("-vv-", "-vh-").replace("-001", "-002")).write_text(text)
        else:
            path.with_name(path.name.replace("-vv-", "-vh-").replace("-001", "-002")).hardlink_to(path)


def footprint(product: Path) -> tuple[Grid, tuple[float, float, float, float]]:
    """A 10 m grid around the whole scene, and west, south, east, north of its footprint."""
    points = safe.images(safe.open_product(product))["VV"].grid_points
    names = safe.GRID_POINT_FIELDS
    longitude, latitude = points[:, names.index("longitude")], points[:, names.index("latitude")]
    x, y = Transformer.from_crs("EPSG:4326", CRS, always_xy=True).transform(longitude, latitude)
    left, top = (x.min() // 60) * 60, (y.max() // 60 + 1) * 60
    grid = Grid(
        crs=CRS, left=left, top=top, width=int((x.max() - left) // 10 + 1), height=int((top - y.min()) // 10 + 1)
    )
    return grid, (longitude.min(), latitude.min(), longitude.max(), latitude.max())


def relief(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Hills of up to 900 m, 8 to 20 km across, in metres from coordinates in metres."""
    return (450 + 250 * np.sin(x / 3000) + 200 * np.cos(y / 2000)).astype("float32")


def make_dem(path: Path, bounds: tuple[float, float, float, float]) -> Path:
    """Ellipsoidal heights of the whole footprint at one second of arc."""
    west, south, east, north = bounds[0] - 0.1, bounds[1] - 0.1, bounds[2] + 0.1, bounds[3] + 0.1
    width, height = int((east - west) * 3600), int((north - south) * 3600)
    profile = {"driver": "GTiff", "width": width, "height": height, "count": 1, "dtype": "float32", "crs": "EPSG:4979"}
    with rasterio.open(path, "w", **profile, transform=from_origin(west, north, 1 / 3600, 1 / 3600)) as raster:
        x = (west + np.arange(width) / 3600) * 83_000
        for row in range(height):
            raster.write(relief(x, (north - row / 3600) * 111_000)[None], 1, window=Window(0, row, width, 1))
    return path


def make_part(path: Path, grid: Grid) -> tuple[Path, Grid]:
    """Heights on the pixels of the middle of the grid, as sarsen wants them, and that part of the grid."""
    part = grid.window(grid.height // 2 - PART // 2, grid.width // 2 - PART // 2, PART, PART)
    x = part.left + 10 * np.arange(PART) + 5
    y = part.top - 10 * np.arange(PART) - 5
    profile = {"driver": "GTiff", "width": PART, "height": PART, "count": 1, "dtype": "float32", "crs": CRS}
    with rasterio.open(path, "w", **profile, transform=part.transform) as raster:
        raster.write(relief(x[None, :], y[:, None]), 1)
    return path, part


def ours(*words: object) -> tuple[float, float, str]:
    return run([sys.executable, "-c", OURS, *map(str, words)], PYTHONPATH=str(ROOT), GDAL_CACHEMAX="256")


def pixels_with_data(path: Path) -> int:
    with rasterio.open(path) as raster:
        return sum(int(np.isfinite(raster.read(1, window=window)).sum()) for _, window in raster.block_windows())


def against_orfeo(folder: Path, product: Path) -> float:
    """Time of Orfeo's calibration and Lee over ours, on the same part of the image."""
    (measurement,) = (product / "measurement").glob("*-vv-*")
    box, radius = f"?&box=0:0:{BOX}:{BOX}", "3"
    threads = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "2"}
    calibrated, filtered = folder / "calibrated.tif", folder / "filtered.tif"
    theirs = run(["otbcli_SARCalibration", "-in", measurement, "-out", f"{calibrated}{box}", "float"], **threads)[0]
    lee = ["-filter", "lee", "-filter.lee.rad", radius, "-filter.lee.nblooks", "4.4"]
    theirs += run(["otbcli_Despeckle", "-in", calibrated, *lee, "-out", filtered, "float"], **threads)[0]
    mine = [sys.executable, "-c", RADIOMETRY, product, folder / "power.tif", BOX]
    run(mine, PYTHONPATH=str(ROOT), GDAL_CACHEMAX="256")  # compiles
    return theirs / run(mine, PYTHONPATH=str(ROOT), GDAL_CACHEMAX="256")[0]


def main() -> None:
    if not DATA.is_dir():
        sys.exit(f"the real annotation is expected in {DATA}")
    if not shutil.which("otbcli_Despeckle"):
        sys.exit("Orfeo ToolBox is absent: apt-get install --no-install-recommends otb-bin")
    install("sarsen==0.9.6", "rioxarray==0.19.0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        product = make_scene(folder)
        grid, bounds = footprint(product)
        dem = make_dem(folder / "dem.tif", bounds)
        part_dem, part = make_part(folder / "part.tif", grid)
        part_seconds = float(ours(product, part_dem, folder / "ours.tif", part.model_dump_json(), 0, "VV", 2)[2])
        print(f"part: {part_seconds:.1f} s", flush=True)
        # of both the second of two runs, without imports
        sarsen_seconds = float(run([PYTHON, "-c", SARSEN, product, part_dem, folder / "sarsen.tif"])[2])
        print(f"sarsen: {sarsen_seconds:.1f} s", flush=True)
        ratio_orfeo = against_orfeo(folder, product)
        print(f"orfeo over ours: {ratio_orfeo:.1f}", flush=True)
        whole = (dem, folder / "whole.tif", grid.model_dump_json(), "")
        seconds, peak_gb, _ = ours(product, *whole, "VV", 1)
        megapixels = pixels_with_data(folder / "whole.tif") / 1e6
        print(f"whole: {megapixels:.0f} Mpx in {seconds:.0f} s", flush=True)
        second_polarisation(product)
        dual_seconds, dual_gb, _ = ours(product, *whole, "VV,VH", 1)
    report(
        "sentinel1",
        mpx_per_s=round(megapixels / seconds, 2),
        peak_gb=round(peak_gb, 2),
        ratio_sarsen=round(sarsen_seconds / part_seconds, 1),
        ratio_orfeo=round(ratio_orfeo, 1),
        minutes_dual=round(dual_seconds / 60, 1),
        peak_gb_dual=round(dual_gb, 2),
    )


if __name__ == "__main__":
    main()
