"""Gaussian noise: what a sensor adds in low light."""

import numpy as np

from lmms_eval_emi.shifts.operators import by_bands, visual_operator


@visual_operator(group="noise", levels=(0.08, 0.12, 0.18, 0.26, 0.38))
def gaussian_noise(pixels: np.ndarray, scale: float, random: np.random.RandomState) -> np.ndarray:
    """Add normal noise to every value. Parameter: standard deviation, on a scale of 0 to 1."""
    return by_bands(pixels, lambda band: band + 255 * scale * random.standard_normal(band.shape))
