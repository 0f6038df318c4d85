"""Windows of an absolute lattice: what they weigh, which are scored, and that nothing else changes a byte."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from covermap.blend import (
    Band,
    Region,
    _add,
    add_on_device,
    blend_weights,
    blended,
    finished,
    layer_names,
    ranked,
    ranked_on_device,
    symmetric,
    window_starts,
    windows_of,
)
from covermap.errors import ModelError
from covermap.inputs import DTYPE, NODATA
from covermap.model_settings import Prediction

CPU = torch.device("cpu")
SIDE = 160  # of the world
ORIGIN = -40, 1000  # where the world lies on the lattice
RANDOM = np.random.default_rng(0)
WORLD = {
    "s1": RANDOM.integers(-2000, -500, (2, 2, SIDE, SIDE)).astype(np.int16),
    "s2": RANDOM.integers(1, 4000, (1, 3, SIDE, SIDE)).astype(np.uint16),
}
for _values in WORLD.values():
    _values[:, :, 100:, :90] = NODATA["s1" if _values.dtype == np.int16 else "s2"]
    _values[:, :, 30:35, 40] = NODATA["s1" if _values.dtype == np.int16 else "s2"]


def read(region, world=None):
    """Of the world; NODATA beyond it."""
    world = WORLD if world is None else world
    rows = np.arange(region.row, region.row + region.height) - ORIGIN[0]
    columns = np.arange(region.column, region.column + region.width) - ORIGIN[1]
    inside = ((rows >= 0) & (rows < SIDE))[:, None] & ((columns >= 0) & (columns < SIDE))
    at = np.clip(rows, 0, SIDE - 1)[:, None], np.clip(columns, 0, SIDE - 1)
    return {
        key: np.where(inside, values[:, :, *at], DTYPE[key](NODATA[key])).astype(DTYPE[key])
        for key, values in world.items()
    }


def network(classes=4):
    torch.manual_seed(0)
    bands = 7
    return torch.nn.Sequential(
        torch.nn.Conv2d(bands, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, classes, 3, padding=1)
    ).eval()


NET = network()


def score(batch, net=NET):
    """Softmax of a small network with a reach of three pixels, whose windows' rims differ from their middle."""
    flat = [values.flatten(1, 2).float() / 1000 for values in batch.values()]
    return net(torch.cat(flat, 1)).softmax(1)


def joined(bands):
    """Probabilities and seen of all bands, which follow one another."""
    bands = list(bands)
    for upper, lower in pairwise(bands):
        assert upper.row + len(upper.seen) == lower.row
    return torch.cat([band.probabilities for band in bands], 1).numpy(), np.concatenate([band.seen for band in bands])


def run(region, score=score, classes=4, read=read, **changes):
    recipe = Prediction(**{"window_pixels": 32, "overlap": 0.5, "batch": 3, **changes})
    return joined(blended(read, score, region, classes=classes, settings=recipe, device=CPU))


WHOLE = Region(*ORIGIN, SIDE, SIDE)


def by_hand(region, window, step, weights, score):
    """Every window by itself, in double precision, and the sum of weights as a plane."""
    total, sums = np.zeros((4, region.height, region.width)), np.zeros((region.height, region.width))
    for row in window_starts(region.row, region.height, window, step):
        for column in window_starts(region.column, region.width, window, step):
            inputs = read(Region(row, column, window, window))
            batch = {key: torch.from_numpy(values.astype(np.int32))[None] for key, values in inputs.items()}
            with torch.inference_mode():
                values = score(batch)[0].numpy() * weights[:, None] * weights
            for y in range(max(row, region.row), min(row + window, region.row + region.height)):
                for x in range(max(column, region.column), min(column + window, region.column + region.width)):
                    total[:, y - region.row, x - region.column] += values[:, y - row, x - column]
                    sums[y - region.row, x - region.column] += weights[y - row] * weights[x - column]
    return total / sums


def bell(window):
    return np.sin(np.pi * (np.arange(window) + 0.5) / window) ** 2


