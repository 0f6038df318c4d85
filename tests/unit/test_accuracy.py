import json

import numpy as np
import pytest
from sklearn import metrics

from covermap.accuracy import block_bootstrap, class_areas, confusion, evaluate, scores
from covermap.errors import CoverageError, ProductError
from covermap.grid import Grid
from covermap.legend import Legend, LegendClass
from covermap.model_settings import Tiles
from covermap.raster import write_raster
from covermap.splits import TEST, cell_names, split_of

KEYS = ("forest", "crop", "water")
LEGEND = Legend(
    classes=tuple(
        LegendClass(id=k, key=key, name=key.title(), colour=f"#0000{k:02d}") for k, key in enumerate(KEYS, start=1)
    ),
    codes={},
)
TILES = Tiles(pixels=32, stride_pixels=32, cell_pixels=64, buffer_pixels=8, validation=0.2, test=0.4)
GRID = Grid(crs="EPSG:32721", left=640_000, top=8_480_000, width=256, height=256)


def test_rows_are_predicted_and_columns_reference():
    reference = np.array([1, 1, 2, 0, 255, 2])
    predicted = np.array([1, 2, 2, 1, 1, 0])
    assert confusion(reference, predicted, 2).tolist() == [[1, 0], [1, 1]]


def test_scores_by_hand():
    result = scores(np.array([[40, 10], [0, 50]]), min_pixels=1)
    assert result["overall"] == pytest.approx(0.9)
    assert result["kappa"] == pytest.approx((0.9 - 0.5) / 0.5)  # chance: 0.5 * 0.4 + 0.5 * 0.6
    first, second = result["classes"]
    assert first == pytest.approx(
        {"users": 0.8, "producers": 1.0, "f1": 8 / 9, "iou": 0.8, "support": 40, "mapped": 50}
    )
    assert second["producers"] == pytest.approx(5 / 6)
    assert result["macro_f1"] == pytest.approx((8 / 9 + 10 / 11) / 2)


def test_scores_agree_with_scikit_learn():
    random = np.random.default_rng(4)
    reference = random.integers(1, 6, 3000)
    predicted = np.where(random.random(3000) < 0.6, reference, random.integers(1, 6, 3000))
    result = scores(confusion(reference, predicted, 5))
    assert result["overall"] == pytest.approx(metrics.accuracy_score(reference, predicted))
    assert result["kappa"] == pytest.approx(metrics.cohen_kappa_score(reference, predicted))
    assert result["macro_f1"] == pytest.approx(metrics.f1_score(reference, predicted, average="macro"))
    users = metrics.precision_score(reference, predicted, average=None)
    iou = metrics.jaccard_score(reference, predicted, average=None)
    assert [row["users"] for row in result["classes"]] == pytest.approx(users)
    assert [row["iou"] for row in result["classes"]] == pytest.approx(iou)


def test_what_cannot_be_said_is_none_and_a_class_never_found_is_zero():
    result = scores(np.array([[200, 150, 0], [0, 0, 0], [0, 0, 0]]))
    assert result["classes"][1] == {
        "users": None, "producers": 0.0, "f1": 0.0, "iou": 0.0, "support": 150, "mapped": 0
    }  # fmt: skip
    assert result["classes"][2]["f1"] is None
    assert result["macro_f1"] == pytest.approx((400 / 550 + 0) / 2)
    empty = scores(np.zeros((2, 2)))
    assert empty["overall"] is empty["kappa"] is empty["macro_f1"] is None
    json.dumps(empty, allow_nan=False)


def test_rare_classes_stay_out_of_the_mean():
    matrix = np.array([[500, 99], [99, 0]])
    assert scores(matrix)["macro_f1"] == pytest.approx(1000 / 1198)
    assert scores(matrix, min_pixels=99)["macro_f1"] == pytest.approx(1000 / 1198 / 2)


def test_bootstrap_draws_cells_and_keeps_pairs():
    pixels = np.full(50, 100)
    same = np.arange(50)
    assert block_bootstrap(same, same, pixels, seed=1) == {"difference": 0, "low": 0, "high": 0}
    better = block_bootstrap(same + 10, same, pixels, seed=1)
    assert better == pytest.approx({"difference": 0.1, "low": 0.1, "high": 0.1})


def test_bootstrap_interval_is_that_of_a_mean():
    gain = np.random.default_rng(0).normal(50, 10, 200)
    result = block_bootstrap(gain, np.zeros(200), np.full(200, 100), seed=7)
    half = 1.96 * gain.std() / np.sqrt(200) / 100
    assert result["difference"] == pytest.approx(gain.mean() / 100)
    assert result["high"] - result["difference"] == pytest.approx(half, rel=0.1)
    assert result["difference"] - result["low"] == pytest.approx(half, rel=0.1)
    assert result == block_bootstrap(gain, np.zeros(200), np.full(200, 100), seed=7)


def test_one_cell_gives_no_interval():
    assert block_bootstrap(np.array([5]), np.array([3]), np.array([10]), seed=0) == pytest.approx(
        {"difference": 0.2, "low": None, "high": None}
    )


