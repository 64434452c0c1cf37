"""What the encoders of texts have in common: a tokenizer, a checkpoint, and a mean over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch

from lmms_eval_emi.encoders.base import (
    check_loaded,
    fingerprint,
    place,
    pool_and_normalise,
    quiet_transformers,
    unavailable,
)

Self = TypeVar("Self", bound="TextEncoder")
MAX_TOKENS = 512


class TextEncoder:
    """Embeds texts: the mean over a text's tokens of what a model gives for them, L2-normalised.

    A subclass names the model's class in transformers and says which states it takes in :meth:`states`.

    Args:
        name: hub name or folder of a checkpoint with its tokenizer.
        device: where to run.

    Raises:
        EncoderUnavailable: the checkpoint is not here and cannot be fetched, or lacks weights.
    """

    model_class: ClassVar[str]
    pooling: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    optional_weights: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, device: torch.device) -> None:
        import transformers

        self.name = name
        try:
            with quiet_transformers():
                self.tokenizer = transformers.AutoTokenizer.from_pretrained(name)
                model, info = getattr(transformers, self.model_class).from_pretrained(
                    name, dtype=torch.float32, output_loading_info=True, **self.options
                )
        except (OSError, ValueError) as error:
            raise unavailable(name, "text encoder", "LMMS_EVAL_EMI_TEXT_ENCODER", error) from error
        check_loaded(name, info["missing_keys"], optional=self.optional_weights)
        self.model = model.eval()
        self.dimension = int(model.config.hidden_size)
        self.max_tokens = min(MAX_TOKENS, int(getattr(self.tokenizer, "model_max_length", MAX_TOKENS)))
        self._fingerprint = fingerprint(model)
        self.device = place(model, name, device)

    @property
    def signature(self) -> str:
        """Name, fingerprint of the weights, and pooling."""
        return f"{self.name}#{self._fingerprint}/{self.pooling}"

    def to(self: Self, device: torch.device) -> Self:
        """Move to a device."""
        self.device = place(self.model, self.name, device)
        return self

    def prepare(self, text: str) -> str:
        """A text as it is; it is tokenised with its batch."""
        return text

    def states(self, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(M, L, D) states and (M, L) mask of the tokens to average over."""
        raise NotImplementedError

    @torch.inference_mode()
    def encode(self, prepared: Sequence[str]) -> torch.Tensor:
        """(M, D) float32 L2-normalised rows of M texts, which may be empty, on the CPU."""
        tokens = self.tokenizer(
            list(prepared), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        return pool_and_normalise(*self.states(tokens), self.device)
