"""The map from its blocks: which never show, which may be many, and of which half a file is never left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
from rasterio.features import geometry_mask
from rio_cogeo import cog_validate

import covermap.mosaic
from covermap.errors import ProductError, RoomError
from covermap.grid import project
from covermap.legend import Legend
from covermap.model_settings import Tidy, halo_pixels
from covermap.mosaic import bytes_of, mosaic_layer, sources_of
from covermap.postprocess import tidied
from covermap.styles import write_table

from ._maps import FILES, LEGEND, NAMES, made, mapped, outline, pixels

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Arguments of the steps, with predictions in blocks of 256 pixels."""
    return made(tmp_path_factory.mktemp("predictions"))


@pytest.fixture(scope="module")
def files(world, tmp_path_factory):
    """The finished map."""
    return mapped(tmp_path_factory.mktemp("maps"), world)


def read(path):
    with rasterio.open(path) as raster:
        return raster.read()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def beyond(grid):
    """Where a pixel's centre lies outside, after the way to lon/lat and back that the outline goes."""
    there = project(project(outline(), grid.crs, "EPSG:4326"), "EPSG:4326", grid.crs)
    return geometry_mask([there], grid.shape, grid.transform)


def test_the_map_is_what_was_predicted_within_the_outline(world, files):
    expected = pixels(world["grid"])
    expected[0][beyond(world["grid"])], expected[1:, beyond(world["grid"])] = 0, 255
    np.testing.assert_array_equal(read(files["map"])[0], expected[0])
    np.testing.assert_array_equal(read(files["confidence"])[0], expected[1])
    assert (expected[0] > 0).mean() > 0.5 and (expected[0] == 0).any()


@pytest.mark.parametrize("tidy", [None, Tidy(majority_pixels=5, min_unit_ha=0.3)])
@pytest.mark.parametrize("side", [64, 150, 4096])
def test_blocks_of_any_size_give_the_same_bytes(world, tmp_path, side, tidy):
    for name, arguments in (("one", world), ("other", made(tmp_path, side))):
        (tmp_path / name).mkdir()
        mapped(tmp_path / name, arguments | {"tidy": tidy})
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert sorted(contents(tmp_path / "one")) == sorted(FILES)


def test_regions_do_not_show_either(world, files, tmp_path, monkeypatch):
    tidy = Tidy(majority_pixels=3, min_unit_ha=0.1)
    at_once = mapped(tmp_path, world | {"tidy": tidy})["map"].read_bytes()
    monkeypatch.setattr(covermap.mosaic, "REGION_PIXELS", 512)
    (tmp_path / "parts").mkdir()
    assert mapped(tmp_path / "parts", world | {"tidy": tidy})["map"].read_bytes() == at_once


def test_the_map_is_tidied_before_it_is_cut_at_the_outline(world, files, tmp_path):
    tidy = Tidy(majority_pixels=5)
    halo, grid = halo_pixels(tidy, 10), world["grid"]
    there = tidied(pixels(grid.padded(halo))[0], tidy, 10)[halo:-halo, halo:-halo]
    there = np.where(beyond(grid), 0, there)
    with rasterio.open(mapped(tmp_path, world | {"tidy": tidy})["map"]) as raster:
        inside = geometry_mask([outline().buffer(-10 * halo)], grid.shape, grid.transform, invert=True)
        np.testing.assert_array_equal(raster.read(1)[inside], there[inside])
        assert raster.tags()["majority_pixels"] == "5" and "min_unit_ha" not in raster.tags()
        assert int(raster.tags()["tidied_pixels"]) == np.count_nonzero(raster.read(1) != read(files["map"])[0])
    assert "tidied_pixels" not in rasterio.open(files["map"]).tags()


def test_class_names_and_provenance_are_in_the_tags(world, tmp_path):
    files = mapped(tmp_path, world | {"provenance": {"weights": "abc"}})
    with rasterio.open(files["map"]) as raster:
        assert raster.descriptions == ("class",) and raster.count == 1
        assert [raster.tags(1)[f"class_{number}"] for number in (1, 2, 3)] == list(NAMES)
        assert json.loads(raster.tags()["classes"])["2"] == NAMES[1]
        assert raster.tags()["weights"] == "abc" and raster.tags()["period"] == "2021-01-01/2021-12-31"
        assert raster.tags()["TIFFTAG_COPYRIGHT"].endswith("data 2021")
    with rasterio.open(files["confidence"]) as raster:
        assert raster.descriptions == ("confidence",) and raster.units == ("%",) and raster.nodata == 255


