"""Defocus blur: every point becomes the disc that a lens out of focus draws."""

import cv2
import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="blur", levels=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)))
def defocus_blur(pixels: np.ndarray, lens: tuple[int, float], random: np.random.RandomState) -> np.ndarray:
    """Convolve with a disc. Parameters: radius of the disc in pixels, and blur of its edge."""
    return cv2.filter2D(pixels.astype(np.float32), -1, disc(*lens), borderType=cv2.BORDER_REFLECT_101)


def disc(radius: int, edge_blur: float) -> np.ndarray:
    """Return a disc of sum 1, its edge smoothed by a small Gaussian of the given standard deviation.

    The reference code smooths the discs of radius 8 and 10 where they touch the border of their grid, which
    adds a hundredth to their sum and brightens the image by as much; here the grid has room.
    """
    smoothing = (3, 3) if radius <= 8 else (5, 5)
    reach = np.arange(-radius - 2, radius + 3)
    inside = (reach[:, None] ** 2 + reach[None, :] ** 2 <= radius**2).astype(np.float32)
    return cv2.GaussianBlur(inside / inside.sum(), ksize=smoothing, sigmaX=edge_blur)
