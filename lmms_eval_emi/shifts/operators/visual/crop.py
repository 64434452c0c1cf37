"""Crop: a part of the image, as large as the whole."""

import numpy as np
from PIL import Image

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="geometry", levels=(0.86, 0.79, 0.73, 0.67, 0.61))
def crop(pixels: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Enlarge a window at a random position to the size of the image. Parameter: side of the window as a fraction of the whole."""
    height, width = pixels.shape[:2]
    own_height, own_width = max(1, round(height * share)), max(1, round(width * share))
    top, left = (round(room * random.uniform()) for room in (height - own_height, width - own_width))
    window = Image.fromarray(pixels[top : top + own_height, left : left + own_width])
    return np.asarray(window.resize((width, height), Image.Resampling.BICUBIC))
