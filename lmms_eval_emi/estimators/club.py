"""CLUB with a diagonal Gaussian q(y|x): the network and its estimates.

Source: Cheng et al., *CLUB*, ICML 2020; the architecture is that of Oh et al., ICML 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

from lmms_eval_emi.core.club import ClusterSums, mean_and_variance
from lmms_eval_emi.core.embeddings import CHUNK_ROWS, Embeddings
from lmms_eval_emi.core.emi import Information
from lmms_eval_emi.estimators.base import TrainedEstimator, by_network

Gaussian = tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]
SATURATED = 0.99  # limit for log-variances, which lie in (-1, 1)
Self = TypeVar("Self", bound="CLUB")


class CLUB(TrainedEstimator):
    """Variational q(y|x) = N(mu(x), diag sigma^2(x)), with which CLUB bounds I(x; y) from above.

    mu and log sigma^2 are MLPs input -> hidden -> output with tanh between; log sigma^2 ends in a
    tanh, so that it stays in (-1, 1) and the values are compressed, nominal nats.
    """

    kind = "club"
    range = "any"

    def build(self) -> None:
        """Build the networks of the mean and of the log variance."""
        self.p_mu = self.mlp(self.input_dimension, self.output_dimension)
        self.p_logvar = self.mlp(self.input_dimension, self.output_dimension).append(nn.Tanh())

    @staticmethod
    def shapes(state: Mapping[str, torch.Tensor]) -> tuple[int, int, int]:
        """Return the input dimension, output dimension and hidden width that a state dict describes."""
        weight_in, weight_out = state["p_mu.0.weight"], state["p_mu.2.weight"]
        return weight_in.shape[1], weight_out.shape[0], weight_in.shape[0]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and log variance of q(y|x), each (N, D'), for inputs (N, D)."""
        return self.p_mu(x), self.p_logvar(x)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the mean over the batch of sum_d [ (y - mu)^2 / sigma^2 + log sigma^2 ]."""
        mu, logvar = self(x)
        return ((y - mu) ** 2 * torch.exp(-logvar) + logvar).sum(dim=1).mean()

    def score(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (B,) log-likelihood log q(y|x), in nats."""
        mu, logvar = self(x)
        return -((y - mu) ** 2 * torch.exp(-logvar) + logvar + math.log(2 * math.pi)).sum(dim=1) / 2

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        """Return the targets in the space that q is a density of; for this estimator, unchanged."""
        return y

    @torch.no_grad()
    def gaussians(self, embeddings: Embeddings) -> list[list[Gaussian]]:
        """Return (N, D') float64 means and log variances of the targets of some rows, and the map of targets."""
        self.check_shapes(embeddings.x, embeddings.y)
        network = self.in_float64(embeddings.t.device)
        return [[(*network(embeddings.x), network.targets)]]

    @torch.no_grad()
    def saturation(self, x: torch.Tensor) -> float | None:
        """Return the fraction of log-variances within 1 % of a limit, in [0, 1]."""
        network = self.in_float64(x.device)
        shares = [(network.p_logvar(part.double()).abs() > SATURATED).double().sum() for part in x.split(CHUNK_ROWS)]
        return float(sum(shares)) / (len(x) * self.output_dimension)

    @classmethod
    def analyse_by(
        cls: type[Self],
        networks: Sequence[Self],
        which: torch.Tensor,
        x: torch.Tensor,
        targets: Sequence[torch.Tensor],
        clusters: torch.Tensor,
        count: int,
    ) -> list[Information]:
        """Return the estimates with their leave-one-cluster-out values, and the influence of each row, in O(N D)."""
        # Networks that are used together share the space of their targets.
        into = networks[0].targets
        moments = [mean_and_variance(y, into) for y in targets]
        sums = [ClusterSums.empty(count, len(mean), x.device) for mean, _ in moments]
        parts: list[list[torch.Tensor]] = [[] for _ in targets]
        for rows in torch.arange(len(x), device=x.device).split(CHUNK_ROWS):
            block = slice(int(rows[0]), int(rows[-1]) + 1)
            mu, logvar = by_network(networks, which[block], lambda network, own: network(own), x[block].double())
            for number, (y, (mean, variance)) in enumerate(zip(targets, moments, strict=True)):
                matched = sums[number].add(mu, logvar, into(y[block].double()), mean, clusters[block])
                parts[number].append(matched + torch.exp(-logvar) @ variance / 2)
        return [
            cls._information(torch.cat(parts[number]), sums[number], y, into, moments[number][0])
            for number, y in enumerate(targets)
        ]

    @staticmethod
    def _information(
        contributions: torch.Tensor,
        sums: ClusterSums,
        y: torch.Tensor,
        into: Callable[[torch.Tensor], torch.Tensor],
        mean: torch.Tensor,
    ) -> Information:
        a, precision = sums.a.sum(dim=0) / len(y), sums.precision.sum(dim=0) / len(y)
        typical = torch.cat(
            [
                (rows * a - rows**2 * precision / 2).sum(dim=1)
                for rows in (into(ys.double()) - mean for ys in y.split(CHUNK_ROWS))
            ]
        )
        influence = (contributions - contributions.mean()) - (typical - typical.mean())
        return Information(contributions, influence, sums.without_each())
