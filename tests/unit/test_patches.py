"""Sets of patches: labels and pixels that belong together, splits that stay, and odd files that are told or refused."""

import io
import json
import logging
import shutil
import zipfile
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from safetensors import safe_open
from safetensors.numpy import load_file

from covermap.augment import symmetry
from covermap.errors import CoverageError, CovermapError, ModelError, ProductError, SettingError
from covermap.grid import Grid
from covermap.inputs import must_mean
from covermap.label_settings import Images
from covermap.legend import Legend, LegendClass
from covermap.loader import buffers_for, draw, load
from covermap.model_settings import Tiles
from covermap.patches import (
    draw_patches,
    find_images,
    index_patches,
    listed_splits,
    pack_patches,
    read_image,
    spatial_splits,
    with_class,
)
from covermap.splits import TEST, TRAIN, VALIDATION, split_of
from covermap.store import TileStore

CODES = {"Field": 1, "Forest": 2, "Water": 3}
COLOURS = {"Field": (200, 180, 60), "Forest": (20, 120, 40), "Water": (10, 40, 160)}
PICTURE = Images()
ALL = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B09", "B10", "B11", "B12", "B8A")
RASTER = Images(level="L1C", bands=("B04", "B8A", "B11"), file_bands=ALL)
RANDOM = Tiles(split="random", validation=0.25, test=0.25)
SPLITS = ("train", "validation", "test")


def picture(path, colour, size=8, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path, **options)


def raster(path, values, left=600_000.0, top=5_400_000.0, crs="EPSG:32632", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "dtype": values.dtype, "count": len(values), "crs": crs}
    place = {"transform": from_origin(left, top, 10, 10)} if crs else {}
    height, width = values.shape[1:]
    with rasterio.open(path, "w", height=height, width=width, **{**profile, **place, **options}) as file:
        file.write(values)


@pytest.fixture
def folder(tmp_path):
    """Three classes of six pictures, each of a grey level of its own."""
    for code, colour in COLOURS.items():
        for number in range(6):
            picture(tmp_path / "set" / "2750" / code / f"{code}_{number}.png", tuple(c + number for c in colour))
    return tmp_path / "set"


@pytest.fixture
def rasters(tmp_path):
    """The same as rasters of 13 bands, a kilometre apart from west to east, the classes in rows."""
    for row, code in enumerate(CODES):
        for number in range(6):
            values = (
                np.full((13, 8, 8), 1000 * row + 10 * number, np.uint16)
                + np.arange(1, 14, dtype=np.uint16)[:, None, None]
            )
            raster(
                tmp_path / "ms" / code / f"{code}_{number}.tif", values, 600_000 + 1000 * number, 5_400_000 + 1000 * row
            )
    return tmp_path / "ms"


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def indexed(source, tmp_path, images=PICTURE, tiles=RANDOM, codes=CODES, lists=(), seed=3, name="index"):
    index = tmp_path / f"{name}.parquet"
    index_patches(source, list(lists), index, "small", codes, images, tiles, seed)
    return index


def split_by_name(index):
    table = geopandas.read_parquet(index)
    return dict(zip((Path(file).stem for file in table.file), table.split, strict=True))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_label_and_pixels_of_every_patch_belong_together(folder, tmp_path, kind):
    source = zipped(folder, tmp_path / "set.zip") if kind == "zip" else folder
    index, packed = indexed(source, tmp_path), tmp_path / "patches.safetensors"
    pack_patches(index, source, packed, "small", CODES, PICTURE)
    table = geopandas.read_parquet(index)
    assert len(table) == 18 and set(table.split) == {*SPLITS}
    assert (table[["class_1", "class_2", "class_3"]].sum() == 6).all() and (table.sampling == 1).all()
    assert table.geometry.isna().all() and table.easting_m.isna().all()
    stored = load_file(packed)
    assert stored["s2"].shape == (18, 1, 3, 8, 8) and stored["s2"].dtype == np.uint16
    assert stored["label"].shape == stored["weight"].shape == (18,) and (stored["weight"] == 100).all()
    for number, row in table.iterrows():
        code = Path(row.file).parent.name
        expected = np.array(COLOURS[code]) + int(Path(row.file).stem[-1])
        np.testing.assert_array_equal(stored["s2"][number, 0], np.broadcast_to(expected[:, None, None], (3, 8, 8)))
        assert stored["label"][number] == CODES[code] and row[f"class_{CODES[code]}"] == 1
    for split in SPLITS:
        store = TileStore({("small", "patches"): packed}, index, split, ["s2"])
        for number, file in enumerate(store.table.file):
            tile = store[number]
            assert tile["label"] == CODES[Path(file).parent.name]
            assert tile["s2"][0, 2, 0, 0] == COLOURS[Path(file).parent.name][2] + int(Path(file).stem[-1])


