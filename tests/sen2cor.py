"""A program in the place of Sen2Cor's L2A_Process: it takes its words, and gives Level-2A products that lie ready."""

from __future__ import annotations

import sys
from pathlib import Path

STAND_IN = r"""
import argparse, os, re, shutil, subprocess, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()  # of release 2.8 and later, toolbox mode
parser.add_argument("input_dir")
parser.add_argument("--mode")
parser.add_argument("--resolution", type=int, choices=[10, 20, 60])
for word in ("output_dir", "work_dir", "processing_baseline", "GIP_L2A", "GIP_L2A_SC", "GIP_L2A_AC", "GIP_L2A_PB"):
    parser.add_argument("--" + word)
for word in ("raw", "tif", "sc_only", "cr_only", "debug"):
    parser.add_argument("--" + word, action="store_true")
words = parser.parse_args()
source, how = Path(words.input_dir), os.environ.get("STAND_IN", "write")
print("Sentinel-2 Level 2A Processor (Sen2Cor). Version: 02.11.00, created: 2022.06.28 started ...")
if "PYTHONPATH" in os.environ or "PYTHONHOME" in os.environ:
    sys.exit("[CRITICAL] modules of another Python")
if not re.fullmatch(r"S2._MSIL1C_.*\.SAFE", source.name) or not (source / "MTD_MSIL1C.xml").is_file():
    sys.exit("[CRITICAL] L1C user product directory must match the following mask: S2?_MSIL1C*.SAFE")
if not (source / "AUX_DATA").is_dir() or not (source / "HTML").is_dir():
    sys.exit("[CRITICAL] Error in creating L2A User Product")
if words.GIP_L2A:
    print("GIPP:", Path(words.GIP_L2A).read_text().strip())
if how == "hang":
    child = subprocess.Popen(["sleep", "600"])
    Path(os.environ["STAND_IN_PIDS"]).write_text(f"{os.getpid()} {child.pid}")
    child.wait()
if how == "killed":
    os.kill(os.getpid(), 9)

level, count = {"level": ("L1C", 1), "two": ("L2A", 2), "nothing": ("L2A", 0)}.get(how, ("L2A", 1))
unit, _, moment, _, orbit, tile, _ = source.stem.split("_")
wanted = f"{unit}_MSIL2A_{moment}_*_{'*' if how == 'tile' else tile}_*.SAFE"
ready = next(Path(os.environ["STAND_IN_PRODUCTS"]).glob(wanted))
for number in range(count):
    tile = "T01ABC" if how == "tile" else tile
    made = Path(words.output_dir) / f"{unit}_MSI{level}_{moment}_N9999_{orbit}_{tile}_2026010{number + 1}T000000.SAFE"
    shutil.copytree(ready, made)
    metadata = made / "MTD_MSIL2A.xml"
    text = metadata.read_text().replace(ready.stem, made.stem)
    metadata.write_text(re.sub("(<PROCESSING_BASELINE>)[^<]*", r"\g<1>99.99", text))
if how in ("fails", "fails quietly"):
    print("Progress[%]: 100.00 : Application terminated with at least one error.")
    sys.exit(how == "fails")
print("Progress[%]: 100.00 : Application terminated successfully.")
"""


def install(folder: Path) -> Path:
    """Write the program into a folder; its place.

    ``$STAND_IN`` tells what it does ("write", "fails", "hang" ...), ``$STAND_IN_PRODUCTS`` where products lie ready.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "L2A_Process"
    program.write_text(f"#!{sys.executable} -I\n{STAND_IN}")
    program.chmod(0o755)
    return program
