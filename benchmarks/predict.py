"""Maps of large rasters: pixels a second and memory, with MONAI, geoai and terratorch beside it.

The raster has ten bands of uint16, fields with noise, 4096 px a side in tiles of 512 px without compression; larger
ones repeat it on disk. The model is a 1 x 1 convolution to ten classes with softmax, which costs next to nothing, so
that all else counts; windows have 256 px and overlap by a quarter. Everyone reads the file and writes class and
confidence into another with two threads, in a process of its own, whose imports are not timed, but count for its
memory. ``benchmarks/predict.py --small`` makes do with a quarter of the sides.

Figures: ``mpx_per_s`` (ours, Hann, at 4096 x 4096), ``peak_gb_4096``, ``peak_gb_16384_4096`` and ``peak_gb_16384`` (the
whole process at 4096 x 4096, 16384 x 4096 and 16384 x 16384), ``mpx_per_s_16384``;
``ratio_monai`` (Gaussian weights), ``ratio_geoai`` (cosine) and ``ratio_terratorch`` (its own weights; 8 px cut off):
ours over theirs at the largest size that they survive, which is printed with their memory, and so are the others;
``fraction_of_forward`` (windows a second with a ResNet-18 U-Net over those of the bare network on a batch that is in
memory, the two in turns). Where there is a GPU, all but the peers uses it, and this fraction is the network's share.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
import torch
from _peers import PYTHON, install, report, run
from rasterio.transform import from_origin
from torch import Tensor, nn

from covermap.blend import Region, blended
from covermap.devices import use_device
from covermap.model_settings import Prediction
from covermap.models.zoo import declare_missing_operators
from covermap.predict import grid_at, parts_of, write_part
from covermap.raster import grid_of, new_raster, read_pixels
from covermap.strips import in_order

BANDS, CLASSES, FIELD, TILE, THREADS = 10, 10, 32, 512, 2
SETTINGS = Prediction(window_pixels=256, overlap=0.25, batch=1, threads=THREADS)
OF_NETWORK = SETTINGS.model_copy(update={"batch": 4})
PLACE = {"crs": "EPSG:32633", "transform": from_origin(300000, 5900040, 10, 10)}
PEERS = {
    "monai": ("monai==1.6.1",),
    "geoai": ("geoai-py==0.40.1",),
    "terratorch": ("terratorch==1.2.10", "torchgeo==0.8.1"),
}
TURNS = 3
PER_SIDE = 7, 12  # windows of the network's raster, a whole number of batches

MODEL = """
import sys
import time
import numpy as np
import rasterio
import torch
# torchvision's wheel beside a CPU-only torch lacks two operators that it declares shapes for when it is imported.
library = torch.library.Library("torchvision", "FRAGMENT")
try:
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except RuntimeError:
    pass  # it has them
source, output = sys.argv[1:]
torch.set_num_threads(2)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(10, 10, 1), torch.nn.Softmax(1)).eval()
with torch.no_grad():
    model[0].weight.mul_(1e-3)
def image():
    with rasterio.open(source) as raster:
        return torch.from_numpy(raster.read().astype(np.float32))[None]
def both(probabilities):
    confidence, best = torch.as_tensor(probabilities).max(0)
    return torch.stack([best + 1, (100 * confidence).round()]).to(torch.uint8).numpy()
def write(bands):
    with rasterio.open(source) as raster:
        profile = {**raster.profile, "driver": "GTiff", "count": 2, "dtype": "uint8", "compress": "zstd"}
    with rasterio.open(output, "w", **profile) as raster:
        raster.write(bands)
"""
THEIRS = {
    "monai": """
from monai.inferers import sliding_window_inference
start = time.perf_counter()
with torch.inference_mode():
    found = sliding_window_inference(image(), (256, 256), 4, model, overlap=0.25, mode="gaussian")
write(both(found[0]))
""",
    "geoai": """
from geoai.inference import predict_geotiff
start = time.perf_counter()
predict_geotiff(
    model, source, output, 256, 64, 4, num_classes=10, output_dtype="uint8", output_nodata=0, blend_mode="cosine",
    preprocess_fn=lambda tile: tile, postprocess_fn=both, device="cpu", verbose=False,
)
""",
    "terratorch": """
