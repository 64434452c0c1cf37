"""Impulse noise: salt and pepper in colour, as from bit errors."""

import numpy as np

from lmms_eval_emi.shifts.operators import by_bands, visual_operator


@visual_operator(group="noise", levels=(0.03, 0.06, 0.09, 0.17, 0.27))
def impulse_noise(pixels: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Sets a fraction of the values, each channel's by itself, to 0 or 255; the level is the share."""

    def hit(band: np.ndarray) -> np.ndarray:
        draw = random.random_sample(band.shape)
        return np.where(draw < share / 2, 0, np.where(draw < share, 255, band))

    return by_bands(pixels, hit)
