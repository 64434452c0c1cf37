"""Rescale: a small copy of the image, enlarged again."""

import numpy as np
from PIL import Image

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="geometry", levels=(0.15, 0.1, 0.08, 0.065, 0.05))
def rescale(pixels: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Scale down and up again, both bicubic. Parameter: side of the small copy as a fraction of the whole.

    ``pixelate`` shows the pixels of the small copy; this smooths them, as an upscaled thumbnail is smooth.
    """
    height, width = pixels.shape[:2]
    size = max(1, round(width * share)), max(1, round(height * share))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
