"""What trained estimators have in common: a name, a card, their encoders, and their file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from lmms_eval_emi.files import write_atomically

Self = TypeVar("Self", bound="TrainedEstimator")


class TrainedEstimator(nn.Module):
    """A network that estimates mutual information, and what is known of its training.

    Args:
        input_dimension: D of the inputs x.
        output_dimension: D' of the targets y.
        hidden: width of the hidden layers.
        name: what signatures call it; default: its kind.
        sha256: of the file that it came from, if it came from one.

    Attributes:
        name: what signatures call it.
        sha256: of the file that it came from, if it came from one.
        card: what it was trained on and how; empty where that is not known.
        vision_encoder, text_encoder: what made the embeddings that it was trained on, where known.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        input_dimension: int,
        output_dimension: int,
        hidden: int = 250,
        *,
        name: str | None = None,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.input_dimension = input_dimension
        self.output_dimension = output_dimension
        self.hidden = hidden
        self.name = name or self.kind
        self.sha256 = sha256
        self.card: dict[str, Any] = {}
        self.vision_encoder: str | None = None
        self.text_encoder: str | None = None
        self.build()

    def build(self) -> None:
        """Make the networks, of the dimensions and the width that are set."""
        raise NotImplementedError

    def mlp(self, inputs: int, outputs: int) -> nn.Sequential:
        """inputs -> hidden -> outputs with tanh between."""
        return nn.Sequential(nn.Linear(inputs, self.hidden), nn.Tanh(), nn.Linear(self.hidden, outputs))

    @property
    def signature(self) -> str:
        """Name and the first eight digits of the file's SHA-256."""
        return f"{self.name}@{self.sha256[:8]}" if self.sha256 else self.name

    @staticmethod
    def shapes(state: Mapping[str, torch.Tensor]) -> tuple[int, int, int]:
        """Input dimension, output dimension and hidden width that a state dict describes."""
        raise NotImplementedError

    @classmethod
    def keys(cls) -> list[str]:
        """Names of the tensors of a state dict."""
        return list(cls(1, 1, 1, name="", sha256=None).state_dict())

    @classmethod
    def from_state_dict(
        cls: type[Self], state: Mapping[str, torch.Tensor], *, name: str, sha256: str | None = None
    ) -> Self:
        """Build the network that a state dict describes.

        Args:
            state: the tensors named by :meth:`keys`; weights are (out, in).
            name: what signatures call it.
            sha256: of the file that it came from.

        Raises:
            ValueError: keys are missing or unknown, or the tensors do not belong together.
        """
        keys = cls.keys()
        missing, unknown = sorted(set(keys) - set(state)), sorted(set(state) - set(keys))
        if missing or unknown:
            raise ValueError(
                f"estimator {name}: expected the keys {', '.join(keys)}; missing: {', '.join(missing) or 'none'}; unknown: {', '.join(map(str, unknown)) or 'none'}."
            )
        odd = next((key for key, tensor in state.items() if not tensor.dtype.is_floating_point), None)
        if odd:
            raise ValueError(f"estimator {name}: expected floating-point weights, got {odd} of {state[odd].dtype}.")
        flat = next((key for key, tensor in state.items() if tensor.ndim != (2 if key.endswith("weight") else 1)), None)
        if flat:
            raise ValueError(
                f"estimator {name}: expected 2-D weights and 1-D biases, got {flat} of shape {tuple(state[flat].shape)}."
            )
        estimator = cls(*cls.shapes(state), name=name, sha256=sha256)
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
        """Write the weights and the card as safetensors, all of it or nothing."""
        from safetensors.torch import save

        metadata = {"kind": self.kind, "name": self.name, "card": json.dumps(self.card)}
        write_atomically(
            Path(path), save({key: tensor.contiguous() for key, tensor in self.state_dict().items()}, metadata)
        )

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What training minimises, of a batch of pairs; a scalar."""
        raise NotImplementedError

    def score(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(B,) what is shown of held-out pairs, in nats; higher is better."""
        raise NotImplementedError

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(N,) float64 contributions in nats, whose mean is the estimate of I(x; y)."""
        raise NotImplementedError

    def check_shapes(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Raise ``ValueError`` unless (N, D) inputs and (N, D') targets are those of the estimator."""
        for label, tensor, expected in (("x", x, self.input_dimension), ("y", y, self.output_dimension)):
            if tensor.ndim != 2 or tensor.shape[1] != expected:
                raise ValueError(
                    f"{label}: expected shape (N, {expected}) for the estimator {self.name}, got {tuple(tensor.shape)}. Use the encoders that it was trained with, or another estimator."
                )
        if len(x) != len(y):
            raise ValueError(f"y: expected {len(x)} rows, as many as x has, got {len(y)}.")

    def in_float64(self: Self, device: torch.device) -> Self:
        """A copy of the network in float64 on a device."""
        with torch.device("meta"):  # without initial weights, which would take longer than the copy
            copy = type(self)(
                self.input_dimension, self.output_dimension, self.hidden, name=self.name, sha256=self.sha256
            )
        exact = {key: tensor.detach().to(device, torch.float64) for key, tensor in self.state_dict().items()}
        copy.load_state_dict(exact, assign=True)
        return copy.eval()
