"""Clipping tiny products whose every pixel is known."""

import json
import logging
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points
from scipy.ndimage import map_coordinates, maximum_filter, minimum_filter

from covermap import sentinel2
from covermap.area_settings import Sentinel2
from covermap.errors import CoverageError, ProductError
from covermap.grid import Grid
from covermap.scenes import baseline_of
from covermap.sentinel2 import clip_s2, reading, reflectance_steps
from covermap.sentinel2.item import band_of
from covermap.sentinel2.safe import read_metadata

NAME = "S2A_MSIL2A_20220510T140101_N0400_R067_T21LXF_20220510T201010.SAFE"
FOREIGN = "S2A_MSIL2A_20220510T140101_N0400_R067_T21LYF_20220510T201010.SAFE"
RENAMED = "mine.SAFE/"  # a folder that tells no product
GRANULE = "GRANULE/L2A_T21LXF_A035930_20220510T140057"
CRS = "EPSG:32721"
LEFT, TOP, SIDE_M = 600000, 8000040, 2400  # of the tiny granule: 240 px of 10 m
AREA = Grid(crs=CRS, left=LEFT + 60, top=TOP - 120, width=126, height=90)  # inside, on 60 m
PIXEL_M = {"B02": 10, "B08": 10, "B05": 20, "B8A": 20, "B01": 60, "SCL": 20}
ITEM = {"id": NAME.removesuffix(".SAFE"), "properties": {"datetime": "2022-05-10T14:01:01.024Z"}}
BANDS = tuple(name for name in PIXEL_M if name != "SCL")
SETTINGS = Sentinel2(bands=BANDS)


