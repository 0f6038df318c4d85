"""The chain of ESA's SNAP: one graph, run by its gpt, its result on the grid and in the convention of the native chain.

Parameters of the operators as in their sources (senbox-org/microwave-toolbox and s1tbx: ApplyOrbitFileOp,
Sentinel1RemoveThermalNoiseOp, RemoveGRDBorderNoiseOp, CalibrationOp, SpeckleFilterOp, RangeDopplerGeocodingOp;
snap-engine: SubsetOp, LinearTodBOp, CommandLineArgs). What was never run against a real SNAP: docs/snap.md.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from string import Template
from xml.etree.ElementTree import Element, ElementTree, ParseError

import numpy as np
import rasterio
from defusedxml.ElementTree import fromstring
from pyproj import CRS
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from shapely import to_wkt

from covermap.area_settings import Sentinel1
from covermap.errors import CoverageError, CovermapError, SettingError
from covermap.grid import Grid, project
from covermap.sentinel1 import gpt, native, safe
from covermap.sentinel1.geocoded import Geocoded
from covermap.sentinel1.nodes import horizontal, positions_in
from covermap.sentinel1.orbit import own_name, read_orbit_file
from covermap.sentinel1.terrain import Terrain, read_dem
from covermap.strips import strips_of

log = logging.getLogger(__name__)

GRAPH = Path(__file__).parents[2] / "resources" / "graphs" / "s1_grd.xml"
CONVENTIONS = {"sigma0": "Sigma0", "beta0": "Beta0", "gamma0": "Gamma0"}
FILTERS = {"none": "None", "lee": "Lee", "refined_lee": "Refined Lee"}
LAYERS = {"incidence_angle": "incidenceAngleFromEllipsoid", "layover_shadow": "layoverShadowMask"}
ROWS = 512  # of the result in memory at once
DEM_MARGIN_M = 5_000.0  # slopes outside that cast layover and shadow into the window
DEM_NODATA = -32768.0
REGION_MARGIN = 10  # pixels that SNAP makes beyond the window, as its outline in lon/lat is a polygon
NOT_POSITIVE_DB = np.float32(-1e-30)  # LinearToFromdB's value for power of zero and less


def choose_snap(settings: Sentinel1, crs: str) -> tuple[str, ...] | None:
    """Command of SNAP's gpt for the scenes of an area, or None where the native chain is to work.

    Raises
    ------
    SettingError
        The settings insist on SNAP, which is not installed or cannot do what they ask for.
    """
    if settings.processor == "native":
        return None
    found, lacking = gpt.find_snap(), beyond_snap(settings, crs)
    if settings.processor == "auto":
        if found and lacking:
            log.info("SNAP is installed, but it cannot do %s: the native chain does", lacking)
        return None if lacking else found
    if found is None:
        raise SettingError(
            "sentinel1.processor is 'snap', but there is no gpt on the PATH or in $SNAP_HOME/bin and no esa_snappy "
            "that reaches a SNAP: install SNAP (docs/snap.md), or set sentinel1.processor to native"
        )
    if lacking:
        raise SettingError(
            f"sentinel1.processor is 'snap', but its graph cannot do {lacking}: set sentinel1.processor to native, or "
            f"change that setting"
        )
    return found


def beyond_snap(settings: Sentinel1, crs: str) -> str | None:
    """The first thing that the settings or the CRS of the map ask for and the graph cannot do, or None."""
    wgs84 = CRS(crs).geodetic_crs
    reasons = {
        "convention gamma0_terrain": settings.convention == "gamma0_terrain",
        "normalise_deg": settings.normalise_deg is not None,
        "negative_power keep or nodata (it sets such power to about -100 dB)": settings.negative_power != "floor",
        "ground_range nearest": settings.ground_range == "nearest",
        "bistatic (whether it does depends on its release)": settings.bistatic,
        "path_delay": settings.path_delay,
        f"a map in {crs}, which is not on WGS 84 (it shifts such maps)": wgs84 is None or wgs84.to_epsg() != 4326,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


@contextmanager
def snap_chain(
    snap: tuple[str, ...],
    archive: safe.Archive,
    dem: Path | None,
    processed: Path,
    grid: Grid,
    settings: Sentinel1,
    *,
    orbit: Path | None = None,
    threads: int = 1,
    mem_mb: int = 8000,
    time_limit_s: float = 7200,
) -> Iterator[Geocoded]:
    """Backscatter of a GRD product on the grid by SNAP; its files lie beside the output until the block ends.

    Parameters
    ----------
    snap : what ``choose_snap`` found.
    archive, dem, grid, settings : as in :func:`covermap.sentinel1.native.native_chain`.
    processed : the output; a folder beside it holds the DEM, the orbit file, the graph, the log and SNAP's result.
    orbit : orbit file (.EOF) to apply; None: the state vectors in the product.
    threads, mem_mb : what gpt may use.
    time_limit_s : a gpt that runs longer is ended.

    Yields
    ------
    In the unit of the settings: with ``dB`` the strips hold dB, and the tag ``units`` says so. After the polarisations
    come the layers of the settings: incidence angle in degrees; 0 none, 1 layover, 2 shadow, 3 both.

    Raises
    ------
    ProductError, CoverageError, SettingError
        As the native chain.
    CovermapError
        gpt failed; the message ends with the last lines of its log.
    """
    images = native.wanted_images(archive, settings)
    for image in images:
        safe.measurement(archive, image)
    source = read_orbit_file(orbit, images[0]).source if orbit is not None else "annotation"
    window = native.footprint_window(images[0], grid, archive)
    for stale in processed.parent.glob(f".{processed.name}.snap.*"):
        shutil.rmtree(stale, ignore_errors=True)
    processed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{processed.name}.snap.", dir=processed.parent) as name:
        folder = Path(name).absolute()
        terrain = _write_dem(dem, window, settings, folder / "dem.tif")
        values = _values(archive, window, settings, source, folder)
        fill_graph(folder / "graph.xml", values, _without(archive, images[0], settings, orbit))
        if orbit is not None:
            _place_orbit(orbit, images[0], folder)
        gpt.run_gpt(snap, folder, threads=threads, mem_mb=mem_mb, time_limit_s=time_limit_s)
        made = _result_grid(folder / "backscatter.dim", window)
        inner = window.cropped(made.bounds)
        if inner is None:
            raise safe.no_overlap(archive, grid)
        yield Geocoded(
            inner,
            (*settings.polarisations, *settings.layers),
            _strips(folder, made, inner, terrain, settings),
            {
                "processor": "SNAP",
                "units": settings.units,
                "convention": settings.convention,
                "orbit_source": source,
                "noise_removed": "by the processor" if images[0].noise_already_removed else "yes",
                "negative_power": "floor" if settings.negative_power == "floor" else "about -100 dB, by SNAP",
                "dem": terrain.name,
                "geoid": terrain.geoid,
                "datetime": f"{images[0].first_line}Z",
                "orbit_state": images[0].orbit_state,
                "relative_orbit": safe.relative_orbit(archive),
            },
        )


# --- the graph -------------------------------------------------------------------------------------------------------


def fill_graph(output: Path, values: dict[str, str | None], without: set[str], graph: Path = GRAPH) -> None:
    """The graph with every ``${name}`` filled.

    Parameters
    ----------
    values : by name; a parameter whose value is None is left out.
    without : nodes that are left out; what followed them takes the node before.
    """
    if not graph.exists():
        raise CovermapError(f"the graph {graph} is missing: SNAP's chain runs from a checkout of covermap's repository")
    root = fromstring(graph.read_bytes())
    for node in root.findall("node"):
        if node.get("id") in without:
            _leave_out(root, node)
    for parameters in root.iter("parameters"):
        for parameter in list(parameters):
            names = Template(parameter.text or "").get_identifiers()
            if any(values[name] is None for name in names):
                parameters.remove(parameter)
            elif names:
                parameter.text = Template(parameter.text or "").substitute(values)
    ElementTree(root).write(output, encoding="utf-8", xml_declaration=True)


def _leave_out(root: Element, node: Element) -> None:
    source = node.find("sources/*")
    for follower in root.iterfind(f"node/sources/*[@refid='{node.get('id')}']"):
        if source is not None:
            follower.set("refid", source.get("refid", ""))
    root.remove(node)


def _without(archive: safe.Archive, image: safe.Image, settings: Sentinel1, orbit: Path | None) -> set[str]:
    """Nodes that the scene or the settings do not need, or that the scene makes fail."""
    copolar = {"VV", "HH"}
    reasons = {
        "Apply-Orbit-File": orbit is None,
        "ThermalNoiseRemoval": image.noise_already_removed,
        "Remove-GRD-Border-Noise": image.mode not in {"IW", "EW"}
        or not (copolar & {*settings.polarisations} or copolar & {*safe.images(archive)}),
        "Speckle-Filter": settings.speckle_filter == "none",
        "LinearToFromdB": settings.units == "linear",
        "Subset-Layers": not settings.layers,
        "Write-Layers": not settings.layers,
    }
    return {node for node, holds in reasons.items() if holds}


def _values(
    archive: safe.Archive, window: Grid, settings: Sentinel1, orbit_source: str, folder: Path
) -> dict[str, str | None]:
    """What the graph's ``${}`` stand for."""
    region = project(window.padded(REGION_MARGIN).polygon, window.crs, "EPSG:4326")
    return {
        "product": _readable(archive, folder),
        "orbit_type": f"Sentinel {'Restituted' if orbit_source == 'restituted' else 'Precise'} (Auto Download)",
        "polarisations": ",".join(settings.polarisations),
        **{name: str(settings.convention == name).lower() for name in CONVENTIONS},
        "bands": ",".join(_bands(settings)),
        "speckle_filter": FILTERS[settings.speckle_filter],
        "window_pixels": str(settings.window_pixels),
        "looks": str(settings.looks),
        "dem": str(folder / "dem.tif"),
        "dem_nodata": str(DEM_NODATA),
        "crs": window.crs,
        "pixel_m": str(window.pixel_m),
        "origin_x": str((window.left + window.pixel_m / 2) % window.pixel_m),
        "origin_y": str((window.top + window.pixel_m / 2) % window.pixel_m),
        "incidence_angle": "true" if "incidence_angle" in settings.layers else None,
        "layover_shadow": "true" if "layover_shadow" in settings.layers else None,
        "region": to_wkt(region, rounding_precision=7),
        "layer_bands": ",".join(LAYERS[layer] for layer in settings.layers),
        "output": str(folder / "backscatter.dim"),
        "layer_output": str(folder / "layers.dim"),
    }


