"""Glass blur: the view through frosted glass, which scatters pixels over a few others."""

from array import array

import numpy as np
from scipy.ndimage import gaussian_filter

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="blur", levels=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)))
def glass_blur(pixels: np.ndarray, glass: tuple[float, int, int], random: np.random.RandomState) -> np.ndarray:
    """Blur, scatter pixels, and blur again. Parameters: sigma of the blur, distance of the scatter, and rounds.

    As in the reference code, where what is written as a swap of two pixels takes one from the other:
    every pixel, from the last to the first, becomes a random one of its neighbours.
    """
    sigma, reach, rounds = glass
    height, width = pixels.shape[:2]
    blurred = gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0), mode="nearest", truncate=4)
    source = array("i", range(height * width))  # plain integers: each step reads what earlier steps wrote
    for _ in range(rounds):
        columns = np.arange(width - reach, reach, -1)
        for row in range(height - reach, reach, -1):
            moves = random.randint(-reach, reach, size=(len(columns), 2))
            targets = row * width + columns
            origins = targets + moves[:, 1] * width + moves[:, 0]
            for target, origin in zip(targets.tolist(), origins.tolist(), strict=True):
                source[target] = source[origin]
    scattered = blurred.reshape(-1, 3)[np.asarray(source)].reshape(pixels.shape)
    return gaussian_filter(scattered, (sigma, sigma, 0), mode="nearest", truncate=4)