@pytest.fixture
def world(tmp_path):
    """Truth, a label with errors, a map better than the label; labels and reference in four blocks."""
    random = np.random.default_rng(11)
    truth = random.integers(1, 4, GRID.shape).astype(np.uint8)
    label = np.where(random.random(GRID.shape) < 0.3, 1, truth).astype(np.uint8)
    label[:20] = 0
    label[20:30] = 255
    classes = np.where(random.random(GRID.shape) < 0.1, 2, truth).astype(np.uint8)
    classes[:, :10] = 0
    forest = np.where(random.random(GRID.shape) < 0.4, 3, truth).astype(np.uint8)
    forest[split_of(GRID, TILES, 0) != TEST] = 0
    arrays = {"truth": truth, "label": label, "map": classes, "baseline": forest}
    files = {"map": tmp_path / "map.tif", "baseline": tmp_path / "baseline.tif", "labels": [], "reference": []}
    write_raster(files["map"], classes[None], GRID, nodata=0)
    write_raster(files["baseline"], forest[None], GRID, nodata=0)
    for name, array in (("labels", label), ("reference", truth)):
        for row in (0, 128):
            for column in (0, 128):
                path = tmp_path / name / f"x{column}y{row}.tif"
                part = array[row : row + 128, column : column + 128]
                write_raster(path, np.stack([part, part]), GRID.window(row, column, 128, 128), nodata=0)
                files[name].append(path)
    return arrays, files, tmp_path / "accuracy.json"


def judge(files, output, **changes):
    evaluate(**{**files, "accuracy": output, "legend": LEGEND, "tiles": TILES, "seed": 0, **changes})
    return json.loads(output.read_text())


def test_blocks_together_equal_the_whole_on_held_out_pixels(world):
    arrays, files, output = world
    result = judge(files, output)
    used = (split_of(GRID, TILES, 0) == TEST) & (arrays["map"] > 0) & (arrays["baseline"] > 0)
    used &= (arrays["label"] > 0) & (arrays["label"] < 255)
    assert result["held_out"] == {"cells": len(np.unique(cell_names(GRID, TILES)[used])), "pixels": int(used.sum())}
    for pair, matrix in result["confusion"].items():
        if "_vs_" in pair:
            first, second = pair.split("_vs_")
            other = arrays["label" if second == "label" else "truth"]
            assert matrix == confusion(other[used], arrays[first][used], 3).tolist()
    agreement = result["agreement"]["map_vs_label"]
    assert agreement["overall"] == pytest.approx((arrays["map"] == arrays["label"])[used].mean())
    assert agreement["low"] < agreement["overall"] < agreement["high"]
    assert list(agreement["classes"]) == list(KEYS)


def test_the_map_gains_over_the_label_it_learnt_from(world):
    _, files, output = world
    reference = judge(files, output)["reference"]
    gain = reference["map_minus_label"]
    assert gain["difference"] == pytest.approx(reference["map"]["overall"] - reference["label"]["overall"])
    assert 0 < gain["low"] < gain["difference"] < gain["high"]
    assert reference["map_minus_baseline"]["low"] > 0
    f1 = {name: reference[name]["classes"]["forest"]["f1"] for name in ("map", "label")}
    assert reference["f1_gain_over_label"]["forest"] == pytest.approx(100 * (f1["map"] - f1["label"]))


def test_without_a_reference_there_is_agreement_only(world):
    _, files, output = world
    result = judge(files, output, reference=[])
    assert result["reference"] is None
    assert "map_vs_reference" not in result["confusion"]


def test_areas_count_the_whole_map(world):
    arrays, files, output = world
    areas = class_areas(files["map"], LEGEND)
    assert areas == {key: (arrays["map"] == k).sum() / 100 for k, key in enumerate(KEYS, start=1)}
    assert judge(files, output)["areas_ha"] == areas


def test_a_seed_gives_the_same_file(world):
    _, files, output = world
    judge(files, output)
    first = output.read_bytes()
    judge(files, output)
    assert output.read_bytes() == first


def test_nothing_held_out_is_an_error_that_says_what_to_do(world):
    _, files, output = world
    write_raster(files["baseline"], np.zeros((1, *GRID.shape), np.uint8), GRID, nodata=0)
    with pytest.raises(CoverageError, match=r"no held-out pixel .* larger area"):
        judge(files, output)
    assert not output.exists()


def test_a_class_beyond_the_legend_is_an_error(world):
    _, files, output = world
    write_raster(files["map"], np.full((1, *GRID.shape), 9, np.uint8), GRID, nodata=0)
    with pytest.raises(ProductError, match=r"map.tif has class 9, but the legend ends at 3"):
        judge(files, output)


def test_a_missing_reference_block_is_an_error(world):
    _, files, output = world
    with pytest.raises(CoverageError, match=r"no reference block x128y128.tif"):
        judge(files, output, reference=files["reference"][:3])


def test_a_broken_label_is_an_error(world):
    _, files, output = world
    files["labels"][0].write_bytes(b"II*")
    with pytest.raises(ProductError, match=r"x0y0.tif cannot be read"):
        judge(files, output)
