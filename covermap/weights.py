"""Weights to start training from: another model's, or an encoder's that a hub has; the step ``download_weights``.

A file of a hub is data of a stranger. It is checked against the digest that the hub tells, and read as tensors alone.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from covermap.errors import DownloadError, ModelError
from covermap.hubs import HubFile, Scale, hub_file
from covermap.inputs import CHANNELS, Meaning
from covermap.models.normalise import Normalised
from covermap.trained import read_weights
from covermap.transfer import fetch_file
from covermap.web import place as where
from covermap.web import request

log = logging.getLogger(__name__)

ABSENT = {401, 403, 404}  # the hub answers 401 where there is no such repository
POINTER = re.compile(r"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n")
HALF = 0.5  # of a model's tensors that must fit: all but the first and last layer do, where bands and classes differ
WHOLE = 0.9  # of an encoder's tensors that must be in a hub's file: some have neither head nor last normalisation

State = dict[str, Tensor]


class Entry(NamedTuple):
    """A channel at the entrance of our encoder: its band, empty where it has none, and its integers' mean and spread.

    None in place of an entry is a mask.
    """

    band: str
    mean: float
    std: float


def download_weights(weights: Path, name: str, url: str) -> None:
    """The file of an encoder's weights, with the digest that the hub tells of it.

    Parameters
    ----------
    weights : output, the file as it is: safetensors, or a zip of torch.
    name : ``timm/NAME`` or ``torchgeo/NAME``.
    url : of Hugging Face, or of a mirror.

    Raises
    ------
    SettingError
        torchgeo has no weights of this name.
    DownloadError
        The hub has no such file, or does not deliver it whole, or what it has is not what the file's name tells.

    Notes
    -----
    Large files of the hub are kept by Git LFS: what Git has in their place, under ``raw``, is a pointer of three lines
    with size and SHA-256 (Git LFS specification, 'The Pointer'); under ``resolve`` is the file.
    """
    file = hub_file(name)
    size, digest = _pointer(f"{url}/{file.repository}/raw/{file.revision}/{file.file}", name)
    if not digest.startswith(file.digest):
        raise DownloadError(
            f"{name} has the sha256 {digest} at {url}, but its name promises {file.digest}...: check mirrors.weights"
        )
    address = f"{url}/{file.repository}/resolve/{file.revision}/{file.file}"
    fetch_file(address, weights, size=size, checksum=("sha256", digest))
    log.info("%s has the sha256 %s", name, digest)


def _pointer(url: str, name: str) -> tuple[int, str]:
    """Size [bytes] and SHA-256 of the file that the pointer at ``url`` stands for."""
    try:
        text = request("GET", url).content[:1024].decode("utf-8", "replace")
    except DownloadError as error:
        if error.status in ABSENT:
            raise DownloadError(f"{error}; so there are no weights {name}: check start_from", error.status) from None
        raise
    if not (told := POINTER.fullmatch(text)):
        raise DownloadError(f"{where(url)} tells no size and SHA-256 of the file: check mirrors.weights")
    return int(told[2]), told[1]


def start_weights(net: Normalised, path: Path, name: str) -> int:
    """Fill a network with weights from elsewhere, after its normalisation is set and before it is trained.

    Another model's tensors go where names and shapes are the same: into the network, or into its part that its
    ``starts`` names. A hub's go into the encoder, and its first layer by bands: see :func:`first_layer`.

    Parameters
    ----------
    net : with the statistics of the training split.
    path : file that rule train or download_weights wrote.
    name : of the other model, or ``timm/NAME`` or ``torchgeo/NAME``.

    Returns
    -------
    Number of tensors that were filled.

    Raises
    ------
    ModelError
        The file cannot be read, holds more than tensors, or is of another model, or of one that learned from as many
        bands, but others.
    """
    loaded, of = _from_hub(net, path, name) if "/" in name else _from_model(net, path, name)
    with torch.no_grad():
        for key, values in loaded.items():
            of[key].copy_(values)
    log.info("%d of %d tensors start from %s; not: %s", len(loaded), len(of), name, _some(of.keys() - loaded.keys()))
    return len(loaded)


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


def _from_model(net: Normalised, path: Path, name: str) -> tuple[State, State]:
    """What fits of another model's weights, and the tensors that it goes into."""
    header, tensors = read_weights(path)
    _must_see_alike(net, header["meaning"], name)
    log.info("%s learned the classes %s", name, ", ".join(header["classes"]))
    network, prefix = net.network, "network."
    state = {key.removeprefix(prefix): values for key, values in tensors.items() if key.startswith(prefix)}
    targets = [part.state_dict() for part in (network, network.get_submodule(getattr(network, "starts", "")))]
    fits = [{key: state[key] for key in of if key in state and state[key].shape == of[key].shape} for of in targets]
    loaded, of = max(zip(fits, targets, strict=True), key=lambda pair: len(pair[0]))
    if _weights_in(loaded) < HALF * min(_weights_in(state), _weights_in(of)):
        raise ModelError(
            f"start_from {name} has the weights of another model: of {_weights_in(state)} tensors of {path} only "
            f"{_weights_in(loaded)} fit the network: start from a model of the same network and size"
        )
    return loaded, of


