"""Stored products: the files of a Sentinel-1 SAFE (folder or zip) or of an 'assets' zip, and what its XML says."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError

import numpy as np
import rasterio
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from rasterio.errors import RasterioError
from rasterio.windows import Window

from covermap.errors import CoverageError, ProductError
from covermap.grid import Grid
from covermap.sentinel1.geocoding import GroundToSlant
from covermap.sentinel1.orbit import Orbit
from covermap.sentinel1.radiometry import Noise, NoiseBlock, Vectors

log = logging.getLogger(__name__)

LARGEST_XML = 64 * 2**20  # real annotation files have 0.4 to 5 MB
DOWNLOAD_AGAIN = "remove the file so that it is downloaded again"


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

    def read(self, name: str) -> bytes:
        """Content of a small file; ProductError where it is missing or absurdly large."""
        if name not in self.names:
            raise ProductError(f"{self.path} has no {name}: the product is incomplete, {DOWNLOAD_AGAIN}")
        if not zipfile.is_zipfile(self.path):
            return (self.path / name).read_bytes()
        try:
            with zipfile.ZipFile(self.path) as archive:
                size = archive.getinfo(self.root + name).file_size
                if size > LARGEST_XML:
                    raise ProductError(f"{self.path}: {name} has {size} bytes, expected at most {LARGEST_XML}")
                return archive.read(self.root + name)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ProductError(f"{self.path}: {name} cannot be read ({error}): {DOWNLOAD_AGAIN}") from error

    def xml(self, name: str) -> Element:
        """Root element of an XML file; entities and document types are refused (they are never in a real product)."""
        try:
            return fromstring(self.read(name), forbid_dtd=True)
        except DefusedXmlException as error:
            raise ProductError(
                f"{self.path}: {name} declares entities or a DTD, which no product does: {error}"
            ) from None
        except ParseError as error:
            raise ProductError(f"{self.path}: {name} is not well-formed XML ({error}): {DOWNLOAD_AGAIN}") from None

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
        Nothing is there, it is no zip, it holds something else, or a member's name leads out of the archive.
    """
    if path.is_dir():
        names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
        root = ""
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/")]
        _refuse_escapes(path, members)
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


def _refuse_escapes(path: Path, members: list[str]) -> None:
    for name in members:
        if ".." in PurePosixPath(name.replace("\\", "/")).parts or name.startswith(("/", "\\")) or ":" in name:
            raise ProductError(f"{path} has a member named {name!r}, which leads out of the archive: do not trust it")


def _root(path: Path, members: list[str]) -> str:
    tops = sorted({name.split("/")[0] for name in members if name.split("/")[0].endswith(".SAFE")})
    if len(tops) > 1:
        raise ProductError(f"{path} holds {len(tops)} SAFE folders ({', '.join(tops)}): expected one scene a file")
    return f"{tops[0]}/" if tops else ""


@dataclass(frozen=True)
class Image:
    """Annotation of one polarisation of a GRD product.

    Times are seconds since the first line (``first_line``, UTC); line and sample numbers are centres of pixels.
    """

    name: str
    polarisation: str
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
SPEED_OF_LIGHT_M_S = 299_792_458.0


def images(archive: Archive) -> dict[str, Image]:
    """Annotations of a SAFE by polarisation.

    Raises
    ------
    ProductError
        There is none, or one is no ground-range product or lacks an element.
    """
    names = sorted(
        name for name in archive.names if PurePosixPath(name).match("annotation/*.xml") and name.count("/") == 1
    )
    if not names:
        raise ProductError(f"{archive.path} has no annotation/*.xml: the product is incomplete, {DOWNLOAD_AGAIN}")
    found = [_image(archive, name) for name in names]
    return {image.polarisation: image for image in found}


