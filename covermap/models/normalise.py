"""From the integers of a stack to the numbers that a network sees, on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from covermap.errors import CoverageError
from covermap.inputs import DAY, NODATA, Meaning, Pairs

INDEX_STEPS = 10_000  # of an index: as fine as reflectance, so that one floor of the deviation suits both


class Normalised(nn.Module):
    """A network behind the normalisation of its inputs, with the class priors that it was trained under.

    ``shapes`` are steps and bands (T, C) of the integers of each input, ``meaning`` is that of their axes, and
    ``pairs`` are the bands that each input's I indices are computed from, which the network sees as further bands.
    ``mean`` and ``std`` (T, C + I) of each input come from the training split and are stored with the weights;
    ``log_weights`` (K,) are the logarithms of the loss's class weights.
    """

    def __init__(
        self, network: nn.Module, shapes: dict[str, tuple[int, int]], classes: int, meaning: Meaning, pairs: Pairs
    ) -> None:
        super().__init__()
        self.network = network
        self.shapes = dict(shapes)
        self.meaning = meaning
        self.pairs = pairs
        for key, shape in with_indices(shapes, pairs).items():
            self.register_buffer(f"{key}_mean", torch.zeros(shape))
            self.register_buffer(f"{key}_std", torch.ones(shape))
        self.register_buffer("log_weights", torch.zeros(classes))

    log_weights: Tensor

    def forward(self, integers: dict[str, Tensor]) -> Tensor:
        """Logits (B, K, H, W) from integers (B, T, C, H, W) and, where s2 was filled, its ``day`` (B, T, H, W).

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
            valid[key] = seen.to(values.dtype).mean(2)  # (B, T, H, W)
            if key == "s2" and DAY in integers:
                valid[key] *= integers[DAY] > 0
        return self.network(inputs, valid)

    def probabilities(self, integers: dict[str, Tensor]) -> Tensor:
        """Class probabilities (B, K, H, W) at the training prevalence.

        A loss with class weights w teaches p(k) w(k) up to a factor; dividing by w keeps rare classes from being
        inflated in the map (Menon et al. 2021, arXiv:2007.07314).
        """
        logits = self(integers).float()
        return (logits - self.log_weights[None, :, None, None]).softmax(1)


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
    batches: Iterable[dict[str, np.ndarray]], pairs: Pairs
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation (T, C + I) of each input's bands and indices where seen, streaming.

    Sums of bands are whole numbers, and exact; those of indices are float64.

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
        count, total, squares = np.concatenate(terms, 2)
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
