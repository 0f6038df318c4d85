"""Losses against hand-computed values, explicit loops and scikit-learn; class weights against published ones."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import f1_score, jaccard_score

from covermap import losses
from covermap.losses import (
    FUNCTIONS,
    RULES,
    basis,
    class_weights,
    cross_entropy,
    dice,
    evidence,
    focal,
    lovasz,
    robust,
    tile_loss,
)
from covermap.model_settings import Model, Training
from covermap.models import CLASS_WEIGHTS, LOSSES
from covermap.models.normalise import Normalised
from covermap.models.outputs import Output

KLINGENBERG = np.array([13_247, 581_782, 866_153, 90_385, 715_608, 11_759, 41_714])  # pixels, Sefrin et al. 2021
PLAIN = Training()
PIXELWISE = {"cross_entropy": cross_entropy, "focal": focal, "robust": robust}


def recipe_of(*losses, **settings):
    return Training(loss=dict.fromkeys(losses or LOSSES, 1.0), **settings)


def example(classes=4, side=5, dtype=torch.float32, seed=0):
    """Logits, label with some -1, weight with some 0, class weights."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, side, side, generator=random, dtype=dtype)
    label = torch.randint(-1, classes, (2, side, side), generator=random)
    weight = torch.randint(0, 5, (2, side, side), generator=random).to(dtype) / 4
    return logits, label, weight, torch.linspace(0.5, 3, classes, dtype=dtype)


def by_loop(of_pixel, logits, label, weight, class_weight, of_all_pixels=False):
    """Weighted mean of a loss of the probabilities and the class of a pixel, pixel by pixel."""
    total = weights = 0.0
    for tile, row, column in np.ndindex(*label.shape):
        y = int(label[tile, row, column])
        if y >= 0:
            w = float(weight[tile, row, column])
            p = np.exp(logits[tile, :, row, column].double().numpy())
            total += w * of_pixel(p / p.sum(), y, class_weight.double().numpy())
            weights += w * float(class_weight[y])
    return total / (label.numel() if of_all_pixels else weights)


def smoothed_focal(gamma, share):
    def of_pixel(p, y, w):
        terms = -w * (1 - p) ** gamma * np.log(p)
        return (1 - share) * terms[y] + share * terms.mean()

    return of_pixel


@pytest.mark.parametrize("normalise", ["weight", "pixels"])
@pytest.mark.parametrize(
    ("name", "settings", "of_pixel"),
    [
        ("cross_entropy", {}, lambda p, y, w: -w[y] * math.log(p[y])),
        ("cross_entropy", {"label_smoothing": 0.2}, smoothed_focal(0, 0.2)),
        ("focal", {}, lambda p, y, w: -w[y] * (1 - p[y]) ** 2 * math.log(p[y])),
        ("focal", {"focal_gamma": 0.5, "label_smoothing": 0.2}, smoothed_focal(0.5, 0.2)),
        ("robust", {}, lambda p, y, w: w[y] * (1 - p[y] ** 0.7) / 0.7),
        ("robust", {"robust_q": 0.95}, lambda p, y, w: w[y] * (1 - p[y] ** 0.95) / 0.95),
    ],
)
def test_losses_of_pixels_are_those_of_a_loop(name, settings, of_pixel, normalise):
    given = example()
    loss = PIXELWISE[name](*given, recipe_of(name, normalise=normalise, **settings))
    assert loss.item() == pytest.approx(by_loop(of_pixel, *given, normalise == "pixels"), rel=1e-5)


