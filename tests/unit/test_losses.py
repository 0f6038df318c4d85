"""Losses against hand-computed values."""

import numpy as np
import torch

from covermap.losses import class_weights, weighted_cross_entropy


def test_class_weights():
    pixels = np.array([900, 100, 0])
    assert class_weights(pixels, "none", 20).tolist() == [1, 1, 0]
    inverse = class_weights(pixels, "inverse", 20)
    np.testing.assert_allclose(inverse[1] / inverse[0], 9)
    np.testing.assert_allclose((inverse * pixels).sum(), pixels.sum())
    root = class_weights(pixels, "inverse_sqrt", 20)
    np.testing.assert_allclose(root[1] / root[0], 3)
    capped = class_weights(np.array([1_000_000, 1]), "inverse", 20)
    np.testing.assert_allclose(capped[1] / capped[0], 20)


def test_unlabelled_and_weightless_pixels_do_not_matter():
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([[[0, 1], [-1, 2]]])
    weight = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    weights = torch.tensor([1.0, 3.0, 5.0])
    minus_log = -logits.log_softmax(1)
    expected = (minus_log[0, 0, 0, 0] + 3 * minus_log[0, 1, 0, 1]) / 4
    torch.testing.assert_close(weighted_cross_entropy(logits, label, weight, weights), expected)


def test_a_batch_without_labels_gives_a_zero_loss_with_a_gradient():
    logits = torch.zeros(1, 2, 2, 2, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.full((1, 2, 2), -1), torch.ones(1, 2, 2), torch.ones(2))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
