import json
import os
import sys
from functools import cache, wraps
from importlib import import_module
from math import lcm
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(workflow.basedir)))
os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [sys.path[0], os.getenv("PYTHONPATH")])))  # for the jobs

from covermap.attribution import attribution, attribution_of_labels
from covermap.clms_key import service_key
from covermap.config import (
    check_classes,
    check_files,
    check_maps,
    check_tiles,
    check_window,
    contemporaries,
    labels_legend,
    load,
    model_legend,
    held_out_area,
)
from covermap.dates import step_of, steps_of
from covermap.errors import CovermapError, CoverageError, SettingError
from covermap.grid import PIXEL_M, area_blocks, area_grid, project, read_area
from covermap.legend import read_legend
from covermap.orbits import choose_orbit, has_orbits
from covermap.providers import PROVIDERS, Query
from covermap.scenes import (
    SUPERSEDES,
    footprint,
    is_grd,
    met_by,
    moment,
    one_view,
    optical_bands,
    read_listing,
    read_missing,
    sensor_of,
    told_gaps,
)
from covermap.selection import gaps, pinned_items
from covermap.label_settings import Images
from covermap.model_settings import Layer, Tidy
from covermap.step import has_gpu


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
    def wrapped(aoi, *more):
        try:
            return function(aoi, *more)
        except CovermapError as error:
            raise type(error)(f"aois.{aoi}: {error}")

    return wrapped


CFG = plainly(load)(config)


def one_of(names):
    """What a wildcard may be; without any name nothing."""
    return "|".join(names) or "(?!)"


wildcard_constraints:
    aoi="|".join(CFG.aois),
    patches=one_of(CFG.patches),
    model="|".join(CFG.models),
    mapped=f"(?:{'|'.join(CFG.aois)})(?:/(?:{'|'.join(CFG.models)}))?",
    layer=one_of(get_args(Layer)),
    block=r"x-?\d+y-?\d+",
    scene=r"[\w.-]+",


# --- what an area is -------------------------------------------------------------------------------------------------


def made_by_rules():
    """Files that settings may name before they are there."""
    return set(map(Path, rules.simulate_demo.output))


def only_planned():
    """Whether no job will run: a dry run, a summary, a graph. Snakemake knows when it asks for inputs, not before."""
    return workflow.executor_plugin is None or workflow.dryrun


@of_area
def check_account(aoi, step):
    """Refuse a job that needs an account where there is none."""
    if step in ("search_scenes", "download_scene"):
        provider = CFG.aois[aoi].provider
        import_module(PROVIDERS[provider.name]).check_credentials(provider)
    elif step in ("download_urban_atlas", "download_urban_atlas_reference"):
        service_key()


@plainly
def check_accounts():
    """Refuse a run of which a job will need an account that is not there, before the first one begins."""
    if workflow.is_main_process and not workflow.touch:
        for aoi, step in sorted({(job.wildcards.get("aoi", ""), job.rule.name) for job in workflow.dag.needrun_jobs()}):
            check_account(aoi, step)


@cache
@plainly
@of_area
def area_of(aoi):
    maps = CFG.aois[aoi].labels, CFG.aois[aoi].reference
    asked_for = {some.path for some in maps if some}  # by the jobs that read them
    plainly(check_files)(CFG, aoi, made_by_rules() | asked_for)
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
    """A section of settings, with the overrides of the job's area, less those that choose or bring scenes."""
    others = {"orbit_state", "relative_orbits", "max_cloud", "sen2cor_program", "sen2cor_gipp"}
    others |= {"processor"} if name == "sentinel2" else set()

    def get(wildcards):
        settings = plain(CFG.section(name, wildcards.aoi))
        return {key: value for key, value in settings.items() if key not in others}

    return get


def clear_masks(wildcards):
    """The masks of a scene, less what leaves out whole scenes or overrules masks."""
    return plain(CFG.section("masks", wildcards.aoi)) | {"max_scene": 100, "unmask_above": 100, "unmask_from": 1}