def test_two_pixels_by_hand():
    """Probabilities 3/4 and 1/4 of their class, class weights 1 and 3, pixel weights 1 and 1/2."""
    logits = torch.tensor([[math.log(3), math.log(3)], [0.0, 0.0]]).T.reshape(2, 2)
    given = logits, torch.tensor([0, 1]), torch.tensor([1.0, 0.5]), torch.tensor([1.0, 3.0])
    expected = (math.log(4 / 3) + 1.5 * math.log(4)) / 2.5
    assert cross_entropy(*given, PLAIN).item() == pytest.approx(expected, rel=1e-6)
    expected = 2 * (1 - 0.75**0.5 + 1.5 * (1 - 0.5)) / 2.5
    assert robust(*given, recipe_of("robust", robust_q=0.5)).item() == pytest.approx(expected, rel=1e-6)
    first = 1 - 2 * 0.75 / (0.75 + 0.75 * 0.5 + 1)  # of class 0: P and T, P, T
    second = 1 - 2 * 0.5 * 0.25 / (0.25 + 0.25 * 0.5 + 0.5)
    assert dice(*given, PLAIN).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_focal_forgets_pixels_that_are_learned_and_robust_those_that_it_denies():
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]], requires_grad=True)  # right, and firmly wrong
    given = torch.tensor([0, 0]), torch.ones(2), torch.ones(2)
    ratio = {}
    for name, loss in PIXELWISE.items():
        (slope,) = torch.autograd.grad(loss(logits, *given, recipe_of(name)), logits)
        ratio[name] = (slope[1].abs().sum() / slope[0].abs().sum()).item()
    assert ratio["focal"] > 100 * ratio["cross_entropy"]
    assert ratio["robust"] < ratio["cross_entropy"] / 10


def lovasz_by_sets(logits, label, weight):
    """Lovasz extension by its definition: sum over pixels, worst first, of the error and what J grows by."""
    probability = logits.double().softmax(1).movedim(1, 0).flatten(1).numpy()
    kept = ((label >= 0) & (weight > 0)).flatten().numpy()
    truth, measure = label.flatten().numpy()[kept], weight.double().flatten().numpy()[kept]
    losses = []
    for number in np.unique(truth):
        ours = truth == number
        errors = np.where(ours, 1 - probability[number][kept], probability[number][kept])
        total, before, wrong = 0.0, 0.0, np.zeros(len(ours), bool)
        for pixel in np.argsort(-errors, kind="stable"):
            wrong[pixel] = True  # wrong pixels alone differ between labels and map
            union = measure[ours | wrong].sum()
            now = measure[wrong].sum() / union
            total, before = total + errors[pixel] * (now - before), now
        losses.append(total)
    return np.mean(losses)


@pytest.mark.parametrize("seed", range(3))
def test_lovasz_is_the_extension_of_the_jaccard_loss(seed):
    logits, label, weight, class_weight = example(seed=seed)
    found = lovasz(logits, label, weight, class_weight, PLAIN).item()
    assert found == pytest.approx(lovasz_by_sets(logits, label, weight), rel=1e-5)


