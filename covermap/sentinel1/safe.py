"""Stored products: the files of a Sentinel-1 SAFE (folder or zip) or of an 'assets' zip, and what its XML says."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from xml.etree.ElementTree import Element

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from covermap.archives import BAD_ZIP, safe_members
from covermap.errors import CoverageError, ProductError
from covermap.grid import Grid
from covermap.sentinel1 import xml
from covermap.sentinel1.geocoding import SPEED_OF_LIGHT_M_S, GroundToSlant
from covermap.sentinel1.orbit import Orbit, check
from covermap.sentinel1.radiometry import Noise, NoiseBlock, Vectors
from covermap.sentinel1.xml import DOWNLOAD_AGAIN

LONGEST_SIDE = 200_000  # lines or samples: the longest slices have 60 000

# satellite, mode or stripmap beam, type, resolution, level and class, polarisations
PRODUCT_NAME = re.compile(r"(S1[A-Z])_(IW|EW|WV|S[1-6])_[A-Z_]{4}_\d[A-Z]([A-Z]{2})_")
MODES = ("IW", "EW", "S1", "S2", "S3", "S4", "S5", "S6")
POLARISATIONS = {"SV": "VV", "SH": "HH", "DV": "VV VH", "DH": "HH HV"}  # one alone of a pair is named by itself


@dataclass(frozen=True)
class Archive:
    """A product on disk: a zip that is read in place, or a SAFE folder. ``names`` are relative to ``root``."""

    path: Path
    root: str
    names: frozenset[str]

    @property
    def is_safe(self) -> bool:
        """Whether this is a SAFE, not a bundle of analysis-ready rasters."""
        return "manifest.safe" in self.names

    @property
    def name(self) -> str:
        """Name of the SAFE folder."""
        return self.root.rstrip("/") or self.path.name

    def read(self, name: str) -> bytes:
        """Content of a small file; ProductError where it is missing or absurdly large."""
        if name not in self.names:
            raise ProductError(f"{self.path} has no {name}: the product is incomplete, {DOWNLOAD_AGAIN}")
        source = f"{self.path}: {name}"
        try:
            if self.path.is_dir():
                xml.check_size((self.path / name).stat().st_size, source)
                return (self.path / name).read_bytes()
            with zipfile.ZipFile(self.path) as archive:
                xml.check_size(archive.getinfo(self.root + name).file_size, source)
                return archive.read(self.root + name)
        except BAD_ZIP as error:
            raise ProductError(f"{source} cannot be read ({error}): {DOWNLOAD_AGAIN}") from error

    def xml(self, name: str) -> Element:
        """Root element of an XML file; entities and document types are refused (they are never in a real product)."""
        return xml.parse(self.read(name), f"{self.path}: {name}")

    def raster(self, name: str) -> str:
        """What rasterio opens for the raster ``name``, read in place."""
        if name not in self.names:
            raise ProductError(f"{self.path} has no {name}: the product is incomplete, {DOWNLOAD_AGAIN}")
        if self.path.is_dir():
            return str(self.path / name)
        return f"/vsizip/{{{self.path.absolute()}}}/{self.root}{name}"


def open_product(path: Path) -> Archive:
    """The product at ``path``: a SAFE folder, a zip with one ``<NAME>.SAFE/``, or a zip with ``item.json`` and rasters.

    Raises
    ------
    ProductError
        Nothing is there, it is no zip, it holds something else, or a member could do harm.
    """
    if path.is_dir():
        names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
        root = ""
    elif zipfile.is_zipfile(path):
        members = [member.filename for member in safe_members(path, DOWNLOAD_AGAIN)]
        root = _root(path, members)
        names = {name.removeprefix(root) for name in members}
    else:
        what = "is not a whole zip file" if path.exists() else "does not exist"
        raise ProductError(f"scene {path} {what}: expected a stored zip or a SAFE folder, {DOWNLOAD_AGAIN}")
    if not names & {"manifest.safe", "item.json"}:
        raise ProductError(f"{path} has neither a manifest.safe nor an item.json: expected a SAFE or an assets zip")
    return Archive(path, root, frozenset(names))


def no_overlap(archive: Archive, grid: Grid) -> CoverageError:
    """Error of a scene that lies elsewhere."""
    return CoverageError(
        f"scene {archive.path} does not touch the area {grid.bounds} in {grid.crs}: remove it from the list of scenes"
    )


def _root(path: Path, members: list[str]) -> str:
    tops = sorted({name.split("/")[0] for name in members if name.split("/")[0].endswith(".SAFE")})
    if len(tops) > 1:
        raise ProductError(f"{path} holds {len(tops)} SAFE folders ({', '.join(tops)}): expected one scene a file")
    return f"{tops[0]}/" if tops else ""


@dataclass(frozen=True)
class Image:
    """Annotation of one polarisation of a GRD product.

    Times are seconds since the first line (``first_line``, UTC); line and sample numbers are centres of pixels.
    ``mission`` is S1A and so on; ``mode`` IW, EW, or the beam of a stripmap image (S1 to S6).
    ``processor_version`` is that of the Instrument Processing Facility: (2, 36), (3, 40).
    """

    name: str
    mission: str
    mode: str
    polarisation: str
    processor_version: tuple[int, int]
    first_line: np.datetime64
    line_interval_s: float
    range_spacing_m: float
    lines: int
    samples: int
    orbit: Orbit
    ground_to_slant: GroundToSlant
    grid_points: np.ndarray  # (point, 8) float64, in the order of GRID_POINT_FIELDS
    noise_already_removed: bool
    orbit_state: str


GRID_POINT_FIELDS = ("azimuth_time_s", "slant_range_m", "line", "pixel", "latitude", "longitude", "height", "incidence")


def images(archive: Archive) -> dict[str, Image]:
    """Annotations of a SAFE by polarisation.

    Raises
    ------
    ProductError
        There is none, or two of one polarisation; one is no ground-range product, lacks an element, or is not of the
        satellite, mode and polarisations that the product's name says.
    """
    names = sorted(
        name for name in archive.names if PurePosixPath(name).match("annotation/*.xml") and name.count("/") == 1
    )
    if not names:
        raise ProductError(f"{archive.path} has no annotation/*.xml: the product is incomplete, {DOWNLOAD_AGAIN}")
    version = _processor_version(archive)
    found: dict[str, Image] = {}
    for name in names:
        image = _image(archive, name, version)
        if image.polarisation in found:
            raise ProductError(
                f"{archive.path} has two annotations of {image.polarisation} ({found[image.polarisation].name}, "
                f"{image.name}): expected one of each polarisation, {DOWNLOAD_AGAIN}"
            )
        found[image.polarisation] = image
    return found


def _image(archive: Archive, name: str, version: tuple[int, int]) -> Image:
    """Annotation file ``name`` (Sentinel-1 Product Specification, S1-RS-MDA-52-7441, section 6.3.1)."""
    root = archive.xml(name)
    source = f"{archive.path}: {name}"
    if (kind := xml.text(root, "adsHeader/productType", source)) != "GRD":
        raise ProductError(f"{source} is of type {kind!r}: expected GRD, ask the provider for ground-range products")
    mission, mode, polarisation = _identity(root, archive.name, source)
    information = "imageAnnotation/imageInformation/"
    first_line = xml.time(xml.text(root, information + "productFirstLineUtcTime", source), source)
    lines, samples = (_side(root, information + tag, source) for tag in ("numberOfLines", "numberOfSamples"))
    line_interval_s = xml.positive(root, information + "azimuthTimeInterval", source)
    range_spacing_m = xml.positive(root, information + "rangePixelSpacing", source)
    orbit = _orbit(root, first_line, source)
    check(orbit, lines * line_interval_s, source)
    removed = root.findtext("imageAnnotation/processingInformation/thermalNoiseCorrectionPerformed", "false")
    return Image(
        name=PurePosixPath(name).stem,
        mission=mission,
        mode=mode,
        polarisation=polarisation,
        processor_version=version,
        first_line=first_line,
        line_interval_s=line_interval_s,
        range_spacing_m=range_spacing_m,
        lines=lines,
        samples=samples,
        orbit=orbit,
        ground_to_slant=_ground_to_slant(root, first_line, samples * range_spacing_m, source),
        grid_points=_grid_points(root, first_line, source),
        noise_already_removed=removed.strip() == "true",
        orbit_state=xml.text(root, "generalAnnotation/productInformation/pass", source).lower(),
    )


def _identity(root: Element, product: str, source: str) -> tuple[str, str, str]:
    """Satellite, mode and polarisation, known to be those of the product's name where it has one of the usual form."""
    mission, mode, polarisation = (
        xml.text(root, f"adsHeader/{tag}", source) for tag in ("missionId", "mode", "polarisation")
    )
    if mode == "SM":
        mode = xml.text(root, "adsHeader/swath", source)
    if mode not in MODES:
        raise ProductError(f"{source} is of mode {mode!r}: expected one of {', '.join(MODES)}, remove the scene")
    named = PRODUCT_NAME.match(product)
    if named is not None:
        said = POLARISATIONS.get(named[3], named[3])
        if (mission, mode) != (named[1], named[2]) or polarisation not in said.split():
            raise ProductError(
                f"{source} is of {mission} {mode} {polarisation}, but the product's name {product} says {named[1]} "
                f"{named[2]} {said}: the product is mixed up, {DOWNLOAD_AGAIN}"
            )
    return mission, mode, polarisation


