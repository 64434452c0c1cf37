"""The nearest-neighbour estimator of mutual information, which needs no training.

Source: Kraskov, Stoegbauer & Grassberger, *Estimating Mutual Information*, Physical Review E 69,
066138 (2004), its first algorithm, with the Euclidean norm in each of the two spaces.
"""

from __future__ import annotations

import torch

CHUNK = 512  # rows whose distances to all others are held at a time


class KSG:
    """I(x; y) = psi(k) + psi(N) - < psi(n_x + 1) + psi(n_y + 1) >.

    n_x and n_y count the samples nearer than the k-th neighbour in the joint space. Accurate in few
    dimensions; with embeddings of hundreds and N of tens it says little, and depends on N: compare
    splits of one size only.

    Args:
        k: neighbours.
        name: what signatures call it.
    """

    kind = "ksg"
    vision_encoder = None
    text_encoder = None
    input_dimension = None  # any
    output_dimension = None

    def __init__(self, k: int = 3, *, name: str = "ksg") -> None:
        if k < 1:
            raise ValueError(f"k: expected at least one neighbour, got {k}.")
        self.k = k
        self.name = name
        self.card: dict = {}

    @property
    def signature(self) -> str:
        """Name and number of neighbours."""
        return f"{self.name}(k={self.k})"

    @torch.no_grad()
    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Contribution of every sample to the estimate, in nats: O(N^2 D) time, O(N) memory, float64.

        Args:
            x: (N, D) inputs.
            y: (N, D') targets.

        Returns:
            (N,) float64, whose mean is the estimate.

        Raises:
            ValueError: the numbers of rows differ, or there are no k other samples.
        """
        n = len(x)
        if len(y) != n:
            raise ValueError(f"y: expected {n} rows, as many as x has, got {len(y)}.")
        if n <= self.k:
            raise ValueError(f"x: expected more than k = {self.k} samples, got {n}.")
        x, y = x.double(), y.double()
        parts = []
        for start in range(0, n, CHUNK):
            rows = torch.arange(start, min(start + CHUNK, n), device=x.device)
            d_x, d_y = self._distances(x, rows), self._distances(y, rows)
            radius = torch.maximum(d_x, d_y).kthvalue(self.k, dim=1, keepdim=True).values
            n_x, n_y = ((distances < radius).sum(dim=1).double() for distances in (d_x, d_y))
            parts.append(-torch.digamma(n_x + 1) - torch.digamma(n_y + 1))
        constant = torch.digamma(torch.tensor([self.k, n], dtype=torch.float64, device=x.device)).sum()
        return constant + torch.cat(parts)

    @staticmethod
    def _distances(points: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(B, N) distances of some rows to all, and infinity to themselves."""
        distances = torch.cdist(points[rows], points, compute_mode="donot_use_mm_for_euclid_dist")
        distances[torch.arange(len(rows)), rows] = float("inf")
        return distances
