"""Correlations of EMID with the shift index over the shifts of a study, and what they are worth.

Shifts share images and operators, so they are no independent sample. Their scores are drawn again with random
weights on what each image adds to all of them at once (a multiplier bootstrap of the jackknife's deviations),
and the interval is the correlation, on Fisher's scale, plus and minus t(G - 1) standard deviations of these
draws. It is an interval of what the correlation is on average with as many images: noise in the scores weakens
a correlation, and the draws are weakened once more, so their percentiles would lie too low. Ranks are no smooth
function of scores, so that a jackknife of a rank correlation itself would cover half of what it says
(docs/statistics.md). For crossed designs a bootstrap over operators (rows and columns of the grid) stands
beside it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lmms_eval_emi.core.jackknife import LEVEL, Jackknife

FEWEST_SHIFTS = 8
Interval = tuple[float, float]


@dataclass(frozen=True)
class Correlation:
    """A correlation and its interval of 95 % for new images; ``None`` where that is not defined."""

    value: float
    ci95: Interval | None


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Pearson's correlation, or ``None`` for fewer than three pairs or a constant."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return statistics.correlation(a, b)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, or ``None`` as for :func:`pearson`."""
    from scipy import stats

    return pearson(stats.rankdata(a).tolist(), stats.rankdata(b).tolist())


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Kendall's tau-b, or ``None`` as for :func:`pearson`."""
    if pearson(a, b) is None:
        return None
    from scipy import stats

    return float(stats.kendalltau(a, b).statistic)


MEASURES: dict[str, Callable[[Sequence[float], Sequence[float]], float | None]] = {
    "pearson_r": pearson,
    "spearman_r": spearman,
    "kendall_tau": kendall,
}


def correlate(
    measure: str, a: Sequence[Jackknife], b: Sequence[Jackknife | None], draws: int, seed: int
) -> Correlation | None:
    """Return one of :func:`correlations`, or ``None`` if it is not defined."""
    return correlations([measure], a, b, draws, seed).get(measure)


def correlations(
    measures: Iterable[str], a: Sequence[Jackknife], b: Sequence[Jackknife | None], draws: int, seed: int
) -> dict[str, Correlation]:
    """Return correlations over shifts, with their intervals for new images, from the same draws.

    Args:
        measures: some of :data:`MEASURES`.
        a: jackknife of each shift.
        b: jackknife of each shift; ``None`` where it has no jackknife. One without any cluster, such as a score that somebody
            else has, counts as fixed.
        draws: number of draws of the images' weights; 0 for no interval.
        seed: seed of the draws.

    Returns:
        By measure those that are defined; none for fewer than 8 shifts.
    """
    known = [jackknife for jackknife in b if jackknife is not None]
    if len(a) < FEWEST_SHIFTS or len(known) < len(a):
        return {}
    sides = [jackknife.value for jackknife in a], [jackknife.value for jackknife in known]
    values = {measure: value for measure in measures if (value := MEASURES[measure](*sides)) is not None}
    random = [jackknife for jackknife in (*a, *known) if jackknife.strata]
    if not values or not draws or not random or not all(jackknife.is_sure for jackknife in random):
        return {measure: Correlation(value, None) for measure, value in values.items()}
    df = min(jackknife.clusters for jackknife in random) - 1
    drawn = _drawn([*a, *known], draws, seed, df)
    found = {}
    for measure, value in values.items():
        fisher = _fisher(_ROWWISE[measure](drawn[:, : len(a)], drawn[:, len(a) :]))
        reach = float(special.stdtrit(df, 0.5 + LEVEL / 2) * fisher.std())
        centre = float(_fisher(np.array(value)))
        found[measure] = Correlation(value, (math.tanh(centre - reach), math.tanh(centre + reach)))
    return found