from terratorch.tasks.tiled_inference import tiled_inference
start = time.perf_counter()
with torch.inference_mode():
    found = tiled_inference(model, image(), crop=256, stride=192, delta=8, batch_size=4)
write(both(found[0]))
""",
}
TIMED = "print(time.perf_counter() - start)"


# --- the rasters -----------------------------------------------------------------------------------------------------


def make(path: Path, side: int) -> None:
    """A raster of fields with noise."""
    random = np.random.default_rng(0)
    profile = {
        "driver": "GTiff",
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "dtype": "uint16",
        "nodata": 0,
        "interleave": "band",
    }
    with rasterio.open(path, "w", count=BANDS, height=side, width=side, **profile, **PLACE) as raster:
        for row in range(0, side, TILE):  # little at a time, since a child's peak begins with its parent's memory
            rows = min(TILE, side - row)
            coarse = random.integers(300, 4000, (BANDS, rows // FIELD, side // FIELD)).repeat(FIELD, 1).repeat(FIELD, 2)
            pixels = (coarse + random.integers(-60, 60, coarse.shape)).astype("uint16")
            raster.write(pixels, window=((row, row + rows), (0, side)))


def repeated(path: Path, source: Path, width: int, height: int) -> None:
    """A raster that is the source over and over, or its corner."""
    with rasterio.open(source) as raster:
        side, profile = raster.width, raster.profile
        with rasterio.open(path, "w", **{**profile, "width": width, "height": height, "bigtiff": "yes"}) as larger:
            for top in range(0, height, TILE):
                rows, first = min(TILE, height - top), top % side
                for left in range(0, width, side):
                    columns = min(side, width - left)
                    pixels = raster.read(window=((first, first + rows), (0, columns)))
                    larger.write(pixels, window=((top, top + rows), (left, left + columns)))


# --- ours ------------------------------------------------------------------------------------------------------------


def convolution() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(BANDS, CLASSES, 1), nn.Softmax(1)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    return model


def unet() -> nn.Module:
    declare_missing_operators()
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    net = smp.Unet("resnet18", encoder_weights=None, in_channels=BANDS, classes=CLASSES)
    return nn.Sequential(net, nn.Softmax(1)).eval()


def scored(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["s2"].flatten(1, 2).float())


def ours(source: Path, output: Path) -> None:
    """Map a file into a file, and print the seconds, after a corner of it that is not counted."""
    device = use_device(THREADS)
    model = convolution().to(device)
    with rasterio.open(source) as raster:
        block = grid_of(raster)

        def read(region: Region) -> dict[str, np.ndarray]:
            return {"s2": read_pixels(raster, grid_at(region, block), fill=0)[None]}

        predict = partial(blended, read, partial(scored, model), classes=CLASSES, settings=SETTINGS, device=device)
        for _ in parts_of(predict, block.window(0, 0, 64, 64), SETTINGS, None):
            pass  # compiled loops are loaded
        start = time.perf_counter()
        with new_raster(output, block, count=2, dtype="uint8", nodata=255) as into:
            for _ in in_order(
                lambda part: write_part(into, *part), parts_of(predict, block, SETTINGS, None), threads=1
            ):
                pass
    print(time.perf_counter() - start)


def fraction_of_forward() -> None:
    """Print the windows a second of the whole over those of the bare network."""
    device = use_device(THREADS)
    model = unet().to(device)
    random = np.random.default_rng(0)
    step = OF_NETWORK.step_pixels
    height, width = ((count + 1) * step - OF_NETWORK.window_pixels for count in PER_SIDE)
    pixels = random.integers(300, 4000, (1, BANDS, height + 1024, width + 1024), dtype=np.uint16)
    resident = torch.randint(300, 4000, (OF_NETWORK.batch, 1, BANDS, 256, 256), dtype=torch.int32, device=device)
    count = PER_SIDE[0] * PER_SIDE[1]

    def read(region: Region) -> dict[str, np.ndarray]:
        rows, columns = (
            slice(region.row, region.row + region.height),
            slice(region.column, region.column + region.width),
        )
        return {"s2": pixels[:, :, rows, columns]}

    def whole() -> int:
        windows = []
        score = lambda batch: windows.append(len(batch["s2"])) or scored(model, batch)  # noqa: E731
        region = Region(step + 64, step + 64, height, width)
        for band in blended(read, score, region, classes=CLASSES, settings=OF_NETWORK, device=device):
            band.probabilities.cpu()
        assert sum(windows) == count
        return count

    @torch.inference_mode()
    def bare() -> int:
        for _ in range(count // OF_NETWORK.batch):
            scored(model, {"s2": resident})
        if device.type == "cuda":
            torch.cuda.synchronize()
        return count

    fractions = []
    bare()
    for _ in range(TURNS):
        fractions.append(rate(whole) / rate(bare))
    print(sorted(fractions)[TURNS // 2])


def rate(function: Callable[[], int]) -> float:
    start = time.perf_counter()
    return function() / (time.perf_counter() - start)


# --- all together ----------------------------------------------------------------------------------------------------


def measured(name: str, command: list[str | Path], source: Path, size: tuple[int, int]) -> tuple[float, float]:
    """Megapixels a second and peak gigabytes of a child that prints its seconds; printed."""
    _, peak, seconds = run([*command, source, source.with_name(f"{name}.tif")], GDAL_CACHEMAX="256")
    speed = size[0] * size[1] / 1e6 / float(seconds)
    print(f"{name} {size[0]} x {size[1]}: {speed:.2f} Mpx/s, {peak:.2f} GB", flush=True)
    return speed, peak


def theirs(name: str, rasters: dict[tuple[int, int], Path], own: dict[tuple[int, int], float]) -> float | None:
    """Our speed over a peer's at the largest square that it survives."""
    try:
        install("torch==2.13.0", *PEERS[name])
    except subprocess.CalledProcessError as error:
        print(f"{name} cannot be installed: {error}", flush=True)
        return None
    ratio = None
    for size, path in rasters.items():
        try:
            speed, _ = measured(name, [PYTHON, "-c", MODEL + THEIRS[name] + TIMED], path, size)
        except SystemExit as error:
            print(f"{name} {size[0]} x {size[1]}: {error}", flush=True)
            break
        ratio = round(own[size] / speed, 1)
    return ratio


