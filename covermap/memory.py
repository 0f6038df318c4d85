"""What to do where memory has no room for a batch."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import numpy as np
import torch

from covermap.checkpoint import State
from covermap.loader import on_device
from covermap.losses import tile_loss
from covermap.models.outputs import outputs_of
from covermap.settings import Training
from covermap.store import TileStore

if TYPE_CHECKING:
    from lightning_fabric import Fabric


ON_CPU = "can't allocate memory", "could not create a primitive"  # what torch and oneDNN say there


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of too little memory, of the GPU or of the CPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(phrase in str(error) for phrase in ON_CPU)


def what_fits(fabric: Fabric, state: State, training: TileStore, recipe: Training) -> str:
    """The sentence about a batch that memory has no room for, with half of it, a quarter, ... that it has room for."""
    memory = f"the memory of the {'GPU' if fabric.device.type == 'cuda' else 'machine'}"
    size = -(-recipe.batch // fabric.world_size)
    while size > 1:
        size //= 2
        gc.collect()
        torch.cuda.empty_cache()
        if fits(fabric, state, training, recipe, size):
            fitting = size * fabric.world_size
            return f"training.batch is {recipe.batch}, which is too much for {memory}: set it to {fitting}, which fits"
    return f"not one tile fits into {memory}: lessen tiles.pixels or the width of the network"


def fits(fabric: Fabric, state: State, training: TileStore, recipe: Training, size: int) -> bool:
    """Whether a step can be taken with so many tiles; the state is not to be used afterwards."""
    try:
        batch = on_device(training.batch(np.arange(size) % len(training)), fabric.device)
        state.optimiser.zero_grad(set_to_none=True)
        state.net.train()
        with fabric.autocast():
            outputs = outputs_of(state.net(batch))
        tile_loss(outputs, batch, state.class_weight, recipe).backward()
        state.optimiser.step()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
