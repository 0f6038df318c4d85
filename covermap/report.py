"""A map as one page: the map first, then what it is made of and how far to trust it. No request leaves the page."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from jinja2 import Environment
from PIL import Image, UnidentifiedImageError
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from covermap import __version__
from covermap.accuracy import AREAS_BASIS, class_areas
from covermap.area_settings import Masks, Period
from covermap.attribution import TAG
from covermap.errors import ProductError
from covermap.files import whole
from covermap.grid import Grid
from covermap.legend import Legend
from covermap.quality import SHARES, satellite_name
from covermap.quicklook import (
    OVER_BRIGHT,
    OVER_DARK,
    TRUE_COLOUR,
    draw_reflectance,
    round_below,
    scale_bar,
    tone_over,
)
from covermap.raster import grid_of
from covermap.scenes import moment, read_listing, sensor_of
from covermap.stack import open_stack
from covermap.styles import TRANSPARENT, colour_table, templates, title_of

if TYPE_CHECKING:
    import xarray as xr

SIDE_PIXELS = 1400  # longest side of a picture: sharp on a wide screen, and the page stays a few megabytes
STRIP_PIXELS = 512
NO_CLASS, NO_CONFIDENCE = 0, 255
# confidence from doubtful to sure: dark to light, evenly in lightness, distinct for colour-blind readers
CONFIDENCE_COLOURS = ("#3B0F4F", "#8C2369", "#D9505C", "#F7A072", "#FDF1C7")
SENSOR_NAMES = {"sentinel1": "Sentinel-1", "sentinel2": "Sentinel-2"}
TOLD_TAGS = {TAG, "AREA_OR_POINT", "covermap", "classes", "model", "period"}  # of a map: common, or told elsewhere
PACKAGES = ("numpy", "rasterio", "zarr", "torch", "snakemake")
CHART = {"width": 400, "height": 230, "left": 44, "right": 300, "top": 16, "bottom": 192}
LABEL_GAP = 15  # between the names at the ends of two lines of a chart
THUMBNAILS, THUMBNAIL_PIXELS, THUMBNAIL_QUALITY = 24, 200, 62  # of all scenes together; their longer side
STACKED = {"s2": "Sentinel-2", "s1": "Sentinel-1"}  # arrays of a stack
MODES = {"off": "off", "report": "shifts estimated, no scene moved", "correct": "trusted shifts undone"}
ADRIFT_PIXELS = 0.5  # scenes that lie further off are worth moving


def report(
    map: Path,
    confidence: Path,
    listing: Path,
    stacks: list[Path],
    report: Path,
    legend: Legend,
    area: str,
    period: Period,
    model: str,
    masks: Masks,
    notes: str = "",
    accuracy: Path | None = None,
    metrics: Path | None = None,
    training_log: Path | None = None,
    quality: list[Path] | None = None,
    quicklooks: list[Path] | None = None,
    unused: dict[str, str] | None = None,
    registration: str = "report",
    shoreline: Path | None = None,
    shoreline_chart: Path | None = None,
    threshold: float | None = None,
    survey: Path | None = None,
) -> None:
    """Step: one HTML page that works from disk and offline.

    Parameters
    ----------
    map, confidence : class map and its confidence [%].
    listing, stacks : scenes of the area; blocks of its stack, for the picture under the map, and for how often the
        ground was clear, where masks were overruled, and how the composites were made.
    report : the page.
    legend : names and colours of the classes.
    area, period, model : of the map, as the configuration names them.
    masks : of the area; when they were overruled.
    notes : a caution shown above the map.
    accuracy : of `covermap.accuracy.evaluate`; none: the page says that the map was not evaluated.
    metrics, training_log : of the training; none: no learning curves.
    quality, quicklooks : of ``check_scene``, for the scenes that stacks are made of or that are too cloudy for them;
        none: only the dates of the list.
    unused : why other scenes of the list were not used, by id.
    registration : ``correct`` where scenes were moved back by their shifts; ``report`` or ``off``.
    shoreline, shoreline_chart, threshold : of ``sweep_shoreline``, with the threshold in use; none: no such part.
    survey : of ``survey_split``: what training, validation and test hold; none: no such part.

    Raises
    ------
    ProductError
        A raster, a table or a picture cannot be read.
    """
    classes, doubt, grid, tags = _read_map(map, confidence)
    figures, training, split = _read_json(accuracy), _read_json(metrics), _read_json(survey)
    checked = [each for path in quality or [] if (each := _read_json(path))]
    reflectance, clear = survey_stacks(stacks, grid, math.ceil(max(grid.shape) / SIDE_PIXELS))
    page = (
        _with_filters(templates())
        .get_template("report.html.j2")
        .render(
            title=title_of(area),
            period=period,
            notes=notes,
            attribution=tags.get(TAG, ""),
            pictures={
                "classes": _palette_png(classes, colour_table(legend)),
                "confidence": _palette_png(doubt, confidence_table()),
                "composite": reflectance is not None and _jpeg(_ground(reflectance, classes)),
            },
            frame=_frame(grid),
            classes=_class_rows(legend, figures["areas_ha"] if figures else class_areas(map, legend)),
            areas_basis=AREAS_BASIS,
            ramp=CONFIDENCE_COLOURS,
            mean_confidence=_mean_confidence(doubt),
            figures=figures,
            tables=_matrices(figures, legend),
            names={entry.key: entry for entry in legend.classes},
            charts=_charts(training_log),
            training=training,
            clear=clear,
            overruled=_overruled(clear, grid, masks),
            shoreline=_shoreline(shoreline, shoreline_chart, threshold),
            split=split,
            leak=split["leaks"].get(area) if split else None,
            tracks=_tracks(
                read_listing(listing).values(),
                period,
                {each["scene"]: each for each in checked if not each["left_out"]},
            ),
            scenes=_scenes(checked, quicklooks or []),
            folder=quicklooks[0].parent.as_posix() if quicklooks else None,
            unused=unused or {},
            registration=registration,
            adrift=_adrift(checked) if registration == "report" else 0,
            facts=_facts(grid, legend, tags, model, training, [*_made(stacks), ("Registration", MODES[registration])]),
        )
    )
    with whole(report) as part:
        part.write_text(page, encoding="utf-8")


def _read_map(map: Path, confidence: Path) -> tuple[np.ndarray, np.ndarray, Grid, dict[str, str]]:
    """Classes and confidence as small pictures, and the map's grid and tags."""
    try:
        with rasterio.open(map) as raster:
            grid, tags = grid_of(raster), raster.tags()
        step = math.ceil(max(grid.shape) / SIDE_PIXELS)
        return _reduced(map, step, Resampling.mode), _reduced(confidence, step, Resampling.average), grid, tags
    except RasterioError as error:
        raise ProductError(f"{map} or {confidence} cannot be read ({error}): remove it and run again") from error


