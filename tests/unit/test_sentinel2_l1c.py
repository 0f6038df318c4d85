"""Level-1C: its numbers, its cloud mask in the codes of the scene classification, and a second opinion on clouds."""

import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform as transform_points

from covermap.area_settings import Sentinel2
from covermap.errors import ProductError, SettingError
from covermap.grid import Grid
from covermap.sentinel2 import clip_s2, clouds
from covermap.sentinel2.product import BAND_IDS
from covermap.sentinel2.safe import PIXELS_M, read_metadata

NAME = "S2B_MSIL1C_20200406T101559_N0209_R065_T32UPC_20200406T130159.SAFE"
GRANULE = "GRANULE/L1C_T32UPC_A016107_20200406T101807"
CRS, LEFT, TOP, SIDE_M = "EPSG:32632", 600000, 5700000, 1200
GRID = Grid(crs=CRS, left=LEFT, top=TOP, width=120, height=120)
ITEM = {"id": NAME.removesuffix(".SAFE"), "properties": {"datetime": "2020-04-06T10:15:59Z"}}
SETTINGS = Sentinel2(level="L1C", bands=("B02", "B10"))
PIXEL_M = dict(zip(BAND_IDS, PIXELS_M, strict=True))
FEATURE = """<eop:MaskFeature gml:id="{kind}.0"><eop:maskType codeSpace="urn:gs2:S2PDGS:maskType">{kind}</eop:maskType>
<eop:extentOf><gml:Polygon><gml:exterior><gml:LinearRing><gml:posList srsDimension="2">{ring}</gml:posList>
</gml:LinearRing></gml:exterior>{holes}</gml:Polygon></eop:extentOf></eop:MaskFeature>"""
HOLE = "<gml:interior><gml:LinearRing><gml:posList>{}</gml:posList></gml:LinearRing></gml:interior>"


def metadata(offset: int | None = None, baseline: str = "02.09", kind: str = "1C") -> str:
    offsets = "".join(f'<RADIO_ADD_OFFSET band_id="{number}">{offset}</RADIO_ADD_OFFSET>' for number in range(13))
    files = "".join(f"<IMAGE_FILE>{image_file(band)}</IMAGE_FILE>" for band in BAND_IDS)
    return f"""<n1:Level-{kind}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-1C.xsd">
<n1:General_Info><Product_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>{files}</Product_Info>
<Product_Image_Characteristics><QUANTIFICATION_VALUE unit="none">10000</QUANTIFICATION_VALUE>
{"" if offset is None else f"<Radiometric_Offset_List>{offsets}</Radiometric_Offset_List>"}
</Product_Image_Characteristics></n1:General_Info></n1:Level-{kind}_User_Product>"""


def image_file(band: str) -> str:
    return f"{GRANULE}/IMG_DATA/T32UPC_20200406T101559_{band}"


def gml(*features: str, crs: str = "urn:ogc:def:crs:EPSG:8.7:32632") -> str:
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<eop:Mask xmlns:eop="http://www.opengis.net/eop/2.0" xmlns:gml="http://www.opengis.net/gml/3.2" gml:id="m">
<gml:boundedBy><gml:Envelope srsName="{crs}"/></gml:boundedBy>
<eop:maskMembers>{"".join(features)}</eop:maskMembers></eop:Mask>"""


def square(left: int, top: int, side: int, x: int = LEFT, y: int = TOP) -> str:
    """Closed ring of a square; its corner in metres from the product's."""
    left, top = x + left, y - top
    corners = [(left, top), (left + side, top), (left + side, top - side), (left, top - side), (left, top)]
    return " ".join(f"{a} {b}" for a, b in corners)


POLYGONS = gml(
    FEATURE.format(kind="OPAQUE", ring=square(0, 0, 240), holes=HOLE.format(square(60, 60, 60))),
    FEATURE.format(kind="CIRRUS", ring=square(180, 180, 240), holes=""),
)


def layers() -> np.ndarray:
    """MSK_CLASSI uint8 (3, y, x) at 60 m: the same places as POLYGONS, and snow."""
    mask = np.zeros((3, 20, 20), np.uint8)
    mask[0, :4, :4] = 1
    mask[0, 1, 1] = 0
    mask[1, 3:7, 3:7] = 1
    mask[2, 5:9, 5:9] = 1
    return mask


