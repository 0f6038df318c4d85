"""The peers' own environment, apart from ours, made when it is absent; and what a child process needed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
DATA = ROOT.parent / "shared" / "data"


def install(*packages: str) -> None:
    """Packages with their exact versions, into the peers' environment."""
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", PYTHON.parents[1]], check=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)


def run(command: list[str | Path], **environment: str) -> tuple[float, float, str]:
    """Seconds and peak gigabytes of a command, its children included, and the last line that it printed."""
    start = time.perf_counter()
    line = list(map(str, command))
    child = subprocess.Popen(line, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    printed = child.stdout.read().strip().splitlines() if child.stdout else []
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command[0]} failed with status {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1e6, printed[-1] if printed else ""


def report(benchmark: str, **figures: object) -> None:
    """The last line that a benchmark prints."""
    print(json.dumps({"benchmark": benchmark, "figures": figures}))
