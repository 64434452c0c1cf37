"""Motion blur: the camera moved while the shutter was open."""

import cv2
import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="blur", levels=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)))
def motion_blur(pixels: np.ndarray, motion: tuple[int, float], random: np.random.RandomState) -> np.ndarray:
    """Smear along a line of random direction, within 45 degrees of horizontal. Parameters: radius and sigma."""
    return smear(pixels.astype(np.float32), *motion, angle=random.uniform(-45, 45))


def smear(values: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Return the weighted mean of an image and its copies shifted along a line, the weights half a Gaussian.

    ImageMagick's motion blur, which the reference code calls: 2 radius + 1 steps of one pixel, borders
    repeated.

    Args:
        values: (H, W) or (H, W, C) float32.
        radius: half the number of steps.
        sigma: sigma of the Gaussian, in pixels.
        angle: angle of the line, in degrees.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down = -np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    right = -np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    reach = 2 * radius
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    np.add.at(kernel, (reach - down, reach - right), weights / weights.sum())
    return cv2.filter2D(values, -1, kernel, borderType=cv2.BORDER_REPLICATE)
