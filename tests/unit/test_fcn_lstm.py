"""The FCN and its ConvLSTM: published sizes, dates in any number, votes."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, cross_entropy

from covermap.errors import ModelError
from covermap.models import fcn_lstm
from covermap.models.fcn_lstm import Fcn, FcnLstm, log_scores
from covermap.models.options import FcnLstmOptions, FcnOptions
from covermap.models.outputs import Output, outputs_of, vote

BANDS = 3


def dates(steps, batch=2, side=32, seed=0):
    """Values and masks of some dates, about a fifth of the pixels unseen."""
    random = torch.Generator().manual_seed(seed)
    seen = (torch.rand(batch, steps, side, side, generator=random) > 0.2).float()
    return {"s2": torch.randn(batch, steps, BANDS, side, side, generator=random) * seen[:, :, None]}, {"s2": seen}


def made(network, steps=6, classes=4, **options):
    torch.manual_seed(0)
    return network({"s2": (steps, BANDS)}, classes, width=8, **options)


def keras_count(net):
    """What Keras' summary counts: weights, and the running moments of normalisation."""
    return sum(values.numel() for name, values in net.state_dict().items() if "num_batches" not in name)


def test_they_have_as_many_parameters_as_published():
    shapes = {"s2": (6, 13)}
    fcn = keras_count(Fcn(shapes, 8, as_published=True))
    assert fcn == 29_068_744
    assert keras_count(FcnLstm(shapes, 8, as_published=True)) - fcn == 9_280
    assert keras_count(Fcn(shapes, 8)) - fcn == 9 * 64  # the mask


def test_the_order_of_its_weights_is_that_of_the_layers():
    """Encoder, centre, decoder, head, and the sizes of segmentation_models' U-Net on VGG-19."""
    shapes = [
        tuple(layer.weight.shape[:2])
        for layer in Fcn({"s2": (1, 13)}, 8, as_published=True).modules()
        if isinstance(layer, torch.nn.Conv2d)
    ]
    vgg = [(64, 13), (64, 64), (128, 64), (128, 128), (256, 128), *[(256, 256)] * 3, (512, 256), *[(512, 512)] * 7]
    centre = [(512, 512)] * 2
    decoder = [
        (256, 1024),
        (256, 256),
        (128, 768),
        (128, 128),
        (64, 384),
        (64, 64),
        (32, 192),
        (32, 32),
        (16, 32),
        (16, 16),
    ]
    assert shapes == [*vgg, *centre, *decoder, (8, 16)]


@pytest.mark.parametrize("published", [False, True])
def test_every_date_is_an_output(published):
    net = made(Fcn, as_published=published).eval()
    values, valid = dates(6)
    outputs = net(values, valid)
    assert len(outputs) == 6
    for number, output in enumerate(outputs):
        (alone,) = net(*({"s2": each["s2"][:, number : number + 1]} for each in (values, valid)))
        torch.testing.assert_close(output.logits, alone.logits)
        assert output.logits.shape == (2, 4, 32, 32)
        assert output.share == pytest.approx(1 / 6) and alone.share == 1
        assert torch.equal(output.seen, valid["s2"][:, number])


def test_dates_vote_by_the_mean_or_by_the_majority():
    """Two dates are fairly sure of class 0, one is very sure of class 1; at the second pixel only the last one saw."""
    sure, very = torch.tensor([0.6, 0.4]).log(), torch.tensor([0.01, 0.99]).log()
    logits = torch.stack([sure, sure, very])[:, None, :, None, None].expand(3, 1, 2, 1, 2)  # (T, B, K, H, W)
    seen = torch.ones(3, 1, 1, 2)
    seen[:2, :, :, 1] = 0

    class Says(Fcn):
        def of_dates(self, values, seen):
            return logits.transpose(0, 1)

    for voting, expected in {"mean": (1.21 / 3, 0.01), "majority": (2 / 3, 0)}.items():
        exact = 1e-5 if voting == "mean" else 1e-3
        net = made(Says, 3, 2, voting=voting)
        assert net.voting == voting
        outputs = net({"s2": torch.zeros(1, 3, BANDS, 1, 2)}, {"s2": seen.transpose(0, 1)})
        first = vote(outputs_of(outputs), torch.zeros(2), net.voting == "majority")[0, 0, 0]
        torch.testing.assert_close(first, torch.tensor(expected), atol=exact, rtol=0)


