"""Rotation: the camera held askew."""

import cv2
import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="geometry", levels=(5, 10, 15, 22, 30))
def rotation(pixels: np.ndarray, degrees: float, random: np.random.RandomState) -> np.ndarray:
    """Rotate about the centre, in a random direction; uncovered areas show the mirrored image. Parameter: angle in degrees."""
    height, width = pixels.shape[:2]
    angle = degrees if random.uniform() < 0.5 else -degrees
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    return cv2.warpAffine(pixels.astype(np.float32), turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
