"""Von Neumann entropies of kernels: matrices in, tensors out, differentiable in the rows.

With p the positive eigenvalues of K = X^T X (or of X X^T, which has the same) divided by their sum,
S(K) = -sum p ln p. Its gradient is that of a function of eigenvalues alone, V diag(f'(p)) V^T, so it is exact where
eigenvalues coincide.
"""

from __future__ import annotations

import torch

from lmms_eval_emi.errors import InputError


def rows_to_matrix(x: torch.Tensor) -> torch.Tensor:
    """Return X X^T or X^T X of (N, D) or (B, N, D) rows, whichever is smaller, in float64."""
    rows = x.double()
    return rows @ rows.mT if x.shape[-2] <= x.shape[-1] else rows.mT @ rows


def matrix_to_entropy(matrix: torch.Tensor) -> torch.Tensor:
    """Return the von Neumann entropy in nats of (..., N, N) positive semidefinite matrices, divided by their positive parts.

    Returns:
        (...) float64.

    Raises:
        ValueError: a matrix has no positive eigenvalue.
    """
    values = torch.linalg.eigvalsh(matrix)
    positive = values > 0
    if not bool(positive.any(dim=-1).all()):
        raise InputError(
            "embeddings: expected at least one nonzero row, got zeros only, for which a spectrum is not defined."
        )
    kept = torch.where(positive, values, 0.0)
    p = kept / kept.sum(dim=-1, keepdim=True)
    return -(p * torch.where(positive, p, 1.0).log()).sum(dim=-1)
