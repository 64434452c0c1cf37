"""The card in an estimator's file: schema and validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
