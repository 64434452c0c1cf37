"""The nearest-neighbour estimator of mutual information, which needs no training.

Sources: Kraskov, Stoegbauer & Grassberger, *Estimating Mutual Information*, Physical Review E 69, 066138
(2004), its first algorithm; Gao et al., *Estimating Mutual Information for Discrete-Continuous Mixtures*,
NeurIPS 2017, for rows that are repeated.
"""

from __future__ import annotations

import torch

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.estimators.base import Estimator

CHUNK = 512  # rows whose distances to all others are held at a time
NORMS = {"euclidean": 2.0, "max": float("inf")}


class KSG(Estimator):
    """I(x; y) = psi(k) + psi(N) - < psi(n_x + 1) + psi(n_y + 1) >.

    n_x and n_y count the samples nearer than the k-th neighbour in the joint space. Accurate in few
    dimensions; with embeddings of hundreds and N of tens it says little, and depends on N: compare
    splits of one size only.

    Where the k-th neighbour of a row is at distance 0, the row is taken as a draw of a discrete variable (Gao et
    al. 2017): k becomes the number of rows at distance 0, and n_x and n_y those at distance 0 in each space.

    Args:
        k: neighbours.
        norm: norm of each of the two spaces, ``euclidean`` or ``max``.
        name: what signatures call it.
    """

    kind = "ksg"
    range = "any"

    def __init__(self, k: int = 3, *, norm: str = "euclidean", name: str | None = None) -> None:
        super().__init__(name=name)
        if k < 1:
            raise InputError(f"k: expected at least one neighbour, got {k}.")
        if norm not in NORMS:
            raise InputError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}.")
        self.k = k
        self.norm = norm

    @property
    def signature(self) -> str:
        """Name, number of neighbours, and the norm if it is not the Euclidean."""
        norm = "" if self.norm == "euclidean" else f",norm={self.norm}"
        return f"{self.name}(k={self.k}{norm})"

    @torch.no_grad()
    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the contribution of every sample to the estimate, in nats: O(N^2 D) time, O(N) memory, float64.

        Args:
            x: (N, D) inputs.
            y: (N, D') targets.

        Returns:
            (N,) float64, whose mean is the estimate.

        Raises:
            ValueError: the numbers of rows differ, or there are no k other samples.
        """
        n = len(x)
        self.check_rows(x, y, self.k + 1)
        x, y = x.double(), y.double()
        parts = []
        for start in range(0, n, CHUNK):
            rows = torch.arange(start, min(start + CHUNK, n), device=x.device)
            d_x, d_y = self._distances(x, rows), self._distances(y, rows)
            joint = torch.maximum(d_x, d_y)
            radius = joint.kthvalue(self.k, dim=1, keepdim=True).values
            repeated = radius[:, 0] == 0
            near = [torch.where(repeated[:, None], distances == 0, distances < radius) for distances in (d_x, d_y)]
            n_x, n_y = (neighbours.sum(dim=1).double() for neighbours in near)
            neighbours = torch.where(repeated, (joint == 0).sum(dim=1).double() + 1, float(self.k))
            parts.append(torch.digamma(neighbours) - torch.digamma(n_x + 1) - torch.digamma(n_y + 1))
        constant = torch.digamma(torch.tensor(n, dtype=torch.float64, device=x.device))
        return constant + torch.cat(parts)

    def remarks(self, embeddings: Embeddings) -> list[str]:
        """Return how many rows are copies of others, if there are any."""
        x = embeddings.x
        counts = {name: self.repeated(x, getattr(embeddings, name)) for name in ("y_hat", "y")}
        words = {"y_hat": "responses", "y": "references"}
        return [
            f"{count} of {embeddings.n} inputs and {words[name]} are repeated, and {self.name} takes them as discrete"
            for name, count in counts.items()
            if count
        ]

    def repeated(self, x: torch.Tensor, y: torch.Tensor) -> int:
        """Return the number of rows with at least k copies of input and target among the others, which count as discrete."""
        _, inverse, counts = torch.unique(
            torch.cat([x.double(), y.double()], dim=1), dim=0, return_inverse=True, return_counts=True
        )
        return int((counts[inverse] > self.k).sum())

    def _distances(self, points: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return (B, N) distances of some rows to all, and infinity from each row to itself."""
        distances = torch.cdist(points[rows], points, p=NORMS[self.norm], compute_mode="donot_use_mm_for_euclid_dist")
        distances[torch.arange(len(rows)), rows] = float("inf")
        return distances
