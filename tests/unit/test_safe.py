"""Variants of a product: packed, repacked, of other satellites, modes, polarisations and processors."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from covermap.errors import ProductError
from covermap.sentinel1 import safe
from tests.unit.sentinel1_world import (
    INTERVAL_S,
    LINES,
    SAMPLES,
    at,
    calibration,
    noise_tables,
    numbers,
    write_safe,
    zipped,
)


def renamed(product: Path, name: str) -> Path:
    return product.rename(product.with_name(name))


def rewritten(product: Path, *changes: tuple[str, str]) -> Path:
    for path in product.rglob("*.xml"):
        text = path.read_text()
        for old, new in changes:
            text = text.replace(old, new)
        path.write_text(text)
    return product


def cloud_optimised(product: Path, everywhere: bool) -> Path:
    """Repacked in tiles with overviews; ``-cog`` at the end of every stem, or of the images' alone."""
    for path in [path for path in product.rglob("s1a-*") if everywhere or path.suffix == ".tiff"] + [
        path for path in product.glob("annotation/calibration/*") if everywhere
    ]:
        new = path.rename(path.with_stem(path.stem + "-cog"))
        if new.suffix == ".tiff":
            with rasterio.open(new) as raster:
                pixels, profile = raster.read(), raster.profile
            profile.update(tiled=True, blockxsize=128, blockysize=128, compress="zstd", nodata=0)
            with rasterio.open(new, "w", **profile) as raster:
                raster.write(pixels)
                raster.build_overviews([2])
    return renamed(product, product.name.replace(".SAFE", "_COG.SAFE"))


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_cloud_optimised_products_hold_the_same(packed, everywhere, tmp_path):
    plain = safe.open_product(write_safe(tmp_path / "plain"))
    repacked = cloud_optimised(write_safe(tmp_path / "cog"), everywhere)
    archive = safe.open_product(zipped(repacked) if packed else repacked)
    assert archive.name == "S1A_IW_GRDH_1SDV_20230501T000000_TEST_COG.SAFE"
    image, before = safe.images(archive)["VH"], safe.images(plain)["VH"]
    np.testing.assert_array_equal(image.grid_points, before.grid_points)
    for table in ("sigmaNought", "betaNought", "gamma"):
        found, expected = safe.calibration(archive, image, table), safe.calibration(plain, before, table)
        np.testing.assert_array_equal(found.value, expected.value)
    np.testing.assert_array_equal(safe.noise(archive, image).blocks[1].value, safe.noise(plain, before).blocks[1].value)
    with (
        rasterio.open(safe.measurement(archive, image)) as found,
        rasterio.open(safe.measurement(plain, before)) as old,
    ):
        np.testing.assert_array_equal(found.read(), old.read())


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zips_are_read_in_place_however_packed(packing, tmp_path):
    product = write_safe(tmp_path)
    file = tmp_path / "scene.zip"
    with zipfile.ZipFile(file, "w", packing) as archive:
        for path in sorted(product.rglob("*")):
            archive.write(path, path.relative_to(tmp_path).as_posix())
    before = sorted(tmp_path.rglob("*"))
    archive = safe.open_product(file)
    image = safe.images(archive)["VV"]
    with rasterio.open(safe.measurement(archive, image)) as raster:
        assert raster.read(1).any()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "mission", "mode", "swath", "polarisations"),
    [
        ("S1A_IW_GRDH_1SDV_", "S1A", "IW", "IW", ("VV", "VH")),
        ("S1B_IW_GRDH_1SDH_", "S1B", "IW", "IW", ("HH", "HV")),
        ("S1C_EW_GRDM_1SDH_", "S1C", "EW", "EW", ("HH", "HV")),
        ("S1D_S3_GRDF_1SDV_", "S1D", "SM", "S3", ("VV", "VH")),
        ("S1A_S6_GRDH_1SSH_", "S1A", "SM", "S6", ("HH",)),
        ("S1A_EW_GRDM_1SSV_", "S1A", "EW", "EW", ("VV",)),
        ("a name of one's own", "S1A", "IW", "IW", ("VV", "HV")),
    ],
)
def test_satellites_modes_and_polarisations(name, mission, mode, swath, polarisations, tmp_path):
    product = write_safe(tmp_path)
    if len(polarisations) == 1:
        (product / "annotation/s1a-iw-grd-vh-20230501t000000-002.xml").unlink()
    changes = [(">S1A<", f">{mission}<"), ("<mode>IW<", f"<mode>{mode}<"), ("<swath>IW<", f"<swath>{swath}<")]
    changes += [(f">{old}<", f">{new}<") for old, new in zip(("VV", "VH"), polarisations, strict=False)]
    archive = safe.open_product(renamed(rewritten(product, *changes), f"{name}20230501T000000_TEST.SAFE"))
    images = safe.images(archive)
    assert sorted(images) == sorted(polarisations)
    assert {(image.mission, image.mode) for image in images.values()} == {(mission, swath if mode == "SM" else mode)}