def scene_masks(wildcards):
    """The masks, less what overrules them; of a radar scene none."""
    if "scene" in wildcards.keys() and sensor_of(scene_item(wildcards)) == "sentinel1":
        return {}
    return plain(CFG.section("masks", wildcards.aoi)) | {"unmask_above": 100, "unmask_from": 1}


def registration_of(wildcards):
    """What shifts depend on: what becomes of them is not among it."""
    return plain(CFG.section("registration", wildcards.aoi)) | {"mode": "report"}


def aoi_area(wildcards):
    return area_of(wildcards.aoi).wkt


def aoi_grid(wildcards):
    return plain(grid_of(wildcards.aoi))


CLOUD_RIM_PIXELS = 60  # clouds so far beyond an area reach into it, and its rim is there when a scene is moved


def clip_grid(wildcards):
    """The area's grid, and what lies around it."""
    return plain(grid_of(wildcards.aoi).padded(CLOUD_RIM_PIXELS))


def aoi_blocks(wildcards):
    return [plain(grid) for grid in blocks_of(wildcards.aoi).values()]


@plainly
def block_grid(wildcards):
    blocks = blocks_of(wildcards.aoi)
    if wildcards.block not in blocks:
        raise CoverageError(f"area {wildcards.aoi} has no block {wildcards.block}: it has {', '.join(blocks)}")
    return plain(blocks[wildcards.block])


@plainly
def legend_of(model, aoi=None):
    """Legend of what a model maps, with names in the language of an area; none: in English."""
    return plain(model_legend(CFG, model, CFG.aois[aoi].language if aoi else "en"))


@plainly
def compared_legend(wildcards):
    """Legend of a model's map that is compared with the labels of an area."""
    check_classes(CFG, wildcards.model, CFG.aois[wildcards.aoi].labels)
    return legend_of(wildcards.model)


def clouds_matter(model):
    """Whether tiles under clouds are left out: beside radar only where a limit is set."""
    return "sentinel2" in model.sensors and ("sentinel1" not in model.sensors or model.tiles.max_cloud is not None)


def stacks_matter(model):
    """Whether which tiles are kept depends on what was observed."""
    return clouds_matter(model) or model.tiles.count_gaps


def model_blocks(wildcards):
    """Area and block of every block that a model learns from or is tested on; a set of patches is one block."""
    model = CFG.models[wildcards.model]
    if wildcards.model in CFG.classifiers:
        return [(model.train_on[0], "patches")]
    return [(aoi, block) for aoi in (*model.train_on, *model.test_on) for block in blocks_of(aoi)]


def model_grids(wildcards):
    """The same with the grid of each block."""
    return [(aoi, name, plain(blocks_of(aoi)[name])) for aoi, name in model_blocks(wildcards)]


def grids_of_tiles(wildcards):
    """The grids alone; images have none."""
    return [grid for _, _, grid in model_grids(wildcards)] if wildcards.model in CFG.mappers else []


def held_out_whole(wildcards):
    """Areas that a model is tested on, each with those that it learns from in the same time."""
    return contemporaries(CFG, wildcards.model)


def model_setting(name):
    """A setting of the job's model."""
    return lambda wildcards: CFG.models[wildcards.model].model_dump(mode="json", include={name})[name]


def split_seed(wildcards):
    return CFG.models[wildcards.model].split_seed


def on_gpu(wildcards):
    """1 where networks run on a GPU: one job at a time has the memory of all GPUs."""
    return int(has_gpu())


def trained(model):
    """Names of the models whose weights a model applies: its own, where it is trained itself."""
    return CFG.models[model].weights or (model,)


def weights_of(wildcards):
    """Weights that the job's model applies."""
    return expand("results/models/{model}/weights.safetensors", model=trained(wildcards.model))


def calibrations_of(wildcards):
    """The temperatures of these weights, where the job's model is calibrated."""
    if not CFG.models[wildcards.model].prediction.calibrate:
        return []
    return expand("results/models/{model}/calibration.json", model=trained(wildcards.model))


def windows_of(wildcards):
    """How the job's model covers a map, less the number of threads, which changes no byte."""
    return CFG.models[wildcards.model].prediction.model_dump(mode="json", exclude={"threads"})


