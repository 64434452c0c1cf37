"""JPEG compression: the blocks and rings of an image saved too small."""

import io

import numpy as np
from PIL import Image

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="digital", levels=(25, 18, 15, 10, 7))
def jpeg_compression(pixels: np.ndarray, quality: int, random: np.random.RandomState) -> np.ndarray:
    """Save as JPEG and read it back. Parameter: the quality."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.asarray(image)