def _bands(settings: Sentinel1) -> list[str]:
    return [f"{CONVENTIONS[settings.convention]}_{name}" for name in settings.polarisations]


def _readable(archive: safe.Archive, folder: Path) -> str:
    """Path of the product that SNAP's reader accepts: a zip must be named after its scene."""
    if archive.path.is_dir():
        return str(archive.path.absolute() / "manifest.safe")
    link = folder / f"{archive.root.removesuffix('/').removesuffix('.SAFE')}.zip"
    link.symlink_to(archive.path.absolute())
    return str(link)


# --- what goes in ----------------------------------------------------------------------------------------------------


def _write_dem(dem: Path | None, window: Grid, settings: Sentinel1, output: Path) -> Terrain:
    """Ellipsoidal heights around the window as a plain GeoTIFF: SNAP reads few compressions and no vertical CRS."""
    around = window.padded(round(DEM_MARGIN_M / window.pixel_m))
    terrain = read_dem(dem, around, settings.geoid, settings.dem_gaps)
    with rasterio.open(dem) as raster:
        offset = np.nanmedian(positions_in(around, raster) - terrain.nodes, axis=(1, 2)).round()
        crs = horizontal(CRS.from_wkt(raster.crs.to_wkt()))
        transform = window_transform(Window(offset[1], offset[0], 1, 1), raster.transform)
    height_m = np.where(np.isnan(terrain.height_m), np.float32(DEM_NODATA), terrain.height_m)
    profile = {"height": height_m.shape[0], "width": height_m.shape[1], "nodata": DEM_NODATA, "transform": transform}
    with rasterio.open(output, "w", driver="GTiff", count=1, dtype="float32", crs=crs.to_wkt(), **profile) as raster:
        raster.write(height_m, 1)
    return terrain


