"""XLM-R's embedding layer: mean over a text's tokens, without any transformer layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lmms_eval_emi.encoders.base import check_loaded, fingerprint, place, quiet_transformers, unavailable

if TYPE_CHECKING:
    from transformers import XLMRobertaModel

MAX_TOKENS = 512


class XLMRobertaEmbeddingEncoder:
    """Embeds texts as Oh et al. (ICML 2025) do.

    The embedding layer's output (word, position and token type, layer-normalised), first token
    dropped, mean over the remaining non-padding tokens, L2-normalised; texts are truncated at 512
    tokens. Of the checkpoint the transformer layers are not read.

    Args:
        name: hub name or folder of an XLM-R checkpoint with its tokenizer.
        device: where to run.

    Raises:
        EncoderUnavailable: the checkpoint is not here and cannot be fetched, or lacks weights.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoTokenizer, XLMRobertaModel

        self.name = name
        try:
            with quiet_transformers():
                self.tokenizer = AutoTokenizer.from_pretrained(name)
                model, info = XLMRobertaModel.from_pretrained(
                    name, num_hidden_layers=0, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
                )
        except (OSError, ValueError) as error:
            raise unavailable(name, "text encoder", "LMMS_EVAL_EMI_TEXT_ENCODER", error) from error
        check_loaded(name, info["missing_keys"])
        self.model: XLMRobertaModel = model.eval()
        self._fingerprint = fingerprint(model)
        self.device = place(model, name, device)

    @property
    def signature(self) -> str:
        """Name, fingerprint of the weights, and pooling."""
        return f"{self.name}#{self._fingerprint}/embedding-mean"

    def to(self, device: torch.device) -> XLMRobertaEmbeddingEncoder:
        """Move to a device."""
        self.device = place(self.model, self.name, device)
        return self

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """(M, D) float32 L2-normalised rows of M texts, which may be empty, on the CPU."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        states = self.model.embeddings(input_ids=tokens["input_ids"])[:, 1:]
        mask = tokens["attention_mask"][:, 1:, None]
        if self.device.type != "mps":
            states = states.double()
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=1).float().cpu()
