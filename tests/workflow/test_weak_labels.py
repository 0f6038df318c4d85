"""Which jobs weak labels take, and which they do not touch."""

import re

import pytest

from ..conftest import ROOT, run_snakemake, small_settings

LEGEND = str(ROOT / "resources" / "legends" / "mapbiomas.csv")


def planned(folder, settings, *targets):
    done = run_snakemake(folder, settings, *targets, "-n", "--quiet", "rules")
    assert done.returncode == 0, done.stdout + done.stderr
    return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", done.stdout, re.MULTILINE)}


def downloaded(**weak):
    labels = {"source": "mapbiomas", "path": "auto", "collection": 9, "year": 2021, "legend": LEGEND}
    return labels | {"weak": weak}


def test_maps_of_other_years_and_another_one_are_downloaded(tmp_path):
    settings = small_settings(tmp_path)
    other = {"source": "mapbiomas", "path": "auto", "collection": "10m-3", "year": 2021, "legend": LEGEND}
    settings["aois"]["demo"]["labels"] = downloaded(stable_with=[2020, 2022], agree_with=other, erode_pixels=1)
    jobs = planned(tmp_path, settings, "results/labels/demo.png")
    assert jobs["download_labels"] == jobs["download_agreeing"] == jobs["draw_labels"] == 1
    assert jobs["download_other_year"] == 2
    assert jobs["weaken_labels"] == jobs["rasterize_labels"] > 1


def test_labels_that_are_all_trusted_take_no_further_job(tmp_path):
    settings = small_settings(tmp_path)
    settings["aois"]["demo"]["labels"] = downloaded()
    assert set(planned(tmp_path, settings, "results/labels/demo.png")) <= {
        "total",
        "download_labels",
        "rasterize_labels",
        "draw_labels",
    }


@pytest.mark.parametrize(
    ("weak", "words"),
    [
        ({"ignore": ["swamp"]}, "aois.demo.labels.weak.ignore has 'swamp', which is no class of"),
        ({"class_weights": {"swamp": 5}}, "aois.demo.labels.weak.class_weights has 'swamp', which is no class of"),
        (
            {"agree_with": {"source": "raster", "path": "a.tif", "legend": LEGEND.replace("mapbiomas", "worldcover")}},
            "give both maps legends with the same classes in the same order",
        ),
        ({"stable_with": ["none.tif"]}, "labels.weak.stable_with has none.tif: expected years, since path is auto"),
    ],
)
def test_what_does_not_fit_is_told_before_any_job(tmp_path, weak, words):
    settings = small_settings(tmp_path)
    settings["aois"]["demo"]["labels"] = downloaded(**weak)
    done = run_snakemake(tmp_path, settings, "-n", "results/labels/demo.png")
    assert done.returncode and words in done.stderr and "Traceback" not in done.stderr


def test_a_reference_is_whole(tmp_path):
    settings = small_settings(tmp_path)
    settings["aois"]["demo"]["reference"]["weak"] = {"erode_pixels": 1}
    done = run_snakemake(tmp_path, settings, "-n", "results/labels/demo.png")
    assert "reference.weak is set, but maps are compared with the whole reference: remove it" in done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path):
    settings = small_settings(tmp_path)
    settings["aois"]["demo"]["labels"]["weak"] = {"stable_with": ["none.tif"]}
    done = run_snakemake(tmp_path, settings, "-n", "results/labels/demo.png")
    assert "aois.demo.labels.weak.stable_with.0 is none.tif, which does not exist" in done.stderr