def test_a_zip_and_its_folder_give_the_same_bytes(folder, tmp_path):
    packs = []
    for source in (folder, zipped(folder, tmp_path / "set.zip")):
        index = indexed(source, tmp_path, name=source.name)
        packs.append(tmp_path / f"{source.name}.safetensors")
        pack_patches(index, source, packs[-1], "small", CODES, PICTURE)
    assert packs[0].read_bytes() == packs[1].read_bytes()
    assert (tmp_path / "set.parquet").read_bytes() == (tmp_path / "set.zip.parquet").read_bytes()


def test_the_loader_brings_them_and_symmetries_leave_their_labels(folder, tmp_path):
    index, packed = indexed(folder, tmp_path), tmp_path / "patches.safetensors"
    pack_patches(index, folder, packed, "small", CODES, PICTURE)
    store = TileStore({("small", "patches"): packed}, index, "train", ["s2"])
    cpu = torch.device("cpu")
    seen = 0
    for batch in load(store, draw(store.table, np.random.default_rng(0), "shards"), buffers_for(store, 4, cpu)):
        turned = symmetry(batch, 5)
        for image, label in zip(turned["s2"], turned["label"], strict=True):
            colour = list(COLOURS.values())[label - 1]
            assert 0 <= image[0, 0, 0, 0] - colour[0] < 6
        assert turned["label"].shape == turned["weight"].shape == (len(batch["label"]),)
        seen += len(batch["label"])
    assert seen == len(store)


def test_bands_are_chosen_by_name_and_places_come_from_the_file(rasters, tmp_path):
    index, packed = indexed(rasters, tmp_path, RASTER), tmp_path / "patches.safetensors"
    pack_patches(index, rasters, packed, "small", CODES, RASTER)
    table, stored = geopandas.read_parquet(index), load_file(packed)
    for number, row in table.iterrows():
        code, count = Path(row.file).parent.name, int(Path(row.file).stem[-1])
        level = 1000 * (CODES[code] - 1) + 10 * count
        assert stored["s2"][number, 0, :, 0, 0].tolist() == [level + 4, level + 13, level + 11]  # B04, B8A, B11
        assert (row.easting_m, row.northing_m) == (600_000 + 1000 * count, 5_400_000 + 1000 * (CODES[code] - 1))
    outline = table.to_crs("EPSG:32632").geometry.bounds
    np.testing.assert_allclose(outline.minx, table.easting_m, atol=0.01)
    np.testing.assert_allclose(outline.miny, table.northing_m - 80, atol=0.01)
    with safe_open(packed, "numpy") as file:
        assert json.loads(file.metadata()["meaning"]) == {"s2": {"band": ["B04", "B8A", "B11"], "level": ["L1C"]}}


def test_what_learnt_from_pictures_is_refused_on_reflectance(folder, tmp_path):
    index, packed = indexed(folder, tmp_path), tmp_path / "patches.safetensors"
    pack_patches(index, folder, packed, "small", CODES, PICTURE)
    learnt = TileStore({("small", "patches"): packed}, index, "train", ["s2"]).meaning(["s2"])
    met = {"s2": {"band": ["B04", "B03", "B02"], "level": ["L2A"], "step": ["1"], "fill": ["none"]}}
    with pytest.raises(ModelError, match="level L2A of s2, the model RGB8"):
        must_mean(learnt, met, Path("stack"), "the model")


