"""The experiments of published systems, as they are shipped: each is planned, and learns and maps at a small size."""

import re
from datetime import date
from functools import cache

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file
from shapely.geometry import box

from covermap.area_settings import Masks
from covermap.config import load, model_legend
from covermap.grid import Grid
from covermap.inputs import KEYS
from covermap.legend import read_legend
from covermap.model_settings import Tiles
from covermap.models.options import OPTIONS
from covermap.models.zoo import declare_missing_operators
from covermap.patches import index_patches, pack_patches
from covermap.predict import predict_block
from covermap.raster import read_window, write_raster
from covermap.stack import stack_block
from covermap.store import TileStore, pack_tiles
from covermap.tiles import index_tiles
from covermap.train import train
from tests.pinned import as_listing, granule

from ..conftest import ROOT, run_snakemake

SHIPPED = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
CONFIG = load(SHIPPED)
MODELS = [name for name in CONFIG.models if name != "unet_demo"]
TRAINED = [name for name in MODELS if not CONFIG.models[name].weights]
APPLIED = [name for name in MODELS if CONFIG.models[name].weights]

BLOCK = Grid(crs="EPSG:32721", left=2560 * 300, top=10_000_000 - 2560 * 3000, width=128, height=128)
SMALL_TILES = {"pixels": 32, "stride_pixels": 32, "split": "random", "validation": 0.2, "test": 0.2}
GRANULES = {"klingenberg_2016": "33UVS", "klingenberg_2018": "33UVS", "paris": "31UDQ", "ankara": "36SVJ"}
WINDOWS = {"window_pixels": 64, "batch": 2, "overlap": 0}


def mapped_by(name):
    """The area that a model maps here: the one that has its dates."""
    model = CONFIG.models[name]
    places = ("klingenberg_2018", "klingenberg_2016") if model.dates else model.train_on
    return next(aoi for aoi in places if {*model.dates} <= {*CONFIG.composite_of(aoi).dates})


# --- planning --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_areas(tmp_path):
    """The shipped configuration with a pinned list of an area of one or two blocks in place of each, in a folder."""
    settings = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    (tmp_path / "resources").mkdir()
    (tmp_path / "resources" / "legends").symlink_to(ROOT / "resources" / "legends")
    for name, tile in GRANULES.items():
        area = settings["aois"][name]
        west, south, east, north = area["area"]
        area["area"] = [(west + east) / 2, (south + north) / 2, (west + east) / 2 + 0.01, (south + north) / 2 + 0.01]
        outline = box(*area["area"]).buffer(0.05)
        days = area["composite"].get("dates") or [date(2018, month, 15) for month in range(5, 10)]
        items = [granule(outline, tile, day, area["sentinel2"].get("level", "L2A")) for day in days]
        for item in items if area["provider"]["name"] == "stac" else []:
            bands = ("B02", "B03", "B04", "SCL")
            item["assets"] = {band: {"href": f"https://example.org/{item['id']}/{band}.tif"} for band in bands}
        (tmp_path / f"{name}.json").write_bytes(as_listing(items))
        area["scenes"] = f"{name}.json"
    settings["aois"]["mato_grosso"]["area"] = [-54.5, -13.5, -54.4, -13.4]
    (tmp_path / "resources" / "patches").mkdir()
    (tmp_path / SHIPPED["patches"]["eurosat"]["path"]).touch()
    return tmp_path, settings


def target_of(name):
    aoi = "paris" if name in CONFIG.classifiers else mapped_by(name)
    return f"results/maps/{aoi}.tif" if CONFIG.aois[aoi].model == name else f"results/maps/{aoi}/{name}.tif"


def test_every_experiment_is_planned(small_areas):
    """All in one plan: what each is trained once, and what it starts from is trained or fetched before."""
    folder, settings = small_areas
    done = run_snakemake(folder, settings, *map(target_of, MODELS), "-n", "--quiet", "rules")
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", done.stdout, re.MULTILINE)}
    hubs = {CONFIG.models[name].start_from for name in TRAINED if "/" in (CONFIG.models[name].start_from or "")}
    assert jobs["train"] == len(TRAINED)
    assert jobs["download_weights"] == len(hubs) == 2
    assert jobs["mosaic"] == len(MODELS)
    cut = {CONFIG.models[name].tiles_of or name for name in TRAINED}
    assert jobs["index_patches"] == jobs["pack_patches"] == len(cut & {*CONFIG.classifiers}) == 1
    assert jobs["index_tiles"] == len(cut & {*CONFIG.mappers}) < jobs["train"] / 2