def _place_orbit(orbit: Path, image: safe.Image, folder: Path) -> None:
    """The orbit file where Apply-Orbit-File looks for it, so that nothing is downloaded.

    It looks in the month of the first state vector, which may lie before that of the image.
    """
    first = image.first_line.astype("datetime64[s]").astype(object)
    for moment in (first, first - timedelta(minutes=10)):
        place = folder / "orbits" / image.mission / f"{moment:%Y}" / f"{moment:%m}"
        place.mkdir(parents=True, exist_ok=True)
        if not (place / own_name(orbit)).exists():
            shutil.copyfile(orbit, place / own_name(orbit))


# --- what comes out --------------------------------------------------------------------------------------------------


def _result_grid(header: Path, window: Grid) -> Grid:
    """Grid of SNAP's product (BEAM-DIMAP), known to lie on the lattice of the window."""
    try:
        root = fromstring(header.read_bytes())
        text = root.findtext("Geoposition/IMAGE_TO_MODEL_TRANSFORM") or ""
        across, skew, tilt, down, left, top = (float(word) for word in text.split(","))
        width, height = (int(root.findtext(f"Raster_Dimensions/{tag}") or "") for tag in ("NCOLS", "NROWS"))
    except (ParseError, ValueError) as error:
        raise CovermapError(
            f"SNAP wrote a {header.name} that lacks size or place ({error}): see docs/snap.md"
        ) from None
    pixel_m = window.pixel_m
    column, row = (left - window.left) / pixel_m, (window.top - top) / pixel_m
    if not np.allclose(
        (across, skew, tilt, down, column, row), (pixel_m, 0, 0, -pixel_m, round(column), round(row)), atol=1e-3
    ):
        raise CovermapError(
            f"SNAP wrote pixels of {across:g} x {-down:g} m from ({left}, {top}), which lie off the area's grid of "
            f"{pixel_m:g} m from ({window.left}, {window.top}): update SNAP, or set sentinel1.processor to native"
        )
    return window.window(round(row), round(column), height, width)