def test_black_of_a_picture_is_data_and_of_reflectance_is_none(tmp_path):
    for number, code in enumerate(CODES):
        for count in range(6):
            picture(tmp_path / "set" / code / f"{code}_{count}.png", (0, 0, 0))
            raster(tmp_path / "ms" / code / f"{code}_{count}.tif", np.full((3, 8, 8), number, np.uint16))
    for name, images in (("set", PICTURE), ("ms", Images(level="L1C"))):
        index = indexed(tmp_path / name, tmp_path, images)
        pack_patches(index, tmp_path / name, tmp_path / f"{name}.safetensors", "small", CODES, images)
    assert (load_file(tmp_path / "set.safetensors")["s2"] == 1).all()
    stored = load_file(tmp_path / "ms.safetensors")
    assert set(stored["weight"][stored["label"] == 1]) == {0} and set(stored["weight"][stored["label"] > 1]) == {100}
    assert set(geopandas.read_parquet(tmp_path / "index.parquet").query("class_1 == 1")["empty"]) == {1}


@pytest.mark.parametrize(("level", "dtype"), [("L2A", np.uint16), ("RGB8", np.uint8)])
def test_what_a_raster_masks_is_no_data(tmp_path, level, dtype):
    values = np.full((3, 8, 8), 7, dtype)
    values[:, 0], values[:, 1] = 255, 0
    raster(tmp_path / "a.tif", values, nodata=255)
    read = read_image(lambda file: (tmp_path / file).read_bytes(), "a.tif", Images(level=level)).values
    assert [row.max() for row in read.transpose(1, 0, 2)][:3] == [0, 1 if level == "RGB8" else 0, 7]


def test_a_picture_of_nothing_is_refused_and_a_gif_is_named(folder, tmp_path):
    legend = Legend(classes=(LegendClass(id=1, key="a", name="A", colour="#000000"),), codes={"nowhere": 1})
    with pytest.raises(CoverageError, match="no image of a class of their legend to draw"):
        draw_patches(folder, tmp_path / "a.png", legend, PICTURE)
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png", "GIF")
    with pytest.raises(ProductError, match=r"b\.png cannot be decoded \(it is no JPEG or PNG\)"):
        read_image(lambda file: (tmp_path / file).read_bytes(), "b.png", PICTURE)


def test_only_endings_of_images_are_cut_from_listed_names(tmp_path):
    lists = [tmp_path / name for name in ("train", "validation", "test")]
    for path, name in zip(lists, ("A/A.0", "A.1.png", "A/A.2"), strict=True):
        path.write_text(name)
    assert listed_splits(["A/A.0", "A/A.1", "A/A.2"], lists) == ["train", "validation", "test"]


# --- splits ----------------------------------------------------------------------------------------------------------


def many(folder, count=60):
    for code, colour in COLOURS.items():
        for number in range(count):
            picture(folder / code / f"{code}_{number}.png", colour, 2)
    return folder


def test_a_random_split_stays_when_patches_are_added_and_is_that_of_the_rasters(folder, rasters, tmp_path):
    before = split_by_name(indexed(folder, tmp_path))
    assert split_by_name(indexed(rasters, tmp_path, RASTER)) == before
    for number in range(6, 12):
        picture(folder / "2750" / "Field" / f"Field_{number}.png", (1, 2, 3))
    after = split_by_name(indexed(folder, tmp_path))
    assert len(after) == 24 and {name: after[name] for name in before} == before
    assert split_by_name(indexed(folder, tmp_path, seed=4)) != after


def test_a_random_split_has_its_share_of_every_class_and_folds_test_each_patch_once(tmp_path):
    source = many(tmp_path / "set")
    table = geopandas.read_parquet(indexed(source, tmp_path))
    for id in CODES.values():
        shares = table[table[f"class_{id}"] == 1].split.value_counts(normalize=True)
        assert abs(shares["test"] - 0.25) < 0.17 and abs(shares["train"] - 0.5) < 0.2  # three deviations of 60 lots
    tests = []
    for fold in range(4):
        splits = split_by_name(indexed(source, tmp_path, tiles=Tiles(split="random", folds=4, fold=fold)))
        tests += [name for name, split in splits.items() if split == "test"]
    assert sorted(tests) == sorted(splits)


