"""Pixelate: a small image shown large."""

import numpy as np
from PIL import Image

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="digital", levels=(0.6, 0.5, 0.4, 0.3, 0.25))
def pixelate(pixels: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Shrink by averaging, and repeat pixels back to the original size. Parameter: fraction of the side that is kept."""
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize(
        (max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