def _weights_in(state: State) -> int:
    """Number of tensors that hold weights, and no counts."""
    return sum(values.is_floating_point() and values.ndim > 0 for values in state.values())


def _must_see_alike(net: Normalised, learned: Meaning, name: str) -> None:
    """Refuse weights for as many bands of an input that are others, or in another order: they would fit and mislead."""
    for key, axes in net.meaning.items():
        mine, its = (axis.get(CHANNELS[key], []) for axis in (axes, learned.get(key, {})))
        if mine != its and len(mine) == len(its):
            raise ModelError(
                f"start_from {name} learned from {CHANNELS[key]} {', '.join(its)} of {key}, this model sees "
                f"{', '.join(mine)}: give it the same in the same order, or start from another model"
            )


def _from_hub(net: Normalised, path: Path, name: str) -> tuple[State, State]:
    """What fits of a hub's weights, and the tensors of the encoder that it goes into."""
    encoder = getattr(net.network, "encoder", None)
    if not isinstance(encoder, nn.Module) or not hasattr(net.network, "layout"):
        raise ModelError(
            f"start_from is {name}, weights of an encoder, which this network has not: take network segmenter or "
            "classifier, or start from another model"
        )
    of, state = encoder.state_dict(), {_plain(key): values for key, values in read_tensors(path).items()}
    loaded = {key: state[_plain(key)] for key in of if _shape(state, key) == of[key].shape}
    entrance = _entrance(of, state, hub_file(name), entries(net))
    loaded |= entrance
    own = of.keys() - _head(encoder)
    if not entrance or len(loaded.keys() & own) < WHOLE * len(own):
        raise ModelError(
            f"start_from {name} has the weights of another model: {len(loaded.keys() & own)} of the encoder's "
            f"{len(own)} tensors are in {path}, so take the encoder that they are of"
        )
    return loaded, of


def _plain(key: str) -> str:
    """A tensor's name without what timm changes in it where it takes a network apart (``stages.0``, ``stages_0``)."""
    return key.removeprefix("model.").replace("_", ".")


def _shape(state: State, key: str) -> torch.Size | None:
    return state[_plain(key)].shape if _plain(key) in state else None


def _head(encoder: Any) -> set[str]:
    """Names of the tensors of a classifier's last layer, whose classes are ours; as timm tells which layer that is."""
    head = encoder.get_classifier().parameters() if hasattr(encoder, "get_classifier") else ()
    known = {id(values) for values in head}
    return {key for key, values in encoder.named_parameters() if id(values) in known}


