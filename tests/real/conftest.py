"""Real files beside the project, and the workflow's own command over them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real files; skips with the reason where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"real data not found at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def snakemake() -> Callable[..., None]:
    """Function that runs the workflow's rules in a folder with a configuration, and shows its output if it fails."""

    def run(folder: Path, config: dict[str, Any], *targets: str) -> None:
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
        command += ["--configfile", file, "--cores", "2", *targets]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return run
