"""Blur: by a lens out of focus, frosted glass, and a camera that moves."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from lmms_eval_emi.shifts.operators import visual_operator


@visual_operator(group="blur", levels=((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)))
def defocus_blur(pixels: np.ndarray, lens: tuple[int, float], random: np.random.RandomState) -> np.ndarray:
    """Convolve with a disc. Parameters: radius of the disc in pixels, and blur of its edge."""
    return cv2.filter2D(pixels.astype(np.float32), -1, disc(*lens), borderType=cv2.BORDER_REFLECT_101)


def disc(radius: int, edge_blur: float) -> np.ndarray:
    """Return a disc of sum 1, its edge smoothed by a small Gaussian of the given standard deviation.

    The reference code smooths the discs of radius 8 and 10 where they touch the border of their grid, which
    adds a hundredth to their sum and brightens the image by as much; here the grid has room.
    """
    smoothing = (3, 3) if radius <= 8 else (5, 5)
    reach = np.arange(-radius - 2, radius + 3)
    inside = (reach[:, None] ** 2 + reach[None, :] ** 2 <= radius**2).astype(np.float32)
    return cv2.GaussianBlur(inside / inside.sum(), ksize=smoothing, sigmaX=edge_blur)


@visual_operator(group="blur", levels=((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)))
def glass_blur(pixels: np.ndarray, glass: tuple[float, int, int], random: np.random.RandomState) -> np.ndarray:
    """Blur, scatter pixels, and blur again. Parameters: sigma of the blur, distance of the scatter, and rounds.

    As in the reference code, where what is written as a swap of two pixels takes one from the other:
    every pixel, from the last to the first, becomes a random one of its neighbours.
    """
    sigma, reach, rounds = glass
    height, width = pixels.shape[:2]
    blurred = gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0), mode="nearest", truncate=4)
    source = array("i", range(height * width))  # plain integers: each step reads what earlier steps wrote
    for _ in range(rounds):
        columns = np.arange(width - reach, reach, -1)
        for row in range(height - reach, reach, -1):
            moves = random.randint(-reach, reach, size=(len(columns), 2))
            targets = row * width + columns
            origins = targets + moves[:, 1] * width + moves[:, 0]
            for target, origin in zip(targets.tolist(), origins.tolist(), strict=True):
                source[target] = source[origin]
    scattered = blurred.reshape(-1, 3)[np.asarray(source)].reshape(pixels.shape)
    return gaussian_filter(scattered, (sigma, sigma, 0), mode="nearest", truncate=4)


@visual_operator(group="blur", levels=((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)))
def motion_blur(pixels: np.ndarray, motion: tuple[int, float], random: np.random.RandomState) -> np.ndarray:
    """Smear along a line of random direction, within 45 degrees of horizontal. Parameters: radius and sigma."""
    return smear(pixels.astype(np.float32), *motion, angle=random.uniform(-45, 45))


def smear(values: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Return the weighted mean of an image and its copies shifted along a line, the weights half a Gaussian.

    ImageMagick's motion blur, which the reference code calls: 2 radius + 1 steps of one pixel, borders
    repeated.

    Args:
        values: (H, W) or (H, W, C) float32.
        radius: half the number of steps.
        sigma: sigma of the Gaussian, in pixels.
        angle: angle of the line, in degrees.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    down = -np.ceil(steps * np.sin(np.deg2rad(angle)) - 0.5).astype(int)
    right = -np.ceil(steps * np.cos(np.deg2rad(angle)) - 0.5).astype(int)
    reach = 2 * radius
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    np.add.at(kernel, (reach - down, reach - right), weights / weights.sum())
    return cv2.filter2D(values, -1, kernel, borderType=cv2.BORDER_REPLICATE)


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
