"""A network and a forest on the same held-out tiles, by the ordinary rules."""

import json
import os
import re
from pathlib import Path

import pytest

from covermap.step import GPU_DRIVERS
from tests.conftest import run_snakemake, small_settings

pytestmark = pytest.mark.long
SCORES = "results/models/unet_demo/scores.json"


def rules_of(folder, settings):
    done = run_snakemake(folder, settings, SCORES, "-n", "--quiet", "rules")
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"^(\w+)\s+\d+$", done.stdout, re.MULTILINE)) - {"total"}


@pytest.mark.parametrize("hidden", [False, True])
def test_networks_ask_for_a_gpu_where_there_is_one_and_jobs_of_a_cpu_for_none(copied_world, hidden, monkeypatch):
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    else:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    targets = SCORES, "results/maps/demo.tif"
    done = run_snakemake(copied_world, small_settings(copied_world), *targets, "-n", "--forceall", "--quiet", "host")
    assert done.returncode == 0, done.stdout + done.stderr
    asked = dict(re.findall(r"^rule (\w+):\n(?:    .*\n)*?    resources: .*gpu=(\d)", done.stdout, re.MULTILINE))
    wanted = str(int(not hidden and any(map(os.path.exists, GPU_DRIVERS))))
    assert asked == dict.fromkeys(("train", "predict_block", "score_tiles"), wanted)


def test_scores_stand_beside_those_of_the_forest_and_follow_the_legend(copied_world, tmp_path, snakemake):
    settings = small_settings(copied_world)
    snakemake(copied_world, settings, SCORES)
    result = json.loads((copied_world / SCORES).read_text())
    log = (copied_world / "results/logs/score_tiles/unet_demo.log").read_text()
    for split in ("validation", "test"):
        network, forest = (result[who][split] for who in ("network", "forest"))
        assert {name: sum(n for *_, n in cells) for name, cells in network["cells"].items()} == {
            name: sum(n for *_, n in cells) for name, cells in forest["cells"].items()
        }
        assert forest["overall"] > 0.4
        assert f"{split} tiles: network overall {network['overall']:.3f}" in log
        assert f"forest overall {forest['overall']:.3f}" in log
    metrics = json.loads((copied_world / "results/models/unet_demo/metrics.json").read_text())
    assert result["network"]["validation"]["overall"] == pytest.approx(metrics["validation"]["overall"], abs=0.01)
    assert (copied_world / "results/models/unet_demo/confusion_log.png").stat().st_size > 5000
    assert rules_of(copied_world, settings) == set()
    legend, rows = tmp_path / "legend.csv", Path(settings["aois"]["demo"]["labels"]["legend"]).read_text()
    legend.write_text(rows.replace(re.findall(r"#[0-9A-Fa-f]{6}", rows)[0], "#123456"))
    settings["aois"]["demo"]["labels"]["legend"] = str(legend)
    assert rules_of(copied_world, settings) == {"score_tiles"}
