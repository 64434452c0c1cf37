"""Occlusion: blocks that hide parts of the image."""

import numpy as np

from lmms_eval_emi.shifts.operators import visual_operator

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
