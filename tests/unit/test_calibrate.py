"""A known temperature is found again, and a map's probabilities are at it."""

import json

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from covermap.calibrate import best_temperature, calibrate, reliability
from covermap.errors import CoverageError, ProductError
from covermap.models.outputs import tempered
from covermap.predict import load_together
from covermap.trained import load_weights

from .test_score import images, network, pack, scene, tiles  # noqa: F401 (fixtures)


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(truth):
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (40_000, 5))
    label = (softmax(logits, 1).cumsum(1) > random.random((40_000, 1))).argmax(1)
    log_p = log_softmax(truth * logits, axis=1)  # too sure where the truth is above one
    assert best_temperature(log_p, label, np.ones(40_000)) == pytest.approx(truth, rel=0.03)


def test_pixels_count_by_their_weight():
    log_p = np.log(np.tile([[0.9, 0.1]], (4, 1)))
    label, weight = np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 1.0, 0.0])
    found = reliability(log_p, label, weight, 1.0)
    assert found["ece"] == pytest.approx(0.9 - 2 / 3, abs=1e-4)
    assert found["nll"] == pytest.approx(-(2 * np.log(0.9) + np.log(0.1)) / 3, abs=1e-4)
    assert found["bins"] == [[0.9, 0.6667, 4]]


def test_the_error_by_hand():
    log_p = np.log([[0.8, 0.2], [0.8, 0.2], [0.3, 0.7], [0.3, 0.7]])
    found = reliability(log_p, np.array([0, 1, 1, 1]), np.ones(4), 1.0)
    assert found["ece"] == pytest.approx((abs(0.8 - 0.5) + abs(0.7 - 1)) / 2)
    assert [one[2] for one in found["bins"]] == [2, 2]


def test_a_temperature_keeps_the_order_and_bends_the_rest():
    p = torch.tensor([[0.7, 0.2, 0.1]])
    assert tempered(p, 1.0) is p
    np.testing.assert_allclose(tempered(p, 2.0), p**0.5 / (p**0.5).sum(), rtol=1e-6)
    assert tempered(p, 0.5).max() > 0.7 > tempered(p, 2.0).max()
    assert torch.isfinite(tempered(torch.tensor([[1.0, 0.0]]), 0.1)).all()


@pytest.mark.parametrize("kind", ["tiles", "images"])
def test_what_the_step_finds_is_what_prediction_uses(kind, request, tmp_path):
    packed = request.getfixturevalue(kind)
    name, options = ("unet", {"width": 8}) if kind == "tiles" else ("classifier", {"encoder": "resnet18"})
    weights, calibration = network(tmp_path / "w.safetensors", name, **options), tmp_path / "calibration.json"
    block = ("here", "b") if kind == "tiles" else ("set", "patches")
    calibrate(*packed, weights, calibration, [block], 3)
    found = json.loads(calibration.read_text())
    assert found["after"]["nll"] <= found["before"]["nll"] and 0.1 <= found["temperature"] <= 10
    assert found["pixels"] == sum(one[2] for one in found["after"]["bins"])
    cpu = torch.device("cpu")
    (net,), _ = load_together([weights], cpu, [calibration])
    (plain,), _ = load_together([weights], cpu)
    side = 32 if kind == "tiles" else 16
    batch = {"s2": torch.randint(300, 3000, (2, 2, 2, side, side), dtype=torch.int32)}
    with torch.inference_mode():
        expected = tempered(plain.probabilities(batch), found["temperature"])
        torch.testing.assert_close(net.probabilities(batch), expected, rtol=0, atol=0)
    first = calibration.read_bytes()
    calibrate(*packed, weights, calibration, [block], 3)
    assert calibration.read_bytes() == first


def test_without_a_label_there_is_no_temperature(tmp_path):
    label = np.zeros((2, 32, 32), np.uint8)
    arrays = {"s2": np.full((2, 2, 2, 32, 32), 900, np.uint16), "label": label, "weight": label + 100}
    rows = [{"aoi": "here", "block": "b", "row": 0, "column": 32 * k, "split": "validation"} for k in range(2)]
    packed, weights = pack(tmp_path, rows, arrays), network(tmp_path / "w.safetensors", width=8)
    with pytest.raises(CoverageError, match=r"no validation tile .* set prediction\.calibrate to false"):
        calibrate(*packed, weights, tmp_path / "calibration.json", [("here", "b")], 2)
    assert not (tmp_path / "calibration.json").exists()


@pytest.mark.parametrize("text", ["", "{}", '{"temperature": "warm"}', '{"temperature": 0}', '{"temperature": NaN}'])
def test_a_broken_calibration_is_named(tmp_path, text):
    weights, calibration = network(tmp_path / "w.safetensors", width=8), tmp_path / "calibration.json"
    calibration.write_text(text)
    with pytest.raises(ProductError, match=r"calibration .*calibration\.json cannot be read"):
        load_weights(weights, torch.device("cpu"), calibration)