def postprocess_setting(name):
    """A setting of what follows the network of the job's model."""
    return lambda wildcards: CFG.models[wildcards.model].postprocess.model_dump(mode="json")[name]


def tidy_of(wildcards):
    """What is done to the classes of the job's model while its map is put together."""
    return CFG.models[wildcards.model].postprocess.model_dump(mode="json", include=set(Tidy.model_fields))


def provenance_of(wildcards):
    """How a map was made, for its tags: what speed alone depends on is not among it."""
    model = CFG.models[wildcards.model]
    how = model.prediction.model_dump(mode="json", exclude={"layers", "batch", "threads"})
    after = model.postprocess.model_dump(mode="json", exclude_none=True, exclude={"polygons", "simplify_m"})
    return {
        "network": model.network,
        "trained_on": ", ".join(
            dict.fromkeys(area for one in trained(wildcards.model) for area in CFG.models[one].train_on)
        ),
        "prediction": json.dumps(how, sort_keys=True),
        **({"postprocess": json.dumps(after, sort_keys=True)} if after else {}),
    }


@plainly
def blocks_with_layer(wildcards):
    """Predictions of the job's map, which must hold the layer that is asked for."""
    layers, layer = CFG.models[wildcards.model].prediction.layers, wildcards.layer
    if layer not in layers:
        raise SettingError(
            f"models.{wildcards.model}.prediction.layers is {', '.join(layers) or 'empty'}, which lacks {layer}: add it"
        )
    return blocks_in("results/predictions/{aoi}/{model}/{block}.tif")(wildcards)


def pixel_of(wildcards):
    """Side of a pixel of what the job's model learned from [m]."""
    areas = taught_on(wildcards.model)
    return grid_of(areas[0]).pixel_m if areas else PIXEL_M


def pictures_of(wildcards):
    """What the images are that the job's model learned from, where it did; an area is shown to it like them."""
    if wildcards.model not in CFG.classifiers:
        return None
    return patches_of(wildcards).model_dump(mode="json", include={"level", "white"})


def start_of(wildcards):
    """Weights that training of the job's model starts from, where it starts from any."""
    start = CFG.models[wildcards.model].start_from
    if start is None:
        return []
    return f"results/models/{start}/weights.safetensors" if start in CFG.models else f"resources/weights/{start}"


def taught_on(model):
    """Areas whose labels the weights that a model applies learned from, and those that these started from."""
    areas = []
    for name in trained(model):
        start = CFG.models[name].start_from
        areas += [*CFG.models[name].train_on, *(taught_on(start) if start in CFG.models else [])]
    return [area for area in dict.fromkeys(areas) if area in CFG.aois]


def halving_of(wildcards):
    """Side of what the networks of the job's model see as one pixel at their lowest level."""
    return lcm(*(CFG.models[name].network_options.multiple for name in trained(wildcards.model)))


def margin_of(wildcards):
    return CFG.models[wildcards.model].network_options.margin_pixels


def of_map(wanted):
    """Ask a function of area and model, or fill in a pattern of them, for the job's map."""

    def get(wildcards):
        aoi, _, model = wildcards.mapped.partition("/")
        own = {"aoi": aoi, "model": model or CFG.aois[aoi].model}
        named = type(wildcards)(fromdict={**dict(wildcards.items()), **own})
        return wanted.format(**named) if isinstance(wanted, str) else wanted(named)

    return get


def layers_of_map(wildcards):
    """Layers that are kept beside the job's map."""
    layers = of_map(lambda named: CFG.models[named.model].prediction.layers)(wildcards)
    return expand("results/maps/{mapped}.{layer}.tif", mapped=wildcards.mapped, layer=layers)


def polygons_of_map(wildcards):
    """The job's map as polygons, where they are wanted."""
    wanted = of_map(postprocess_setting("polygons"))(wildcards)
    return f"results/maps/{wildcards.mapped}.gpkg" if wanted else []


def legend_of_map(wildcards):
    """Legend of a model's map of an area, with names in its language."""
    return legend_of(wildcards.model, wildcards.aoi)


