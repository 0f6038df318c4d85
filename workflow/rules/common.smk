import os
import sys
from functools import cache, wraps
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir)))
os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [sys.path[0], os.getenv("PYTHONPATH")])))  # for the jobs

from covermap.config import check_classes, check_files, check_window, load, model_legend
from covermap.errors import CovermapError, CoverageError
from covermap.grid import area_blocks, area_grid, project, read_area
from covermap.legend import read_legend
from covermap.orbits import choose_orbit
from covermap.scenes import meets, one_view, read_listing, sensor_of


def plainly(function):
    """Show what a user can mend as one sentence and end; an exception would bring a traceback of the rules."""

    @wraps(function)
    def wrapped(*args):
        try:
            return function(*args)
        except CovermapError as error:
            print(f"covermap: {error}", file=sys.stderr)
            sys.exit(1)

    return wrapped


def of_area(function):
    """Name the area in what a user can mend."""

    @wraps(function)
    def wrapped(aoi):
        try:
            return function(aoi)
        except CovermapError as error:
            raise type(error)(f"aois.{aoi}: {error}")

    return wrapped


CFG = plainly(load)(config)


wildcard_constraints:
    aoi="|".join(CFG.aois),
    model="|".join(CFG.models),
    block=r"x-?\d+y-?\d+",
    scene=r"[\w.-]+",


# --- what an area is -------------------------------------------------------------------------------------------------


@cache
@plainly
@of_area
def area_of(aoi):
    plainly(check_files)(CFG, aoi, set(map(Path, rules.simulate_demo.output)))
    return read_area(CFG.aois[aoi].area)


@cache
@plainly
@of_area
def grid_of(aoi):
    return area_grid(area_of(aoi), CFG.aois[aoi].crs)


@cache
@plainly
@of_area
def blocks_of(aoi):
    return area_blocks(area_of(aoi), CFG.aois[aoi].crs, CFG.aois[aoi].block_pixels)


def neighbours_of(aoi, block):
    """Names of the area's blocks that touch a block, itself included."""
    near = blocks_of(aoi)[block].padded(1)
    return [name for name, grid in blocks_of(aoi).items() if grid.cropped(near.bounds)]


def plain(value):
    """Settings as plain data, which Snakemake compares between runs."""
    return value.model_dump(mode="json")


# --- params ----------------------------------------------------------------------------------------------------------


def aoi_setting(name):
    """A setting of the job's area."""

    def get(wildcards):
        value = getattr(CFG.aois[wildcards.aoi], name)
        return plain(value) if hasattr(value, "model_dump") else value

    return get


def aoi_section(name):
    """A section of settings, with the overrides of the job's area, less those that choose scenes and change none."""
    choosing = {"orbit_state", "relative_orbits"}

    def get(wildcards):
        settings = plain(CFG.section(name, wildcards.aoi))
        return {key: value for key, value in settings.items() if key not in choosing}

    return get


def aoi_area(wildcards):
    return area_of(wildcards.aoi).wkt


def aoi_grid(wildcards):
    return plain(grid_of(wildcards.aoi))


def aoi_blocks(wildcards):
    return [plain(grid) for grid in blocks_of(wildcards.aoi).values()]


@plainly
def block_grid(wildcards):
    blocks = blocks_of(wildcards.aoi)
    if wildcards.block not in blocks:
        raise CoverageError(f"area {wildcards.aoi} has no block {wildcards.block}: it has {', '.join(blocks)}")
    return plain(blocks[wildcards.block])


@plainly
def legend_of(model):
    return plain(model_legend(CFG, model))


@plainly
def compared_legend(wildcards):
    """Legend of a model's map that is compared with the labels of an area."""
    check_classes(CFG, wildcards.model, CFG.aois[wildcards.aoi].labels)
    return legend_of(wildcards.model)


def model_blocks(wildcards):
    """Area and block of every block that a model learns from."""
    return [(aoi, block) for aoi in CFG.models[wildcards.model].train_on for block in blocks_of(aoi)]


# --- input files -----------------------------------------------------------------------------------------------------


