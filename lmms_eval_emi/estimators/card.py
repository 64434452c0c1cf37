"""The training of an estimator as its file describes it: the card, and the rows that it was trained on with their folds."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.util.files import newer_version, parse_json

FORMAT_VERSION = 1  # version of estimator files; files without a version have the first
Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class _Encoders(_Part):
    vision: str | None = None
    text: str | None = None


class _Feature(_Part):
    """Random features of embeddings."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    bandwidth: Positive


class _Ranks(_Part):
    """Quantiles that scores are ranked by."""

    quantiles: Annotated[list[float], Field(min_length=2)]


class _Bases(_Part):
    inputs: _Feature
    references: _Feature


class _Sample(_Part):
    images: Annotated[int, Field(gt=0)]
    mean: dict[str, list[float] | float]
    limits: Annotated[dict[str, Positive], Field(min_length=1)]
    quantiles: Annotated[list[float], Field(min_length=2)]


class _Domain(_Part):
    """Training data that new data are compared with; empty for estimators without samples."""

    bases: _Bases | None = None
    samples: list[_Sample] | None = None


class _Card(_Part):
    encoders: _Encoders = _Encoders()
    domain: _Domain = _Domain()


def read_card(text: str, source: str) -> dict[str, Any]:
    """Return the card of an estimator.

    Args:
        text: JSON.
        source: source of the file, for messages.

    Raises:
        ValueError: the data are not a card; the message lists the fields that are wrong.
    """
    try:
        card = parse_json(text)
    except ValueError as error:
        raise InputError(f"estimator {source}: its card is not JSON: {error}. The file is damaged.") from error
    if not isinstance(card, dict):
        raise InputError(
            f"estimator {source}: expected a card that is a JSON object, got {type(card).__name__}. The file is damaged."
        )
    try:
        checked = _Card.model_validate({"encoders": card.get("encoders") or {}, "domain": card.get("domain") or {}})
        for name, base in ((card.get("domain") or {}).get("bases") or {}).items():
            if name not in _Bases.model_fields:
                _Ranks.model_validate(base)
    except (ValidationError, AttributeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(map(str, first["loc"])) or "domain"
        raise InputError(f"estimator {source}: its card is damaged: {where}: {first['msg']}.") from error
    samples = checked.domain.samples
    if samples is not None and (
        not samples or checked.domain.bases is None or any(set(sample.limits) - set(sample.mean) for sample in samples)
    ):
        raise InputError(f"estimator {source}: its card is damaged: domain: samples without what they are compared by.")
    return card


def check_version(metadata: Mapping[str, str], source: str) -> None:
    """Raise ``ValueError`` for a file of a newer version than this package reads."""
    version = metadata.get("format_version", "1")
    if not (version.isascii() and version.isdigit() and 1 <= int(version[:9]) <= FORMAT_VERSION):
        raise InputError(newer_version(f"estimator {source}", version[:20], FORMAT_VERSION))


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
