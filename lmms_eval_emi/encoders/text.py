"""Encoders of texts, which take a mean over tokens: their base, XLM-R's embedding layer, and sentence encoders."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch.nn.functional import embedding, layer_norm

from lmms_eval_emi.encoders.base import (
    Encoder,
    checkpoint_file,
    fingerprint,
    mean_over_positions,
    normalised,
    quiet_transformers,
    unavailable,
)

MAX_TOKENS = 512
TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json")
OTHER_FILES = ("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
XLM_R_WEIGHTS = (
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias",
)


class TextEncoder(Encoder):
    """Embeds texts by the L2-normalised mean over their tokens of a model's states.

    A subclass names the model's class in transformers and returns the states in :meth:`states`; or it overrides
    :meth:`load`, :meth:`compute_fingerprint` and :meth:`encode`.

    Args:
        name: hub name or folder of a checkpoint with its tokenizer.
        device: where to run.
        cache: folder that remembers fingerprints; ``None`` remembers nothing.

    Raises:
        UnavailableError: the checkpoint or its tokenizer is not available locally and cannot be fetched, or lacks weights.
    """

    model_class: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    optional_weights: ClassVar[tuple[str, ...]] = ()
    role, variable = "text encoder", "LMMS_EVAL_EMI_TEXT_ENCODER"
    settings_files = ("config.json", *TOKENIZERS, *OTHER_FILES)

    @property
    def dimension(self) -> int:
        """Width of a row."""
        return int(self.checkpoint.config["hidden_size"])

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                return AutoTokenizer.from_pretrained(self.name)
        except Exception as error:  # a damaged file makes tokenizers raise its own bare Exception
            raise unavailable(self.name, self.role, self.variable, error) from error

    def tokenize(self, texts: Sequence[str], **options: Any) -> Any:
        """Tokenise texts with special tokens, truncated at 512 tokens or the tokenizer's own limit."""
        limit = min(MAX_TOKENS, int(getattr(self.tokenizer, "model_max_length", MAX_TOKENS)))
        return self.tokenizer(list(texts), truncation=True, max_length=limit, **options)

    def prepare(self, text: str) -> str:
        """Return a text unchanged; it is tokenised with its batch."""
        return text

    def check_files(self) -> None:
        """Check that the tokenizer is there."""
        for file in TOKENIZERS:
            with suppress(OSError):
                checkpoint_file(self.name, file)
                return
        _ = self.tokenizer  # another kind of file, or an error that says what is missing

    def load(self) -> torch.nn.Module:
        """Load the model."""
        return self.load_from_transformers(self.model_class, self.options, self.optional_weights)

    def release(self) -> None:
        """Drop model and tokenizer from memory until something has to be encoded again."""
        super().release()
        self.__dict__.pop("tokenizer", None)

    def compute_fingerprint(self) -> str:
        """Return the fingerprint of the model's weights."""
        return fingerprint(self.model.state_dict())

    def states(self, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (M, L, D) states and (M, L) mask of the tokens to average over."""
        raise NotImplementedError

    @torch.inference_mode()
    def encode(self, prepared: Sequence[str]) -> torch.Tensor:
        """Return (M, D) float32 L2-normalised rows of M texts, which may be empty, on the CPU."""
        device = self.place_model()
        tokens = self.tokenize(prepared, padding=True, return_tensors="pt").to(device)
        return normalised(mean_over_positions(*self.states(tokens)))


class XLMRobertaEmbeddingEncoder(TextEncoder):
    """Embeds texts as Oh et al. (ICML 2025) do.

    The embedding layer's output (word, position and token type, layer-normalised), first token dropped, mean over the
    remaining tokens, L2-normalised; texts are truncated at 512 tokens. The 768 MB word table stays mapped from its
    file, so only the rows of words that occur are read. It runs on the CPU whatever the device: reading those rows is
    most of its work.
    """

    kinds = ("xlm-roberta",)
    pooling = "embedding-mean"

    @cached_property
    def _weights(self) -> list[torch.Tensor]:
        weights = self.checkpoint.select(("roberta.", "xlm-roberta.", ""), XLM_R_WEIGHTS)
        return [weights[name] for name in XLM_R_WEIGHTS]

    def compute_fingerprint(self) -> str:
        """Return the fingerprint of the embedding layer's weights."""
        return fingerprint(self.checkpoint.select(("roberta.", "xlm-roberta.", ""), XLM_R_WEIGHTS))

    def release(self) -> None:
        """Drop tokenizer and mapped weights from memory until something has to be encoded again."""
        super().release()
        self.__dict__.pop("_weights", None)

    def to(self, device: torch.device) -> XLMRobertaEmbeddingEncoder:
        """Stay on the CPU."""
        return self

    @torch.inference_mode()
    def encode(self, prepared: Sequence[str]) -> torch.Tensor:
        """Return (M, D) float32 L2-normalised rows of M texts, which may be empty, on the CPU."""
        words, positions, types, scale, shift = self._weights
        padding = int(self.checkpoint.config.get("pad_token_id", 1))
        epsilon = float(self.checkpoint.config.get("layer_norm_eps", 1e-5))
        rows = []
        for ids in self.tokenize(prepared)["input_ids"]:
            # As XLM-R counts: positions follow the padding token's id, and a literal <pad> in a text takes none.
            real = (torch.tensor(ids) != padding).long()
            places = (real.cumsum(0) * real + padding)[1:]  # the first token is dropped
            tokens = torch.tensor(ids[1:])
            states = embedding(tokens, words).float() + positions[places].float() + types[0].float()
            states = layer_norm(states, states.shape[-1:], scale.float(), shift.float(), epsilon)
            rows.append(states.sum(dim=0, dtype=torch.float64) / max(1, len(tokens)))
        return normalised(torch.stack(rows))


class MeanPoolingEncoder(TextEncoder):
    """Embeds texts by the mean of the last layer's states over all tokens but padding, as most sentence encoders do."""

    kinds = ("mean",)
    model_class = "AutoModel"
    pooling = "mean"
    optional_weights = ("pooler",)

    def states(self, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (M, L, D) last hidden states and their mask."""
        return self.model(**tokens).last_hidden_state, tokens["attention_mask"]
