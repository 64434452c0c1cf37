"""Is there a shift? Divergences with their leave-one-image-out values, and their permutation tests.

The null of a paired design (shifted twins, translations, responses against references) is exchange
within the pair; that of an unpaired one is relabelling. Either moves whole images, for rows that
share one are not independent.

The tests' statistic is the divergence to second order around the kernel of all rows together, which no draw
changes. With P and Q the kernels of both sides and p the eigenvalues of that kernel, all normalised, it is

    1/8  sum_ij c_ij (P - Q)_ij^2,    c_ij = (log p_i - log p_j) / (p_i - p_j),  c_ii = 1 / p_i

in the eigenbasis of the latter (the Hessian of the von Neumann entropy; Lesniewski & Ruskai 1999). P - Q is a sum
over images, so one Gram matrix of their parts gives the statistic of a draw in O(G^2), where the divergence itself
takes two decompositions. A permutation test is exact for any statistic; that this one has the divergence's power is
measured by ``benchmarks/permutation_power.py``.

All of it rests on one Gram matrix of the distinct rows of both sets: a set is a vector of counts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lmms_eval_emi.core.conventions import Convention
from lmms_eval_emi.core.jackknife import Jackknife

NOISE_FLOOR = 1e-12  # a smaller divergence is rounding of the eigenvalues in float64; its fourth root would not be
MAX_ROWS = 768  # largest set that is tested; above, one entropy takes longer than a test of a small set
EXACT_DRAWS = 15  # draws of a test whose divergence itself is computed, for its mean
TIE = 1e-9  # share of the observed value within which a draw counts as one that reaches it


@dataclass(frozen=True)
class DivergenceTest:
    """A divergence, and what it would be without a shift.

    Sets of unequal size are tested by the divergence that weights them equally, whatever the
    convention: ``published`` mixes by size, and the draws of a relabelling differ in size.

    Attributes:
        value: the divergence, in nats.
        floor: mean of the divergences of the null, at these sizes: that of some draws, corrected by how far their
            mean of the statistic is from that of all draws (a control variate).
        p_value: fraction of the null whose statistic reaches the observed one, itself included.
        draws: how many were drawn.
        design: ``exchange`` within pairs, or ``relabel``.
    """

    value: float
    floor: float
    p_value: float
    draws: int
    design: str

    @property
    def excess(self) -> float:
        """The divergence above its floor."""
        return self.value - self.floor


class PairedKernels:
    """Two sets of rows, and the clusters that their rows belong to.

    Args:
        x: (N, D) rows.
        y: (M, D) rows.
        x_clusters: (N,) cluster of each row.
        y_clusters: (M,) likewise. A cluster of both sets is one cluster.
        convention: convention of the divergence; see :mod:`lmms_eval_emi.core.divergence`.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        x_clusters: Sequence[Hashable],
        y_clusters: Sequence[Hashable],
        convention: Convention | str = "published",
    ) -> None:
        both = [side.detach().cpu().contiguous() for side in (x, y)]
        if both[0].dtype != both[1].dtype or both[0].dtype == torch.bfloat16:  # numpy has no bfloat16
            both = [side.double() for side in both]
        self._sides = [side.numpy() for side in both]
        # Sorted, so that the order of rows changes no draw.
        self.clusters = sorted({*x_clusters, *y_clusters}, key=str)
        number = {cluster: position for position, cluster in enumerate(self.clusters)}
        codes = np.array([number[cluster] for cluster in (*x_clusters, *y_clusters)])
        content = [(row + 0).tobytes() for side in self._sides for row in side]  # negative zeros have other bytes
        position = {key: place for place, key in enumerate(sorted(set(content)))}
        places = np.array([position[key] for key in content])
        self._places = np.empty(len(position), dtype=int)  # one position of each distinct row
        self._places[places] = np.arange(len(places))
        self.convention = str(convention)
        self.counts = np.zeros((2, len(self.clusters), len(position)))  # counts of each distinct row by set and cluster
        np.add.at(self.counts, (np.repeat([0, 1], [len(x), len(y)]), codes, places), 1)
        self.tests: dict[tuple[int, int, bool], DivergenceTest] = {}  # results by the arguments of :meth:`test`
        self._expansions: dict[bytes, tuple[float, np.ndarray, np.ndarray | None]] = {}
        self.identical = bool((self.counts.sum(axis=1)[0] == self.counts.sum(axis=1)[1]).all())

    @cached_property
    def gram(self) -> np.ndarray:
        """(U, U) inner products of the distinct rows."""
        rows = self._distinct()
        return rows @ rows.T

    @cached_property
    def digest(self) -> str:
        """A key of the content: equal for equal sets with equal clusters."""
        digest = hashlib.blake2b(self.convention.encode(), digest_size=16)
        digest.update(self._distinct().data)
        digest.update(self.counts.data)
        return digest.hexdigest()

    def _distinct(self) -> np.ndarray:
        """Return (U, D) float64 distinct rows in the order of their bytes; a copy for each set would take more room than all else."""
        return (np.concatenate(self._sides) + 0)[self._places].astype(np.float64)

    def divergences(
        self, x: np.ndarray, y: np.ndarray, mixed: float | None = None, convention: str | None = None
    ) -> np.ndarray:
        """Return divergences of B pairs of sets.

        Args:
            x: (B, U) counts of the distinct rows.
            y: (B, U) likewise.
            mixed: entropy of the mixture, where that is the same in all.
            convention: default: that of the two sets.
        """
        convention = convention or self.convention
        of_mixed = self.entropies(self._mixed(x, y, convention)) if mixed is None else mixed
        return self._to_divergences(of_mixed, self.entropies(x), self.entropies(y), (x == y).all(axis=1), convention)

    @staticmethod
    def _to_divergences(
        mixed: np.ndarray | float, x: np.ndarray, y: np.ndarray, same: np.ndarray, convention: str
    ) -> np.ndarray:
        """Return (B,) divergences from the entropies of mixtures and of (B,) sets, some of which are the same."""
        values = mixed - (x + y) / 2
        values[(values < NOISE_FLOOR) | same] = 0.0
        return np.minimum(values, math.log(2)) if convention == "equal_weight" else values

    def _divergence(self, convention: str) -> float:
        """Return the divergence of the two sets, from the decompositions that its error and test need as well."""
        x, y = self.counts.sum(axis=1)
        weights = (self._mixed(x, y, convention), x, y)
        mixed, of_x, of_y = (np.array([self._expand(weight)[0]]) for weight in weights)
        return float(self._to_divergences(mixed, of_x, of_y, np.array([self.identical]), convention)[0])

    @staticmethod
    def _mixed(x: np.ndarray, y: np.ndarray, convention: str) -> np.ndarray:
        """Return (..., U) weights of the distinct rows in the mixture of sets with these (..., U) counts."""
        if convention != "equal_weight":
            return x + y
        return x / x.sum(axis=-1, keepdims=True) + y / y.sum(axis=-1, keepdims=True)

    def entropies(self, counts: np.ndarray) -> np.ndarray:
        """Return (B,) von Neumann entropies of the kernels of the rows with these (B, U) counts or weights."""
        # The rows of each set in as many columns as the largest set has; what is left over has weight 0.
        used = counts > 0
        width = int(used.sum(axis=1).max())
        rows = np.argsort(~used, axis=1, kind="stable")[:, :width]
        roots = np.sqrt(np.take_along_axis(counts, rows, axis=1))
        kernels = self.gram[rows[:, :, None], rows[:, None, :]]
        kernels *= roots[:, :, None]
        kernels *= roots[:, None, :]
        p = np.maximum(np.linalg.eigvalsh(kernels), 0)
        p /= p.sum(axis=1, keepdims=True)
        return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)

    @cached_property
    def value(self) -> float:
        """Divergence of the two sets."""
        return self._divergence(self.convention)

    @cached_property
    def jackknife(self) -> Jackknife:
        """The divergence with its leave-one-cluster-out values, such that the variance is right near the floor too.

        Deleting rows changes an entropy S of K with trace T, to first order, by the sum over them of
        (x^T log(K / T) x + |x|^2 S) / T, so one decomposition of each set serves all clusters. Near its floor a
        divergence is quadratic in what is sampled, and a jackknife counts the variance of the quadratic part
        twice (Efron & Stein 1981). That part is estimated by :meth:`_interactions`, and the values without each
        cluster are drawn towards their mean until it is counted once.
        """
        members = self.counts.sum(axis=2) > 0
        shared = bool((members[0] & members[1]).any())
        # A cluster of one set alone is of an independent sample.
        of_x = dict(zip(self.clusters, members[0], strict=True))
        if self.identical:  # nothing changes to first order, and the index would be the root of a rounding error
            deleted = {cluster: 0.0 for cluster, _, _ in self._left_by_each()}
            quadratic: dict[Hashable, float] = {}
        else:
            interactions = self._interactions() ** 2  # first, for its decomposition serves the others
            deleted = self.without_each()
            np.fill_diagonal(interactions, 0)
            quadratic = dict(zip(self.clusters, interactions.sum(axis=1) / 2, strict=True))
        sides = [
            {key: value for key, value in deleted.items() if shared or of_x[key] == side} for side in (True, False)
        ]
        strata = [_shrunk(side, quadratic) if quadratic else side for side in (sides[:1] if shared else sides) if side]
        return Jackknife(self.value, tuple(strata))

    def without_each(self) -> dict[Hashable, float]:
        """Return the divergence without each cluster, to first order."""
        x, y = self.counts.sum(axis=1)
        equal_weight = self.convention == "equal_weight"
        mixed, of_x, of_y = (self._expand(stack)[1] for stack in (self._mixed(x, y, self.convention), x, y))
        deleted = {}
        for cluster, dx, dy in self._left_by_each():
            # A fraction of the rows is left out, which weighs more in what is left.
            dx, dy = dx * x.sum() / (x - dx).sum(), dy * y.sum() / (y - dy).sum()
            change = dx + dy
            if equal_weight:
                change = dx / x.sum() - x * dx.sum() / x.sum() ** 2 + dy / y.sum() - y * dy.sum() / y.sum() ** 2
            deleted[cluster] = self.value - float(mixed @ change - (of_x @ dx + of_y @ dy) / 2)
        return deleted

    def _left_by_each(self) -> Iterator[tuple[Hashable, np.ndarray, np.ndarray]]:
        """Yield each cluster without which both sets have rows, and its (U,) counts in both."""
        x, y = self.counts.sum(axis=1)
        for number, cluster in enumerate(self.clusters):
            dx, dy = self.counts[:, number]
            if (x - dx).any() and (y - dy).any():
                yield cluster, dx, dy

    def _interactions(self) -> np.ndarray:
        """Return (G, G) what each pair of clusters adds to the divergence beyond what either does.

        With P and Q mixed with weights a and b to M, the divergence is to second order

            (a^2 + b^2) / 4  sum_ij c_ij (P - Q)_ij^2

        with c of M; see :meth:`_expand`. P - Q is a sum over clusters, each of which is centred: their mean is
        the shift, and what the shift adds is linear in them.
        """
        x, y = self.counts.sum(axis=1)
        a = 0.5 if self.convention == "equal_weight" else x.sum() / (x.sum() + y.sum())
        masses = [side @ np.diag(self.gram) for side in (x, y)]
        products = self._expand(self._mixed(x, y, self.convention), with_products=True)[2]
        count = len(self.clusters)
        changes = np.zeros((count, 2 * count))
        for sign, side, mass in zip((1, -1), (0, 1), masses, strict=True):
            present = np.flatnonzero(self.counts[side].any(axis=1))
            centred = np.eye(len(present)) - 1 / len(present)
            changes[np.ix_(present, side * count + present)] += sign * centred / mass
        return (a**2 + (1 - a) ** 2) / 2 * changes @ products @ changes.T

    def _expand(self, weights: np.ndarray, with_products: bool = False) -> tuple[float, np.ndarray, Any]:
        """Return how the entropy of the distinct rows changes with their weights, by one decomposition however often it is asked for.

        Args:
            weights: (U,) weights, of which the entropy depends on the shares alone.
            with_products: give the products as well, which takes as long as the rest.

        Returns:
            The entropy in nats; its (U,) derivatives by each weight, 0 for rows of no weight; and ``None`` or the (2 G, 2 G)
            inner products of what each cluster of each set adds to a kernel: of two matrices A and B
            sum_ij c_ij A_ij B_ij, with c as in the module's text, in the eigenbasis of this kernel.
        """
        total = float(weights.sum())
        shares = weights / total
        key = np.round(shares, 12).tobytes()
        known = self._expansions.get(key)
        if known is None or (with_products and known[2] is None):
            squares = np.diag(self.gram)
            mass = float(shares @ squares)
            used = np.flatnonzero(shares)
            roots = np.sqrt(shares[used] / mass)
            p, vectors = np.linalg.eigh(self.gram[np.ix_(used, used)] * roots[:, None] * roots)
            p = np.maximum(p, 0)
            p /= p.sum()
            terms = p * np.log(np.where(p > 0, p, 1))
            entropy = -float(terms.sum())
            slopes = np.zeros(len(shares))
            slopes[used] = -((vectors**2) @ terms / shares[used] + squares[used] * entropy / mass)
            products = None
            if with_products:
                kept = p > NOISE_FLOOR
                z = np.zeros((len(shares), int(kept.sum())))  # the rows, in the eigenbasis
                z[used] = vectors[:, kept] * np.sqrt(p[kept]) / roots[:, None]
                products = self._inner_products(z, _slope_ratios(p[kept]))
            known = self._expansions[key] = (entropy, slopes, products)
        return known[0], known[1] / total, known[2]

    def _inner_products(self, z: np.ndarray, ratios: np.ndarray) -> np.ndarray:
        flat_counts = self.counts.reshape(-1, len(z))
        members = [(number, rows) for number, counts in enumerate(flat_counts) if len(rows := np.flatnonzero(counts))]
        width = z.shape[1]
        numbers = [number for number, _ in members]
        found = np.zeros((len(numbers), len(numbers)))
        # As many rows of the (r, r) matrices at a time as fit into 8 MB. They are symmetric: what is right of the
        # block on the diagonal counts twice.
        step = max(1, 2**20 // (len(numbers) * width))
        for first in range(0, width, step):
            block = slice(first, min(first + step, width))
            scale = np.sqrt(ratios[block, first:])
            scale[:, block.stop - first :] *= math.sqrt(2)
            flat = np.empty((len(numbers), scale.size))
            for place, (number, rows) in enumerate(members):
                chosen = z[rows]
                part = (chosen[:, block] * flat_counts[number, rows, None]).T @ chosen[:, first:]
                np.multiply(part, scale, out=flat[place].reshape(scale.shape))
            found += flat @ flat.T
        whole = np.zeros((len(flat_counts), len(flat_counts)))
        whole[np.ix_(numbers, numbers)] = found
        return whole

    def test(self, resamples: int, seed: int, paired: bool) -> DivergenceTest:
        """Return the permutation test of no shift; see the module's text.

        Args:
            resamples: number of draws.
            seed: seed of the draws, which depend on the content of the sets beside it.
            paired: exchange the two sides of random clusters; otherwise relabel whole clusters.
        """
        convention = self.convention if paired else "equal_weight"
        x, y = self.counts.sum(axis=1)
        random = np.random.default_rng([seed, int(self.digest[:15], 16)])
        clusters = len(self.clusters)
        if paired:
            first = (random.random((resamples, clusters)) < 0.5).astype(float)
            shares = np.concatenate([first, 1 - first], axis=1)  # whether clusters of x and of y are in the first side
        else:
            of_x = int((self.counts[0].sum(axis=1) > 0).sum())
            order = np.argsort(random.random((resamples, clusters)), axis=1)
            first = np.zeros((resamples, clusters))
            np.put_along_axis(first, order[:, :of_x], 1, axis=1)
            shares = np.concatenate([first, first], axis=1)
        of_both, _, products = self._expand(x + y, with_products=True)
        observed = self._divergence(convention)
        flat_counts = self.counts.reshape(2 * clusters, -1)
        masses = flat_counts @ np.diag(self.gram)

        def statistic(shares: np.ndarray) -> np.ndarray:
            changes = shares / (shares @ masses)[:, None] - (1 - shares) / ((1 - shares) @ masses)[:, None]
            return ((changes @ products) * changes).sum(axis=1) / 8

        unchanged = np.repeat([1.0, 0.0], clusters)[None]
        goal, drawn = float(statistic(unchanged)[0]), statistic(shares)
        # Different rows may have one kernel; then all draws are as far apart, and only their rounding differs.
        reached = resamples if observed == 0 else int((drawn >= goal * (1 - TIE)).sum())
        # Both sides of a pair have as many rows, so the mixture is the same in every draw.
        mixed = of_both if paired else None
        some = shares[:EXACT_DRAWS]
        measured = self.divergences(some @ flat_counts, (1 - some) @ flat_counts, mixed, convention)
        spread = float(drawn[: len(some)].var())
        slope = float(np.cov(measured, drawn[: len(some)], bias=True)[0, 1]) / spread if spread > 0 else 0.0
        floor = max(0.0, float(measured.mean() + slope * (drawn.mean() - drawn[: len(some)].mean())))
        return DivergenceTest(
            observed, floor, (reached + 1) / (resamples + 1), resamples, "exchange" if paired else "relabel"
        )


def _slope_ratios(p: np.ndarray) -> np.ndarray:
    """Return (r, r) divided differences of the logarithm: (log p_i - log p_j) / (p_i - p_j), and 1 / p_i where they are equal."""
    logs = np.log(p)
    gaps, sums = p[:, None] - p, p[:, None] + p
    close = np.abs(gaps) < 1e-9 * sums
    return np.where(close, 2 / sums, (logs[:, None] - logs) / np.where(close, 1, gaps))


def _shrunk(deleted: dict[Hashable, float], quadratic: Mapping[Hashable, float]) -> dict[Hashable, float]:
    """Return values without each cluster whose variance counts that of the quadratic part once; none is negative."""
    mean = sum(deleted.values()) / max(1, len(deleted))
    (variance,) = Jackknife(mean, (deleted,)).variances if deleted else (0.0,)
    # With no linear part the jackknife's variance is twice the right one, so half of it is always left.
    share = max(0.5, 1 - sum(quadratic[key] for key in deleted) / variance) if variance > 0 else 1.0
    return {key: max(0.0, mean + (value - mean) * math.sqrt(share)) for key, value in deleted.items()}