def _side(root: Element, path: str, source: str) -> int:
    value = xml.number(root, path, source)
    if value != int(value) or not 1 <= value <= LONGEST_SIDE:
        raise ProductError(f"{source} has {value:g} in {path}, expected 1 to {LONGEST_SIDE}: {DOWNLOAD_AGAIN}")
    return int(value)


def _orbit(root: Element, first_line: np.datetime64, source: str) -> Orbit:
    states = xml.every(root, "generalAnnotation/orbitList/orbit", source)
    position, velocity = (
        np.stack([xml.column(states, f"{kind}/{axis}", source) for axis in "xyz"], axis=1)
        for kind in ("position", "velocity")
    )
    return Orbit(xml.seconds(states, "time", first_line, source), position, velocity)


def _ground_to_slant(root: Element, first_line: np.datetime64, longest_m: float, source: str) -> GroundToSlant:
    records = xml.every(root, "coordinateConversion/coordinateConversionList/coordinateConversion", source)
    coefficients = [xml.numbers(record, "grsrCoefficients", source) for record in records]
    return GroundToSlant(
        _in_order(xml.seconds(records, "azimuthTime", first_line, source), "coordinateConversion", source),
        xml.column(records, "gr0", source),
        np.array([np.pad(row, (0, max(map(len, coefficients)) - len(row))) for row in coefficients]),
        longest_m,
    )