@pytest.mark.parametrize(
    ("text", "version"), [("003.40", (3, 40)), ("002.36", (2, 36)), ("002.9", (2, 90)), ("4.01", (4, 1))]
)
def test_version_of_the_processor(text, version, tmp_path):
    product = write_safe(tmp_path)
    manifest = product / "manifest.safe"
    manifest.write_text(manifest.read_text().replace("003.40", text))
    assert safe.images(safe.open_product(product))["VV"].processor_version == version


def test_noise_of_processors_before_2_9_is_one_block_with_a_factor_of_one(tmp_path):
    product = write_safe(tmp_path)
    pixel = np.array([0, 100, SAMPLES - 1])
    vectors = "".join(
        f"<noiseVector><azimuthTime>{at(line * INTERVAL_S)}</azimuthTime><line>{line}</line>"
        f"<pixel>0 100 {SAMPLES - 1}</pixel><noiseLut>{numbers(pixel * 0.0 + line)}</noiseLut></noiseVector>"
        for line in (0, 200)
    )
    for path in product.glob("annotation/calibration/noise*"):
        path.write_text(f"<noise><noiseVectorList>{vectors}</noiseVectorList></noise>")
    archive = safe.open_product(product)
    noise = safe.noise(archive, safe.images(archive)["VV"])
    np.testing.assert_allclose(noise.along_range.time_s, [0, 200 * INTERVAL_S], atol=1e-6)
    np.testing.assert_array_equal(noise.along_range.value, [[0, 0, 0], [200, 200, 200]])
    (block,) = noise.blocks
    assert (block.first_line, block.last_line, block.first_sample, block.last_sample) == (0, LINES - 1, 0, SAMPLES - 1)
    np.testing.assert_array_equal(block.value, [1])


def test_noise_without_azimuth_vectors_is_one_block(tmp_path):
    product = write_safe(tmp_path)
    text = noise_tables()
    start, stop = text.index("<noiseAzimuthVectorList>"), text.index("</noise>")
    for path in product.glob("annotation/calibration/noise*"):
        path.write_text(text[:start] + text[stop:])
    archive = safe.open_product(product)
    (block,) = safe.noise(archive, safe.images(archive)["VV"]).blocks
    np.testing.assert_array_equal(block.value, [1])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product that tests write into and put right again."""
    return write_safe(tmp_path_factory.mktemp("scratch"))


@given(st.lists(st.floats(1e-3, 1e4), min_size=3, max_size=3))
def test_each_table_of_the_calibration_is_read_as_written(scratch, values):
    text = calibration()
    start, stop = text.index("<betaNought>") + len("<betaNought>"), text.index("</betaNought>")
    path = next(scratch.glob("annotation/calibration/calibration*vv*"))
    path.write_text(text[:start] + numbers(values) + text[stop:])
    archive = safe.open_product(scratch)
    image = safe.images(archive)["VV"]
    np.testing.assert_allclose(safe.calibration(archive, image, "betaNought").value[0], values, rtol=1e-14)
    np.testing.assert_allclose(safe.calibration(archive, image, "gamma").value[0][0], 0.9 * 398, rtol=1e-14)
    path.write_text(text)


METADATA = ("manifest.safe", "annotation/*vv*", "annotation/calibration/noise*vv*", "annotation/calibration/cal*vv*")


@given(
    name=st.sampled_from(METADATA),
    place=st.floats(0, 1),
    length=st.integers(0, 60),
    junk=st.binary(max_size=8) | st.text("0123456789-+.eE <>/&;", max_size=8).map(str.encode),
)
def test_damage_to_metadata_is_harmless_or_named(scratch, name, place, length, junk):
    path = next(scratch.glob(name))
    content = path.read_bytes()
    start = round(place * len(content))
    path.write_bytes(content[:start] + junk + content[start + length :])
    try:
        archive = safe.open_product(scratch)
        image = safe.images(archive)["VV"]
        safe.calibration(archive, image, "sigmaNought")
        safe.noise(archive, image)
        safe.relative_orbit(archive)
    except ProductError as error:
        assert str(scratch) in str(error)
    finally:
        path.write_bytes(content)
