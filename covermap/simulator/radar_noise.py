"""Noise of the radar image: speckle of a given number of looks, and thermal noise by sub-swath."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

from covermap.simulator.orbit import Array, Floats
from covermap.simulator.sentinel1_xml import Swath
from covermap.simulator.viewing import AZIMUTH_INTERVAL_S, Acquisition

# Width of the band of each look in cycles a sample. With the taper of a raised cosine the intensity of a point is half
# at 20 m in range and 22 m in azimuth, as in IW GRDH products.
RANGE_BAND, AZIMUTH_BAND = 0.72, 0.655
LOOK_WEIGHTS = (0.5, 1.0, 1.3, 1.0, 0.5)  # five looks of unequal weight count as 4.4

# Noise-equivalent sigma nought [dB] in the middle of each sub-swath, and how much more it is at the edges; VH is lower.
NOISE_DB = {"IW1": (-24.6, 2.0), "IW2": (-26.6, 2.2), "IW3": (-28.6, 5.0)}
SWATH_STARTS = (0.0, 0.28, 0.63)  # as shares of the width of the image
BURST_S = 2.75


def speckle(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Speckle of detected, multi-looked samples (line, sample): factor of power with mean 1, float32.

    Each look is white complex Gaussian noise limited to the band of the processor, made in the frequency domain.
    """
    size = tuple(fft.next_fast_len(n) for n in shape)
    band = [
        np.flatnonzero(np.abs(fft.fftfreq(n)) < b / 2) for n, b in zip(size, (AZIMUTH_BAND, RANGE_BAND), strict=True)
    ]
    tapers = [
        0.5 + 0.5 * np.cos(2 * np.pi * fft.fftfreq(n)[k] / b)
        for n, k, b in zip(size, band, (AZIMUTH_BAND, RANGE_BAND), strict=True)
    ]
    gain = np.outer(*tapers)
    gain = (gain * size[0] * size[1] / np.sqrt(2 * (gain**2).sum())).astype(np.float32)  # mean power 1
    total = np.zeros(shape, np.float32)
    for weight in LOOK_WEIGHTS:
        noise = rng.standard_normal((*gain.shape, 2), np.float32).view(np.complex64)[..., 0] * gain
        half = np.zeros((band[0].size, size[1]), np.complex64)
        half[:, band[1]] = noise
        half = fft.ifft(half, axis=1, overwrite_x=True)[:, : shape[1]]
        look = np.zeros((size[0], shape[1]), np.complex64)
        look[band[0]] = half
        look = fft.ifft(look, axis=0, overwrite_x=True)[: shape[0]]
        total += np.float32(weight / sum(LOOK_WEIGHTS)) * (look.real**2 + look.imag**2)
    return total


@dataclass(frozen=True)
class Noise:
    """Thermal noise in squared digital numbers: azimuth_factor(sub-swath, line) x range_power(line, sample)."""

    range_power: Array  # (sample,) at the first line
    azimuth_factor: Array  # (sub-swath, line)
    drift: Array  # (line,), factor of range_power

    def image(self, swaths: tuple[Swath, ...]) -> Floats:
        """Noise of each sample (line, sample), float32."""
        made = np.empty((self.drift.size, self.range_power.size), np.float32)
        for swath, factor in zip(swaths, self.azimuth_factor, strict=True):
            part = slice(swath.first_sample, swath.last_sample + 1)
            made[:, part] = np.outer(factor * self.drift, self.range_power[part])
        return made


def thermal_noise(pass_: Acquisition, polarisation: str, sigma_lut: Array) -> Noise:
    """Noise of the instrument: a bowl in each sub-swath, scalloping along the bursts, a slow drift in time."""
    level_db = np.empty(pass_.samples)
    for swath in sub_swaths(pass_.samples):
        middle_db, edge_db = NOISE_DB[swath.name]
        place = np.linspace(-1, 1, swath.last_sample - swath.first_sample + 1)
        level_db[swath.first_sample : swath.last_sample + 1] = middle_db + edge_db * place**2
    level_db -= 0.4 * (polarisation == "VH")
    time_s = np.arange(pass_.lines) * AZIMUTH_INTERVAL_S
    phase = 2 * np.pi * (time_s / BURST_S + np.array([0.1, 0.4, 0.7])[:, None])
    return Noise(10 ** (level_db / 10) * sigma_lut**2, 1.03 + 0.03 * np.cos(phase), 1 + 0.004 * time_s)


def sub_swaths(samples: int) -> tuple[Swath, ...]:
    """The three sub-swaths of an image so many samples wide."""
    starts = [round(share * samples) for share in SWATH_STARTS]
    ends = [*(start - 1 for start in starts[1:]), samples - 1]
    return tuple(Swath(*s) for s in zip(NOISE_DB, starts, ends, strict=True))
