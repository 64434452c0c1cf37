"""XLM-R's embedding layer: mean over a text's tokens, without any transformer layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import layer_norm, normalize

from lmms_eval_emi.encoders.base import unavailable
from lmms_eval_emi.encoders.checkpoint import Checkpoint, checkpoint_file, tensors_below
from lmms_eval_emi.encoders.text import MAX_TOKENS, TextEncoder
from lmms_eval_emi.util.files import read_json

AT_ONCE = 1024  # tokens, or those of one text more: 3 MB, which stay in the processor's caches
MOST_WORDS = 2**14  # whose rows are remembered: 50 MB
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
    loaded = (*TextEncoder.loaded, "_numbers", "_tensors", "_positions", "_words")

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
        tokens = self._numbers(list(prepared))
        rows, first, total = [], 0, 0
        for last, own in enumerate(tokens, 1):
            total += len(own)
            if total >= AT_ONCE or last == len(tokens):
                rows.append(self._rows(tokens[first:last]))
                first, total = last, 0
        return torch.cat(rows)

    @cached_property
    def _numbers(self) -> Callable[[list[str]], list[list[int]]]:
        """Gives the tokens of texts as numbers, by the tokenizer's own file, without transformers, where it has one."""
        try:
            path = checkpoint_file(self.name, "tokenizer.json")
        except OSError:
            tokenizer, most = self.tokenizer, self.max_tokens
            return lambda texts: tokenizer(texts, truncation=True, max_length=most)["input_ids"]
        from tokenizers import Tokenizer

        try:
            quick = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises no other class
            raise unavailable(self.name, self.what, self.variable, error) from error
        quick.no_padding()
        quick.enable_truncation(self.max_tokens)
        return lambda texts: [one.ids for one in quick.encode_batch_fast(texts)]

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are looked at."""
        try:
            found = read_json(checkpoint_file(self.name, "tokenizer_config.json"))
        except (OSError, ValueError):
            found = {}
        most = found.get("model_max_length") if isinstance(found, dict) else None
        return min(MAX_TOKENS, int(most)) if isinstance(most, int | float) and most > 0 else MAX_TOKENS

    @cached_property
    def _words(self) -> _Words:
        return _Words(self.checkpoint, self._names[WORDS])

    @cached_property
    def _positions(self) -> torch.Tensor:
        """(P, D) what a position adds to a word: its own row and that of the token type."""
        own = self._tensors
        return own["embeddings.position_embeddings.weight"] + own["embeddings.token_type_embeddings.weight"][0]

    def _rows(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        # Positions are counted from the padding token's number on; the first token's own is left out with it.
        first = int(self.checkpoint.config.get("pad_token_id", 1)) + 2
        lengths = [len(own) - 1 for own in tokens]
        states = self._words(np.concatenate([own[1:] for own in tokens]))
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


class _Words:
    """Rows of a word table, each read when it first occurs."""

    def __init__(self, checkpoint: Checkpoint, key: str) -> None:
        self.checkpoint, self.key = checkpoint, key
        count, width = checkpoint.shape(key)
        self.places = np.full(count, -1)  # of every word in the rows
        self.rows = torch.empty(min(MOST_WORDS, count), width)
        self.used = 0
        self.lock = threading.Lock()

    def __call__(self, numbers: np.ndarray) -> torch.Tensor:
        """(M, D) float32 rows of at most :data:`MOST_WORDS` words."""
        with self.lock:
            new = np.unique(numbers[self.places[numbers] < 0])
            if self.used + len(new) > len(self.rows):
                self.places[:], self.used = -1, 0
                new = np.unique(numbers)
            if len(new):
                self.places[new] = np.arange(self.used, self.used + len(new))
                self.rows[self.used : self.used + len(new)] = torch.from_numpy(self.checkpoint.rows(self.key, new))
                self.used += len(new)
            return self.rows[torch.from_numpy(self.places[numbers])]