def _image(archive: Archive, name: str) -> Image:
    """Annotation file ``name`` (Sentinel-1 Product Specification, S1-RS-MDA-52-7441, section 6.3.1)."""
    root = archive.xml(name)
    source = f"{archive.path}: {name}"
    if (kind := _text(root, "adsHeader/productType", source)) != "GRD":
        raise ProductError(f"{source} is of type {kind!r}: expected GRD, ask the provider for ground-range products")
    information = "imageAnnotation/imageInformation/"
    first_line = _time(_text(root, information + "productFirstLineUtcTime", source), source)

    def seconds(elements: list[Element], tag: str) -> np.ndarray:
        return _seconds(elements, tag, first_line, source)

    states = _all(root, "generalAnnotation/orbitList/orbit", source)
    records = _all(root, "coordinateConversion/coordinateConversionList/coordinateConversion", source)
    points = _all(root, "geolocationGrid/geolocationGridPointList/geolocationGridPoint", source)
    columns = [
        seconds(points, "azimuthTime"),
        _column(points, "slantRangeTime", source) * SPEED_OF_LIGHT_M_S / 2,
        *(
            _column(points, tag, source)
            for tag in ("line", "pixel", "latitude", "longitude", "height", "incidenceAngle")
        ),
    ]
    coefficients = [_numbers(_text(record, "grsrCoefficients", source), source) for record in records]
    samples = int(_number(root, information + "numberOfSamples", source))
    range_spacing_m = _number(root, information + "rangePixelSpacing", source)
    image = Image(
        name=PurePosixPath(name).stem,
        polarisation=_text(root, "adsHeader/polarisation", source),
        first_line=first_line,
        line_interval_s=_number(root, information + "azimuthTimeInterval", source),
        range_spacing_m=range_spacing_m,
        lines=int(_number(root, information + "numberOfLines", source)),
        samples=samples,
        orbit=Orbit(
            seconds(states, "time"),
            np.stack([_column(states, f"position/{axis}", source) for axis in "xyz"], axis=1),
            np.stack([_column(states, f"velocity/{axis}", source) for axis in "xyz"], axis=1),
        ),
        ground_to_slant=GroundToSlant(
            seconds(records, "azimuthTime"),
            _column(records, "gr0", source),
            np.array([np.pad(row, (0, max(map(len, coefficients)) - len(row))) for row in coefficients]),
            samples * range_spacing_m,
        ),
        grid_points=np.stack(columns, axis=1),
        noise_already_removed=root.findtext(
            "imageAnnotation/processingInformation/thermalNoiseCorrectionPerformed", "false"
        ).strip()
        == "true",
        orbit_state=_text(root, "generalAnnotation/productInformation/pass", source).lower(),
    )
    covered = image.orbit.time_s[[0, -1]]
    if covered[0] > 0 or covered[1] < image.lines * image.line_interval_s:
        raise ProductError(
            f"{source}: the state vectors reach from {covered[0]:.0f} to {covered[1]:.0f} s after the first line, "
            f"which does not cover the {image.lines * image.line_interval_s:.0f} s of the image, {DOWNLOAD_AGAIN}"
        )
    return image


def sigma_nought(archive: Archive, image: Image) -> Vectors:
    """Calibration vectors A of sigma0 = DN^2 / A^2 (same specification, section 6.3.2)."""
    name = f"annotation/calibration/calibration-{image.name}.xml"
    vectors = _all(archive.xml(name), "calibrationVectorList/calibrationVector", f"{archive.path}: {name}")
    return _vectors(vectors, "sigmaNought", image, f"{archive.path}: {name}")


def noise(archive: Archive, image: Image) -> Noise:
    """Thermal noise vectors, of processors before 2.9 (one list) and since (range and azimuth, by swath)."""
    name = f"annotation/calibration/noise-{image.name}.xml"
    source = f"{archive.path}: {name}"
    root = archive.xml(name)
    old = root.findall("noiseVectorList/noiseVector")
    if old:
        log.warning("%s comes from a processor before 2.9: its border noise stays in the image", source)
        return Noise(_vectors(old, "noiseLut", image, source), (_whole(image),))
    vectors = _all(root, "noiseRangeVectorList/noiseRangeVector", source)
    blocks = tuple(_noise_block(block, source) for block in root.findall("noiseAzimuthVectorList/noiseAzimuthVector"))
    return Noise(_vectors(vectors, "noiseRangeLut", image, source), blocks or (_whole(image),))


