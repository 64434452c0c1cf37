"""Reliability checks of an estimator: stability over the number of images, and 0 for unrelated responses.

An estimate of information from few rows in many dimensions can be a property of the sample size, or of the estimator,
more than of the responses. Two checks, on the responses of a model:

* On random subsets with 1/2 and 3/4 of the images, an estimate keeps its value. One that drifts with the size cannot be
  compared with an estimate from another number of images.
* With the responses exchanged between images, an estimate is 0. What remains comes from the estimator.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import MutualInformationEstimator, clusters_of, emi, of_other_images
from lmms_eval_emi.util.documents import Plain

SHARES = (0.5, 0.75)
DRAWS = 20  # random subsets of each size, and exchanges
FEWEST_IMAGES = 8
TOLERANCE = 0.1  # share of the value on all images below which a deviation is not marked
SURE = 2.0  # standard errors of the mean over draws that a deviation must exceed


class ReliabilityResult(Plain):
    """I(input; response) on all images, on subsets of them, and with responses exchanged between images."""

    value: float
    by_share: dict[str, float]
    exchanged: float
    marks: list[str] = []


def reliability(
    embeddings: Embeddings, estimator: MutualInformationEstimator, seed: int = 0
) -> ReliabilityResult | None:
    """Check an estimator on the rows of a split.

    Args:
        embeddings: the split, N samples of at least 8 images.
        estimator: estimator of mutual information.
        seed: random seed of the subsets and exchanges.

    Returns:
        The values and the marks of what deviates; ``None`` for fewer than 8 images, or if the estimator cannot take half
        of them.
    """
    keys = clusters_of(embeddings)
    images = list(dict.fromkeys(keys))
    if len(images) < FEWEST_IMAGES:
        return None
    draw = random.Random(seed)
    by_share: dict[str, float] = {}
    marks = []
    try:
        whole = emi(embeddings, estimator).mi_response
        for share in SHARES:
            values = []
            for _ in range(DRAWS):
                kept = set(draw.sample(images, round(share * len(images))))
                rows = [row for row, image in enumerate(keys) if image in kept]
                values.append(emi(embeddings.select(rows), estimator).mi_response)
            by_share[f"{share:g}"] = mean = float(np.mean(values))
            if _deviates(values, whole, whole):
                marks.append(f"drifts with the number of images: {mean:.3g} on {share:.0%} of them, {whole:.3g} on all")
        exchanged = []
        for _ in range(DRAWS):
            rows = draw.sample(range(embeddings.n), embeddings.n)  # responses go to the next image in this order
            others = of_other_images(embeddings.select(rows)) or embeddings
            exchanged.append(emi(others, estimator).mi_response)
    except ValueError:  # half of the images are too few for the estimator
        return None
    if _deviates(exchanged, 0.0, whole):
        marks.append(
            f"is not 0 for responses to other images: {np.mean(exchanged):.3g}, where the right ones have {whole:.3g}"
        )
    return ReliabilityResult(value=whole, by_share=by_share, exchanged=float(np.mean(exchanged)), marks=marks)


def _deviates(values: Sequence[float], expected: float, whole: float) -> bool:
    """Return whether the mean of some draws is off by more than chance and by more than a tenth of the value on all images."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    off = abs(float(np.mean(values)) - expected)
    return off > SURE * error and off > TOLERANCE * abs(whole)
