"""Sentinel-2: from a product as it is delivered to surface reflectance on the area's grid.

Offset and quantification are always the product's own (ESA, Sentinel-2 Products Specification Document; offsets exist
from processing baseline 04.00 on and in all of Collection 1): reflectance = (DN + offset) / quantification, DN 0 is no
data before the offset, 65535 is saturated.
"""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.transform import array_bounds, from_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from covermap.config import Sentinel2
from covermap.errors import CoverageError, ProductError
from covermap.grid import Grid
from covermap.raster import new_raster

log = logging.getLogger(__name__)

STEPS = 10_000  # of reflectance 1
SATURATED = 65_535
SCL = "SCL"
DEFECTIVE, UNCLASSIFIED = 1, 7  # SCL
BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")  # by band_id
COMMON_NAMES = {  # asset keys of Earth Search and eo:common_name, where it tells one band from all others
    "coastal": "B01",
    "blue": "B02",
    "green": "B03",
    "red": "B04",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "nir": "B08",
    "nir08": "B8A",
    "nir09": "B09",
    "swir16": "B11",
    "swir22": "B12",
}
BAND_FILE = re.compile(r"_(?P<band>B\d[\dA]|SCL)_(?P<pixel_m>10|20|60)m$")
WARP_TOLERANCE_PIXELS = 0.01
WARP_MEMORY_MB = 256
GDAL_OPTIONS = {
    "GDAL_NUM_THREADS": 1,  # with more, a JP2 that is cut off reads as if it were whole
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
}