def test_of_a_firm_network_overlap_losses_are_the_scores_themselves():
    random = np.random.default_rng(0)
    label, guess = random.integers(0, 3, (2, 200))
    logits = 60 * torch.nn.functional.one_hot(torch.from_numpy(guess), 3).float()
    given = logits, torch.from_numpy(label), torch.ones(200), torch.ones(3)
    iou = jaccard_score(label, guess, average=None)
    assert lovasz(*given, PLAIN).item() == pytest.approx(1 - iou.mean(), rel=1e-5)
    assert dice(*given, PLAIN).item() == pytest.approx(1 - (2 * iou / (1 + iou)).mean(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_pixel_of_twice_the_weight_counts_like_two(name):
    logits, label, weight, class_weight = example(side=3)
    twice = torch.cat([logits, logits[:, :, :1]], 2), torch.cat([label, label[:, :1]], 1)
    heavier = torch.cat([2 * weight[:, :1], weight[:, 1:]], 1)
    loss, recipe = FUNCTIONS[name], recipe_of(name)
    two = loss(*twice, torch.cat([weight, weight[:, :1]], 1), class_weight, recipe)
    torch.testing.assert_close(loss(logits, label, heavier, class_weight, recipe), two)


@pytest.mark.parametrize("name", LOSSES)
def test_pixels_without_label_or_weight_do_not_matter(name):
    logits, label, weight, class_weight = example()
    unseen = (label < 0) | (weight == 0)
    recipe = recipe_of(name)
    logits.requires_grad_()
    loss = FUNCTIONS[name](logits, label, weight, class_weight, recipe)
    (slope,) = torch.autograd.grad(loss, logits)
    assert not slope.movedim(1, -1)[unseen].any() and slope.movedim(1, -1)[~unseen].any(-1).all()
    other = torch.where(unseen[:, None], 50 * torch.randn(logits.shape), logits)
    label = torch.where(weight == 0, 0, label)
    torch.testing.assert_close(FUNCTIONS[name](other, label, weight, class_weight, recipe), loss)


@pytest.mark.parametrize("name", LOSSES)
def test_without_labels_the_loss_is_zero_and_so_is_its_gradient(name):
    for label, weight in (
        (torch.full((1, 2, 2), -1), torch.ones(1, 2, 2)),
        (torch.ones(1, 2, 2).long(), torch.zeros(1, 2, 2)),
    ):
        logits = torch.randn(1, 2, 2, 2, requires_grad=True)
        loss = FUNCTIONS[name](logits, label, weight, torch.ones(2), recipe_of(name))
        loss.backward()
        assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_differences(name):
    logits, *given = example(3, 3, torch.float64)
    recipe = recipe_of(name, **({"label_smoothing": 0.1} if name in ("cross_entropy", "focal") else {}))
    assert torch.autograd.gradcheck(lambda x: FUNCTIONS[name](x, *given, recipe), logits.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_firm_logits_give_finite_gradients_and_bfloat16_is_computed_in_float32(name):
    settings = {"focal_gamma": 0.5} if name == "focal" else {}
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [0.0, 0.0]]).bfloat16().requires_grad_()
    given = torch.tensor([0, 0, 1]), torch.ones(3), torch.ones(2)
    loss = FUNCTIONS[name](logits, *given, recipe_of(name, **settings))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and logits.grad.isfinite().all()
    torch.testing.assert_close(loss, FUNCTIONS[name](logits.float(), *given, recipe_of(name, **settings)))


@pytest.mark.parametrize("name", LOSSES)
def test_patches_are_maps_of_one_pixel(name):
    logits, label, weight, class_weight = example()
    label, weight = label.clamp(min=0), weight + 0.25
    patches = logits.movedim(1, -1).flatten(0, 2), label.flatten(), weight.flatten()
    loss, recipe = FUNCTIONS[name], recipe_of(name)
    torch.testing.assert_close(loss(*patches, class_weight, recipe), loss(logits, label, weight, class_weight, recipe))


# --- together --------------------------------------------------------------------------------------------------------


def batch_of(labels, weight=100):
    return {"label": torch.tensor(labels, dtype=torch.uint8), "weight": torch.full_like(torch.tensor(labels), weight)}


def test_loss_of_two_branches_is_as_published():
    """0.3 and 0.7 of the branches beside the fused map (Cherif et al. 2022): here with three losses known by hand."""
    batch = batch_of([[[1, 0], [255, 1]]])
    maps = [torch.zeros(1, 2, 2, 2), torch.tensor([1.0, 0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)]
    logits = [maps[0], maps[1], -maps[1]]
    fused, s1, s2 = math.log(2), math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    outputs = [Output(each, share) for each, share in zip(logits, (1.0, 0.3, 0.7), strict=True)]
    assert tile_loss(outputs, batch, torch.ones(2), PLAIN).item() == pytest.approx(
        fused + 0.3 * s1 + 0.7 * s2, rel=1e-6
    )


def test_shares_of_losses_add_up_and_a_date_learns_only_from_what_it_saw():
    logits, label, _, class_weight = example()
    batch = {"label": (label + 1).to(torch.uint8), "weight": torch.full_like(label, 50)}
    seen = torch.zeros(label.shape)
    seen[:, :2] = 1
    weight = torch.full(label.shape, 0.5) * seen
    recipe = Training(loss={"cross_entropy": 0.5, "lovasz": 2})
    parts = [loss(logits, label, weight, class_weight, recipe) for loss in (cross_entropy, lovasz)]
    found = tile_loss([Output(logits, 0.25, seen)], batch, class_weight, recipe)
    torch.testing.assert_close(found, 0.25 * (0.5 * parts[0] + 2 * parts[1]))


def test_class_weights_act_on_gradients():
    """Two pixels of two classes with equal logits: the gradient of each is what its class weighs.

    Those of the published code never reached the loss.
    """
    logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    tile_loss([Output(logits)], batch_of([[[1, 2]]]), torch.tensor([1.0, 9.0]), PLAIN).backward()
    slope = logits.grad[0, :, 0].abs().sum(0)  # of each pixel
    assert slope[1].item() / slope[0].item() == pytest.approx(9)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": {"focal": 1}},
        {"loss": {"focal": 2}, "focal_gamma": 0.5},
        {"loss": {"cross_entropy": 0.5, "focal": 2}},
    ],
)
def test_what_a_network_learned_under_class_weights_is_brought_back_to_the_prevalence(settings):
    """One place with 60, 30 and 10 % of three classes that weigh 1, 2 and 8: the best logits, then taken back."""
    recipe, weights = Training(**settings), torch.tensor([1.0, 2.0, 8.0], dtype=torch.float64)
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    batch, optimiser = (
        batch_of([1] * 6 + [2] * 3 + [3]),
        torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10),
    )

    def closure():
        optimiser.zero_grad()
        loss = tile_loss([Output(logits.expand(10, 3))], batch, weights, recipe)
        loss.backward()
        return loss

    optimiser.step(closure)
    if not settings:
        torch.testing.assert_close(logits.softmax(1)[0], weights.new_tensor([6, 6, 8]) / 20, atol=1e-4, rtol=0)
    net = Normalised(torch.nn.Identity(), {}, 3, {}, {}, evidence=partial(evidence, recipe=recipe))
    net.log_weights.copy_(weights.log())
    back = net.chosen([Output(logits.detach().float())])[0]
    torch.testing.assert_close(back, torch.tensor([0.6, 0.3, 0.1]), atol=1e-3, rtol=0)


