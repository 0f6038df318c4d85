"""Random field, smoothing, majority and minimum mapping unit, by hand, by brute force, and across cuts."""

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covermap.errors import SettingError
from covermap.model_settings import ROUNDS, Bayes, Crf, Tidy, halo_pixels
from covermap.postprocess import majority, mean_field, merged, smoothed, tidied

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def drawn(picture):
    return np.array([[int(c, 36) for c in row] for row in picture.replace(".", "0").split()], np.uint8)


def noisy(seed, shape=(48, 56), classes=3, blotch=6, noise=0.3):
    """Classes in blotches, with salt of all classes and of no data."""
    random = np.random.default_rng(seed)
    coarse = random.integers(1, classes + 1, (shape[0] // blotch + 1, shape[1] // blotch + 1))
    large = np.kron(coarse, np.ones((blotch, blotch), int))[: shape[0], : shape[1]]
    salt = random.integers(0, classes + 1, shape)
    return np.where(random.random(shape) < noise, salt, large).astype(np.uint8)


def guesses(seed, classes=4, shape=(40, 52)):
    random = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(classes, *shape, generator=random)).softmax(0), torch.rand(shape, generator=random) > 0.1


# --- random field ----------------------------------------------------------------------------------------------------

PLAIN = Crf(iterations=1, radius_pixels=1, smoothness=2, likeness=0, distance_pixels=1)


def field(probabilities, look=None, seen=None, crf=PLAIN):
    shape = probabilities.shape
    look = torch.zeros(shape[0], 1, *shape[2:]) if look is None else look
    seen = torch.ones(shape[0], *shape[2:], dtype=torch.bool) if seen is None else seen
    return mean_field(probabilities, look, seen, crf)


def test_one_step_by_hand():
    p = torch.tensor([[0.9, 0.4], [0.1, 0.6]]).view(1, 2, 1, 2)  # class 1, class 2 of two neighbours
    beside, corner = np.exp(-0.5), np.exp(-1.0)
    weight = 2 * beside / (4 * beside + 4 * corner)  # of the eight neighbours this one
    first, second = 0.9 * np.exp(weight * 0.4), 0.1 * np.exp(weight * 0.6)
    assert field(p)[0, 0, 0, 0].item() == pytest.approx(first / (first + second), abs=1e-6)


def brute_force_field(p, look, seen, crf):
    """By the formula, pixel by pixel, in double precision."""
    height, width = p.shape[1:]
    radius, reach = crf.radius_pixels, range(-crf.radius_pixels, crf.radius_pixels + 1)
    near = {(i, j): np.exp(-(i * i + j * j) / 2 / crf.distance_pixels**2) for i in reach for j in reach if i or j}
    belief = p * seen
    for _ in range(crf.iterations):
        message = np.log(np.maximum(p, 1e-4))
        for y, x in np.ndindex(height, width):
            for (i, j), share in near.items():
                v, u = y + i, x + j
                if 0 <= v < height and 0 <= u < width and max(abs(i), abs(j)) <= radius:
                    apart = np.mean((look[:, y, x] - look[:, v, u]) ** 2)
                    alike = np.exp(-apart / 2 / crf.contrast**2)
                    weight = share / sum(near.values()) * (crf.smoothness + crf.likeness * alike)
                    message[:, y, x] += weight * belief[:, v, u]
        message = np.exp(message)
        belief = message / message.sum(0) * seen
    return np.where(seen, belief, p)


@pytest.mark.parametrize("radius", [1, 3])
def test_mean_field_is_the_formula(radius):
    p, seen = guesses(1, 3, (7, 9))
    look = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(2))
    crf = Crf(iterations=3, radius_pixels=radius, smoothness=0.7, likeness=4, distance_pixels=1.5, contrast=0.8)
    found = mean_field(p[None], look[None], seen[None], crf)[0]
    assert np.abs(found.numpy() - brute_force_field(p.numpy(), look.numpy(), seen.numpy(), crf)).max() < 1e-5


def test_a_neighbour_counts_where_it_looks_alike():
    p = torch.full((1, 2, 5, 5), 0.5)
    p[0, :, 2, 1], p[0, :, 2, 3] = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    look = torch.zeros(1, 1, 5, 5)
    look[..., 3:] = 10  # the middle looks like its left neighbour
    crf = Crf(iterations=1, radius_pixels=1, smoothness=0, likeness=5, distance_pixels=1, contrast=1)
    assert field(p, look, crf=crf)[0, 0, 2, 2] > 0.55
    assert field(p, torch.zeros_like(look), crf=crf)[0, 0, 2, 2] == pytest.approx(0.5, abs=1e-6)