def test_rows_come_in_an_order_by_chance(tmp_path):
    table = geopandas.read_parquet(indexed(many(tmp_path / "set"), tmp_path))
    taught = table[table.split == "train"].reset_index()
    assert len(set(taught.class_1[:12])) == 2 and len(set(taught.class_3[:12])) == 2


def test_lists_split_as_they_say_with_or_without_folder_and_ending(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    lists = [tmp_path / f"{split}.txt" for split in SPLITS]
    lists[0].write_text("".join(f"{code}_{number}.jpg\n" for code in CODES for number in range(3)) + "\nField_99.jpg\n")
    lists[1].write_text("Field/Field_3\nForest/Forest_3.tif\nWater_3")
    lists[2].write_text("./Water/Water_4.jpg\n")
    splits = split_by_name(indexed(folder, tmp_path, tiles=Tiles(split="lists"), lists=lists))
    assert splits.pop("Water_4") == "test"
    assert {name: split for name, split in splits.items() if split == "validation"} == dict.fromkeys(
        ["Field_3", "Forest_3", "Water_3"], "validation"
    )
    assert len(splits) == 12
    assert "1 listed images are not there: Field_99" in caplog.text
    assert "5 of 18 patches left out: in no list" in caplog.text
    assert "test has no patch of Field, Forest" in caplog.text


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a_1", "a_1.jpg", "b_1"], ["validation", "has a_1", "that of train"]),
        (["a_1", "same", "b_1"], ["have same", "two folders", "put the folder before it"]),
    ],
)
def test_lists_that_contradict_themselves_are_refused(tmp_path, lines, words):
    lists = [tmp_path / f"{split}.txt" for split in SPLITS]
    for path, line in zip(lists, lines, strict=True):
        path.write_text(line)
    with pytest.raises(SettingError) as told:
        listed_splits(["a/a_1", "b/b_1", "a/same", "b/same"], lists)
    assert all(word in str(told.value) for word in words), told.value


def places(rng, count, crs="EPSG:32632", size=640):
    left = 500_000 + rng.integers(0, 3000, count) * 10.0
    top = 5_400_000 + rng.integers(0, 3000, count) * 10.0
    frame = geopandas.pd.DataFrame({"left": left, "right": left + size, "top": top, "bottom": top - size, "crs": crs})
    return frame.assign(metres=True, file="x.tif")


def test_spatial_splits_keep_patches_of_two_splits_apart():
    tiles = Tiles(split="blocks", pixels=64, cell_pixels=256, buffer_pixels=32, validation=0.25, test=0.25)
    frame = places(np.random.default_rng(0), 1500)
    splits = np.array(spatial_splits(frame, tiles, 5))
    assert all((splits == split).sum() > 20 for split in (TRAIN, VALIDATION, TEST))
    boxes = frame[["left", "bottom", "right", "top"]].to_numpy()
    for one, other in ((TRAIN, TEST), (TRAIN, VALIDATION), (VALIDATION, TEST)):
        first, second = boxes[splits == one][:, None], boxes[splits == other][None]
        gaps = np.maximum(first[..., :2] - second[..., 2:], second[..., :2] - first[..., 2:]).max(-1)
        assert gaps.min() >= 320  # metres
    more = geopandas.pd.concat([frame, places(np.random.default_rng(1), 200)], ignore_index=True)
    assert spatial_splits(more, tiles, 5)[:1500] == splits.tolist()


