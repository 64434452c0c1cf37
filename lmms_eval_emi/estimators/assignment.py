"""The training rows of an estimator and their folds, recognised by ids and images."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping

import torch

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.errors import InputError

SEEN = "seen."  # before the names of its tensors in a file
UNSEEN = -1


def row_to_keys(id: Hashable | None, group: Hashable | None) -> list[int]:
    """Return the keys of a row: its image and its id, each as a signed 64-bit hash."""
    found = []
    for kind, value in (("image", group), ("row", id)):
        if value is not None:
            digest = hashlib.blake2b(f"{kind} {value!r}".encode(), digest_size=8).digest()
            found.append(int.from_bytes(digest, "little", signed=True))
    return found


class Assignment:
    """The fold of each row of the training data.

    Args:
        folds: fold by key, as :func:`row_to_keys` gives keys.
    """

    def __init__(self, folds: Mapping[int, int]) -> None:
        self.folds = dict(folds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Assignment) and self.folds == other.folds

    def of(self, embeddings: Embeddings) -> torch.Tensor:
        """Return (N,) fold of each row, on the device of the rows; -1 for rows that were not among the training data."""
        ids = embeddings.ids if embeddings.ids is not None else [None] * embeddings.n
        groups = embeddings.groups if embeddings.groups is not None else [None] * embeddings.n
        found = [self._fold(row_to_keys(id, group)) for id, group in zip(ids, groups, strict=True)]
        return torch.tensor(found, device=embeddings.t.device)

    def _fold(self, keys: Iterable[int]) -> int:
        return next((self.folds[key] for key in keys if key in self.folds), UNSEEN)

    def to_state(self) -> dict[str, torch.Tensor]:
        """Return the assignment as tensors for a file."""
        keys = sorted(self.folds)
        return {
            f"{SEEN}keys": torch.tensor(keys, dtype=torch.int64),
            f"{SEEN}folds": torch.tensor([self.folds[key] for key in keys], dtype=torch.int16),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> Assignment | None:
        """Make the assignment from the tensors of a file; return ``None`` if it has none.

        Raises:
            ValueError: a tensor is missing, or their sizes differ.
        """
        if not state:
            return None
        keys, folds = state.get(f"{SEEN}keys"), state.get(f"{SEEN}folds")
        if keys is None or folds is None or keys.shape != folds.shape or keys.ndim != 1:
            raise InputError(f"estimator: expected {SEEN}keys and {SEEN}folds of one length, got {', '.join(state)}.")
        return cls(dict(zip(keys.tolist(), folds.tolist(), strict=True)))
