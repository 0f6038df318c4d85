"""One function as one job: the single border between Snakemake's strings and typed Python."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from covermap.errors import CovermapError

FOR_SNAKEMAKE = {"version", "listing", "sources", "stamp"}  # reruns or orders jobs, but no argument
SEQUENCES = ("list", "tuple")  # how the annotations of arguments begin that may well be empty
RESOURCES = {"mem_mb", "runtime"}  # of a job that a step is told of
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # of NVIDIA's and of AMD's
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def has_gpu() -> bool:
    """Whether jobs see a GPU, by its driver alone: torch is slow to import, and the workflow is read often."""
    return any(map(os.path.exists, GPU_DRIVERS)) and os.getenv("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def run(step: Callable[..., None], snakemake: Any) -> None:
    """Call ``step`` with the files, settings and threads of one job; types checked, log in the rule's log file."""
    _die_with_parent()
    os.environ.setdefault("GDAL_CACHEMAX", "256")  # MB; by default GDAL takes a twentieth of the machine
    logging.basicConfig(filename=snakemake.log[0], level="INFO", force=True, format=LOG_FORMAT)
    groups = (snakemake.input, snakemake.output, snakemake.params)
    expected = inspect.signature(step).parameters
    given = {name: value for group in groups for name, value in group.items()}
    arguments = {name: value for name, value in given.items() if name in expected or name not in FOR_SNAKEMAKE}
    for name, value in arguments.items():
        if value == [] and not str(expected[name].annotation).startswith(SEQUENCES):  # what this area does not have
            arguments[name] = None
    if "threads" in expected:
        arguments["threads"] = snakemake.threads
    for name in RESOURCES & set(expected):
        arguments[name] = getattr(snakemake.resources, name)
    job = " ".join([step.__name__, *(f"{name}={value}" for name, value in snakemake.wildcards.items())])
    try:
        validate_call(config=ConfigDict(arbitrary_types_allowed=True))(step)(**arguments)
    except (CovermapError, ValidationError) as error:
        logging.error("%s", error)
        sys.exit(f"{job}: {error}")
    except Exception:
        logging.exception("%s failed", job)
        raise


def _die_with_parent() -> None:
    """End this job when the Snakemake that started it is gone, so that a killed run leaves nobody writing."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