def pixels_of(band: str) -> np.ndarray:
    """DN (y, x) in which every pixel of a band is another; a corner without data, some saturated."""
    side = SIDE_M // PIXEL_M[band]
    if band == "SCL":
        return (np.add.outer(np.arange(side), np.arange(side)) % 10 + 2).astype(np.uint16)
    dn = np.add.outer(np.arange(side) * 40, np.arange(side)) + 1000 + 7 * BANDS.index(band)
    dn[-2:, -2:] = 0
    dn[3 * 60 // PIXEL_M[band], 4 * 60 // PIXEL_M[band]] = 65535
    return dn.astype(np.uint16)


def metadata(offset: int | None = -1000, quantification: str = "10000", images: bool = True, kind: str = "2A",
             baseline: str = "04.00", uri: str = "") -> str:  # fmt: skip
    listed = "".join(f"<IMAGE_FILE>{file}</IMAGE_FILE>" for file in image_files().values()) if images else ""
    offsets = "".join(f'<BOA_ADD_OFFSET band_id="{band}">{offset}</BOA_ADD_OFFSET>' for band in range(13))
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-{kind}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{kind}.xsd">
<n1:General_Info><Product_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>{uri}{listed}</Product_Info>
<BOA_QUANTIFICATION_VALUE unit="none">{quantification}</BOA_QUANTIFICATION_VALUE>
{"" if offset is None else f"<BOA_ADD_OFFSET_VALUES_LIST>{offsets}</BOA_ADD_OFFSET_VALUES_LIST>"}
</n1:General_Info></n1:Level-{kind}_User_Product>"""


def image_files() -> dict[str, str]:
    return {
        band: f"{GRANULE}/IMG_DATA/R{pixel_m}m/T21LXF_20220510T140101_{band}_{pixel_m}m"
        for band, pixel_m in PIXEL_M.items()
    }


def write_image(path: Path, dn: np.ndarray, driver: str, crs: str = CRS, left: float = LEFT, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = dn if dn.ndim == 3 else dn[None]
    pixel_m = SIDE_M / array.shape[-1]
    shape = {"count": array.shape[0], "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype}
    place = {"crs": crs, "transform": from_origin(left, TOP, pixel_m, pixel_m)}
    with rasterio.open(path, "w", driver=driver, **shape, **place, **options) as raster:
        raster.write(array)


@pytest.fixture(scope="module")
def safe(tmp_path_factory) -> dict[str, bytes]:
    """Files of a tiny L2A product by name, as they lie in the SAFE."""
    folder = tmp_path_factory.mktemp("safe")
    files = {"MTD_MSIL2A.xml": metadata().encode()}
    for band, file in image_files().items():
        path = folder / f"{band}.jp2"
        write_image(path, pixels_of(band), "JP2OpenJPEG", QUALITY=100, REVERSIBLE="YES", YCBCR420="NO")
        files[f"{file}.jp2"] = path.read_bytes()
    return files


def zipped(path: Path, files: dict[str, bytes | str], folder: str = f"{NAME}/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(folder + name, content)
    return path


def clip(product: Path, grid: Grid = AREA, settings: Sentinel2 = SETTINGS, threads: int = 2) -> dict[str, np.ndarray]:
    """Bands of the clipped product by name; the file must be there and be well formed."""
    clipped = product.parent / "clipped.tif"
    clip_s2(product, clipped, ITEM, grid, settings, threads)
    return written(clipped)


def written(clipped: Path) -> dict[str, np.ndarray]:
    with rasterio.open(clipped) as raster:
        assert raster.dtypes[0] == "uint16"
        assert raster.nodata == 0
        return dict(zip(raster.descriptions, raster.read(), strict=True))


def expected_steps(band: str, grid: Grid = AREA, offset: int = -1000) -> np.ndarray:
    """Each pixel repeated to 10 m, cut to the grid by plain slicing, offset applied."""
    times = PIXEL_M[band] // 10
    dn = np.kron(pixels_of(band).astype(int), np.ones((times, times), int))
    row, column = int(TOP - grid.top) // 10, int(grid.left - LEFT) // 10
    dn = dn[row : row + grid.height, column : column + grid.width]
    steps = dn if band == "SCL" else np.clip(dn + offset, 1, 65535)
    return np.where(dn == 0, 0, np.where(dn == 65535, 65535, steps))


def test_steps_by_hand():
    dn = np.array([0, 1, 999, 1000, 1001, 11000, 65534, 65535], np.uint16)
    assert reflectance_steps(dn, -1000, 10000).tolist() == [0, 1, 1, 1, 1, 10000, 64534, 65535]
    assert reflectance_steps(dn, 0, 10000).tolist() == [0, 1, 999, 1000, 1001, 11000, 65534, 65535]
    assert reflectance_steps(np.array([0, 50, 100], np.uint8), -50, 1000).tolist() == [0, 1, 500]
    assert reflectance_steps(np.array([-999, -3, 0, 7], np.int16), 0, 10000, nodata=-999).tolist() == [0, 1, 0, 7]
    floats = np.array([np.nan, -1, -0.01, 0, 0.12346, 9], np.float32)
    assert reflectance_steps(floats, 0, 1, nodata=-1).tolist() == [0, 0, 1, 1, 1235, 65535]


def test_steps_by_table_are_the_formula():
    dn = np.arange(65536, dtype=np.uint16).repeat(2)
    assert (reflectance_steps(dn, -1000, 10000)[::2] == reflectance_steps(dn[::2], -1000, 10000)).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_bands_of_the_zone_are_copied_pixel_by_pixel(tmp_path, safe, threads):
    got = clip(zipped(tmp_path / "product.zip", safe), threads=threads)
    assert list(got) == [*BANDS, "SCL"]
    for band, pixels in got.items():
        assert (pixels == expected_steps(band)).all(), band


def test_tags_say_where_it_comes_from(tmp_path, safe):
    clip(zipped(tmp_path / "product.zip", safe))
    with rasterio.open(tmp_path / "clipped.tif") as raster:
        tags = raster.tags()
        assert raster.interleaving.value.lower() == "band"
        assert (raster.crs.to_string(), *raster.bounds) == (CRS, *AREA.bounds)
    assert tags["scene"] == ITEM["id"]
    assert tags["datetime"] == "2022-05-10T14:01:01.024Z"
    assert (tags["processing_baseline"], tags["offset"], tags["quantification"]) == ("04.00", "-1000", "10000")
    assert tags["offset_from"] == "MTD_MSIL2A.xml"
    assert (tags["platform"], tags["mgrs_tile"], tags["level"]) == ("sentinel-2a", "21LXF", "L2A")
    assert "supersedes" not in tags
    counts = np.bincount(expected_steps("SCL").ravel(), minlength=12)
    assert tags["scl_counts"] == ",".join(map(str, counts))
    assert counts[2] > 0


def test_the_tags_name_what_a_product_supersedes(tmp_path, safe):
    item = {**ITEM, "properties": {**ITEM["properties"], "covermap:supersedes": ["older", "oldest"]}}
    clip_s2(zipped(tmp_path / "product.zip", safe), tmp_path / "clipped.tif", item, AREA, SETTINGS, 1)
    with rasterio.open(tmp_path / "clipped.tif") as raster:
        assert raster.tags()["supersedes"] == "older,oldest"


def test_no_data_is_counted_as_class_0(tmp_path, safe):
    grid = Grid(crs=CRS, left=LEFT + SIDE_M - 300, top=TOP - SIDE_M + 300, width=30, height=30)
    got = clip(zipped(tmp_path / "product.zip", safe), grid)
    with rasterio.open(tmp_path / "clipped.tif") as raster:
        counts = [int(number) for number in raster.tags()["scl_counts"].split(",")]
    assert counts[0] == 144
    assert counts == np.bincount(got["SCL"].ravel(), minlength=12).tolist()


def test_a_plain_folder_is_a_product_too(tmp_path, safe):
    for name, content in safe.items():
        path = tmp_path / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    got = clip(tmp_path / NAME)
    assert (got["B05"] == expected_steps("B05")).all()


def test_bands_are_found_by_name_where_none_are_listed(tmp_path, safe):
    product = zipped(tmp_path / "product.zip", {**safe, "MTD_MSIL2A.xml": metadata(images=False)})
    assert (clip(product)["B8A"] == expected_steps("B8A")).all()


def test_the_finest_file_of_a_band_is_taken(tmp_path, safe):
    coarse = f"{GRANULE}/IMG_DATA/R20m/T21LXF_20220510T140101_B02_20m.jp2"
    other = safe[image_files()["B05"] + ".jp2"]
    product = zipped(tmp_path / "product.zip", {coarse: other, **safe, "MTD_MSIL2A.xml": metadata(images=False)})
    assert (clip(product)["B02"] == expected_steps("B02")).all()


def test_without_offsets_none_is_applied(tmp_path, safe):
    files = {**safe, "MTD_MSIL2A.xml": metadata(offset=None, baseline="03.01")}
    product = zipped(tmp_path / "product.zip", files, RENAMED)
    assert (clip(product)["B02"] == expected_steps("B02", offset=0)).all()


def test_the_window_is_what_the_scene_covers(tmp_path, safe):
    grid = Grid(crs=CRS, left=LEFT - 600, top=TOP + 120, width=200, height=60)
    got = clip(zipped(tmp_path / "product.zip", safe), grid)
    assert got["B02"].shape == (48, 140)
    assert (got["B01"] == expected_steps("B01", Grid(crs=CRS, left=LEFT, top=TOP, width=140, height=48))).all()


def test_no_data_of_any_band_is_no_data_of_the_classification(tmp_path, safe):
    grid = Grid(crs=CRS, left=LEFT + SIDE_M - 300, top=TOP - SIDE_M + 300, width=30, height=30)
    got = clip(zipped(tmp_path / "product.zip", safe), grid)
    assert (got["B02"] == 0).sum() == 4
    assert (got["SCL"] == 0).sum() == 12 * 12  # B01: two pixels of 60 m, both ways
    assert (got["SCL"][:18] == expected_steps("SCL", grid)[:18]).all()


def test_coarse_bands_may_be_interpolated_but_fine_ones_and_classes_never(tmp_path, safe):
    got = clip(zipped(tmp_path / "product.zip", safe), settings=Sentinel2(bands=("B02", "B05"), resampling="bilinear"))
    assert (got["B02"] == expected_steps("B02")).all()
    assert (got["SCL"] == expected_steps("SCL")).all()
    times = np.arange(0, 240, 2) + 0.5  # the ramp of B05 at centres of 20 m, in pixels of 10 m
    row, column = (np.arange(60, 70) + 12, np.arange(60, 90) + 6)
    ramp = np.add.outer(np.interp(row, times, np.arange(120) * 40), np.interp(column, times, np.arange(120)))
    np.testing.assert_allclose(got["B05"][60:70, 60:90], ramp + 14, atol=0.51)


@pytest.mark.parametrize("warp", ["bilinear", "cubic"])
def test_another_zone_is_warped_once(tmp_path, safe, warp):
    """Pixels lie between their neighbours, 20 m ones too though they would be repeated here; classes stay classes."""
    (x,), (y,) = transform_points(CRS, "EPSG:32720", [LEFT + 1200], [TOP - 1200])
    grid = Grid(crs="EPSG:32720", left=round(x / 60) * 60 - 300, top=round(y / 60) * 60 + 300, width=60, height=60)
    got = clip(zipped(tmp_path / "product.zip", safe), grid, Sentinel2(bands=BANDS, warp=warp))
    xs = grid.left + 5 + 10 * np.tile(np.arange(60), 60)
    ys = grid.top - 5 - 10 * np.repeat(np.arange(60), 60)
    there = np.array(transform_points("EPSG:32720", CRS, xs, ys))
    place = {band: (np.array([there[0] - LEFT, TOP - there[1]]) / m).reshape(2, 60, 60) for band, m in PIXEL_M.items()}
    for band in ("B02", "B05"):
        column, row = place[band]
        dn = pixels_of(band).astype(float)
        plain = (maximum_filter(dn, 5) - minimum_filter(dn, 5) < 500)[row.astype(int), column.astype(int)]
        truth = map_coordinates(dn, [row - 0.5, column - 0.5], order=1) - 1000
        assert plain.mean() > 0.9  # no saturated pixel is near
        assert np.abs(got[band] - truth)[plain].max() < 1.5, band  # half a step, and 0.02 pixels of 41 steps
    column, row = place["SCL"]
    inside = (np.abs(row % 1 - 0.5) < 0.48) & (np.abs(column % 1 - 0.5) < 0.48)  # not on a border of two pixels
    assert inside.mean() > 0.9
    assert (got["SCL"] == pixels_of("SCL")[row.astype(int), column.astype(int)])[inside].all()


def test_a_scene_elsewhere_is_refused(tmp_path, safe):
    product = zipped(tmp_path / "product.zip", safe)
    with pytest.raises(CoverageError, match=f"{NAME} .* lies outside"):
        clip(product, AREA.window(5000, 0, 10, 10))


def without(safe: dict[str, bytes], band: str) -> dict[str, bytes]:
    return {name: content for name, content in safe.items() if f"_{band}_" not in name}


BROKEN = {
    "truncated JP2": (lambda safe: {name: c[: len(c) * 2 // 3] if "_B05_" in name else c for name, c in safe.items()},
                      "B05 cannot be read"),
    "JP2 of text": (lambda safe: {name: b"sorry" if "_B8A_" in name else c for name, c in safe.items()},
                    "B8A cannot be read"),
    "missing band": (lambda safe: without(safe, "B08"), "no band B08: .*_B08_10m.jp2, which its metadata list, is abs"),
    "missing band, none listed": (lambda safe: {**without(safe, "B08"), "MTD_MSIL2A.xml": metadata(images=False)},
                                  "has no band B08, it has B01, B02"),
    "missing classification": (lambda safe: without(safe, "SCL"), "no scene classification .*_SCL_20m.jp2, which"),
    "missing metadata": (lambda safe: {name: c for name, c in safe.items() if "MTD" not in name}, "neither MTD_MSIL2A"),
    "empty metadata": (lambda safe: {**safe, "MTD_MSIL2A.xml": ""}, "is no XML"),
    "foreign metadata": (lambda safe: {**safe, "MTD_MSIL2A.xml": "<html/>"}, "of kind 'html'"),
    "Level-1C": (lambda safe: {"MTD_MSIL1C.xml": metadata(kind="1C")}, "is Level-1C, but .* asks for Level-2A"),
    "Level-1C renamed": (lambda safe: {**safe, "MTD_MSIL2A.xml": metadata(kind="1C")}, "Level-1C_User_Product"),
    "no quantification": (lambda safe: {**safe, "MTD_MSIL2A.xml": metadata(quantification="")}, "no usable quantif"),
    "zero quantification": (lambda safe: {**safe, "MTD_MSIL2A.xml": metadata(quantification="0")}, "is 0.0: .* above"),
    "endless quantification": (lambda safe: {**safe, "MTD_MSIL2A.xml": metadata(quantification="inf")},
                               "is inf: expected a number above 0"),
    "offset that is no number": (lambda safe: {**safe, "MTD_MSIL2A.xml": metadata().replace(">-1000<", ">nan<", 1)},
                                 "band B01: BOA_ADD_OFFSET is nan: expected a finite number"),
    "metadata of another product": (
        lambda safe: {**safe, "MTD_MSIL2A.xml": metadata(uri=f"<PRODUCT_URI>{FOREIGN}</PRODUCT_URI>")},
        f"MTD_MSIL2A.xml is of product {FOREIGN}: expected S2A_MSIL2A_20220510T140101_N0400_R067_T21LXF"),
    "metadata of another old product": (
        lambda safe: {**safe, "MTD_MSIL2A.xml": metadata(uri=f"<PRODUCT_URI_2A>{FOREIGN}</PRODUCT_URI_2A>")},
        f"MTD_MSIL2A.xml is of product {FOREIGN}: expected"),
    "metadata of another baseline": (lambda safe: {**safe, "MTD_MSIL2A.xml": metadata(baseline="05.00")},
                                     "MTD_MSIL2A.xml is of baseline 05.00: expected 04.00"),
    "two products": (lambda safe: {**safe, "other.SAFE/MTD_MSIL2A.xml": metadata()},
                     f"holds {NAME}/MTD_MSIL2A.xml and {NAME}/other.SAFE/MTD_MSIL2A.xml: expected one product"),
    "two granules, one listed": (lambda safe: {**safe, "GRANULE/L2A_T21LXF_A035931_20220510T140057/MTD_TL.xml": ""},
                                 "A035930_.*, L2A_T21LXF_A035931_.*: expected one granule"),
    "pixels that the name denies": (
        lambda safe: {**safe, image_files()["B02"] + ".jp2": safe[image_files()["B05"] + ".jp2"]},
        "band B02: .*_B02_10m.jp2 has pixels of 20 m, but 10 m by its name"),
    "offset of one band": (lambda safe: {**safe, "MTD_MSIL2A.xml": metadata().replace('band_id="3"', 'band_id="2"')},
                           "band B04: no BOA_ADD_OFFSET"),
    "entity bomb": (lambda safe: {**safe, "MTD_MSIL2A.xml": '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'}, "is no XML"),
    "path upwards": (lambda safe: {**safe, "../../evil": "x"}, "unsafe member .* leads out"),
    "two granules": (lambda safe: {**safe, "MTD_MSIL2A.xml": metadata(images=False),
                                   image_files()["B02"].replace("A035930", "A035931") + ".jp2": b""}, "one granule"),
    "empty granule": (lambda safe: {name: c for name, c in safe.items() if name.endswith("xml")},
                      r"has no band B02: .*R10m/T21LXF_20220510T140101_B02_10m.jp2, which .* list, is absent"),
    "classes of another size": (lambda safe: {**safe, image_files()["SCL"] + ".jp2": cut_jp2("SCL")},
                                "band SCL: it covers 60 x 60 px .* but the bands 240 x 240 px"),
    "band of another size": (lambda safe: {**safe, image_files()["B05"] + ".jp2": cut_jp2("B05")},
                             "band B05: it covers 60 x 60 px .* but B02 240 x 240 px"),
    "no offsets since 04.00": (lambda safe: {**safe, "MTD_MSIL2A.xml": metadata(offset=None)},
                               r"band B0\d: offset 0 .* contradicts offset -1000 \(baseline 04.00\)"),
    "another offset since 04.00": (lambda safe: {**safe, "MTD_MSIL2A.xml": metadata(offset=-900)},
                                   r"band B0\d: offset -900 .* contradicts offset -1000 \(baseline 04.00\)"),
    "endless metadata": (lambda safe: {**safe, "MTD_MSIL2A.xml": b" " * (64 * 2**20 + 1)}, "more than 67108864 bytes"),
    "classes beyond 11": (lambda safe: {**safe, image_files()["SCL"] + ".jp2": safe[image_files()["B05"] + ".jp2"]},
                          "band SCL: .* are no class"),
    "nothing": (lambda safe: {}, "is empty"),
}  # fmt: skip


NOT_THE_FILE_S_FAULT = {"missing classification", "path upwards", "no offsets since 04.00", "endless metadata",
                        "another offset since 04.00"}  # fmt: skip


def cut_jp2(band: str) -> bytes:
    """A quarter of a band of 20 m as JP2."""
    with MemoryFile(ext=".jp2") as file:
        profile = {"driver": "JP2OpenJPEG", "width": 60, "height": 60, "count": 1, "dtype": "uint16", "crs": CRS}
        with file.open(**profile, transform=from_origin(LEFT, TOP, 20, 20), QUALITY=100, REVERSIBLE="YES") as raster:
            raster.write(pixels_of(band)[:60, :60], 1)
        return file.read()


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_product_is_named_and_leaves_nothing(tmp_path, safe, fault):
    damage, message = BROKEN[fault]
    product = zipped(tmp_path / f"{NAME}.zip", damage(safe))
    with pytest.raises(ProductError, match=message) as error:
        clip(product)
    assert NAME in str(error.value)
    assert str(product) in str(error.value)
    assert ("remove the stored file" in str(error.value)) == (fault not in NOT_THE_FILE_S_FAULT)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [product]


def test_offsets_before_04_00_are_refused(tmp_path, safe):
    product = zipped(tmp_path / "p.zip", {**safe, "MTD_MSIL2A.xml": metadata(baseline="02.14")}, RENAMED)
    with pytest.raises(ProductError, match=r"band B0\d: offset -1000 .* contradicts offset 0 \(baseline 02.14\)"):
        clip(product)


def test_the_first_of_two_products_is_never_taken(tmp_path, safe):
    product = zipped(tmp_path / "product.zip", safe)
    with zipfile.ZipFile(product, "a") as archive:
        archive.writestr(f"{FOREIGN}/MTD_MSIL2A.xml", metadata())
    with pytest.raises(ProductError, match=f"holds {NAME}/.* and {FOREIGN}/.*: expected one product"):
        clip(product)


@pytest.mark.parametrize(
    ("uri", "folder"),
    [(NAME, f"{NAME}/"), (NAME, RENAMED), (FOREIGN, RENAMED), (FOREIGN, f"of_{NAME}/")],
)  # fmt: skip
def test_metadata_of_the_product_and_renamed_folders_are_accepted(tmp_path, safe, uri, folder):
    files = {**safe, "MTD_MSIL2A.xml": metadata(uri=f"<PRODUCT_URI>{uri}</PRODUCT_URI>")}
    got = clip(zipped(tmp_path / "product.zip", files, folder))
    assert (got["B02"] == expected_steps("B02")).all()


def test_a_truncated_image_is_named_when_it_is_warped(tmp_path, safe):
    damage, message = BROKEN["truncated JP2"]
    with pytest.raises(ProductError, match=message):
        clip(
            zipped(tmp_path / "product.zip", damage(safe)),
            AREA.window(0, 0, 90, 99).model_copy(update={"left": LEFT + 63}),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["product.zip"]


def test_a_zip_cut_in_half_or_absent_is_named(tmp_path, safe):
    product = zipped(tmp_path / "product.zip", safe)
    product.write_bytes(product.read_bytes()[:5000])
    with pytest.raises(ProductError, match=r"product.zip is no whole zip"):
        clip(product)
    with pytest.raises(ProductError, match=r"absent.zip does not exist"):
        clip(tmp_path / "absent.zip")


def test_a_missing_classification_may_count_as_clear(tmp_path, safe):
    settings = Sentinel2(bands=("B02",), scl="optional")
    grid = Grid(crs=CRS, left=LEFT + SIDE_M - 300, top=TOP - SIDE_M + 300, width=30, height=30)
    got = clip(zipped(tmp_path / "product.zip", without(safe, "SCL")), grid, settings)
    assert (got["SCL"] == np.where(got["B02"] > 0, 7, 0)).all()
    assert (got["SCL"] == 0).sum() == 4


def test_a_few_foreign_classes_are_defective(tmp_path, safe):
    scl = pixels_of("SCL").astype(np.uint8)
    scl[9, 6] = 12
    rasters = {**RASTERS, "scl.tif": scl}
    assets = {"B02": {"href": "b2.tif", **declared(0.0001, -0.1)}, "SCL": {"href": "scl.tif"}}
    got = clip(assets_zip(tmp_path, rasters, assets), settings=Sentinel2(bands=("B02",)))
    expected = expected_steps("SCL")
    expected[6:8, 6:8] = 1
    assert (got["SCL"] == expected).all()


def assets_zip(folder: Path, rasters: dict[str, np.ndarray], assets: dict, properties: dict | None = None,
               name: str = ITEM["id"]) -> Path:  # fmt: skip
    """An assets zip of GeoTIFFs by file name; the item is that of all tests with these assets."""
    files: dict[str, bytes | str] = {"item.json": json.dumps({
        "type": "Feature", "id": name, "properties": {**ITEM["properties"], **(properties or {})},
        "assets": assets})}  # fmt: skip
    for name, array in rasters.items():
        write_image(folder / "rasters" / name, array, "GTiff")
        files[name] = (folder / "rasters" / name).read_bytes()
    return zipped(folder / "product.zip", files, "")


def declared(scale: float, offset: float) -> dict:
    return {"raster:bands": [{"scale": scale, "offset": offset, "nodata": 0}]}


OTHER = "scene_of_no_known_name"
BLUE_NIR = Sentinel2(bands=("B02", "B08"))
RASTERS = {"b2.tif": pixels_of("B02"), "b8.tif": pixels_of("B08"), "scl.tif": pixels_of("SCL").astype(np.uint8)}


@pytest.mark.parametrize("keys", [("B02", "B08", "SCL"), ("blue", "nir", "scl"), ("b02", "b08", "scl"),
                                  ("B02_10m", "B08_10m", "SCL_20m")])  # fmt: skip
@pytest.mark.parametrize(
    ("fields", "properties", "offset", "source"),
    [
        (declared(0.0001, -0.1), {}, -1000, "declared in the item"),
        (declared(0.0001, -0.1), {"s2:processing_baseline": "05.09"}, -1000, "declared in the item"),
        (declared(0.0001, -0.1), {"earthsearch:boa_offset_applied": False}, -1000, "declared in the item"),
        (declared(0.0001, -0.1), {"earthsearch:boa_offset_applied": True}, 0, "earthsearch:boa_offset_applied"),
        ({}, {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.09"}, 0,
         "earthsearch:boa_offset_applied"),
        ({}, {"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "05.09"}, -1000, "baseline 05.09"),
        ({}, {"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "03.01"}, 0, "baseline 03.01"),
        (declared(np.float64(np.float32(0.0001)), np.float64(np.float32(-0.1))), {"s2:processing_baseline": "05.09"},
         -1000, "declared in the item"),
        ({"bands": [{"raster:scale": 0.0001, "raster:offset": -0.1}]}, {}, -1000, "declared in the item"),
        ({"raster:bands": [{"scale": 0.0001}]}, {}, 0, "declared in the item"),
        ({}, {"s2:processing_baseline": "03.01"}, 0, "baseline 03.01"),
        ({}, {"processing:version": "3.01"}, 0, "baseline 03.01"),
        ({}, {"datetime": "2022-01-24T10:00:00Z"}, 0, "assumed: no baseline told, taken before 2022-01-25"),
    ],
)  # fmt: skip
def test_assets_declare_their_numbers(tmp_path, keys, fields, properties, offset, source):
    hrefs = ("b2.tif", "b8.tif", "scl.tif")
    assets = {key: {"href": f"./{href}", **fields} for key, href in zip(keys, hrefs, strict=True)}
    got = clip(assets_zip(tmp_path, RASTERS, assets, properties, OTHER), settings=BLUE_NIR)
    for band, pixels in got.items():
        assert (pixels == expected_steps(band, offset=offset)).all(), band
    with rasterio.open(tmp_path / "clipped.tif") as raster:
        assert (raster.tags()["offset"], raster.tags()["offset_from"]) == (str(offset), source)


@pytest.mark.parametrize(
    ("fields", "properties", "name", "told"),
    [
        ({}, {"s2:processing_baseline": "05.09"}, OTHER, "baseline 05.09"),
        ({}, {"processing:version": "04.00"}, OTHER, "baseline 04.00"),
        ({}, {"processing:version": 5.1}, OTHER, "baseline 05.10"),
        ({}, {}, ITEM["id"], "baseline 04.00"),
        ({}, {"s2:product_uri": NAME}, OTHER, "baseline 04.00"),
        ({"raster:bands": [{"scale": 0.0001}]}, {"s2:processing_baseline": "05.09"}, OTHER, "baseline 05.09"),
        ({}, {"datetime": "2022-01-25T00:00:00Z"}, OTHER, "baseline untold"),
    ],
)
def test_an_offset_that_nobody_tells_is_never_guessed(tmp_path, fields, properties, name, told):
    assets = {"B02": {"href": "b2.tif", **declared(0.0001, -0.1)}, "B08": {"href": "b8.tif", **fields}}
    product = assets_zip(tmp_path, RASTERS, {**assets, "SCL": {"href": "scl.tif"}}, properties, name)
    with pytest.raises(
        ProductError, match=rf"product {name} .*, band B08: {told} .* expected scale and offset"
    ) as error:
        clip(product, settings=BLUE_NIR)
    assert "earthsearch:boa_offset_applied" in str(error.value)
    clip(product, settings=Sentinel2(bands=("B02",)))  # nobody needs the other


@pytest.mark.parametrize("number", [{"scale": 0, "offset": 0}, {"scale": "x"}, {"scale": 1, "offset": "nan"}])
def test_numbers_that_are_none_are_named(tmp_path, number):
    assets = {"B02": {"href": "b2.tif", "raster:bands": [number]}, "SCL": {"href": "scl.tif"}}
    with pytest.raises(ProductError, match=r"band B02: scale .* expected a scale above 0"):
        clip(assets_zip(tmp_path, RASTERS, assets), settings=Sentinel2(bands=("B02",)))


@pytest.mark.parametrize("word", ["bands", "eo:bands"])
def test_layers_of_one_asset_are_found_by_name(tmp_path, word):
    array = np.stack([pixels_of("B08"), pixels_of("B02")])
    names = [{"name": "B8"}, {"name": "1", "common_name": "blue"}]
    numbers = [{"scale": 0.0001, "offset": -0.1}, {"scale": 0.0001, "offset": -0.05}]  # no baseline contradicts it
    assets = {
        "visual": {"href": "b2.tif", word: [{"name": "B08"}], "roles": ["visual"]},
        "data": {"href": "all.tif", word: names, "raster:bands": numbers},
        "remote": {"href": "https://example.org/B02.tif", word: [{"name": "B02"}]},
        "SCL": {"href": "scl.tif"},
    }
    got = clip(assets_zip(tmp_path, {**RASTERS, "all.tif": array}, assets, name=OTHER), settings=BLUE_NIR)
    assert (got["B08"] == expected_steps("B08")).all()
    assert (got["B02"] == expected_steps("B02", offset=-500)).all()


def test_float_assets_with_a_scale_of_one(tmp_path):
    dn = pixels_of("B02").astype(np.float32)
    reflectance = np.where(dn == 0, np.nan, np.where(dn == 65535, 9, (dn - 1000) / 10000)).astype(np.float32)
    assets = {"B02": {"href": "b2.tif", **declared(1, 0)}, "SCL": {"href": "scl.tif"}}
    got = clip(assets_zip(tmp_path, {**RASTERS, "b2.tif": reflectance}, assets), settings=Sentinel2(bands=("B02",)))
    assert (got["B02"] == expected_steps("B02")).all()


def test_floats_without_a_scale_that_cannot_be_digital_numbers_are_refused(tmp_path):
    small = np.full((240, 240), 0.3, np.float32)
    assets = {"B02": {"href": "b2.tif"}, "SCL": {"href": "scl.tif"}}
    old = {"s2:processing_baseline": "03.01"}
    with pytest.raises(ProductError, match=r"band B02: floats up to 0.3, where digital numbers"):
        clip(assets_zip(tmp_path, {**RASTERS, "b2.tif": small}, assets, old), settings=Sentinel2(bands=("B02",)))


@pytest.mark.parametrize(
    ("fields", "properties", "rule", "offset", "source"),
    [
        (declared(0.0001, 0), {"s2:processing_baseline": "05.09"}, "declared", 0, "declared in the item"),
        (declared(0.0001, 0), {"s2:processing_baseline": "05.09"}, "baseline", -1000, "baseline 05.09"),
        (declared(0.0001, -0.1), {"s2:processing_baseline": "02.14"}, "declared", -1000, "declared in the item"),
        (declared(0.0001, -0.1), {"s2:processing_baseline": "02.14"}, "baseline", 0, "baseline 02.14"),
        (declared(0.0001, -0.1), {"s2:processing_baseline": "99.99"}, "agreed", -1000, "declared in the item"),
        (declared(0.0001, -0.1), {}, "baseline", -1000, "declared in the item"),
        (declared(1, 0), {"s2:processing_baseline": "05.09"}, "agreed", 0, "declared in the item"),
        ({}, {"s2:processing_baseline": "05.09"}, "baseline", -1000, "baseline 05.09"),
        ({}, {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, "declared", 0,
         "earthsearch:boa_offset_applied"),
        ({}, {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, "baseline", -1000,
         "baseline 05.09"),
    ],
)  # fmt: skip
def test_which_offset_counts_is_a_setting(tmp_path, fields, properties, rule, offset, source):
    assets = {"B02": {"href": "b2.tif", **fields}, "SCL": {"href": "scl.tif"}}
    product = assets_zip(tmp_path, RASTERS, assets, properties, OTHER)
    band = sentinel2.open_product(product, "L2A", rule).bands["B02"]
    assert (round(band.offset, 6), band.offset_from) == (offset, source)


@pytest.mark.parametrize(
    ("offset", "baseline", "told"),
    [(0, "05.09", r"offset 0 \(declared in the item\) contradicts offset -1000 \(baseline 05.09\)"),
     (-0.1, "02.14", r"offset -1000 \(declared in the item\) contradicts offset 0 \(baseline 02.14\)"),
     (0.1, "05.09", r"offset 1000 \(declared in the item\) contradicts offset -1000 \(baseline 05.09\)"),
     (-0.2, "05.09", r"offset -2000 \(declared in the item\) contradicts offset -1000 \(baseline 05.09\)"),
     (-1000, "05.09", r"offset -1e\+07 \(declared in the item\) contradicts offset -1000 \(baseline 05.09\)"),
     (-0.0999, "05.09", r"offset -999 \(declared in the item\) contradicts offset -1000 \(baseline 05.09\)")],
)  # fmt: skip
def test_a_declared_offset_against_the_baseline_is_refused(tmp_path, offset, baseline, told):
    assets = {"B02": {"href": "b2.tif", **declared(0.0001, offset)}, "SCL": {"href": "scl.tif"}}
    product = assets_zip(tmp_path, RASTERS, assets, {"s2:processing_baseline": baseline}, OTHER)
    with pytest.raises(ProductError, match=rf"product {OTHER} .*, band B02: {told}: .* set sentinel2.offsets"):
        clip(product, settings=Sentinel2(bands=("B02",)))


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (0.0005, -0.5), (0.00011, -0.11)])
def test_a_scale_of_whole_numbers_against_the_product_is_refused(tmp_path, scale, offset):
    """Scale 1 and offset 0 are what makers of catalogues write where they know nothing."""
    assets = {"B02": {"href": "b2.tif", **declared(scale, offset)}, "SCL": {"href": "scl.tif"}}
    product = assets_zip(tmp_path, RASTERS, assets, {"s2:processing_baseline": "05.09"}, OTHER)
    told = rf"product {OTHER} .*, band B02: scale {scale} is declared for uint16, but .* 0.0001: mend .* 'declared'"
    with pytest.raises(ProductError, match=told):
        clip(product, settings=Sentinel2(bands=("B02",)))
    clip(product, settings=Sentinel2(bands=("B02",), offsets="declared"))
    untold = assets_zip(tmp_path, RASTERS, assets, {}, OTHER)
    clip(untold, settings=Sentinel2(bands=("B02",)))


def test_originals_beside_cogs_are_not_what_the_item_calls_applied(tmp_path):
    """Earth Search: the COGs hold the offset, the JP2 that keys in -jp2 name do not."""
    applied = {"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "05.09"}
    cog, original = {"href": "b2.tif", **declared(0.0001, -0.1)}, {"href": "b8.tif", **declared(0.0001, -0.1)}
    assets = {"blue": cog, "nir-jp2": original, "scl-jp2": {"href": "scl.tif"}}
    got = clip(assets_zip(tmp_path, RASTERS, assets, applied, OTHER), settings=BLUE_NIR)
    for band, offset in (("B02", 0), ("B08", -1000), ("SCL", 0)):
        assert (got[band] == expected_steps(band, offset=offset)).all(), band
    with rasterio.open(tmp_path / "clipped.tif") as raster:
        assert raster.tags()["offset_from"] == "earthsearch:boa_offset_applied,declared in the item"
    undeclared = {**assets, "nir-jp2": {"href": "b8.tif"}}
    got = clip(assets_zip(tmp_path, RASTERS, undeclared, applied, OTHER), settings=BLUE_NIR)
    assert (got["B08"] == expected_steps("B08")).all()


@pytest.mark.parametrize(
    ("told", "baseline"),
    [(5.1, "05.10"), ("5.9", "05.09"), ("05.09", "05.09"), ("0509", "05.09"), ("N0400", "04.00"), (4.0, "04.00"),
     (2.14, "02.14"), ("99.99", "99.99"), ("new", "")],
)  # fmt: skip
def test_a_baseline_in_all_its_forms(told, baseline):
    assert baseline_of({"id": OTHER, "properties": {"s2:processing_baseline": told}}) == baseline


def test_items_of_planetary_computer_are_as_delivered(tmp_path):
    """It leaves the baseline out of the names, declares no offset and applies none."""
    name = "S2A_MSIL2A_20220510T140101_R067_T21LXF_20220510T201010"
    assets = {"B02": {"href": "b2.tif"}, "SCL": {"href": "scl.tif"}}
    product = assets_zip(tmp_path, RASTERS, assets, {"s2:processing_baseline": "04.00"}, name)
    got = clip(product, settings=Sentinel2(bands=("B02",)))
    assert (got["B02"] == expected_steps("B02", offset=-1000)).all()


@pytest.mark.parametrize("key", ["product-metadata", "product_metadata"])
def test_the_metadata_of_the_product_decide_where_the_item_brings_them(tmp_path, key):
    assets = {"B02": {"href": "b2.tif"}, "SCL": {"href": "scl.tif"}, key: {"href": "mtd.xml"}}
    product = assets_zip(tmp_path, RASTERS, assets, {"s2:processing_baseline": "99.99"}, OTHER)
    with zipfile.ZipFile(product, "a") as archive:
        archive.writestr("mtd.xml", metadata(offset=-900, quantification="9000", baseline="99.99"))
    band = sentinel2.open_product(product).bands["B02"]
    assert (band.offset, band.quantification, band.offset_from) == (-900, 9000, "the product's metadata")


@pytest.mark.parametrize(
    ("properties", "name", "content", "told"),
    [
        ({"s2:product_uri": NAME}, OTHER, metadata(uri=f"<PRODUCT_URI>{FOREIGN}</PRODUCT_URI>"),
         f"MTD_MSIL2A.xml is of product {FOREIGN}: expected {NAME.removesuffix('.SAFE')}"),
        ({}, NAME.removesuffix(".SAFE").replace("_N0400", ""), metadata(uri=f"<PRODUCT_URI>{FOREIGN}</PRODUCT_URI>"),
         f"MTD_MSIL2A.xml is of product {FOREIGN}: expected"),
        ({"s2:processing_baseline": "05.09"}, OTHER, metadata(), "is of baseline 04.00: expected 05.09"),
        ({}, OTHER, metadata(offset=-900), r"offset -900 \(the product's metadata\) contradicts .* \(baseline 04.00\)"),
    ],
    ids=["product", "product without a baseline", "baseline", "offset"],
)  # fmt: skip
def test_metadata_of_another_product_beside_an_item_are_refused(tmp_path, properties, name, content, told):
    assets = {"B02": {"href": "b2.tif"}, "SCL": {"href": "scl.tif"}, "product_metadata": {"href": "mtd.xml"}}
    product = assets_zip(tmp_path, RASTERS, assets, properties, name)
    with zipfile.ZipFile(product, "a") as archive:
        archive.writestr("mtd.xml", content)
    with pytest.raises(ProductError, match=rf"product {name} .*{told}"):
        sentinel2.open_product(product)


def test_an_asset_whose_pixels_its_key_denies_is_refused(tmp_path):
    assets = {"B02_20m": {"href": "b2.tif", **declared(0.0001, -0.1)}, "SCL": {"href": "scl.tif"}}
    with pytest.raises(ProductError, match=r"band B02: .*b2.tif has pixels of 10 m, but 20 m by its name"):
        clip(assets_zip(tmp_path, RASTERS, assets), settings=Sentinel2(bands=("B02",)))


def test_metadata_of_a_product_and_a_declaration_that_contradict_each_other(tmp_path):
    assets = {"B02": {"href": "b2.tif", **declared(0.0001, 0)}, "product_metadata": {"href": "mtd.xml"}}
    product = assets_zip(tmp_path, RASTERS, assets, {}, OTHER)
    with zipfile.ZipFile(product, "a") as archive:
        archive.writestr("mtd.xml", metadata())
    with pytest.raises(ProductError, match=r"offset 0 \(declared .*\) contradicts .* \(the product's metadata"):
        sentinel2.open_product(product)


def test_the_finest_asset_of_a_band_is_taken_by_the_name_of_its_key(tmp_path):
    coarse = np.full((120, 120), 5, np.uint16)
    fields = {"bands": [{"name": "B02"}], "raster:scale": 0.0001, "raster:offset": -0.1}
    assets = {"B02_20m": {"href": "b20.tif", **fields}, "B02_10m": {"href": "b2.tif", **fields},
              "SCL_20m": {"href": "scl.tif"}}  # fmt: skip
    product = assets_zip(tmp_path, {**RASTERS, "b20.tif": coarse}, assets, {"processing:version": "05.11"}, OTHER)
    assert (clip(product, settings=Sentinel2(bands=("B02",)))["B02"] == expected_steps("B02")).all()


def test_an_offset_that_was_applied_before_shows(tmp_path, safe, caplog):
    """DN from 500 with an offset of -1000 on top: the dark half ends up at the lowest step."""
    dark = np.full((240, 240), 500, np.uint16)
    dark[:, ::2] = 3000
    assets = {"B02": {"href": "b2.tif", **declared(0.0001, -0.1)}, "SCL": {"href": "scl.tif"}}
    with caplog.at_level(logging.WARNING):
        clip(assets_zip(tmp_path, {**RASTERS, "b2.tif": dark}, assets), settings=Sentinel2(bands=("B02",)))
    assert "50 % of the valid pixels are zero or less" in caplog.text
    with rasterio.open(tmp_path / "clipped.tif") as raster:
        assert raster.tags()["below_zero"] == "0.5000"
    clip(zipped(tmp_path / "product.zip", safe))
    with rasterio.open(tmp_path / "clipped.tif") as raster:
        assert "below_zero" not in raster.tags()


def test_an_item_that_is_none_is_named(tmp_path):
    with pytest.raises(ProductError, match=r"product.zip: item.json is no STAC item"):
        clip(zipped(tmp_path / "product.zip", {"item.json": "[]"}, ""))


def test_an_asset_outside_the_zip_is_a_missing_band(tmp_path):
    assets = {"B02": {"href": "b2.tif", **declared(1, 0)}, "B08": {"href": "../b8.tif"}, "SCL": {"href": "scl.tif"}}
    with pytest.raises(ProductError, match="no band B08"):
        clip(assets_zip(tmp_path, RASTERS, assets), settings=BLUE_NIR)


@pytest.mark.parametrize(
    ("name", "band"),
    [("B2", "B02"), ("b8a", "B8A"), ("B08A", "B8A"), ("nir08", "B8A"), ("rededge2", "B06"), ("B11_20m", "B11"),
     ("scl", "SCL"), ("swir22", "B12"), ("rededge", None), ("visual", None), ("B13", None), ("blue-jp2", "B02"),
     ("aot-jp2", None)],
)  # fmt: skip
def test_names_of_bands(name, band):
    assert band_of(name) == band


def test_an_old_name_of_the_quantification_is_read():
    old = metadata(offset=None, quantification="1000").replace("BOA_QUANT", "L2A_BOA_QUANT")
    assert read_metadata(old.encode(), NAME)[0]["B8A"] == (0.0, 1000.0)


# --- strips and blocks ---

BLOCKS = {"tiled": True, "blockxsize": 64, "blockysize": 64}  # not a multiple of the area's rows, nor of a strip's
JP2 = {"QUALITY": 100, "REVERSIBLE": "YES", "YCBCR420": "NO"}
ZONE_20 = Grid(crs="EPSG:32720", left=1236660, top=7985700, width=140, height=130)  # over the granule of zone 21


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> dict[str, bytes]:
    """The product with small JP2 tiles."""
    folder = tmp_path_factory.mktemp("tiled")
    files = {"MTD_MSIL2A.xml": metadata().encode()}
    for band, file in image_files().items():
        write_image(folder / f"{band}.jp2", pixels_of(band), "JP2OpenJPEG", **JP2, **BLOCKS)
        files[f"{file}.jp2"] = (folder / f"{band}.jp2").read_bytes()
    return files


@pytest.mark.parametrize("grid", [AREA, ZONE_20], ids=["same zone", "other zone"])
@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic"])
@pytest.mark.parametrize("rows", [6, 17])
def test_cutting_into_strips_changes_nothing(tmp_path, tiled, monkeypatch, rows, resampling, grid):
    product = zipped(tmp_path / "product.zip", tiled)
    settings = Sentinel2(bands=BANDS, resampling=resampling, warp="cubic" if resampling == "cubic" else "bilinear")
    whole = clip(product, grid, settings)
    assert all((pixels > 0).any() for pixels in whole.values())
    monkeypatch.setattr(reading, "STRIP_ROWS", 16)
    monkeypatch.setattr(reading, "RESAMPLED_ROWS", rows)
    monkeypatch.setattr(sentinel2, "WRITTEN_ROWS", 24)
    for band, pixels in clip(product, grid, settings).items():
        approximate = grid is ZONE_20 and band != "SCL"  # a hundredth of a pixel, and 41 steps a row
        assert np.abs(pixels.astype(int) - whole[band]).max() <= approximate, band


@pytest.mark.parametrize(
    ("above", "height", "step", "strips"),
    [(0, 10, 4, [(0, 4), (4, 8), (8, 10)]), (3, 10, 4, [(0, 1), (1, 5), (5, 9), (9, 10)]), (-2, 5, 4, [(0, 2), (2, 5)]),
     (0, 3, 4, [(0, 3)]), (4, 4, 4, [(0, 4)])],
)  # fmt: skip
def test_strips_end_where_blocks_do(above, height, step, strips):
    assert [(rows.start, rows.stop) for rows in reading.cut(above, height, step)] == strips


def test_the_same_bytes_with_any_number_of_threads(tmp_path, tiled, monkeypatch):
    monkeypatch.setattr(reading, "STRIP_ROWS", 16)
    monkeypatch.setattr(sentinel2, "WRITTEN_ROWS", 32)
    product, contents = zipped(tmp_path / "product.zip", tiled), set()
    for threads in (1, 2, 5):
        clip(product, threads=threads)
        contents.add((tmp_path / "clipped.tif").read_bytes())
    assert len(contents) == 1


def without_tile(jp2: bytes, number: int) -> bytes:
    """The JP2 with the data of one tile overwritten (ISO/IEC 15444-1, A.4.2: SOT has tile, length and part)."""
    content, place = bytearray(jp2), jp2.index(b"\xff\x90\x00\x0a")
    while content[place : place + 2] == b"\xff\x90":
        tile, length = struct.unpack(">HI", content[place + 4 : place + 10])
        if tile == number:
            content[place + 14 : place + length] = bytes([0x55]) * (length - 14)
        place += length
    return bytes(content)


def test_only_touched_tiles_are_decoded(tmp_path, tiled):
    """The area touches rows 12 to 102, columns 6 to 132 of 240: tiles 0 to 2 of 64 px in rows 0 and 1 of 4 by 4."""
    name = image_files()["B02"] + ".jp2"
    settings = Sentinel2(bands=("B02",))
    for number in range(16):
        product = zipped(tmp_path / "product.zip", {**tiled, name: without_tile(tiled[name], number)})
        touched = number // 4 < 2 and number % 4 < 3
        try:
            right = bool((clip(product, settings=settings)["B02"] == expected_steps("B02")).all())
        except ProductError:
            right = False
        assert right != touched, number


@pytest.mark.parametrize("resampling", ["nearest", "cubic"])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_tile_that_is_cut_off_is_named_by_any_number_of_threads(tmp_path, tiled, resampling, threads):
    name = image_files()["B05"] + ".jp2"
    product = zipped(tmp_path / "product.zip", {**tiled, name: tiled[name][: len(tiled[name]) // 4]})
    settings = Sentinel2(bands=("B02", "B05"), resampling=resampling)
    with pytest.raises(ProductError, match="band B05 cannot be read"):
        clip(product, settings=settings, threads=threads)
    assert [path.name for path in tmp_path.iterdir()] == ["product.zip"]


def test_only_touched_blocks_of_a_cog_are_decoded(tmp_path):
    rasters = {"scl.tif": RASTERS["scl.tif"]}
    assets = {"B02": {"href": "b2.tif", **declared(0.0001, -0.1)}, "SCL": {"href": "scl.tif"}}
    product = assets_zip(tmp_path, rasters, assets)
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "DEFLATE"}
    write_image(tmp_path / "b2.tif", pixels_of("B02"), "GTiff", **layout)
    content = bytearray((tmp_path / "b2.tif").read_bytes())
    with rasterio.open(tmp_path / "b2.tif") as raster:
        for row, column in [(2, 0), (3, 3), (0, 3), (1, 3)]:  # not touched
            place, size = (int(raster.get_tag_item(f"BLOCK_{word}_{column}_{row}", "TIFF", bidx=1))
                           for word in ("OFFSET", "SIZE"))  # fmt: skip
            content[place : place + size] = bytes(size)
    with zipfile.ZipFile(product, "a") as archive:
        archive.writestr("b2.tif", bytes(content))
    settings = Sentinel2(bands=("B02",))
    assert (clip(product, settings=settings)["B02"] == expected_steps("B02")).all()
    with pytest.raises(ProductError, match="band B02 cannot be read"):
        clip(product, AREA.window(0, 0, 130, 126), settings)


# --- two zones on one grid ---


def hills(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Reflectance steps that change slowly with place in metres of zone 21."""
    return 3000 + 900 * np.sin(x / 700) + 700 * np.cos(y / 900)


@pytest.mark.parametrize("warp", ["bilinear", "cubic"])
def test_scenes_of_two_zones_meet_on_one_grid(tmp_path, warp):
    """A scene of each zone at the border of 20 and 21: each shows the land where it is, on the grid of zone 21."""
    (x,), (y,) = transform_points("EPSG:4326", CRS, [-60.0], [-18.0])
    grid = Grid(crs=CRS, left=x // 60 * 60 - 900, top=y // 60 * 60 + 900, width=180, height=180)
    columns, rows = np.meshgrid(grid.left + 5 + 10 * np.arange(180), grid.top - 5 - 10 * np.arange(180))
    truth = hills(columns, rows)
    settings = Sentinel2(bands=("B02",), warp=warp)
    for crs in (CRS, "EPSG:32720"):
        (east,), (north,) = transform_points(CRS, crs, [x], [y])
        left, top = east // 60 * 60 - 1200, north // 60 * 60 + 1200
        px, py = np.meshgrid(left + 5 + 10 * np.arange(240), top - 5 - 10 * np.arange(240))
        there = np.reshape(transform_points(crs, CRS, px.ravel(), py.ravel()), (2, 240, 240))
        files = {"B02": (hills(*there) + 1000).round().astype(np.uint16), "SCL": np.full((120, 120), 4, np.uint8)}
        files["SCL"][:60] = 9
        assets, inside = {"SCL": {"href": "scl.tif"}, "B02": {"href": "b2.tif", **declared(0.0001, -0.1)}}, {}
        for (name, dn), pixel_m in zip(files.items(), (10, 20), strict=True):
            place = {"crs": crs, "transform": from_origin(left, top, pixel_m, pixel_m)}
            with rasterio.open(tmp_path / assets[name]["href"], "w", driver="GTiff", width=dn.shape[1],
                               height=dn.shape[0], count=1, dtype=dn.dtype, **place) as raster:  # fmt: skip
                raster.write(dn, 1)
            inside[assets[name]["href"]] = (tmp_path / assets[name]["href"]).read_bytes()
        item = {"id": ITEM["id"], "properties": ITEM["properties"], "assets": assets}
        got = clip(zipped(tmp_path / "product.zip", {"item.json": json.dumps(item), **inside}, ""), grid, settings)
        assert (got["B02"] > 0).all()
        assert np.abs(got["B02"] - truth).max() <= 2
        assert set(np.unique(got["SCL"])) == {4, 9}
        if crs == CRS:
            assert (got["B02"] == truth.round()).mean() > 0.999