def main() -> None:
    scale = 4 if "--small" in sys.argv else 1
    small, large = 4096 // scale, 16384 // scale
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = [(small // 4, small // 4), (small // 2, small // 2), (small, small), (large, small), (large, large)]
        rasters = {size: folder / f"{size[0]}x{size[1]}.tif" for size in sizes}
        make(rasters[sizes[2]], small)
        for size in sizes[:2] + sizes[3:]:
            repeated(rasters[size], rasters[sizes[2]], *size)
        mine = [sys.executable, __file__, "ours"]
        measured("ours", mine, rasters[sizes[0]], sizes[0])  # compiles what is kept compiled from then on
        own = {size: measured("ours", mine, path, size) for size, path in rasters.items()}
        speeds = {size: max(own[size][0], measured("ours", mine, rasters[size], size)[0]) for size in sizes[:3]}
        figures: dict[str, float | None] = {
            "mpx_per_s": round(speeds[sizes[2]], 1),
            "mpx_per_s_16384": round(own[sizes[4]][0], 1),
            "peak_gb_4096": round(own[sizes[2]][1], 2),
            "peak_gb_16384_4096": round(own[sizes[3]][1], 2),
            "peak_gb_16384": round(own[sizes[4]][1], 2),
            "fraction_of_forward": round(float(run([sys.executable, __file__, "forward"])[2]), 3),
        }
        for size in sizes[3:]:
            rasters[size].unlink()
        figures |= {
            f"ratio_{peer}": theirs(peer, {size: rasters[size] for size in sizes[:3]}, speeds) for peer in PEERS
        }
    report("predict", **figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        ours(*map(Path, sys.argv[2:]))
    elif sys.argv[1:] == ["forward"]:
        fraction_of_forward()
    else:
        main()