@plainly
def tested(wildcards):
    """The job's area, where test tiles of its own tell what is held out of it."""
    return held_out_area(CFG, wildcards.aoi, wildcards.model)


@plainly
def shoreline_of(wildcards):
    """Shoreline of the job's area: ids of its water, the threshold, and the thresholds of its sweep."""
    labels = CFG.aois[wildcards.aoi].labels
    if labels is None or labels.shoreline is None:
        raise SettingError(f"aois.{wildcards.aoi}.labels.shoreline is not set, so there is none to write: set it")
    ids = {entry.key: entry.id for entry in labels_legend(labels).classes}
    return {**plain(labels.shoreline), "water": [ids[name] for name in labels.shoreline.water]}


# --- input files -----------------------------------------------------------------------------------------------------


def query_of(aoi):
    """What scenes an area needs."""
    settings, radar, optics = CFG.aois[aoi], CFG.section("sentinel1", aoi), CFG.section("sentinel2", aoi)
    tracks = radar.orbit_state, radar.relative_orbits, radar.polarisations
    return Query(area_of(aoi), settings.period, settings.sensors, optics.fetched_level, optics.max_cloud, *tracks)


@cache
@plainly
@of_area
def pinned_in(aoi):
    """Scenes of an area with a pinned list, by id: known before the search has run."""
    return {item["id"]: item for item in pinned_items(CFG.aois[aoi].scenes, query_of(aoi))}


def items_in(aoi, listing):
    return read_listing(listing) if listing else pinned_in(aoi)


def listing_of(wildcards):
    """List of the area's scenes, once the search has run; None: they are pinned."""
    pinned = CFG.aois[wildcards.aoi].scenes
    return None if pinned else Path(checkpoints.search_scenes.get(aoi=wildcards.aoi).output.listing)


def listed(wildcards):
    """Scenes of the area, by id."""
    return plainly(items_in)(wildcards.aoi, listing_of(wildcards))


@plainly
def scene_item(wildcards):
    items = listed(wildcards)
    if wildcards.scene not in items:
        raise CoverageError(
            f"area {wildcards.aoi} has no scene {wildcards.scene}: see results/scenes/{wildcards.aoi}.json"
        )
    return items[wildcards.scene]


@cache
@plainly
@of_area
def steps_in(aoi, listing, mtime_ns):
    """Steps of an area's Sentinel-2, from its whole list, so that all of its blocks have the same."""
    items = items_in(aoi, listing).values()
    days = [moment(item).date() for item in items if sensor_of(item) == "sentinel2"]
    return steps_of(CFG.aois[aoi].period, CFG.section("composite", aoi), days)


@cache
@plainly
def chosen_in(aoi, listing, mtime_ns):
    settings, radar, composite = CFG.aois[aoi], CFG.section("sentinel1", aoi), CFG.section("composite", aoi)
    items = one_view(items_in(aoi, listing).values(), radar, settings.dem, aoi, composite.directions)
    if "sentinel2" not in settings.sensors:
        return items
    steps = steps_in(aoi, listing, mtime_ns)

    def in_a_step(item):
        return step_of(moment(item).date(), steps, composite.season) is not None

    found = [item for item in items if sensor_of(item) == "sentinel1" or in_a_step(item)]
    if all(sensor_of(item) == "sentinel1" for item in found):
        raise CoverageError(
            f"aois.{aoi}: of its {len(items)} scenes none of Sentinel-2 is in composite.season "
            f"{' to '.join(composite.season or ['any'])} and the steps: widen the season or the period"
        )
    return found


def of_list(function):
    """Ask a function about the list of the job's area, once for each state of the list."""

    def get(wildcards):
        listing = listing_of(wildcards)
        return function(wildcards.aoi, listing, listing.stat().st_mtime_ns if listing else 0)

    return get


chosen = of_list(chosen_in)  # scenes of the area that its stacks are made of


def aoi_steps(wildcards):
    """First and last day of each step of the job's area; without Sentinel-2 there is none."""
    if "sentinel2" not in CFG.aois[wildcards.aoi].sensors:
        return []
    return [[str(day) for day in step] for step in of_list(steps_in)(wildcards)]