def test_what_is_applied_elsewhere_is_neither_trained_nor_cut_into_tiles(small_areas):
    folder, settings = small_areas
    for target, words in (
        ("results/models/fcn_lstm_2018_0/weights.safetensors", "fcn_lstm_2018_0"),
        (
            "results/maps/klingenberg_2016/eurosat_resnet50.tif",
            "models.eurosat_resnet50 learns from patches of one step, but composite.every of aois.klingenberg_2016",
        ),
    ):
        done = run_snakemake(folder, settings, target, "-n")
        assert done.returncode and "Traceback" not in done.stderr, done.stderr
        assert words in done.stdout + done.stderr
    done = run_snakemake(folder, settings, "results/baselines/klingenberg_2016/fcn_lstm_2018_0.tif", "-n")
    words = "fcn_lstm_2018_0.dates has 2018-03-30, but aois.klingenberg_2016 has only 2015-12-31, 2016-04-03"
    assert f"covermap: models.{words}" in done.stderr


# --- learning and mapping --------------------------------------------------------------------------------------------


def write_scene(path, layers, names, day, **tags):
    nodata = np.nan if layers.dtype == np.float32 else 0
    write_raster(path, layers, BLOCK, nodata=nodata, descriptions=names, tags={"datetime": f"{day}T10:00:00Z", **tags})
    return path


def radar_scenes(folder, classes, months):
    for month in months:
        power = 0.01 * classes * np.random.default_rng(int(month[-2:])).gamma(4.4, 1 / 4.4, (2, *classes.shape))
        tags = {"convention": "sigma0_ellipsoid", "orbit_state": "descending"}
        yield write_scene(folder / f"s1_{month}.tif", power.astype(np.float32), ("VV", "VH"), f"{month}-10", **tags)


def optical_scenes(folder, classes, days, bands):
    for number, day in enumerate(days):
        random = np.random.default_rng(number)
        layers = 500 * classes + 100 * np.arange(len(bands) + 1)[:, None, None] + random.integers(0, 50, classes.shape)
        layers[-1] = 4  # SCL: vegetation
        yield write_scene(folder / f"s2_{day}.tif", layers.astype(np.uint16), (*bands, "SCL"), day)


@pytest.fixture(scope="module")
def stack_of(tmp_path_factory):
    """Stack of a small piece of a shipped area, simulated; with what it is labelled as."""

    @cache
    def make(aoi):
        folder, settings, composite = tmp_path_factory.mktemp(aoi), CONFIG.aois[aoi], CONFIG.composite_of(aoi)
        classes, bands = stripes(6), CONFIG.optics_of(aoi).bands
        months = settings.period.months if "sentinel1" in settings.sensors else []
        days = composite.dates or [settings.period.start]
        radar = list(radar_scenes(folder, classes, months))
        optical = list(optical_scenes(folder, classes, days, bands))
        about = settings.period, settings.sensors, bands, ("VV", "VH"), Masks(dilate_m=0), composite
        stack_block(radar, optical, folder / "stack.zarr.zip", BLOCK, *about)
        return folder / "stack.zarr.zip"

    return make