def _noise_block(block: Element, source: str) -> NoiseBlock:
    tags = ("firstAzimuthLine", "lastAzimuthLine", "firstRangeSample", "lastRangeSample")
    first_line, last_line, first_sample, last_sample = (int(_number(block, tag, source)) for tag in tags)
    line, value = (_numbers(_text(block, tag, source), source) for tag in ("line", "noiseAzimuthLut"))
    _same_length(line, value, "noiseAzimuthLut", source)
    return NoiseBlock(first_line, last_line, first_sample, last_sample, line, value)


def _whole(image: Image) -> NoiseBlock:
    return NoiseBlock(0, image.lines - 1, 0, image.samples - 1, np.zeros(1), np.ones(1))


def _vectors(elements: list[Element], tag: str, image: Image, source: str) -> Vectors:
    pixels = [_numbers(_text(element, "pixel", source), source) for element in elements]
    values = [_numbers(_text(element, tag, source), source) for element in elements]
    for pixel, value in zip(pixels, values, strict=True):
        _same_length(pixel, value, tag, source)
    return Vectors(_seconds(elements, "azimuthTime", image.first_line, source), tuple(pixels), tuple(values))


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
    path = archive.raster(f"measurement/{image.name}.tiff")
    try:
        with rasterio.open(path) as raster:
            shape, kind = raster.shape, raster.dtypes[0]
    except RasterioError as error:
        raise ProductError(
            f"{archive.path}: measurement/{image.name}.tiff is no whole TIFF ({error}): {DOWNLOAD_AGAIN}"
        ) from error
    if shape != (image.lines, image.samples) or kind != "uint16":
        raise ProductError(
            f"{archive.path}: measurement/{image.name}.tiff has {shape[0]} lines of {shape[1]} samples of {kind}, "
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


def _all(root: Element, path: str, source: str) -> list[Element]:
    found = root.findall(path)
    if not found:
        raise ProductError(f"{source} has no {path}: the annotation is incomplete, {DOWNLOAD_AGAIN}")
    return found


def _text(element: Element, path: str, source: str) -> str:
    text = element.findtext(path)
    if not text or not text.strip():
        raise ProductError(f"{source} has no {path}: the annotation is incomplete, {DOWNLOAD_AGAIN}")
    return text.strip()


def _number(element: Element, path: str, source: str) -> float:
    return float(_numbers(_text(element, path, source), source)[0])


def _numbers(text: str, source: str) -> np.ndarray:
    try:
        values = np.array(text.split(), np.float64)
    except ValueError:
        raise ProductError(f"{source} has {text[:40]!r} where numbers are expected, {DOWNLOAD_AGAIN}") from None
    if not np.isfinite(values).all():
        raise ProductError(f"{source} has a number that is not finite in {text[:40]!r}, {DOWNLOAD_AGAIN}")
    return values


def _column(elements: list[Element], path: str, source: str) -> np.ndarray:
    return np.array([_number(element, path, source) for element in elements])


def _time(text: str, source: str) -> np.datetime64:
    try:
        return np.datetime64(text.removesuffix("Z"), "us")
    except ValueError:
        raise ProductError(f"{source} has {text[:40]!r} where a UTC time is expected, {DOWNLOAD_AGAIN}") from None


def _seconds(elements: list[Element], path: str, start: np.datetime64, source: str) -> np.ndarray:
    times = np.array([_time(_text(element, path, source), source) for element in elements])
    return (times - start) / np.timedelta64(1, "s")


def _same_length(positions: np.ndarray, values: np.ndarray, tag: str, source: str) -> None:
    if len(positions) != len(values):
        raise ProductError(f"{source}: {tag} has {len(values)} values at {len(positions)} positions, {DOWNLOAD_AGAIN}")