@dataclass(frozen=True)
class Band:
    """Where a band lies and what its numbers mean: reflectance = (DN + offset) / quantification.

    ``place`` is the CRS and bounds that the product's metadata give, for rasters that carry none.
    """

    path: str
    index: int = 1
    offset: float = 0
    quantification: float = STEPS
    nodata: float | None = None
    declared: bool = True
    place: tuple[str, tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Product:
    """The bands of a scene by name, SCL among them where there is one."""

    name: str
    bands: Mapping[str, Band]
    baseline: str = ""


@dataclass(frozen=True)
class _Files:
    """The files of a product, in a zip or in a folder, by their path in it."""

    root: Path
    names: frozenset[str] = field(repr=False)

    @property
    def zipped(self) -> bool:
        return self.root.is_file()

    def path(self, name: str) -> str:
        """Path for GDAL."""
        return f"/vsizip/{{{self.root}}}/{name}" if self.zipped else str(self.root / name)

    def read(self, name: str) -> bytes:
        if not self.zipped:
            return (self.root / name).read_bytes()
        try:
            with zipfile.ZipFile(self.root) as archive:
                return archive.read(name)
        except (zipfile.BadZipFile, OSError) as error:
            raise ProductError(f"product {self.root.name}: {name} is broken ({error}): download it again") from error


def clip_s2(product: Path, clipped: Path, item: dict[str, Any], grid: Grid, settings: Sentinel2, threads: int) -> None:
    """Surface reflectance and scene classification of one scene, on its window of the area's grid.

    Writes uint16 (band, y, x): ``settings.bands`` in order, 0.0001 of reflectance a step, offset applied, valid pixels
    1 to 65535 (saturated), 0 where the product has no data; then SCL, which is 0 wherever a band has no data. Bands of
    the grid's zone are copied pixel by pixel, each 20 or 60 m pixel repeated (or interpolated, where the settings say
    so); scenes of another zone or lattice are warped once. SCL is taken by nearest neighbour only.

    Each thread holds one band of the window at a time: memory is about 12 bytes a pixel and thread.

    Parameters
    ----------
    product : zip with one SAFE folder or with ``item.json`` and rasters; or an unzipped SAFE folder.
    clipped : GeoTIFF to write.
    item : STAC item of the scene.
    grid : the area's grid.

    Raises
    ------
    ProductError
        The product is broken, is not Level-2A, or lacks a band; names product and band.
    CoverageError
        The scene lies outside the grid.
    """
    scene = open_product(product)
    bands = [_wanted(scene, name) for name in settings.bands]
    window = _window(scene, settings.bands[0], bands[0], grid)
    if SCL not in scene.bands and settings.scl == "required":
        raise ProductError(
            f"product {scene.name} has no scene classification (SCL), so clouds cannot be masked: set sentinel2.scl to "
            "'optional' if all of it counts as clear"
        )
    tags = {
        "scene": item["id"],
        "datetime": item["properties"].get("datetime") or item["properties"].get("start_datetime"),
        "processing_baseline": scene.baseline,
        "offset": _joined(band.offset for band in bands),
        "quantification": _joined(band.quantification for band in bands),
    }
    names = (*settings.bands, SCL)
    resampling = Resampling[settings.resampling]
    read = partial(read_reflectance, scene.name, grid=window, resampling=resampling)
    with (
        new_raster(
            clipped,
            window,
            count=len(names),
            dtype="uint16",
            nodata=0,
            descriptions=names,
            tags=tags,
            interleave="band",
        ) as raster,
        ThreadPoolExecutor(threads) as pool,
    ):
        observed = np.ones(window.shape, bool)
        for start in range(0, len(bands), threads):  # as many bands as threads are in memory, never all
            part = slice(start, start + threads)
            for index, steps in enumerate(pool.map(read, settings.bands[part], bands[part]), start + 1):
                observed &= steps != 0
                raster.write(steps, index)
        if SCL in scene.bands:
            scl = read_classification(scene.name, scene.bands[SCL], window)
        else:
            scl = np.full(window.shape, UNCLASSIFIED, np.uint8)
        raster.write(np.where(observed, scl, 0).astype(np.uint16), len(names))
    log.info("%s: %d x %d px, baseline %s", scene.name, window.height, window.width, scene.baseline or "unknown")


def reflectance_steps(dn: np.ndarray, offset: float, quantification: float, nodata: float | None = None) -> np.ndarray:
    """Surface reflectance in steps of 0.0001 from digital numbers.

    Parameters
    ----------
    dn : any shape and number type; integers: 0 is no data, and 65535 saturated in uint16; floats: NaN and infinity are.
    offset : added to the DN: BOA_ADD_OFFSET, or the offset of ``raster:bands`` over its scale.
    quantification : DN of reflectance 1 (one over the scale).
    nodata : a further value without data.

    Returns
    -------
    uint16 of the same shape: 0 no data, else 1 to 65535; 65535 is saturated.
    """
    if dn.dtype == np.uint16 and dn.size > SATURATED + 1:  # a table: the same formula once a value
        return reflectance_steps(np.arange(SATURATED + 1, dtype=np.uint16), offset, quantification, nodata)[dn]
    empty = ~np.isfinite(dn) if np.issubdtype(dn.dtype, np.floating) else dn == 0
    if nodata is not None:
        empty |= dn == nodata
    steps = np.clip(np.rint((dn.astype(np.float64) + offset) * (STEPS / quantification)), 1, SATURATED)
    if dn.dtype == np.uint16:
        steps[dn == SATURATED] = SATURATED
    return np.where(empty, 0, steps).astype(np.uint16)


def read_reflectance(product: str, name: str, band: Band, grid: Grid, resampling: Resampling) -> np.ndarray:
    """Reflectance uint16 (y, x) of one band on ``grid``, in steps of 0.0001; ``product`` is for messages."""
    dn, nodata = _read(product, name, band, grid, resampling)
    if not band.declared and np.issubdtype(dn.dtype, np.floating):
        largest = np.nanmax(dn, initial=0, where=dn != nodata)
        if 0 < largest <= 10:
            raise ProductError(
                f"product {product}, band {name}: floats up to {largest:.3g} and no declared scale, where digital "
                "numbers of 0.0001 were expected: declare scale 1 in the item's raster:bands"
            )
    return reflectance_steps(dn, band.offset, band.quantification, nodata)


def read_classification(product: str, band: Band, grid: Grid) -> np.ndarray:
    """Scene classification uint8 (y, x) on ``grid`` by nearest neighbour, 0 where the product has none.

    Lossy copies exist: a few values that are no class count as defective (1); more than 1 % of them are an error.
    """
    scl, nodata = _read(product, SCL, band, grid, Resampling.nearest)
    scl = np.nan_to_num(np.where(scl == nodata, 0, scl))
    foreign = (scl < 0) | (scl > 11)
    if (share := foreign.mean()) > 0.01:
        raise ProductError(
            f"product {product}, band SCL: {share:.0%} of the pixels, such as {scl[foreign][0]}, are no class of 0..11"
        )
    if share:
        log.warning("%s: %d pixels of SCL are no class, taken as defective", product, foreign.sum())
    return np.where(foreign, DEFECTIVE, scl).astype(np.uint8)


def open_product(product: Path) -> Product:
    """What a product holds, from its metadata alone; see ``clip_s2`` for the kinds.

    Raises
    ------
    ProductError
        The file is missing, broken or unsafe, or neither a Level-2A SAFE nor an item with rasters.
    """
    files = _files(product)
    if "item.json" in files.names:
        return _assets(files)
    for name in sorted(files.names, key=len):
        if PurePosixPath(name).name == "MTD_MSIL2A.xml":
            return _safe(files, name)
        if PurePosixPath(name).name == "MTD_MSIL1C.xml":
            raise ProductError(f"product {product.name} is Level-1C (top of atmosphere): expected Level-2A")
    raise ProductError(f"product {product.name} has neither MTD_MSIL2A.xml nor item.json: expected a Level-2A product")


def _files(product: Path) -> _Files:
    if product.is_dir():
        names = [path.relative_to(product).as_posix() for path in product.rglob("*") if path.is_file()]
    else:
        try:
            with zipfile.ZipFile(product) as archive:
                names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        except FileNotFoundError:
            raise ProductError(f"product {product} does not exist: download it") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise ProductError(f"product {product.name} is no whole zip ({error}): download it again") from error
    for name in names:
        if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
            raise ProductError(f"product {product.name} holds the unsafe path {name!r}: do not use this file")
    if not names:
        raise ProductError(f"product {product.name} is empty: download it again")
    return _Files(product, frozenset(names))


def _safe(files: _Files, metadata: str) -> Product:
    """Product of a SAFE whose MTD_MSIL2A.xml is ``metadata``."""
    folder = PurePosixPath(metadata).parent
    name = folder.name or files.root.name
    numbers, images, baseline = read_metadata(files.read(metadata), name)
    if not images:  # found by name, where the metadata list none
        images = [str(PurePosixPath(file).relative_to(folder)) for file in files.names if _in_granule(folder, file)]
    found: dict[str, tuple[int, str]] = {}
    for image in images:
        match = BAND_FILE.search(image.removesuffix(".jp2"))
        if match is None:
            continue
        band, pixel_m = match["band"], int(match["pixel_m"])
        known = found.get(band)
        if known and known[0] == pixel_m and known[1] != image:
            raise ProductError(f"product {name}, band {band}: two files, {known[1]} and {image}: expected one granule")
        if (band == SCL and pixel_m == 20) or (band != SCL and (known is None or pixel_m < known[0])):
            found[band] = pixel_m, image
    bands = {}
    for band, (_, image) in found.items():
        path = str(folder / (image.removesuffix(".jp2") + ".jp2"))
        if path in files.names:
            offset, quantification = numbers.get(band, (0, 1))
            bands[band] = Band(files.path(path), offset=offset, quantification=quantification)
    return Product(name, bands, baseline)


def _in_granule(folder: PurePosixPath, file: str) -> bool:
    path = PurePosixPath(file)
    return path.is_relative_to(folder) and path.match("GRANULE/*/IMG_DATA/R*m/*.jp2")


def read_metadata(metadata: bytes, product: str) -> tuple[dict[str, tuple[float, float]], list[str], str]:
    """Offset and quantification by band, image files and processing baseline out of an MTD_MSIL2A.xml.

    Raises
    ------
    ProductError
        The file is no XML, is of another level, or has no quantification.
    """
    try:
        root = ElementTree.fromstring(metadata)
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise ProductError(f"product {product}: MTD_MSIL2A.xml is no XML ({error}): download it again") from error
    kind = root.tag.rpartition("}")[2]
    if kind != "Level-2A_User_Product":
        raise ProductError(f"product {product}: MTD_MSIL2A.xml is of kind {kind!r}: expected 'Level-2A_User_Product'")
    # before baseline 02.07 the name was L2A_BOA_QUANTIFICATION_VALUE
    values = [node.text for node in root.iter() if node.tag.endswith("BOA_QUANTIFICATION_VALUE")]
    offsets = {node.get("band_id"): node.text for node in root.iter("BOA_ADD_OFFSET")}
    try:
        quantification = float(values[0] or "")
        listed = {BAND_IDS[int(key or "")]: float(value or "") for key, value in offsets.items()}
    except (IndexError, ValueError) as error:
        raise ProductError(
            f"product {product}: MTD_MSIL2A.xml has no usable quantification and offsets (BOA_QUANTIFICATION_VALUE "
            f"{values}, BOA_ADD_OFFSET {offsets}): download it again"
        ) from error
    if not quantification > 0:
        raise ProductError(f"product {product}: BOA_QUANTIFICATION_VALUE is {quantification}: expected more than 0")
    if listed and (missing := set(BAND_IDS) - set(listed)):
        raise ProductError(f"product {product}, band {min(missing)}: no BOA_ADD_OFFSET, but other bands have one")
    numbers = {band: (listed.get(band, 0.0), quantification) for band in BAND_IDS}
    images = [(node.text or "").strip() for node in root.iter() if node.tag.startswith("IMAGE_FILE")]
    return numbers, images, root.findtext(".//PROCESSING_BASELINE") or ""


def _assets(files: _Files) -> Product:
    """Product of an item with rasters: bands by asset key, or by the names that a multi-band asset gives them."""
    try:
        item = json.loads(files.read("item.json"))
        name, properties, assets = item["id"], item["properties"], item["assets"]
    except (ValueError, KeyError, TypeError) as error:
        raise ProductError(
            f"product {files.root.name}: item.json is no STAC item ({error!r}): fetch it again"
        ) from error
    found: dict[str, tuple[float, Band]] = {}
    for key, asset in assets.items():
        file = str(PurePosixPath(asset.get("href", "")))
        if file not in files.names or {"visual", "overview", "thumbnail"} & {key, *asset.get("roles", ())}:
            continue
        for index, (band, numbers) in enumerate(_band_names(key, asset), 1):
            pixel_m = asset.get("gsd") or numbers.get("spatial_resolution") or 0
            if band is None or (band in found and found[band][0] <= pixel_m):
                continue
            scale, offset = (numbers.get(f"raster:{word}", numbers.get(word)) for word in ("scale", "offset"))
            declared = scale is not None or offset is not None
            scale = 1 / STEPS if not declared else 1 if scale is None else scale
            if properties.get("earthsearch:boa_offset_applied"):  # the pixels hold it already, whatever is declared
                offset = 0
            nodata = numbers.get("nodata")
            found[band] = (
                pixel_m,
                Band(
                    path=files.path(file),
                    index=index,
                    offset=(offset or 0) / scale,
                    quantification=1 / scale,
                    nodata=float(nodata) if nodata is not None else None,
                    declared=declared,
                    place=_declared_place(asset, properties),
                ),
            )
    baseline = properties.get("s2:processing_baseline") or properties.get("processing:version") or ""
    if baseline >= "04.00" and not any(band.declared for _, band in found.values()):
        log.warning("%s: baseline %s and no declared scale and offset; offset 0 is taken", name, baseline)
    return Product(name, {band: source for band, (_, source) in found.items()}, baseline)


def _band_names(key: str, asset: dict[str, Any]) -> list[tuple[str | None, dict[str, Any]]]:
    """Band (None: not one of ours) and its raster fields, for each layer of an asset's file."""
    bands: list[dict[str, Any]] = asset.get("bands") or asset.get("eo:bands") or [{}]
    numbers: Sequence[dict[str, Any]] = asset.get("raster:bands") or [{}] * len(bands)
    fields = {word: asset[word] for word in ("raster:scale", "raster:offset", "nodata", "gsd") if word in asset}
    layers = [{**fields, **number, **band} for band, number in zip(bands, numbers, strict=False)]
    if len(layers) == 1 and (band := band_of(key)):
        return [(band, layers[0])]
    names = ("name", "common_name", "eo:common_name")
    return [(next(filter(None, (band_of(str(layer.get(name))) for name in names)), None), layer) for layer in layers]


def band_of(name: str) -> str | None:
    """Band that an asset key or band name means (``B2``, ``b02``, ``B02_10m``, ``blue``), or None."""
    word = re.sub(r"[_-](10|20|60)m$", "", name.strip(), flags=re.IGNORECASE).lower()
    band = re.sub(r"^b(\d)(?=$|a$)", r"b0\1", word).upper().replace("B08A", "B8A")
    return band if band in {*BAND_IDS, SCL} else COMMON_NAMES.get(word)


def _declared_place(asset: dict[str, Any], properties: dict[str, Any]) -> tuple[str, tuple[float, ...]] | None:
    """CRS and bounds by the projection extension, from the asset or else the item."""
    fields = {**properties, **asset}
    code = fields.get("proj:code") or (f"EPSG:{fields['proj:epsg']}" if fields.get("proj:epsg") else None)
    if code is None:
        return None
    if "proj:transform" in asset and "proj:shape" in asset:
        (height, width), transform = asset["proj:shape"], Affine(*asset["proj:transform"][:6])
        return code, array_bounds(height, width, transform)
    return (code, tuple(fields["proj:bbox"])) if "proj:bbox" in fields else None


def _wanted(scene: Product, name: str) -> Band:
    if name not in scene.bands:
        raise ProductError(
            f"product {scene.name} has no band {name}: it has {', '.join(sorted(scene.bands)) or 'none'}"
        )
    return scene.bands[name]


def _window(scene: Product, name: str, band: Band, grid: Grid) -> Grid:
    """Window of ``grid`` that the scene covers, by its first band."""
    with _opened(scene.name, name, band) as raster:
        crs, transform = _placed(scene.name, name, raster, band)
        bounds = array_bounds(raster.height, raster.width, transform)
        if crs != (target := CRS.from_string(grid.crs)):
            bounds = transform_bounds(crs, target, *bounds, densify_pts=21)
    if not all(map(math.isfinite, bounds)) or (window := grid.cropped(bounds)) is None:
        raise CoverageError(f"product {scene.name} lies outside the area: take it off the list of scenes")
    return window


@contextmanager
def _opened(product: str, name: str, band: Band) -> Iterator[rasterio.DatasetReader]:
    """A band's raster, open; whatever goes wrong with it is a ProductError that names product and band."""
    try:
        with warnings.catch_warnings(), rasterio.Env(**GDAL_OPTIONS):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the metadata may place it
            with rasterio.open(band.path) as raster:
                yield raster
    except RasterioError as error:
        reason = str(error.__cause__ or error).strip().rstrip(".")
        raise ProductError(f"product {product}, band {name} cannot be read ({reason}): download it again") from error


def _placed(product: str, name: str, raster: rasterio.DatasetReader, band: Band) -> tuple[CRS, Affine]:
    """CRS and transform of a raster: its own, or those that the product's metadata declare."""
    if raster.crs is not None:
        return raster.crs, raster.transform
    if band.place is None:
        raise ProductError(f"product {product}, band {name} has no CRS: declare proj:code and proj:bbox in the item")
    code, bounds = band.place
    try:
        return CRS.from_string(code), from_bounds(*bounds, raster.width, raster.height)
    except (CRSError, TypeError) as error:
        raise ProductError(
            f"product {product}, band {name}: the item places it at {bounds} of {code!r} ({error}): mend the item"
        ) from error


def _read(product: str, name: str, band: Band, grid: Grid, resampling: Resampling) -> tuple[np.ndarray, float]:
    """Numbers (y, x) of a band on ``grid`` as the product keeps them, and the value where it has none."""
    with _opened(product, name, band) as raster:
        crs, transform = _placed(product, name, raster, band)
        nodata = raster.nodata if raster.nodata is not None else band.nodata
        if nodata is None:
            nodata = np.nan if np.issubdtype(raster.dtypes[0], np.floating) else 0
        times = _repeats(crs, transform, grid)
        if times == 1 or (times and resampling == Resampling.nearest):
            return _repeated(raster, band.index, transform, grid, times, nodata), nodata
        with WarpedVRT(
            raster,
            src_crs=crs,
            src_transform=transform,
            src_nodata=nodata,
            crs=CRS.from_string(grid.crs),
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            nodata=nodata,
            resampling=resampling,
            tolerance=WARP_TOLERANCE_PIXELS,
            warp_mem_limit=WARP_MEMORY_MB,
        ) as warped:
            return warped.read(band.index), nodata


def _repeats(crs: CRS, transform: Affine, grid: Grid) -> int:
    """Pixels of ``grid`` along a pixel of a raster whose pixels all end on its lattice; 0 for another lattice."""
    if crs != CRS.from_string(grid.crs) or transform.b or transform.d or transform.a != -transform.e:
        return 0
    times = transform.a / grid.pixel_m
    shifts = (transform.c - grid.left) / grid.pixel_m, (grid.top - transform.f) / grid.pixel_m
    exact = all(abs(number - round(number)) < 1e-6 for number in (times, *shifts))
    return round(times) if exact else 0


def _repeated(
    raster: rasterio.DatasetReader, index: int, transform: Affine, grid: Grid, times: int, fill: float
) -> np.ndarray:
    """Pixels (y, x) of ``grid``, each pixel of the raster ``times`` by ``times``; ``fill`` beyond the raster."""
    row0, column0 = round((transform.f - grid.top) / grid.pixel_m), round((grid.left - transform.c) / grid.pixel_m)
    row1, column1 = row0 + grid.height, column0 + grid.width
    rows = slice(max(row0 // times, 0), min(-(-row1 // times), raster.height))
    columns = slice(max(column0 // times, 0), min(-(-column1 // times), raster.width))
    out = np.full(grid.shape, fill, raster.dtypes[index - 1])
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return out
    pixels = raster.read(index, window=Window.from_slices(rows, columns))
    if times > 1:
        pixels = pixels.repeat(times, 0).repeat(times, 1)
    top, left = rows.start * times - row0, columns.start * times - column0  # where the pixels start in out, or before
    pixels = pixels[max(-top, 0) :, max(-left, 0) :][: grid.height - max(top, 0), : grid.width - max(left, 0)]
    out[max(top, 0) :, max(left, 0) :][: pixels.shape[0], : pixels.shape[1]] = pixels
    return out


def _joined(numbers: Iterable[float]) -> str:
    """One number where all are the same, else all of them."""
    texts = [f"{round(number, 6):g}" for number in numbers]
    return texts[0] if len(set(texts)) == 1 else ",".join(texts)
