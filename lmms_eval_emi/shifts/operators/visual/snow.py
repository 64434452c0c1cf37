"""Snow: bright flakes that fall, over a scene that snow light has whitened."""

import cv2
import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator
from lmms_eval_emi.shifts.operators.visual.motion_blur import smear
from lmms_eval_emi.shifts.operators.visual.zoom_blur import zoom_in


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
