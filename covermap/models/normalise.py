"""From the integers of a stack to the numbers that a network sees, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from covermap.errors import CoverageError
from covermap.inputs import DAY, NODATA, Meaning, Pairs, categories_of
from covermap.models.outputs import Answer, Output, outputs_of, tempered, vote
from covermap.stack import SCENE_CLASSES

INDEX_STEPS = 10_000  # of an index: as fine as reflectance, so that one floor of the deviation suits both


class Normalised(nn.Module):
    """A network behind the normalisation of its inputs, with the class priors that it was trained under.

    ``shapes`` are steps and bands (T, C) of the integers of each input, ``meaning`` is that of their axes, and
    ``pairs`` are the bands that each input's I indices are computed from, which the network sees as further bands.
    ``mean`` and ``std`` (T, C + I) of each input come from the training split and are stored with the weights; those
    of inputs in ``any_steps``, whose steps may be of other dates and numbers elsewhere, are one for all (1, C + I).
    Channels that hold classes, of the layer scl, are not normalised: the network sees them as 0 and 1 of each class.
    ``log_weights`` (K,) are the logarithms of the loss's class weights. ``evidence`` makes logits of a network that did
    not learn by cross-entropy comparable to them; none: they are. ``reduced`` is whether it may be computed in
    bfloat16. ``temperature`` is what a calibration found, 1 without any; it is not among the weights.
    """

    def __init__(
        self,
        network: nn.Module,
        shapes: dict[str, tuple[int, int]],
        classes: int,
        meaning: Meaning,
        pairs: Pairs,
        any_steps: Sequence[str] = (),
        evidence: Callable[[Tensor], Tensor] | None = None,
        reduced: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.shapes = dict(shapes)
        self.meaning = meaning
        self.pairs = pairs
        self.any_steps = tuple(any_steps)
        self.categories = categories_of(meaning)
        self.evidence = evidence
        self.reduced = reduced
        self.temperature = 1.0
        for key, (steps, bands) in with_indices(shapes, pairs).items():
            shape = (1 if key in any_steps else steps, bands)
            self.register_buffer(f"{key}_mean", torch.zeros(shape))
            self.register_buffer(f"{key}_std", torch.ones(shape))
        self.register_buffer("log_weights", torch.zeros(classes))

    log_weights: Tensor

    def forward(self, integers: dict[str, Tensor]) -> Answer:
        """Logits (B, K, H, W), or several of them, from integers (B, T, C, H, W).

        Where s2 was filled, its ``day`` (B, T, H, W) is needed too.
        The network gets the mask of every step of every input (B, T, H, W): the share of its bands that was seen, and
        0 where it was not seen in this step. Values that were filled in from other steps are given as they are; the
        mask tells them apart. The number of clear observations is no input: it depends on how many scenes there are,
        and so on the place and the year.
        """
        inputs, valid = {}, {}
        for key in self.shapes:
            mean, std = (self.get_buffer(f"{key}_{name}")[None, :, :, None, None] for name in ("mean", "std"))
            seen = integers[key] != NODATA[key]  # (B, T, C, H, W)
            values, seen = add_indices(key, integers[key].float(), seen, self.pairs.get(key, ()))  # (B, T, C + I, H, W)
            inputs[key] = torch.where(seen, (values - mean) / std, 0)
            if key in self.categories:
                inputs[key] = one_hot(inputs[key], integers[key], self.categories[key])
            valid[key] = seen.to(values.dtype).mean(2)  # (B, T, H, W)
            if key == "s2" and DAY in integers:
                valid[key] *= integers[DAY] > 0
        answer: Answer = self.network(inputs, valid)
        return answer

    def probabilities(self, integers: dict[str, Tensor]) -> Tensor:
        """Class probabilities (B, K, H, W), or (B, K) of patches, at the training prevalence, calibrated.

        A loss with class weights w teaches p(k) w(k) up to a factor; dividing by w keeps rare classes from being
        inflated in the map (Menon et al. 2021, arXiv:2007.07314).
        """
        return tempered(self.chosen(outputs_of(self(integers))), self.temperature)

    def chosen(self, outputs: list[Output]) -> Tensor:
        """The same from what the network gave."""
        outputs = [output for output in outputs if output.votes]
        if self.evidence is not None:
            outputs = [output._replace(logits=self.evidence(output.logits)) for output in outputs]
        return vote(outputs, self.log_weights, getattr(self.network, "voting", "mean") == "majority")


def seen_shapes(shapes: dict[str, tuple[int, int]], pairs: Pairs, meaning: Meaning) -> dict[str, tuple[int, int]]:
    """Steps and channels (T, C) of each input as the network sees it."""
    more = {key: (SCENE_CLASSES - 1) * len(channels) for key, channels in categories_of(meaning).items()}
    return {key: (steps, bands + more.get(key, 0)) for key, (steps, bands) in with_indices(shapes, pairs).items()}


def one_hot(values: Tensor, integers: Tensor, channels: Sequence[int]) -> Tensor:
    """Values (B, T, C, H, W) whose channels of scene classes are replaced, behind the others, by one for each class.

    Where a class from 1 to 11 is not given by the integers (B, T, C, H, W), all of its channels are 0.
    """
    others = [channel for channel in range(values.shape[2]) if channel not in channels]
    numbers = torch.arange(1, SCENE_CLASSES + 1, device=integers.device).view(-1, 1, 1)  # (11, 1, 1)
    hot = [(integers[:, :, channel, None] == numbers).to(values.dtype) for channel in channels]  # (B, T, 11, H, W)
    return torch.cat([values[:, :, others], *hot], 2)


def with_indices(shapes: dict[str, tuple[int, int]], pairs: Pairs) -> dict[str, tuple[int, int]]:
    """Steps and bands (T, C + I) of each input, its I indices included."""
    return {key: (steps, bands + len(pairs.get(key, ()))) for key, (steps, bands) in shapes.items()}


def add_indices(key: str, values: Tensor, seen: Tensor, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Append the indices of an input to its bands.

    Parameters
    ----------
    key : of the input: indices of s1 are differences of dB, those of s2 normalised differences of reflectance.
    values : float (B, T, C, H, W), the integers.
    seen : bool (B, T, C, H, W), where they are data.
    pairs : numbers of the I pairs of bands.

    Returns
    -------
    Values (B, T, C + I, H, W), an index of s2 in steps of 0.0001 and one of s1 in 0.01 dB, and where they are data: an
    index where both of its bands are. All are finite.
    """
    if not pairs:
        return values, seen
    index, both = index_values(key, values, seen, pairs)
    return torch.cat([values, index], 2), torch.cat([seen, both], 2)


