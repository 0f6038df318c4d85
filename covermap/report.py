"""A map as one page: the map first, then what it is made of and how far to trust it. No request leaves the page."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, UnidentifiedImageError
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from covermap import __version__
from covermap.accuracy import AREAS_BASIS, class_areas
from covermap.errors import ProductError
from covermap.files import whole
from covermap.grid import Grid
from covermap.legend import Legend
from covermap.quality import KINDS, satellite_name
from covermap.quicklook import TONES
from covermap.raster import grid_of
from covermap.scenes import moment, read_listing, sensor_of
from covermap.settings import Period
from covermap.stack import open_stack
from covermap.styles import TRANSPARENT, colour_table, render_reflectance

if TYPE_CHECKING:
    import xarray as xr

SIDE_PIXELS = 1400  # longest side of a picture: sharp on a wide screen, and the page stays a few megabytes
STRIP_PIXELS = 512
TRUE_COLOUR = ("B04", "B03", "B02")
NO_CONFIDENCE = 255
# confidence from doubtful to sure: dark to light, evenly in lightness, distinct for colour-blind readers
CONFIDENCE_COLOURS = ("#3B0F4F", "#8C2369", "#D9505C", "#F7A072", "#FDF1C7")
SENSOR_NAMES = {"sentinel1": "Sentinel-1", "sentinel2": "Sentinel-2"}
COMMON_TAGS = {"AREA_OR_POINT", "covermap"}
PACKAGES = ("numpy", "rasterio", "zarr", "torch", "snakemake")
CHART = {"width": 400, "height": 230, "left": 44, "right": 300, "top": 16, "bottom": 192}
LABEL_GAP = 15  # between the names at the ends of two lines of a chart
THUMBNAILS, THUMBNAIL_PIXELS, THUMBNAIL_QUALITY = 24, 200, 62  # of all scenes together; their longer side


def report(
    map: Path,
    confidence: Path,
    listing: Path,
    stacks: list[Path],
    report: Path,
    legend: Legend,
    title: str,
    period: Period,
    model: str,
    attribution: str,
    notes: str = "",
    accuracy: Path | None = None,
    metrics: Path | None = None,
    training_log: Path | None = None,
    quality: list[Path] | None = None,
    quicklooks: list[Path] | None = None,
    unused: dict[str, str] | None = None,
    corrected: bool = False,
) -> None:
    """Step: one HTML page that works from disk and offline.

    Parameters
    ----------
    map, confidence : class map and its confidence [%].
    listing, stacks : scenes of the area; blocks of its stack, for the picture under the map.
    report : the page.
    legend : names and colours of the classes.
    title, period, model : of the map, as shown.
    attribution : whose data the map contains.
    notes : a caution shown above the map.
    accuracy : of `covermap.accuracy.evaluate`; none: the page says that the map was not evaluated.
    metrics, training_log : of the training; none: no learning curves.
    quality, quicklooks : of ``check_scene``, for the scenes that were used, in one order; none: only their dates.
    unused : why other scenes of the list were not used, by id.
    corrected : whether scenes were moved back by their shifts.

    Raises
    ------
    ProductError
        A raster or a table cannot be read.
    """
    try:
        with rasterio.open(map) as raster:
            grid, tags = grid_of(raster), raster.tags()
        step = math.ceil(max(grid.shape) / SIDE_PIXELS)
        classes = _reduced(map, step, Resampling.mode)
        doubt = _reduced(confidence, step, Resampling.average)
    except RasterioError as error:
        raise ProductError(f"{map} or {confidence} cannot be read ({error}): remove it and run again") from error
    figures = _read_json(accuracy)
    training = _read_json(metrics)
    checked = [each for each in (_read_json(path) for path in quality or []) if each]
    reflectance, clear = survey_stacks(stacks, grid, step)
    areas = figures["areas_ha"] if figures else class_areas(map, legend)
    template = _environment().get_template("report.html.j2")
    page = template.render(
        title=title,
        period=period,
        model=model,
        notes=notes,
        attribution=attribution,
        pictures={
            "classes": _palette_png(classes, colour_table(legend)),
            "confidence": _palette_png(doubt, confidence_table()),
            "composite": None if reflectance is None else _jpeg(render_reflectance(*reflectance)),
        },
        frame=_frame(grid),
        classes=_class_rows(legend, areas),
        areas_basis=AREAS_BASIS,
        ramp=CONFIDENCE_COLOURS,
        mean_confidence=float(doubt[doubt != NO_CONFIDENCE].mean()) if (doubt != NO_CONFIDENCE).any() else None,
        figures=figures,
        tables=_matrices(figures, legend),
        names={entry.key: entry for entry in legend.classes},
        charts=_charts(training_log),
        training=training,
        clear=clear,
        tracks=_tracks(
            list(read_listing(listing).values()),
            period,
            {each["scene"]: each for each in checked if not each["left_out"]},
        ),
        tones={kind: "#{:02x}{:02x}{:02x}".format(*TONES[kind]) for kind in KINDS},
        scenes=_scenes(checked, quicklooks or []),
        unused=unused or {},
        corrected=corrected,
        facts=_facts(grid, tags, model, training),
    )
    with whole(report) as part:
        part.write_text(page, encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("covermap"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
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
    float32 (3, y, x), mean red, green and blue of the pixels with data, NaN where there are none; and ``median`` number
    of clear observations with the share ``never``. None and None where no block has these bands.
    """
    shape = math.ceil(grid.height / step), math.ceil(grid.width / step)
    sums, counts = np.zeros((len(TRUE_COLOUR), *shape)), np.zeros(shape)
    observations = np.zeros(256, np.int64)
    for path in stacks:
        with open_stack(path) as stack:
            if "s2" not in stack or not set(TRUE_COLOUR) <= set(stack.band.values):
                continue
            block = _stack_grid(stack, grid.crs)
            for part in _strips(block.cropped(grid.bounds)):
                row, column = part.offset_in(block)
                place = {"y": slice(row, row + part.height), "x": slice(column, column + part.width)}
                values = _median_of_dates(stack.s2.sel(band=list(TRUE_COLOUR)).isel(place).values)
                clear = stack.clear.isel(place).values.sum(axis=0, dtype=np.int64)
                observations += np.bincount(np.minimum(clear, 255).ravel(), minlength=256)
                valid = np.isfinite(values).all(axis=0)
                row, column = part.offset_in(grid)
                to_rows, from_rows = _bins(row, row + part.height, step)
                to_columns, from_columns = _bins(column, column + part.width, step)
                sums[:, to_rows, to_columns] += _sum_bins(np.where(valid, values, 0), from_rows, from_columns)
                counts[to_rows, to_columns] += _sum_bins(valid, from_rows, from_columns)
    if not observations.any():
        return None, None
    share = observations.cumsum() / observations.sum()
    mean = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return mean.astype(np.float32), {"median": int(np.searchsorted(share, 0.5)), "never": float(share[0])}


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
    length_m = _round_below(width_m / 4)
    return {
        "width": grid.width,
        "height": grid.height,
        "corners": {name: _degrees(*transformer.transform(*corner)) for name, corner in corners.items()},
        "bar_percent": 100 * length_m / width_m,
        "bar": f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m",
    }


