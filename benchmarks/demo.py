"""The whole demo from nothing, in a folder of its own: time, memory and what the map is worth.

Figures: ``seconds`` and ``peak_gb`` (all processes together) of the run, ``noop_seconds`` of a second one, seconds by
rule, and the accuracy of map, label and random forest against the simulator's truth on held-out cells.
"""

import csv
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


def run(folder: Path) -> tuple[float, float]:
    """Seconds and peak gigabytes of one run of the workflow."""
    line = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    line += ["--cores", "all", "--quiet", "all"]
    start, peak, done = time.perf_counter(), 0.0, threading.Event()
    process = psutil.Popen(list(map(str, line)), cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)})

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.2):
            peak = max(peak, memory_gb(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    done.set()
    watcher.join()
    if status:
        sys.exit(f"the run in {folder} failed")
    return time.perf_counter() - start, peak


def memory_gb(process: psutil.Process) -> float:
    """Memory of a process and all below it that no other process shares; 0 once it is gone."""
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_full_info().uss
    except psutil.Error:
        pass
    return total / 1e9


def by_rule(folder: Path) -> dict[str, float]:
    """Seconds of each measured rule, all its jobs together."""
    seconds: dict[str, float] = {}
    for path in folder.rglob("*.tsv"):
        with open(path) as file:
            row = next(csv.DictReader(file, delimiter="\t"))
        rule = path.relative_to(folder).parts[0].removesuffix(".tsv")
        seconds[rule] = round(seconds.get(rule, 0) + float(row["s"]), 1)
    return dict(sorted(seconds.items()))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("config", "resources/aois", "resources/legends"):
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            (folder / part).symlink_to(ROOT / part)
        seconds, peak = run(folder)
        again, _ = run(folder)
        reference = json.loads((folder / "results/accuracy/demo/unet_demo.json").read_text())["reference"]
        figures = {
            "seconds": round(seconds),
            "peak_gb": round(peak, 2),
            "noop_seconds": round(again, 1),
            "by_rule": by_rule(folder / "results/benchmarks"),
            "accuracy": {key: round(reference[key]["overall"], 4) for key in ("map", "label", "baseline")},
            "map_minus_label": reference["map_minus_label"],
            "map_minus_baseline": reference["map_minus_baseline"],
        }
    print(json.dumps({"benchmark": "demo", "figures": figures}))


if __name__ == "__main__":
    main()
