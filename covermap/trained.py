"""A trained network as a file: its weights, and all that prediction needs to know of them."""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from covermap.checkpoint import not_finite
from covermap.errors import ModelError, ProductError
from covermap.files import whole
from covermap.inputs import Meaning, index_pairs
from covermap.losses import evidence
from covermap.model_settings import Model
from covermap.models import MODELS
from covermap.models.normalise import Normalised, seen_shapes
from covermap.models.options import OPTIONS
from covermap.section import first_sentence

TEMPERATURES = 0.1, 10.0  # beyond them a network is not badly calibrated, but wrong


def build(model: Model, shapes: dict[str, tuple[int, int]], classes: int, meaning: Meaning) -> Normalised:
    """The network of a model entry for inputs of these steps and bands (T, C), not yet trained."""
    module, name = MODELS[model.network].split(":")
    pairs = index_pairs(model.indices, meaning)
    seen = seen_shapes(shapes, pairs, meaning)
    try:
        network: nn.Module = getattr(importlib.import_module(module), name)(seen, classes, **model.options)
    except TypeError as error:
        raise ModelError(f"network {model.network} cannot be built with options {model.options}: {error}") from error
    taught = partial(evidence, recipe=model.training)
    reduced = model.training.precision == "auto"
    return Normalised(network, shapes, classes, meaning, pairs, OPTIONS[model.network].any_steps, taught, reduced)


def save_weights(path: Path, net: Normalised, model: Model, classes: list[str]) -> None:
    """Weights with all that prediction needs: settings, shapes and meaning of the inputs, and classes, as header.

    The header has one entry, since safetensors writes several in any order, and equal weights shall be equal bytes.
    """
    header = {
        "model": model.model_dump(mode="json"),
        "shapes": net.shapes,
        "meaning": net.meaning,
        "classes": classes,
    }
    state = {name: values.contiguous() for name, values in net.state_dict().items()}
    with whole(path) as part:
        save_file(state, part, {"covermap": json.dumps(header)})


def load_weights(path: Path, device: torch.device, calibration: Path | None = None) -> tuple[Normalised, list[str]]:
    """A trained network, with the temperature of a calibration where one is given, and the keys of its classes.

    Raises
    ------
    ModelError
        The file cannot be read, or is none that rule train of this version wrote, or has a weight that is not finite.
    ProductError
        The calibration cannot be read.
    """
    header, state = read_weights(path)
    shapes, classes = {key: tuple(shape) for key, shape in header["shapes"].items()}, header["classes"]
    try:
        net = build(Model(**header["model"]), shapes, len(classes), header["meaning"])
        net.load_state_dict(state)
    except Exception as error:
        raise _unreadable(path, error) from error
    if name := not_finite(net):
        raise ModelError(f"weights {path} cannot be used, since {name} is not finite: remove the file and train again")
    if calibration:
        net.temperature = read_temperature(calibration)
    return net.to(device).eval(), classes


def read_temperature(calibration: Path) -> float:
    """The temperature in what rule calibrate wrote.

    Raises
    ------
    ProductError
        The file cannot be read.
    """
    try:
        temperature = float(json.loads(calibration.read_text())["temperature"])
        if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
            raise ValueError(f"its temperature is {temperature}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProductError(f"calibration {calibration} cannot be read ({error}): remove it and run again") from error
    return temperature


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header (model, shapes, meaning and classes) and tensors of a file of weights.

    Raises
    ------
    ModelError
        The file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            found = json.loads(file.metadata()["covermap"])
            header = {key: found[key] for key in ("model", "shapes", "meaning", "classes")}
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ModelError:
    fault = first_sentence(error) if isinstance(error, ValidationError) else " ".join(str(error).split())
    return ModelError(f"weights {path} cannot be read ({fault}): expected a file that rule train of this version wrote")