def _round_below(value: float) -> float:
    """Greatest of 1, 2 and 5 times a power of ten that does not exceed ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= value * (1 + 1e-9))


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
    step = _round_below(max(top, 1e-9) / 2)
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


def _tracks(items: list[dict[str, Any]], period: Period, checked: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
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
    told = sorted((each | {"moved": _moved(each)} for each in checked), key=lambda each: each["datetime"])
    sensors = {name: [each for each in told if each["sensor"] == name] for name in ("sentinel2", "sentinel1")}
    most = {"sentinel2": 2 * THUMBNAILS // 3, "sentinel1": THUMBNAILS // 3} if all(sensors.values()) else {}
    return [
        {
            "sensor": sensor,
            "name": SENSOR_NAMES[sensor],
            "rows": rows,
            "thumbnails": [
                each | {"picture": _thumbnail(pictures[each["scene"]], each["picture_pixels"])}
                for each in _evenly(rows, most.get(sensor, THUMBNAILS))
            ],
        }
        for sensor, rows in sensors.items()
        if rows
    ]


def _moved(figures: dict[str, Any]) -> dict[str, Any] | None:
    """A scene's shift as told in the table."""
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


def _thumbnail(path: Path, size: Sequence[int]) -> str:
    """A scene's picture made small, without the lines under it."""
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB").crop((0, 0, size[0], size[1]))
    except (OSError, UnidentifiedImageError) as error:
        raise ProductError(f"{path} cannot be read as a picture ({error}): remove it and run again") from error
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), reducing_gap=3)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=THUMBNAIL_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _facts(grid: Grid, tags: dict[str, str], model: str, training: dict[str, Any] | None) -> list[tuple[str, str]]:
    facts = [
        ("Grid", f"{grid.crs}, {grid.width:,} × {grid.height:,} pixels of {grid.pixel_m:g} m"),
        ("Model", model),
    ]
    if training:
        facts.append(("Parameters of the model", f"{training['parameters']:,}"))
        facts.append(("Best epoch", str(training["best_epoch"])))
    facts += [(f"Map: {key}", value) for key, value in sorted(tags.items()) if key not in COMMON_TAGS]
    return [*facts, ("Software", ", ".join([f"covermap {__version__}", *filter(None, map(_version, PACKAGES))]))]


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None