def listed(wildcards):
    """Scenes of the area, by id, once the search has run."""
    return plainly(read_listing)(Path(checkpoints.search_scenes.get(aoi=wildcards.aoi).output.listing))


@plainly
def scene_item(wildcards):
    items = listed(wildcards)
    if wildcards.scene not in items:
        raise CoverageError(
            f"area {wildcards.aoi} has no scene {wildcards.scene}: see results/scenes/{wildcards.aoi}.json"
        )
    return items[wildcards.scene]


@plainly
def chosen(wildcards):
    """Scenes of the area that its stacks are made of."""
    aoi = CFG.aois[wildcards.aoi]
    settings = CFG.section("sentinel1", wildcards.aoi)
    return one_view(listed(wildcards).values(), settings, aoi.dem, wildcards.aoi)


def orbit_of(wildcards):
    """The best orbit file for the job's scene, where there is a folder of them."""
    folder = CFG.section("sentinel1", wildcards.aoi).orbits
    return folder and plainly(choose_orbit)(folder, wildcards.scene) or []


@cache
def block_outline(aoi, block):
    """Outline of a block in lon/lat, a little widened, since footprints of scenes are coarse."""
    grid = blocks_of(aoi)[block]
    return project(grid.polygon, grid.crs, "EPSG:4326").buffer(0.005)


def scenes_of_block(sensor, folder):
    """Files of a sensor's scenes that meet the job's block."""

    def find(wildcards):
        if sensor not in CFG.aois[wildcards.aoi].sensors:
            return []
        outline = block_outline(wildcards.aoi, wildcards.block)
        scenes = [item["id"] for item in chosen(wildcards) if sensor_of(item) == sensor and meets(item, outline)]
        return expand("results/{folder}/{aoi}/{scene}.tif", folder=folder, aoi=wildcards.aoi, scene=scenes)

    return find


def blocks_in(pattern):
    """One file a block of the job's area."""
    return lambda wildcards: expand(pattern, **dict(wildcards.items()), block=blocks_of(wildcards.aoi))


def stacks_near(wildcards):
    plainly(check_window)(CFG, wildcards.aoi, wildcards.model)
    near = neighbours_of(wildcards.aoi, wildcards.block)
    return expand("results/stacks/{aoi}/{block}.zarr.zip", aoi=wildcards.aoi, block=near)


def model_files(pattern):
    """One file a block of all areas that a model learns from."""

    def find(wildcards):
        model = wildcards.model
        return [pattern.format(aoi=aoi, block=block, model=model) for aoi, block in model_blocks(wildcards)]

    return find


def source_of(name):
    """File of the job's labels or reference map."""

    def get(wildcards):
        return getattr(CFG.aois[wildcards.aoi], name).path

    return get


def map_of(aoi, model, suffix=".tif"):
    """The map of an area by a model: the area's default model has the short name."""
    default = CFG.aois[aoi].model == model
    return f"results/maps/{aoi}{suffix}" if default else f"results/maps/{aoi}/{model}{suffix}"


def catalogue(wildcards):
    """The file that a search reads, where there is one."""
    aoi = CFG.aois[wildcards.aoi]
    if aoi.scenes:
        return []
    return "resources/demo/catalog.json" if aoi.provider.name == "demo" else aoi.provider.catalog


def training_settings(wildcards):
    """What the weights depend on: how a map is cut into windows is not among it."""
    return CFG.models[wildcards.model].model_dump(mode="json", exclude={"prediction"})


def default_model(wildcards):
    return CFG.aois[wildcards.aoi].model


def accuracy_of(wildcards):
    """Agreement and accuracy, where the area has labels to compare with."""
    aoi = CFG.aois[wildcards.aoi]
    return f"results/accuracy/{wildcards.aoi}/{aoi.model}.json" if aoi.labels else []


def attribution_of(wildcards):
    simulated = CFG.aois[wildcards.aoi].provider.name == "demo"
    return "Simulated data" if simulated else "Contains modified Copernicus Sentinel data"


def notes_of(wildcards):
    if CFG.aois[wildcards.aoi].provider.name == "demo":
        return "Simulated landscape: a check of the software, never evidence of accuracy."
    return ""