def test_a_patch_is_split_as_the_ground_that_it_lies_on():
    tiles = Tiles(split="blocks", pixels=64, cell_pixels=256, buffer_pixels=32, validation=0.25, test=0.25)
    frame = places(np.random.default_rng(2), 200)
    for split, row in zip(spatial_splits(frame, tiles, 5), frame.itertuples(), strict=True):
        ground = split_of(Grid(crs=row.crs, left=row.left, top=row.top, width=64, height=64), tiles, 5)
        assert split == (ground[0, 0] if len(np.unique(ground)) == 1 else 0)


def test_patches_of_two_zones_keep_apart_too():
    tiles = Tiles(split="blocks", pixels=64, cell_pixels=256, buffer_pixels=32, validation=0.25, test=0.25)
    west = places(np.random.default_rng(3), 400).assign(
        left=lambda f: f.left + 200_000, right=lambda f: f.right + 200_000
    )
    moved = geopandas.GeoSeries.from_xy(west.left, west.top, crs="EPSG:32632").to_crs("EPSG:32633")
    east = west.assign(crs="EPSG:32633", left=moved.x, right=moved.x + 640, top=moved.y, bottom=moved.y - 640)
    alone = [spatial_splits(frame, tiles, 5) for frame in (west, east)]
    both = spatial_splits(geopandas.pd.concat([west, east], ignore_index=True), tiles, 5)
    assert alone[0] + alone[1] != both
    near = [(a, b) for a, b in zip(both[:400], both[400:], strict=True) if a and b]
    assert near and all(a == b for a, b in near)  # each stands on the same ground twice


# --- odd sets --------------------------------------------------------------------------------------------------------


def test_what_is_no_image_is_left_out_counted_and_named(folder, tmp_path, caplog):
    (folder / "2750" / "Field" / "readme.txt").write_text("hello")
    (folder / "2750" / "Field" / "._Field_1.png").write_bytes(b"of another system")
    assert len(find_images(folder)) == 18
    assert "2 files that are no images left out: 2750/Field/._Field_1.png, 2750/Field/readme.txt" in caplog.text


def test_folders_of_no_class_are_left_out_and_counted(folder, caplog):
    caplog.set_level(logging.INFO)
    kept = with_class(folder, find_images(folder), {**CODES, "Water": 0})
    assert {patch.code for patch in kept} == {"Field", "Forest"}
    assert "6 images of no class left out: Water" in caplog.text


def test_a_broken_picture_is_named_or_skipped_and_counted(folder, tmp_path, caplog):
    path = folder / "2750" / "Forest" / "Forest_2.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ProductError, match=r"2750/Forest/Forest_2.png cannot be decoded .*on_broken to skip"):
        indexed(folder, tmp_path)
    assert not (tmp_path / "index.parquet").exists()
    skip = Images(on_broken="skip")
    index = indexed(folder, tmp_path, skip)
    assert "1 images that cannot be decoded left out: 2750/Forest/Forest_2.png" in caplog.text
    assert len(geopandas.read_parquet(index)) == 17
    legend = Legend(
        classes=tuple(LegendClass(id=id, key=code, name=code, colour="#000000") for code, id in CODES.items()),
        codes=CODES,
    )
    draw_patches(folder, tmp_path / "sheet.png", legend, skip)
    with pytest.raises(ProductError, match="Forest_2"):
        draw_patches(folder, tmp_path / "other.png", legend, PICTURE)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda at: picture(at / "Field/Field_3.png", (1, 1, 1), 9),
            ["Field_3.png is 9 x 9 px", "8 x 8 px", "one size"],
        ),
        (
            lambda at: Image.new("L", (8, 8)).save(at / "Field/Field_3.png"),
            ["Field_3.png has 1 bands", "B04, B03, B02"],
        ),
        (lambda at: Image.new("RGBA", (8, 8)).save(at / "Field/Field_3.png"), ["Field_3.png has 4 bands"]),
        (lambda at: picture(at / "Field/Field_3.png", (1, 1, 1), 1200), ["1200 x 1200 px", "at most 1024"]),
        (lambda at: raster(at / "Field/a.tif", np.ones((3, 8, 8), np.uint16)), ["a.tif is of uint16", "level is RGB8"]),
        (lambda at: shutil.rmtree(at / "Water"), ["no image in the folder 'Water'"]),
        (lambda at: shutil.copytree(at / "Water", at / "Sea"), ["folder 'Sea'", "legend lacks", "add a row"]),
        (lambda at: picture(at / "field/other.png", (1, 1, 1)), ["folders Field and field", "case"]),
        (lambda at: picture(at / "Field/field_3.png", (1, 1, 1)), ["Field/Field_3.png and", "field_3.png", "keep one"]),
        (lambda at: picture(at / "Field/Field_3.jpg", (1, 1, 1)), ["Field_3.jpg and", "Field_3.png", "ending"]),
        (lambda at: picture(at.parent / "loose.png", (1, 1, 1)), ["loose.png in no folder"]),
        (lambda at: shutil.rmtree(at), ["hold no image", "folder of JPEG"]),
        (lambda at: shutil.rmtree(at.parent), ["do not exist"]),
    ],
)
def test_odd_sets_are_refused_in_one_sentence(folder, tmp_path, spoil, words):
    spoil(folder / "2750")
    with pytest.raises(CovermapError) as told:
        indexed(folder, tmp_path)
    assert all(word in str(told.value) for word in words), told.value
    assert not (tmp_path / "index.parquet").exists()


