"""Geometry: another view of the same image, or a part of it."""

from __future__ import annotations

import cv2
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


CELLS = 8  # a side


@visual_operator(group="geometry", levels=(0.17, 0.26, 0.34, 0.42, 0.5))
def occlusion(pixels: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Paint random cells of an 8 x 8 grid grey. Parameter: fraction of the cells.

    A higher level hides the cells of a lower one, and more.
    """
    height, width = pixels.shape[:2]
    hidden = np.zeros(CELLS * CELLS, dtype=bool)
    hidden[random.permutation(CELLS * CELLS)[: round(share * CELLS * CELLS)]] = True
    rows, columns = (np.arange(side) * CELLS // side for side in (height, width))
    out = pixels.copy()
    out[hidden[rows[:, None] * CELLS + columns]] = 128
    return out


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


@visual_operator(group="geometry", levels=(0.15, 0.1, 0.08, 0.065, 0.05))
def rescale(pixels: np.ndarray, share: float, random: np.random.RandomState) -> np.ndarray:
    """Scale down and up again, both bicubic. Parameter: side of the small copy as a fraction of the whole.

    ``pixelate`` shows the pixels of the small copy; this smooths them, as an upscaled thumbnail is smooth.
    """
    height, width = pixels.shape[:2]
    size = max(1, round(width * share)), max(1, round(height * share))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@visual_operator(group="geometry", levels=(5, 10, 15, 22, 30))
def rotation(pixels: np.ndarray, degrees: float, random: np.random.RandomState) -> np.ndarray:
    """Rotate about the centre, in a random direction; uncovered areas show the mirrored image. Parameter: angle in degrees."""
    height, width = pixels.shape[:2]
    angle = degrees if random.uniform() < 0.5 else -degrees
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    return cv2.warpAffine(pixels.astype(np.float32), turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
