"""Is there a shift? Divergences with and without each image, and their permutation tests.

The null of a paired design (shifted twins, translations, responses against references) is exchange
within the pair; that of an unpaired one is relabelling. Either moves whole images, for rows that
share one are not independent. Tests are sequential (Besag & Clifford 1991): they stop once enough
draws reach the observed value.

All of it rests on one Gram matrix of the distinct rows of both sets: a set is a vector of counts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lmms_eval_emi.core.conventions import Convention
from lmms_eval_emi.core.jackknife import Jackknife

NOISE_FLOOR = 1e-12  # a smaller divergence is rounding of the eigenvalues in float64; its fourth root would not be
MOST_ROWS = 768  # of a set; beyond, one entropy takes longer than a whole test of a small set
MOST_BLOCKS = 50  # of images that are deleted one at a time; more are merged
BATCH = 25  # kernels that are decomposed in one call, which lets other threads work
ENOUGH = 20  # draws that reach the observed value, after which a test stops


@dataclass(frozen=True)
class DivergenceTest:
    """A divergence, and what it would be without a shift.

    Sets of unequal size are tested by the divergence that weights them equally, whatever the
    convention: ``published`` mixes by size, and the draws of a relabelling differ in size.

    Attributes:
        value: the divergence, in nats.
        floor: mean of the divergences of the null, at these sizes.
        p_value: share of the null that reaches the value, itself included.
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


