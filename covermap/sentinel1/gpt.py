"""SNAP's program gpt: finding it, running a graph with it, and saying in a sentence why it failed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from covermap.errors import CovermapError
from covermap.program import end_of_log, run_program

CACHE_SHARE = 0.5  # of the heap
HEAP_SHARE = 0.75  # of the job's memory; the rest is the JVM's own and this process
# The same command line through esa_snappy: GPT is the class that the program gpt starts.
THROUGH_SNAPPY = """
import sys
from esa_snappy import jpy
words = sys.argv[1:]
line = jpy.array("java.lang.String", len(words))
for number, word in enumerate(words):
    line[number] = word
jpy.get_type("org.esa.snap.core.gpf.main.GPT").run(line)
"""


def find_snap() -> tuple[str, ...] | None:
    """Words that start gpt: the program in ``$SNAP_HOME/bin`` or on the PATH, or Python with esa_snappy; None."""
    home = os.environ.get("SNAP_HOME")
    for program in (shutil.which("gpt", path=str(Path(home) / "bin")) if home else None, shutil.which("gpt")):
        if program and _is_snap(Path(program)):
            return (program,)
    reaches = [sys.executable, "-c", "import esa_snappy; esa_snappy.jpy.get_type('org.esa.snap.core.gpf.main.GPT')"]
    try:
        done = subprocess.run(reaches, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return None
    return (sys.executable, "-c", THROUGH_SNAPPY) if done.returncode == 0 else None


def _is_snap(program: Path) -> bool:
    """SNAP's gpt is a script that starts a class of SNAP's (on Windows gpt.exe); others share its name."""
    with program.open("rb") as file:
        text = file.read(2**16)
    return program.suffix == ".exe" or (text.startswith(b"#!") and b"snap" in text.lower())


def command_line(snap: tuple[str, ...], folder: Path, threads: int, mem_mb: int) -> list[str]:
    """Words of the command that runs ``graph.xml`` of a folder."""
    heap_mb = int(mem_mb * HEAP_SHARE)
    orbits = [f"-DOrbitFiles.sentinel1{kind}OrbitPath={folder / 'orbits'}" for kind in ("POE", "RES")]
    line = [*snap, str(folder / "graph.xml"), "-e", "-c", f"{int(heap_mb * CACHE_SHARE)}M", "-q", str(threads), *orbits]
    return line if _through_snappy(snap) else [*line, f"-J-Xmx{heap_mb}m"]


def _through_snappy(snap: tuple[str, ...]) -> bool:
    return len(snap) > 1


def run_gpt(snap: tuple[str, ...], folder: Path, *, threads: int, mem_mb: int, time_limit_s: float) -> None:
    """Run ``graph.xml`` of a folder; output goes to its ``gpt.log``.

    gpt and what it starts end when the time is over or this process ends, however it does.

    Raises
    ------
    CovermapError
        gpt ended with an error, ran out of time or heap, or made no product.
    """
    environment = dict(os.environ)
    if _through_snappy(snap):  # esa_snappy starts the JVM itself, with a heap from its own file
        environment["_JAVA_OPTIONS"] = f"{environment.get('_JAVA_OPTIONS', '')} -Xmx{int(mem_mb * HEAP_SHARE)}m".strip()
    line = command_line(snap, folder, threads, mem_mb)
    output = folder / "gpt.log"
    status = run_program(line, folder, output, time_limit_s=time_limit_s, environment=environment)
    text = output.read_text(errors="replace")
    fault = _fault(status, text, (folder / "backscatter.dim").exists(), mem_mb, time_limit_s)
    if fault:
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("at ")]
        raise CovermapError(f"SNAP's gpt {fault}; {end_of_log(lines)}")


def _fault(status: int | None, text: str, written: bool, mem_mb: int, time_limit_s: float) -> str | None:
    """What went wrong and how to mend it; gpt may print an exception and still end with status 0."""
    if status is None:
        return (
            f"did not end within {time_limit_s / 60:.3g} minutes and was stopped: give process_s1 more runtime, or set "
            f"sentinel1.processor to native"
        )
    if "OutOfMemoryError" in text:
        return f"ran out of memory with a heap of {int(mem_mb * HEAP_SHARE)} MB: give process_s1 more mem_mb"
    if "No valid orbit file found" in text:
        return "found no orbit file that covers the scene: put one into the folder sentinel1.orbits, or unset it"
    if "no valid output was produced" in text or "Problem reading DEM" in text:
        return "made no pixel from the DEM: check that the area's dem covers the scene and holds metres"
    if status and "saveLayoverShadowMask" in text:
        return "is of a release that makes no layover mask: update SNAP, or take layover_shadow out of sentinel1.layers"
    if "NullPointerException" in text:
        return (
            f"failed inside itself (status {status}, NullPointerException): check that the product is whole, update "
            f"SNAP, or set sentinel1.processor to native"
        )
    if status:
        return f"failed with status {status}: see docs/snap.md, or set sentinel1.processor to native"
    return None if written else "ended well but wrote no product: see docs/snap.md, or take the native chain"
