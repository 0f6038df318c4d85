"""Other people's programs: run without a shell, and ended with the job that started them."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

LOG_LINES = 15
# Runs a program (its arguments) as long as somebody holds the other end of stdin: a job that is killed takes it along.
GUARD = """
import os, signal, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def end():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end, daemon=True).start()
status = child.wait()
os._exit(status if 0 <= status < 256 else 128 - status)
"""


def run_program(
    line: Sequence[str], folder: Path, output: Path, *, time_limit_s: float, environment: Mapping[str, str]
) -> int | None:
    """Run a program in a folder; what it prints goes to the file ``output``.

    The program and what it starts end when the time is over or this process ends, however it does.

    Returns
    -------
    Its exit status (128 and the number of the signal, where one ended it); None: the time was over.
    """
    log.info("runs %s", " ".join(line))
    with output.open("wb") as file:
        guard = subprocess.Popen(
            [sys.executable, "-c", GUARD, *line],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            return guard.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if guard.poll() is None:
                os.killpg(guard.pid, signal.SIGKILL)
                guard.wait()
            if guard.stdin is not None:
                guard.stdin.close()


def end_of_log(lines: Iterable[str]) -> str:
    """The last lines of a log that are not empty, for the message of a failure."""
    told = [line.strip() for line in lines if line.strip()]
    return "its log ends:\n" + "\n".join(told[-LOG_LINES:] or ["(empty)"])
