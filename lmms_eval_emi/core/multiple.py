"""Many shifts at once: p-values adjusted over a family, and what each shift is called."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from lmms_eval_emi.core.conventions import Adjustment
from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.errors import InputError

ALPHA = 0.05
WEBB = np.array([-math.sqrt(1.5), -1.0, -math.sqrt(0.5), math.sqrt(0.5), 1.0, math.sqrt(1.5)])  # Webb 2023


def adjust(
    family: Sequence[Jackknife],
    method: Adjustment | str = "holm",
    draws: int = 1999,
    seed: int = 0,
    p_values: Sequence[float | None] | None = None,
) -> list[float | None]:
    """Return adjusted p-values of statistics differing from 0, over a family.

    Args:
        family: the statistics; those with fewer than 8 clusters have no p-value and do not count.
        method: ``holm`` (Holm 1979), ``bh`` (Benjamini & Hochberg 1995: false discovery rate), ``maxt``
            (step-down maximum of t under wild weights, which shared clusters have in common), ``none``.
        draws: number of draws of ``maxt``.
        seed: seed of ``maxt``.
        p_values: p-values of another test, instead of the statistics'; ``maxt`` has no use for them.
    """
    ps = list(p_values) if p_values is not None else [jackknife.p_value for jackknife in family]
    known = [position for position, p_value in enumerate(ps) if p_value is not None]
    p = np.array([ps[position] for position in known], dtype=float)
    if not len(p) or method == "none":
        adjusted = p
    elif method == "holm":
        adjusted = holm(p)
    elif method == "bh":
        from scipy import stats

        adjusted = stats.false_discovery_control(p, method="bh")
    elif method == "maxt":
        adjusted = _maxt([family[position] for position in known], draws, seed)
    else:
        raise InputError(f"adjust: expected holm, bh, maxt or none, got {method!r}.")
    found: list[float | None] = [None] * len(family)
    for position, value in zip(known, adjusted, strict=True):
        found[position] = float(value)
    return found


def holm(p: np.ndarray) -> np.ndarray:
    """Return Holm's step-down adjustment.

    >>> [round(float(value), 3) for value in holm(np.array([0.01, 0.04, 0.03]))]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted


def _maxt(family: Sequence[Jackknife], draws: int, seed: int) -> np.ndarray:
    clusters: list[Hashable] = sorted(
        {key for jackknife in family for stratum in jackknife.strata for key in stratum}, key=str
    )
    number = {key: position for position, key in enumerate(clusters)}
    weights = np.random.default_rng(seed).choice(WEBB, size=(draws, len(clusters)))
    sums, variances = np.zeros((draws, len(family))), np.zeros((draws, len(family)))
    observed = np.zeros(len(family))
    for position, statistic in enumerate(family):
        deviations = statistic.deviations()
        for stratum in statistic.strata:
            columns = [number[key] for key in stratum]
            weighted = weights[:, columns] * np.array([deviations[key] for key in stratum])
            count = len(columns)
            total = weighted.sum(axis=1)
            sums[:, position] += total
            # The variance of a draw is centred at the draw; otherwise the family-wise error is .14 instead of .05.
            variances[:, position] += count / (count - 1) * ((weighted**2).sum(axis=1) - total**2 / count)
        error = statistic.stderr or 0.0
        observed[position] = abs(statistic.corrected) / error if error else (math.inf if statistic.corrected else 0.0)
    drawn = np.abs(sums) / np.sqrt(np.maximum(variances, 1e-300))
    order = np.argsort(-observed)
    # The largest of the draws among the statistics that are still to be decided.
    largest = np.maximum.accumulate(drawn[:, order][:, ::-1], axis=1)[:, ::-1]
    steps = (1 + (largest >= observed[order]).sum(axis=0)) / (draws + 1)
    adjusted = np.empty(len(family))
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def verdict(statistic: Jackknife, p_adjusted: float | None, margin: float | None) -> str | None:
    """Return the verdict on a shift: ``lost``, ``gained``, ``held`` or ``undecided``.

    ``lost`` and ``gained`` differ from 0 after adjustment. ``held`` is a claim too: two one-sided tests
    put the difference within the margin, which its interval of 90 % does; without a margin none is. The rest is
    undecided.

    Returns:
        ``None`` where there are too few images to say.
    """
    reach = statistic.interval(1 - 2 * ALPHA)
    if p_adjusted is None or reach is None:
        return None
    if p_adjusted < ALPHA:
        return "lost" if statistic.corrected > 0 else "gained"
    return "held" if margin is not None and -margin < reach[0] and reach[1] < margin else "undecided"