def _with_filters(environment: Environment) -> Environment:
    environment.filters |= {"percent": _percent, "points": _points, "satellite": satellite_name}
    return environment


def _percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}"


def _points(difference: float | None) -> str:
    """A difference of shares in percentage points, with its sign (a true minus)."""
    return "–" if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def _read_json(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ProductError(f"{path} cannot be read as JSON ({error}): remove it and run again") from error
    return data


# --- pictures


def _reduced(path: Path, step: int, resampling: Resampling) -> np.ndarray:
    """First band of a raster, one pixel for ``step`` x ``step``, out of the overviews where there are some."""
    with rasterio.open(path) as raster:
        shape = math.ceil(raster.height / step), math.ceil(raster.width / step)
        reduced: np.ndarray = raster.read(1, out_shape=shape, resampling=resampling)
    return reduced


def survey_stacks(
    stacks: Sequence[Path], grid: Grid, step: int
) -> tuple[np.ndarray | None, dict[str, float | int] | None]:
    """What Sentinel-2 saw of an area: a small picture's reflectance, and how often the ground was clear.

    Parameters
    ----------
    stacks : blocks on the lattice of ``grid``.
    grid : of the map.
    step : pixels of the map, a side, for one of the picture.

    Returns
    -------
    float32 (3, y, x), mean red, green and blue of the pixels with data, NaN where there are none, or None where no
    block has these bands; and ``median`` number of clear observations, the share ``never`` without one, and the number
    of pixels ``overruled``, where a step took masked observations, or None where no block has Sentinel-2.
    """
    shape = math.ceil(grid.height / step), math.ceil(grid.width / step)
    sums, counts = np.zeros((len(TRUE_COLOUR), *shape)), np.zeros(shape)
    observations, overruled = np.zeros(256, np.int64), 0
    for path in stacks:
        with open_stack(path) as stack:
            if "s2" not in stack:
                continue
            block = _stack_grid(stack, grid.crs)
            for part in _strips(block.cropped(grid.bounds)):
                row, column = part.offset_in(block)
                window = stack.isel(y=slice(row, row + part.height), x=slice(column, column + part.width))
                clear = window.clear.values.sum(axis=0, dtype=np.int64)
                observations += np.bincount(np.minimum(clear, 255).ravel(), minlength=256)
                overruled += int(window.unmasked.values.any(axis=0).sum())
                if set(TRUE_COLOUR) <= set(stack.band.values):
                    values = _median_of_dates(window.s2.sel(band=list(TRUE_COLOUR)).values)
                    _add_binned(values, *part.offset_in(grid), step, sums, counts)
    if not observations.any():
        return None, None
    share = observations.cumsum() / observations.sum()
    about = {"median": int(np.searchsorted(share, 0.5)), "never": float(share[0]), "overruled": overruled}
    if not counts.any():
        return None, about
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0).astype(np.float32), about