def _grid_points(root: Element, first_line: np.datetime64, source: str) -> np.ndarray:
    points = xml.every(root, "geolocationGrid/geolocationGridPointList/geolocationGridPoint", source)
    columns = [
        xml.seconds(points, "azimuthTime", first_line, source),
        xml.column(points, "slantRangeTime", source) * SPEED_OF_LIGHT_M_S / 2,
        *(
            xml.column(points, tag, source)
            for tag in ("line", "pixel", "latitude", "longitude", "height", "incidenceAngle")
        ),
    ]
    return np.stack(columns, axis=1)


def _processor_version(archive: Archive) -> tuple[int, int]:
    """Version of the processor in the manifest, in its first (outermost, last) step: '003.40' is (3, 40)."""
    for element in archive.xml("manifest.safe").iter():
        if element.tag.endswith("}software") and "IPF" in element.get("name", ""):
            version = re.fullmatch(r"(\d+)\.(\d{1,2})\d*", element.get("version", "").strip())
            if version:
                return int(version[1]), int(version[2].ljust(2, "0"))
    raise ProductError(
        f"{archive.path}: manifest.safe has no version of the processor (software Sentinel-1 IPF), {DOWNLOAD_AGAIN}"
    )


def calibration(archive: Archive, image: Image, table: Literal["sigmaNought", "betaNought", "gamma", "dn"]) -> Vectors:
    """Calibration vectors A of backscatter = DN^2 / A^2 (same specification, section 6.3.2), above 0.

    Conventions: sigma0 and gamma0 on the ellipsoid, beta0; ``dn`` scales the noise of processors before 2.50.
    """
    name = _companion(archive, "annotation/calibration/calibration-", image, (".xml",))
    source = f"{archive.path}: {name}"
    vectors = xml.every(archive.xml(name), "calibrationVectorList/calibrationVector", source)
    found = _vectors(vectors, table, image, source)
    if min(value.min() for value in found.value) <= 0:
        raise ProductError(f"{source} has a {table} that is not above 0: {DOWNLOAD_AGAIN}")
    return found


def noise(archive: Archive, image: Image) -> Noise:
    """Thermal noise vectors, of processors before 2.9 (one list) and since (range and azimuth, by swath)."""
    name = _companion(archive, "annotation/calibration/noise-", image, (".xml",))
    source = f"{archive.path}: {name}"
    root = archive.xml(name)
    old = root.findall("noiseVectorList/noiseVector")
    if old:
        return Noise(_vectors(old, "noiseLut", image, source), (_whole(image),))
    vectors = xml.every(root, "noiseRangeVectorList/noiseRangeVector", source)
    blocks = tuple(_noise_block(block, source) for block in root.findall("noiseAzimuthVectorList/noiseAzimuthVector"))
    return Noise(_vectors(vectors, "noiseRangeLut", image, source), blocks or (_whole(image),))


