"""A model that learns from one time and is tested at another, by the ordinary rules."""

import json

import numpy as np
import pandas as pd
import pytest
import rasterio

from tests.conftest import run_snakemake, small_settings

pytestmark = pytest.mark.long
MODEL, TEST_AREA = "unet_demo", "spring"


@pytest.fixture(scope="module")
def tested_elsewhere(tmp_path_factory, snakemake):
    """Folder of a finished run: a stratified split of the first weeks, and the last weeks held out whole."""
    folder = tmp_path_factory.mktemp("splits")
    settings = small_settings(folder)
    demo = settings["aois"]["demo"]
    demo |= {"sensors": ["sentinel2"], "period": {"start": "2021-12-01", "end": "2022-01-31"}}
    settings["aois"][TEST_AREA] = {**demo, "period": {"start": "2022-03-01", "end": "2022-04-30"}}
    settings["models"][MODEL] |= {"sensors": ["sentinel2"], "test_on": [TEST_AREA]}
    settings["models"][MODEL]["tiles"] |= {"split": "stratified", "max_cloud": 100}
    settings["models"][MODEL]["training"]["epochs"] = 2
    snakemake(folder, settings, f"results/reports/{TEST_AREA}.html", f"results/accuracy/demo/{MODEL}.json")
    return folder, settings


def test_a_time_held_out_is_never_learnt_from_and_compared_whole(tested_elsewhere):
    folder, _ = tested_elsewhere
    index = pd.read_parquet(folder / f"results/tiles/{MODEL}/index.parquet")
    assert set(index.split[index.aoi == TEST_AREA]) == {"test"}
    assert set(index.split[index.aoi == "demo"]) == {"train", "validation", "test"}
    for area in ("demo", TEST_AREA):
        figures = json.loads((folder / f"results/accuracy/{area}/{MODEL}.json").read_text())
        tests = index[(index.aoi == area) & (index.split == "test")]
        with rasterio.open(folder / f"results/baselines/{area}/{MODEL}.tif") as raster:
            forest = raster.read(1)
            inside = np.zeros(forest.shape, bool)
            for east, north in tests[["easting_m", "northing_m"]].itertuples(index=False):
                row, column = raster.index(east + 5, north - 5)
                inside[max(row, 0) : max(row + 32, 0), max(column, 0) : max(column + 32, 0)] = True
        assert not forest[~inside].any() and forest[inside].any()
        assert 0 < figures["held_out"]["pixels"] <= inside.sum()


def test_the_report_tells_how_it_was_split_and_what_differs(tested_elsewhere):
    folder, _ = tested_elsewhere
    survey = json.loads((folder / f"results/tiles/{MODEL}/survey.json").read_text())
    page = (folder / f"results/reports/{TEST_AREA}.html").read_text()
    assert survey["split"] == "stratified" and survey["areas"]["test"] == ["demo", TEST_AREA]
    assert len(survey["beyond"][TEST_AREA]) == 10
    assert all(0 <= share <= 1 for share in survey["beyond"][TEST_AREA].values())
    assert f"tiles of {TEST_AREA} lie on ground that was learnt from" in survey["leaks"][TEST_AREA]
    assert survey["leaks"][TEST_AREA] in page and "where the network saw no labels" not in page
    for words in ("What taught it", "so that each split has its share of every class", "s2 B04", *survey["notes"][:1]):
        assert words in page


def test_an_area_of_which_the_split_says_nothing_is_refused_at_once(tested_elsewhere):
    folder, settings = tested_elsewhere
    other = {**settings, "models": {MODEL: {**settings["models"][MODEL], "test_on": []}}}
    done = run_snakemake(folder, other, "-n", f"results/reports/{TEST_AREA}.html")
    assert done.returncode == 1
    assert f"split is stratified, which does not tell what is held out of aois.{TEST_AREA}" in done.stderr
