"""A remedy for convolutions in bfloat16 on the CPU, some of whose weights see padding alone.

Where a map is so small that a place of the kernel (a tap) never lies on it, the gradient of that tap is 0. oneDNN,
which multiplies bfloat16 on the CPU, leaves it unwritten: whatever was in memory becomes a gradient (seen with torch
2.13 and strides, and with kernels of 7). That ends in NaN, or in weights that differ from run to run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from covermap.loader import on_device


def clear_unseen_taps(net: nn.Module, tile: dict[str, np.ndarray]) -> None:
    """Make the gradients of all taps 0 that see padding alone in tiles of this size.

    Parameters
    ----------
    net : on the CPU.
    tile : arrays of one.
    """
    seen: dict[nn.Conv2d, Tensor] = {}
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    hooks = [layer.register_forward_pre_hook(partial(_note, seen)) for layer in layers]
    was_training = net.training
    with torch.inference_mode():
        net.eval()(on_device({key: values[None] for key, values in tile.items()}, torch.device("cpu")))
    net.train(was_training)
    for hook in hooks:
        hook.remove()
    for layer, taps in seen.items():
        if not taps.all():
            layer.weight.register_hook(_only(taps.clone()))


def _only(taps: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: torch.where(taps, gradient, 0)


def _note(seen: dict[nn.Conv2d, Tensor], layer: nn.Conv2d, inputs: tuple[Tensor]) -> None:
    """Add the taps (kernel rows, kernel columns) that see the layer's input, in any of its calls."""
    rows, columns = (taps_on_data(layer, axis, length) for axis, length in enumerate(inputs[0].shape[-2:]))
    taps = rows[:, None] & columns[None, :]
    seen[layer] = seen[layer] | taps if layer in seen else taps


def taps_on_data(layer: nn.Conv2d, axis: int, length: int) -> Tensor:
    """Which places of the kernel along an axis lie on an input of this length at least once: bool (kernel,)."""
    kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
    reach = dilation * (kernel - 1)
    if isinstance(layer.padding, str):
        before, both = (reach // 2, reach) if layer.padding == "same" else (0, 0)
    else:
        before, both = layer.padding[axis], 2 * layer.padding[axis]
    steps = (length + both - reach - 1) // stride + 1
    places = (
        dilation * torch.arange(kernel)[:, None] - before + stride * torch.arange(steps)[None, :]
    )  # (kernel, steps)
    return ((places >= 0) & (places < length)).any(1)
