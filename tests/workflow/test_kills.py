"""A killed run is taken up again by the same command and ends in the same map."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from covermap.lock import holders

from ..conftest import command, environment, small_settings

# from where a run starts over, and how soon after that it is killed [s]
QUICK = (("results/predictions", 5),)
BEGINNINGS = ("", "results/s1", "results/stacks", "results/tiles")
LONG = (
    ("results/s1", 9),
    ("results/tiles", 8),
    ("results/models", 6),
    *((beginning, seconds) for beginning in BEGINNINGS for seconds in (4, 11, 19)),
)


def release(folder):
    subprocess.run([sys.executable, "-m", "covermap.lock"], cwd=folder, check=True, env=environment(), timeout=60)


def start(folder):
    line = command(folder, small_settings(folder))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(line, env=environment(), start_new_session=True, **quiet)


def digest(folder):
    files = sorted((folder / "results/maps").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def forget(folder, beginning):
    """Remove the results from one stage on, as if the run had not got there."""
    stages = ["results/s1", "results/s2", "results/stacks", "results/tiles", "results/models", "results/predictions"]
    stages = stages[stages.index(beginning) :] if beginning else ["results", "resources/demo", ".snakemake"]
    for stage in [*stages, "results/maps", "results/baselines", "results/accuracy", "results/reports"]:
        shutil.rmtree(folder / stage, ignore_errors=True)


def survive(small_world, folder, beginning, seconds, whole_group):
    """Kill a run after some seconds, start it again, and compare its maps with those of an undisturbed run."""
    forget(folder, beginning)
    process = start(folder)
    time.sleep(seconds)
    assert process.poll() is None, "the run ended before it could be killed"
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    release(folder)
    again = start(folder)
    assert again.wait(timeout=600) == 0
    assert digest(folder) == digest(small_world)
    assert not [path for path in (folder / "results").rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize(("beginning", "seconds"), QUICK)
def test_a_killed_run_ends_in_the_same_map(small_world, copied_world, beginning, seconds):
    survive(small_world, copied_world, beginning, seconds, whole_group=seconds % 2 == 0)


@pytest.mark.long
@pytest.mark.parametrize(("beginning", "seconds"), LONG)
def test_kills_anywhere(small_world, copied_world, beginning, seconds):
    jitter = random.Random(seconds).random()
    survive(small_world, copied_world, beginning, seconds + jitter, whole_group=seconds % 2 == 1)


def test_a_held_lock_is_respected(copied_world):
    forget(copied_world, "results/predictions")
    process = start(copied_world)
    while not holders(copied_world):
        time.sleep(0.1)
    waiting = subprocess.Popen(
        [sys.executable, "-m", "covermap.lock"], cwd=copied_world, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert waiting.stdout.readline().startswith("covermap already runs here")
    assert process.wait(timeout=300) == 0
    assert waiting.wait(timeout=60) == 0