def expected(snow: bool) -> np.ndarray:
    classes = np.full((20, 20), 7)
    if snow:
        classes[5:9, 5:9] = 11
    classes[3:7, 3:7] = 10
    classes[:4, :4] = 9
    classes[1, 1] = 7
    return np.kron(classes, np.ones((6, 6), int))


def jp2(path: Path, array: np.ndarray) -> bytes:
    array = array if array.ndim == 3 else array[None]
    pixel_m = SIDE_M / array.shape[-1]
    profile = {"driver": "JP2OpenJPEG", "count": len(array), "height": array.shape[1], "width": array.shape[2]}
    place = {"crs": CRS, "transform": from_origin(LEFT, TOP, pixel_m, pixel_m), "dtype": array.dtype}
    with rasterio.open(path, "w", **profile, **place, QUALITY=100, REVERSIBLE="YES", YCC="NO") as raster:
        raster.write(array)
    return path.read_bytes()


def ground(band: str) -> np.ndarray:
    """DN (y, x): dark, but for a bright square of 600 m in the south-east; no data in the last 60 m."""
    side = SIDE_M // PIXEL_M[band]
    dn = np.full((side, side), 300 if band != "B10" else 10, np.uint16)
    dn[side // 2 :, side // 2 :] = 6000 if band != "B10" else 300
    dn[-(60 // PIXEL_M[band]) :, -(60 // PIXEL_M[band]) :] = 0
    return dn


@pytest.fixture(scope="module")
def safe(tmp_path_factory) -> dict[str, bytes | str]:
    """Files of a tiny product of all bands without a cloud mask."""
    folder = tmp_path_factory.mktemp("l1c")
    files: dict[str, bytes | str] = {"MTD_MSIL1C.xml": metadata()}
    for band in BAND_IDS:
        files[f"{image_file(band)}.jp2"] = jp2(folder / f"{band}.jp2", ground(band))
    files[f"{GRANULE}/IMG_DATA/T32UPC_20200406T101559_TCI.jp2"] = b"a picture"
    return files


@pytest.fixture(scope="module")
def layered(safe, tmp_path_factory) -> dict[str, bytes | str]:
    """The product with a mask of layers, as since baseline 04.00."""
    mask = jp2(tmp_path_factory.mktemp("mask") / "mask.jp2", layers())
    return {**safe, "MTD_MSIL1C.xml": metadata(-1000, "05.10"), f"{GRANULE}/QI_DATA/MSK_CLASSI_B00.jp2": mask}


@pytest.fixture(scope="module")
def outlined(safe) -> dict[str, bytes | str]:
    """The product with a mask of polygons, as before."""
    return {**safe, f"{GRANULE}/QI_DATA/MSK_CLOUDS_B00.gml": POLYGONS}


def clip(folder: Path, files: dict, settings: Sentinel2 = SETTINGS, grid: Grid = GRID) -> dict[str, np.ndarray]:
    product = folder / "product.zip"
    told = re.search(r"BASELINE>(\d\d)\.(\d\d)<", str(files.get("MTD_MSIL1C.xml")))
    safe = NAME.replace("N0209", f"N{told[1]}{told[2]}") if told else NAME
    with zipfile.ZipFile(product, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{safe}/{name}", content)
    clip_s2(product, folder / "clipped.tif", ITEM, grid, settings, 2)
    with rasterio.open(folder / "clipped.tif") as raster:
        return dict(zip(raster.descriptions, raster.read(), strict=True))


def seen() -> np.ndarray:
    pixels = np.ones((120, 120), bool)
    pixels[-6:, -6:] = False
    return pixels


def test_polygons_become_classes(tmp_path, outlined):
    got = clip(tmp_path, outlined)
    assert (got["SCL"] == np.where(seen(), expected(snow=False), 0)).all()
    assert (got["B02"] == ground("B02")).all()
    with rasterio.open(tmp_path / "clipped.tif") as raster:
        tags = raster.tags()
    assert (tags["level"], tags["offset"], tags["offset_from"]) == ("L1C", "0", "MTD_MSIL1C.xml")
    assert tags["scl_counts"] == f"36,0,0,0,0,0,0,{14400 - 36 - 36 * 30},0,{36 * 15},{36 * 15},0"


def test_layers_become_classes_and_the_offset_is_its_own(tmp_path, layered):
    got = clip(tmp_path, layered)
    assert (got["SCL"] == np.where(seen(), expected(snow=True), 0)).all()
    assert (got["B02"][:60, :60] == 1).all()  # 300 less 1000
    assert (got["B02"][60:114, 60:114] == 5000).all()
    assert (got["B10"] == np.where(seen(), 1, 0)).all()


def test_a_folder_is_a_product_too(tmp_path, outlined):
    for name, content in outlined.items():
        path = tmp_path / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    clip_s2(tmp_path / NAME, tmp_path / "clipped.tif", ITEM, GRID, SETTINGS, 1)
    with rasterio.open(tmp_path / "clipped.tif") as raster:
        assert (raster.read(3) == np.where(seen(), expected(snow=False), 0)).all()


@pytest.mark.parametrize("mask", ["layers", "polygons"])
def test_the_mask_comes_along_to_another_zone(tmp_path, layered, outlined, mask):
    (x,), (y,) = transform_points(CRS, "EPSG:32633", [LEFT], [TOP])
    grid = Grid(crs="EPSG:32633", left=x // 60 * 60, top=y // 60 * 60, width=100, height=100)
    xs, ys = np.meshgrid(grid.left + 5 + 10 * np.arange(100), grid.top - 5 - 10 * np.arange(100))
    there = np.reshape(transform_points("EPSG:32633", CRS, xs.ravel(), ys.ravel()), (2, 100, 100))
    column, row = (there[0] - LEFT) / 10, (TOP - there[1]) / 10
    inside = (row > 1) & (row < 113) & (column > 1) & (column < 113) & (row % 60 > 0.1) & (column % 60 > 0.1)
    got = clip(tmp_path, layered if mask == "layers" else outlined, grid=grid)["SCL"]
    truth = expected(mask == "layers")[row.astype(int).clip(0, 119), column.astype(int).clip(0, 119)]
    assert inside.mean() > 0.5
    assert (got == truth)[inside].mean() > 0.995  # a polygon's corners are moved, its sides stay straight
    assert {7, 9, 10} <= set(np.unique(got[inside]))


def test_without_a_mask_a_scene_may_count_as_clear(tmp_path, safe):
    with pytest.raises(ProductError, match=r"no cloud mask \(MSK_CLASSI or MSK_CLOUDS\), .* set sentinel2.scl"):
        clip(tmp_path, safe)
    got = clip(tmp_path, safe, Sentinel2(level="L1C", bands=("B02",), scl="optional"))
    assert (got["SCL"] == np.where(seen(), 7, 0)).all()


def test_a_mask_without_polygons_is_a_clear_scene(tmp_path, safe):
    empty = gml().replace('<gml:boundedBy><gml:Envelope srsName="urn:ogc:def:crs:EPSG:8.7:32632"/></gml:boundedBy>', "")
    got = clip(tmp_path, {**safe, f"{GRANULE}/QI_DATA/MSK_CLOUDS_B00.gml": empty})
    assert (got["SCL"] == np.where(seen(), 7, 0)).all()


GML = f"{GRANULE}/QI_DATA/MSK_CLOUDS_B00.gml"
BROKEN = {
    "mask of text": ({GML: "sorry"}, "cloud mask: MSK_CLOUDS_B00.gml is no mask"),
    "mask that is another document": ({GML: "<html/>"}, "is no mask .its root is html and it has no MaskFeature"),
    "mask of another kind": ({GML: gml().replace("eop:Mask ", "eop:Image ").replace("eop:Mask>", "eop:Image>")},
                             r"is no mask .its root is .*/eop/2.0}Image and it has no MaskFeature"),
    "mask with an entity bomb": ({GML: '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'}, "cloud mask: .* is no mask"),
    "ring of two points": ({GML: gml(FEATURE.format(kind="OPAQUE", ring="1 2 3 4", holes=""))}, "a ring of 2 points"),
    "ring of words": ({GML: gml(FEATURE.format(kind="OPAQUE", ring="a b c d", holes=""))}, "could not convert"),
    "mask of no CRS there is": ({GML: gml(crs="EPSG:99999999")}, "cloud mask: .* is no mask"),
    "layers cut off": ({f"{GRANULE}/QI_DATA/MSK_CLASSI_B00.jp2": b"\0\0\0\x0cjP  "}, "cloud mask cannot be read"),
    "foreign metadata": ({"MTD_MSIL1C.xml": metadata(kind="2A")}, "MTD_MSIL1C.xml is of kind 'Level-2A_User_Product'"),
    "offset before 04.00": ({"MTD_MSIL1C.xml": metadata(-1000)}, r"band B\d\d: offset -1000 .* contradicts offset 0"),
    "no offset since 04.00": ({"MTD_MSIL1C.xml": metadata(None, "05.00")}, "offset 0 .* contradicts offset -1000"),
    "two granules": ({"MTD_MSIL1C.xml": metadata().replace("</Product_Info>", "<IMAGE_FILE>GRANULE/L1C_other/IMG_DATA/"
                      "T32UPC_20200406T101559_B02</IMAGE_FILE></Product_Info>")}, "band B02: two files"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_product_is_named_and_leaves_nothing(tmp_path, outlined, fault):
    damage, message = BROKEN[fault]
    with pytest.raises(ProductError, match=message) as error:
        clip(tmp_path, {**outlined, **damage})
    assert NAME.partition("_R")[2] in str(error.value)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["product.zip"]


def test_a_mask_of_two_layers_is_refused(tmp_path, safe):
    mask = jp2(tmp_path / "mask.jp2", layers()[:2])
    with pytest.raises(ProductError, match=r"cloud mask: expected 3 layers or more in .*, it has 2"):
        clip(tmp_path, {**safe, f"{GRANULE}/QI_DATA/MSK_CLASSI_B00.jp2": mask})


def test_the_other_level_is_refused_both_ways(tmp_path, outlined):
    with pytest.raises(ProductError, match=r"is Level-1C, but sentinel2\.level asks for Level-2A: set it to L1C"):
        clip(tmp_path, outlined, Sentinel2(bands=("B02",)))
    with pytest.raises(ProductError, match=r"is Level-2A, but sentinel2\.level asks for Level-1C: set it to L2A"):
        clip(tmp_path, {"MTD_MSIL2A.xml": ""})


def test_metadata_of_level_1c():
    got = read_metadata(metadata(-1000, "04.00").encode(), NAME, "L1C")
    assert (got.numbers["B10"], len(got.images), got.baseline, got.name) == ((-1000.0, 10000.0), 13, "04.00", "")


# --- the second opinion ---


def test_means_of_cells_by_hand():
    steps = np.zeros((12, 7), np.uint16)
    steps[:6, :6] = 3000
    steps[0, 0] = 0  # no data counts for nothing
    steps[6:, :3], steps[6:, 3:6] = 1000, 2000
    np.testing.assert_allclose(clouds.cell_means(steps), [[0.3, np.nan], [0.15, np.nan]], rtol=1e-6)


def test_the_second_opinion_changes_clear_pixels_alone():
    classes = np.full((7, 13), 7, np.uint8)
    classes[0, :3] = 9, 10, 0
    cloudy = np.array([[True, False, True], [False, True, False]])
    got = clouds.with_second_opinion(classes, cloudy, 0)
    assert got[0].tolist() == [9, 10, 0, 8, 8, 8, 7, 7, 7, 7, 7, 7, 8]
    assert got[6].tolist() == [7] * 6 + [8] * 6 + [7]
    assert (clouds.with_second_opinion(classes[3:], cloudy, 3)[3:] == got[6:]).all()


@pytest.fixture
def detector():
    return pytest.importorskip("s2cloudless").S2PixelCloudDetector(all_bands=False)


def test_the_model_is_asked_cell_by_cell(detector):
    random = np.random.default_rng(0)
    means = random.uniform(0, 0.6, (10, 70, 5)).astype(np.float32)
    means[3, 66, 2] = np.nan
    got = clouds.cloud_probability(means, 1)
    seen = np.isfinite(means).all(0)
    theirs = detector.get_cloud_probability_maps(np.moveaxis(means, 0, -1)[None])[0]
    assert got[66, 2] == 0
    np.testing.assert_array_equal(got[seen], theirs[seen])


def test_bright_and_cold_is_cloud(tmp_path, outlined, detector):
    settings = Sentinel2(level="L1C", bands=("B02",), cloud_model="s2cloudless")
    got = clip(tmp_path, outlined, settings)
    bright = np.zeros((120, 120), bool)
    bright[60:, 60:] = True
    assert set(got) == {"B02", "SCL"}
    assert (got["SCL"] == np.where(seen(), np.where(bright, 8, expected(snow=False)), 0)).all()
    everything = settings.model_copy(update={"cloud_probability": 1e-9})
    assert (clip(tmp_path, outlined, everything)["SCL"] != 7).all()


def test_an_absent_model_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s2cloudless", None)
    with pytest.raises(SettingError, match=r"cloud_model is s2cloudless, which is not installed .*covermap\[clouds\]"):
        clouds.cloud_probability(np.zeros((10, 1, 1), np.float32), 1)