@pytest.mark.parametrize(
    ("overlap", "blend", "weights"),
    [
        (0.5, "hann", bell(32)),
        (0.3, "hann", bell(32)),  # a step of 23, which no window is a multiple of
        (0.75, "none", np.ones(32)),
        (0, "hann", np.ones(32)),
        (0.5, "centre", np.repeat([0.0, 1, 0], [8, 16, 8])),
    ],
)
def test_every_pixel_is_the_weighted_mean_of_its_windows(overlap, blend, weights):
    region = Region(ORIGIN[0] + 5, ORIGIN[1] + 37, 61, 50)
    step = 32 - int(32 * overlap)
    expected = by_hand(region, 32, step, weights, score)
    found, seen = run(region, overlap=overlap, blend=blend)
    np.testing.assert_allclose(found[:, seen], expected[:, seen], atol=1e-6)


@pytest.mark.parametrize("kind", ["hann", "none", "centre"])
@pytest.mark.parametrize(("window", "step"), [(32, 16), (32, 23), (32, 8), (32, 32), (48, 45)])
def test_weights_add_up_to_one_everywhere(window, step, kind):
    weights = blend_weights(window, step, kind)
    total = np.zeros(4 * window)
    for start in window_starts(0, 4 * window, window, step):
        inside = np.arange(start, start + window)
        there = (inside >= 0) & (inside < len(total))
        total[inside[there]] += weights[there]
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_the_centre_is_the_middle_alone():
    assert blend_weights(32, 16, "centre").tolist() == [0] * 8 + [1] * 16 + [0] * 8


def test_windows_lie_on_an_absolute_lattice():
    assert list(window_starts(0, 64, 32, 16)) == [-16, 0, 16, 32, 48]
    whole = set(window_starts(0, 128, 32, 24))
    assert set(window_starts(0, 64, 32, 24)) | set(window_starts(64, 64, 32, 24)) == whole
    assert (blend_weights(32, 16) > 0).all()
    np.testing.assert_allclose(blend_weights(32, 16)[:16] + blend_weights(32, 16)[16:], 1, rtol=1e-6)


REGIONS = st.tuples(st.integers(0, 120), st.integers(0, 120), st.integers(1, 40), st.integers(1, 40))
WAYS = st.sampled_from([(0.5, "hann"), (0.3, "hann"), (0.0, "none"), (0.75, "none"), (0.5, "centre")])
KEPT = {}


def whole_of(overlap, blend):
    if (overlap, blend) not in KEPT:
        KEPT[overlap, blend] = run(WHOLE, overlap=overlap, blend=blend, batch=4)
    return KEPT[overlap, blend]


@settings(max_examples=40, deadline=None)
@given(REGIONS, WAYS)
def test_any_part_has_the_bytes_of_the_whole(part, way):
    """Its windows come in batches of other company, and their rows are cut elsewhere."""
    row, column, height, width = part
    expected, seen = whole_of(*way)
    here = np.s_[..., row : row + height, column : column + width]
    found = run(Region(ORIGIN[0] + row, ORIGIN[1] + column, height, width), overlap=way[0], blend=way[1], batch=4)
    np.testing.assert_array_equal(found[1], seen[here])
    np.testing.assert_array_equal(found[0][:, found[1]], expected[here][:, found[1]])


@pytest.mark.parametrize("threads", [2, 3])
def test_how_many_batches_are_scored_at_a_time_changes_no_byte(threads):
    """The network, too, has one thread of torch, whatever the caller has."""
    expected = run(WHOLE)
    seen = []
    found = run(WHOLE, lambda batch: seen.append(torch.get_num_threads()) or score(batch), threads=threads)
    np.testing.assert_array_equal(found[0], expected[0])
    assert {*seen} == {1}


def steady(batch):
    """Scores that no library computes."""
    values = batch["s2"].float().mean(1) / 4000  # (B, 3, w, w)
    return torch.cat([values, 1 - values[:, :1]], 1)


def test_windows_without_any_observation_are_not_scored():
    """Nor is one whose middle is unobserved, where the middle alone counts."""
    for blend, reach in (("hann", 0), ("centre", 8)):
        scored = []

        def counted(batch, scored=scored):
            scored.extend((batch["s2"] != 0).any(1).any(1).numpy())
            return steady(batch)

        found, seen = run(WHOLE, counted, blend=blend, batch=1)
        assert scored and all(one[reach : 32 - reach, reach : 32 - reach].any() for one in scored)
        assert not found[:, 100 + 32 :, : 90 - 32].any()
        assert not seen[100:, :90].any() and not seen[30:35, 40].any()
        assert seen.sum() == SIDE**2 - 60 * 90 - 5
        np.testing.assert_allclose(found[:, seen].sum(0), steady(read_all()).numpy()[0][:, seen].sum(0), rtol=1e-4)