def test_only_geotiffs_are_read_as_rasters(folder, rasters, tmp_path):
    secret = tmp_path / "secret.tif"
    raster(secret, np.ones((3, 8, 8), np.uint16))
    vrt = '<VRTDataset rasterXSize="8" rasterYSize="8">' + "".join(
        f'<VRTRasterBand dataType="UInt16" band="{band}"><SimpleSource><SourceFilename>{secret}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    (rasters / "Field" / "Field_7.tif").write_text(vrt + "</VRTDataset>")
    with pytest.raises(ProductError, match=r"Field_7\.tif cannot be decoded"):
        indexed(rasters, tmp_path, RASTER)


def test_zips_that_could_do_harm_are_refused(folder, tmp_path):
    path = zipped(folder, tmp_path / "set.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside/Field/a.png", b"")
    with pytest.raises(ProductError, match=r"unsafe member '\.\./outside/Field/a\.png'"):
        find_images(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ProductError, match="no whole zip"):
        find_images(path)


def test_a_picture_that_claims_to_be_vast_is_never_unpacked(folder, tmp_path):
    vast = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(vast, "PNG")
    (folder / "2750" / "Field" / "Field_3.png").write_bytes(vast.getvalue())
    with pytest.raises(ProductError, match=r"Field_3\.png (has|is|cannot)"):
        indexed(folder, tmp_path)


def test_splits_by_place_need_places(folder, rasters, tmp_path):
    with pytest.raises(SettingError, match=r"no place in a CRS in metres, but tiles\.split is blocks"):
        indexed(folder, tmp_path, tiles=Tiles())
    raster(rasters / "Field" / "Field_0.tif", np.ones((13, 8, 8), np.uint16), 9.5, 48.5, "EPSG:4326")
    with pytest.raises(SettingError, match=r"Field_0\.tif has no place in a CRS in metres"):
        indexed(rasters, tmp_path, RASTER, Tiles())


def test_a_split_without_patches_is_refused(folder, tmp_path):
    with pytest.raises(CoverageError, match="no patch of 18 is one of validation"):
        indexed(folder, tmp_path, tiles=Tiles(split="random", validation=0.0001, test=0.3))
    with pytest.raises(CoverageError, match="has no patch of other"):
        pack_patches(indexed(folder, tmp_path), folder, tmp_path / "x.safetensors", "other", CODES, PICTURE)


def test_patches_wider_than_a_tile_are_no_part_of_cells(rasters, tmp_path):
    tiles = Tiles(split="blocks", pixels=32, cell_pixels=128, buffer_pixels=8)
    for path in rasters.rglob("*.tif"):
        raster(path, np.ones((13, 40, 40), np.uint16))
    with pytest.raises(SettingError, match=r"400 m wide, but tiles\.pixels is 32"):
        indexed(rasters, tmp_path, RASTER, tiles)
