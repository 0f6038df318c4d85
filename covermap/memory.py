"""What to do where memory has no room for a batch."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

PHRASES = (  # what torch, oneDNN, cuBLAS and cuDNN say where there is too little
    "can't allocate memory",
    "could not create a primitive",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of too little memory, of the GPU or of the CPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(phrase in str(error) for phrase in PHRASES)


def what_fits(step: Callable[[int], object], device: torch.device, batch: int, devices: int) -> str:
    """The sentence about a batch that memory has no room for, with half of it, a quarter, ... that it has room for.

    Parameters
    ----------
    step : takes a step of training with so many tiles on the device.
    batch : tiles a step, on all devices together.
    """
    memory = f"the memory of the {'GPU' if device.type == 'cuda' else 'machine'}"
    size = -(-batch // devices)
    while size > 1:
        size //= 2
        gc.collect()
        torch.cuda.empty_cache()
        if fits(step, size):
            return f"training.batch is {batch}, which is too much for {memory}: set it to {size * devices}, which fits"
    return f"not one tile fits into {memory}: lessen tiles.pixels or the width of the network"


def fits(step: Callable[[int], object], size: int) -> bool:
    """Whether a step can be taken with so many tiles."""
    try:
        step(size)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