def gaussians(count, seed):
    """Points of four classes of 60, 38, 1.5 and 0.5 %, which overlap."""
    chance = torch.Generator().manual_seed(seed)
    label = torch.multinomial(torch.tensor([0.6, 0.38, 0.015, 0.005]), count, True, generator=chance)
    centres = torch.tensor([[0, 0], [2.5, 0], [0, 2.5], [2.5, 2.5]])
    return centres[label] + 0.7 * torch.randn(count, 2, generator=chance), label


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "robust"])
def test_a_network_that_was_trained_under_class_weights_does_better_with_them_taken_back(loss):
    recipe = recipe_of(loss, class_weights="inverse")
    (points, label), (others, truth) = gaussians(20_000, 0), gaussians(20_000, 1)
    weights = torch.from_numpy(class_weights(label.bincount(minlength=4).numpy(), "inverse", 20))
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    optimiser = torch.optim.AdamW(layers.parameters(), 2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 150)
    for _ in range(150):
        part = torch.randint(0, len(points), (1000,))
        optimiser.zero_grad()
        tile_loss([Output(layers(points[part]))], batch_of((label[part] + 1).tolist()), weights, recipe).backward()
        optimiser.step()
        schedule.step()
    net = Normalised(torch.nn.Identity(), {}, 4, {}, {}, evidence=partial(evidence, recipe=recipe))
    net.log_weights.copy_(weights.log())
    with torch.inference_mode():
        logits = layers(others)
        guesses = net.chosen([Output(logits)]).argmax(1), logits.argmax(1)
    taken_back, as_it_is = (f1_score(truth, guess, average="macro") for guess in guesses)
    assert taken_back > as_it_is + 0.02


