"""Which files of a SAFE a scene needs, and whether they are what its manifest says."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from covermap.archives import BAD_ZIP, safe_members
from covermap.errors import ProductError

log = logging.getLogger(__name__)

MANIFEST = "manifest.safe"
ALGORITHMS = {"MD5": "md5", "SHA3-256": "sha3_256"}  # the latter since baseline 04.00 of Sentinel-2
LARGEST_MANIFEST = 16 * 2**20  # bytes; real ones have 0.03 to 0.1 MB
OPTICAL_METADATA = re.compile(r"(MTD_MSI(L1C|L2A)|GRANULE/[^/]+/MTD_TL)\.xml")
SURFACE_IMAGE = re.compile(r"GRANULE/[^/]+/IMG_DATA/.*_(?P<band>B\d[\dA]|SCL)_(?P<pixel_m>10|20|60)m\.jp2")
TOP_IMAGE = re.compile(r"GRANULE/[^/]+/IMG_DATA/.*_(?P<band>B\d[\dA])\.jp2")
TOP_CLOUDS = re.compile(r"GRANULE/[^/]+/QI_DATA/MSK_(CLASSI|CLOUDS)_\w*B00\w*\.(jp2|gml)")
RADAR_FILE = re.compile(
    r"(annotation|annotation/calibration|measurement)/(calibration-|noise-)?s1[a-z]-\w+-\w+-(?P<band>vv|vh|hh|hv)-.*"
)


class SafeFile(NamedTuple):
    """A file of a SAFE, by its path in it: bytes, and the checksum's algorithm as hashlib calls it and digits."""

    path: str
    size: int
    checksum: tuple[str, str]


def read_manifest(content: bytes, product: str) -> list[SafeFile]:
    """The files of a SAFE by its manifest (ESA, SAFE Core Specifications: ``dataObjectSection``), sorted by path.

    Files without a size or a checksum are left out, with a warning.

    Raises
    ------
    ProductError
        It is no manifest, lists nothing, lists a file twice or one outside of the product.
    """
    try:
        if len(content) > LARGEST_MANIFEST:
            raise ValueError(f"{len(content)} bytes")
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, DefusedXmlException, LookupError, ValueError) as error:
        raise ProductError(f"{product}: its {MANIFEST} is no XML ({error}): search its scenes again") from error
    files: dict[str, SafeFile] = {}
    for stream in root.iter("byteStream"):
        file = _file(stream, product)
        if file and files.setdefault(file.path, file) != file:
            raise ProductError(f"{product}: its {MANIFEST} lists {file.path} twice: take another product of that day")
    if not files:
        raise ProductError(f"{product}: its {MANIFEST} lists no file: take another product of that day")
    return [files[path] for path in sorted(files)]


def _file(stream: Element, product: str) -> SafeFile | None:
    place, checksum = stream.find("fileLocation"), stream.find("checksum")
    href = "" if place is None else place.get("href", "")
    path = href.removeprefix("./")
    if set(path.split("/")) & {"", ".", ".."} or set(path) & set("\\:?#"):
        raise ProductError(f"{product}: its {MANIFEST} lists {href!r}, which is no file in it: do not use this product")
    size, kind = stream.get("size", ""), "" if checksum is None else checksum.get("checksumName", "")
    digits = "" if checksum is None else (checksum.text or "").strip().lower()
    if not size.isdecimal() or not digits or kind not in ALGORITHMS:
        log.warning("%s: its %s has no size or no known checksum of %s, left out", product, MANIFEST, path)
        return None
    return SafeFile(path, int(size), (ALGORITHMS[kind], digits))


def needed(files: Sequence[SafeFile], bands: Iterable[str], product: str) -> list[SafeFile]:
    """The files that reading ``bands`` takes: metadata, and each band in its finest pixels.

    Parameters
    ----------
    files
        Of the manifest.
    bands
        Sentinel-2 bands and ``SCL`` (20 m alone), or polarisations; none: all files. Level-1C brings its cloud mask.

    Raises
    ------
    ProductError
        The product has no such band.
    """
    wanted = set(bands)
    if not wanted:
        return list(files)
    radar = bool(wanted & {"VV", "VH", "HH", "HV"})
    images = _radar(files) if radar else _optical(files)
    if missing := sorted(wanted - set(images)):
        raise ProductError(
            f"{product} has no {', '.join(missing)}, only {', '.join(sorted(images)) or 'other files'}: take it out of "
            f"sentinel{1 if radar else 2}.{'polarisations' if radar else 'bands'}, or choose other scenes"
        )
    beside = [] if radar else [OPTICAL_METADATA] if "SCL" in images else [OPTICAL_METADATA, TOP_CLOUDS]
    others = {file for file in files if any(pattern.fullmatch(file.path) for pattern in beside)}
    return sorted(others.union(*(images[band] for band in wanted)))


def _radar(files: Iterable[SafeFile]) -> dict[str, list[SafeFile]]:
    """Annotation, calibration, noise and measurement by polarisation."""
    found: dict[str, list[SafeFile]] = {}
    for file in files:
        if match := RADAR_FILE.fullmatch(file.path):
            found.setdefault(match["band"].upper(), []).append(file)
    return found


def _optical(files: Iterable[SafeFile]) -> dict[str, list[SafeFile]]:
    """The image of each band in its finest pixels; SCL at 20 m."""
    found: dict[str, tuple[int, SafeFile]] = {}
    for file in files:
        match = SURFACE_IMAGE.fullmatch(file.path) or TOP_IMAGE.fullmatch(file.path)
        if match is None:
            continue
        band, pixel_m = match["band"], int(match.groupdict().get("pixel_m") or 0)
        if (pixel_m == 20) if band == "SCL" else (band not in found or pixel_m < found[band][0]):
            found[band] = pixel_m, file
    return {band: [file] for band, (_, file) in found.items()}


def is_whole(path: Path, file: SafeFile) -> bool:
    """Whether the file at ``path`` has the size and checksum that the manifest says."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, file.checksum[0]).hexdigest() == file.checksum[1]


def unpack(archive: Path, folder: Path, files: Iterable[SafeFile]) -> None:
    """Write ``files`` of a zipped SAFE into its ``folder`` (<NAME>.SAFE); other members are not looked at.

    Raises
    ------
    ProductError
        The archive is no whole zip or could do harm, or a file is missing in it or is not what the manifest says.
    """
    safe_members(archive, "bring it again")
    try:
        with zipfile.ZipFile(archive) as zipped:
            for file in files:
                _unpack(zipped, f"{folder.name}/{file.path}", folder / file.path, file)
    except (*BAD_ZIP, KeyError) as error:
        raise ProductError(f"the zip of {folder.name} is broken ({error}): bring it again") from error


def _unpack(zipped: zipfile.ZipFile, member: str, path: Path, file: SafeFile) -> None:
    if zipped.getinfo(member).file_size == file.size:  # else a bomb, maybe
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipped.open(member) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 2**22)
    if not is_whole(path, file):
        path.unlink(missing_ok=True)
        raise ProductError(f"the zip of {zipped.filename} has a {file.path} that is not as its manifest says")