def test_the_mean_decides_between_classes_with_as_many_voices():
    """Three dates at 51 % for class 0, three at 99 % for class 1; the lone class 2 of the fourth pair has no chance."""
    shares = torch.tensor([[0.51, 0.49, 0]] * 3 + [[0.01, 0.99, 0]] * 3)
    given = [Output((share + 1e-9).log().view(1, 3, 1, 1)) for share in shares]
    assert vote(given, torch.zeros(3), True).flatten().argmax() == 1
    assert vote([*given, given[0]], torch.zeros(3), True).flatten().argmax() == 0  # four voices against three


def test_the_mask_is_seen_but_not_as_published():
    values, valid = dates(2)
    other = {"s2": 1 - valid["s2"]}
    for published in (False, True):
        net = made(Fcn, 2, as_published=published).eval()
        same = torch.allclose(net(values, valid)[0].logits, net(values, other)[0].logits)
        assert same == published


@pytest.mark.parametrize("network", [Fcn, FcnLstm])
@pytest.mark.parametrize("published", [False, True])
def test_a_gradient_reaches_every_weight(network, published):
    net = made(network, as_published=published)
    outputs = outputs_of(net(*dates(3)))
    sum(output.logits.square().mean() for output in outputs).backward()
    assert [name for name, each in net.named_parameters() if each.grad is None or not each.grad.any()] == []


@pytest.mark.parametrize("network", [Fcn, FcnLstm])
def test_a_single_tile_of_32_pixels_trains(network):
    """Its lowest level has one pixel, which has no variance."""
    net = made(network, 1)
    (output,) = outputs_of(net(*dates(1, batch=1)))
    output.logits.square().mean().backward()
    assert all(each.isfinite().all() for each in net.state_dict().values())
    gradients = {name: each.grad for name, each in net.named_parameters() if "recur" not in name}  # one step recurs not
    assert all(each.isfinite().all() for each in gradients.values())


@pytest.mark.parametrize("published", [False, True])
def test_sequences_may_have_any_length(published):
    net = made(FcnLstm, 10, draw=6, as_published=published)
    lengths = []
    for lstm in (net.forwards, net.backwards):
        lstm.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    for _ in range(2):
        assert net.train()(*dates(10)).shape == (2, 4, 32, 32)
    assert net.eval()(*dates(10)).shape == (2, 4, 32, 32)
    for steps in (6, 4, 1):
        assert net(*dates(steps)).shape == (2, 4, 32, 32)
    assert lengths == [6, 6, 6, 6, 10, 10, 6, 6, 4, 4, 1, 1]


def drawn(net, steps):
    """Numbers of the dates that the FCN is given in a step; each date's values are its number."""
    given = []
    net.fcn.of_dates = lambda values, mask: given.append((values, mask)) or torch.zeros(*mask.shape[:2], 4, 32, 32)
    number = torch.arange(float(steps))[None, :, None, None].expand(2, steps, 32, 32)
    net({"s2": number[:, :, None].expand(2, steps, BANDS, 32, 32)}, {"s2": number})
    ((values, mask),) = given
    assert torch.equal(values[:, :, 0], mask)  # values and masks of the same dates
    assert torch.equal(values[0], values[1])  # one draw for the batch
    return tuple(values[0, :, 0, 0, 0].int().tolist())


def test_dates_are_drawn_in_their_order_from_the_seeded_generator():
    net = made(FcnLstm, 10, draw=6)
    torch.manual_seed(1)
    draws = [drawn(net, 10) for _ in range(12)]
    assert all(len(set(each)) == 6 and list(each) == sorted(each) for each in draws)
    assert len(set(draws)) > 8 and set().union(*draws) == set(range(10))
    torch.manual_seed(1)
    assert [drawn(net, 10) for _ in range(3)] == draws[:3]
    assert drawn(net.eval(), 10) == tuple(range(10))
    assert drawn(made(FcnLstm, 10), 10) == tuple(range(10))


def test_more_dates_than_there_are_cannot_be_drawn():
    with pytest.raises(ModelError, match="option draw is 7, but Sentinel-2 has 6 dates"):
        made(FcnLstm, 6, draw=7)
    made(FcnLstm, 6, draw=6)


@pytest.mark.parametrize("published", [False, True])
def test_the_order_of_dates_matters(published):
    net = made(FcnLstm, as_published=published).eval()
    values, valid = dates(6)
    expected = net(values, valid)
    order = [1, 0, 2, 3, 4, 5]
    assert not torch.allclose(net(*({"s2": each["s2"][:, order]} for each in (values, valid))), expected)


