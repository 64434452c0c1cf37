"""Unbiased HSIC and distance covariance, normalised, with and without each cluster of rows.

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

FEWEST_ROWS = 4
CHUNK = 512  # rows of the matrices that are held at a time

Block = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (B, D) and (N, D) rows to their (B, N) matrix


def dependence(
    matrix: Block, x: torch.Tensor, y: torch.Tensor, clusters: torch.Tensor, count: int
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """R of two sets of rows: its value, and without each row and each cluster.

    O(N^2 D) time, and O(N (B + G)) memory for B rows of the matrices at a time.

    Args:
        matrix: of a kernel or a distance.
        x: (N, D) rows.
        y: (N, D') rows.
        clusters: (N,) number of every row's cluster, below ``count``.
        count: G, the number of clusters.

    Returns:
        The value; (N,) values without each row; (G,) values without each cluster, NaN where fewer than four
        rows are left.
    """
    n = len(x)
    members = torch.nn.functional.one_hot(clusters, count).double()
    sizes = members.sum(dim=0)
    blocks = list(torch.arange(n, device=x.device).split(CHUNK))

    def block(points: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        found = matrix(points[rows], points)
        found[torch.arange(len(rows), device=x.device), rows] = 0.0
        return found

    points = {"a": x.double(), "b": y.double()}
    sums = {key: torch.cat([block(one, rows).sum(dim=1) for rows in blocks]) for key, one in points.items()}
    pairs = (("a", "a"), ("b", "b"), ("a", "b"))

    def zeros(length: int) -> torch.Tensor:
        return torch.zeros(length, dtype=torch.float64, device=x.device)

    product = {pair: zeros(n) for pair in pairs}  # (N,) sum_j A_ij B_ij
    inside = {pair: zeros(count) for pair in pairs}  # (G,) sum over i and j of the cluster
    crossed_out = {pair: zeros(count) for pair in pairs}  # (G,) sum_i a_i b_i over the others, of the others
    crossed_row = {pair: zeros(n) for pair in pairs}  # (N,) the same without each row
    own = {key: zeros(count) for key in points}  # (G,) sum of A within the cluster
    for rows in blocks:
        found = {key: block(one, rows) for key, one in points.items()}
        to_cluster = {key: one @ members for key, one in found.items()}
        outside = 1 - members[rows]
        for key in points:
            own[key] += (to_cluster[key] * members[rows]).sum(dim=0)
        for pair in pairs:
            first, second = (found[key] for key in pair)
            both = first * second
            product[pair][rows] = both.sum(dim=1)
            inside[pair] += ((both @ members) * members[rows]).sum(dim=0)
            left = [sums[key][rows, None] - to_cluster[key] for key in pair]
            crossed_out[pair] += (left[0] * left[1] * outside).sum(dim=0)
            left = [sums[key][rows, None] - found[key] for key in pair]
            crossed_row[pair] += (left[0] * left[1]).sum(dim=0)
    for pair in pairs:  # the row itself, of which nothing was taken away
        crossed_row[pair] -= sums[pair[0]] * sums[pair[1]]

    def normalised(of: Callable[[tuple[str, str]], torch.Tensor]) -> torch.Tensor:
        scale = of(("a", "a")) * of(("b", "b"))
        # Rows that are all the same depend on nothing.
        return torch.where(scale > 0, of(("a", "b")) / scale.clamp_min(1e-300).sqrt(), torch.zeros_like(scale))

    totals = {key: one.sum() for key, one in sums.items()}
    whole = normalised(
        lambda pair: _u(
            float(n), product[pair].sum(), totals[pair[0]], totals[pair[1]], (sums[pair[0]] * sums[pair[1]]).sum()
        )
    )
    rows_left = float(n - 1)
    by_row = normalised(
        lambda pair: _u(
            rows_left,
            product[pair].sum() - 2 * product[pair],
            totals[pair[0]] - 2 * sums[pair[0]],
            totals[pair[1]] - 2 * sums[pair[1]],
            crossed_row[pair],
        )
    )
    in_cluster = {key: one @ members for key, one in sums.items()}
    kept = n - sizes
    by_cluster = normalised(
        lambda pair: _u(
            kept,
            product[pair].sum() - 2 * (product[pair] @ members) + inside[pair],
            totals[pair[0]] - 2 * in_cluster[pair[0]] + own[pair[0]],
            totals[pair[1]] - 2 * in_cluster[pair[1]] + own[pair[1]],
            crossed_out[pair],
        )
    )
    by_row = by_row if n > FEWEST_ROWS else torch.full_like(by_row, float("nan"))
    return float(whole), by_row, torch.where(kept >= FEWEST_ROWS, by_cluster, torch.full_like(by_cluster, float("nan")))


def dependence_to_information(
    matrix: Block, x: torch.Tensor, y: torch.Tensor, clusters: torch.Tensor, count: int
) -> Information:
    """R as an estimate with errors; a row's contribution is R and what the row adds to it."""
    value, by_row, by_cluster = dependence(matrix, x, y, clusters, count)
    influence = (len(x) - 1) * (value - by_row)
    influence = torch.nan_to_num(influence - influence.mean())
    return Information(value + influence, influence, by_cluster)


def _u(
    m: torch.Tensor | float, whole: torch.Tensor, a: torch.Tensor, b: torch.Tensor, crossed: torch.Tensor
) -> torch.Tensor:
    """U of the module, of m rows: from the sums of A * B, of A, of B, and of their row sums' products."""
    return (whole + a * b / ((m - 1) * (m - 2)) - 2 / (m - 2) * crossed) / (m * (m - 3))