def dates_of(*seen):
    """Two dates of the same logits (1, 3, 1, N), of which N pixels were seen to this degree, and their batch."""
    logits = torch.randn(1, 1, 3, 1, len(seen[0]), generator=torch.Generator().manual_seed(3))
    logits = logits.repeat(len(seen), 1, 1, 1, 1).requires_grad_()
    masks = torch.tensor(seen, dtype=torch.float32)[:, None, None]
    outputs = [Output(each, 1 / len(seen), mask) for each, mask in zip(logits, masks, strict=True)]
    return logits, outputs, batch_of([[[1, 2, 3, 1][: len(seen[0])]]])


@pytest.mark.parametrize("loss", PIXELWISE)
@pytest.mark.parametrize("normalise", ["weight", "pixels"])
def test_a_pixel_of_a_date_counts_the_same_however_many_others_the_date_saw(loss, normalise):
    logits, outputs, batch = dates_of([1, 1, 1, 1], [1, 0, 0, 0])
    tile_loss(outputs, batch, torch.ones(3), recipe_of(loss, normalise=normalise)).backward()
    torch.testing.assert_close(logits.grad[0, ..., 0], logits.grad[1, ..., 0])
    assert logits.grad[1, ..., 0].abs().sum() > 0 and not logits.grad[1, ..., 1:].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_a_date_that_saw_nothing_leaves_the_loss_as_it_is(loss):
    (_, one, batch), (_, two, _) = dates_of([1, 1, 1, 1]), dates_of([1, 1, 1, 1], [0, 0, 0, 0])
    found = [tile_loss(outputs, batch, torch.ones(3), recipe_of(loss)) for outputs in (one, two)]
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("normalise", ["weight", "pixels"])
def test_the_loss_of_two_batches_is_the_mean_of_theirs_by_their_basis(normalise):
    """So that losses of parts, of devices and of validation, add up: here dates of which one part saw little."""
    weights, recipe = torch.tensor([1.0, 2, 5]), recipe_of("cross_entropy", normalise=normalise)
    _, outputs, batch = dates_of([1, 0.5, 1, 1], [1, 0, 0, 0.5])
    parts = []
    for part in (slice(0, 1), slice(1, 4)):
        own = [Output(o.logits[..., part], o.share, o.seen[..., part]) for o in outputs]
        some = {key: values[..., part] for key, values in batch.items()}
        parts.append([f(own, some, weights, recipe) for f in (tile_loss, basis)])
    expected = sum(loss * of for loss, of in parts) / sum(of for _, of in parts)
    torch.testing.assert_close(tile_loss(outputs, batch, weights, recipe), expected)


def test_classes_without_labels_are_not_sorted(monkeypatch):
    sorted_ones = []
    monkeypatch.setattr(losses, "_lovasz_of_class", lambda p, *rest: sorted_ones.append(p) or p.sum())
    lovasz(torch.randn(1, 9, 2, 2), torch.tensor([[[3, 3], [-1, 5]]]), torch.ones(1, 2, 2), torch.ones(9), PLAIN)
    assert len(sorted_ones) == 2


def test_evidence_of_firm_logits_is_finite_and_in_their_order():
    logits = torch.tensor([[90.0, 0, -90], [0, 1, 2], [-5, 300, 5]]).requires_grad_()
    for settings in ({}, {"loss": {"focal": 1}, "focal_gamma": 10}, {"loss": {"robust": 1, "focal": 1}}):
        found = evidence(logits, Training(**settings))
        assert found.isfinite().all() and torch.equal(found.argsort(1), logits.argsort(1))
    assert all(evidence(logits, Training(loss={name: 1})) is logits for name in ("dice", "robust"))


# --- what classes weigh ----------------------------------------------------------------------------------------------


def test_names_of_the_settings_are_those_of_the_functions():
    assert {*LOSSES} == {*FUNCTIONS} and {*CLASS_WEIGHTS} == {*RULES}


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


