"""Contrast: little of it, as at dusk."""

import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="digital", levels=(0.4, 0.3, 0.2, 0.1, 0.05))
def contrast(pixels: np.ndarray, kept: float, random: np.random.RandomState) -> np.ndarray:
    """Move every channel towards its mean. Parameter: fraction of the contrast that is kept."""
    mean = pixels.mean(axis=(0, 1), keepdims=True, dtype=np.float64)
    return (pixels - mean) * kept + mean