def dem_of(wildcards):
    """The area's heights: a file that the settings name, or one to be downloaded."""
    dem = CFG.aois[wildcards.aoi].dem
    return f"resources/dem/{wildcards.aoi}.tif" if dem == "glo30" else dem or []


def dem_of_scene(wildcards):
    """Heights for the job's scene, where it is still to be corrected for terrain."""
    downloaded = CFG.aois[wildcards.aoi].dem == "glo30"
    return dem_of(wildcards) if not downloaded or is_grd(scene_item(wildcards)) else []


def geoid_of(wildcards):
    """The grid of EGM2008, where the heights for the job's scene count from it: by the settings, or as downloaded."""
    geoid = CFG.section("sentinel1", wildcards.aoi).geoid
    wanted = geoid == "egm2008" or (geoid is None and CFG.aois[wildcards.aoi].dem == "glo30")
    return "resources/geoid/us_nga_egm08_25.tif" if wanted and is_grd(scene_item(wildcards)) else []


def dem_of_layers(wildcards):
    """The area's DEM, where a layer of its stack comes from it."""
    layers = {"elevation", "slope"} & {*CFG.section("composite", wildcards.aoi).layers}
    return dem_of(wildcards) if layers else []


def orbit_of(wildcards):
    """The best orbit file for the job's scene: of a folder, where there is one, or to be downloaded."""
    orbits, scene = CFG.section("sentinel1", wildcards.aoi).orbits, wildcards.scene
    if orbits == "auto":
        return f"resources/orbits/{scene}.EOF" if has_orbits(scene) and is_grd(scene_item(wildcards)) else []
    return orbits and plainly(choose_orbit)(orbits, scene) or []


@cache
def block_outline(aoi, block):
    """Outline of a block in lon/lat, a little widened, since footprints of scenes are coarse."""
    grid = blocks_of(aoi)[block]
    return project(grid.polygon, grid.crs, "EPSG:4326").buffer(0.005)


@cache
def scenes_in(aoi, listing, mtime_ns):
    """Sensor and id of the scenes that meet a block, for every block of an area."""
    outlines = {block: block_outline(aoi, block) for block in blocks_of(aoi)}
    met = met_by(chosen_in(aoi, listing, mtime_ns), outlines)
    return {block: [(sensor_of(item), item["id"]) for item in items] for block, items in met.items()}


def scenes_of_block(sensor, folder):
    """Files of a sensor's scenes that meet the job's block."""

    def find(wildcards):
        block_grid(wildcards)  # told here where there is no such block
        if sensor not in CFG.aois[wildcards.aoi].sensors:
            return []
        scenes = [name for seen_by, name in of_list(scenes_in)(wildcards)[wildcards.block] if seen_by == sensor]
        return expand("results/{folder}/{aoi}/{scene}.tif", folder=folder, aoi=wildcards.aoi, scene=scenes)

    return find


def blocks_met(aoi, item):
    """Names of the area's blocks that a scene meets."""
    outline = footprint(item)
    return [block for block in blocks_of(aoi) if outline.intersects(block_outline(aoi, block))]


def shifts_of(*folders):
    """Shifts of the scenes of the job's block, by the folders of their files, where they are to be undone."""

    def find(wildcards):
        if CFG.section("registration", wildcards.aoi).mode != "correct":
            return []
        files = [scenes_of_block(f"sentinel{folder[-1]}", folder)(wildcards) for folder in folders]
        return [f"results/quality/{wildcards.aoi}/{Path(file).stem}.json" for file in sum(files, [])]

    return find


def processed(wildcards):
    """The job's scene on the area's grid."""
    number = sensor_of(scene_item(wildcards))[-1]
    return f"results/s{number}/{wildcards.aoi}/{wildcards.scene}.tif"


def stacked(wildcards):
    """Scenes of the job's area, by id, that meet a block of it."""
    sensors = CFG.aois[wildcards.aoi].sensors
    items = [item for item in chosen(wildcards) if sensor_of(item) in sensors]
    return [item["id"] for item in items if blocks_met(wildcards.aoi, item)]


