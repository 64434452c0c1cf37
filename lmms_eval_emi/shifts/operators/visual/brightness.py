"""Brightness: the same scene in the glare of the sun."""

import cv2
import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="weather", levels=(0.1, 0.2, 0.3, 0.4, 0.5))
def brightness(pixels: np.ndarray, added: float, random: np.random.RandomState) -> np.ndarray:
    """Add a constant to the value channel of HSV. Parameter: the constant, on a scale of 0 to 1."""
    hsv = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