def _strips(
    folder: Path, made: Grid, inner: Grid, terrain: Terrain, settings: Sentinel1
) -> Iterator[tuple[int, np.ndarray]]:
    """First row and pixels float32 (band, rows, x) of the window ``inner`` of SNAP's grid ``made``."""
    suffix = "_db" if settings.units == "dB" else ""
    files = [folder / "backscatter.data" / f"{band}{suffix}.img" for band in _bands(settings)]
    files += [folder / "layers.data" / f"{LAYERS[layer]}.img" for layer in settings.layers]
    row, column = inner.offset_in(made)
    powers = len(settings.polarisations)
    with ExitStack() as stack, rasterio.open(folder / "dem.tif") as heights:
        known = (heights.read(1) != DEM_NODATA).astype(np.uint8)
        try:
            rasters = [stack.enter_context(rasterio.open(file)) for file in files]
            for rows in strips_of(inner.height, ROWS):
                part = Window(column, row + rows.start, inner.width, rows.stop - rows.start)
                pixels = np.stack([raster.read(1, window=part).astype(np.float32) for raster in rasters])
                _in_convention(pixels[:powers], settings)
                _layers(pixels, settings)
                _known_height(pixels[:powers], rows, inner, known, heights, terrain)
                yield rows.start, pixels
        except RasterioError as error:
            raise CovermapError(f"what SNAP wrote cannot be read ({error}): check the space on the disk") from error


def _in_convention(power: np.ndarray, settings: Sentinel1) -> None:
    """SNAP's backscatter (polarisation, y, x) as the settings want it, in place: NaN = no data, which SNAP writes as 0.

    In dB, power of zero and less takes the floor: SNAP leaves it at 0 dB, or at -100 dB where it clipped it before.
    """
    power[power == 0] = np.nan
    if settings.units == "dB":
        power[power == NOT_POSITIVE_DB] = settings.floor_db
        np.maximum(power, settings.floor_db, out=power)
    elif settings.negative_power == "floor":
        np.maximum(power, 10 ** (settings.floor_db / 10), out=power)


def _layers(pixels: np.ndarray, settings: Sentinel1) -> None:
    """Layers behind the backscatter: none where that has no data, in place."""
    powers = len(settings.polarisations)
    nothing = np.isnan(pixels[:powers]).all(axis=0)
    for layer in pixels[powers:]:
        layer[nothing] = np.nan


def _known_height(
    power: np.ndarray, rows: slice, inner: Grid, known: np.ndarray, heights: rasterio.DatasetReader, terrain: Terrain
) -> None:
    """CoverageError where SNAP placed pixels at sea level because the DEM has no height."""
    strip = inner.window(rows.start, 0, rows.stop - rows.start, inner.width)
    covered = np.zeros(strip.shape, np.uint8)
    reproject(
        known,
        covered,
        src_transform=heights.transform,
        src_crs=heights.crs,
        dst_transform=strip.transform,
        dst_crs=strip.crs,
        resampling=Resampling.nearest,
    )
    if unknown := int(((covered == 0) & np.isfinite(power).any(axis=0)).sum()):
        raise CoverageError(
            f"DEM {terrain.name} has no height at {unknown} pixels that the scene sees in the area, between northings "
            f"{strip.bounds[1]:.0f} and {strip.top:.0f} m in {strip.crs}: expected a DEM that covers it without gaps"
        )
