"""InfoNCE with a separable critic: a lower bound of mutual information, at most ln N.

Source: van den Oord et al., *Representation Learning with Contrastive Predictive Coding*, 2018;
Poole et al., *On Variational Bounds of Mutual Information*, ICML 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from lmms_eval_emi.estimators.base import TrainedEstimator

CRITIC_DIMENSION = 32
CHUNK = 1024  # rows whose scores against all others are held at a time


class InfoNCE(TrainedEstimator):
    """Critic f(x, y) = g(x) . h(y), with which

        I(x; y) >= 1/N sum_i [ f(x_i, y_i) - ln 1/N sum_j exp f(x_i, y_j) ]

    g and h are MLPs with tanh between, input -> hidden -> 32 and output -> hidden -> 32. The value
    cannot exceed ln N; figures of splits of different size are comparable only well below that.
    """

    kind = "infonce"

    def build(self) -> None:
        """Make both halves of the critic."""
        self.g = self.mlp(self.input_dimension, CRITIC_DIMENSION)
        self.h = self.mlp(self.output_dimension, CRITIC_DIMENSION)

    @staticmethod
    def shapes(state: Mapping[str, torch.Tensor]) -> tuple[int, int, int]:
        """Input dimension, output dimension and hidden width that a state dict describes."""
        g, h = state["g.0.weight"], state["h.0.weight"]
        return g.shape[1], h.shape[1], g.shape[0]

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of telling each target among those of the batch."""
        return -self.score(x, y).mean()

    def score(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B,) contributions to the bound among the B pairs, in nats."""
        return self._against_all(self.g(x), self.h(y), 0)

    @torch.no_grad()
    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Contribution of every sample to the InfoNCE bound, in nats: O(N^2) time, O(N) memory, float64.

        Args:
            x: (N, D) inputs.
            y: (N, D') targets.

        Returns:
            (N,) float64, whose mean is the bound.

        Raises:
            ValueError: D or D' is not that of the estimator, or the numbers of rows differ.
        """
        self.check_shapes(x, y)
        network = self.in_float64(x.device)
        g, h = network.g(x.double()), network.h(y.double())
        return torch.cat([self._against_all(part, h, CHUNK * number) for number, part in enumerate(g.split(CHUNK))])

    @staticmethod
    def _against_all(g: torch.Tensor, h: torch.Tensor, first: int) -> torch.Tensor:
        scores = g @ h.T
        own = scores[torch.arange(len(g)), torch.arange(first, first + len(g))]
        return own - torch.logsumexp(scores, dim=1) + math.log(len(h))
