"""Dependence without training: debiased CKA (HSIC) and bias-corrected distance correlation.

They need no file and no estimator of densities, and are unbiased at 90 rows. Their values are correlations, not
nats: 0 for independent rows, 1 for rows that are the same up to rotation and scale.

Sources: Song et al., *Feature Selection via Dependence Maximization*, JMLR 2012, for the unbiased HSIC; Szekely
& Rizzo, *Partial Distance Correlation with Methods for Dissimilarities*, Annals of Statistics 2014, for the
bias-corrected distance correlation. Both are one formula of two symmetric (N, N) matrices A and B with zero
diagonals, kernels or distances:

    U(A, B) = [ sum_ij A_ij B_ij + sum A sum B / ((N-1)(N-2)) - 2 / (N-2) sum_i a_i b_i ] / (N (N-3))

with a and b their row sums. Its mean is 0 for independent rows, so it may be negative. The normalised value is

    R = U(A, B) / sqrt( U(A, A) U(B, B) )

which is the debiased CKA of linear kernels, and the bias-corrected squared distance correlation of distances.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lmms_eval_emi.core.emi import Information
from lmms_eval_emi.estimators.base import Estimator, undivided

FEWEST_ROWS = 4
CHUNK = 512  # rows of the matrices that are held at a time

Block = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (B, D) and (N, D) rows to their (B, N) matrix


class _Dependence(Estimator):
    unit = "correlation"
    range = "at most 1, 0 if independent"

    @staticmethod
    def matrix(rows: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return (B, N) kernels or distances of (B, D) rows to (N, D) points."""
        raise NotImplementedError

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (N,) float64 contributions: the value plus the influence of each row, whose mean is the value.

        Raises:
            ValueError: the numbers of rows differ, or there are fewer than four.
        """
        return undivided(self, x, y).contributions

    @torch.no_grad()
    def analyse(self, x: torch.Tensor, y: torch.Tensor, clusters: torch.Tensor, count: int) -> Information:
        """Return the value with its leave-one-cluster-out values, and the influence of each row, in O(N^2 D).

        Args:
            x: (N, D) inputs.
            y: (N, D') targets.
            clusters: (N,) number of each row's cluster, below ``count``.
            count: number of clusters.

        Raises:
            ValueError: as :meth:`contributions`.
        """
        self.check_rows(x, y, FEWEST_ROWS)
        return dependence_to_information(self.matrix, x, y, clusters, count)


class HSIC(_Dependence):
    """Debiased CKA: the unbiased HSIC of linear kernels, normalised (Song et al. 2012; Nguyen et al. 2021)."""

    kind = "hsic"

    @staticmethod
    def matrix(rows: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return (B, N) inner products."""
        return rows @ points.T


class DistanceCorrelation(_Dependence):
    """Bias-corrected squared distance correlation (Szekely & Rizzo 2014), which sees any kind of dependence."""

    kind = "dcor"

    @staticmethod
    def matrix(rows: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return (B, N) Euclidean distances."""
        return torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist")


class ReferenceHSIC(HSIC):
    """HSIC between responses and references instead of inputs: whether they vary together.

    The score of a split is the value minus 1, because references depend on themselves completely: 0 at best.
    """

    kind = "hsic-reference"
    against = "reference"
    range = "0 at best, about -1 if independent, for EMI"


class ReferenceDistanceCorrelation(DistanceCorrelation):
    """Distance correlation between responses and references instead of inputs.

    The score of a split is the value minus 1, because references depend on themselves completely: 0 at best.
    """

    kind = "dcor-reference"
    against = "reference"
    range = "0 at best, about -1 if independent, for EMI"


class _PairSums:
    """Sums of two symmetric matrices A and B over row blocks, from which U(A, B) follows.

    Args:
        a: (N,) row sums of A.
        b: (N,) row sums of B.
        members: (N, G) one-hot clusters of the rows.
    """

    def __init__(self, a: torch.Tensor, b: torch.Tensor, members: torch.Tensor) -> None:
        self.a, self.b, self.members = a, b, members
        n, count = members.shape
        self.products = a.new_zeros(n)  # sum_j A_ij B_ij
        self.crossed_by_row = -a * b  # sum_i a_i b_i without each row, whose own term is subtracted here
        self.inside = a.new_zeros(count)  # sum of A_ij B_ij within each cluster
        self.crossed_by_cluster = a.new_zeros(count)  # sum of a_i b_i without each cluster
        self.a_inside = a.new_zeros(count)  # sum of A within each cluster
        self.b_inside = a.new_zeros(count)

    def add(self, rows: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
        """Add some rows.

        Args:
            rows: (B,) row numbers.
            first: (B, N) rows of A.
            second: (B, N) rows of B.
        """
        members, own_members = self.members, self.members[rows]
        both, a, b = first * second, self.a[rows, None], self.b[rows, None]
        a_of_cluster, b_of_cluster = first @ members, second @ members
        self.products[rows] = both.sum(dim=1)
        self.crossed_by_row += ((a - first) * (b - second)).sum(dim=0)
        self.inside += ((both @ members) * own_members).sum(dim=0)
        self.crossed_by_cluster += ((a - a_of_cluster) * (b - b_of_cluster) * (1 - own_members)).sum(dim=0)
        self.a_inside += (a_of_cluster * own_members).sum(dim=0)
        self.b_inside += (b_of_cluster * own_members).sum(dim=0)

    def finish(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return U of all rows, (N,) values without each row, and (G,) values without each cluster."""
        a, b, products, members = self.a, self.b, self.products, self.members
        n = float(len(a))
        whole = _u(n, products.sum(), a.sum(), b.sum(), (a * b).sum())
        by_row = _u(n - 1, products.sum() - 2 * products, a.sum() - 2 * a, b.sum() - 2 * b, self.crossed_by_row)
        by_cluster = _u(
            n - members.sum(dim=0),
            products.sum() - 2 * (products @ members) + self.inside,
            a.sum() - 2 * (a @ members) + self.a_inside,
            b.sum() - 2 * (b @ members) + self.b_inside,
            self.crossed_by_cluster,
        )
        return whole, by_row, by_cluster


def dependence(
    matrix: Block, x: torch.Tensor, y: torch.Tensor, clusters: torch.Tensor, count: int
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Return R of two sets of rows, and its values without each row and without each cluster.

    O(N^2 D) time, and O(N (B + G)) memory for B rows of the matrices at a time.

    Args:
        matrix: kernel or distance of rows.
        x: (N, D) rows.
        y: (N, D') rows.
        clusters: (N,) number of the cluster of each row, below ``count``.
        count: number of clusters G.

    Returns:
        The value; (N,) values without each row; (G,) values without each cluster, NaN where fewer than four
        rows are left.
    """
    x, y, n = x.double(), y.double(), len(x)
    members = torch.nn.functional.one_hot(clusters, count).double()
    blocks = list(torch.arange(n, device=x.device).split(CHUNK))

    def block(points: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        found = matrix(points[rows], points)
        found[torch.arange(len(rows), device=x.device), rows] = 0.0
        return found

    a, b = (torch.cat([block(points, rows).sum(dim=1) for rows in blocks]) for points in (x, y))
    aa, bb, ab = _PairSums(a, a, members), _PairSums(b, b, members), _PairSums(a, b, members)
    for rows in blocks:
        first, second = block(x, rows), block(y, rows)
        aa.add(rows, first, first)
        bb.add(rows, second, second)
        ab.add(rows, first, second)
    values = [_normalise(*of_each) for of_each in zip(ab.finish(), aa.finish(), bb.finish(), strict=True)]
    whole, by_row, by_cluster = values
    by_row = by_row if n > FEWEST_ROWS else torch.full_like(by_row, float("nan"))
    enough = n - members.sum(dim=0) >= FEWEST_ROWS
    return float(whole), by_row, torch.where(enough, by_cluster, torch.full_like(by_cluster, float("nan")))


def _normalise(ab: torch.Tensor, aa: torch.Tensor, bb: torch.Tensor) -> torch.Tensor:
    """Return R; 0 for rows that are all the same, which depend on nothing."""
    scale = aa * bb
    return torch.where(scale > 0, ab / scale.clamp_min(1e-300).sqrt(), torch.zeros_like(scale))


def dependence_to_information(
    matrix: Block, x: torch.Tensor, y: torch.Tensor, clusters: torch.Tensor, count: int
) -> Information:
    """Return R as an estimate with errors; the contribution of a row is R plus the row's influence."""
    value, by_row, by_cluster = dependence(matrix, x, y, clusters, count)
    influence = (len(x) - 1) * (value - by_row)
    influence = torch.nan_to_num(influence - influence.mean())
    return Information(value + influence, influence, by_cluster)


def _u(
    m: torch.Tensor | float, whole: torch.Tensor, a: torch.Tensor, b: torch.Tensor, crossed: torch.Tensor
) -> torch.Tensor:
    """Return U(A, B) of m rows.

    Args:
        m: number of rows.
        whole: sum of A_ij B_ij.
        a: sum of A.
        b: sum of B.
        crossed: sum of the products of row sums, a_i b_i.
    """
    return (whole + a * b / ((m - 1) * (m - 2)) - 2 / (m - 2) * crossed) / (m * (m - 3))