def test_unseen_pixels_neither_give_nor_take():
    p, seen = guesses(3)
    look = torch.zeros(1, 1, *seen.shape)
    found = mean_field(p[None], look, seen[None], Crf())[0]
    assert torch.equal(found[:, ~seen], p[:, ~seen])
    other = torch.where(seen, p, p.flip(0))
    assert torch.equal(mean_field(other[None], look, seen[None], Crf())[0][:, seen], found[:, seen])
    assert not torch.allclose(found[:, seen], p[:, seen])


def test_a_window_is_the_same_in_any_batch_and_with_weights_that_are_not_kept(monkeypatch):
    p = torch.stack([guesses(seed)[0] for seed in range(3)])
    seen = torch.stack([guesses(seed)[1] for seed in range(3)])
    look = torch.randn(3, 2, *seen.shape[1:], generator=torch.Generator().manual_seed(0))
    whole = mean_field(p, look, seen, Crf())
    alone = mean_field(p[1:2], look[1:2], seen[1:2], Crf())
    assert torch.equal(whole[1:2], alone)
    monkeypatch.setattr("covermap.postprocess.KEPT", 0)
    assert torch.equal(mean_field(p, look, seen, Crf()), whole)
    assert (whole.sum(1) - 1).abs().max() < 1e-5


def test_a_window_smaller_than_the_neighbourhood():
    p, seen = guesses(4, 3, (2, 3))
    crf = Crf(radius_pixels=5)
    found = mean_field(p[None], torch.zeros(1, 1, 2, 3), seen[None], crf)[0]
    expected = brute_force_field(p.numpy(), np.zeros((1, 2, 3)), seen.numpy(), crf)
    assert np.abs(found.numpy() - expected).max() < 1e-5


# --- Bayesian smoothing ----------------------------------------------------------------------------------------------


def brute_force_bayes(p, seen, bayes):
    """As sits computes it, in double precision, with neighbours beyond the array not seen."""
    leg, out = bayes.pixels // 2, p.astype(float)
    p = np.clip(np.rint(p * 10_000), 1, 9_999) / 10_000
    odds = np.log(p / (1 - p))
    for y, x in np.argwhere(seen):
        square = np.s_[max(y - leg, 0) : y + leg + 1, max(x - leg, 0) : x + leg + 1]
        for k in range(len(p)):
            high = np.sort(odds[k][square][seen[square]])[::-1]
            high = high[: int(np.ceil(len(high) * bayes.share))]
            variance = high.var(ddof=1) if len(high) > 1 else 0
            own = variance / (variance + bayes.smoothness)
            out[k, y, x] = 1 / (1 + np.exp(-(own * odds[k, y, x] + (1 - own) * high.mean())))
        out[:, y, x] /= out[:, y, x].sum()
    return out


@pytest.mark.parametrize("bayes", [Bayes(), Bayes(pixels=3, share=1, smoothness=5), Bayes(pixels=15, share=0.1)])
def test_smoothed_is_the_formula(bayes):
    p, seen = guesses(5, 4, (20, 300))
    p[2, :, :200] *= 1e-6  # a class that is nowhere near, at least for the first piece of a row
    p /= p.sum(0)
    found = smoothed(p, seen, bayes).numpy()
    assert np.abs(found - brute_force_bayes(p.numpy(), seen.numpy(), bayes)).max() < 2e-3
    assert np.array_equal(found[:, ~seen], p.numpy()[:, ~seen])


def test_where_all_are_alike_nothing_changes():
    p = torch.tensor([0.7, 0.2, 0.1])[:, None, None].expand(3, 12, 12).contiguous()
    found = smoothed(p, torch.ones(12, 12, dtype=torch.bool), Bayes())
    assert (found - p).abs().max() < 1e-6


