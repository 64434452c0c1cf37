"""The mean cosine of response and reference: the baseline that any estimator has to beat."""

from __future__ import annotations

import torch

from lmms_eval_emi.core.emi import Information
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.estimators.base import Estimator


class Cosine(Estimator):
    """cos(response, reference), whatever the input.

    A reference's cosine with itself is 1, so the score of a split is the mean cosine minus 1: 0 at best.
    """

    kind = "cosine"
    unit = "cosine"
    against = "reference"
    range = "0 at best, for EMI"

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (N,) float64 cosines of rows (N, D) and (N, D).

        Raises:
            ValueError: the numbers of rows or the dimensions differ.
        """
        self.check_rows(x, y)
        if x.shape[1] != y.shape[1]:
            raise InputError(f"y: expected dimension {x.shape[1]}, that of the references, got {y.shape[1]}.")
        return torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=1)

    def analyse(self, x: torch.Tensor, y: torch.Tensor, clusters: torch.Tensor, count: int) -> Information:
        """Return the mean with its leave-one-cluster-out values; the influence of a row is how far it is from the mean.

        Args:
            x: (N, D) references.
            y: (N, D) responses.
            clusters: (N,) number of each row's cluster, below ``count``.
            count: number of clusters.
        """
        found = self.contributions(x, y)
        sums, sizes = (
            torch.zeros(count, dtype=torch.float64, device=x.device).index_add_(0, clusters, values)
            for values in (found, torch.ones_like(found))
        )
        return Information(found, found - found.mean(), (found.sum() - sums) / (len(found) - sizes))
