"""After a kill: wait for a Snakemake that still runs here, and remove the lock of one that does not.

``python -m covermap.lock`` runs before each ``make`` target that starts the workflow. It sees the processes of this
machine alone: where several machines share a folder, ``snakemake --unlock`` is for the person who knows them.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import psutil


def holders(folder: Path) -> list[int]:
    """Process numbers of the Snakemakes whose working directory is ``folder``, and of jobs that outlive theirs."""
    return [
        process.info["pid"]
        for process in psutil.process_iter(["pid", "cwd", "cmdline"])
        if process.info["cwd"] == str(folder) and any(map(_of_snakemake, (process.info["cmdline"] or [])[:3]))
    ]


def _of_snakemake(word: str) -> bool:
    return Path(word).name == "snakemake" or Path(word).parent.match(".snakemake/scripts")


def release(folder: Path) -> None:
    """Wait until no Snakemake works in ``folder``, then remove a lock that a killed one left."""
    told = False
    while running := holders(folder):
        if not told:
            print(f"covermap already runs here (process {', '.join(map(str, running))}): waiting for it", flush=True)
            told = True
        time.sleep(1)
    shutil.rmtree(folder / ".snakemake" / "locks", ignore_errors=True)  # what `snakemake --unlock` removes


if __name__ == "__main__":
    release(Path.cwd())
