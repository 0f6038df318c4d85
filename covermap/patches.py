"""Sets of images of one class each, as EuroSAT is one: a folder a class, through the index and the store of tiles.

An image is a tile whose label is one number. Nothing in a set is believed before it was looked at: zips, sizes and
bands come first, and only JPEG, PNG and GeoTIFF are decoded.
"""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from itertools import islice, permutations
from math import ceil, floor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import rasterio
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from covermap.archives import BAD_ZIP, safe_members
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.files import whole
from covermap.grid import Grid
from covermap.inputs import DTYPE, NODATA
from covermap.label_settings import Images
from covermap.legend import EXCLUDED, NO_LABEL, Legend, LegendClass
from covermap.model_settings import Tiles
from covermap.quicklook import GAP_PIXELS, INK, MARGIN_PIXELS, PAPER, TEXT_PIXELS, TRUE_COLOUR, draw_reflectance
from covermap.splits import BUFFER, SPLITS, cautions, drawing_weights, split_at, split_of, too_near
from covermap.store import LABEL, WEIGHT, new_store, places_digest

if TYPE_CHECKING:
    import geopandas

log = logging.getLogger(__name__)

BLOCK = "patches"  # what stands for the block: a set is one store
PICTURES, RASTERS = {".jpg", ".jpeg", ".png"}, {".tif", ".tiff"}
LARGEST_PIXELS = 1024  # side of an image: as that of a tile
PIXEL_M = 10  # ASSUME: cells of the spatial split are as large as those of areas, whatever the pixels of the images
NAMED = 5  # files that a message names
SHOWN, SHOWN_PIXELS, SHOWN_GAP_PIXELS = 8, 96, 4  # patches of a class in the picture, their least side, between them
BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)  # what Pillow raises
NAMES = {number: name for name, number in SPLITS.items()}


class Patch(NamedTuple):
    """An image of a set: its name in the zip or folder, that of its own folder, and its own without an ending."""

    file: str
    code: str
    stem: str

    @property
    def key(self) -> str:
        """What it is, whatever the set is packed in: the same in the pictures and the rasters of one set."""
        return f"{self.code}/{self.stem}"


class Pixels(NamedTuple):
    """A decoded image."""

    values: np.ndarray  # uint16 (B, y, x), 0 = no data
    crs: str | None
    bounds: tuple[float, float, float, float] | None  # left, bottom, right, top


class BrokenImage(ProductError):
    """An image cannot be decoded."""


# --- what there is ---------------------------------------------------------------------------------------------------


def find_images(source: Path) -> list[Patch]:
    """Images of a zip or folder, sorted by class and name; other files are left out and told in the log.

    Parameters
    ----------
    source : with a folder for each class, at any depth.

    Raises
    ------
    ProductError
        There is no image, two have one name but for the case or the ending, two folders have one name but for the
        case, or the zip could do harm (see :func:`covermap.archives.safe_members`).
    """
    files = [PurePosixPath(name) for name in _files(source)]
    known = [file for file in files if _is_image(file)]
    if others := sorted(str(file) for file in {*files} - {*known}):
        log.warning("%s: %d files that are no images left out: %s", source, len(others), _some(others))
    patches = sorted(
        (Patch(str(file), file.parent.name, file.stem) for file in known), key=lambda patch: (patch.code, patch.file)
    )
    if not patches:
        raise ProductError(f"patches {source} hold no image: expected a folder of JPEG, PNG or GeoTIFF for each class")
    if loose := [patch.file for patch in patches if not patch.code]:
        raise ProductError(f"patches {source} hold {_some(loose)} in no folder: put each image into that of its class")
    _must_differ(source, {patch.code: patch.code for patch in patches}, "folders")
    _must_differ(source, {patch.file: patch.key for patch in patches}, "images")
    return patches


