"""Impulse noise: salt and pepper in colour, as from bit errors."""

import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="noise", levels=(0.03, 0.06, 0.09, 0.17, 0.27))
def impulse_noise(pixels: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Sets a share of the values, each channel's by itself, to 0 or 255; the level is the share."""
    hit = random.random_sample(pixels.shape) < share
    salt = random.random_sample(pixels.shape) < 0.5
    return np.where(hit, np.where(salt, 255, 0), pixels)
