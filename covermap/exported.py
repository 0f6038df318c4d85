"""A model that was exported: what its card says, and maps by it of any raster that has its bands.

It needs neither weights nor settings of a workflow: the ONNX file has the network, its normalisation and its card.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import rasterio
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.windows import Window
from torch import Tensor

from covermap.attribution import TAG
from covermap.blend import COLUMNS, CONFIDENCE_NODATA, Region, blended, finished
from covermap.errors import CoverageError, CovermapError, ModelError, ProductError, RoomError, SettingError
from covermap.files import whole
from covermap.grid import Grid, projected
from covermap.inputs import (
    CHANNELS,
    DAY,
    DTYPE,
    NODATA,
    STEPS,
    Meaning,
    chosen_steps,
    meaning_of,
    must_mean,
    seen_steps,
)
from covermap.legend import NO_LABEL, Legend, LegendClass
from covermap.model_settings import Prediction
from covermap.predict import PACKED, region_of, regrouped, write_part
from covermap.raster import TILE, grid_of, new_raster
from covermap.room import room_for
from covermap.section import first_sentence
from covermap.stack import ROWS, open_stack, read_stack
from covermap.styles import colour_table, write_attributes

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

log = logging.getLogger(__name__)

CARD = "covermap"  # of the metadata of an ONNX file, the part that is ours
IMAGE, PROBABILITIES = "image", "probabilities"  # input and output of the graph
PIXEL_TOLERANCE = 1e-3  # share of a pixel's side
LARGEST_BYTES = 2**31  # of a protobuf
UNITS = {"s1": "0.01 dB", "s2": "reflectance of 0.0001", "terrain": "as in the stack"}
DAYS_UNIT = "0 where the step has no value of its own, else the day of the year"
EXTRA = ("onnx", "onnxscript", "onnxruntime")  # packages of the extra "export"
NOT_TEXT = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]"  # what XML cannot hold, or a terminal obeys
COLOUR = r"#[0-9A-Fa-f]{6}"
LONGEST = 200  # letters of a name
ROUNDING = 1e-3  # by which a probability may leave 0 to 1
SHOWN = 300  # letters of somebody else's message in ours


def _plain(value: str) -> str:
    if re.search(NOT_TEXT, value):
        raise ValueError("expected text without control characters and halves of characters")
    return value


def _showable(entry: LegendClass) -> LegendClass:
    if not re.fullmatch(COLOUR, entry.colour):
        raise ValueError(f"colour: expected #RRGGBB (got {entry.colour!r})")
    for text in map(_plain, (entry.key, entry.name)):
        if not 0 < len(text) <= LONGEST:
            raise ValueError(f"name: expected 1 to {LONGEST} letters (got {len(text)})")
    return entry


Text = Annotated[str, AfterValidator(_plain)]
Name = Annotated[Text, Field(max_length=LONGEST)]
Count = Annotated[int, Field(ge=1, le=4096)]


class Band(BaseModel):
    """A channel of the image that a model takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    input: Literal["s1", "s2", "terrain", "day"]
    unit: Name
    nodata: int