def checked(suffix):
    """Figures (.json) or pictures (.png) of all scenes of the job's area that its stacks are made of."""

    def find(wildcards):
        if CFG.section("registration", wildcards.aoi).mode == "off":
            return []
        return [f"results/quality/{wildcards.aoi}/{scene}{suffix}" for scene in stacked(wildcards)]

    return find


def unused_of(wildcards):
    """Why scenes that are listed are not used, by id."""
    items, used = listed(wildcards), {*stacked(wildcards)}
    wanted = {item["id"] for item in chosen(wildcards)}
    reasons = {"sentinel1": "another orbit direction or track", "sentinel2": "in no step or season of the composites"}

    def reason(item):
        if sensor_of(item) not in CFG.aois[wildcards.aoi].sensors:
            return "a sensor that the area does not use"
        return "meets no block of the area" if item["id"] in wanted else reasons[sensor_of(item)]

    left = {name: reason(item) for name, item in items.items() if name not in used}
    newer = {name: item["properties"].get(SUPERSEDES, []) for name, item in items.items()}
    return {**left, **{old: f"superseded by {name}" for name, older in newer.items() for old in older}}


def reference_of(wildcards):
    """Composites that the job's scene is compared with: those of the blocks that it meets."""
    met = blocks_met(wildcards.aoi, scene_item(wildcards))
    return expand("results/registration/{aoi}/{block}.tif", aoi=wildcards.aoi, block=met)


def blocks_in(pattern):
    """One file a block of the job's area."""
    return lambda wildcards: expand(pattern, **dict(wildcards.items()), block=blocks_of(wildcards.aoi))


def stacks_near(wildcards):
    plainly(check_maps)(CFG, wildcards.aoi, wildcards.model)
    plainly(check_window)(CFG, wildcards.aoi, wildcards.model)
    near = neighbours_of(wildcards.aoi, wildcards.block)
    return expand("results/stacks/{aoi}/{block}.zarr.zip", aoi=wildcards.aoi, block=near)


def model_files(pattern):
    """One file a block of all areas that a model learns from or is tested on."""

    def find(wildcards):
        model = wildcards.model
        plainly(check_tiles)(CFG, model)
        return [pattern.format(aoi=aoi, block=block, model=model) for aoi, block in model_blocks(wildcards)]

    return find


def tiles_of(model):
    """Name of the model under whose name the tiles are that a model learns from."""
    return CFG.models[model].tiles_of or model


def with_own_tiles(models):
    """What the wildcard of a model may be where tiles are made."""
    return one_of([model for model in models if tiles_of(model) == model])


def index_of(wildcards):
    """Table of the tiles of the job's model."""
    return f"results/tiles/{tiles_of(wildcards.model)}/index.parquet"


def packs_of(wildcards):
    """Tiles of the job's model, a file a block."""
    pattern = f"results/tiles/{tiles_of(wildcards.model)}/{{aoi}}/{{block}}.safetensors"
    return model_files(pattern)(wildcards)


def labels_of(aoi, block):
    """Labels of a block that models learn from."""
    labels = CFG.aois[aoi].labels
    return f"results/shorelines/{aoi}/{block}.tif" if labels and labels.shoreline else trusted_labels(aoi, block)


def trusted_labels(aoi, block):
    """The same before water that comes and goes is excluded."""
    labels = CFG.aois[aoi].labels
    return f"results/{'weakened' if labels and labels.is_weak else 'labels'}/{aoi}/{block}.tif"


def reading(labels):
    """How a map of labels becomes class ids."""
    return {
        "source": labels.source,
        "codes": plainly(labels_legend)(labels).codes,
        "attribute": labels.code_attribute,
        "polygons": plain(labels.polygons),
    }


def weak_setting(name):
    """A setting of the weak labels of the job's area."""
    return lambda wildcards: getattr(CFG.aois[wildcards.aoi].labels.weak, name)


def stable_maps(wildcards):
    """The map of labels of the job's area in other years."""
    maps, aoi = weak_setting("stable_with")(wildcards), wildcards.aoi
    return [f"resources/labels/{aoi}/{one}.tif" if isinstance(one, int) else brought(aoi, one) for one in maps]


