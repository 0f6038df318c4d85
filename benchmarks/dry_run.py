"""How long the plan of a whole state takes: a dry run of Mato Grosso with the pinned list of the tests.

Figures: ``seconds`` of the command, interpreter included (asked for: 25), ``peak_mb`` of its largest process and
``jobs`` that it plans.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (
    "snakemake -n results/maps/mato_grosso.tif --configfile tests/fixtures/mato_grosso.yaml"  # docs/data-sources.md
)


def main() -> None:
    line = [sys.executable, "-m", *COMMAND.split(), "--snakefile", str(ROOT / "Snakefile")]
    with tempfile.TemporaryDirectory() as name:
        for part in ("config", "resources/aois", "resources/legends", "tests/fixtures"):
            (Path(name) / part).parent.mkdir(exist_ok=True)
            (Path(name) / part).symlink_to(ROOT / part)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        start = time.perf_counter()
        done = subprocess.run(line, cwd=name, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    jobs = re.search(r"^total\s+(\d+)$", done.stdout, re.MULTILINE)
    if done.returncode or jobs is None:
        sys.exit(f"the dry run failed: {done.stdout}{done.stderr}")
    figures = {
        "seconds": round(seconds, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6),  # told in KiB
        "jobs": int(jobs[1]),
    }
    print(json.dumps({"benchmark": "dry_run", "figures": figures}))


if __name__ == "__main__":
    main()