class Card(BaseModel):
    """What is to be known of an exported model, as JSON in its ONNX file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    covermap: Name = Field(description="version that exported it")
    bands: tuple[Band, ...] = Field(min_length=1, max_length=4096)
    shapes: dict[str, tuple[Count, Count]]  # steps and bands of each input
    meaning: dict[Name, dict[Name, list[Name]]]
    classes: tuple[Annotated[LegendClass, AfterValidator(_showable)], ...] = Field(min_length=1, max_length=254)
    pixel_m: float = Field(gt=0, lt=10_000)
    window_pixels: int = Field(gt=0, le=8192)
    multiple: int = Field(gt=0, le=8192)  # what a side of another window must be a multiple of
    any_window: bool
    overlap: float = Field(ge=0, lt=1)
    blend: Literal["hann", "none", "centre"]
    symmetries: bool
    attribution: Text = Field(max_length=10_000)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if [entry.id for entry in self.classes] != [*range(1, len(self.classes) + 1)]:
            raise ValueError("its classes have other ids than 1, 2, 3 and so on")
        if not {*self.shapes} <= {*NODATA}:
            raise ValueError(f"it has other inputs than {', '.join(NODATA)}")
        days = sum(band.input == DAY for band in self.bands)
        if len(self.bands) != days + sum(steps * bands for steps, bands in self.shapes.values()):
            raise ValueError("it has other bands than its inputs have")
        for key, (_, bands) in self.shapes.items():
            if len(self.meaning.get(key, {}).get(CHANNELS[key], [])) != bands:
                raise ValueError(f"its {CHANNELS[key]}s of {key} have other names than it has bands")
        return self

    @property
    def legend(self) -> Legend:
        """Its classes, without codes of a source."""
        return Legend(classes=self.classes, codes={})


def bands_of(shapes: dict[str, tuple[int, int]], meaning: Meaning, days: bool) -> list[Band]:
    """Channels of the image that a model takes: input by input, step by step, band by band, then the days.

    Parameters
    ----------
    shapes : steps and bands of each input.
    meaning : names of its steps and bands.
    days : whether the days of the steps of s2 are needed too, since gaps were filled.
    """
    bands = []
    for key, (steps, channels) in shapes.items():
        names = meaning[key][CHANNELS[key]]
        bands += [
            Band(name=f"{key}{step} {names[channel]}", input=key, unit=UNITS[key], nodata=NODATA[key])
            for step in _steps(key, steps, meaning)
            for channel in range(channels)
        ]
    if days:
        names = _steps("s2", shapes["s2"][0], meaning)
        bands += [Band(name=f"s2{step} {DAY}", input=DAY, unit=DAYS_UNIT, nodata=0) for step in names]
    return bands


def _steps(key: str, number: int, meaning: Meaning) -> list[str]:
    """Names of the steps, with a blank before; terrain has one, which needs none."""
    if key not in STEPS:
        return [""]
    names = meaning[key].get(STEPS[key], [])
    return [f" {name}" for name in (names if len(names) == number else range(1, number + 1))]


def must_have(packages: Sequence[str]) -> None:
    """Refuse to begin without packages of the extra ``export``.

    Raises
    ------
    SettingError
        One of them is not installed.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise SettingError(f"{' and '.join(missing)} is not installed: pip install 'covermap[export]'")


def read_exported(model: Path) -> tuple[ModelProto, Card]:
    """The graph and the card of an exported model.

    The file may be anybody's: a graph of ONNX runs no code, and one that refers to other files is refused.

    Raises
    ------
    ModelError
        The file is missing, is no ONNX file, refers to other files, or was not exported by covermap.
    SettingError
        The package onnx is not installed.
    """
    must_have(["onnx"])
    import onnx

    wanted = "give the .onnx file that rule export_model wrote"
    if not model.is_file():
        raise ModelError(f"model {model} does not exist: {wanted}")
    if model.stat().st_size > LARGEST_BYTES:
        raise ModelError(f"model {model} has more than {LARGEST_BYTES >> 30} GiB, more than an ONNX file can: {wanted}")
    try:
        proto = onnx.load_model(str(model), format="protobuf", load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds, which differ with its version
        raise ModelError(f"model {model} is no ONNX file: {wanted}") from error
    if _refers_to_files(proto):
        raise ModelError(f"model {model} refers to other files for its weights, which covermap does not read: {wanted}")
    told = {entry.key: entry.value for entry in proto.metadata_props}
    if CARD not in told:
        raise ModelError(f"model {model} was not exported by covermap: {wanted}")
    try:
        card = Card(**json.loads(told[CARD]))
    except (ValueError, TypeError, RecursionError) as error:
        fault = first_sentence(error) if isinstance(error, ValidationError) else str(error)
        raise ModelError(f"model {model} has a card that cannot be read ({fault[:SHOWN]}): {wanted}") from None
    _must_fit_its_card(model, proto, card)
    return proto, card


def _refers_to_files(proto: ModelProto) -> bool:
    """Whether a tensor anywhere in the graph lies in a file of its own."""
    from onnx import TensorProto

    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(proto))


def _tensors(message: Any) -> Iterator[Any]:
    """Every tensor within a message, however deep; the depth is that which protobuf lets through."""
    from onnx import TensorProto

    waiting = [message]
    while waiting:
        one = waiting.pop()
        if isinstance(one, TensorProto):
            yield one
            continue
        for field, value in one.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if hasattr(value, "ListFields") else value)


def _must_fit_its_card(model: Path, proto: ModelProto, card: Card) -> None:
    side = card.window_pixels
    wanted = [(IMAGE, [len(card.bands), side, side]), (PROBABILITIES, [1 + len(card.classes), side, side])]
    if [_declared(value) for value in (*proto.graph.input, *proto.graph.output)] != wanted:
        raise ModelError(
            f"model {model} does not take the bands and windows or give the classes of its card: export it again"
        )


