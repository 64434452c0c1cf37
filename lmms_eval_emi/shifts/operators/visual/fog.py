"""Fog: clouds of a plasma fractal between the camera and the scene."""

import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="weather", levels=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)))
def fog(pixels: np.ndarray, weather: tuple[float, float], random: np.random.RandomState) -> np.ndarray:
    """Add a plasma fractal and rescale to the original maximum. Parameters: weight of the fog, and decay of its roughness."""
    thickness, decay = weather
    height, width = pixels.shape[:2]
    size = 1 << (max(2, height, width) - 1).bit_length()
    clouds = plasma(size, decay, random)[:height, :width, None]
    brightest = pixels.max() / 255
    return (pixels + 255 * thickness * clouds) * brightest / (brightest + thickness)


def plasma(size: int, decay: float, random: np.random.RandomState) -> np.ndarray:
    """Return a (size, size) height map of 0 to 1 by the diamond-square method; edges wrap around.

    Args:
        size: a power of two.
        decay: factor by how much the random part shrinks with every halving of the step.
        random: where the random part is from.
    """
    heights = np.zeros((size, size), dtype=np.float32)
    step, spread = size, 100.0

    def settle(sums: np.ndarray) -> np.ndarray:
        return sums / 4 + spread * random.uniform(-spread, spread, sums.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        squares = corners + np.roll(corners, -1, axis=0)
        squares = squares + np.roll(squares, -1, axis=1)
        heights[half::step, half::step] = settle(squares)
        middles = heights[half::step, half::step]
        above = middles + np.roll(middles, 1, axis=0)
        beside = middles + np.roll(middles, 1, axis=1)
        heights[::step, half::step] = settle(above + corners + np.roll(corners, -1, axis=1))
        heights[half::step, ::step] = settle(beside + corners + np.roll(corners, -1, axis=0))
        step, spread = half, spread / decay
    heights -= heights.min()
    return heights / max(float(heights.max()), 1e-12)
