"""CLUB with a variance that is free: in whitened spaces, without the limits of the published network.

The published q(y|x) has log-variances in (-1, 1), and unit rows in hundreds of dimensions have some near -8:
it saturates, and its values are a covariance. Here inputs and targets are whitened first (PCA, at most 64
components, scaled to variance 1), which the file stores, and the log-variance has a floor alone. Mutual
information does not change under invertible maps; what the components leave out is lost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import softplus

from lmms_eval_emi.core.embeddings import CHUNK_ROWS
from lmms_eval_emi.estimators.club import CLUB

COMPONENTS = 64
SMALLEST = 1e-3  # variance of a component beside that of the first; smaller ones are noise
FLOOR = -6.0  # lower limit of log sigma^2, for targets with variance 1


class FreeCLUB(CLUB):
    """q(y|x) = N(mu(x), diag sigma^2(x)) of whitened targets, with log sigma^2(x) above -6.

    With the true q, CLUB is an upper bound of I(x; y): for Gaussians with correlation r in d dimensions
    d r^2 / (1 - r^2), about twice the information where that is small. Values are in nats.
    """

    kind = "club-free"

    def build(self) -> None:
        """Make both networks and both maps."""
        inputs, targets = min(self.input_dimension, COMPONENTS), min(self.output_dimension, COMPONENTS)
        self.x_map = nn.Linear(self.input_dimension, inputs).requires_grad_(False)
        self.y_map = nn.Linear(self.output_dimension, targets).requires_grad_(False)
        self.p_mu = self.mlp(inputs, targets)
        self.p_logvar = self.mlp(inputs, targets)

    @staticmethod
    def shapes(state: Mapping[str, torch.Tensor]) -> tuple[int, int, int]:
        """Return the input dimension, output dimension and hidden width that a state dict describes."""
        return state["x_map.weight"].shape[1], state["y_map.weight"].shape[1], state["p_mu.0.weight"].shape[0]

    @torch.no_grad()
    def fit_data(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Set both maps to the whitening of the training data."""
        for layer, rows in ((self.x_map, x), (self.y_map, y)):
            centre = rows.double().mean(dim=0)
            _, values, directions = torch.linalg.svd(rows.double() - centre, full_matrices=False)
            variances = values**2 / len(rows)
            kept = variances > SMALLEST * variances[0]
            count = min(int(kept.sum()), layer.out_features)
            weight = torch.zeros_like(layer.weight, dtype=torch.float64)
            weight[:count] = directions[:count] / variances[:count, None].sqrt()
            layer.weight.copy_(weight)
            layer.bias.copy_(-(weight @ centre))

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        """Return (N, D') targets whitened."""
        return self.y_map(y)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and log variance of q(y|x) of whitened targets, for inputs (N, D)."""
        whitened = self.x_map(x)
        return self.p_mu(whitened), FLOOR + softplus(self.p_logvar(whitened) - FLOOR)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the mean over the batch of sum_d [ (y - mu)^2 / sigma^2 + log sigma^2 ], of whitened targets."""
        return super().loss(x, self.targets(y))

    def score(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (B,) log-likelihood of whitened targets, in nats."""
        return super().score(x, self.targets(y))

    @torch.no_grad()
    def saturation(self, x: torch.Tensor) -> float | None:
        """Return the fraction of log-variances within 1 % of the floor, in [0, 1]."""
        network, limit = self.in_float64(x.device), FLOOR + math.log1p(0.01)
        logvars = [network(part.double())[1] for part in x.split(CHUNK_ROWS)]
        return float(sum((logvar < limit).double().sum() for logvar in logvars)) / sum(
            logvar.numel() for logvar in logvars
        )