def _declared(value: Any) -> tuple[str, list[int]]:
    """Name and size, but for the number of windows, of an input or output; nothing where it is not of float32."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    sizes = [dim.dim_value for dim in tensor.shape.dim][1:]
    return value.name, sizes if tensor.elem_type == TensorProto.FLOAT else []


def _days(card: Card) -> list[Band]:
    return [band for band in card.bands if band.input == DAY]


def new_session(proto: ModelProto, window: int | None, threads: int) -> InferenceSession:
    """A graph ready to run, for windows of another side than it was exported for where one is given."""
    import onnxruntime

    if window is not None:
        for value in (*proto.graph.input, *proto.graph.output):
            for dim in value.type.tensor_type.shape.dim[2:]:
                dim.dim_value = window
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=providers)


def _runnable(model: Path, proto: ModelProto, window: int | None, threads: int) -> InferenceSession:
    try:
        return new_session(proto, window, threads)
    except Exception as error:  # onnxruntime raises its own kinds
        raise _cannot_run(model, error) from None


def _cannot_run(model: Path, error: Exception) -> ModelError:
    fault = " ".join(str(error).split())[:SHOWN]
    return ModelError(f"model {model} cannot be run ({fault}): export it again, or take another version of onnxruntime")


def score_exported(session: InferenceSession, model: Path, card: Card, batch: dict[str, Tensor]) -> Tensor:
    """Class probabilities float32 (B, K, y, x) from the integers (B, T, C, y, x) of each input.

    Raises
    ------
    ModelError
        The graph of ``model`` cannot be run, or gives what are no probabilities.
    """
    layers = [batch[key].flatten(1, 2).float() for key in card.shapes]
    if DAY in batch:
        layers.append(batch[DAY].float())
    image = torch.cat(layers, 1).cpu().numpy()
    try:
        probabilities = session.run([PROBABILITIES], {IMAGE: image})[0]
    except Exception as error:  # onnxruntime raises its own kinds
        raise _cannot_run(model, error) from None
    wanted = (len(image), 1 + len(card.classes), *image.shape[2:])
    if probabilities.shape != wanted:
        raise ModelError(f"model {model} gives {probabilities.shape} for {wanted}: export it again")
    if not (probabilities.min() >= -ROUNDING and probabilities.max() <= 1 + ROUNDING):  # nor not a number
        raise ModelError(f"model {model} gives numbers that are no probabilities from 0 to 1: export it again")
    return torch.from_numpy(probabilities[:, 1:])  # the first is where there is no data


def predict_raster(
    model: Path,
    raster: Path,
    output: Path,
    confidence: Path | None = None,
    *,
    window_pixels: int | None = None,
    overlap: float | None = None,
    batch: int = 4,
    threads: int = 1,
) -> None:
    """Map a raster that has the bands of an exported model; memory does not grow with the raster.

    Parameters
    ----------
    model : ONNX file of rule export_model.
    raster : what GDAL reads, north up, in metres, with pixels as the model's. Its bands are found by their names,
        where they have those of the model, else they are taken as they lie.
    output : GeoTIFF of class ids, 0 without data, with palette and names.
    confidence : GeoTIFF in per cent, 255 without data; none: not written.
    window_pixels, overlap : pixels seen at once, a side, and the share that two windows have in common; none: as the
        model was exported.
    batch : windows at once.
    threads : of the CPU.

    Raises
    ------
    ModelError
        The model cannot be used, or not with such windows.
    ProductError
        The raster is missing or broken.
    SettingError
        The raster has other bands or pixels than the model, one file has two parts to play, or a package is missing.
    CoverageError
        The raster has no data at all.
    RoomError
        The disk is full, or the maps cannot be written where they shall be.
    """
    must_have(["onnx", "onnxruntime"])
    table = output.with_name(f"{output.name}.aux.xml")
    made = [output, table] if confidence is None else [output, table, confidence]
    _must_be_apart([model, raster], made)
    proto, card = read_exported(model)
    settings = _windows(card, window_pixels, overlap, batch, threads)
    torch.set_num_threads(threads)
    session = _runnable(model, proto, settings.window_pixels if card.any_window else None, threads)
    score = partial(score_exported, session, model, card)
    counts = np.zeros(256, np.int64)
    with ExitStack() as files:
        source = files.enter_context(_opened(raster))
        grid, bands = _checked(raster, source, card), _order(raster, source, card)
        _must_be_writable(made)
        files.enter_context(room_for(output, PACKED * grid.width * grid.height))
        draft = files.enter_context(whole(table))  # takes its name after the maps, but is there before they do
        maps = [files.enter_context(_class_map(output, grid, card))]
        if confidence is not None:
            files.enter_context(room_for(confidence, PACKED * grid.width * grid.height))
            maps.append(files.enter_context(_confidence_map(confidence, grid, card)))
        for row, column, layers in _mapped(score, partial(_read, raster, source, bands), grid, card, settings):
            for number, each in enumerate(maps):
                write_part(each, row, column, layers[number : number + 1])
            counts += np.bincount(layers[0].ravel(), minlength=256)
        if not counts[1:].any():
            raise CoverageError(f"{raster} has no pixel with data: check its values, its no data and its bands")
        write_attributes(draft, card.legend, counts, grid.pixel_m)
    log.info("%d of %d pixels mapped", counts[1:].sum(), grid.width * grid.height)


def _must_be_apart(sources: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Refuse to write over what is read, or over what is written, under whatever name."""
    taken = {*map(os.path.realpath, sources)}
    for output in outputs:
        place = os.path.realpath(output)
        if place in taken:
            raise SettingError(f"{output} is to be written, but is read or written under that name too: give another")
        taken.add(place)


