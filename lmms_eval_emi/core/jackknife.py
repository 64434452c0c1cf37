"""The jackknife over clusters: standard errors, bias correction and intervals of any statistic.

Rows that share an image are not independent, so whole images are deleted, one at a time (CR3; Bell &
McCaffrey 2002; MacKinnon, Nielsen & Webb 2022). With G clusters and the statistic theta,

    corrected = G theta - (G - 1) mean_g theta_(-g)
    SE^2      = (G - 1) / G sum_g (theta_(-g) - mean)^2
    interval  = corrected +- t(G - 1) SE

Independent samples are strata: their variances add, and the degrees of freedom are Welch's. Over a family of statistics,
p-values are adjusted (:func:`adjust`), and each shift gets its verdict (:func:`verdict`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lmms_eval_emi.core.conventions import Adjustment
from lmms_eval_emi.errors import InputError

FEWEST_CLUSTERS = 8  # below this an interval would say little, and cover less than it says
LEVEL = 0.95
ROUNDING = 1e-9  # share of its terms below which a difference is rounding

Deleted = Mapping[Hashable, float]
ALPHA = 0.05
WEBB = np.array([-math.sqrt(1.5), -1.0, -math.sqrt(0.5), math.sqrt(0.5), 1.0, math.sqrt(1.5)])  # Webb 2023


@dataclass(frozen=True)
class Jackknife:
    """A statistic and its leave-one-cluster-out values."""

    value: float  # value on all rows
    strata: tuple[Deleted, ...]  # strata by independent sample, the statistic without each cluster

    @classmethod
    def of(cls, value: float, keys: Iterable[Hashable], deleted: Iterable[float]) -> Jackknife:
        """Return the jackknife of one sample, from the value without each cluster; NaN means that it is not defined there."""
        known = {key: without for key, without in zip(keys, deleted, strict=True) if not math.isnan(without)}
        return cls(value, (known,) if known else ())

    def of_another_sample(self) -> Jackknife:
        """Return a copy with other cluster keys, so that it shares no cluster with another sample."""
        return Jackknife(self.value, tuple({("ood", key): v for key, v in stratum.items()} for stratum in self.strata))

    @property
    def clusters(self) -> int:
        """Number of clusters of the smallest stratum; 0 if there is none."""
        return min(map(len, self.strata), default=0)

    @property
    def is_sure(self) -> bool:
        """Whether there are enough clusters for an interval."""
        return bool(self.strata) and self.clusters >= FEWEST_CLUSTERS

    @property
    def corrected(self) -> float:
        """The statistic without its bias of order 1/G."""
        return self.value - math.fsum(
            (len(deleted) - 1) * (math.fsum(deleted.values()) / len(deleted) - self.value) for deleted in self.strata
        )

    @property
    def variances(self) -> list[float]:
        """Variance of each stratum."""
        found = []
        for deleted in self.strata:
            count = len(deleted)
            mean = math.fsum(deleted.values()) / count
            found.append((count - 1) / count * math.fsum((value - mean) ** 2 for value in deleted.values()))
        return found

    @property
    def stderr(self) -> float | None:
        """Standard error, or ``None`` for fewer than 8 clusters."""
        return math.sqrt(math.fsum(self.variances)) if self.is_sure else None

    @property
    def df(self) -> float:
        """Degrees of freedom: G - 1, or Welch's over several strata."""
        variances = self.variances
        total = math.fsum(variances)
        if total == 0 or len(variances) == 1:
            return float(sum(len(deleted) - 1 for deleted in self.strata))
        parts = (variance**2 / (len(deleted) - 1) for variance, deleted in zip(variances, self.strata, strict=True))
        return total**2 / math.fsum(parts)

    def interval(self, level: float = LEVEL, *, corrected: bool = True) -> tuple[float, float] | None:
        """Return the interval of the statistic, or ``None`` for fewer than 8 clusters.

        Args:
            level: how often it covers.
            corrected: around the corrected value, for what the statistic is with ever more clusters; otherwise
                around the value, for what it is on average with as many clusters.
        """
        error = self.stderr
        if error is None:
            return None
        centre = self.corrected if corrected else self.value
        reach = float(special.stdtrit(self.df, 0.5 + level / 2)) * error
        return centre - reach, centre + reach

    @property
    def ci95(self) -> tuple[float, float] | None:
        """Interval of 95 %."""
        return self.interval(LEVEL)

    @property
    def p_value(self) -> float | None:
        """Two-sided p of the corrected value being 0, or ``None`` for fewer than 8 clusters."""
        error = self.stderr
        if error is None:
            return None
        if error == 0:
            return 1.0 if self.corrected == 0 else 0.0
        return float(2 * special.stdtr(self.df, -abs(self.corrected) / error))

    def without_rounding(self, *terms: float) -> Jackknife:
        """Return the same, or exactly 0 where value and error are what rounding leaves of a difference.

        Args:
            terms: terms whose sum or difference the value is; 1e-9 of their sizes counts as rounding.
        """
        tolerance = ROUNDING * math.fsum(map(abs, terms))
        error = math.sqrt(math.fsum(self.variances)) if self.strata else 0.0
        if abs(self.value) >= tolerance or abs(self.corrected) >= tolerance or error >= tolerance:
            return self
        return Jackknife(0.0, tuple(dict.fromkeys(deleted, 0.0) for deleted in self.strata))

    def deviations(self) -> dict[Hashable, float]:
        """Return the contribution of each cluster to the error: centred pseudo-values divided by G.

        Their sum of squares in a stratum, times G / (G - 1), is its variance.
        """
        found: dict[Hashable, float] = {}
        for deleted in self.strata:
            count = len(deleted)
            mean = math.fsum(deleted.values()) / count
            found |= {cluster: (count - 1) / count * (mean - value) for cluster, value in deleted.items()}
        return found


class HasUncertainty:
    """Base of scores with a jackknife over images: corrected value, standard error and interval."""

    jackknife: Jackknife

    @property
    def corrected(self) -> float:
        """The score without its bias of order 1/G, G being the number of images."""
        return self.jackknife.corrected

    @property
    def stderr(self) -> float | None:
        """Standard error, clustered by image; ``None`` for fewer than 8 images."""
        return self.jackknife.stderr

    @property
    def ci95(self) -> tuple[float, float] | None:
        """Interval of 95 % around ``corrected``; ``None`` for fewer than 8 images."""
        return self.jackknife.ci95


def combine(function: Callable[[Sequence[float]], float], parts: Sequence[Jackknife]) -> Jackknife:
    """Return a function of several statistics, with the clusters that they share deleted from all at once.

    Strata that share a cluster become one; the others stay independent.

    Args:
        function: function of the statistics' values.
        parts: the statistics.

    Returns:
        The jackknife of the function.
    """
    whole = [part.value for part in parts]
    strata: list[set[Hashable]] = []
    for part in parts:
        for deleted in part.strata:
            merged = set(deleted)
            for other in [other for other in strata if other & merged]:
                merged |= other
                strata.remove(other)
            strata.append(merged)
    known = [{cluster: value for deleted in part.strata for cluster, value in deleted.items()} for part in parts]

    def without(cluster: Hashable) -> float:
        return function([deleted.get(cluster, value) for deleted, value in zip(known, whole, strict=True)])

    return Jackknife(
        function(whole),
        tuple({cluster: without(cluster) for cluster in sorted(stratum, key=str)} for stratum in strata),
    )


def difference(first: Jackknife, second: Jackknife) -> Jackknife:
    """Return ``first - second``: paired over shared clusters, independent over the others."""
    return combine(lambda values: values[0] - values[1], (first, second))


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