def test_both_are_valid_cogs(files):
    for name in ("map", "confidence"):
        valid, errors, warnings = cog_validate(files[name], strict=True)
        assert valid and not errors and not warnings


def test_overviews_hold_classes_and_leave_thin_shores(files):
    """Four pixels become one: of what most of them are that were observed, so no data never eats a shore."""
    full = read(files["map"])[0]
    for level, factor in enumerate(rasterio.open(files["map"]).overviews(1)):
        with rasterio.open(files["map"], overview_level=level) as raster:
            small, colours = raster.read(1), raster.colormap(1)
        assert {*np.unique(small)} <= {0, 1, 2, 3} and colours[1][:3] == LEGEND.classes[0].rgb
        whole = full[: len(full) // factor * factor, : full.shape[1] // factor * factor]
        cells = whole.reshape(len(whole) // factor, factor, -1, factor).swapaxes(1, 2).reshape(-1, factor**2)
        inner = small[: len(whole) // factor, : whole.shape[1] // factor].ravel()
        np.testing.assert_array_equal(inner == 0, (cells == 0).all(1))
        assert all(one in cell for one, cell in zip(inner, cells, strict=True))
        counts = (cells[:, :, None] == np.arange(1, 4)).sum(1)
        if factor == 2:  # the others are made of this one
            there = inner > 0
            np.testing.assert_array_equal(counts.max(1)[there], counts[there, inner[there] - 1])


def test_overviews_of_the_confidence_are_means_of_what_was_observed(files):
    full = read(files["confidence"])[0].astype(float)
    with rasterio.open(files["confidence"], overview_level=0) as raster:
        small = raster.read(1).astype(float)
    height, width = (length // 2 * 2 for length in full.shape)
    full[full == 255] = np.nan
    cells = full[:height, :width].reshape(height // 2, 2, width // 2, 2).swapaxes(1, 2).reshape(height // 2, -1, 4)
    seen = ~np.isnan(cells).all(2)
    inner = small[: height // 2, : width // 2]
    assert (inner[~seen] == 255).all() and (inner[seen] <= 100).all()
    np.testing.assert_allclose(inner[seen], np.nanmean(cells[seen], 1), atol=0.51)


@pytest.mark.parametrize(("layer", "bands"), [("margin", [2]), ("entropy", [3]), ("probabilities", [4, 5, 6])])
def test_further_layers_are_files_of_their_own(world, tmp_path, layer, bands):
    output = tmp_path / f"demo.{layer}.tif"
    mosaic_layer(layer_file=output, layer=layer, **world)
    expected = pixels(world["grid"])[bands]
    expected[:, beyond(world["grid"])] = 255
    with rasterio.open(output) as raster:
        np.testing.assert_array_equal(raster.read(), expected)
        assert raster.nodata == 255
        if layer == "probabilities":
            assert raster.descriptions == NAMES and raster.scales == (0.004,) * 3 and raster.offsets == (0,) * 3
        else:
            assert raster.descriptions == (layer,) and raster.units == ("%",)
    assert cog_validate(output, strict=True)[0]


def test_a_layer_that_was_not_predicted_is_named(world, tmp_path):
    with rasterio.open(world["predictions"][0], "r+") as raster:
        raster.descriptions = ("class", "confidence", *("?" * 5))
    try:
        with pytest.raises(ProductError, match=r"no layer margin, only class.*prediction\.layers"):
            mosaic_layer(layer_file=tmp_path / "m.tif", layer="margin", **world)
    finally:
        with rasterio.open(world["predictions"][0], "r+") as raster:
            raster.descriptions = rasterio.open(world["predictions"][1]).descriptions
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:3000])])
def test_a_prediction_that_is_gone_or_broken_is_named(world, tmp_path, spoil):
    arguments = made(tmp_path, 256)
    (tmp_path / "maps").mkdir()
    spoil(arguments["predictions"][1])
    with pytest.raises(ProductError, match="cannot be read as a raster"):
        mapped(tmp_path / "maps", arguments)
    assert not list((tmp_path / "maps").iterdir())


def test_arcgis_finds_classes_colours_and_hectares(world, files):
    counts = np.bincount(read(files["map"])[0].ravel(), minlength=4)[1:]
    table = pyogrio.read_dataframe(files["table"])
    assert list(table) == ["Value", "Count", "Class", "Red", "Green", "Blue", "Hectares"]
    assert table.Value.tolist() == [1, 2, 3] and table.Count.tolist() == counts.tolist()
    assert table.Class.tolist() == list(NAMES)
    assert table[["Red", "Green", "Blue"]].to_numpy().tolist() == [list(entry.rgb) for entry in LEGEND.classes]
    np.testing.assert_allclose(table.Hectares, counts / 100)


def test_a_name_without_latin_letters_stands_by_its_key(tmp_path):
    classes = (
        LEGEND.classes[0].model_copy(update={"name": "森林"}),
        LEGEND.classes[1].model_copy(update={"name": "x" * 99}),
    )
    counts = np.full(256, 40_000_000_000)
    write_table(tmp_path / "map.tif.vat.dbf", Legend(classes=classes, codes={}), counts, 10)
    table = pyogrio.read_dataframe(tmp_path / "map.tif.vat.dbf")
    assert table.Class.tolist() == ["water", "x" * 80] and table.Count.tolist() == [40_000_000_000] * 2
    assert table.Hectares.tolist() == [400_000_000] * 2


CHILD = """
import json, resource, sys
from pathlib import Path
from tests.unit import _maps
import covermap.mosaic
from covermap.errors import RoomError
folder, limits = Path(sys.argv[1]), json.loads(sys.argv[2])
arguments, maps = _maps.made(folder), folder / "maps"
maps.mkdir()
covermap.mosaic.COPIES = 0
for limit in limits or [resource.RLIM_INFINITY]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        _maps.mapped(maps, arguments)
    except RoomError as error:
        print(json.dumps([limit, str(error), [path.name for path in maps.iterdir()]]), flush=True)
"""


def in_a_process(folder, limits=()):
    line = [sys.executable, "-c", CHILD, str(folder), json.dumps(limits)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_file_that_cannot_grow_is_never_left_half(files, tmp_path):
    """A few bytes below the size of a file GDAL tells of it in its log alone, not even when it closes the file."""
    sizes = [files[name].stat().st_size for name in ("map", "confidence")]
    ends = [size - less for size in sizes for less in (1, 16, 200, 500, 1000)]
    limits = [2_000, *(size * n // 10 for size in sizes for n in (3, 6, 9)), *ends]
    told = in_a_process(tmp_path, limits).communicate()[0]
    failed = [json.loads(line) for line in told.splitlines()]
    assert [limit for limit, _, _ in failed] == limits
    assert all(
        "cannot be written whole" in text and "MB free: make room and run again" in text for _, text, _ in failed
    )
    assert all(left == [] for _, _, left in failed)
    assert sum("read back, it is" in text for _, text, _ in failed) >= 1


def test_a_full_disk_is_refused_before_or_explained_after(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = made(tmp_path)
    needed = bytes_of(sources_of(arguments["predictions"], arguments["blocks"]), arguments["grid"], "class")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        for copies in (0, covermap.mosaic.COPIES):
            with pytest.MonkeyPatch.context() as patch, pytest.raises(RoomError, match=r"demo.tif.*MB free: make room"):
                patch.setattr(covermap.mosaic, "COPIES", copies)
                mapped(disk, arguments)
            assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
    assert needed > 10_000


@pytest.mark.parametrize("awaited", [".demo.tif.draft.*", ".demo.tif.*.ovr.tmp", ".demo.confidence.tif.draft.*"])
def test_a_killed_mosaic_leaves_nothing_to_its_rerun(files, tmp_path, awaited):
    maps = tmp_path / "maps"
    child = in_a_process(tmp_path)
    while child.poll() is None and not list(maps.glob(awaited)):
        time.sleep(0.0005)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    killed = contents(maps)
    mapped(maps, made(tmp_path))
    assert contents(maps) == contents(files["map"].parent)
    assert child.returncode in (0, -signal.SIGKILL) and killed
