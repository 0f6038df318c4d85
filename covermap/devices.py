"""What networks run on: the CPU, one GPU or several, and in which precision."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from covermap import errors
from covermap.step import LOG_FORMAT

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CPU_PROCESSES = 1  # that train together where there is no GPU: threads do the same with less memory

Result = TypeVar("Result")


def use_device(threads: int) -> torch.device:
    """The GPU where there is one, else the CPU with a fixed number of threads and deterministic kernels."""
    torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a kernel a tensor
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16."""
    on_cpu = device.type == "cpu"
    return bool(torch.cpu._is_avx512_bf16_supported() if on_cpu else torch.cuda.is_bf16_supported(False))


def reduced_precision(device: torch.device, reduced: bool = True) -> torch.autocast:
    """Autocast to bfloat16 where it is wanted and the hardware multiplies it, nothing elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=reduced and has_bfloat16(device))


def alone_on(device: torch.device, reduced: bool) -> Fabric:
    """Fabric of one device alone, whatever the others do; parameters as of ``on_all_devices``."""
    from lightning_fabric import Fabric

    devices = 1 if device.type == "cpu" else [device.index or 0]
    return Fabric(accelerator=device.type, devices=devices, precision=_precision(device, reduced))


def _precision(device: torch.device, reduced: bool) -> Literal["bf16-mixed", "32-true"]:
    return "bf16-mixed" if reduced and has_bfloat16(device) else "32-true"


def on_all_devices(
    function: Callable[..., Result], *arguments: Any, threads: int, reduced: bool, at_most: int
) -> Result:
    """Call a function with Lightning Fabric on all GPUs, each with a process of its own, or on the CPU.

    Parameters
    ----------
    function : of the module's top level; its first argument is the Fabric.
    arguments : the others, which can be pickled.
    threads : torch threads of each process.
    reduced : compute in bfloat16 where the hardware multiplies it.
    at_most : devices.

    Returns
    -------
    What the first process returns.

    Raises
    ------
    CovermapError
        One that a process raised.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    device = use_device(threads)
    count = min(torch.cuda.device_count() if device.type == "cuda" else CPU_PROCESSES, at_most)
    fabric = Fabric(
        accelerator=device.type,
        devices=count,
        strategy=DDPStrategy(start_method="spawn") if count > 1 else "auto",
        precision=_precision(device, reduced),
        plugins=[LightningEnvironment()],  # a cluster's own would start a process for each of its tasks
    )
    if count == 1:
        return function(fabric, *arguments)
    files = [
        handler.baseFilename for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)
    ]
    begin: Callable[..., Result] = _in_process
    with _without_script():
        try:
            return fabric.launch(begin, files[:1], threads, function, *arguments)
        except torch.multiprocessing.ProcessRaisedException as error:
            raise _as_raised(error) from None


def _in_process(
    fabric: Fabric, files: list[str], threads: int, function: Callable[..., Result], *arguments: Any
) -> Result:
    if files and fabric.is_global_zero:
        logging.basicConfig(filename=files[0], level="INFO", force=True, format=LOG_FORMAT)
    use_device(threads)
    return function(fabric, *arguments)


@contextmanager
def _without_script() -> Iterator[None]:
    """Started processes import the script that runs, which in a job would run it again: hide it from them."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _as_raised(error: torch.multiprocessing.ProcessRaisedException) -> Exception:
    """What a process raised, where it is an error of ours; it comes as the last line of a traceback."""
    name, _, sentence = str(error).strip().rpartition("\n")[2].partition(": ")
    kind = getattr(errors, name.removeprefix(f"{errors.__name__}."), None)
    return kind(sentence) if sentence and isinstance(kind, type) else error