def agreeing_map(wildcards):
    """The map that labels of the job's area are compared with, where there is one."""
    other = weak_setting("agree_with")(wildcards)
    if other is None:
        return []
    return f"resources/agreeing/{wildcards.aoi}.tif" if other.path == "auto" else brought(wildcards.aoi, other.path)


def reading_agreeing(wildcards):
    other = weak_setting("agree_with")(wildcards)
    return reading(other) if other else None


def class_ids(wildcards):
    """Ids of the classes of the labels of the job's area, by key."""
    return {entry.key: entry.id for entry in plainly(labels_legend)(CFG.aois[wildcards.aoi].labels).classes}


def patches_of(wildcards):
    """Settings of the job's set of patches: its own, or the one that its model learns from."""
    return CFG.patches[wildcards.get("patches") or CFG.models[wildcards.model].train_on[0]]


@plainly
def patches_legend(wildcards):
    """Legend of the job's set of patches."""
    return plain(read_legend(patches_of(wildcards).legend))


def images_of(wildcards):
    """What the images of the job's set of patches hold."""
    return patches_of(wildcards).model_dump(mode="json", include=set(Images.model_fields))


@plainly
def patches_source(wildcards):
    """Zip or folder of the job's set of patches."""
    path = patches_of(wildcards).path
    if not path.exists():
        raise SettingError(f"the patches' path is {path}, which does not exist: mend the path or bring the file")
    return path


@plainly
def split_lists(wildcards):
    """Lists of training, validation and test, where the job's model is split by them."""
    if CFG.models[wildcards.model].tiles.split != "lists":
        return []
    lists = patches_of(wildcards).lists
    return [lists.train, lists.validation, lists.test]


def shoreline_file(pattern):
    """A file about the shoreline of the job's area, where it has one."""

    def find(wildcards):
        labels = CFG.aois[wildcards.aoi].labels
        return pattern.format(aoi=wildcards.aoi) if labels and labels.shoreline else []

    return find


def shoreline_threshold(wildcards):
    labels = CFG.aois[wildcards.aoi].labels
    return labels.shoreline.threshold if labels and labels.shoreline else None


def source_of(name):
    """File of the job's labels or reference map: one that the settings name, or one to be downloaded."""

    def get(wildcards):
        path = getattr(CFG.aois[wildcards.aoi], name).path
        return downloaded(wildcards.aoi, name) if path == "auto" else brought(wildcards.aoi, name)

    return get


def downloaded(aoi, name):
    """The part of a map that an area's labels or reference are downloaded to."""
    folder = {"labels": "labels", "reference": "references"}[name]
    return f"resources/{folder}/{aoi}.{'gpkg' if getattr(CFG.aois[aoi], name).is_ordered else 'tif'}"


def labels_brought(wildcards):
    """Labels of a person's own, which may lie elsewhere: where they are there, the search tells that."""
    labels = CFG.aois[wildcards.aoi].labels
    return labels.path if labels and labels.path != "auto" and is_there(labels.path) else []


def is_there(path):
    """Whether a file of the settings is there, or will be."""
    return path in made_by_rules() or path.exists()


@cache
@plainly
def brought(aoi, name):
    """Labels or a reference map of a person's own: a plan goes without them, and says so once; a run does not."""
    key, path = f"aois.{aoi}.{name}.path", getattr(CFG.aois[aoi], name).path
    if is_there(path):
        return path
    if not only_planned():
        raise SettingError(f"{key} is {path}, which does not exist: mend the path or bring the file")
    print(
        f"covermap: {key} is {path}, which is not there yet: bring the file, or a run will stop before it fetches "
        "anything",
        file=sys.stderr,
    )
    return []


def map_of(aoi, model, suffix=".tif"):
    """The map of an area by a model: the area's default model has the short name."""
    default = CFG.aois[aoi].model == model
    return f"results/maps/{aoi}{suffix}" if default else f"results/maps/{aoi}/{model}{suffix}"


