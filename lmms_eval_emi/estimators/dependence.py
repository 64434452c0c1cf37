"""Dependence without training: debiased CKA (HSIC) and bias-corrected distance correlation.

They need no file and no estimator of densities, and are unbiased at 90 rows. Their values are correlations, not
nats: 0 for independent rows, 1 for rows that are the same up to rotation and scale.
"""

from __future__ import annotations

import torch

from lmms_eval_emi.core.dependence import FEWEST_ROWS, dependence_to_information
from lmms_eval_emi.core.emi import Information
from lmms_eval_emi.estimators.base import Estimator, undivided


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
