"""XLM-R's embedding layer: mean over a text's tokens, without any transformer layer."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from lmms_eval_emi.encoders.text import TextEncoder


class XLMRobertaEmbeddingEncoder(TextEncoder):
    """Embeds texts as Oh et al. (ICML 2025) do.

    The embedding layer's output (word, position and token type, layer-normalised), first token
    dropped, mean over the remaining non-padding tokens, L2-normalised; texts are truncated at 512
    tokens. Of the checkpoint the transformer layers are not read.
    """

    model_class = "XLMRobertaModel"
    pooling = "embedding-mean"
    options: ClassVar[dict[str, Any]] = {"num_hidden_layers": 0, "add_pooling_layer": False}

    def states(self, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(M, L - 1, D) embeddings of all tokens but the first, and their mask."""
        return self.model.embeddings(input_ids=tokens["input_ids"])[:, 1:], tokens["attention_mask"][:, 1:]
