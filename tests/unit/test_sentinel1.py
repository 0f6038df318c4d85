"""Sentinel-1: pure functions against hand-made answers, and the step on a small product that the test writes itself."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import from_origin

from covermap.area_settings import Sentinel1
from covermap.errors import CoverageError, ProductError, SettingError
from covermap.sentinel1 import process_s1
from tests.unit.sentinel1_world import (
    GRID,
    SIGMA0,
    read,
    targets,
    write_dem,
    write_safe,
    write_tiff,
    zipped,
)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safe(tmp_path_factory.mktemp("product"))


@pytest.fixture(scope="module")
def dem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dem(tmp_path_factory.mktemp("dem") / "dem.tif")


# ---- the step ----


def test_targets_and_constant_field_come_out_in_place(product, dem, tmp_path):
    item = {"id": "S1A_TEST", "properties": {"datetime": "2023-05-01T00:00:00Z"}}
    process_s1(product, dem, tmp_path / "out.tif", item, GRID, Sentinel1(speckle_filter="none"), 2)
    power, raster = read(tmp_path / "out.tif")
    assert power.dtype == np.float32
    assert raster.descriptions == ("VV", "VH", "layover_shadow")
    tags = raster.tags
    assert tags["convention"] == "sigma0"
    assert (tags["orbit_state"], tags["relative_orbit"], tags["scene"]) == ("ascending", "7", "S1A_TEST")
    assert (tags["noise_removed"], tags["speckle_filter"], tags["dem"]) == ("yes", "none", "dem.tif")
    rows, columns = np.indices(power.shape[1:])
    assert set(np.unique(power[2][np.isfinite(power[2])])) == {0}  # hills of 60 m lie neither over nor behind anything
    for band, sigma0 in zip(power[:2], SIGMA0.values(), strict=True):
        far = np.isfinite(band)
        for x, y in targets():
            row, column = (raster.bounds.top - y) / 10 - 0.5, (x - raster.bounds.left) / 10 - 0.5
            distance = np.hypot(rows - row, columns - column)
            far &= distance > 14
            weight = np.where(distance < 8, band - sigma0, 0)
            assert (weight * rows).sum() / weight.sum() == pytest.approx(row, abs=0.1)
            assert (weight * columns).sum() / weight.sum() == pytest.approx(column, abs=0.1)
        assert far.sum() > 5_000
        assert abs(10 * np.log10(band[far] / sigma0)).max() < 0.02  # so no data has not bled in either


def test_zip_folder_threads_and_a_part_of_the_area_agree(product, dem, tmp_path):
    settings = Sentinel1()
    process_s1(product, dem, tmp_path / "a.tif", {}, GRID, settings)
    process_s1(zipped(product), dem, tmp_path / "b.tif", {}, GRID, settings, 2)
    part = GRID.window(37, 41, 60, 50)
    process_s1(product, dem, tmp_path / "c.tif", {}, part, settings)
    whole, raster = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(read(tmp_path / "b.tif")[0], whole)
    row = round((raster.bounds.top - part.top) / 10)
    column = round((part.left - raster.bounds.left) / 10)
    # nodes lie elsewhere: a thousandth of a pixel on the flank of a target
    np.testing.assert_allclose(read(tmp_path / "c.tif")[0], whole[:, row : row + 60, column : column + 50], rtol=2e-3)


def test_output_is_cropped_to_the_surroundings_of_the_image(product, dem, tmp_path):
    process_s1(product, dem, tmp_path / "out.tif", {}, GRID.padded(2000), Sentinel1())
    power, raster = read(tmp_path / "out.tif")
    process_s1(product, dem, tmp_path / "wide.tif", {}, GRID, Sentinel1())
    assert np.isfinite(power).sum() > np.isfinite(read(tmp_path / "wide.tif")[0]).sum()
    assert max(power.shape) < 500
    assert (raster.bounds.left - GRID.left) % 10 == 0
    assert (raster.bounds.top - GRID.top) % 10 == 0


def test_heights_above_the_geoid_need_the_geoid(product, dem, tmp_path):
    above_sea = write_dem(tmp_path / "above.tif", "EPSG:4326")
    with pytest.raises(SettingError, match=r"set sentinel1.geoid to egm96"):
        process_s1(product, above_sea, tmp_path / "out.tif", {}, GRID, Sentinel1())
    with pytest.raises(SettingError, match=r"remove sentinel1.geoid"):
        process_s1(product, dem, tmp_path / "out.tif", {}, GRID, Sentinel1(geoid=20))
    process_s1(product, above_sea, tmp_path / "zero.tif", {}, GRID, Sentinel1(geoid=0))
    process_s1(product, dem, tmp_path / "ellipsoidal.tif", {}, GRID, Sentinel1())
    np.testing.assert_array_equal(read(tmp_path / "zero.tif")[0], read(tmp_path / "ellipsoidal.tif")[0])
    whole_metres = write_dem(tmp_path / "int16.tif", "EPSG:4326", kind="int16")
    process_s1(product, whole_metres, tmp_path / "int16_out.tif", {}, GRID, Sentinel1(geoid=0))
    assert read(tmp_path / "int16_out.tif")[1].tags["geoid"] == "0 m"


def processed(product: Path, dem: Path, folder: Path, **settings: object) -> tuple[np.ndarray, dict[str, str]]:
    """Bands and tags by settings."""
    process_s1(product, dem, folder / "out.tif", {}, GRID, Sentinel1(**settings))
    pixels, raster = read(folder / "out.tif")
    return pixels, raster.tags


def test_decibels_are_those_of_the_power_and_end_at_the_floor(dem, tmp_path):
    dark = write_safe(tmp_path, dark=True)
    power, _ = processed(dark, dem, tmp_path, layers=())
    decibels, tags = processed(dark, dem, tmp_path, layers=(), units="dB", floor_db=-25)
    np.testing.assert_allclose(decibels, 10 * np.log10(np.maximum(power, 10**-2.5)), rtol=1e-5)
    assert np.isclose(decibels, -25).sum() > 100
    assert tags["units"] == "dB"


def test_backscatter_at_one_angle_follows_the_cosine_law(product, dem, tmp_path):
    power, _ = processed(product, dem, tmp_path, layers=("incidence_angle",))
    brought, tags = processed(product, dem, tmp_path, layers=(), normalise_deg=30)
    ratio = np.cos(np.radians(30)) / np.cos(np.radians(power[2]))
    np.testing.assert_allclose(brought, power[:2] * ratio**2, rtol=1e-5)
    assert tags["normalised_deg"] == "30.0"


def test_conventions_take_their_tables_and_flattening_follows_the_hills(product, dem, tmp_path):
    sigma0, _ = processed(product, dem, tmp_path, speckle_filter="none", layers=())
    gamma0, tags = processed(product, dem, tmp_path, speckle_filter="none", layers=(), convention="gamma0")
    np.testing.assert_allclose(gamma0, sigma0 / 0.9**2, rtol=1e-3)  # by the tables of the product
    assert tags["convention"] == "gamma0"
    settings = {"speckle_filter": "none", "layers": ("incidence_angle",)}
    beta0, _ = processed(product, dem, tmp_path, convention="beta0", **settings)
    flat, tags = processed(product, dem, tmp_path, convention="gamma0_terrain", **settings)
    on_ellipsoid = beta0[0] * np.tan(np.radians(beta0[2]))
    change_db = 10 * np.log10(flat[0] / on_ellipsoid)[30:-30, 30:-60]
    assert abs(np.nanmean(change_db)) < 1  # hills of 60 m, not all of them in sight
    assert 0.05 < np.nanstd(change_db) < 2
    assert tags["convention"] == "gamma0_terrain"


def test_power_below_the_noise_is_kept_floored_or_no_data(product, dem, tmp_path):
    kept, tags = processed(product, dem, tmp_path, speckle_filter="none", layers=())
    assert tags["below_noise_percent"] == "0.000 0.000"
    below = write_safe(tmp_path, dark=True)
    kept, tags = processed(below, dem, tmp_path, speckle_filter="none", layers=())
    assert min(map(float, tags["below_noise_percent"].split())) > 1
    assert (kept < 0).sum() > 100
    floored, _ = processed(below, dem, tmp_path, speckle_filter="none", layers=(), negative_power="floor", floor_db=-30)
    assert np.nanmin(floored) == pytest.approx(1e-3)
    empty, tags = processed(below, dem, tmp_path, speckle_filter="none", layers=(), negative_power="nodata")
    assert (np.nanmin(empty) > 0, tags["negative_power"]) == (True, "nodata")
    assert np.isnan(empty).sum() > np.isnan(kept).sum() + 100


def test_atmosphere_and_satellite_motion_move_the_image(product, dem, tmp_path):
    still, _ = processed(product, dem, tmp_path, speckle_filter="none", layers=())
    for setting in ("path_delay", "bistatic"):
        moved, tags = processed(product, dem, tmp_path, speckle_filter="none", layers=(), **{setting: True})
        assert tags[setting] == "True"
        assert (moved != still)[np.isfinite(still) & np.isfinite(moved)].mean() > 0.5


# ---- analysis-ready backscatter ----


def assets(folder: Path, rasters: dict[str, np.ndarray], left: float, top: float, crs: str = GRID.crs) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "assets.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("item.json", json.dumps({"id": "rtc"}))
        for name, image in rasters.items():
            write_tiff(folder / name, image, crs=crs, transform=from_origin(left, top, 10, 10))
            archive.write(folder / name, name)
    return folder / "assets.zip"


def test_assets_on_the_lattice_are_copied_and_keep_their_window(tmp_path):
    rng = np.random.default_rng(3)
    vv, vh = rng.normal(-10, 2, (2, 40, 50)).astype(np.float32)
    vv[:5, :7] = np.nan
    product = assets(tmp_path, {"vv.tif": vv, "vh.tif": vh}, GRID.left - 200, GRID.top - 500)
    item = {"id": "rtc", "properties": {"sat:orbit_state": "descending", "sat:relative_orbit": 12}}
    process_s1(product, None, tmp_path / "out.tif", item, GRID, Sentinel1(speckle_filter="none"))
    power, raster = read(tmp_path / "out.tif")
    assert (raster.bounds.left, raster.bounds.top) == (GRID.left, GRID.top - 500)
    np.testing.assert_allclose(power, 10 ** (np.stack([vv, vh])[:, :, 20:] / 10), rtol=1e-6)
    assert (raster.tags["relative_orbit"], raster.tags["convention"]) == ("12", "as delivered")


def test_assets_off_the_lattice_are_bilinear_in_power(tmp_path):
    row, column = np.mgrid[:60, :60]
    plane = (1 + 0.01 * row + 0.02 * column).astype(np.float32)
    both = np.stack([plane, 2 * plane])
    product = assets(tmp_path, {"both.tif": both}, GRID.left - 4, GRID.top + 3)
    settings = Sentinel1(speckle_filter="none", assets_unit="power")
    process_s1(product, None, tmp_path / "out.tif", {}, GRID.padded(3_000), settings)
    power, _ = read(tmp_path / "out.tif")
    at = 1 + 0.01 * (row + 0.3) + 0.02 * (column + 0.4)
    np.testing.assert_allclose(power[:, 1:58, 1:58], np.stack([at, 2 * at])[:, 1:58, 1:58], rtol=1e-6)


def test_broken_assets_are_named(tmp_path):
    image = np.ones((20, 20), np.float32)
    out = tmp_path / "results" / "out.tif"
    with pytest.raises(ProductError, match=r"expected vv.tif and vh.tif, or one raster"):
        process_s1(assets(tmp_path / "a", {"vv.tif": image}, GRID.left, GRID.top), None, out, {}, GRID, Sentinel1())
    away = assets(tmp_path / "b", {"vv.tif": image, "vh.tif": image}, GRID.left + 50_000, GRID.top)
    with pytest.raises(CoverageError, match="does not touch the area"):
        process_s1(away, None, out, {}, GRID, Sentinel1())
    cut = assets(tmp_path / "d", {"both.tif": np.stack([image, image])}, GRID.left, GRID.top)
    (tmp_path / "d" / "both.tif").write_bytes(b"II*")
    with zipfile.ZipFile(cut, "w") as archive:
        archive.writestr("item.json", "{}")
        archive.write(tmp_path / "d" / "both.tif", "both.tif")
    with pytest.raises(ProductError, match="cannot be read"):
        process_s1(cut, None, out, {}, GRID, Sentinel1())
    empty = assets(tmp_path / "c", {"vv.tif": image * np.nan, "vh.tif": image * np.nan}, GRID.left, GRID.top)
    with pytest.raises(CoverageError):
        process_s1(empty, None, out, {}, GRID, Sentinel1())
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_settings_of_the_chain_are_refused_for_delivered_backscatter(tmp_path):
    image = np.full((30, 30), -10, np.float32)
    product = assets(tmp_path, {"vv.tif": image, "vh.tif": image}, GRID.left, GRID.top)
    for setting in ({"normalise_deg": 38}, {"path_delay": True}, {"layers": ("incidence_angle",)}):
        with pytest.raises(SettingError, match=f"sentinel1.{next(iter(setting))} cannot be applied"):
            process_s1(product, None, tmp_path / "out.tif", {}, GRID, Sentinel1(**setting))


def test_zeros_of_delivered_power_are_no_data(tmp_path):
    image = np.ones((30, 30), np.float32)
    image[:4] = 0
    product = assets(tmp_path, {"vv.tif": image, "vh.tif": image}, GRID.left, GRID.top)
    settings = Sentinel1(assets_unit="power", speckle_filter="none")
    process_s1(product, None, tmp_path / "out.tif", {}, GRID, settings)
    power, raster = read(tmp_path / "out.tif")
    assert (power == 1).all()
    assert raster.bounds.top == GRID.top - 40


def test_sea_reaches_beyond_a_dem_and_flattening_needs_the_slopes_around(product, dem, tmp_path):
    for shift in (0.012, -0.012):
        part = write_dem(tmp_path / f"{shift}.tif", shift_deg=shift)
        with pytest.raises(SettingError, match="geoid"):
            process_s1(product, part, tmp_path / "out.tif", {}, GRID, Sentinel1(dem_gaps="sea"))
        pixels, tags = processed(product, part, tmp_path, dem_gaps="sea", geoid=100)
        assert "gaps are sea" in tags["geoid"]
        assert np.isfinite(pixels[0]).mean() > 0.5
    with pytest.raises(CoverageError, match=r"does not reach .* gamma0_terrain sums the area"):
        processed(product, write_dem(tmp_path / "near.tif", shift_deg=0.012), tmp_path, convention="gamma0_terrain")