def _files(source: Path) -> list[str]:
    if not source.exists():
        raise ProductError(f"patches {source} do not exist: check the path")
    if source.is_dir():
        return [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    return [member.filename for member in safe_members(source, "bring the whole file again, or a folder")]


def _is_image(file: PurePosixPath) -> bool:
    return file.suffix.lower() in PICTURES | RASTERS and not file.name.startswith(".")


def _must_differ(source: Path, names: Mapping[str, str], what: str) -> None:
    """Refuse two things whose names are the same on a disk that ignores the case, or in a list of splits."""
    first: dict[str, str] = {}
    for thing, name in names.items():
        other = first.setdefault(name.casefold(), thing)
        if other != thing:
            raise ProductError(
                f"patches {source} have the {what} {other} and {thing}, whose names differ in case or ending alone: "
                "keep one"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def with_class(source: Path, patches: Sequence[Patch], codes: Mapping[str, int]) -> list[Patch]:
    """The patches that have a class; those whose folder the legend gives none are left out and told in the log.

    Raises
    ------
    SettingError
        The legend lacks a folder.
    CoverageError
        A class has no image.
    """
    counts = Counter(patch.code for patch in patches)
    if unknown := sorted({*counts} - {*codes}):
        raise SettingError(
            f"patches {source} have the folder {unknown[0]!r}, which their legend lacks: add a row with it, with an "
            "empty class where it is to be left out"
        )
    used = {code: id for code, id in codes.items() if id not in (NO_LABEL, EXCLUDED)}
    if left := sorted({*counts} - {*used}):
        log.info("%d images of no class left out: %s", sum(counts[code] for code in left), _some(left))
    if bare := [code for code in used if not counts[code]]:
        raise CoverageError(
            f"patches {source} have no image in the folder {bare[0]!r}, which their legend has: bring them, or remove "
            "the row"
        )
    return [patch for patch in patches if patch.code in used]


# --- pixels ----------------------------------------------------------------------------------------------------------


@contextmanager
def opened(source: Path) -> Iterator[Callable[[str], bytes]]:
    """A function that reads a file of a zip or folder."""
    if source.is_dir():
        yield lambda file: (source / file).read_bytes()
        return
    safe_members(source)
    with zipfile.ZipFile(source) as archive:
        yield archive.read


def read_image(read: Callable[[str], bytes], file: str, images: Images) -> Pixels:
    """Bands of an image that are packed, and where it lies, if it tells.

    ASSUME: 0 of a picture of 8 bits becomes 1, since 0 is 'no data' in a store and no picture has any; EuroSAT's were
    scaled to 1 to 255 (its README). What a GeoTIFF calls no data is 0 in both.

    Raises
    ------
    BrokenImage
        It cannot be read or decoded.
    ProductError
        It has other bands, another type, or more pixels than a patch may have.
    """
    try:
        content = read(file)
    except (*BAD_ZIP, KeyError) as error:
        raise BrokenImage(f"{file} cannot be read ({error})") from None
    decode = _raster if PurePosixPath(file).suffix.lower() in RASTERS else _picture
    pixels = decode(content, file, images)
    values = pixels.values[images.places].astype(DTYPE["s2"])
    data = np.maximum(values, 1) if images.level == "RGB8" else values
    return pixels._replace(values=np.ma.filled(data, NODATA["s2"]))


def _picture(content: bytes, file: str, images: Images) -> Pixels:
    try:
        with Image.open(BytesIO(content), formats=("JPEG", "PNG")) as image:
            dtype = "uint8" if image.mode in ("L", "RGB") else f"mode {image.mode}"
            _must_hold(file, len(image.getbands()), dtype, image.size, images)
            values = np.asarray(image)
    except UnidentifiedImageError:
        raise BrokenImage(f"{file} cannot be decoded (it is no JPEG or PNG)") from None
    except BROKEN as error:
        raise BrokenImage(f"{file} cannot be decoded ({error})") from None
    return Pixels(np.atleast_3d(values).transpose(2, 0, 1), None, None)


def _raster(content: bytes, file: str, images: Images) -> Pixels:
    """From memory, where no other file can lie beside it, and as GeoTIFF alone: a VRT could name any file."""
    try:
        with warnings.catch_warnings(), MemoryFile(content) as memory:
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with memory.open(driver="GTiff") as raster:
                _must_hold(file, raster.count, " and ".join({*raster.dtypes}), (raster.width, raster.height), images)
                return Pixels(raster.read(masked=True), *_place(raster))
    except (RasterioError, ValueError) as error:
        raise BrokenImage(f"{file} cannot be decoded ({error})") from None


def _place(raster: rasterio.DatasetReader) -> tuple[str | None, tuple[float, float, float, float] | None]:
    """CRS and bounds, where it has a CRS and is north-up."""
    transform = raster.transform
    if raster.crs is None or transform.b or transform.d or transform.e >= 0:
        return None, None
    left, bottom, right, top = raster.bounds
    return raster.crs.to_string(), (left, bottom, right, top)


def _must_hold(file: str, bands: int, dtype: str, size: tuple[int, int], images: Images) -> None:
    """Refuse, before anything is unpacked, what is not as the settings say."""
    wanted = images.file_bands or images.bands
    if bands != len(wanted):
        raise ProductError(
            f"{file} has {bands} bands: expected {len(wanted)}, {', '.join(wanted)}, so name those of the images, in "
            "their order, in file_bands"
        )
    if dtype != (type_wanted := "uint8" if images.level == "RGB8" else "uint16"):
        raise ProductError(
            f"{file} is of {dtype}: expected {type_wanted}, since level is {images.level}, so mend level"
        )
    if max(size) > LARGEST_PIXELS:
        raise ProductError(
            f"{file} is {size[0]} x {size[1]} px: expected patches of at most {LARGEST_PIXELS} px a side"
        )


# --- the index -------------------------------------------------------------------------------------------------------


def index_patches(
    source: Path,
    lists: list[Path],
    index: Path,
    name: str,
    codes: dict[str, int],
    images: Images,
    tiles: Tiles,
    seed: int,
) -> None:
    """Step: table of all patches of a model, as GeoParquet with the columns of :func:`covermap.tiles.index_tiles`.

    A patch is wholly labelled, has 1 in the column of its class, and its ``file``. Its place is there where the file
    has one. Rows are in an order by chance, which depends on a patch's name and the seed alone, so that they may be
    read one after the other.

    Parameters
    ----------
    source : zip or folder with a folder for each class.
    lists : names of the images of training, validation and test, a line each; empty: no such lists.
    index : the table.
    name : of the set.
    codes : class id of every folder.
    images : what they hold.
    tiles, seed : of the split. ``random``: by name, so that it stays when others are added, and that the pictures and
        the rasters of one set are split alike; ``blocks``: by place; ``lists``: by the lists.

    Raises
    ------
    SettingError, ProductError, CoverageError
        See :func:`find_images`, :func:`with_class` and :func:`read_image`; images of several sizes, a patch in two
        lists, one without a place that is to be split by it, a split without a patch.
    """
    import geopandas

    frame = _described(source, with_class(source, find_images(source), codes), images, codes)
    frame["chance"] = [_chance(key, seed) for key in frame.key]
    frame["split"] = _splits(frame, lists, tiles, seed)
    frame = _kept(frame, tiles).sort_values("chance", ignore_index=True)
    for caution in cautions(tiles, 0):
        log.warning("%s", caution)
    columns = [f"class_{id}" for id in range(1, max(id for id in codes.values() if id != EXCLUDED) + 1)]
    counts = np.equal.outer(frame["class"].to_numpy(), np.arange(1, len(columns) + 1)).astype(np.int64)
    taught = (frame["split"] == "train").to_numpy()
    _check_splits(frame, codes)
    sampling = np.ones(len(frame), np.float32)
    sampling[taught] = drawing_weights(counts[taught], tiles.balance)
    table = pd.DataFrame(
        {
            "aoi": name,
            "block": BLOCK,
            "row": np.arange(len(frame)),
            "column": 0,
            "split": frame["split"],
            "easting_m": frame["left"].where(frame["metres"]),
            "northing_m": frame["top"].where(frame["metres"]),
            "labelled": 1.0,
            "cloudy": 0.0,
            "empty": frame["empty"],
            **dict(zip(columns, counts.T, strict=True)),
            "sampling": sampling,
            "file": frame["file"],
        }
    )
    with whole(index) as part:
        geopandas.GeoDataFrame(table, geometry=_outlines(frame)).to_parquet(part)


def _described(source: Path, patches: Sequence[Patch], images: Images, codes: Mapping[str, int]) -> pd.DataFrame:
    """All images that can be decoded: file, key, class, share of ``empty`` pixels, and where they lie."""
    rows: list[tuple[str | float | None, ...]] = []
    broken: list[str] = []
    size: tuple[str, tuple[int, ...]] | None = None
    with opened(source) as read:
        for patch in patches:
            try:
                pixels = read_image(read, patch.file, images)
            except BrokenImage as error:
                if images.on_broken == "error":
                    raise BrokenImage(f"{error}: bring the whole file again, or set on_broken to skip") from None
                broken.append(patch.file)
                continue
            size = size or (patch.file, pixels.values.shape)
            _must_match(patch.file, pixels, *size)
            empty = float((pixels.values == NODATA["s2"]).all(0).mean())
            bounds = pixels.bounds or (np.nan,) * 4
            rows.append((patch.file, patch.key, codes[patch.code], empty, pixels.crs, *bounds))
    if broken:
        log.warning("%s: %d images that cannot be decoded left out: %s", source, len(broken), _some(broken))
    columns = ["file", "key", "class", "empty", "crs", "left", "bottom", "right", "top"]
    frame = pd.DataFrame(rows, columns=columns).astype({"crs": object})
    metric = {crs: _is_metric(crs) for crs in frame.crs.dropna().unique()}
    return frame.assign(metres=frame.crs.map(metric).eq(True))


def _must_match(file: str, pixels: Pixels, first: str, shape: tuple[int, ...]) -> None:
    if pixels.values.shape != shape:
        (height, width), (rows, columns) = pixels.values.shape[1:], shape[1:]
        raise ProductError(
            f"{file} is {width} x {height} px, but {first} is {columns} x {rows} px: expected images of one size, so "
            "remove those of another"
        )


def _is_metric(crs: str) -> bool:
    found = rasterio.CRS.from_string(crs)
    return bool(found.is_projected and found.linear_units_factor[1] == 1)


def _chance(key: str, seed: int) -> float:
    """A number from 0 to 1 that depends on a name and the seed alone."""
    digest = blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


# --- splits ----------------------------------------------------------------------------------------------------------


def _splits(frame: pd.DataFrame, lists: Sequence[Path], tiles: Tiles, seed: int) -> list[str | None]:
    """Split of each patch; None: of none."""
    if tiles.split == "random":
        return [NAMES[split] for split in split_at(frame.chance.to_numpy(), tiles).tolist()]
    if tiles.split == "lists":
        return listed_splits(frame.key, lists)
    return [NAMES.get(split) for split in spatial_splits(frame, tiles, seed)]


def listed_splits(keys: Sequence[str], lists: Sequence[Path]) -> list[str | None]:
    """Split of each patch by the lists of training, validation and test; None: in no list.

    Parameters
    ----------
    keys : folder and name of each patch, without its ending.
    lists : text files with a name a line, with or without folder and ending.

    Raises
    ------
    SettingError
        A list cannot be read, a patch is in two of them, or a name without a folder is that of two patches.
    """
    splits: dict[str, str] = {}
    for split, path in zip(SPLITS, lists, strict=True):
        for key in _listed(path):
            if splits.setdefault(key, split) != split:
                raise SettingError(
                    f"list {path} has {key}, which that of {splits[key]} has too: keep it in one of them"
                )
    stems = Counter(key.partition("/")[2] for key in keys)
    if twice := [stem for stem, count in stems.items() if count > 1 and stem in splits]:
        raise SettingError(f"the lists have {twice[0]}, which two folders have: put the folder before it, with a /")
    found = [splits.get(key) or splits.get(key.partition("/")[2]) for key in keys]
    absent = {*splits} - {*keys} - {*stems}
    if absent:
        log.warning("%d listed images are not there: %s", len(absent), _some(sorted(absent)))
    return found


def _listed(path: Path) -> Iterator[str]:
    """Folder, where it is given, and name of every line of a list, without its ending."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"list {path} cannot be read as text ({error}): expected a name a line") from None
    for line in filter(None, map(str.strip, lines)):
        *folders, name = line.split("/")[-2:]
        file = PurePosixPath(name)
        yield "/".join([*folders, file.stem if _is_image(file) else name])


def spatial_splits(frame: pd.DataFrame, tiles: Tiles, seed: int) -> list[int]:
    """Split of each patch by the cells of the split ``blocks`` that it lies in.

    As of the tiles of areas, all of a patch lies in cells of one split, and held-out ones as far from others as
    ``buffer_pixels`` (of 10 m) says; what lies across, or too near to a patch of another zone, is BUFFER.

    Parameters
    ----------
    frame : crs, left, bottom, right, top [m], metres (whether that is their unit) and file of each patch.
    tiles, seed : of the split.

    Raises
    ------
    SettingError
        A patch has no place in metres, or is wider than a tile.
    """
    if not frame.metres.all():
        file = frame.file[~frame.metres].iloc[0]
        raise SettingError(
            f"{file} has no place in a CRS in metres, but tiles.split is blocks: set it to random, or to lists where "
            "there are some"
        )
    side_m = max((frame.right - frame.left).max(), (frame.top - frame.bottom).max())
    if side_m > (tiles.pixels + 0.5) * PIXEL_M:
        raise SettingError(
            f"patches are {side_m:g} m wide, but tiles.pixels is {tiles.pixels}, of {PIXEL_M} m each: enlarge it, and "
            "tiles.cell_pixels with it"
        )
    splits = np.array([_split_of_patch(_footprint(*row), tiles, seed) for row in _places(frame)], int)
    inside = np.flatnonzero(splits != BUFFER)
    kept = pd.DataFrame(
        {
            "aoi": frame.crs.iloc[inside],
            "split": [NAMES[split] for split in splits[inside].tolist()],
            "easting_m": frame.left.iloc[inside],
            "northing_m": frame.top.iloc[inside],
        }
    )
    crs = {zone: zone for zone in kept.aoi.unique()}
    near = too_near(kept, permutations(crs, 2), crs, side_m, tiles.buffer_pixels * PIXEL_M)
    splits[inside[near]] = BUFFER
    chosen: list[int] = splits.tolist()
    return chosen


def _places(frame: pd.DataFrame) -> Iterator[tuple[str, float, float, float, float]]:
    return frame[["crs", "left", "bottom", "right", "top"]].itertuples(index=False, name=None)


def _footprint(crs: str, left: float, bottom: float, right: float, top: float) -> Grid:
    """The pixels of the lattice that a patch touches."""
    west, north = floor(left / PIXEL_M + 1e-6), ceil(top / PIXEL_M - 1e-6)
    east, south = ceil(right / PIXEL_M - 1e-6), floor(bottom / PIXEL_M + 1e-6)
    return Grid(crs=crs, left=west * PIXEL_M, top=north * PIXEL_M, width=east - west, height=north - south)


def _split_of_patch(grid: Grid, tiles: Tiles, seed: int) -> int:
    splits = np.unique(split_of(grid, tiles, seed))
    return int(splits[0]) if len(splits) == 1 else BUFFER


def _kept(frame: pd.DataFrame, tiles: Tiles) -> pd.DataFrame:
    """Patches with a split and observations enough; how many others there were is told in the log."""
    most = 0 if tiles.incomplete == "drop" else tiles.max_empty
    whys = {
        "in no list" if tiles.split == "lists" else "across the rims of cells": frame["split"].isna(),
        f"more than {most:g} % no data": frame["empty"] > most / 100,
    }
    for why, those in whys.items():
        if those.any():
            log.info("%d of %d patches left out: %s", those.sum(), len(frame), why)
    return frame[~np.any(list(whys.values()), 0)]


def _check_splits(frame: pd.DataFrame, codes: Mapping[str, int]) -> None:
    """Refuse a split without patches; tell how many there are of each class, and warn of classes that it lacks."""
    for split in SPLITS:
        counts = Counter(frame.loc[frame["split"] == split, "class"].tolist())
        if not counts:
            raise CoverageError(
                f"no patch of {len(frame)} is one of {split}: bring more, enlarge its share in tiles, lessen "
                "tiles.cell_pixels, or mend the lists"
            )
        folders = {code: counts[id] for code, id in codes.items() if id not in (NO_LABEL, EXCLUDED)}
        log.info("%s: %d patches: %s", split, counts.total(), ", ".join(f"{n} {code}" for code, n in folders.items()))
        if absent := [code for code, count in folders.items() if not count]:
            log.warning("%s has no patch of %s", split, ", ".join(absent))


def _outlines(frame: pd.DataFrame) -> geopandas.GeoSeries:
    """Patches as polygons in lon/lat; none where their place is not known."""
    import geopandas
    import shapely

    outlines = np.full(len(frame), None, object)
    for crs, numbers in frame.groupby("crs").indices.items():
        one = frame.iloc[numbers]
        squares = shapely.box(one.left, one.bottom, one.right, one.top)
        outlines[numbers] = geopandas.GeoSeries(squares, crs=str(crs)).to_crs("EPSG:4326").array
    return geopandas.GeoSeries(outlines, frame.index, "EPSG:4326")


# --- the store and a picture -----------------------------------------------------------------------------------------


def pack_patches(index: Path, source: Path, packed: Path, name: str, codes: dict[str, int], images: Images) -> None:
    """Step: contiguous integers of a set's patches, in the order of the index.

    ``s2`` uint16 (N, 1, B, y, x), ``label`` uint8 (N,) and ``weight`` uint8 (N,) in per cent: 0 where a patch holds
    nothing. The header says which bands they are, and of which level: pictures are RGB8, so that a model that learnt
    from them is refused on reflectance.

    Parameters
    ----------
    index : table of the patches.
    source : zip or folder.
    packed : the store.
    name : of the set, as in the index.
    codes : class id of every folder.
    images : what they hold.

    Raises
    ------
    ProductError
        The images have changed since the index was made.
    CoverageError
        The index has no patch of the set.
    """
    table = pd.read_parquet(index, columns=["aoi", "file"])
    table = table[table.aoi == name]
    files = table.file.tolist()
    if not files:
        raise CoverageError(f"index {index} has no patch of {name}: ask for the set that the model learns from")
    about = {
        "meaning": json.dumps({"s2": {"band": images.bands, "level": [images.level]}}),
        "dates": json.dumps({}),
        "places": places_digest(table),
    }
    with opened(source) as read:
        first = read_image(read, files[0], images).values
        byte = np.dtype(np.uint8)
        kinds = {"s2": (first.dtype, (1, *first.shape)), LABEL: (byte, ()), WEIGHT: (byte, ())}
        with whole(packed) as part, new_store(part, len(files), kinds, about) as write:
            for number, file in enumerate(files):
                values = read_image(read, file, images).values
                label, weight = codes[PurePosixPath(file).parent.name], 100 * (values != NODATA["s2"]).any()
                write(number, {"s2": values[None], LABEL: np.array(label, byte), WEIGHT: np.array(weight, byte)})
    log.info("%d patches", len(files))


def draw_patches(source: Path, picture: Path, legend: Legend, images: Images) -> None:
    """Step: a picture of a few patches of each class, with its name and colour.

    Parameters
    ----------
    source : zip or folder.
    picture : PNG.
    legend : of the set.
    images : what they hold. Pictures are shown as they are, reflectance as :mod:`covermap.quicklook` draws it.

    Raises
    ------
    CoverageError
        No image has a class and can be decoded.
    ProductError
        See :func:`find_images` and :func:`read_image`.
    """
    patches = sorted(find_images(source), key=lambda patch: _chance(patch.key, 0))
    rows = []
    with opened(source) as read:
        for entry in legend.classes:
            files = [patch.file for patch in patches if legend.codes.get(patch.code) == entry.id]
            rows.append((entry, [_shown(values, images) for values in islice(_whole(read, files, images), SHOWN)]))
    if not any(shown for _, shown in rows):
        raise CoverageError(f"patches {source} have no image of a class of their legend to draw: mend path or legend")
    with whole(picture) as part:
        _sheet(rows).save(part)


def _whole(read: Callable[[str], bytes], files: Sequence[str], images: Images) -> Iterator[np.ndarray]:
    """Images of those that can be decoded, where others are to be left out."""
    for file in files:
        try:
            yield read_image(read, file, images).values
        except BrokenImage:
            if images.on_broken == "error":
                raise


def _shown(values: np.ndarray, images: Images) -> np.ndarray:
    """An image as the eye knows it, where it has these bands, else of its first: uint8 (y, x, 3), large enough."""
    wanted = [images.bands.index(band) for band in TRUE_COLOUR] if {*TRUE_COLOUR} <= {*images.bands} else [0, 1, 2]
    bands = values[wanted if len(values) > 2 else [0, 0, 0]]
    if images.level == "RGB8":
        drawn = bands.transpose(1, 2, 0).astype(np.uint8)
    else:
        drawn = draw_reflectance(np.where(bands == NODATA["s2"], np.nan, bands / 10_000))
    times = max(1, round(SHOWN_PIXELS / max(drawn.shape[:2])))
    return drawn.repeat(times, 0).repeat(times, 1)


def _sheet(rows: Sequence[tuple[LegendClass, Sequence[np.ndarray]]]) -> Image.Image:
    """A row of patches for each class, behind its colour and name."""
    font = ImageFont.load_default(TEXT_PIXELS)
    left = round(max(font.getlength(entry.name) for entry, _ in rows)) + 2 * MARGIN_PIXELS + GAP_PIXELS
    height, width = (max(patch.shape[axis] for _, shown in rows for patch in shown) for axis in (0, 1))
    down, across = height + SHOWN_GAP_PIXELS, width + SHOWN_GAP_PIXELS
    most = max(len(shown) for _, shown in rows)
    sheet = Image.new("RGB", (left + most * across, len(rows) * down + SHOWN_GAP_PIXELS), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (entry, shown) in enumerate(rows):
        top = SHOWN_GAP_PIXELS + row * down
        middle = top + height // 2
        swatch = (MARGIN_PIXELS, middle - TEXT_PIXELS // 2, MARGIN_PIXELS + TEXT_PIXELS, middle + TEXT_PIXELS // 2)
        draw.rectangle(swatch, fill=entry.rgb, outline=INK)
        draw.text((MARGIN_PIXELS + GAP_PIXELS, middle), entry.name, font=font, fill=INK, anchor="lm")
        for column, patch in enumerate(shown):
            sheet.paste(Image.fromarray(patch), (left + column * across, top))
    return sheet