def lead(
    measure: str, a: Sequence[Jackknife], other: Sequence[Jackknife], b: Sequence[Jackknife], draws: int, seed: int
) -> Correlation | None:
    """Return by how much the correlation of ``a`` with ``b`` exceeds that of ``other`` with ``b``, on the same shifts and images.

    Args:
        measure: one of :data:`MEASURES`.
        a: jackknife of each shift.
        other: jackknife of each shift.
        b: jackknife of each shift.
        draws: as for :func:`correlate`.
        seed: as for :func:`correlate`.

    Returns:
        The difference and its interval, or ``None`` where one of the two correlations is not defined.
    """
    pair = [correlate(measure, column, b, 0, seed) for column in (a, other)]
    if pair[0] is None or pair[1] is None:
        return None
    value = pair[0].value - pair[1].value
    everything = [*a, *other, *b]
    random = [jackknife for jackknife in everything if jackknife.strata]
    if not draws or not random or not all(jackknife.is_sure for jackknife in random):
        return Correlation(value, None)
    df, count = min(jackknife.clusters for jackknife in random) - 1, len(a)
    drawn = _drawn(everything, draws, seed, df)
    sides = [_ROWWISE[measure](drawn[:, start : start + count], drawn[:, 2 * count :]) for start in (0, count)]
    reach = float(special.stdtrit(df, 0.5 + LEVEL / 2) * (sides[0] - sides[1]).std())
    return Correlation(value, (value - reach, value + reach))


def _drawn(statistics: Sequence[Jackknife], draws: int, seed: int, df: float) -> np.ndarray:
    """Return (draws, number of statistics) values of all statistics under the same random weights of the images."""
    of_statistics = [statistic.deviations() for statistic in statistics]
    clusters = sorted({cluster for clusters_of_one in of_statistics for cluster in clusters_of_one}, key=str)
    position = {cluster: number for number, cluster in enumerate(clusters)}
    deviations = np.zeros((len(clusters), len(statistics)))
    for column, (column_values, found) in enumerate(zip(statistics, of_statistics, strict=True)):
        for deleted in column_values.strata:
            scale = math.sqrt(len(deleted) / (len(deleted) - 1))
            for cluster in deleted:
                deviations[position[cluster], column] = scale * found[cluster]
    random = np.random.default_rng(seed)
    weights = random.normal(size=(draws, len(clusters)))
    # As heavy tails as t has with so few images.
    weights *= np.sqrt(df / random.chisquare(df, size=(draws, 1)))
    return np.array([statistic.value for statistic in statistics]) + weights @ deviations


def _fisher(r: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(r, -1 + 1e-9, 1 - 1e-9))


def _pearson_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return (a * b).sum(axis=1) / np.where(scale > 0, scale, np.inf)


def _spearman_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy import stats

    return _pearson_rows(stats.rankdata(a, axis=1), stats.rankdata(b, axis=1))


def _kendall_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(a.shape[1], 1)
    found = []
    for start in range(0, len(a), 128):  # all pairs of all draws would take 50 MB
        parts = (side[start : start + 128] for side in (a, b))
        signs = [np.sign(part[:, first] - part[:, second]) for part in parts]
        scale = np.sqrt((signs[0] ** 2).sum(axis=1) * (signs[1] ** 2).sum(axis=1))
        found.append((signs[0] * signs[1]).sum(axis=1) / np.where(scale > 0, scale, np.inf))
    return np.concatenate(found)


# Many correlations at once, of the rows of (draws, shifts) arrays.
_ROWWISE = {"pearson_r": _pearson_rows, "spearman_r": _spearman_rows, "kendall_tau": _kendall_rows}


def operator_interval(cells: dict[tuple[str, str], tuple[float, float]], draws: int, seed: int) -> Interval | None:
    """Return the interval of Pearson's r in a crossed design: rows and columns are drawn with replacement.

    Args:
        cells: the pair of values by visual and textual shift; the cell without either has no pair.
        draws: number of grids drawn.
        seed: seed of the draws.

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
    chosen = (random.integers(len(groups), size=(draws, len(groups))) for groups in (rows, columns))
    first, second = (next(chosen)[:, :, None], next(chosen)[:, None, :])
    a, b = (side[first, second].reshape(draws, -1) for side in grid)
    kept = ~np.isnan(a)
    count = kept.sum(axis=1)
    centred = [
        np.where(kept, side - np.nansum(side, axis=1, keepdims=True) / np.maximum(count, 1)[:, None], 0)
        for side in (a, b)
    ]
    spread = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    usable = (count >= 3) & (spread > 0)
    if usable.sum() < draws / 2:
        return None
    drawn = (centred[0] * centred[1]).sum(axis=1)[usable] / spread[usable]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
