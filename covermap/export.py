"""Models for other programs: ONNX for QGIS's Deepness and anything else, and a package for ArcGIS.

The graph takes the bands as they lie in a stack and gives class probabilities; what is between, from the masks to the
calibration, is inside. Run as ``python -m covermap.export`` it maps any raster with such a model.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from covermap import __version__
from covermap.errors import CovermapError, ModelError
from covermap.esri import write_package
from covermap.exported import (
    CARD,
    EXTRA,
    IMAGE,
    PROBABILITIES,
    Card,
    bands_of,
    must_have,
    new_session,
    predict_raster,
    write_inputs,
)
from covermap.files import whole
from covermap.inputs import DAY, NODATA, SATELLITES, is_filled
from covermap.legend import Legend
from covermap.model_settings import Prediction
from covermap.models.normalise import Normalised
from covermap.predict import load_together
from covermap.room import room_for

if TYPE_CHECKING:
    from onnx import ModelProto

log = logging.getLogger(__name__)

NO_DATA = "no data"  # name of the first channel of the probabilities
OPSET, FORMAT = 18, 8  # of ONNX: what onnxruntime reads from 1.14 on
SAMPLES = 4  # windows on which the graph is compared with the networks
AGREE = 0.9999  # of their pixels with the same best class, at least
HOLES = 0.1  # of the compared pixels, share without data
CACHE_MB = "256"  # of GDAL, which would take a twentieth of the machine
EXTRA_LOGS = ("onnxscript", "onnx_ir")  # below a warning, they tell of each weight and node that they change
BYTE = 255  # Deepness divides all values by it, then takes the standardisation of the metadata


def export_model(
    weights: list[Path],
    onnx: Path,
    dlpk: Path,
    settings: Prediction,
    legend: Legend,
    pixel_m: float,
    attribution: str = "",
    calibrations: tuple[Path, ...] = (),
    threads: int = 1,
) -> None:
    """Step: trained networks as one ONNX graph and as a deep learning package of ArcGIS, compared with the networks.

    Parameters
    ----------
    weights : of trained networks, whose probabilities the graph averages.
    onnx : output: graph from float32 ``image`` (N, bands, y, x), values as they lie in a stack, to ``probabilities``
        (N, 1 + K, y, x): first of no data, which is 0 or 1, then of each class.
    dlpk : output: zip of the same graph, its Esri model definition and the raster function that runs it.
    settings : windows, overlap, blend and symmetries that its users start from.
    legend : classes, names and colours.
    pixel_m : side of a pixel of what the networks learned from [m].
    attribution : whose data they learned from.
    calibrations : temperature of each network; none: all 1.
    threads : torch threads.

    Raises
    ------
    ModelError
        Weights that cannot be read or do not go together, another legend, or a graph that differs from the networks.
    SettingError
        A package of the extra ``export`` is not installed.
    RoomError
        The disk is full.
    """
    must_have(EXTRA)
    torch.set_num_threads(threads)
    nets, classes = load_together(weights, torch.device("cpu"), calibrations)
    if classes != [entry.key for entry in legend.classes]:
        keys = ", ".join(entry.key for entry in legend.classes)
        raise ModelError(f"{weights[0]} has the classes {', '.join(classes)}, the legend {keys}: give its own legend")
    graph = OneImage(nets).eval()
    card = card_of(nets, settings, legend, pixel_m, attribution)
    proto, card = to_onnx(graph, card)
    share = agreement(graph, proto, card, threads)
    if share < AGREE:
        raise ModelError(
            f"the graph of {weights[0]} agrees with its network on {100 * share:.2f} % of the pixels, less than "
            f"{100 * AGREE:g} %: export it with another version of torch or onnx"
        )
    log.info("graph and networks have the same class on %.4f %% of the pixels", 100 * share)
    data = proto.SerializeToString(deterministic=True)
    with room_for(onnx, len(data)), whole(onnx) as part:
        part.write_bytes(data)
    with room_for(dlpk, len(data)):
        write_package(dlpk, onnx.stem, data, card)


class OneImage(nn.Module):
    """Networks behind one image that has the bands of all inputs, in the order of :func:`covermap.exported.bands_of`.

    All of it is computed in float32, whatever precision the networks were taught in.
    """

    def __init__(self, nets: Sequence[Normalised]) -> None:
        super().__init__()
        self.nets: Any = nn.ModuleList(nets)
        self.shapes, self.days = nets[0].shapes, is_filled(nets[0].meaning)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1 + K, y, x): 1 where no satellite saw anything, else the classes' probabilities, of (N, bands, y, x)."""
        inputs = self.integers(image)
        unseen = ~torch.stack(
            [(inputs[key] != NODATA[key]).flatten(1, 2).any(1) for key in SATELLITES if key in inputs]
        ).any(0)[:, None]  # (N, 1, y, x)
        found = torch.stack([net.probabilities(inputs) for net in self.nets]).mean(0)
        if found.ndim == 2:  # of patches
            found = found[:, :, None, None].expand(-1, -1, image.shape[2], image.shape[3])
        return torch.cat([unseen.to(found.dtype), torch.where(unseen, 0.0, found)], 1)

    def integers(self, image: Tensor) -> dict[str, Tensor]:
        """Inputs (N, T, C, y, x) as whole numbers; not a number, and less than data can be, is no data."""
        inputs, start = {}, 0
        for key, (steps, bands) in self.shapes.items():
            part = image[:, start : start + steps * bands].round().unflatten(1, (steps, bands))
            start += steps * bands
            inputs[key] = torch.where(part > NODATA[key], part, float(NODATA[key]))
        if self.days:
            inputs[DAY] = torch.where(image[:, start:] > 0, 1.0, 0.0)  # (N, T, y, x)
        return inputs