def test_a_date_that_was_not_seen_changes_nothing():
    net = made(FcnLstm).eval()
    values, valid = dates(6)
    valid["s2"][:, 3] = values["s2"][:, 3] = 0
    others = [0, 1, 2, 4, 5]
    expected = net(*({"s2": each["s2"][:, others]} for each in (values, valid)))
    torch.testing.assert_close(net(values, valid), expected)
    values["s2"][:, 3] = 5  # even if it had values
    torch.testing.assert_close(net(values, valid), expected)


def test_a_trained_fcn_fits_its_submodule():
    fcn, net = made(Fcn), made(FcnLstm)
    inner = net.get_submodule(FcnLstm.starts)
    inner.load_state_dict(fcn.state_dict())
    expected = torch.stack([output.logits for output in fcn.eval()(*dates(6))], 1)
    values, valid = dates(6)
    torch.testing.assert_close(net.eval().fcn.of_dates(values["s2"], valid["s2"]), expected)


def test_both_directions_are_averaged():
    net = made(FcnLstm, as_published=True).eval()
    values, valid = dates(6)
    logits = net.fcn.of_dates(values["s2"], valid["s2"])
    scores = (net.forwards(logits) + net.backwards(logits)) / 2
    assert (scores >= 0).all() and (scores <= 1).all()
    torch.testing.assert_close(net(values, valid), (scores / scores.sum(1, keepdim=True)).log())


def test_published_scores_have_the_published_loss():
    """Keras' categorical cross-entropy: scores over their sum, cut at 1e-7 and 1 - 1e-7."""
    scores = torch.tensor([[0.2, 0.1, 0.1], [0.5, 0.0, 0.0], [0.0, 0.3, 0.3], [0.0, 0.0, 0.0]])
    label = torch.tensor([0, 0, 0, 2])
    loss = cross_entropy(log_scores(scores[:, :, None, None]).flatten(1), label, reduction="none")
    expected = torch.tensor([0.5, 1 - 1e-7, 1e-7, 1 / 3]).log().neg()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)


def test_margins_are_as_far_as_the_networks_look(monkeypatch):
    """With positive weights and means in place of maxima, every input that could matter does."""
    monkeypatch.setattr(fcn_lstm, "max_pool2d", avg_pool2d)
    net = made(FcnLstm, 3, 2, draw=3).double().eval()
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.02)
    net.forwards.activation = net.backwards.activation = net.forwards.gate = net.backwards.gate = lambda x: x
    far, side = {"fcn": 0, "fcn_lstm": 0}, 704
    for row in (351, 354, 381, 384):  # beside the rims of a pixel of the lowest level, where the way is longest
        for name in far:
            values = torch.ones(1, 3, BANDS, side, 32, dtype=torch.float64, requires_grad=True)
            given = {"s2": values}, {"s2": torch.ones(1, 3, side, 32)}
            logits = net.fcn(*given)[0].logits if name == "fcn" else net(*given)
            logits[0, 0, row, 16].backward()
            rows = values.grad[0, :, 0].abs().amax((0, 2)).nonzero()
            far[name] = max(far[name], row - rows.min().item(), rows.max().item() - row)
    assert far == {"fcn": FcnOptions().margin_pixels, "fcn_lstm": FcnLstmOptions(draw=3).margin_pixels}


@pytest.mark.parametrize("network", [Fcn, FcnLstm])
def test_what_lies_beyond_the_margin_does_not_matter(network):
    net = made(network, 2).eval()
    values, valid = dates(2, batch=1, side=32)
    values, valid = {"s2": values["s2"].repeat(1, 1, 1, 20, 1)}, {"s2": valid["s2"].repeat(1, 1, 20, 1)}
    before = outputs_of(net(values, valid))[0].logits
    values["s2"][..., 0, :] += 9
    after = outputs_of(net(values, valid))[0].logits
    changed = (before != after).any(1).any(2)[0].nonzero().max().item()  # the farthest row
    assert 0 < changed <= FcnOptions().margin_pixels + 2 * (network is FcnLstm)


@pytest.mark.parametrize("network", [Fcn, FcnLstm])
def test_it_works_in_bfloat16_on_channels_last(network):
    net, given = made(network).eval(), dates(6)
    expected = outputs_of(net(*given))[0].logits
    with torch.autocast("cpu", torch.bfloat16):
        answer = outputs_of(net.to(memory_format=torch.channels_last)(*given))[0].logits
    assert (answer.float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_sides_need_not_be_equal():
    values, valid = dates(2, side=64)
    for network in (Fcn, FcnLstm):
        given = {"s2": values["s2"][..., :32]}, {"s2": valid["s2"][..., :32]}
        assert outputs_of(made(network, 2)(*given))[0].logits.shape == (2, 4, 64, 32)
