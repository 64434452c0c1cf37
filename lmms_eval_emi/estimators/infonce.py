"""InfoNCE with a separable critic: a lower bound of mutual information, at most ln N.

Source: van den Oord et al., *Representation Learning with Contrastive Predictive Coding*, 2018;
Poole et al., *On Variational Bounds of Mutual Information*, ICML 2019.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from lmms_eval_emi.core.emi import Information
from lmms_eval_emi.estimators.base import TrainedEstimator

CRITIC_DIMENSION = 32
Self = TypeVar("Self", bound="InfoNCE")
CHUNK = 1024  # rows whose scores against all others are held at a time


class InfoNCE(TrainedEstimator):
    """InfoNCE with the critic f(x, y) = g(x) . h(y).

        I(x; y) >= 1/N sum_i [ f(x_i, y_i) - ln 1/N sum_j exp f(x_i, y_j) ]

    g and h are MLPs with tanh between, input -> hidden -> 32 and output -> hidden -> 32. The value
    cannot exceed ln N; values of splits of different size are comparable only well below that.
    """

    kind = "infonce"
    range = "at most ln N"
    has_density = False  # a pair is scored among the others

    def build(self) -> None:
        """Make both halves of the critic."""
        self.g = self.mlp(self.input_dimension, CRITIC_DIMENSION)
        self.h = self.mlp(self.output_dimension, CRITIC_DIMENSION)

    @staticmethod
    def shapes(state: Mapping[str, torch.Tensor]) -> tuple[int, int, int]:
        """Return the input dimension, output dimension and hidden width that a state dict describes."""
        g, h = state["g.0.weight"], state["h.0.weight"]
        return g.shape[1], h.shape[1], g.shape[0]

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of telling each target among those of the batch."""
        return -self.score(x, y).mean()

    def score(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (B,) contributions to the bound among the B pairs, in nats."""
        scores = self.g(x) @ self.h(y).T
        return scores.diagonal() - torch.logsumexp(scores, dim=1) + math.log(len(y))

    def ceiling(self, n: int) -> float | None:
        """Return ln N, which the bound cannot exceed with N rows."""
        return math.log(n)

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
        """Return the bounds with their leave-one-cluster-out values, and the influence of each row: O(N^2) time, O(N G) memory."""
        return [cls._analyse_one(networks, which, x, y, clusters, count) for y in targets]

    @staticmethod
    def _analyse_one(
        networks: Sequence[Any],
        which: torch.Tensor,
        x: torch.Tensor,
        y: torch.Tensor,
        clusters: torch.Tensor,
        count: int,
    ) -> Information:
        inputs, targets = x.double(), y.double()
        answers = [network.h(targets) for network in networks]
        n = len(x)
        members = torch.nn.functional.one_hot(clusters, count).double()
        sizes = members.sum(dim=0)
        positives, total, kept = [], [], torch.zeros(count, dtype=torch.float64, device=x.device)
        pulled = torch.zeros(n, dtype=torch.float64, device=x.device)
        for rows in torch.arange(n, device=x.device).split(CHUNK):
            scores = torch.empty(len(rows), n, dtype=torch.float64, device=x.device)
            for number, (network, h) in enumerate(zip(networks, answers, strict=True)):
                mine = which[rows] == number
                scores[mine] = network.g(inputs[rows[mine]]) @ h.T
            largest = scores.max(dim=1, keepdim=True).values
            weights = torch.exp(scores - largest)
            matched, whole = scores.gather(1, rows[:, None])[:, 0] - largest[:, 0], weights.sum(dim=1)
            positives.append(matched)
            total.append(whole)
            left = (whole[:, None] - weights @ members).clamp_min(1e-300)
            without = matched[:, None] - left.log() + (n - sizes).log()
            kept += (without * (1 - members[rows])).sum(dim=0)
            pulled += (weights / whole[:, None]).sum(dim=0)
        contributions = torch.cat(positives) - torch.cat(total).log() + math.log(n)
        influence = contributions - pulled  # a row is also a negative of all others
        return Information(contributions, influence - influence.mean(), kept / (n - sizes))