def card_of(
    nets: Sequence[Normalised], settings: Prediction, legend: Legend, pixel_m: float, attribution: str = ""
) -> Card:
    """What users of the exported model have to know; parameters as of :func:`export_model`."""
    shapes, meaning = nets[0].shapes, nets[0].meaning
    return Card(
        covermap=__version__,
        bands=tuple(bands_of(shapes, meaning, is_filled(meaning))),
        shapes=shapes,
        meaning=meaning,
        classes=legend.classes,
        pixel_m=pixel_m,
        window_pixels=settings.window_pixels,
        multiple=math.lcm(*(getattr(net.network, "multiple", 1) for net in nets)),
        any_window=True,
        overlap=settings.overlap,
        blend=settings.blend,
        symmetries=settings.symmetries,
        attribution=attribution,
    )


def to_onnx(graph: OneImage, card: Card) -> tuple[ModelProto, Card]:
    """The graph with its metadata, and the card, which tells whether it takes windows of any size.

    Its declared size is that of the card, since Deepness takes no other; what is inside suits any that the network
    takes, if it can be traced so.

    Raises
    ------
    ModelError
        The network cannot be written as ONNX.
    """
    try:
        proto = _traced(graph, card, any_window=True)
    except Exception as error:  # a tracer raises whatever the traced code does
        log.warning("the graph is for windows of %d px alone: %s", card.window_pixels, " ".join(str(error).split()))
        card = card.model_copy(update={"any_window": False})
        try:
            proto = _traced(graph, card, any_window=False)
        except Exception as last:
            fault = " ".join(str(last).split())[:300]
            raise ModelError(f"the network cannot be written as ONNX ({fault}): take another encoder") from last
    _tidied(proto, card)
    return proto, card


def _traced(graph: OneImage, card: Card, any_window: bool) -> ModelProto:
    for name in EXTRA_LOGS:
        logging.getLogger(name).setLevel(logging.WARNING)
    dynamic = torch.export.Dim.DYNAMIC
    sizes = {0: dynamic} | ({2: dynamic, 3: dynamic} if any_window else {})
    image = torch.zeros(2, len(card.bands), card.window_pixels, card.window_pixels)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        program = torch.onnx.export(
            graph,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(sizes,),
            input_names=[IMAGE],
            output_names=[PROBABILITIES],
            verbose=False,
        )
    if program is None:
        raise ModelError("torch gave no graph: export it with another version of torch")
    return program.model_proto


def _tidied(proto: ModelProto, card: Card) -> None:
    """Take away what tells of the machine that traced it, and add shapes and metadata."""
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for part in ("value_info", "metadata_props", "doc_string"):
        proto.graph.ClearField(part)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        value.ClearField("metadata_props")
    side, channels = card.window_pixels, len(card.bands)
    for value, first in ((proto.graph.input[0], channels), (proto.graph.output[0], 1 + len(card.classes))):
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        for dim, size in zip(list(dims)[1:], (first, side, side), strict=True):
            dim.dim_value = size
    proto.ir_version = FORMAT
    proto.ClearField("metadata_props")
    for key, text in metadata_of(card).items():
        proto.metadata_props.add(key=key, value=text)


def metadata_of(card: Card) -> dict[str, str]:
    """What QGIS's Deepness reads of an ONNX file (its documentation, "Adding metadata to ONNX model"), and our card.

    Deepness divides what it reads by 255; the standardisation takes that back. It names the size of tiles ``tile_size``
    in its code and ``tiles_size`` in its documentation. Class 0, of no data, is what it calls the background.
    """
    names = {0: NO_DATA, **{entry.id: entry.name for entry in card.classes}}
    told = {
        "model_type": "Segmentor",
        "class_names": names,
        "resolution": 100 * card.pixel_m,  # cm a pixel
        "tile_size": card.window_pixels,
        "tiles_size": card.window_pixels,
        "tiles_overlap": round(100 * card.overlap),
        "seg_thresh": 0,
        "seg_small_segment": 0,
        "standardization_mean": [0.0] * len(card.bands),
        "standardization_std": [1 / BYTE] * len(card.bands),
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in told.items()} | {CARD: card.model_dump_json()}