def _add_binned(values: np.ndarray, row: int, column: int, step: int, sums: np.ndarray, counts: np.ndarray) -> None:
    """Add pixels (band, y, x) of the map, NaN no data, from a row and column on, to the picture's pixels."""
    valid = np.isfinite(values).all(axis=0)
    to_rows, from_rows = _bins(row, row + values.shape[1], step)
    to_columns, from_columns = _bins(column, column + values.shape[2], step)
    sums[:, to_rows, to_columns] += _sum_bins(np.where(valid, values, 0), from_rows, from_columns)
    counts[to_rows, to_columns] += _sum_bins(valid, from_rows, from_columns)


def composites_of(stacks: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """How the composites ``s1`` and ``s2`` were made: attributes of the first block that has them.

    ``scenes`` are the ids of all blocks together, ``steps`` is the number of composites.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in stacks:
        with open_stack(path) as stack:
            for name in STACKED.keys() & stack.data_vars.keys():
                about = stack[name].attrs
                one = found.setdefault(name, {**about, "steps": len(stack[name]), "scenes": set()})
                one["scenes"] |= set(filter(None, about.get("scenes", "").split(",")))
    return found


def _stack_grid(stack: xr.Dataset, crs: str) -> Grid:
    """Grid of a stack by its pixel centres; all stacks of an area have the CRS of its map."""
    x, y = stack.x.values, stack.y.values
    pixel_m = float(x[1] - x[0])
    left, top = float(x[0]) - pixel_m / 2, float(y[0]) + pixel_m / 2
    return Grid(crs=crs, left=left, top=top, width=len(x), height=len(y), pixel_m=pixel_m)


def _strips(part: Grid | None) -> Iterator[Grid]:
    """Windows of at most STRIP_PIXELS rows, so that memory stays small; none of no part."""
    for row in range(0, part.height if part else 0, STRIP_PIXELS):
        if part:
            yield part.window(row, 0, min(STRIP_PIXELS, part.height - row), part.width)


def _median_of_dates(values: np.ndarray) -> np.ndarray:
    """Median (band, y, x) over the dates of (date, band, y, x), NaN = no data."""
    if len(values) == 1:
        return values[0]
    observed = np.ma.masked_invalid(values)
    return np.ma.median(observed, axis=0).filled(np.nan)


def _bins(start: int, stop: int, step: int) -> tuple[slice, np.ndarray]:
    """Picture pixels that map pixels start..stop-1 fall into, and where each of them begins within start..stop-1."""
    first, last = start // step, (stop - 1) // step
    return slice(first, last + 1), np.maximum(np.arange(first, last + 1) * step - start, 0)


def _sum_bins(values: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return np.add.reduceat(np.add.reduceat(values, rows, axis=-2), columns, axis=-1)


def confidence_table() -> dict[int, tuple[int, int, int, int]]:
    """Colours of confidence 0 to 100 %; transparent above."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in CONFIDENCE_COLOURS])
    at = np.linspace(0, 100, len(stops))
    bands = [np.rint(np.interp(np.arange(101), at, stops[:, channel])).astype(int).tolist() for channel in range(3)]
    table = dict.fromkeys(range(256), TRANSPARENT)
    table.update({value: (red, green, blue, 255) for value, (red, green, blue) in enumerate(zip(*bands, strict=True))})
    return table


def _mean_confidence(doubt: np.ndarray) -> float | None:
    mapped = doubt[doubt != NO_CONFIDENCE]
    return float(mapped.mean()) if mapped.size else None


def _ground(reflectance: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The picture under the map; hatched where nothing was seen clear, white beyond the area."""
    picture = draw_reflectance(reflectance)
    picture[np.isnan(reflectance).any(axis=0) & (classes == NO_CLASS)] = 255
    return picture


def _palette_png(values: np.ndarray, table: dict[int, tuple[int, int, int, int]]) -> str:
    return _data_url(values[None], "png", colours=table, ZLEVEL=9)


def _jpeg(picture: np.ndarray) -> str:
    return _data_url(picture.transpose(2, 0, 1), "jpeg", QUALITY=88)


def _data_url(
    bands: np.ndarray, kind: str, colours: dict[int, tuple[int, int, int, int]] | None = None, **options: int
) -> str:
    """A picture (band, y, x) in the page itself."""
    count, height, width = bands.shape
    profile = {"driver": kind.upper(), "count": count, "height": height, "width": width, "dtype": "uint8"}
    with warnings.catch_warnings(), rasterio.MemoryFile() as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture has no place on the ground
        with file.open(**profile, **options) as image:
            image.write(bands)
            if colours:
                image.write_colormap(1, colours)
        return f"data:image/{kind};base64,{base64.b64encode(file.read()).decode()}"


# --- the map's frame and legend


def _frame(grid: Grid) -> dict[str, Any]:
    """Shape of the map, its corners in degrees, and a scale bar of a round length up to a quarter of its width."""
    left, bottom, right, top = grid.bounds
    transformer = Transformer.from_crs(grid.crs, "EPSG:4326", always_xy=True)
    corners = {"nw": (left, top), "ne": (right, top), "sw": (left, bottom), "se": (right, bottom)}
    width_m = right - left
    length_m, length = scale_bar(width_m, 0.25)
    return {
        "width": grid.width,
        "height": grid.height,
        "corners": {name: _degrees(*transformer.transform(*corner)) for name, corner in corners.items()},
        "bar_percent": 100 * length_m / width_m,
        "bar": length,
    }


def _degrees(longitude: float, latitude: float) -> str:
    return f"{abs(latitude):.3f}° {'NS'[latitude < 0]}, {abs(longitude):.3f}° {'EW'[longitude < 0]}"


def _class_rows(legend: Legend, areas: dict[str, float]) -> list[dict[str, Any]]:
    total = sum(areas.values()) or 1
    return [
        {"name": entry.name, "colour": entry.colour, "ha": areas[entry.key], "share": areas[entry.key] / total}
        for entry in legend.classes
    ]


# --- figures


def _matrices(figures: dict[str, Any] | None, legend: Legend) -> list[dict[str, Any]]:
    """Confusion matrices of the map as tables: the classes that occur, and the share of each row in each column."""
    if figures is None:
        return []
    entries = {entry.key: entry for entry in legend.classes}
    tables = []
    for other in ("label", "reference"):
        counts = figures["confusion"].get(f"map_vs_{other}")
        if counts is None:
            continue
        matrix = np.array(counts)
        seen = np.flatnonzero(matrix.sum(0) + matrix.sum(1))
        part = matrix[np.ix_(seen, seen)]
        shares = part / np.maximum(part.sum(1, keepdims=True), 1)
        tables.append(
            {
                "against": other,
                "entries": [entries[figures["confusion"]["classes"][k]] for k in seen],
                "rows": [list(zip(*row, strict=True)) for row in zip(shares.tolist(), part.tolist(), strict=True)],
            }
        )
    return tables


def _charts(training_log: Path | None) -> list[dict[str, Any]]:
    """Learning curves as lines of an SVG."""
    if training_log is None:
        return []
    with open(training_log, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return []
    loss = {"training": "train_loss", "validation": "val_loss"}
    agreement = {"overall": "val_overall", "macro F1": "val_macro_f1"}
    try:
        epochs = [int(row["epoch"]) for row in rows]
        lines = [
            {name: [float(row[column] or "nan") for row in rows] for name, column in columns.items()}
            for columns in (loss, agreement)
        ]
    except (KeyError, ValueError) as error:
        raise ProductError(f"{training_log} is not a training log ({error}): remove it and run again") from error
    top = max((value for values in lines[0].values() for value in values if math.isfinite(value)), default=1.0)
    return [
        _chart("Loss", epochs, lines[0], _ticks(top)),
        _chart("Agreement with the label, validation cells", epochs, lines[1], [0, 0.25, 0.5, 0.75, 1]),
    ]


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to at least ``top``, three to seven of them."""
    step = round_below(max(top, 1e-9) / 2)
    return [k * step for k in range(math.ceil(top / step - 1e-9) + 1)]


def _chart(title: str, epochs: list[int], lines: dict[str, list[float]], ticks: list[float]) -> dict[str, Any]:
    across = (CHART["right"] - CHART["left"]) / max(epochs[-1] - epochs[0], 1)
    up = (CHART["bottom"] - CHART["top"]) / ticks[-1]

    def place(epoch: int, value: float) -> tuple[float, float]:
        return CHART["left"] + (epoch - epochs[0]) * across, CHART["bottom"] - value * up

    series: list[dict[str, Any]] = []
    for name, values in lines.items():
        points = [place(epoch, value) for epoch, value in zip(epochs, values, strict=True) if math.isfinite(value)]
        if points:
            last = next(value for value in reversed(values) if math.isfinite(value))
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            series.append({"name": name, "points": path, "end": points[-1], "label_y": points[-1][1], "last": last})
    for upper, lower in zip(ordered := sorted(series, key=lambda line: line["label_y"]), ordered[1:], strict=False):
        lower["label_y"] = max(lower["label_y"], upper["label_y"] + LABEL_GAP)
    return {
        **CHART,
        "title": title,
        "series": series,
        "y_ticks": [(f"{tick:g}", CHART["bottom"] - tick * up) for tick in ticks],
        "x_ticks": [(epoch, place(epoch, 0)[0]) for epoch in sorted({epochs[0], epochs[-1]})],
    }


# --- scenes and facts


def _tracks(items: Iterable[dict[str, Any]], period: Period, checked: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Scenes by sensor and date: number, mean cloud cover and the place within the period in per cent.

    ``shown`` is the share of the area that was seen and clear, by the figures of the ``checked`` scenes of that day;
    None where none was.
    """
    days = (period.end - period.start).days + 1
    by_date: dict[tuple[str, date], list[dict[str, Any]]] = defaultdict(list)
    shown: dict[tuple[str, date], list[float]] = defaultdict(list)
    for item in items:
        at = sensor_of(item), moment(item).date()
        by_date[at].append(item["properties"])
        if item["id"] in checked:
            shares = checked[item["id"]]["shares"]
            shown[at].append(shares.get("clear", 1 - shares["no_data"]))
    sensors: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (sensor, day), scenes in sorted(by_date.items()):
        clouds = [scene["eo:cloud_cover"] for scene in scenes if scene.get("eo:cloud_cover") is not None]
        sensors[SENSOR_NAMES[sensor]].append(
            {
                "day": day,
                "scenes": len(scenes),
                "platforms": ", ".join(sorted({str(scene.get("platform", "–")) for scene in scenes})),
                "cloud": sum(clouds) / len(clouds) if clouds else None,
                "shown": min(sum(shown[sensor, day]), 1) if shown[sensor, day] else None,
                "at": 100 * ((day - period.start).days + 0.5) / days,
            }
        )
    starts = [max(date.fromisoformat(f"{month}-01"), period.start) for month in period.months]
    every = math.ceil(len(starts) / 12)
    return {
        "sensors": dict(sensors),
        "months": [
            {"name": month, "at": 100 * (start - period.start).days / days}
            for month, start in list(zip(period.months, starts, strict=True))[::every]
        ],
    }


def _scenes(checked: Sequence[dict[str, Any]], quicklooks: Sequence[Path]) -> list[dict[str, Any]]:
    """Figures of the scenes of each sensor in order of time, and small pictures of some of them."""
    pictures = {path.stem: path for path in quicklooks}
    rows = sorted((each | {"moved": _moved(each)} for each in checked), key=lambda each: each["datetime"])
    sensors = {name: [each for each in rows if each["sensor"] == name] for name in ("sentinel2", "sentinel1")}
    places = _places(*map(len, sensors.values()))
    return [
        {
            "sensor": sensor,
            "name": SENSOR_NAMES[sensor],
            "rows": scenes,
            "thumbnails": [
                each | _thumbnail(pictures[each["scene"]], each["picture_box"]) for each in _evenly(scenes, most)
            ],
            "two_sided": len({each.get("orbit_state") for each in scenes}) > 1,
            "tones": [
                (name, *("#{:02x}{:02x}{:02x}".format(*tone_over(name, grey)) for grey in (OVER_DARK, OVER_BRIGHT)))
                for name in SHARES[2:]
                if any(each["shares"].get(name) for each in scenes)
            ],
        }
        for (sensor, scenes), most in zip(sensors.items(), places, strict=True)
        if scenes
    ]


def _places(optical: int, radar: int) -> tuple[int, int]:
    """How many small pictures each sensor has: two thirds and one third, and what the other leaves."""
    of_optical = max(2 * THUMBNAILS // 3, THUMBNAILS - radar)
    return of_optical, THUMBNAILS - min(optical, of_optical)


def _adrift(checked: Sequence[dict[str, Any]]) -> int:
    """Number of scenes that surely lie off by more than ADRIFT_PIXELS."""
    shifts = [each["shift"] for each in checked if each["shift"] and each["shift"]["trusted"]]
    return sum(math.hypot(shift["right_pixels"], shift["down_pixels"]) > ADRIFT_PIXELS for shift in shifts)


def _overruled(clear: Mapping[str, float | int] | None, grid: Grid, masks: Masks) -> dict[str, Any] | None:
    """Pixels whose masks were overruled, their share of the area, and how few observations all were masked then."""
    if not clear or not clear["overruled"]:
        return None
    pixels, most = clear["overruled"], math.floor(100 / (100 - masks.unmask_above))
    few = f"{masks.unmask_from} to {most}" if masks.unmask_from < most else str(most)
    return {
        "pixels": pixels,
        "share": pixels / (grid.width * grid.height),
        "above": masks.unmask_above,
        "few": few if masks.unmask_from <= most else None,
    }


def _shoreline(table: Path | None, chart: Path | None, threshold: float | None) -> dict[str, Any] | None:
    """What the threshold in use leaves out, and the chart as a picture in the page itself."""
    if table is None or chart is None or threshold is None:
        return None
    try:
        with open(table, newline="", encoding="utf-8") as file:
            row = next(row for row in csv.DictReader(file) if row["threshold"] == f"{threshold:g}")
        figures = {name: float(row[name]) for name in ("excluded_ha", "water_ha", "share_of_water")}
        drawing = base64.b64encode(chart.read_bytes()).decode()
    except (OSError, KeyError, ValueError, StopIteration) as error:
        raise ProductError(f"{table} or {chart} cannot be read ({error!r}): remove both and run again") from error
    return {"threshold": f"{threshold:g}".replace("-", "−"), "chart": f"data:image/svg+xml;base64,{drawing}", **figures}


def _moved(figures: dict[str, Any]) -> dict[str, Any] | None:
    """A scene's shift as written in the table."""
    shift = figures["shift"]
    if shift is None:
        return None
    right, down = shift["right_pixels"], shift["down_pixels"]
    return {
        "right": f"{right:+.2f}".replace("-", "−"),
        "down": f"{down:+.2f}".replace("-", "−"),
        "metres": f"{math.hypot(right, down) * figures['pixel_m']:.1f}",
        "trusted": shift["trusted"],
    }


def _evenly(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many of them, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (most - 1))] for index in range(most)]


def _thumbnail(path: Path, box: Sequence[int]) -> dict[str, Any]:
    """A scene's picture made small, without the lines under it: ``picture``, its ``width`` and ``height`` [px]."""
    try:
        with Image.open(path) as sheet:
            small = sheet.convert("RGB").crop((box[0], box[1], box[2], box[3]))
    except (OSError, UnidentifiedImageError) as error:
        raise ProductError(f"{path} cannot be read as a picture ({error}): remove it and run again") from error
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), reducing_gap=3)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=THUMBNAIL_QUALITY)
    picture = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"picture": picture, "width": small.width, "height": small.height}