class TwoSets:
    """Two sets of rows, and the clusters that their rows belong to.

    Args:
        x: (N, D) rows.
        y: (M, D) rows.
        x_clusters: (N,) cluster of every row.
        y_clusters: (M,) likewise. A cluster of both sets is one cluster.
        convention: of the divergence; see :mod:`lmms_eval_emi.core.divergence`.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        x_clusters: Sequence[Hashable],
        y_clusters: Sequence[Hashable],
        convention: Convention | str = "published",
    ) -> None:
        rows = torch.cat([x, y]).double().cpu().numpy()
        # Sorted by cluster, so that the order of rows changes no draw.
        self.clusters = sorted({*x_clusters, *y_clusters}, key=str)
        number = {cluster: position for position, cluster in enumerate(self.clusters)}
        codes = np.array([number[cluster] for cluster in (*x_clusters, *y_clusters)])
        distinct, inverse = np.unique(rows, axis=0, return_inverse=True)
        self.gram = distinct @ distinct.T
        self.convention = str(convention)
        shape = (2, len(self.clusters), len(distinct))
        self.counts = np.zeros(shape)  # of every distinct row, by set and cluster
        sets = np.repeat([0, 1], [len(x), len(y)])
        np.add.at(self.counts, (sets, codes, inverse.reshape(-1)), 1)
        self.identical = bool((self.counts.sum(axis=1)[0] == self.counts.sum(axis=1)[1]).all())

    def digest(self) -> str:
        """A key of the content: equal for equal sets with equal clusters."""
        digest = hashlib.blake2b(self.convention.encode(), digest_size=16)
        digest.update(np.round(self.gram, 10).tobytes())
        digest.update(self.counts.tobytes())
        return digest.hexdigest()

    def divergences(
        self, x: np.ndarray, y: np.ndarray, mixed: float | None = None, convention: str | None = None
    ) -> np.ndarray:
        """Divergences of B pairs of sets.

        Args:
            x: (B, U) counts of the distinct rows.
            y: (B, U) likewise.
            mixed: entropy of the mixture, where that is the same in all.
            convention: default: that of the two sets.
        """
        equal_weight = (convention or self.convention) == "equal_weight"
        entropies = (self.entropies(x) + self.entropies(y)) / 2
        if mixed is None:
            weights = x / x.sum(axis=1, keepdims=True) + y / y.sum(axis=1, keepdims=True) if equal_weight else x + y
            values = self.entropies(weights) - entropies
        else:
            values = mixed - entropies
        values[(values < NOISE_FLOOR) | (x == y).all(axis=1)] = 0.0
        return np.minimum(values, math.log(2)) if equal_weight else values

    def entropies(self, counts: np.ndarray) -> np.ndarray:
        """(B,) von Neumann entropies of the kernels of the rows with these (B, U) counts or weights."""
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

    @property
    def value(self) -> float:
        """Divergence of the two sets."""
        x, y = self.counts.sum(axis=1)
        return float(self.divergences(x[None], y[None])[0])

    def jackknife(self) -> Jackknife:
        """The divergence with and without each cluster; many clusters are deleted in blocks."""
        blocks = list(range(len(self.clusters)))
        keys: list[Hashable] = list(self.clusters)
        if len(blocks) > MOST_BLOCKS:
            blocks = [position % MOST_BLOCKS for position in blocks]
            keys = [("block", block) for block in range(MOST_BLOCKS)]
        member = np.eye(len(keys))[blocks]  # (clusters, blocks)
        left = self.counts.sum(axis=1)[:, None] - np.einsum("cb,scu->sbu", member, self.counts)
        kept = np.flatnonzero(left.sum(axis=2).min(axis=0) > 0)  # a set must keep a row
        values = np.concatenate(
            [self.divergences(left[0, part], left[1, part]) for part in np.split(kept, range(BATCH, len(kept), BATCH))]
        )
        deleted = {keys[number]: float(value) for number, value in zip(kept, values, strict=True)}
        # A cluster of one set alone is of an independent sample.
        members = self.counts.sum(axis=2) > 0
        both = bool((members[0] & members[1]).any()) or len(self.clusters) > MOST_BLOCKS
        if both:
            return Jackknife(self.value, (deleted,))
        sides = [
            {key: value for key, value in deleted.items() if members[side, self.clusters.index(key)]} for side in (0, 1)
        ]
        return Jackknife(self.value, tuple(side for side in sides if side))

    def test(self, resamples: int, seed: int, paired: bool) -> DivergenceTest:
        """Permutation test of no shift.

        Args:
            resamples: most draws.
            seed: of the draws, which depend on the content of the sets beside it.
            paired: exchange the two sides of random clusters; otherwise relabel whole clusters.
        """
        convention = self.convention if paired else "equal_weight"
        x, y = self.counts.sum(axis=1)
        observed = float(self.divergences(x[None], y[None], None, convention)[0])
        random = np.random.default_rng([seed, int(self.digest()[:15], 16)])
        # Both sides of a pair have as many rows, so the mixture is the same in every draw.
        mixed = float(self.entropies((x + y)[None])[0]) if paired else None
        clusters = len(self.clusters)
        of_x = int((self.counts[0].sum(axis=1) > 0).sum())
        drawn: list[float] = []
        reached = 0
        while len(drawn) < resamples and reached < ENOUGH:
            batch = min(BATCH, resamples - len(drawn))
            if paired:
                first = random.random((batch, clusters)) < 0.5
                shares = np.stack([first, ~first])
                sides = (
                    np.einsum("sbc,scu->bu", shares, self.counts),
                    np.einsum("sbc,scu->bu", shares[::-1], self.counts),
                )
            else:
                order = np.argsort(random.random((batch, clusters)), axis=1)
                chosen = np.zeros((batch, clusters))
                np.put_along_axis(chosen, order[:, :of_x], 1, axis=1)
                both = self.counts.sum(axis=0)
                sides = chosen @ both, (1 - chosen) @ both
            for value in self.divergences(*sides, mixed, convention):
                drawn.append(float(value))
                reached += value >= observed - NOISE_FLOOR
                if reached >= ENOUGH:
                    break
        draws = len(drawn)
        p_value = reached / draws if reached >= ENOUGH else (reached + 1) / (draws + 1)
        return DivergenceTest(observed, sum(drawn) / draws, float(p_value), draws, "exchange" if paired else "relabel")
