"""Shot noise: light comes in photons, and few of them make a grainy image."""

import numpy as np

from lmms_eval_emi.shifts.operators import by_bands, visual_operator


@visual_operator(group="noise", levels=(60, 25, 12, 5, 3))
def shot_noise(pixels: np.ndarray, photons: float, random: np.random.RandomState) -> np.ndarray:
    """Replace every value by a Poisson count. Parameter: number of photons of white."""
    return by_bands(pixels, lambda band: random.poisson(band / 255 * photons) * (255 / photons))
