"""Digital: faults of storing and processing an image."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="digital", levels=(0.4, 0.3, 0.2, 0.1, 0.05))
def contrast(pixels: np.ndarray, kept: float, random: np.random.RandomState) -> np.ndarray:
    """Move every channel towards its mean. Parameter: fraction of the contrast that is kept."""
    mean = pixels.mean(axis=(0, 1), keepdims=True, dtype=np.float64)
    return (pixels - mean) * kept + mean


UNIT = 244.0  # pixels; the published code's own, where 224 was meant


@visual_operator(
    group="digital",
    levels=((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
)
def elastic_transform(
    pixels: np.ndarray, sheet: tuple[float, float, float], random: np.random.RandomState
) -> np.ndarray:
    """Warp by a random affine map and a smooth random field.

    The level is the field's strength, its smoothness (sigma), and how far the affine map moves each of three
    points, all in units of 244 pixels.
    """
    strength, sigma, reach = (UNIT * value for value in sheet)
    height, width = pixels.shape[:2]
    middle, arm = np.array((height // 2, width // 2), dtype=np.float32), min(height, width) // 3
    corners = np.array([middle + arm, (middle[0] + arm, middle[1] - arm), middle - arm], dtype=np.float32)
    moved = corners + random.uniform(-reach, reach, size=corners.shape).astype(np.float32)
    values: np.ndarray = pixels.astype(np.float32)
    if arm > 0:  # three points of a smaller picture are one and define no map
        affine = cv2.getAffineTransform(corners, moved)
        values = cv2.warpAffine(values, affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    right, down = (
        gaussian_filter(random.uniform(-1, 1, size=(height, width)), sigma, mode="reflect", truncate=3) * strength
        for _ in range(2)
    )
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return cv2.remap(
        values,
        (columns + right).astype(np.float32),
        (rows + down).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    )


@visual_operator(group="digital", levels=(25, 18, 15, 10, 7))
def jpeg_compression(pixels: np.ndarray, quality: int, random: np.random.RandomState) -> np.ndarray:
    """Save as JPEG and read it back. Parameter: the quality."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.asarray(image)


@visual_operator(group="digital", levels=(0.6, 0.5, 0.4, 0.3, 0.25))
def pixelate(pixels: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Shrink by averaging, and repeat pixels back to the original size. Parameter: fraction of the side that is kept."""
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize(
        (max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX
    )
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))
