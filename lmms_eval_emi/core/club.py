"""CLUB, the contrastive log-ratio upper bound of mutual information, in closed form.

Source: Cheng et al., *CLUB: A Contrastive Log-ratio Upper Bound of Mutual Information*, ICML 2020.
For a diagonal Gaussian q(y|x) = N(mu(x), diag sigma^2(x)),

    I(x; y) = 1/N sum_i [ log q(y_i|x_i) - 1/N sum_j log q(y_j|x_i) ]

The inner mean over all pairs depends on y only through its first two moments, so no (N, N, D)
tensor is needed. With m and s the per-dimension mean and variance of y, sample i contributes

    c_i = sum_d [ (y_i - m) (2 mu_i - y_i - m) + s ] / (2 sigma_i^2)

which is the textbook 2 mu (y - m) - (y^2 - E[y^2]) with the difference of squares factored, so
that it does not lose digits when the mean is far from zero. It is computed as f(i, i) of :class:`ClusterSums` and
sum_d s / (2 sigma_i^2).

Every c_i depends on all rows through the moments, so the spread of c is not the error of I. The
influence values are

    psi_i = c_i - I - (b(y_i) - mean_j b(y_j)),     b(y) = mean_j log q(y|x_j)

and the value without a cluster of rows follows from sums over that cluster, all in O(N D).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lmms_eval_emi.core.embeddings import CHUNK_ROWS


def mean_and_variance(
    y: torch.Tensor, into: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (D',) mean and variance, which divides by N, of a map of the rows of ``y`` (N, D), a chunk at a time in float64."""

    def mean_of(function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.stack([function(into(chunk.double())).sum(dim=0) for chunk in y.split(CHUNK_ROWS)]).sum(
            dim=0
        ) / len(y)

    mean = mean_of(lambda rows: rows)
    return mean, mean_of(lambda rows: (rows - mean) ** 2)


@dataclass(frozen=True)
class ClusterSums:
    """Sums over the rows of each cluster, from which CLUB without any cluster follows; mergeable by addition.

    With the precision p = 1 / sigma^2 and the target's mean m, f(i, j) = a_i (y_j - m) - p_i (y_j - m)^2 / 2
    where a_i = p_i (mu_i - m) is log q(y_j|x_i) but for a term of i alone, which cancels in CLUB.

    Attributes:
        n: (G,) rows.
        matched: (G,) sums of f(i, i).
        a, precision, y, square: (G, D) sums of a_i, p_i, y_i - m and (y_i - m)^2.
    """

    n: torch.Tensor
    matched: torch.Tensor
    a: torch.Tensor
    precision: torch.Tensor
    y: torch.Tensor
    square: torch.Tensor

    @classmethod
    def empty(cls, clusters: int, dimension: int, device: torch.device) -> ClusterSums:
        """Return sums of no rows."""
        shapes = ((clusters,), (clusters,), *[(clusters, dimension)] * 4)
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def add(
        self, mu: torch.Tensor, logvar: torch.Tensor, y: torch.Tensor, mean: torch.Tensor, clusters: torch.Tensor
    ) -> torch.Tensor:
        """Add (B, D) rows of the clusters (B,); returns f(i, i) of each."""
        precision, rows = torch.exp(-logvar), y.double() - mean
        a, square = precision * (mu - mean), rows**2
        matched = (a * rows - precision * square / 2).sum(dim=1)
        self.n.index_add_(0, clusters, torch.ones_like(matched))
        self.matched.index_add_(0, clusters, matched)
        for total, part in ((self.a, a), (self.precision, precision), (self.y, rows), (self.square, square)):
            total.index_add_(0, clusters, part)
        return matched

    def add_sums(self, part: ClusterSums, places: torch.Tensor) -> None:
        """Add the sums of other clusters to those at (G',) places."""
        for name, total in vars(self).items():
            total.index_add_(0, places, getattr(part, name))

    def value(self) -> float:
        """Return CLUB of all rows."""
        n = self.n.sum()
        a, precision, y, square = (total.sum(dim=0) for total in (self.a, self.precision, self.y, self.square))
        return float(self.matched.sum() / n - ((a * y).sum() - (precision * square).sum() / 2) / n**2)

    def without_each(self) -> torch.Tensor:
        """Return (G,) CLUB without each cluster; NaN where nothing is left."""
        n = self.n.sum() - self.n
        matched = (self.matched.sum() - self.matched) / n
        a, precision, y, square = (total.sum(dim=0) - total for total in (self.a, self.precision, self.y, self.square))
        crossed = ((a * y).sum(dim=1) - (precision * square).sum(dim=1) / 2) / n**2
        return matched - crossed
