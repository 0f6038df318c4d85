"""Raster function of ArcGIS for a model of covermap: classes of land cover from the bands of one raster or of several.

It needs numpy and onnxruntime alone, which ArcGIS's deep learning libraries have. The model normalises its input
itself. ArcGIS asks for tiles with a padding around; windows that overlap cover a tile and its padding, their
probabilities are blended, and the padding is cut off, so that neighbouring tiles fit together.
"""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

import numpy as np
import onnxruntime

STEPS_A_TILE = 4  # a tile is so many steps of windows wide
RASTERS = ("raster", "raster2", "raster3")  # names of the parameters
FIELDS = (
    ("OID", "esriFieldTypeOID"),
    ("Value", "esriFieldTypeInteger"),
    ("Classvalue", "esriFieldTypeInteger"),
    ("Classname", "esriFieldTypeString"),
    ("Red", "esriFieldTypeInteger"),
    ("Green", "esriFieldTypeInteger"),
    ("Blue", "esriFieldTypeInteger"),
)
TURNS = [(quarters, flip) for flip in (False, True) for quarters in range(4)]


class CovermapClassifier:
    """What ArcGIS calls, in this order: the methods without an underscore."""

    def __init__(self) -> None:
        self.name = "covermap classifier"
        self.description = "Classifies the pixels of satellite images with a model of covermap."

    def initialize(self, **kwargs: Any) -> None:
        """Read the model definition, a file or its text, and load the model that lies beside it."""
        if "model" not in kwargs:
            return
        text, folder = kwargs["model"], os.getcwd()
        if not text.lstrip().startswith("{"):
            folder = os.path.dirname(os.path.abspath(text))
            with open(text, encoding="utf-8") as file:
                text = file.read()
        self.definition = json.loads(text)
        self.values = np.array([0] + [entry["Value"] for entry in self.definition["Classes"]], np.int64)
        self.window = int(self.definition["ImageWidth"])
        self.step = int(self.definition["WindowStep"])
        path = os.path.join(folder, self.definition["ModelFile"])
        self.session = onnxruntime.InferenceSession(path, providers=_providers(kwargs.get("device")))

    def getParameterInfo(self) -> list[dict[str, Any]]:
        """Parameters that ArcGIS asks for, with what the model was exported with as defaults."""
        inputs = [entry["Name"] for entry in self.definition["Inputs"]]
        parameters = [
            _parameter("raster", "raster", "Input raster", f"Bands of {', '.join(inputs)}, in the model's order."),
            _parameter("model", "string", "Model definition", "The .emd file or its text."),
            _parameter("device", "numeric", "Device", "Number of the GPU; -1: the CPU.", -1),
        ]
        for name, title in zip(RASTERS[1:], inputs[1:], strict=False):
            told = f"Bands of {title}, where the first raster does not have them."
            parameters.append(_parameter(name, "raster", f"Raster of {title}", told, None))
        told = f"Pixels around each tile that windows see too, and that are cut off; at least {self._reach()}."
        parameters.append(_parameter("padding", "numeric", "Padding", told, self._reach()))
        batch = int(self.definition["BatchSize"])
        parameters.append(_parameter("batch_size", "numeric", "Batch size", "Windows at once.", batch))
        return parameters

    def getConfiguration(self, **scalars: Any) -> dict[str, Any]:
        """How ArcGIS is to cut tiles: whole steps of windows, so that windows of all tiles lie on one lattice."""
        self.padding = max(self._reach(), int(_given(scalars, "padding", 0)))  # with less, seams would show
        self.batch = max(1, int(_given(scalars, "batch_size", self.definition["BatchSize"])))
        side = STEPS_A_TILE * self.step
        configuration: dict[str, Any] = {
            "padding": self.padding,
            "batch_size": self.batch,
            "tx": side,
            "ty": side,
            "fixedTileSize": 1,
            "inheritProperties": 4 | 8,  # extent and resampling; pixel type and no data are its own
            "invalidateProperties": 2 | 4 | 8,
            "inputMask": True,
            "resampling": False,
        }
        if len(self.definition["Inputs"]) == 1:  # else ArcGIS would take as many bands of each raster
            configuration["extractBands"] = tuple(self.definition["ExtractBands"])
        return configuration

    def updateRasterInfo(self, **kwargs: Any) -> dict[str, Any]:
        """One band of class values, with a table of their names and colours."""
        info = kwargs["output_info"]
        info["bandCount"] = 1
        info["pixelType"] = "u1"
        info["noData"] = None  # the mask tells
        info["statistics"] = ()
        info["histogram"] = ()
        info["rasterAttributeTable"] = json.dumps(self._table())
        return kwargs

    def updatePixels(self, tlc: Any, shape: Any, props: dict[str, Any], **pixelBlocks: Any) -> dict[str, Any]:
        """Class values of a tile, without its padding: uint8 (1, rows, columns), and where there are any."""
        image = self._image(pixelBlocks)  # (bands, rows + 2 padding, columns + 2 padding)
        classes = self._classify(image)
        inner = classes[self.padding : len(classes) - self.padding, self.padding : classes.shape[1] - self.padding]
        pixelBlocks["output_pixels"] = self.values[inner][None].astype(props.get("pixelType", "u1"), copy=False)
        pixelBlocks["output_mask"] = (inner != 0)[None].astype("u1")
        return pixelBlocks

    def _reach(self) -> int:
        """Pixels that windows of a tile reach beyond it."""
        return (-(-self.window // self.step) - 1) * self.step

    def _image(self, blocks: dict[str, Any]) -> np.ndarray:
        """Bands of all rasters, float32 (bands, rows, columns), not a number where they have no data."""
        parts = []
        for name in RASTERS:
            pixels = blocks.get(f"{name}_pixels")
            if pixels is None or np.size(pixels) == 0:
                continue
            values = np.array(pixels, np.float32)
            values = values if values.ndim == 3 else values[None]
            mask = blocks.get(f"{name}_mask")
            if mask is not None:
                values[np.broadcast_to(np.asarray(mask) == 0, values.shape)] = np.nan
            parts.append(values)
        image = np.concatenate(parts)
        wanted = len(self.definition["Bands"])
        if len(image) != wanted:
            raise ValueError(
                f"the rasters have {len(image)} bands, the model takes {wanted}: give, in this order, "
                + ", ".join(self.definition["Bands"])
            )
        return image

    def _classify(self, image: np.ndarray) -> np.ndarray:
        """Index of the best class, 0 without data: int64 (rows, columns) of (bands, rows, columns)."""
        height, width = image.shape[1:]
        total = np.zeros((len(self.values) - 1, height, width), np.float32)
        seen = np.zeros((height, width), bool)
        weight = self._weights()[:, None] * self._weights()[None, :]
        places = [at for at in itertools.product(self._starts(height), self._starts(width)) if self._has(image, *at)]
        for first in range(0, len(places), self.batch):
            chosen = places[first : first + self.batch]
            scores = self._score(np.stack([self._cut(image, *at) for at in chosen]))
            for (row, column), found in zip(chosen, scores, strict=True):
                into = np.s_[row : row + self.window, column : column + self.window]
                part = np.s_[: min(self.window, height - row), : min(self.window, width - column)]
                total[(slice(None), *into)] += (found[1:] * weight)[(slice(None), *part)]
                seen[into] |= found[0][part] < 0.5
        return np.where(seen, total.argmax(0) + 1, 0)

    def _starts(self, length: int) -> range:
        """First pixels of all windows along an axis that reach into the tile."""
        return range(self.padding - self._reach(), length - self.padding, self.step)

    def _has(self, image: np.ndarray, row: int, column: int) -> bool:
        return bool(np.isfinite(image[:, row : row + self.window, column : column + self.window]).any())

    def _cut(self, image: np.ndarray, row: int, column: int) -> np.ndarray:
        """A window (bands, window, window), without data beyond the image."""
        out = np.full((len(image), self.window, self.window), np.nan, np.float32)
        part = image[:, row : row + self.window, column : column + self.window]
        out[:, : part.shape[1], : part.shape[2]] = part
        return out

    def _score(self, windows: np.ndarray) -> np.ndarray:
        """Probabilities (n, 1 + classes, window, window), the first of no data."""
        turns = TURNS if self.definition["Symmetries"] else TURNS[:1]
        total: Any = 0
        for quarters, flip in turns:
            turned = np.rot90(windows[..., ::-1] if flip else windows, quarters, (2, 3))
            found = self.session.run(None, {self.session.get_inputs()[0].name: np.ascontiguousarray(turned)})[0]
            back = np.rot90(found, -quarters, (2, 3))
            total = total + (back[..., ::-1] if flip else back)
        return total / len(turns)

    def _weights(self) -> np.ndarray:
        """What a pixel counts by its place in a window; those of all windows that meet at a pixel add up to 1."""
        pixels = np.arange(self.window)
        first = (self.window - self.step) // 2
        curve = {
            "hann": np.sin(np.pi * (pixels + 0.5) / self.window) ** 2,
            "none": np.ones(self.window),
            "centre": ((pixels >= first) & (pixels < first + self.step)).astype(float),
        }[self.definition["Blend"]]
        sums = np.bincount(pixels % self.step, curve, self.step)
        return (curve / sums[pixels % self.step]).astype(np.float32)

    def _table(self) -> dict[str, Any]:
        rows = []
        for number, entry in enumerate(self.definition["Classes"], 1):
            red, green, blue = entry["Color"]
            cells = (number, entry["Value"], entry["Value"], entry["Name"], red, green, blue)
            rows.append({"attributes": {name: cell for (name, _), cell in zip(FIELDS, cells, strict=True)}})
        return {
            "displayFieldName": "",
            "fieldAliases": {name: name for name, _ in FIELDS},
            "fields": [{"name": name, "type": kind, "alias": name} for name, kind in FIELDS],
            "features": rows,
        }


def _parameter(name: str, kind: str, title: str, told: str, *default: Any) -> dict[str, Any]:
    """A parameter of ArcGIS; it is required where it has no default."""
    parameter = {
        "name": name,
        "dataType": kind,
        "required": not default,
        "displayName": title,
        "description": told,
    }
    return {**parameter, "value": default[0]} if default else parameter


def _given(scalars: dict[str, Any], name: str, default: Any) -> Any:
    value = scalars.get(name)
    return default if value in (None, "") else value


def _providers(device: Any) -> list[Any]:
    """The GPU of a number, where onnxruntime can use one; else the CPU."""
    number = -1 if device in (None, "") else int(device)
    gpu = "CUDAExecutionProvider"
    if number == -1 or gpu not in onnxruntime.get_available_providers():
        return ["CPUExecutionProvider"]
    return [(gpu, {"device_id": max(number, 0)}), "CPUExecutionProvider"]