def _must_be_writable(outputs: Sequence[Path]) -> None:
    """Tell before a long job that its outputs have no place."""
    for output in outputs:
        try:
            if output.is_dir():
                raise IsADirectoryError(0, "there is a folder of that name")
            output.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=output.parent):
                continue
        except OSError as error:
            fault = error.strerror or error
            raise RoomError(f"{output} cannot be written ({fault}): give the name of a file where you may") from None


def _windows(card: Card, window_pixels: int | None, overlap: float | None, batch: int, threads: int) -> Prediction:
    window = card.window_pixels if window_pixels is None else window_pixels
    if window != card.window_pixels and not card.any_window:
        raise ModelError(f"the window is {window} px, but the model takes {card.window_pixels} px alone: leave it out")
    if window % card.multiple:
        raise ModelError(f"the window is {window} px: expected a multiple of {card.multiple}")
    share = card.overlap if overlap is None else overlap
    blend = "none" if share == 0 else card.blend
    try:
        return Prediction(
            window_pixels=window,
            overlap=share,
            blend=blend,
            symmetries=card.symmetries,
            batch=batch,
            threads=threads,
        )
    except ValidationError as error:
        raise SettingError(first_sentence(error)) from None


def _opened(raster: Path) -> DatasetReader:
    if not raster.exists():
        raise ProductError(f"raster {raster} does not exist: check its name")
    try:
        return rasterio.open(raster)
    except RasterioError as error:
        raise ProductError(f"raster {raster} cannot be read ({error}): give a file that GDAL reads") from None


def _checked(raster: Path, source: DatasetReader, card: Card) -> Grid:
    """Grid of a raster that the model can see."""
    if source.crs is None:
        raise SettingError(f"raster {raster} has no CRS: assign one")
    projected(source.crs.to_string())
    transform = source.transform
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0:
        raise SettingError(f"raster {raster} is rotated or upside down: warp it north up, such as with gdalwarp")
    for side_m in (transform.a, -transform.e):
        if not math.isclose(side_m, card.pixel_m, rel_tol=PIXEL_TOLERANCE):
            raise SettingError(
                f"raster {raster} has pixels of {transform.a:g} x {-transform.e:g} m, the model learned from "
                f"{card.pixel_m:g} m: warp it to that, such as with gdalwarp -tr"
            )
    return grid_of(source)


def _order(raster: Path, source: DatasetReader, card: Card) -> list[int]:
    """Numbers, from 1, of the raster's bands in the order of the model's."""
    names, wanted = list(source.descriptions), [band.name for band in card.bands]
    known = [name for name in wanted if name in names]
    if not known and source.count == len(wanted):
        return list(source.indexes)
    if missing := [name for name in wanted if name not in names]:
        raise SettingError(
            f"raster {raster} has {source.count} bands, of which {len(known)} bear names of the model, but it needs "
            f"{len(wanted)}, such as {missing[0]!r}, which is missing: give them all, named so or in its order"
        )
    return [names.index(name) + 1 for name in wanted]


