"""Real files beside the project, the workflow's own command, and one small world that all workflow tests share."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from covermap.simulator.catalog import world_polygon

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
PIXELS = 512

Settings = dict[str, Any]


WORLDLY = [
    path for path in Path(__file__).parent.rglob("test_*.py") if re.search("(small|copied)_world", path.read_text())
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests share the small world come first: they take longest, and no process shall wait for them."""
    items.sort(key=lambda item: item.path not in WORLDLY)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one file stay in one process; so do all that share the small world, which is made once."""
    from xdist.scheduler import LoadScopeScheduling

    worldly = {path.relative_to(ROOT).as_posix() for path in WORLDLY}

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "world" if file in worldly else file

    return Together(config, log)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real files; skips with the reason where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"real data not found at {DATA}")
    return DATA


def command(folder: Path, config: Settings, *words: str) -> list[str]:
    """Snakemake's command line for the workflow's rules in a folder of their own."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    fixed = ["--snakefile", ROOT / "Snakefile", "--directory", folder, "--configfile", file, "--cores", "2"]
    return [sys.executable, "-m", "snakemake", *map(str, fixed), *words]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run_snakemake(folder: Path, config: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    """Run and wait; output and exit status as they are."""
    line = command(folder, config, *words)
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="session")
def snakemake() -> Callable[..., None]:
    """Function that runs the workflow's rules in a folder with a configuration, and shows its output if it fails."""

    def run(folder: Path, config: Settings, *targets: str) -> None:
        done = run_snakemake(folder, config, *targets)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


def small_settings(folder: Path) -> Settings:
    """The demo at a quarter of its side and a third of its year, with a network that trains in seconds."""
    settings: Settings = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    (folder / "area.geojson").write_text(json.dumps(world_polygon(PIXELS)))
    legend = str(ROOT / "resources" / "legends" / "mapbiomas.csv")
    demo = settings["aois"]["demo"]
    settings |= {"aois": {"demo": demo}, "models": {"unet_demo": settings["models"]["unet_demo"]}}
    demo.update(area="area.geojson", block_pixels=256, period={"start": "2021-12-01", "end": "2022-04-30"})
    demo["labels"]["legend"] = demo["reference"]["legend"] = legend
    settings["models"]["unet_demo"] |= {
        "options": {"width": 8, "depth": 2},
        "tiles": {"pixels": 32, "stride_pixels": 32, "cell_pixels": 64, "buffer_pixels": 8},
        "training": {"epochs": 8, "batch": 8, "learning_rate": 5e-3, "threads": 1},
        "prediction": {"window_pixels": 64, "batch": 8},
    }
    settings["simulator"] = {"pixels": PIXELS, "seed": 1}
    return settings


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory, snakemake: Callable[..., None]) -> Path:
    """Folder of one finished run over a small simulated world; tests read it and never change it."""
    folder = tmp_path_factory.mktemp("small") / "world"
    folder.mkdir()
    snakemake(folder, small_settings(folder))
    return folder


@pytest.fixture
def copied_world(small_world: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, with Snakemake's own records, for a test to change."""
    folder = tmp_path / "world"
    shutil.copytree(small_world, folder, symlinks=True)
    return folder
