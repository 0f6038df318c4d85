"""Products, orbit files and DEMs that are broken or of the wrong kind: each is named, and nothing is half written."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from covermap.area_settings import Sentinel1
from covermap.errors import CoverageError, CovermapError, ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel1 import process_s1
from covermap.sentinel1.xml import LARGEST
from tests.unit.sentinel1_world import (
    GRID,
    LATITUDE,
    LINES,
    LONGITUDE,
    SAMPLES,
    write_dem,
    write_eof,
    write_safe,
    write_tiff,
    zipped,
)

Breaking = Callable[[Path], Path]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safe(tmp_path_factory.mktemp("product"))


@pytest.fixture(scope="module")
def dem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dem(tmp_path_factory.mktemp("dem") / "dem.tif")


def edit(name: str, change: Callable[[str], str]) -> Breaking:
    def broken(product: Path) -> Path:
        (path,) = product.glob(name)
        before = path.read_text()
        after = change(before)
        assert after != before
        path.write_text(after)
        return product

    return broken


def replace(name: str, old: str, new: str) -> Breaking:
    return edit(name, lambda text: text.replace(old, new))


def drop(name: str, element: str) -> Breaking:
    return edit(name, lambda text: re.sub(f"<{element}>.*</{element}>", "", text, flags=re.DOTALL))


def remove(name: str) -> Breaking:
    def broken(product: Path) -> Path:
        for path in product.glob(name):
            path.unlink()
        return product

    return broken


def content(name: str, change: Callable[[bytes], bytes]) -> Breaking:
    def broken(product: Path) -> Path:
        (path,) = product.glob(name)
        path.write_bytes(change(path.read_bytes()))
        return product

    return broken


def image(pixels: np.ndarray) -> Breaking:
    def broken(product: Path) -> Path:
        (path,) = product.glob("measurement/*vv*")
        write_tiff(path, pixels)
        return product

    return broken


def later(seconds: int, *before: str) -> Callable[[str], str]:
    """Moves the times that stand behind some words."""

    def moved(found: re.Match[str]) -> str:
        return found[1] + str(np.datetime64(found[2]) + np.timedelta64(seconds, "s"))

    return lambda text: re.sub(f"({'|'.join(before)})([-0-9T:.]+)", moved, text)


def twice(product: Path) -> Path:
    (path,) = product.glob("annotation/*-vv-*.xml")
    shutil.copy(path, path.with_name(path.name.replace("001", "004")))
    return product


def huge(product: Path) -> Path:
    (path,) = product.glob("annotation/calibration/noise*vh*")
    with path.open("r+b") as file:
        file.truncate(LARGEST + 1)
    return product


def with_member(name: str, content: str = "x") -> Breaking:
    def broken(product: Path) -> Path:
        file = zipped(product)
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(name.format(product=product.name), content)
        return file

    return broken


def zip_bomb(product: Path) -> Path:
    (path,) = product.glob("annotation/calibration/calibration*vv*")
    path.unlink()
    file = zipped(product)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(path.relative_to(product.parent).as_posix(), bytes(LARGEST + 1))
    return file


def half_zip(product: Path) -> Path:
    file = zipped(product)
    file.write_bytes(file.read_bytes()[:50_000])
    return file


def encrypted(product: Path) -> Path:
    """The flag of every member says that it needs a password."""
    file = zipped(product)
    data = bytearray(file.read_bytes())
    for entry in re.finditer(rb"PK\x01\x02", bytes(data)):
        data[entry.start() + 8] |= 1
    for entry in re.finditer(rb"PK\x03\x04", bytes(data)):
        data[entry.start() + 6] |= 1
    file.write_bytes(data)
    return file


def flipped(product: Path) -> Path:
    """One byte within an annotation is another one than the archive's checksum says."""
    file = zipped(product)
    data = file.read_bytes()
    at = data.index(b"<position>")
    file.write_bytes(data[:at] + b"(" + data[at + 1 :])
    return file


VV, VH = "annotation/*-vv-*.xml", "annotation/*-vh-*.xml"
NOISE, CALIBRATION = "annotation/calibration/noise*vv*", "annotation/calibration/calibration*vv*"
BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
EXTERNAL = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>'