def agreement(graph: OneImage, proto: ModelProto, card: Card, threads: int = 1) -> float:
    """Share of the pixels on which the graph has the same best class as the networks, on windows made by chance.

    Raises
    ------
    ModelError
        The graph cannot be run.
    """
    image = samples(graph.nets[0], card)
    try:
        session = new_session(proto, None, threads)
        found = [session.run([PROBABILITIES], {IMAGE: one[None].numpy()})[0] for one in image]
    except Exception as error:  # onnxruntime raises its own kinds
        raise ModelError(f"the graph cannot be run ({error}): export it with another version of onnxruntime") from error
    with torch.inference_mode():
        expected = np.concatenate([graph(one[None]).numpy() for one in image])
    return float((np.concatenate(found).argmax(1) == expected.argmax(1)).mean())


def samples(net: nn.Module, card: Card) -> Tensor:
    """Windows (n, bands, y, x) of smooth noise that spreads as the training data did, with holes."""
    random = torch.Generator().manual_seed(0)
    side = card.window_pixels
    layers = []
    for key, (steps, bands) in card.shapes.items():
        mean, std = (
            net.get_buffer(f"{key}_{name}")[:, :bands].expand(steps, bands).flatten() for name in ("mean", "std")
        )
        coarse = torch.randn(SAMPLES, steps * bands, side // 8, side // 8, generator=random)
        noise = nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
        noise += 0.3 * torch.randn(noise.shape, generator=random)
        values = mean[:, None, None] + std[:, None, None] * noise
        holes = torch.rand(SAMPLES, steps, 1, side, side, generator=random) < HOLES
        layers.append(values.masked_fill(holes.expand(-1, -1, bands, -1, -1).flatten(1, 2), NODATA[key]))
    days = [band for band in card.bands if band.input == DAY]
    layers.append(torch.randint(0, 2, (SAMPLES, len(days), side, side), generator=random).float())
    return torch.cat(layers, 1)


# --- the command -----------------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> None:
    """Run the command; an error of ours is one sentence and the status 1."""
    arguments = _parser().parse_args(words)
    os.environ.setdefault("GDAL_CACHEMAX", CACHE_MB)
    logging.basicConfig(level="INFO", format="%(message)s")
    logging.getLogger("rasterio").setLevel(logging.CRITICAL)  # what it logs below, our sentence says
    try:
        arguments.run(arguments)
    except CovermapError as error:
        sys.exit(f"covermap.export {arguments.command}: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m covermap.export", description="Use a model that rule export_model wrote, without a workflow."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _predict_words(commands.add_parser("predict", help="map a raster", description=PREDICT))
    _inputs_words(commands.add_parser("inputs", help="make a raster for a model out of stacks", description=INPUTS))
    return parser


PREDICT = (
    "Map a raster with an exported model. The raster has the model's bands, in a CRS in metres, with pixels as the "
    "model's. Bands are found by their names where they have those of the model, else they are taken as they lie."
)
INPUTS = "Write the bands of stacks, in the order of an exported model and named as it names them, as one GeoTIFF."


def _predict_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .onnx file of rule export_model")
    parser.add_argument("raster", type=Path, metavar="INPUT", help="raster with the bands of the model")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="class map to write, a GeoTIFF")
    parser.add_argument("--confidence", type=Path, metavar="FILE", help="write the confidence in per cent too")
    parser.add_argument("--window", type=int, metavar="PIXELS", help="side of a window (default: as exported)")
    parser.add_argument(
        "--overlap", type=float, metavar="SHARE", help="of a window, that its neighbour sees too (default: as exported)"
    )
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="windows at once (default: 4)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the CPU (default: 1)")
    parser.set_defaults(run=_predict)


def _inputs_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="the .onnx file of rule export_model")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="raster to write, a GeoTIFF")
    parser.add_argument("stacks", type=Path, nargs="+", metavar="STACK", help="stacks of neighbouring blocks")
    parser.add_argument(
        "--months",
        type=months,
        default=(),
        metavar="1,7",
        help="of Sentinel-1's months those that the model sees (default: all)",
    )
    parser.add_argument(
        "--dates",
        type=dates,
        default=(),
        metavar="DATE,DATE",
        help="of Sentinel-2's steps those that begin on these days (default: all)",
    )
    parser.set_defaults(run=_inputs)


def months(text: str) -> tuple[int, ...]:
    """Calendar months, such as 1,7."""
    if not all(word.isdecimal() and 1 <= int(word) <= 12 for word in text.split(",")):
        raise argparse.ArgumentTypeError(
            f"expected months from 1 to 12 with commas between, such as 1,7 (got {text!r})"
        )
    return tuple(map(int, text.split(",")))


def dates(text: str) -> tuple[date, ...]:
    """Days, such as 2020-01-01,2020-07-01."""
    try:
        return tuple(map(date.fromisoformat, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"expected days as YYYY-MM-DD with commas between, such as 2020-01-01 (got {text!r}: {error})"
        ) from None


def _predict(given: argparse.Namespace) -> None:
    predict_raster(
        given.model,
        given.raster,
        given.output,
        given.confidence,
        window_pixels=given.window,
        overlap=given.overlap,
        batch=given.batch,
        threads=given.threads,
    )


def _inputs(given: argparse.Namespace) -> None:
    write_inputs(given.model, given.stacks, given.output, given.months, given.dates)


if __name__ == "__main__":
    main()