def _noise_block(block: Element, source: str) -> NoiseBlock:
    tags = ("firstAzimuthLine", "lastAzimuthLine", "firstRangeSample", "lastRangeSample")
    first_line, last_line, first_sample, last_sample = (int(xml.number(block, tag, source)) for tag in tags)
    line, value = (xml.numbers(block, tag, source) for tag in ("line", "noiseAzimuthLut"))
    _same_length(line, value, "noiseAzimuthLut", source)
    if last_line < first_line or last_sample < first_sample or value.min() < 0:
        raise ProductError(
            f"{source} has a noiseAzimuthVector of lines {first_line} to {last_line}, samples {first_sample} to "
            f"{last_sample} and factors from {value.min():g}, expected increasing numbers and no negative factor: "
            f"{DOWNLOAD_AGAIN}"
        )
    return NoiseBlock(first_line, last_line, first_sample, last_sample, _in_order(line, "line", source), value)


def _whole(image: Image) -> NoiseBlock:
    return NoiseBlock(0, image.lines - 1, 0, image.samples - 1, np.zeros(1), np.ones(1))


def _vectors(elements: list[Element], tag: str, image: Image, source: str) -> Vectors:
    time_s = _in_order(xml.seconds(elements, "azimuthTime", image.first_line, source), "azimuthTime", source)
    pixels = tuple(_in_order(xml.numbers(element, "pixel", source), "pixel", source) for element in elements)
    values = tuple(xml.numbers(element, tag, source) for element in elements)
    for pixel, value in zip(pixels, values, strict=True):
        _same_length(pixel, value, tag, source)
    return Vectors(time_s, pixels, values)


def _companion(archive: Archive, prefix: str, image: Image, suffixes: tuple[str, ...]) -> str:
    """Name of the file beside an annotation.

    Products repacked as cloud-optimised GeoTIFF (``_COG.SAFE``) have ``-cog`` at the end of every stem.
    """
    plain = image.name.removesuffix("-cog")
    names = [prefix + stem + suffix for stem in (image.name, plain, plain + "-cog") for suffix in suffixes]
    return next((name for name in names if name in archive.names), names[0])


def relative_orbit(archive: Archive) -> str:
    """Relative orbit number from the manifest."""
    for element in archive.xml("manifest.safe").iter():
        if element.tag.endswith("}relativeOrbitNumber"):
            return (element.text or "").strip()
    raise ProductError(f"{archive.path}: manifest.safe has no relativeOrbitNumber, {DOWNLOAD_AGAIN}")


def measurement(archive: Archive, image: Image) -> str:
    """What rasterio opens for the image of one polarisation, once it is known to be what the annotation describes.

    Raises
    ------
    ProductError
        It is missing, empty, no TIFF or of another size than the annotation says.
    """
    name = _companion(archive, "measurement/", image, (".tiff", ".tif"))
    path = archive.raster(name)
    try:
        with rasterio.open(path) as raster:
            shape, kinds = raster.shape, raster.dtypes
    except RasterioError as error:
        raise ProductError(f"{archive.path}: {name} is no whole TIFF ({error}): {DOWNLOAD_AGAIN}") from error
    if shape != (image.lines, image.samples) or kinds != ("uint16",):
        raise ProductError(
            f"{archive.path}: {name} has {shape[0]} lines of {shape[1]} samples of {' and '.join(kinds)}, "
            f"expected {image.lines} lines of {image.samples} samples of uint16 as annotated: {DOWNLOAD_AGAIN}"
        )
    return path


def read_raster(path: str, window: Window, indexes: int | list[int] = 1) -> np.ndarray:
    """Pixels of a window; ProductError where the file ends before them."""
    try:
        with rasterio.open(path) as raster:
            return raster.read(indexes, window=window)
    except RasterioError as error:
        raise ProductError(f"{path} cannot be read to its end ({error}): {DOWNLOAD_AGAIN}") from error


def _in_order(values: np.ndarray, tag: str, source: str) -> np.ndarray:
    if (np.diff(values) < 0).any():
        raise ProductError(f"{source} has a {tag} that is out of order, expected rising values: {DOWNLOAD_AGAIN}")
    return values


def _same_length(positions: np.ndarray, values: np.ndarray, tag: str, source: str) -> None:
    if len(positions) != len(values):
        raise ProductError(f"{source}: {tag} has {len(values)} values at {len(positions)} positions, {DOWNLOAD_AGAIN}")
