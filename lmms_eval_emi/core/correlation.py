"""Correlations of EMID with the shift index over the shifts of a study, and what they are worth.

Shifts share images and operators, so they are no independent sample: intervals delete whole images,
and for crossed designs a bootstrap over operators (rows and columns of the grid) stands beside them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lmms_eval_emi.core.jackknife import Jackknife, combine

FEWEST_SHIFTS = 8
Interval = tuple[float, float]


@dataclass(frozen=True)
class Correlation:
    """A correlation and its interval of 95 %, which deletes whole images; ``None`` where that is not defined."""

    value: float
    ci95: Interval | None


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's correlation, or ``None`` for fewer than three pairs or a constant."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return statistics.correlation(a, b)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, or ``None`` as for :func:`pearson`."""
    return pearson(stats.rankdata(a).tolist(), stats.rankdata(b).tolist())


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b, or ``None`` as for :func:`pearson`."""
    if pearson(a, b) is None:
        return None
    return float(stats.kendalltau(a, b).statistic)


MEASURES: dict[str, Callable[[Sequence[float], Sequence[float]], float | None]] = {
    "pearson_r": pearson,
    "spearman_r": spearman,
    "kendall_tau": kendall,
}


def correlate(
    measure: Callable[[Sequence[float], Sequence[float]], float | None],
    a: Sequence[Jackknife],
    b: Sequence[Jackknife | None],
) -> Correlation | None:
    """A correlation over shifts, with the interval of the image jackknife on Fisher's scale.

    Args:
        measure: one of :data:`MEASURES`.
        a: of every shift.
        b: of every shift; ``None`` where it has no jackknife.

    Returns:
        ``None`` for fewer than 8 shifts.
    """
    if len(a) < FEWEST_SHIFTS:
        return None
    known = [one for one in b if one is not None]
    if len(known) < len(a) or not all(one.strata for one in (*a, *known)):
        return None

    def fisher(values: Sequence[float]) -> float:
        r = measure(values[: len(a)], values[len(a) :])
        return math.atanh(max(-1 + 1e-9, min(1 - 1e-9, r or 0.0)))

    value = measure([one.value for one in a], [one.value for one in known])
    if value is None:
        return None
    interval = combine(fisher, [*a, *known]).ci95
    return Correlation(value, (math.tanh(interval[0]), math.tanh(interval[1])) if interval else None)


def operator_interval(cells: dict[tuple[str, str], tuple[float, float]], draws: int, seed: int) -> Interval | None:
    """Interval of Pearson's r in a crossed design: rows and columns are drawn with replacement.

    Args:
        cells: the pair of values by visual and textual shift; the cell without either has no pair.
        draws: number of grids drawn.
        seed: of the draws.

    Returns:
        The 2.5 and 97.5 percentiles, or ``None`` unless all but one cell of the grid are there, with at
        least 8 of them, 3 rows and 3 columns.
    """
    rows, columns = sorted({row for row, _ in cells}), sorted({column for _, column in cells})
    if len(cells) != len(rows) * len(columns) - 1 or len(cells) < FEWEST_SHIFTS or min(len(rows), len(columns)) < 3:
        return None
    grid = np.full((2, len(rows), len(columns)), np.nan)
    for (row, column), pair in cells.items():
        grid[:, rows.index(row), columns.index(column)] = pair
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        chosen = random.integers(len(rows), size=len(rows)), random.integers(len(columns), size=len(columns))
        a, b = grid[:, chosen[0]][:, :, chosen[1]].reshape(2, -1)
        kept = ~np.isnan(a)
        r = pearson(a[kept].tolist(), b[kept].tolist()) if kept.sum() >= 3 else None
        if r is not None:
            drawn.append(r)
    if len(drawn) < draws / 2:
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