def catalogue(wildcards):
    """The file that a search reads, where there is one."""
    aoi = CFG.aois[wildcards.aoi]
    if aoi.scenes:
        return []
    catalog = Path("resources/demo/catalog.json") if aoi.provider.name == "demo" else aoi.provider.catalog
    return catalog if isinstance(catalog, Path) else []


def orbits_wanted(name):
    """A setting that chooses Sentinel-1 scenes of the job's area."""
    return lambda wildcards: plain(CFG.section("sentinel1", wildcards.aoi))[name]


def times_of(wildcards):
    """What tells the steps in time of the job's area."""
    composite = plain(CFG.section("composite", wildcards.aoi))
    return {key: composite[key] for key in ("every", "dates", "season", "fill")}


def delivery_of(wildcards):
    """Where the job's scene comes from: how scenes were chosen is not among it."""
    return CFG.aois[wildcards.aoi].provider.model_dump(mode="json", include={"name", "catalog", "url"})


def bands_of_sensors(wildcards):
    """Bands or polarisations that a step reads of the scenes of the job's area, by sensor."""
    return {
        "sentinel1": plain(CFG.section("sentinel1", wildcards.aoi))["polarisations"],
        "sentinel2": optical_bands(CFG.section("sentinel2", wildcards.aoi)),
    }


def fetched_bands(wildcards):
    """Those that are fetched, by sensor; none: whole products, as Sen2Cor needs them."""
    whole = CFG.section("sentinel2", wildcards.aoi).processor == "sen2cor"
    return bands_of_sensors(wildcards) | ({"sentinel2": []} if whole else {})


def bands_of(wildcards):
    """Those that are fetched of the job's scene."""
    return fetched_bands(wildcards)[sensor_of(scene_item(wildcards))]


def optical_product(wildcards):
    """What the job's scene is clipped from: the product as it is delivered, or what Sen2Cor makes of it."""
    made = CFG.section("sentinel2", wildcards.aoi).processor == "sen2cor"
    return f"resources/{'sen2cor' if made else 'scenes'}/{wildcards.aoi}/{wildcards.scene}.zip"


def training_settings(wildcards):
    """What the weights depend on: how a map is cut into windows is not among it."""
    return CFG.models[wildcards.model].model_dump(mode="json", exclude={"prediction", "postprocess"})


def default_model(wildcards):
    return CFG.aois[wildcards.aoi].model


def reported(pattern):
    """A file about the training of the default model of the job's area; of several whose weights it applies, the first."""
    return lambda wildcards: pattern.format(model=trained(default_model(wildcards))[0])


def accuracy_of(wildcards):
    """Agreement and accuracy, where the area has labels to compare with."""
    aoi = CFG.aois[wildcards.aoi]
    return f"results/accuracy/{wildcards.aoi}/{aoi.model}.json" if aoi.labels else []


def attribution_of(wildcards):
    """Whose data a map of the job's area contains: by the job's model, or that of the area."""
    aoi = CFG.aois[wildcards.aoi]
    return attribution(aoi.provider.name, aoi.dem == "glo30", maps_of_labels(wildcards.get("model", aoi.model)))


def maps_of_labels(model):
    """The maps that a model learned from."""
    labels = [CFG.aois[area].labels for area in taught_on(model)]
    return [*labels, *(one.weak.agree_with for one in labels if one)]


def missing_in(wildcards):
    """What no scene of the area covers, by sensor."""
    listing, aoi = listing_of(wildcards), wildcards.aoi
    if listing:
        return plainly(read_missing)(listing)
    query, composite = query_of(aoi), CFG.section("composite", aoi)
    found = {sensor: gaps(sensor, pinned_in(aoi).values(), query, composite) for sensor in query.sensors}
    return {sensor: absent for sensor, absent in found.items() if absent}


def notes_of(wildcards):
    simulated = CFG.aois[wildcards.aoi].provider.name == "demo"
    notes = ["Simulated landscape: a check of the software, never evidence of accuracy."] if simulated else []
    for sensor, absent in missing_in(wildcards).items():
        notes.append(f"No {sensor} scene covers part of the area: {told_gaps(absent)}.")
    return " ".join(notes)