def test_a_doubtful_pixel_follows_its_neighbours_and_a_sure_one_among_doubtful_ones_stays():
    p = torch.tensor([0.95, 0.05])[:, None, None].repeat(1, 9, 9)
    p[:, 4, 4] = torch.tensor([0.4, 0.6])
    seen = torch.ones(9, 9, dtype=torch.bool)
    assert smoothed(p, seen, Bayes())[0, 4, 4] > 0.9
    p = torch.rand(9, 9, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    p[4, 4] = 0.9999
    assert smoothed(torch.stack([p, 1 - p]), seen, Bayes(smoothness=0.1))[0, 4, 4] > 0.99


@FEW
@given(st.integers(0, 99), st.integers(0, 40), st.integers(0, 52), st.sampled_from([3, 5, 7]), st.integers(1, 2))
def test_smoothing_is_the_same_across_any_cut(seed, row, column, pixels, threads):
    p, seen = guesses(seed)
    bayes = Bayes(pixels=pixels)
    whole, leg = smoothed(p, seen, bayes), pixels // 2
    torch.set_num_threads(threads)
    for rows in (slice(0, row), slice(row, None)):
        for columns in (slice(0, column), slice(column, None)):
            rows, columns = slice(*rows.indices(40)), slice(*columns.indices(52))
            if rows.start == rows.stop or columns.start == columns.stop:
                continue
            top, left = max(rows.start - leg, 0), max(columns.start - leg, 0)
            part = np.s_[top : rows.stop + leg, left : columns.stop + leg]
            found = smoothed(p[:, *part].clone(), seen[part], bayes)
            inside = np.s_[:, rows.start - top :, columns.start - left :]
            found = found[inside][:, : rows.stop - rows.start, : columns.stop - columns.start]
            assert torch.equal(found, whole[:, rows, columns])


# --- majority --------------------------------------------------------------------------------------------------------


def test_majority_by_hand():
    given = drawn("""
    11122
    13122
    11.22
    44422""")
    expected = drawn("""
    11122
    11122
    11.22
    44422""")
    assert np.array_equal(majority(given, 3), expected)


def test_ties_are_the_pixels_own_else_of_the_lowest_id():
    assert np.array_equal(majority(drawn("21"), 3), drawn("21"))
    assert majority(drawn("31 .2 31"), 3)[1, 1] == 1  # two of 1 and of 3, one of its own
    assert majority(drawn("21 .2 11"), 3)[1, 1] == 1
    assert majority(drawn("21 .2 31"), 3)[1, 1] == 2


@pytest.mark.parametrize("pixels", [3, 7, 31])
def test_majority_is_what_one_counts(pixels):
    given, leg = noisy(3, (30, 40), 5), pixels // 2
    given[0, 0] = 254
    for (y, x), found in np.ndenumerate(majority(given, pixels)):
        square = given[max(y - leg, 0) : y + leg + 1, max(x - leg, 0) : x + leg + 1]
        counts = np.bincount(square.ravel(), minlength=256)
        counts[0] = 0
        best = np.flatnonzero(counts == counts.max())
        own = given[y, x]
        assert found == (0 if own == 0 else own if own in best else best[0])


# --- minimum mapping unit --------------------------------------------------------------------------------------------


def test_a_small_patch_joins_where_its_border_is_longest():
    given = drawn("""
    111222
    113332
    111222""")
    expected = drawn("""
    111222
    112222
    111222""")
    found, left = merged(given, 4)
    assert np.array_equal(found, expected)
    assert left == 0


def test_equal_borders_join_the_lower_id_and_corners_are_no_border():
    assert np.array_equal(merged(drawn("22311"), 2)[0], drawn("22111"))
    assert np.array_equal(merged(drawn("111 311 221 222"), 3)[0], drawn("111 111 221 222"))
    diagonal = drawn("1222 2122 2212 2221")
    assert np.array_equal(merged(diagonal, 2)[0], drawn("2222 2222 2222 2222"))


def test_no_data_is_no_neighbour_and_no_patch():
    given = drawn("""
    1111..
    1.11.2
    1111..""")
    found, left = merged(given, 5)
    assert np.array_equal(found, given)
    assert left == 1


def test_a_cluster_of_small_patches_is_eaten_from_outside():
    given = drawn("1111234567899999")
    expected = ["1111134567999999", "1111114569999999", "1111111599999999", "1111111199999999"]
    assert len(expected) == ROUNDS  # one row of the picture a round
    assert np.array_equal(merged(given, 4)[0], drawn(expected[-1].replace("11111111999", "11111111999")))
    deep = drawn("1111" + "23" * 5 + "4444")
    found, left = merged(deep, 4)
    assert left == 2
    assert np.array_equal(found[0, 8:10], deep[0, 8:10])


def test_a_small_patch_beside_a_grown_one_of_its_class_stays():
    given = drawn("""
    1111144444
    1111244444
    1111344444
    1111333444
    1111224444""")
    found, left = merged(given, 6)
    assert left == 0
    assert {*np.unique(found)} == {1, 4}
    given = drawn("3333 3333 1233 .... 1111".replace(" .... ", " "))
    assert merged(given, 3)[1] == 0


def patches_of(classes):
    """Sizes of the patches that share sides, by flooding: int (y, x), 0 without data."""
    sizes = np.zeros(classes.shape, int)
    done = classes == 0
    for start in np.argwhere(~done):
        if done[tuple(start)]:
            continue
        patch, queue = [], deque([tuple(start)])
        done[tuple(start)] = True
        while queue:
            y, x = queue.popleft()
            patch.append((y, x))
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= v < classes.shape[0] and 0 <= u < classes.shape[1]
                if inside and not done[v, u] and classes[v, u] == classes[y, x]:
                    done[v, u] = True
                    queue.append((v, u))
        sizes[tuple(np.array(patch).T)] = len(patch)
    return sizes


@FEW
@given(st.integers(0, 999), st.integers(1, 30), st.sampled_from([0.05, 0.3, 0.8]))
def test_what_is_left_is_told_and_no_large_patch_changes(seed, unit, noise):
    given = noisy(seed, noise=noise)
    found, left = merged(given, unit)
    before, after = patches_of(given), patches_of(found)
    assert ((after > 0) & (after < unit)).sum() == left
    assert np.array_equal(found[before >= unit], given[before >= unit])
    assert np.array_equal(found == 0, given == 0)
    changed = found != given
    assert (after[changed] >= unit).all()


def in_blocks(given, tidy, pixel_m, block, halo, origin):
    """A map that is tidied block by block, each with a rim, as if it went on without data."""
    out = np.zeros_like(given)
    framed = np.pad(given, halo)
    for row in range(-origin[0], given.shape[0], block):
        for column in range(-origin[1], given.shape[1], block):
            top, left = max(row, 0), max(column, 0)
            bottom, right = min(row + block, given.shape[0]), min(column + block, given.shape[1])
            if top < bottom and left < right:
                part = framed[top : bottom + 2 * halo, left : right + 2 * halo]
                inner = tidied(part, tidy, pixel_m)[halo : halo + bottom - top, halo : halo + right - left]
                out[top:bottom, left:right] = inner
    return out


@FEW
@given(
    st.integers(0, 999),
    st.integers(2, 9),
    st.sampled_from([None, 3, 5]),
    st.sampled_from([0.1, 0.4, 0.9]),
    st.integers(5, 40),
    st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_any_cut_gives_the_same_map(seed, unit, pixels, noise, block, origin):
    given = noisy(seed, noise=noise)
    tidy = Tidy(majority_pixels=pixels, min_unit_ha=unit / 100)
    halo = halo_pixels(tidy, 10)
    assert halo == (pixels or 0) // 2 + (ROUNDS + 1) * unit
    assert np.array_equal(in_blocks(given, tidy, 10, block, halo, origin), tidied(given, tidy, 10))


def test_a_snake_to_the_far_end_of_the_halo_is_seen():
    """The longest chain: each patch leads just to the next, and whether the last is large shows at its far end."""
    unit = 4
    row = [1] + [2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5] + [6] * unit
    given = np.array([row], np.uint8)
    tidy = Tidy(min_unit_ha=unit / 100)
    halo = halo_pixels(tidy, 10)
    whole = tidied(given, tidy, 10)
    assert np.array_equal(in_blocks(given, tidy, 10, 1, halo, (0, 0)), whole)
    assert whole[0, 1] == 6
    assert not np.array_equal(in_blocks(given, tidy, 10, 1, halo - 2 * unit, (0, 0)), whole)


def test_nothing_set_changes_nothing():
    given = noisy(0)
    assert np.array_equal(tidied(given, Tidy(), 10), given)
    assert halo_pixels(Tidy(), 10) == 0


def test_a_unit_is_whole_pixels_and_has_a_limit():
    assert halo_pixels(Tidy(min_unit_ha=1), 10) == (ROUNDS + 1) * 100
    assert halo_pixels(Tidy(min_unit_ha=0.5), 20) == (ROUNDS + 1) * 13
    with pytest.raises(
        SettingError, match=r"min_unit_ha is 5\.0, which is 500 pixels of 10 m: expected at most 4\.09 ha"
    ):
        halo_pixels(Tidy(min_unit_ha=5), 10)