def _entrance(of: State, state: State, file: HubFile, channels: Sequence[Entry | None]) -> State:
    """Weights, and bias where there is one, of the encoder's first layer; nothing where the file's does not fit it."""
    key = next((key for key, values in of.items() if values.ndim == 4 and values.shape[1] == len(channels)), None)
    kernel = state.get(_plain(key)) if key else None
    if key is None or kernel is None or kernel.ndim != 4:
        return {}
    ours = of[key].shape
    if (kernel.shape[0], *kernel.shape[2:]) != (ours[0], *ours[2:]) or kernel.shape[1] != len(file.bands):
        return {}
    weight, shift = first_layer(kernel, file, channels)
    bias = key.removesuffix("weight") + "bias"
    return {key: weight} | ({bias: state[_plain(bias)] + shift} if bias in of and _plain(bias) in state else {})


def entries(net: Normalised) -> list[Entry | None]:
    """What the channels at the entrance of a network's encoder are, None for masks."""
    network: Any = net.network
    return [None if band is None else _entry(net, key, step, band) for key, step, band in network.layout]


def _entry(net: Normalised, key: str, step: int, band: int) -> Entry:
    names = net.meaning.get(key, {}).get(CHANNELS[key], []) if key != "terrain" else []
    if band >= len(names):  # an index, or a layer
        return Entry("", 0.0, 1.0)
    mean, std = (float(net.get_buffer(f"{key}_{name}")[step, band]) for name in ("mean", "std"))
    return Entry(names[band].split()[0], mean, std)  # "VV ascending" is VV


def first_layer(kernel: Tensor, file: HubFile, channels: Sequence[Entry | None]) -> tuple[Tensor, Tensor]:
    """The first layer of a hub's encoder for our channels: it says of our bands what it said of its own.

    A band that several of our channels have, such as one for each month, is shared among them. Bands that only we have
    share the mean kernel, as often as bands of the hub's are missing here, and once at least. A mask has no say at
    first. What our normalisation differs by goes into the weights, and as a shift into the layer's bias.

    Parameters
    ----------
    kernel : float (O, C, h, w) of the C bands of ``file``.
    channels : the N channels of our encoder.

    Returns
    -------
    Weights (O, N, h, w), and the shift (O,).
    """
    weight = kernel.new_zeros(kernel.shape[0], len(channels), *kernel.shape[2:])
    shift, ratios = kernel.new_zeros(kernel.shape[0]), []
    bands = [entry.band if entry else None for entry in channels]
    for number, band in enumerate(file.bands):
        same = [(place, entry) for place, entry in enumerate(channels) if entry and entry.band == band]
        for place, entry in same:
            ratio, moved = _rescaled(entry, file.scale, number)
            ratios.append(ratio)
            weight[:, place] = kernel[:, number] * ratio / len(same)
            shift += kernel[:, number].sum((1, 2)) * moved / len(same)
    others = [place for place, band in enumerate(bands) if band is not None and band not in file.bands]
    missing = sum(band not in bands for band in file.bands)
    share = max(missing, 1) / max(len(others), 1)
    weight[:, others] = (kernel.mean(1) * (float(np.mean(ratios)) if ratios else 1.0) * share)[:, None]
    return weight, shift


def _rescaled(entry: Entry, scale: Scale | None, number: int) -> tuple[float, float]:
    """How much of the hub's units one of ours is, and where our 0 lies in the hub's."""
    if scale is None:
        return 1.0, 0.0
    offset, divisor = scale.offset[number], scale.divisor[number]
    return entry.std / divisor, (entry.mean - offset) / divisor


def read_tensors(path: Path) -> State:
    """The tensors of a file of safetensors or of torch, on the CPU; of the latter nothing but tensors is read.

    Raises
    ------
    ModelError
        It is neither, or holds more than tensors and numbers, such as code.
    """
    try:
        with path.open("rb") as file:
            is_safe = file.read(9)[8:] == b"{"  # the header's length, and the header, which is JSON
        state = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(
            f"weights {path} are broken, or hold more than tensors, such as code, which is never run: take others"
        ) from None
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ModelError(
            f"weights {path} cannot be read ({str(error) or 'nothing is in it'}): remove the file, so that it is made "
            "again"
        ) from error
    if not isinstance(state, dict):
        raise ModelError(f"weights {path} are no table of tensors by their names: take others")
    return {str(key): values for key, values in state.items() if isinstance(values, Tensor)}
