"""Faults at random, with processes that are killed, compete or run out of room: right bytes or a clear error."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment
from tests.servers.faulty import SECRET, SIGNATURE, Faulty, plan, serving

UNSEEN = {"corrupt", "length_too_short"}  # what nobody can see without a checksum
SECRETS = (SECRET, SIGNATURE, "Bearer", "-of-a-secret")
ENDS = ("undisturbed", "killed", "killed", "two", "two_killed", "disk_full")


@dataclass
class Case:
    """What one run goes through."""

    seed: int
    content: bytes = b""
    faults: list[str] = field(default_factory=list)
    end: str = "undisturbed"
    checksum: tuple[str, str] | None = None
    size: int | None = None


def case_of(seed: int) -> Case:
    source = random.Random(seed)
    content = source.randbytes(source.choice((1, 1000, 300_000, 1_500_000)))
    faults = plan(seed)
    known = UNSEEN & set(faults) or source.random() < 0.7
    checksum = ("md5", hashlib.md5(content).hexdigest()) if known else None
    size = len(content) if source.random() < 0.5 else None
    return Case(seed, content, faults, source.choice(ENDS), checksum, size)


def start(folder: Path, server: Faulty, case: Case, number: int, largest_file: int | None = None) -> subprocess.Popen:
    job = folder / f"job{number}.json"
    settings = {
        "url": f"{server.url}/a.zip?signature={SIGNATURE}",
        "path": str(folder / "files" / "a.zip"),
        "token": f"{server.url}/token",
        "size": case.size,
        "checksum": case.checksum,
        "largest_file": largest_file,
    }
    job.write_text(json.dumps(settings))
    runtime = {"XDG_RUNTIME_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "tests.servers.fetching", str(job)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env={**environment(), **runtime}, **pipes)


def judge(folder: Path, case: Case, process: subprocess.Popen) -> str:
    """How a process ended; fails where it neither brought the right bytes nor said in one sentence why not."""
    said, log = process.communicate(timeout=60)
    assert not [secret for secret in SECRETS if secret in said + log]
    path = folder / "files" / "a.zip"
    assert not path.exists() or path.read_bytes() == case.content, "wrong bytes under the final name"
    if process.returncode == 0:
        assert path.exists()
        return "right"
    if process.returncode == -signal.SIGKILL:
        return "killed"
    assert process.returncode == 3, said + log
    assert said.count("\n") == 1 and ("127.0.0.1" in said or "localhost" in said or "a.zip" in said), said
    return "error"


def keep_secrets(folder: Path, server: Faulty) -> None:
    notes = [path.read_text(errors="replace") for path in (folder / "files").glob(".*.json")]
    assert not [secret for note in notes for secret in SECRETS if secret in note]
    assert not server.leaks


def disturbed(folder: Path, server: Faulty, case: Case) -> list[str]:
    """Run as the case wants it."""
    source = random.Random(case.seed + 1)
    largest = source.randint(0, len(case.content)) if case.end == "disk_full" else None
    processes = [start(folder, server, case, number, largest) for number in range(1 + case.end.startswith("two"))]
    if case.end.endswith("killed"):
        asked = time.monotonic() + 30
        while not server.asked and processes[0].poll() is None and time.monotonic() < asked:
            time.sleep(0.005)
        time.sleep(source.uniform(0, 0.6))
        os.kill(processes[0].pid, signal.SIGKILL)
    return [judge(folder, case, process) for process in processes]


def run(folder: Path, seed: int) -> None:
    case = case_of(seed)
    (folder / "files").mkdir()
    rate = 3e6 if case.end.startswith(("killed", "two")) else 0
    with serving({"/a.zip": case.content}, case.faults, seed=seed, rate=rate) as server:
        ends = disturbed(folder, server, case)
        keep_secrets(folder, server)
        server.refusing, server.faults = False, []
        if "right" not in ends:  # once the faults are over, the next run ends well
            assert judge(folder, case, start(folder, server, case, 9)) == "right", ends
        keep_secrets(folder, server)
    left = {path.name for path in (folder / "files").iterdir()}
    assert "a.zip" in left
    if not {"killed", "error"} & set(ends):
        assert left == {"a.zip"}


@pytest.mark.parametrize("seed", range(20))
def test_right_bytes_or_a_clear_error(tmp_path, seed):
    run(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20, 220))
def test_right_bytes_or_a_clear_error_200_times(tmp_path, seed):
    run(tmp_path, seed)