PRODUCTS: dict[str, tuple[Breaking, str]] = {
    # files
    "nothing there": (lambda product: product / "absent.zip", "does not exist"),
    "no manifest": (remove("manifest.safe"), "neither a manifest.safe nor an item.json"),
    "no annotation": (remove("annotation/*.xml"), r"no annotation/\*.xml"),
    "no calibration": (remove(CALIBRATION), "has no annotation/calibration/calibration-s1a-iw-grd-vv"),
    "no noise": (remove("annotation/calibration/noise*vh*"), "has no annotation/calibration/noise-s1a-iw-grd-vh"),
    "no image": (remove("measurement/*vh*"), "has no measurement/s1a-iw-grd-vh"),
    "polarisation lacking": (remove(VH), "has no VH, only VV: set sentinel1.polarisations"),
    "polarisation twice": (twice, "has two annotations of VV"),
    # images
    "TIFF of 0 bytes": (content("measurement/*vv*", lambda data: b""), "vv-20230501t000000-001.tiff is no whole TIFF"),
    "TIFF cut in the middle": (
        content("measurement/*vh*", lambda data: data[: len(data) // 2]),
        "cannot be read to its end|is no whole TIFF",
    ),
    "TIFF of another size": (
        image(np.ones((LINES, SAMPLES - 1), np.uint16)),
        "has 240 lines of 259 samples of uint16, expected 240 lines of 260 samples",
    ),
    "TIFF of floats": (image(np.ones((LINES, SAMPLES), np.float32)), "260 samples of float32, expected 240 lines"),
    "TIFF of two bands": (image(np.ones((2, LINES, SAMPLES), np.uint16)), "uint16 and uint16, expected 240 lines"),
    # hostile
    "XML bomb": (edit(VV, lambda text: BOMB + text), "declares entities or a DTD"),
    "XML bomb in the manifest": (edit("manifest.safe", lambda text: BOMB + text), "manifest.safe declares entities"),
    "external entity": (edit(NOISE, lambda text: EXTERNAL + text), "noise-s1a-iw-grd-vv.* declares entities or a DTD"),
    "huge XML": (huge, "bytes, expected at most 67108864"),
    "zip bomb": (zip_bomb, "calibration-s1a-iw-grd-vv.* has 67108865 bytes, expected at most 67108864"),
    "zip with a name that leads out": (with_member("{product}/../../evil.xml"), "leads out of the archive"),
    "zip with an absolute name": (with_member("/evil.xml"), "leads out of the archive"),
    "zip with one name twice": (with_member("{product}/manifest.safe"), "two members of one name"),
    # zips
    "two SAFEs in one zip": (with_member("OTHER.SAFE/manifest.safe"), "holds 2 SAFE folders"),
    "zip cut in the middle": (half_zip, "is not a whole zip file"),
    "zip with a password": (encrypted, "cannot be read .*encrypted"),
    "zip with a flipped byte": (flipped, "cannot be read .*CRC"),
    # products of the wrong kind
    "SLC": (replace(VV, ">GRD<", ">SLC<"), "is of type 'SLC': expected GRD"),
    "EW given as IW": (replace(VV, "<mode>IW<", "<mode>EW<"), "is of S1A EW VV, but the product's name S1A_IW_"),
    "another satellite": (replace(VV, ">S1A<", ">S1B<"), "is of S1B IW VV, but the product's name S1A_IW_"),
    "another polarisation": (replace(VV, ">VV<", ">HH<"), "HH, but the product's name .* says S1A IW VV VH"),
    "wave mode": (replace(VV, "<mode>IW<", "<mode>WV<"), "is of mode 'WV': expected one of IW, EW"),
    # annotation
    "XML cut off": (edit(VV, lambda text: text[:3000]), "is not well-formed XML"),
    "XML of 0 bytes": (edit(VV, lambda text: ""), "is not well-formed XML"),
    "XML in an unknown encoding": (
        edit(VV, lambda text: '<?xml version="1.0" encoding="nonsense"?>' + text),
        "is not well-formed XML",
    ),
    "no conversion to slant range": (
        drop(VV, "coordinateConversionList"),
        "has no coordinateConversion/coordinateConversionList/coordinateConversion",
    ),
    "no coefficients": (replace(VV, "grsrCoefficients", "other"), "has no grsrCoefficients"),
    "no grid": (drop(VV, "geolocationGridPointList"), "has no geolocationGrid"),
    "garbage for a number": (replace(VV, "<gr0>0<", "<gr0>zero<"), "'zero' in gr0, where numbers are expected"),
    "number that is NaN": (replace(VV, "<gr0>0<", "<gr0>nan<"), "not finite in gr0"),
    "two numbers for one": (replace(VV, "<gr0>0<", "<gr0>0 1<"), "has 2 numbers in gr0, expected one"),
    "garbage for a time": (replace(VV, "T00:00:00", "T27:00:00"), "where a UTC time is expected"),
    "time that is none": (edit(VV, lambda text: re.sub("(<azimuthTime>)[^<]*", r"\1NaT", text)), "'NaT' where a UTC"),
    "lines without time between": (
        edit(VV, lambda text: re.sub("(<azimuthTimeInterval>)[^<]*", r"\g<1>0", text)),
        "has 0 in imageAnnotation/imageInformation/azimuthTimeInterval, expected a number above 0",
    ),
    "absurd size": (replace(VV, f">{LINES}<", ">1000000000<"), "numberOfLines, expected 1 to 200000"),
    "records out of order": (
        edit(
            VV,
            lambda text: re.sub(
                "(<azimuthTime>)[^<]*(</azimuthTime><gr0>)", r"\g<1>2023-05-01T00:09:00\2", text, count=1
            ),
        ),
        "coordinateConversion that is out of order",
    ),
    "too few state vectors": (
        edit(VV, lambda text: re.sub("(<orbit>.*?</orbit>){10}", "", text, count=1, flags=re.DOTALL)),
        "has 7 state vectors, expected at least 8",
    ),
    "state vectors far apart": (
        edit(VV, lambda text: re.sub("((<orbit>.*?</orbit>){4})(<orbit>.*?</orbit>){7}", r"\1", text, count=1)),
        "state vectors 80 s apart, expected at most 60 s",
    ),
    "state vectors of another time": (
        edit(VV, later(180, "<orbit><time>")),
        "state vectors from 100 to 260 s after the first line, which does not cover the 0.4 s of the image",
    ),
    # tables
    "values without positions": (replace(NOISE, "0 99 100", "0 99"), "4 values at 3 positions"),
    "positions out of order": (replace(NOISE, "0 99 100", "0 100 99"), "has a pixel that is out of order"),
    "calibration of zero": (
        edit(CALIBRATION, lambda text: re.sub("(<sigmaNought>)[^ ]*", r"\g<1>0", text, count=1)),
        "has a sigmaNought that is not above 0",
    ),
    # manifest
    "no relative orbit": (replace("manifest.safe", "relativeOrbitNumber", "x"), "has no relativeOrbitNumber"),
    "no processor": (replace("manifest.safe", "Sentinel-1 IPF", "x"), "has no version of the processor"),
}


@pytest.mark.parametrize(("breaking", "message"), PRODUCTS.values(), ids=PRODUCTS)
def test_broken_products_are_named_and_leave_nothing(breaking, message, dem, tmp_path):
    broken = breaking(write_safe(tmp_path / "in"))
    with pytest.raises(CovermapError, match=message) as caught:
        process_s1(broken, dem, tmp_path / "results" / "out.tif", {}, GRID, Sentinel1())
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("results/*"))


AWAY = Grid(crs="EPSG:32631", left=600_000, top=300_000, width=50, height=50)
BESIDE = Grid(crs="EPSG:32631", left=449_000, top=111_000, width=50, height=50)


@pytest.mark.parametrize(("grid", "message"), [(AWAY, "does not touch the area"), (BESIDE, "remove it from the list")])
def test_scenes_elsewhere_are_named_and_leave_nothing(grid, message, product, tmp_path):
    heights = write_dem(tmp_path / "dem.tif", shift_deg=-0.05)
    with pytest.raises(CoverageError, match=message):
        process_s1(product, heights, tmp_path / "results" / "out.tif", {}, grid, Sentinel1())
    assert not list(tmp_path.glob("results/*"))


def without_data_value(folder: Path) -> Path:
    transform = from_origin(LONGITUDE - 0.025, LATITUDE + 0.025, 1 / 3600, 1 / 3600)
    heights = np.full((180, 180), -32768, "int16")
    write_tiff(folder / "undeclared.tif", heights, crs="EPSG:4979", transform=transform)
    return folder / "undeclared.tif"


def no_raster(folder: Path) -> Path:
    (folder / "dem.tif").write_bytes(b"II*")
    return folder / "dem.tif"


DEMS = {
    "none": (lambda folder: None, SettingError, "set the area's dem"),
    "absent": (lambda folder: folder / "absent.tif", ProductError, "cannot be read"),
    "no raster": (no_raster, ProductError, "cannot be read"),
    "no CRS": (lambda folder: write_dem(folder / "dem.tif", None), ProductError, "has no CRS"),
    "no geoid": (lambda folder: write_dem(folder / "dem.tif", "EPSG:4326"), SettingError, "set sentinel1.geoid to"),
    "elsewhere": (lambda folder: write_dem(folder / "dem.tif", shift_deg=2), CoverageError, "does not touch the area"),
    "too small": (lambda folder: write_dem(folder / "dem.tif", shift_deg=0.024), CoverageError, "has no height at"),
    "undeclared no data": (without_data_value, ProductError, "heights from -32768"),
}


@pytest.mark.parametrize(("breaking", "kind", "message"), DEMS.values(), ids=DEMS)
def test_bad_heights_are_named_and_leave_nothing(breaking, kind, message, product, tmp_path):
    with pytest.raises(kind, match=message):
        process_s1(product, breaking(tmp_path), tmp_path / "results" / "out.tif", {}, GRID, Sentinel1())
    assert not list(tmp_path.glob("results/*"))


def swap(old: str, new: str, count: int = -1) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, count)


