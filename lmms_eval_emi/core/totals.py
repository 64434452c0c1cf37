"""Statistics of row scores: means, rates, F1 and their like, with errors and tests over clusters.

Each is a function of sums over rows: accuracy of (right, 1), F1 of (true positives, false positives + false negatives), a
relative score of (model's, reference's). A cluster, such as the rows of one image, is left out by subtracting its
sums, so the jackknife of any of them is one pass. Pairs are tested by exchanging the two sides of whole clusters:
for scores of 0 and 1 in clusters of one row, that is McNemar's mid-p test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.errors import InputError

Function = Callable[[np.ndarray], np.ndarray]
MAX_CLUSTERS = 2000  # more are merged into as many blocks, whose jackknife estimates the same error
MAX_EXACT_OPERATIONS = 2_000_000  # operations of an exact test of whole numbers
DRAWS = 9_999
BLOCK = 2**22  # numbers drawn at a time
FEWEST_FOR_MID_P = 10  # changes
TIE = 1e-9


def mean(sums: np.ndarray) -> np.ndarray:
    """Return the mean of sums of (value, 1); NaN of nothing."""
    return ratio(sums)


def ratio(sums: np.ndarray) -> np.ndarray:
    """Return the first sum over the second; NaN where that is 0."""
    below = sums[..., 1]
    return np.where(below != 0, sums[..., 0] / np.where(below != 0, below, 1), np.nan)


def f1(sums: np.ndarray) -> np.ndarray:
    """Return F1 of sums of (true positives, false positives + false negatives); 0 if there is none of either."""
    below = 2 * sums[..., 0] + sums[..., 1]
    return np.where(below > 0, 2 * sums[..., 0] / np.where(below > 0, below, 1), 0.0)


@dataclass(frozen=True, eq=False)
class ClusterTotals:
    """Sums over rows by cluster."""

    parts: np.ndarray  # (G, K) sums of the rows of each cluster
    clusters: tuple[Hashable, ...]  # (G,) the clusters
    rows: int  # number of rows

    @classmethod
    def of(cls, parts: np.ndarray, clusters: Sequence[Hashable]) -> ClusterTotals:
        """Sum rows up.

        Args:
            parts: (N, K) parts of each row.
            clusters: (N,) cluster of each row.

        Raises:
            ValueError: there are no rows, or as many clusters as rows are not given.
        """
        parts = np.asarray(parts, dtype=float)
        if not len(parts) or len(parts) != len(clusters):
            raise InputError(
                f"clusters: expected one for each of at least one row, got {len(clusters)} for {len(parts)} rows."
            )
        distinct = sorted(set(clusters), key=str)
        if len(distinct) > MAX_CLUSTERS:
            clusters = [
                f"block {xxhash.xxh3_64_intdigest(str(cluster).encode()) % MAX_CLUSTERS}" for cluster in clusters
            ]
            distinct = sorted(set(clusters), key=str)
        number = {cluster: place for place, cluster in enumerate(distinct)}
        sums = np.zeros((len(distinct), parts.shape[1]))
        np.add.at(sums, [number[cluster] for cluster in clusters], parts)
        return cls(sums, tuple(distinct), len(parts))

    @classmethod
    def of_values(cls, values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable]) -> ClusterTotals:
        """Return values whose :func:`mean` is asked for."""
        array = np.asarray(values, dtype=float)
        return cls.of(np.stack([array, np.ones(len(array))], axis=1), clusters)

    @cached_property
    def total(self) -> np.ndarray:
        """(K,) sums of all rows."""
        return self.parts.sum(axis=0)

    def jackknife(self, function: Function = mean) -> Jackknife:
        """Return a function of the sums, with its leave-one-cluster-out values."""
        value = float(function(self.total[None])[0])
        if len(self.clusters) < 2:
            return Jackknife(value, ())
        without = function(self.total - self.parts)
        deleted = {
            cluster: float(each) if np.isfinite(each) else value
            for cluster, each in zip(self.clusters, without, strict=True)
        }
        return Jackknife(value, (deleted,))

    def among(self, clusters: Sequence[Hashable]) -> ClusterTotals:
        """Return the same with these clusters, in this order; one that is not there adds nothing."""
        number = {cluster: place for place, cluster in enumerate(self.clusters)}
        parts = np.zeros((len(clusters), self.parts.shape[1]))
        for place, cluster in enumerate(clusters):
            if cluster in number:
                parts[place] = self.parts[number[cluster]]
        return ClusterTotals(parts, tuple(clusters), self.rows)


def exchange_test(
    first: ClusterTotals, second: ClusterTotals, function: Function = mean, *, draws: int = DRAWS, seed: int = 0
) -> float:
    """Return the two-sided p of two scorings of the same rows being exchangeable, cluster by cluster.

    Means of whole numbers are tested exactly (of 0 and 1 in clusters of one row: McNemar 1947), everything else by
    random exchanges (Edgington), the observed one among them.

    Args:
        first: sums over the same rows.
        second: sums over the same rows.
        function: function of the sums, whose difference is tested.
        draws: number of draws of exchanges.
        seed: seed of the draws.
    """
    clusters = sorted({*first.clusters, *second.clusters}, key=str)
    a, b = first.among(clusters).parts, second.among(clusters).parts
    changes = a - b
    if function is mean and not changes[:, 1].any():
        exact = _exact_sign_test(changes[:, 0])
        if exact is not None:
            return exact
    total, change = (a + b).sum(axis=0) / 2, changes / 2

    def statistic(signs: np.ndarray) -> np.ndarray:
        moved = signs @ change
        return function(total + moved) - function(total - moved)

    observed = abs(float(statistic(np.ones((1, len(change))))[0]))
    return _share_that_reaches(
        observed, statistic, lambda random, count: random.choice((-1.0, 1.0), (count, len(change))), draws, seed
    )


def relabel_test(
    first: ClusterTotals, second: ClusterTotals, function: Function = mean, *, draws: int = DRAWS, seed: int = 0
) -> float:
    """Return the two-sided p of two sets of unrelated rows being one sample: clusters are dealt out again at random.

    Args:
        first: sums over different rows; a cluster of both counts as two.
        second: sums over different rows; a cluster of both counts as two.
        function: function of the sums, whose difference is tested.
        draws: number of draws of relabellings.
        seed: seed of the draws.
    """
    parts = np.concatenate([first.parts, second.parts])
    total, count = parts.sum(axis=0), len(first.clusters)

    def statistic(members: np.ndarray) -> np.ndarray:
        sums = members @ parts
        return function(sums) - function(total - sums)

    def deal(random: np.random.Generator, number: int) -> np.ndarray:
        order = random.random((number, len(parts))).argsort(axis=1)
        return (order < count).astype(float)

    observed = abs(float(statistic((np.arange(len(parts)) < count)[None].astype(float))[0]))
    return _share_that_reaches(observed, statistic, deal, draws, seed)


def _share_that_reaches(
    observed: float,
    statistic: Callable[[np.ndarray], np.ndarray],
    draw: Callable[[np.random.Generator, int], np.ndarray],
    draws: int,
    seed: int,
) -> float:
    if not math.isfinite(observed):
        return 1.0  # what is not defined is no finding
    random = np.random.default_rng(seed)
    width = draw(random, 1).shape[1]
    step = max(1, BLOCK // max(1, width))
    reached = 0
    for start in range(0, draws, step):
        values = np.abs(statistic(draw(random, min(step, draws - start))))
        reached += int((np.nan_to_num(values) >= observed * (1 - TIE) - 1e-12).sum())
    return (reached + 1) / (draws + 1)


def _exact_sign_test(changes: np.ndarray) -> float | None:
    """Return the two-sided mid-p of a sum of whole numbers whose signs are random.

    Half of the chance of the observed sum counts, since the exact p of whole numbers is conservative (Lancaster 1961;
    for McNemar's test Fagerland, Lydersen & Laake 2013). Of fewer than 10 changes it is the exact p, for there the
    mid-p would err too often.

    Returns:
        ``None`` where that would take long, or the numbers are not whole.
    """
    sizes = np.abs(changes[changes != 0])
    if not len(sizes):
        return 1.0
    whole = np.rint(sizes)
    if np.abs(sizes - whole).max() > 1e-9 or len(sizes) * whole.sum() > MAX_EXACT_OPERATIONS:
        return None
    sizes = whole.astype(int)
    reach = int(sizes.sum())
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for size in sizes:
        moved = np.zeros_like(chances)
        moved[size:] += chances[: len(chances) - size] / 2
        moved[: len(chances) - size] += chances[size:] / 2
        chances = moved
    observed = abs(int(np.rint(changes.sum())))
    places = np.abs(np.arange(-reach, reach + 1))
    p = float(min(1.0, chances[places >= observed].sum()))
    few = observed == 0 or len(sizes) < FEWEST_FOR_MID_P
    return p if few else p - float(chances[places == observed].sum()) / 2