def _made(stacks: Sequence[Path]) -> list[tuple[str, str]]:
    """How the stacks were made, in words."""
    composites = composites_of(stacks)
    made = []
    if "s2" in composites:
        made.append(("Sentinel-2", _optical_composite(composites["s2"])))
        made.append(("Sentinel-2 masks", composites["s2"]["masks"]))
    if "s1" in composites:
        made.append(("Sentinel-1", _radar_composite(composites["s1"])))
    used = [f"{len(composites[name]['scenes'])} {sensor}" for name, sensor in STACKED.items() if name in composites]
    return [*made, ("Scenes in use", ", ".join(used))] if made else made


def _optical_composite(about: Mapping[str, Any]) -> str:
    levels = {"L2A": "Level-2A, surface reflectance", "L1C": "Level-1C, top of atmosphere"}
    steps = f"{about['method']} by {about['every']}, {about['steps']} {'step' if about['steps'] == 1 else 'steps'}"
    season = f"season {about['season']}" if "season" in about else None
    gaps = "gaps left" if about["fill"] == "none" else f"gaps filled: {about['fill']}"
    return "; ".join(filter(None, [levels.get(about.get("level", "")), steps, season, gaps]))


def _radar_composite(about: Mapping[str, Any]) -> str:
    sides = {"apart": "orbit directions apart", "together": "orbit directions mixed"}.get(about["directions"])
    return "; ".join(filter(None, [about.get("convention"), f"{about['method']} by month", sides]))


def _facts(
    grid: Grid,
    legend: Legend,
    tags: Mapping[str, str],
    model: str,
    training: Mapping[str, Any] | None,
    made: Sequence[tuple[str, str]],
) -> list[tuple[str, str]]:
    facts = [
        ("Grid", f"{grid.crs}, {grid.width:,} × {grid.height:,} pixels of {grid.pixel_m:g} m"),
        *made,
        ("Model", model),
    ]
    if training:
        facts.append(("Parameters of the model", f"{training['parameters']:,}"))
        facts.append(("Best epoch", str(training["best_epoch"])))
    facts.append(("Values of the map", ", ".join(f"{entry.id} {entry.name}" for entry in legend.classes)))
    facts += [(f"Map: {key}", value) for key, value in sorted(tags.items()) if key not in TOLD_TAGS]
    return [*facts, ("Software", ", ".join([f"covermap {__version__}", *filter(None, map(_version, PACKAGES))]))]


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None
