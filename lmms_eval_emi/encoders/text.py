"""What the encoders of texts have in common: a tokenizer, a checkpoint, and a mean over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch

from lmms_eval_emi.encoders.base import (
    CheckpointEncoder,
    fingerprint,
    mean_over_positions,
    normalised,
    quiet_transformers,
    unavailable,
)
from lmms_eval_emi.encoders.checkpoint import checkpoint_file

MAX_TOKENS = 512
TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json")


class TextEncoder(CheckpointEncoder):
    """Embeds texts: the mean over a text's tokens of what a model gives for them, L2-normalised.

    A subclass names the model's class in transformers and says which states it takes in :meth:`states`; or it has
    :meth:`load`, :meth:`identify` and :meth:`encode` of its own.

    Args:
        name: hub name or folder of a checkpoint with its tokenizer.
        device: where to run.

    Raises:
        EncoderUnavailable: the checkpoint or its tokenizer is not here and cannot be fetched, or lacks weights.
    """

    model_class: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    optional_weights: ClassVar[tuple[str, ...]] = ()
    loaded: ClassVar[tuple[str, ...]] = ("model", "tokenizer")
    what, variable = "text encoder", "LMMS_EVAL_EMI_TEXT_ENCODER"

    @property
    def dimension(self) -> int:
        """Width of a row."""
        return int(self.checkpoint.config["hidden_size"])

    @cached_property
    def tokenizer(self) -> Any:
        """Of the checkpoint."""
        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                return AutoTokenizer.from_pretrained(self.name)
        except (OSError, ValueError) as error:
            raise unavailable(self.name, self.what, self.variable, error) from error

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are looked at."""
        return min(MAX_TOKENS, int(getattr(self.tokenizer, "model_max_length", MAX_TOKENS)))

    def prepare(self, text: str) -> str:
        """A text as it is; it is tokenised with its batch."""
        return text

    def check(self) -> None:
        """Make sure that the tokenizer is there, which is read when something has to be encoded."""
        for file in TOKENIZERS:
            try:
                checkpoint_file(self.name, file)
                return
            except OSError:
                continue
        _ = self.tokenizer  # by another file; or with an error that says what is missing

    def load(self) -> torch.nn.Module:
        """The model as transformers has it."""
        return self.load_from_transformers(self.model_class, self.options, self.optional_weights)

    def identify(self) -> str:
        """Fingerprint of the model's weights."""
        return fingerprint(self.model)

    def states(self, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(M, L, D) states and (M, L) mask of the tokens to average over."""
        raise NotImplementedError

    @torch.inference_mode()
    def encode(self, prepared: Sequence[str]) -> torch.Tensor:
        """(M, D) float32 L2-normalised rows of M texts, which may be empty, on the CPU."""
        device = self.place_model()
        tokens = self.tokenizer(
            list(prepared), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(device)
        return normalised(mean_over_positions(*self.states(tokens)))
