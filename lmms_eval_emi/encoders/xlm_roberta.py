"""XLM-R's embedding layer: mean over a text's tokens, without any transformer layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch.nn.functional import embedding, layer_norm

from lmms_eval_emi.encoders.base import normalised
from lmms_eval_emi.encoders.checkpoint import fingerprint
from lmms_eval_emi.encoders.text import TextEncoder

WEIGHTS = (
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias",
)


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
        weights = self.checkpoint.select(("roberta.", "xlm-roberta.", ""), WEIGHTS)
        return [weights[name] for name in WEIGHTS]

    def compute_fingerprint(self) -> str:
        """Return the fingerprint of the embedding layer's weights."""
        return fingerprint(self.checkpoint.select(("roberta.", "xlm-roberta.", ""), WEIGHTS))

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
