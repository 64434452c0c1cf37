"""Frost: ice crystals on the lens, from photographs of frosted windows."""

import importlib.util
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.shifts.operators import fingerprint_files, visual_operator
from lmms_eval_emi.shifts.options import ShiftOptions

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
    """Add a random part of an image of frost. Parameters: weights of the scene and of the frost."""
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
