"""CLUB with a diagonal Gaussian q(y|x): the network, its file formats, and its estimates.

Source: Cheng et al., *CLUB*, ICML 2020; the architecture is that of Oh et al., ICML 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lmms_eval_emi.core.club import embeddings_to_moments, moments_to_contributions
from lmms_eval_emi.core.embeddings import CHUNK_ROWS

KEYS = tuple(
    f"{part}.{layer}.{kind}" for part in ("p_mu", "p_logvar") for layer in (0, 2) for kind in ("weight", "bias")
)


class CLUB(nn.Module):
    """Variational q(y|x) = N(mu(x), diag sigma^2(x)), with which CLUB bounds I(x; y) from above.

    mu and log sigma^2 are MLPs input -> hidden -> output with tanh between; log sigma^2 ends in a
    tanh, so that it stays in (-1, 1) and the values are compressed, nominal nats.

    Args:
        input_dimension: D of the inputs x.
        output_dimension: D' of the targets y.
        hidden: width of both hidden layers.
        name: what signatures call it.
        sha256: of the file that it came from, if it came from one.
    """

    def __init__(
        self,
        input_dimension: int,
        output_dimension: int,
        hidden: int = 250,
        *,
        name: str = "club",
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.p_mu = nn.Sequential(nn.Linear(input_dimension, hidden), nn.Tanh(), nn.Linear(hidden, output_dimension))
        self.p_logvar = nn.Sequential(
            nn.Linear(input_dimension, hidden), nn.Tanh(), nn.Linear(hidden, output_dimension), nn.Tanh()
        )
        self.input_dimension = input_dimension
        self.output_dimension = output_dimension
        self.hidden = hidden
        self.name = name
        self.sha256 = sha256
        self.vision_encoder: str | None = None  # what made the embeddings that it was trained on, where known
        self.text_encoder: str | None = None

    @property
    def signature(self) -> str:
        """Name and the first eight digits of the file's SHA-256."""
        return f"{self.name}@{self.sha256[:8]}" if self.sha256 else self.name

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor], *, name: str, sha256: str | None = None) -> CLUB:
        """Build the network that a state dict describes.

        Args:
            state: the tensors named in :data:`KEYS`; weights are (out, in).
            name, sha256: see the class.

        Raises:
            ValueError: keys are missing or unknown, or shapes do not belong together.
        """
        missing, unknown = sorted(set(KEYS) - set(state)), sorted(set(state) - set(KEYS))
        if missing or unknown:
            raise ValueError(
                f"estimator {name}: expected the keys {', '.join(KEYS)}; missing: {', '.join(missing) or 'none'}; unknown: {', '.join(map(str, unknown)) or 'none'}."
            )
        odd = next((key for key, tensor in state.items() if not tensor.dtype.is_floating_point), None)
        if odd:
            raise ValueError(f"estimator {name}: expected floating-point weights, got {odd} of {state[odd].dtype}.")
        weight_in, weight_out = state["p_mu.0.weight"], state["p_mu.2.weight"]
        if weight_in.ndim != 2 or weight_out.ndim != 2:
            raise ValueError(
                f"estimator {name}: expected 2-D weights, got {tuple(weight_in.shape)} and {tuple(weight_out.shape)}."
            )
        estimator = cls(weight_in.shape[1], weight_out.shape[0], weight_in.shape[0], name=name, sha256=sha256)
        try:
            estimator.load_state_dict(dict(state))
        except RuntimeError as error:
            raise ValueError(f"estimator {name}: its tensors do not fit together: {error}") from error
        if not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
            raise ValueError(
                f"estimator {name}: expected finite weights, got NaN or infinity. The file is damaged or its training diverged."
            )
        return estimator.eval()

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors."""
        from safetensors.torch import save_file

        save_file(
            {key: tensor.contiguous() for key, tensor in self.state_dict().items()},
            str(path),
            metadata={"kind": "club", "name": self.name},
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of q(y|x), each (N, D'), for inputs (N, D)."""
        return self.p_mu(x), self.p_logvar(x)

    @torch.no_grad()
    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Contribution of every sample to the CLUB estimate of I(x; y), in nats.

        O(N D) time and memory; everything is computed in float64, a chunk of rows at a time.

        Args:
            x: (N, D) inputs.
            y: (N, D') targets.

        Returns:
            (N,) float64, whose mean is the estimate.

        Raises:
            ValueError: D or D' is not that of the estimator, or the numbers of rows differ.
        """
        for label, tensor, expected in (("x", x, self.input_dimension), ("y", y, self.output_dimension)):
            if tensor.ndim != 2 or tensor.shape[1] != expected:
                raise ValueError(
                    f"{label}: expected shape (N, {expected}) for the estimator {self.name}, got {tuple(tensor.shape)}. Use the encoders that it was trained with, or another estimator."
                )
        if len(x) != len(y):
            raise ValueError(f"y: expected {len(x)} rows, as many as x has, got {len(y)}.")
        network = self._in_float64(x.device)
        moments = embeddings_to_moments(y)
        parts = []
        for xs, ys in zip(x.split(CHUNK_ROWS), y.split(CHUNK_ROWS), strict=True):
            mu, logvar = network(xs.double())
            parts.append(moments_to_contributions(mu, logvar, ys, moments))
        return torch.cat(parts)

    def _in_float64(self, device: torch.device) -> CLUB:
        copy = CLUB(self.input_dimension, self.output_dimension, self.hidden).to(device=device, dtype=torch.float64)
        copy.load_state_dict(self.state_dict())
        return copy.eval()