def read_all():
    return {key: torch.from_numpy(values.astype(np.int32))[None] for key, values in read(WHOLE).items()}


def test_a_region_without_any_observation_is_read_once_and_never_scored():
    rows = []

    def nothing(region):
        rows.extend(range(region.row, region.row + region.height))
        return read(region)

    far = Region(10_000, 0, 1000, 70)
    found, seen = run(far, lambda batch: pytest.fail("scored"), read=nothing)
    assert found.shape == (4, 1000, 70) and not found.any() and not seen.any()
    assert rows == list(range(rows[0], rows[-1] + 1))  # from north to south, each once
    assert rows[0] > far.row - 32 and rows[-1] < far.row + far.height + 32


def test_batches_are_full_whatever_the_region():
    sizes = []
    run(Region(*ORIGIN, 20, 17), lambda batch: sizes.append(len(batch["s1"])) or steady(batch), batch=5)
    assert {*sizes} == {5}


def test_integers_reach_the_model_as_they_are():
    def check(batch):
        assert batch["s1"].dtype == torch.int16 and batch["s2"].dtype == torch.int32  # uint16 elsewhere has few kernels
        assert batch["s1"].shape == (3, 2, 2, 32, 32) and batch["s2"].shape == (3, 1, 3, 32, 32)
        return steady(batch)

    run(Region(*ORIGIN, 32, 32), check)


def test_bands_are_kept_as_long_as_somebody_holds_them():
    """Memory is used again, but not under the feet of who still has it."""
    recipe = Prediction(window_pixels=32, overlap=0.5, batch=2)
    bands, copies = [], []
    for band in blended(read, steady, WHOLE, classes=4, settings=recipe, device=CPU):
        assert isinstance(band, Band) and band.seen.shape == band.probabilities.shape[1:]
        bands.append(band.probabilities)
        copies.append(band.probabilities.clone())
    for band, copy in zip(bands, copies, strict=True):
        np.testing.assert_array_equal(band, copy)
    used = set()
    for band in blended(read, steady, WHOLE, classes=4, settings=recipe, device=CPU):
        used.add(band.probabilities.untyped_storage().data_ptr())
        del band
    assert 1 < len(used) <= 4


def test_a_class_of_a_patch_fills_its_window():
    """Without overlap one class a tile, by stride finer cells."""

    def patches(batch):
        values = batch["s2"].float().mean((1, 2, 3, 4)) / 4000
        return torch.stack([values, 1 - values], 1)

    tiles, _ = run(WHOLE, patches, 2, overlap=0)
    first = np.ceil(np.array(ORIGIN) / 32).astype(int) * 32 - ORIGIN
    tile = tiles[:, first[0] : first[0] + 32, first[1] : first[1] + 32]
    assert np.ptp(tile, (1, 2)).max() == 0
    fine, _ = run(WHOLE, patches, 2, overlap=0.5, blend="centre")
    cells = fine[0, 4:36, 4:36]
    assert len(np.unique(cells)) > 2


def test_symmetries_turn_scores_back():
    """A model of single pixels does not change; one that tells left from right becomes one that does not."""
    batch = {"s2": torch.randint(0, 4000, (2, 1, 3, 32, 32)), "day": torch.randint(0, 9, (2, 1, 32, 32))}
    torch.testing.assert_close(symmetric(steady, batch), steady(batch))
    slope = torch.arange(32.0).expand(2, 1, 32, 32)
    torch.testing.assert_close(symmetric(lambda _: slope, batch), torch.full((2, 1, 32, 32), 15.5))
    seen = []
    symmetric(lambda turned: seen.append(turned) or turned["s2"][:, 0].float(), batch)
    assert len({one["s2"].numpy().tobytes() for one in seen}) == len(seen) == 8
    patches = lambda turned: turned["s2"].float().mean((1, 3, 4))  # noqa: E731
    torch.testing.assert_close(symmetric(patches, batch), patches(batch))


