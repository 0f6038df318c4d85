"""The state of a training, and how it survives the death of its process."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from covermap.errors import ModelError
from covermap.files import whole
from covermap.model_settings import Training
from covermap.models.normalise import Normalised
from covermap.recipe import Row, optimiser_of


@dataclass
class State:
    """All that the next step depends on, beside the settings and the tiles."""

    net: Normalised  # that learns
    shown: Normalised  # that is validated and kept: the same, or its moving average
    optimiser: torch.optim.Optimizer
    class_weight: Tensor  # of the loss (K,)
    confusion: Tensor  # of the best epoch with the labels of the validation tiles (map class, label class)
    rows: list[Row] = field(default_factory=list)  # epochs that are done
    losses: list[float] = field(default_factory=list)  # of the steps that are done of the next one
    seconds: float = 0.0  # that those took
    waited_s: float = 0.0  # of which the device waited for tiles


def new_state(net: Normalised, class_weight: Tensor, recipe: Training) -> State:
    """The state before the first step; the network's is shared, not copied."""
    shown = copy.deepcopy(net) if recipe.average else net
    confusion = torch.zeros(len(class_weight), len(class_weight), dtype=torch.int64)
    return State(net, shown, optimiser_of(net, recipe), class_weight, confusion)


def save_state(path: Path, state: State) -> None:
    """Write a checkpoint, whole or not at all."""
    saved: dict[str, Any] = {
        "net": state.net.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "class_weight": state.class_weight,
        "confusion": state.confusion,
        "rows": state.rows,
        "losses": state.losses,
        "seconds": state.seconds,
        "waited_s": state.waited_s,
    }
    if state.shown is not state.net:
        saved["shown"] = state.shown.state_dict()
    with whole(path) as part:
        torch.save(saved, part)


def load_state(path: Path, net: Normalised, recipe: Training) -> State:
    """The state of a checkpoint for a network as it was built, both on the CPU.

    Raises
    ------
    ModelError
        The file is broken, of another network, or holds anything but tensors, numbers and names: it is not run.
    """
    saved = _read(path)
    try:
        state = new_state(net, saved["class_weight"], recipe)
        state.net.load_state_dict(saved["net"])
        state.shown.load_state_dict(saved.get("shown", saved["net"]))
        state.optimiser.load_state_dict(saved["optimiser"])
        for name in ("confusion", "rows", "losses", "seconds", "waited_s"):
            setattr(state, name, saved[name])
    except Exception as error:
        raise _broken(path, error) from error
    if spoilt := not_finite(state.net):
        raise _broken(path, f"{spoilt} is not finite")
    return state


def load_outcome(path: Path) -> tuple[list[Row], Tensor]:
    """Rows of the log, and the confusion of the best epoch, of a checkpoint; errors as of ``load_state``."""
    saved = _read(path)
    return saved["rows"], saved["confusion"]


def _read(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose own words advise to run what is in it
        raise _broken(path, "it holds more than tensors, numbers and names") from error
    except Exception as error:
        raise _broken(path, error) from error
    return saved


def _broken(path: Path, reason: object) -> ModelError:
    line = (str(reason).splitlines() or [type(reason).__name__])[0]
    return ModelError(f"checkpoint {path} is broken, or not one that training wrote ({line}): remove it and run again")


def not_finite(net: nn.Module) -> str | None:
    """Name of the first weight or buffer that has NaN or infinity."""
    state = net.state_dict()
    return next((name for name, values in state.items() if not torch.isfinite(values).all()), None)
