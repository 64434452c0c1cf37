"""Weather: glare, fog, ice on the lens, and snow."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.shifts.operators import ShiftOptions, fingerprint_files, visual_operator
from lmms_eval_emi.shifts.operators.visual.blur import smear, zoom_in


@visual_operator(group="weather", levels=(0.1, 0.2, 0.3, 0.4, 0.5))
def brightness(pixels: np.ndarray, added: float, random: np.random.RandomState) -> np.ndarray:
    """Add a constant to the value channel of HSV. Parameter: the constant, on a scale of 0 to 1."""
    hsv = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(hsv[..., 2] + added, 0, 1)
    return 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


@visual_operator(group="weather", levels=((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)))
def fog(pixels: np.ndarray, weather: tuple[float, float], random: np.random.RandomState) -> np.ndarray:
    """Add a plasma fractal and rescale to the original maximum. Parameters: weight of the fog, and decay of its roughness."""
    thickness, decay = weather
    height, width = pixels.shape[:2]
    size = 1 << (max(2, height, width) - 1).bit_length()
    clouds = plasma(size, decay, random)[:height, :width, None]
    brightest = pixels.max() / 255
    return (pixels + 255 * thickness * clouds) * brightest / (brightest + thickness)


def plasma(size: int, decay: float, random: np.random.RandomState) -> np.ndarray:
    """Return a (size, size) height map of 0 to 1 by the diamond-square method; edges wrap around.

    Args:
        size: a power of two.
        decay: factor by how much the random part shrinks with every halving of the step.
        random: where the random part is from.
    """
    heights = np.zeros((size, size), dtype=np.float32)
    step, spread = size, 100.0

    def settle(sums: np.ndarray) -> np.ndarray:
        return sums / 4 + spread * random.uniform(-spread, spread, sums.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        squares = corners + np.roll(corners, -1, axis=0)
        squares = squares + np.roll(squares, -1, axis=1)
        heights[half::step, half::step] = settle(squares)
        middles = heights[half::step, half::step]
        above = middles + np.roll(middles, 1, axis=0)
        beside = middles + np.roll(middles, 1, axis=1)
        heights[::step, half::step] = settle(above + corners + np.roll(corners, -1, axis=1))
        heights[half::step, ::step] = settle(beside + corners + np.roll(corners, -1, axis=0))
        step, spread = half, spread / decay
    heights -= heights.min()
    return heights / max(float(heights.max()), 1e-12)


# The sixth image of the set is never drawn, in the reference code and so here.
PICTURES = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")


@visual_operator(
    group="weather",
    levels=((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    resources=lambda options: fingerprint_files(pictures_folder(options.frost) / name for name in PICTURES),
)
def frost(
    pixels: np.ndarray, weights: tuple[float, float], random: np.random.RandomState, options: ShiftOptions
) -> np.ndarray:
    """Blend the image with a random crop of an image of frost. Parameters: weights of the image and of the frost."""
    folder = pictures_folder(options.frost)
    crystals = _picture(folder / PICTURES[random.randint(len(PICTURES))])
    height, width = pixels.shape[:2]
    tall, wide = crystals.shape[:2]
    scale = 1.1 * max(1, height / tall, width / wide)
    top = random.random_sample() * max(0, int(np.ceil(tall * scale)) - height)
    left = random.random_sample() * max(0, int(np.ceil(wide * scale)) - width)
    return weights[0] * pixels + weights[1] * magnified_part(crystals, scale, int(top), int(left), height, width)


def magnified_part(picture: np.ndarray, scale: float, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Return a part of an image's bicubic magnification, without making the whole."""
    corner = 0.5 / scale - 0.5
    place = np.array([[1 / scale, 0, left / scale + corner], [0, 1 / scale, top / scale + corner]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, place, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def pictures_folder(given: Path | None) -> Path:
    """Return the folder of the frost images: the given one, or that of the package imagecorruptions.

    That package's code no longer runs beside current SciPy and setuptools; only its images are read.

    Raises:
        ShiftError: the images are in neither place.
    """
    if given is not None:
        folder = given.expanduser()
        missing = [name for name in PICTURES if not (folder / name).is_file()]
        if missing:
            raise ShiftError(
                f"LMMS_EVAL_EMI_FROST: expected a folder with {', '.join(PICTURES)}; {folder} lacks {', '.join(missing)}."
            )
        return folder
    package = importlib.util.find_spec("imagecorruptions")
    for location in (package.submodule_search_locations or []) if package else []:
        if all((Path(location) / "frost" / name).is_file() for name in PICTURES):
            return Path(location) / "frost"
    raise ShiftError(
        "frost: needs the pictures of frost of ImageNet-C, which are not here. They come with a package of which only the pictures are used:\n"
        "  pip install --no-deps imagecorruptions==1.1.2\n"
        f"or set LMMS_EVAL_EMI_FROST to a folder with {', '.join(PICTURES)}."
    )


@lru_cache(maxsize=len(PICTURES))
def _picture(path: Path) -> np.ndarray:
    with Image.open(path, formats=("PNG", "JPEG")) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32)


@visual_operator(
    group="weather",
    levels=(
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
)
def snow(pixels: np.ndarray, weather: tuple[float, ...], random: np.random.RandomState) -> np.ndarray:
    """Whiten the scene and add two layers of smeared flakes.

    The level is the flakes' mean and standard deviation, their size, the threshold below which there is
    none, the radius and sigma of their fall, and the weight that the scene keeps.
    """
    mean, spread, size, threshold, radius, sigma, kept = weather
    flakes = zoom_in((mean + spread * random.standard_normal(pixels.shape[:2])).astype(np.float32), size)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = smear(flakes, int(radius), sigma, angle=random.uniform(-135, -45))[..., None]
    scene = pixels.astype(np.float32) / 255
    grey = cv2.cvtColor(scene, cv2.COLOR_RGB2GRAY)[..., None]
    scene = kept * scene + (1 - kept) * np.maximum(scene, grey * 1.5 + 0.5)
    return 255 * (scene + flakes + np.rot90(flakes, k=2))