def test_symmetries_are_a_setting():
    plain, seen = run(WHOLE)
    turned, _ = run(WHOLE, symmetries=True)
    assert (plain != turned).any()
    np.testing.assert_allclose(turned[:, seen], run(WHOLE, partial(symmetric, score))[0][:, seen], atol=1e-6)


def test_windows_are_refined_before_they_are_blended():
    recipe = Prediction(window_pixels=32, overlap=0, batch=2)

    def refine(probabilities, integers):
        assert integers["s2"].shape[-2:] == (32, 32)
        return probabilities * 0 + torch.tensor([1.0, 0, 0, 0])[:, None, None]

    found, seen = joined(
        blended(read, score, WHOLE, classes=4, settings=recipe, device=CPU, refine=refine),
    )
    assert (found[0, seen] == 1).all() and not found[1:].any()


def test_a_model_that_gives_another_shape_is_explained():
    with pytest.raises(ModelError, match=r"shape \(3, 4, 16, 16\).*expected \(3, 4, 32, 32\), or \(3, 4\)"):
        run(WHOLE, lambda batch: steady(batch)[..., :16, :16])


def test_an_error_of_the_reader_is_that_of_the_caller():
    def broken(region):
        raise ModelError("no such stack")

    with pytest.raises(ModelError, match="no such stack"):
        run(WHOLE, read=broken)


# --- what is kept ----------------------------------------------------------------------------------------------------

SHARES = torch.tensor([[0.5, 0.2, 1.0, 0.25], [0.3, 0.6, 0.0, 0.25], [0.2, 0.2, 0.0, 0.5]])[:, None]  # (3, 1, 4)


def test_class_confidence_and_layers_by_hand():
    seen = np.array([[True, True, True, False]])
    found = finished(SHARES, seen, ("margin", "entropy", "probabilities"))
    entropies = [-sum(p * np.log(p) for p in column if p) / np.log(3) * 100 for column in SHARES[:, 0].T.tolist()]
    assert found.dtype == np.uint8
    assert found[:, 0].tolist() == [
        [1, 2, 1, 0],
        [50, 60, 100, 255],
        [20, 40, 100, 255],
        [*(round(value) for value in entropies[:3]), 255],
        [125, 50, 250, 255],
        [75, 150, 0, 255],
        [50, 50, 0, 255],
    ]
    assert finished(SHARES, seen)[:, 0].tolist() == found[:2, 0].tolist()
    names = layer_names(("margin", "probabilities"), ["a", "b"])
    assert names == ("class", "confidence", "margin", "probability of a", "probability of b")


def test_alike_classes_have_no_margin_and_full_entropy():
    alike = torch.full((4, 1, 1), 0.25)
    assert finished(alike, np.ones((1, 1), bool), ("margin", "entropy")).ravel().tolist() == [1, 25, 0, 100]


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_the_loops_of_the_cpu_rank_as_the_device_does(classes):
    values = torch.from_numpy(np.random.default_rng(1).integers(0, 9, (classes, 30, 37)).astype(np.float32) / 9)
    padded = torch.cat([values, torch.zeros_like(values[:1])])
    two = torch.sort(padded, dim=0, descending=True, stable=True)
    for best, first, second in (ranked(values), ranked_on_device(values)):
        np.testing.assert_array_equal(best, two.indices[0])  # the first of equal ones
        np.testing.assert_array_equal(first, two.values[0])
        np.testing.assert_array_equal(second, two.values[1])


def test_the_loops_of_the_cpu_add_as_the_device_does():
    scores = torch.rand(3, 2, 32, 32)
    columns, rows = [-20, -4, 12], (8, 24)
    across = windows_of(0, 40, Prediction(window_pixels=32, overlap=0.5))
    expected, found = torch.zeros(2, 16, 40), torch.zeros(2, 16, 40)
    add_on_device(expected, scores[:, :, slice(*rows)], across.weights[slice(*rows)], columns, across)
    limits = across.first, across.last
    places = np.array(columns, np.int64)
    _add(found.numpy(), scores.numpy(), across.weights, across.weights, rows, limits, places)
    torch.testing.assert_close(found, expected)
    assert expected[:, :, :40].min() > 0
