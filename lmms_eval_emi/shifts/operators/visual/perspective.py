"""Perspective: the image seen from the side."""

import cv2
import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="geometry", levels=(0.2, 0.3, 0.4, 0.5, 0.6))
def perspective(pixels: np.ndarray, distortion: float, random: np.random.RandomState) -> np.ndarray:
    """Move each corner inwards, by up to the parameter times half the side; uncovered areas show the mirrored image.

    The distortion is that of torchvision's ``RandomPerspective``.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < 2:  # its corners are one, and define no map
        return pixels
    corners = np.array([(0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)], dtype=np.float32)
    inwards = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
    reach = distortion * np.array([width, height]) / 2
    moved = (corners + inwards * reach * random.uniform(size=(4, 2))).astype(np.float32)
    view = cv2.getPerspectiveTransform(corners, moved)
    return cv2.warpPerspective(pixels.astype(np.float32), view, (width, height), borderMode=cv2.BORDER_REFLECT_101)