def test_inverse_weights_are_the_published_ones():
    found = class_weights(KLINGENBERG, "inverse", 1000)
    published = [377.75, 8.60, 5.78, 55.36, 6.99, 425.55, 119.96]  # Sefrin et al. 2021, their code; sum 1000
    np.testing.assert_allclose(1000 * found / found.sum(), published, atol=0.006)


def test_complement_is_what_deepforest_meant():
    share = np.array([16.151, 30.803, 23.446, 29.6])
    found = class_weights(1e4 * share, "complement", 20)
    np.testing.assert_allclose(found / found[0], (100 - share) / (100 - share[0]), rtol=1e-6)


def test_effective_numbers_are_a_geometric_series():
    """1 + b + b ** 2 ... of n terms, b = 1 - 1/N, N pixels of a class on average."""
    pixels = np.array([10, 50, 90])
    series = [sum((1 - 1 / 50) ** i for i in range(n)) for n in pixels]
    found = class_weights(pixels, "effective", 20)
    np.testing.assert_allclose(found / found[0], series[0] / np.array(series), rtol=1e-6)
    np.testing.assert_allclose(found, class_weights(1000 * pixels, "effective", 20), rtol=0.02)


def test_median_frequency_counts_only_tiles_that_have_the_class():
    """Classes 2 and 3 have 10 pixels each, 2 alone in a tile of 20, 3 among 180."""
    tiles = np.array([[10, 10, 0], [170, 0, 10]])
    found = class_weights(tiles, "median", 1000)
    frequency = np.array([180 / 200, 10 / 20, 10 / 180])
    np.testing.assert_allclose(found / found[0], frequency[0] / frequency, rtol=1e-6)
    plain = class_weights(tiles, "inverse", 1000)
    np.testing.assert_allclose(plain[1], plain[2])


@pytest.mark.parametrize("rule", CLASS_WEIGHTS)
def test_classes_that_were_never_seen_weigh_nothing_and_a_lonely_one_weighs_one(rule):
    assert class_weights(np.array([0, 7, 0]), rule, 20).tolist() == [0, 1, 0]
    found = class_weights(np.array([[5, 0, 1000], [0, 0, 3]]), rule, 2)
    assert found[1] == 0 and found[0] <= 2 * found[2] * (1 + 1e-6)
    assert (found * [5, 0, 1003]).sum() == pytest.approx(1008)


@pytest.mark.parametrize(
    ("training", "tiles", "rule"),
    [
        ({}, {}, "inverse_sqrt"),
        ({"class_weights": "median"}, {}, "median"),
        ({}, {"balance": "inverse"}, "none"),
        ({"class_weights": "none"}, {"balance": "inverse"}, "none"),
        ({"loss": {"dice": 1, "lovasz": 1}}, {}, "none"),
        ({"loss": {"dice": 1, "focal": 1}}, {}, "inverse_sqrt"),
    ],
)
def test_sampler_or_class_weights(training, tiles, rule):
    assert Model(network="unet", train_on=["here"], training=training, tiles=tiles).class_weights == rule


@pytest.mark.parametrize(
    ("training", "tiles", "told"),
    [
        ({"class_weights": "inverse"}, {"balance": "inverse_sqrt"}, "tiles.balance is inverse_sqrt.*count twice"),
        (
            {"loss": {"dice": 1}, "class_weights": "inverse"},
            {},
            "class_weights is inverse, which the loss dice does not",
        ),
        ({"focal_gamma": 3}, {}, "focal_gamma is 3.0, which the loss cross_entropy does not know.*add focal"),
        ({"loss": {"robust": 1}, "label_smoothing": 0.1}, {}, "label_smoothing is 0.1.*add cross_entropy or focal"),
        ({"loss": {"lovasz": 1}, "normalise": "pixels"}, {}, "normalise is pixels"),
        ({"loss": {}}, {}, "loss"),
        ({"loss": {"hinge": 1}}, {}, "hinge"),
        ({"loss": {"dice": 0}}, {}, "dice"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(training, tiles, told):
    with pytest.raises(ValidationError, match=told):
        Model(network="unet", train_on=["here"], training=training, tiles=tiles)
