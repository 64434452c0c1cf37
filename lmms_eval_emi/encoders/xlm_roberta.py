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

    @cached_property
    def _positions(self) -> torch.Tensor:
        """(P, D) what a position adds to a word: its own row and that of the token type."""
        own = self._tensors
        return own["embeddings.position_embeddings.weight"] + own["embeddings.token_type_embeddings.weight"][0]

    def _rows(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        # Positions are counted from the padding token's number on; the first token's own is left out with it.
        first = int(self.checkpoint.config.get("pad_token_id", 1)) + 2
        lengths = [len(own) - 1 for own in tokens]
        distinct, inverse = np.unique(np.concatenate([own[1:] for own in tokens]), return_inverse=True)
        words = torch.from_numpy(self.checkpoint.rows(self._names[WORDS], distinct))
        states = words[torch.from_numpy(inverse.reshape(-1))]
        parts = states.split(lengths)
        for part in parts:
            part += self._positions[first : first + len(part)]
        states = layer_norm(
            states,
            states.shape[-1:],
            self._tensors["embeddings.LayerNorm.weight"],
            self._tensors["embeddings.LayerNorm.bias"],
            float(self.checkpoint.config.get("layer_norm_eps", 1e-5)),
        )
        sums = torch.stack([part.sum(dim=0, dtype=torch.float64) for part in states.split(lengths)])
        return normalize(sums / torch.tensor(lengths)[:, None].clamp_min(1), dim=1).float()