ORBITS = {
    "another satellite": (swap("Sentinel-1A", "Sentinel-1B"), "is of S1B, but the scene s1a-iw-grd-vv.* of S1A"),
    "another day": (
        later(86_400, "TAI=", "UTC="),
        "has state vectors from 2023-05-01T23:57.* expected 4 of them before",
    ),
    "predicted": (swap("AUX_POEORB", "AUX_PREORB"), "is of type 'AUX_PREORB', expected one of AUX_POEORB, AUX_RESORB"),
    "inertial frame": (swap("EARTH_FIXED", "TRUE_OF_DATE"), "has Ref_Frame 'TRUE_OF_DATE', expected EARTH_FIXED"),
    "time scale": (swap("<Time_Reference>UTC", "<Time_Reference>TAI"), "has Time_Reference 'TAI', expected UTC"),
    "manoeuvre": (swap("NOMINAL", "DEGRADED"), "state vectors around .* of quality DEGRADED, expected NOMINAL"),
    "too few": (
        lambda text: re.sub("(<OSV>.*?</OSV>){13}", "", text, count=1),
        "expected 4 of them before and 4 behind the 0.4 s from 2023-05-01T00:00:00",
    ),
    "gap": (
        lambda text: re.sub("((<OSV>.*?</OSV>){12})(<OSV>.*?</OSV>){7}", r"\1", text, count=1),
        "state vectors 80 s apart, expected at most 60 s",
    ),
    "TAI for UTC": (later(-37, "UTC="), "is 277 km from the orbit in the annotation of s1a-iw-grd-vv"),
    "leap second": (swap("TAI=2023-05-01T00:00:3", "TAI=2023-05-01T00:00:4"), "has a leap second around 2023-05-01"),
    "cut off": (lambda text: text[:2000], "is not well-formed XML"),
    "entities": (lambda text: BOMB + text, "declares entities or a DTD"),
    "garbage": (swap('<X unit="m">', '<X unit="m">?'), "in X, where numbers are expected"),
    "no header": (lambda text: re.sub("<Earth_Explorer_Header>.*</Earth_Explorer_Header>", "", text), "File_Type"),
}


