"""XLM-R's embedding layer: mean over a text's tokens, without any transformer layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import layer_norm, normalize

from lmms_eval_emi.encoders.checkpoint import tensors_below
from lmms_eval_emi.encoders.text import TextEncoder

AT_ONCE = 256  # tokens, or those of one text more: 3 MB, which stay in the processor's caches
WORDS = "embeddings.word_embeddings.weight"
NAMES = (
    WORDS,
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias",
)


class XLMRobertaEmbeddingEncoder(TextEncoder):
    """Embeds texts as Oh et al. (ICML 2025) do.

    The embedding layer's output (word, position and token type, layer-normalised), first token
    dropped, mean over the remaining tokens, L2-normalised; texts are truncated at 512 tokens. Of the checkpoint
    only that layer is read, and of its word table, which is 768 MB, only the rows of words that occur. It runs on
    the CPU whatever the device, for reading the rows is most of its work.
    """

    pooling = "embedding-mean"

    @cached_property
    def _names(self) -> dict[str, str]:
        return tensors_below(self.checkpoint, ("roberta.", "xlm-roberta.", ""), NAMES)

    @cached_property
    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: self.checkpoint.tensor(key) for name, key in self._names.items() if name != WORDS}

    def identify(self) -> str:
        """Fingerprint of the layer's weights."""
        return self.checkpoint.fingerprint(self._names)

    def to(self, device: torch.device) -> XLMRobertaEmbeddingEncoder:
        """It stays on the CPU."""
        return self

    @torch.inference_mode()
    def encode(self, prepared: Sequence[str]) -> torch.Tensor:
        """(M, D) float32 L2-normalised rows of M texts, which may be empty, on the CPU.

        Tokens of all texts stand in one row without padding.
        """
        tokens = self.tokenizer(list(prepared), truncation=True, max_length=self.max_tokens)["input_ids"]
        rows, first, total = [], 0, 0
        for last, own in enumerate(tokens, 1):
            total += len(own)
            if total >= AT_ONCE or last == len(tokens):
                rows.append(self._rows(tokens[first:last]))
                first, total = last, 0
        return torch.cat(rows)

    def _rows(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        padding = int(self.checkpoint.config.get("pad_token_id", 1))
        lengths = np.array([len(own) - 1 for own in tokens])
        numbers = np.concatenate([np.asarray(own[1:], dtype=np.int64) for own in tokens])
        # Positions are counted from the padding token's number on; the first token's own is left out with it.
        positions = np.concatenate([np.arange(padding + 2, padding + 2 + length) for length in lengths])
        distinct, inverse = np.unique(numbers, return_inverse=True)
        words = torch.from_numpy(self.checkpoint.rows(self._names[WORDS], distinct))
        own = self._tensors
        states = words[torch.from_numpy(inverse.reshape(-1))]
        states += own["embeddings.token_type_embeddings.weight"][0]
        states += own["embeddings.position_embeddings.weight"][torch.from_numpy(positions)]
        states = layer_norm(
            states,
            states.shape[-1:],
            own["embeddings.LayerNorm.weight"],
            own["embeddings.LayerNorm.bias"],
            float(self.checkpoint.config.get("layer_norm_eps", 1e-5)),
        )
        owner = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        sums = torch.zeros(len(lengths), states.shape[1], dtype=torch.float64).index_add_(0, owner, states.double())
        return normalize(sums / torch.from_numpy(np.maximum(lengths, 1))[:, None], dim=1).float()