def stripes(classes):
    y, x = np.mgrid[: BLOCK.height, : BLOCK.width]
    return (x // 12 + y // 16) % classes + 1


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.tif"
    layers = np.stack([stripes(6), np.full(BLOCK.shape, 100)]).astype(np.uint8)
    write_raster(path, layers, BLOCK, nodata=0, descriptions=("class", "weight"))
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A function that writes weights of an encoder, drawn at random, as a hub has them."""

    @cache
    def make(name):
        declare_missing_operators()
        import timm

        path = tmp_path_factory.mktemp("hub") / "weights"
        encoder = timm.create_model(name.split("/")[1].split(".")[0], pretrained=False)
        save_file(encoder.state_dict(), path)
        return path

    return make


def small(name):
    """A shipped model of few channels that takes two steps of two tiles."""
    model = CONFIG.models[name]
    given = model.model_dump(mode="json")
    options = dict(given["options"])
    if "width" in OPTIONS[model.network].model_fields:
        options["width"] = 8
    given["training"] |= {"epochs": 1, "steps": 2, "batch": 2, "threads": 1}
    tiles = SMALL_TILES if name not in CONFIG.classifiers else given["tiles"]
    return type(model)(**given | {"options": options, "tiles": tiles, "prediction": WINDOWS})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of ten images of each class of EuroSAT."""
    folder = tmp_path_factory.mktemp("eurosat")
    codes = read_legend(CONFIG.patches["eurosat"].legend).codes
    for code, number in codes.items():
        (folder / code).mkdir()
        for shade in range(10):
            Image.new("RGB", (64, 64), (20 * number, 60 + 3 * shade, 120)).save(folder / code / f"{code}_{shade}.jpg")
    return folder, codes


@pytest.fixture(scope="module")
def tiles_of(stack_of, labels, images, tmp_path_factory):
    """A function that gives index and stores of a model's tiles, by area and block."""

    def make(name, model, classes):
        folder, aoi = tmp_path_factory.mktemp(name), model.train_on[0]
        index, packed = folder / "index.parquet", folder / "packed.safetensors"
        if name in CONFIG.classifiers:
            about = CONFIG.patches[aoi]
            index_patches(images[0], [], index, aoi, images[1], about, model.tiles, model.split_seed)
            pack_patches(index, images[0], packed, aoi, images[1], about)
            return index, {(aoi, "patches"): packed}
        index_tiles([labels], index, [(aoi, "x300y-3001", BLOCK)], Tiles(**SMALL_TILES), model.split_seed, classes)
        given = index, stack_of(aoi), labels, packed, aoi, "x300y-3001", model.tiles.pixels
        pack_tiles(*given, model.months, model.dates)
        return index, {(aoi, "x300y-3001"): packed}

    return make


@pytest.fixture(scope="module")
def trained(tiles_of, hub, tmp_path_factory):
    """A function that trains a model, once, and what it starts from; its weights."""

    @cache
    def make(name):
        model, classes = small(name), [entry.key for entry in model_legend(CONFIG, name).classes]
        index, stores = tiles_of(name, model, classes)
        folder = tmp_path_factory.mktemp("run")
        files = [folder / file for file in ("weights", "metrics.json", "log.csv", "curves.png", "events")]
        start = model.start_from and (hub if "/" in model.start_from else make)(model.start_from)
        train(index, list(stores.values()), *files, list(stores), model, classes, start)
        assert all(file.stat().st_size for file in files)
        return files[0]

    return make


@pytest.mark.parametrize("name", TRAINED)
def test_an_experiment_learns(name, trained, tiles_of):
    trained(name)


def test_tiles_of_an_experiment_are_what_it_is_called_after(tiles_of):
    """Bands of a tile, as the paper counts them: 10, 34 and 24; six dates or all ten; one-hot classes come later."""

    def shapes(name):
        model, classes = small(name), [entry.key for entry in model_legend(CONFIG, name).classes]
        index, stores = tiles_of(name, model, classes)
        tile = TileStore(stores, index, "train", [KEYS[sensor] for sensor in model.sensors])[0]
        return {key: tile[key].shape[:2] for key in ("s1", "s2", "terrain") if key in tile}

    assert shapes("s2_unet") == {"s2": (1, 10)}
    assert shapes("s1ts_12_unet") == {"s1": (12, 2), "s2": (1, 10)}
    assert shapes("s1ts_7_unet") == {"s1": (7, 2), "s2": (1, 10)}
    assert shapes("s1ts_12_alone") == {"s1": (12, 2)}
    assert shapes("fcn") == {"s2": (6, 13)} and shapes("fcn_lstm_variable") == {"s2": (10, 13)}
    assert shapes("paris_efficientnet") == {"s2": (1, 3)}
    assert shapes("ankara_efficientnet_scl") == {"s2": (1, 3), "terrain": (1, 1)}


@pytest.mark.parametrize(
    "name", [*APPLIED, "s2_deepforest_1b", "s1ts_7_deepforest_2b", "fcn", "fcn_lstm_variable", "paris_efficientnet_scl"]
)
def test_an_experiment_maps(name, trained, stack_of, tmp_path):
    model, block, path = small(name), BLOCK.window(0, 0, 64, 64), tmp_path / "p.tif"
    weights, stacks = [trained(one) for one in model.weights or (name,)], [stack_of(mapped_by(name))]
    predict_block(weights, stacks, path, block, [BLOCK], model.prediction, model.months, model.dates)
    classes, confidence = read_window(path, block, fill=0)
    assert classes.min() >= 1 and classes.max() <= len(model_legend(CONFIG, name).classes)
    assert confidence.min() >= 1 and confidence.max() <= 100


def test_sequences_of_2018_are_those_of_the_authors():
    """July, August and December always, two of three dates in spring, and one of two in autumn."""
    always = {"0703", "0807", "1205"}
    springs = [{"0330", "0419"}, {"0330", "0529"}, {"0419", "0529"}]
    expected = [always | spring | autumn for autumn in ({"0926"}, {"1031"}) for spring in springs]
    for model in ("fcn_lstm", "fcn_lstm_variable"):
        entries = [CONFIG.models[f"{model}_2018_{number}"] for number in range(6)]
        assert [{f"{day:%m%d}" for day in entry.dates} for entry in entries] == expected
        assert all(entry.weights == (model,) and len(entry.dates) == 6 for entry in entries)


def test_averaged_runs_share_their_split_and_differ_in_their_seed():
    for name in ("fcn_average", "fcn_lstm_average"):
        runs = [CONFIG.models[one] for one in CONFIG.models[name].weights]
        assert len({run.seed for run in runs}) == len(runs) and len({run.split_seed for run in runs}) == 1
