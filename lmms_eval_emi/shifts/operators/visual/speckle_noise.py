"""Speckle noise: the brighter the pixel, the more of it."""

import numpy as np

from lmms_eval_emi.shifts.operators import by_bands, visual_operator


@visual_operator(group="noise", levels=(0.15, 0.2, 0.35, 0.45, 0.6))
def speckle_noise(pixels: np.ndarray, scale: float, random: np.random.RandomState) -> np.ndarray:
    """Multiply every value by one plus normal noise. Parameter: standard deviation of the noise."""
    return by_bands(pixels, lambda band: band * (1 + scale * random.standard_normal(band.shape)))
