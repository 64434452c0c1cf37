"""Noise: values that a sensor, light or bit errors change."""

from __future__ import annotations

import numpy as np

from lmms_eval_emi.shifts.operators import by_bands, visual_operator


@visual_operator(group="noise", levels=(0.08, 0.12, 0.18, 0.26, 0.38))
def gaussian_noise(pixels: np.ndarray, scale: float, random: np.random.RandomState) -> np.ndarray:
    """Add normal noise to every value. Parameter: standard deviation, on a scale of 0 to 1."""
    return by_bands(pixels, lambda band: band + 255 * scale * random.standard_normal(band.shape))


@visual_operator(group="noise", levels=(60, 25, 12, 5, 3))
def shot_noise(pixels: np.ndarray, photons: float, random: np.random.RandomState) -> np.ndarray:
    """Replace every value by a Poisson count. Parameter: number of photons of white."""
    return by_bands(pixels, lambda band: random.poisson(band / 255 * photons) * (255 / photons))


@visual_operator(group="noise", levels=(0.03, 0.06, 0.09, 0.17, 0.27))
def impulse_noise(pixels: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Set a fraction of the values, separately for each channel, to 0 or 255. Parameter: the fraction."""

    def hit(band: np.ndarray) -> np.ndarray:
        draw = random.random_sample(band.shape)
        return np.where(draw < share / 2, 0, np.where(draw < share, 255, band))

    return by_bands(pixels, hit)


@visual_operator(group="noise", levels=(0.15, 0.2, 0.35, 0.45, 0.6))
def speckle_noise(pixels: np.ndarray, scale: float, random: np.random.RandomState) -> np.ndarray:
    """Multiply every value by one plus normal noise. Parameter: standard deviation of the noise."""
    return by_bands(pixels, lambda band: band * (1 + scale * random.standard_normal(band.shape)))
