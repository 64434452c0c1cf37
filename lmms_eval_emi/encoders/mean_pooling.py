"""Sentence encoders: mean over a text's tokens of a transformer's last layer."""

from __future__ import annotations

from typing import Any

import torch

from lmms_eval_emi.encoders.text import TextEncoder


class MeanPoolingEncoder(TextEncoder):
    """Embeds texts by the mean of the last layer's states over all tokens but padding, as most sentence encoders do."""

    kinds = ("mean",)
    model_class = "AutoModel"
    pooling = "mean"
    optional_weights = ("pooler",)

    def states(self, tokens: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (M, L, D) last hidden states and their mask."""
        return self.model(**tokens).last_hidden_state, tokens["attention_mask"]
