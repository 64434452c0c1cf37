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

    def divergence(
        self, x: np.ndarray, y: np.ndarray, mixed: float | None = None, convention: str | None = None
    ) -> float:
        """Divergence of two vectors of counts; ``mixed`` may give the entropy of their mixture."""
        equal_weight = (convention or self.convention) == "equal_weight"
        if (x == y).all():
            return 0.0
        if mixed is None:
            mixed = self.entropy(x / x.sum() + y / y.sum() if equal_weight else x + y)
        value = mixed - (self.entropy(x) + self.entropy(y)) / 2
        if value < NOISE_FLOOR:
            return 0.0
        return min(value, math.log(2)) if equal_weight else value

    def entropy(self, counts: np.ndarray) -> float:
        """Von Neumann entropy of the kernel of the rows with these counts or weights."""
        used = np.flatnonzero(counts)
        roots = np.sqrt(counts[used])
        eigenvalues = np.linalg.eigvalsh(self.gram[np.ix_(used, used)] * roots[:, None] * roots)
        positive = eigenvalues[eigenvalues > 0]
        p = positive / positive.sum()
        return float(-(p * np.log(p)).sum())

    @property
    def value(self) -> float:
        """Divergence of the two sets."""
        return self.divergence(*self.counts.sum(axis=1))

    def jackknife(self) -> Jackknife:
        """The divergence with and without each cluster; many clusters are deleted in blocks."""
        blocks = list(range(len(self.clusters)))
        keys: list[Hashable] = list(self.clusters)
        if len(blocks) > MOST_BLOCKS:
            blocks = [position % MOST_BLOCKS for position in blocks]
            keys = [("block", block) for block in range(MOST_BLOCKS)]
        whole = self.counts.sum(axis=1)
        deleted = {}
        for number, key in enumerate(keys):
            part = self.counts[:, [position for position, block in enumerate(blocks) if block == number]].sum(axis=1)
            x, y = whole - part
            if x.sum() and y.sum():
                deleted[key] = self.divergence(x, y)
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
        observed = self.divergence(x, y, None, convention)
        random = np.random.default_rng([seed, int(self.digest()[:15], 16)])
        whole = self.counts.sum(axis=(0, 1))
        # Both sides of a pair have as many rows, so the mixture is the same in every draw.
        mixed = self.entropy(whole) if paired else None
        count = len(self.clusters)
        of_x = int((self.counts[0].sum(axis=1) > 0).sum())
        reached, total, draws = 0, 0.0, 0
        while draws < resamples and reached < ENOUGH:
            if paired:
                swapped = random.random(count) < 0.5
                x = np.where(swapped[:, None], self.counts[1], self.counts[0]).sum(axis=0)
            else:
                chosen = random.permutation(count)[:of_x]
                x = self.counts[:, chosen].sum(axis=(0, 1))
            y = whole - x
            if not x.any() or not y.any():
                continue
            drawn = self.divergence(x, y, mixed, convention)
            draws += 1
            total += drawn
            reached += drawn >= observed - NOISE_FLOOR
        p_value = reached / draws if reached >= ENOUGH else (reached + 1) / (draws + 1)
        return DivergenceTest(observed, total / draws, p_value, draws, "exchange" if paired else "relabel")