@pytest.mark.parametrize(("breaking", "message"), ORBITS.values(), ids=ORBITS)
def test_bad_orbit_files_are_refused_and_leave_nothing(breaking, message, product, dem, tmp_path):
    path = write_eof(tmp_path / "file.EOF")
    before = path.read_text()
    path.write_text(breaking(before))
    assert path.read_text() != before
    with pytest.raises(ProductError, match=message) as caught:
        process_s1(product, dem, tmp_path / "results" / "out.tif", {}, GRID, Sentinel1(), orbit=path)
    assert str(caught.value).startswith(f"orbit file {path}")
    assert not list(tmp_path.glob("results/*"))


def test_an_orbit_file_that_is_absent_is_named(product, dem, tmp_path):
    absent = tmp_path / "absent.EOF"
    with pytest.raises(ProductError, match=r"absent\.EOF cannot be read"):
        process_s1(product, dem, tmp_path / "results" / "out.tif", {}, GRID, Sentinel1(), orbit=absent)
    assert not list(tmp_path.glob("results/*"))


def test_the_orbit_file_that_these_break_is_good(product, dem, tmp_path):
    path = write_eof(tmp_path / "file.EOF")
    process_s1(product, dem, tmp_path / "by_file.tif", {}, GRID, Sentinel1(), orbit=path)
    process_s1(product, dem, tmp_path / "annotated.tif", {}, GRID, Sentinel1())
    with rasterio.open(tmp_path / "by_file.tif") as one, rasterio.open(tmp_path / "annotated.tif") as other:
        np.testing.assert_allclose(one.read(), other.read(), rtol=2e-3)
        assert "file.EOF" in one.tags()["orbit_source"]
