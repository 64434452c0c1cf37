"""Impulse noise: salt and pepper in colour, as from bit errors."""

import numpy as np

from lmms_eval_emi.shifts.operators import by_bands, visual_operator


@visual_operator(group="noise", levels=(0.03, 0.06, 0.09, 0.17, 0.27))
def impulse_noise(pixels: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Set a fraction of the values, separately for each channel, to 0 or 255. Parameter: the fraction."""

    def hit(band: np.ndarray) -> np.ndarray:
        draw = random.random_sample(band.shape)
        return np.where(draw < share / 2, 0, np.where(draw < share, 255, band))

    return by_bands(pixels, hit)
