"""Zoom blur: the camera moved towards the scene while the shutter was open."""

import cv2
import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator


def zooms(stop: float, step: float) -> tuple[float, ...]:
    """Return the zoom factors from 1 to below ``stop``."""
    return tuple(map(float, np.arange(1, stop, step)))


@visual_operator(
    group="blur", levels=(zooms(1.11, 0.01), zooms(1.16, 0.01), zooms(1.21, 0.02), zooms(1.26, 0.02), zooms(1.31, 0.03))
)
def zoom_blur(pixels: np.ndarray, factors: tuple[float, ...], random: np.random.RandomState) -> np.ndarray:
    """Average the image with zooms of itself. Parameter: zoom factors."""
    total = pixels.astype(np.float32)
    for factor in factors:
        total += zoom_in(pixels.astype(np.float32), factor)
    return total / (len(factors) + 1)


def zoom_in(values: np.ndarray, factor: float) -> np.ndarray:
    """Return the middle of an (H, W) or (H, W, C) float32 image, magnified to its whole size by linear interpolation."""
    height, width = values.shape[:2]
    tall, wide = int(np.ceil(height / factor)), int(np.ceil(width / factor))
    top, left = (height - tall) // 2, (width - wide) // 2
    middle = values[top : top + tall, left : left + wide]
    # The corners of the crop become the corners of its magnification, of which the first rows and columns are kept.
    out_tall, out_wide = round(tall * factor), round(wide * factor)
    rows = np.arange(height, dtype=np.float32) * ((tall - 1) / max(1, out_tall - 1))
    columns = np.arange(width, dtype=np.float32) * ((wide - 1) / max(1, out_wide - 1))
    grid_x, grid_y = np.meshgrid(columns, rows)
    return cv2.remap(np.ascontiguousarray(middle), grid_x, grid_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