@contextmanager
def _class_map(output: Path, grid: Grid, card: Card) -> Iterator[DatasetWriter]:
    names = {entry.id: entry.name for entry in card.classes}
    tags = {**_attributed(card), "classes": json.dumps(names, ensure_ascii=False)}
    given: dict[str, Any] = {"count": 1, "dtype": "uint8", "nodata": NO_LABEL, "descriptions": ("class",), "tags": tags}
    with new_raster(output, grid, **given) as raster:
        raster.write_colormap(1, colour_table(card.legend))
        yield raster


def _confidence_map(output: Path, grid: Grid, card: Card) -> AbstractContextManager[DatasetWriter]:
    tags = {**_attributed(card), "unit": "per cent"}
    return new_raster(
        output, grid, count=1, dtype="uint8", nodata=CONFIDENCE_NODATA, descriptions=("confidence",), tags=tags
    )


def _attributed(card: Card) -> dict[str, str]:
    return {TAG: card.attribution} if card.attribution and card.attribution.isascii() else {}


def _mapped(
    score: Callable[[dict[str, Tensor]], Tensor],
    read: Callable[[Card, Region, Region], dict[str, np.ndarray]],
    grid: Grid,
    card: Card,
    settings: Prediction,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """First row and column, and uint8 (2, rows, columns), class and confidence, of the parts of a raster's map."""
    place, device = region_of(grid), torch.device("cpu")
    for first in range(0, grid.width, COLUMNS):
        region = place._replace(column=place.column + first, width=min(COLUMNS, grid.width - first))
        found = blended(
            partial(read, card, place), score, region, classes=len(card.classes), settings=settings, device=device
        )
        row = 0
        for part in regrouped((finished(band.probabilities, band.seen, ()) for band in found), TILE):
            yield row, first, part
            row += part.shape[1]


def _read(
    raster: Path, source: DatasetReader, bands: Sequence[int], card: Card, place: Region, region: Region
) -> dict[str, np.ndarray]:
    """Integers of each input in a region of the lattice; no data beyond the raster, whose place is ``place``."""
    row, column = region.row - place.row, region.column - place.column
    image = np.full((len(bands), region.height, region.width), np.nan, np.float32)
    rows = slice(max(row, 0), min(row + region.height, place.height))
    columns = slice(max(column, 0), min(column + region.width, place.width))
    if rows.start < rows.stop and columns.start < columns.stop:
        window = Window.from_slices(rows, columns)
        try:
            read = source.read(list(bands), window=window, masked=True, out_dtype=np.float32)
        except RasterioError as error:
            fault = " ".join(str(error.__cause__ or error).split())
            raise ProductError(f"raster {raster} is broken ({fault}): make or fetch it again") from None
        inside = np.s_[:, rows.start - row : rows.stop - row, columns.start - column : columns.stop - column]
        image[inside] = read.filled(np.nan)
    return as_inputs(image, card)


def as_inputs(image: np.ndarray, card: Card) -> dict[str, np.ndarray]:
    """Integers (T, C, y, x) of each input from the bands float (channels, y, x) of a model's image, NaN = no data."""
    out, start = {}, 0
    for key, (steps, bands) in card.shapes.items():
        part = image[start : start + steps * bands].reshape(steps, bands, *image.shape[1:])
        out[key] = _integers(part, DTYPE[key], NODATA[key])
        start += steps * bands
    if days := _days(card):
        out[DAY] = _integers(image[start : start + len(days)], np.int16, 0)
    return out


def _integers(values: np.ndarray, dtype: Any, nodata: int) -> np.ndarray:
    """Values rounded to what a stack holds; those that it cannot hold become the nearest that it can, or no data."""
    limits = np.iinfo(dtype)
    whole = np.clip(np.rint(np.nan_to_num(values, nan=nodata)), limits.min, limits.max)
    return whole.astype(dtype)


def write_inputs(
    model: Path, stacks: Sequence[Path], output: Path, months: Sequence[int] = (), dates: Sequence[date] = ()
) -> None:
    """The bands of stacks as one raster that an exported model takes, each with its name.

    Values are as in the stacks, no data is the raster's own. Sentinel-2 alone is uint16; beside other inputs it is
    int16, and reflectance above 3.2767 is cut off there. QGIS's Deepness reads no other integers.

    Parameters
    ----------
    model : ONNX file of rule export_model.
    stacks : of one CRS.
    output : GeoTIFF on the lattice of the stacks that holds them all.
    months, dates : of the stacks those steps that the model sees, by ``chosen_steps``; none: all.

    Raises
    ------
    ModelError
        The model cannot be used, or a stack has other inputs than it.
    ProductError
        A stack is missing or broken.
    SettingError
        The raster is one of the files that are read, or a package is missing.
    RoomError
        The disk is full, or the raster cannot be written where it shall be.
    """
    _must_be_apart([model, *stacks], [output])
    card = read_exported(model)[1]
    steps, grids = {}, {}
    for stack in stacks:
        with _reading(stack):
            steps[stack], grids[stack] = chosen_steps(stack, months, dates), grid_of_stack(stack)
            must_mean(card.meaning, meaning_of(stack, steps[stack]), stack, f"{model} learned from")
    grid = _around(list(grids.values()))
    integers = np.uint16 if {*card.shapes} == {"s2"} else np.int16
    nodata = NODATA["s2"] if integers is np.uint16 else NODATA["s1"]
    names = [band.name for band in card.bands]
    given: dict[str, Any] = {
        "count": len(names),
        "dtype": integers,
        "nodata": nodata,
        "descriptions": names,
        "interleave": "band",
    }
    _must_be_writable([output])
    needed = PACKED * len(names) * grid.width * grid.height * np.dtype(integers).itemsize
    with room_for(output, needed), new_raster(output, grid, **given) as raster:
        for stack, block in grids.items():
            row, column = block.offset_in(grid)
            for first in range(0, block.height, ROWS):
                rows = slice(first, min(first + ROWS, block.height))
                with _reading(stack):
                    read = read_stack(stack, rows, slice(0, block.width), [*card.shapes, DAY])
                    image = _as_image(seen_steps(read, steps[stack]), card, integers, nodata)
                write_part(raster, row + first, column, image)


@contextmanager
def _reading(stack: Path) -> Iterator[None]:
    """Say of whatever goes wrong with a stack that it is the user's own, to look at and not to remove."""
    try:
        yield
    except (SettingError, ModelError):
        raise
    except Exception as error:  # xarray and zarr raise many kinds for what is no stack
        if not stack.is_file():
            raise ProductError(f"stack {stack} does not exist: give a .zarr.zip of rule stack_block") from None
        cause = (error.__cause__ or error) if isinstance(error, CovermapError) else error
        fault = " ".join(str(cause).split())[:SHOWN]
        raise ProductError(f"stack {stack} cannot be read ({fault}): give a .zarr.zip of rule stack_block") from None


def grid_of_stack(stack: Path) -> Grid:
    """Grid of a stack; pixels are not read."""
    with open_stack(stack) as opened:
        about = opened.spatial_ref.attrs
        left, pixel_m, _, top, *_ = map(float, str(about["GeoTransform"]).split())
        crs = CRS.from_wkt(about["crs_wkt"]).to_string()
        return Grid(crs=crs, left=left, top=top, width=opened.sizes["x"], height=opened.sizes["y"], pixel_m=pixel_m)


def _around(grids: Sequence[Grid]) -> Grid:
    """Grid that holds others of its lattice."""
    lefts, bottoms, rights, tops = zip(*(grid.bounds for grid in grids), strict=True)
    first, left, top = grids[0], min(lefts), max(tops)
    for grid in grids:
        grid.offset_in(first)
    width, height = round((max(rights) - left) / first.pixel_m), round((top - min(bottoms)) / first.pixel_m)
    return first.model_copy(update={"left": left, "top": top, "width": width, "height": height})


def _as_image(arrays: dict[str, np.ndarray], card: Card, dtype: Any, nodata: int) -> np.ndarray:
    """Bands (channels, y, x) of a model's image from the integers (T, C, y, x) of its inputs."""
    layers = []
    for key, shape in card.shapes.items():
        values = arrays[key].astype(np.int32) if key in arrays else np.full((*shape, *_size(arrays)), NODATA[key])
        if values.shape[:2] != shape:
            raise ModelError(f"a stack has {values.shape[:2]} steps and bands of {key}, the model {shape}: give others")
        values = np.where(values == NODATA[key], nodata, np.minimum(values, np.iinfo(dtype).max))
        layers.append(values.reshape(-1, *values.shape[2:]))
    if days := _days(card):
        layers.append(arrays[DAY] if DAY in arrays else np.zeros((len(days), *_size(arrays)), np.int16))
    return np.concatenate(layers).astype(dtype)


def _size(arrays: dict[str, np.ndarray]) -> tuple[int, ...]:
    return next(iter(arrays.values())).shape[-2:]