def index_values(key: str, values: Tensor, seen: Tensor, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """The indices (B, T, I, H, W) that ``add_indices`` appends, and where they are data."""
    firsts, seconds = map(list, zip(*pairs, strict=True))
    one, other = values[:, :, firsts], values[:, :, seconds]  # (B, T, I, H, W)
    index = one - other
    if key == "s2":
        index = INDEX_STEPS * index / (one + other).clamp(min=1)
    return index, seen[:, :, firsts] & seen[:, :, seconds]


def channel_statistics(
    batches: Iterable[dict[str, np.ndarray]], pairs: Pairs, any_steps: Sequence[str] = ()
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation (T, C + I) of each input's bands and indices where seen, streaming.

    Those of inputs in ``any_steps`` are of all steps together (1, C + I). Sums of bands are whole numbers, and exact;
    those of indices are float64.

    Raises
    ------
    CoverageError
        An input was never seen.
    """
    sums: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for key in NODATA.keys() & batch.keys():
            terms = [band_moments(batch[key], NODATA[key]), index_moments(key, batch[key], pairs.get(key, ()))]
            sums[key] = [a + b for a, b in zip(sums[key], terms, strict=True)] if key in sums else terms
    statistics = {}
    for key, terms in sums.items():
        moments = np.concatenate(terms, 2)  # (3, T, C + I)
        count, total, squares = moments.sum(1, keepdims=True) if key in any_steps else moments
        if not count.any():
            raise CoverageError(
                f"no training tile has a single observation of {key}: check season, masks.max_scene and scenes of the "
                "areas that the model learns from"
            )
        mean = total / np.maximum(count, 1)
        variance = squares / np.maximum(count, 1) - mean**2
        statistics[key] = mean, np.sqrt(np.maximum(variance, 1.0))  # one step: a constant channel stays finite
    return statistics


def band_moments(values: np.ndarray, nodata: int) -> np.ndarray:
    """Number, sum and sum of squares of what is data in each band of (B, T, C, H, W): int64 (3, T, C)."""
    tiles, steps, bands = values.shape[:3]
    planes = np.ascontiguousarray(values).reshape(tiles, steps * bands, -1)
    return _moments(planes, nodata).reshape(3, steps, bands)


@njit(cache=True, nogil=True)
def _moments(planes, nodata):  # type: ignore[no-untyped-def]
    """One pass over (B, planes, pixels), without a branch, so that it becomes vector instructions."""
    out = np.zeros((3, planes.shape[1]), np.int64)
    for tile in range(planes.shape[0]):
        for plane in range(planes.shape[1]):
            count, total, squares = np.int64(0), np.int64(0), np.int64(0)
            for pixel in range(planes.shape[2]):
                value = np.int64(planes[tile, plane, pixel])
                seen = np.int64(value != nodata)
                count += seen
                total += seen * value
                squares += seen * value * value
            out[0, plane] += count
            out[1, plane] += total
            out[2, plane] += squares
    return out


def index_moments(key: str, values: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The same of the indices of an input: float64 (3, T, I)."""
    if not pairs:
        return np.zeros((3, values.shape[1], 0))
    integers = torch.from_numpy(values.astype(np.float64)), torch.from_numpy(values != NODATA[key])
    index, seen = (part.numpy() for part in index_values(key, *integers, pairs))
    return np.stack([term.sum((0, 3, 4)) for term in (seen, index * seen, index**2 * seen)])
