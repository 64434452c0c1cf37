"""Results as they lie in files: one way to read them, which checks them and says what is wrong where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmms_eval_emi.data.study import Shift
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.scoring.result import FORMAT_VERSION
from lmms_eval_emi.util.files import newer_version, read_json

Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
SHOWN = 3  # problems that a message lists


class _Plain(BaseModel):
    """Numbers are finite numbers and no texts; keys of later versions are left alone."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)


class StoredShift(Shift):
    """A shift as results have it."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class StoredSplit(_Plain):
    """Scores of one split, as far as the file has them."""

    modality: str = "id"
    shifts: list[StoredShift] = []
    variant_of: str | None = None
    n: int | None = Field(None, ge=0)
    images: int | None = Field(None, ge=0)
    emi: float
    emi_stderr: float | None = None
    emid: float | None = None
    emid_stderr: float | None = None
    emid_ci95: Interval | None = None
    emid_p_adjusted: float | None = None
    verdict: str | None = None
    emid_bound: float | None = None
    jsd_v: float | None = None
    jsd_t: float | None = None
    jsd_id_response: float | None = None
    jsd_ood_response: float | None = None
    jsd_v_floor: float | None = None
    jsd_t_floor: float | None = None
    jsd_id_response_floor: float | None = None
    jsd_ood_response_floor: float | None = None


class StoredFit(_Plain):
    """Whether the estimator is fit for the data."""

    verdict: str = "unknown"
    far_splits: list[str] = []


class StoredEntry(_Plain):
    """The results of one model in one study.

    Attributes:
        raw: the entry as the file has it.
    """

    format_version: int = 1
    signature: str
    model: str
    shift: str
    title: str = ""
    id_split: str
    unit: str = "nats"
    settings: dict[str, Any] = {}
    splits: dict[str, StoredSplit]
    estimator_fit: StoredFit = StoredFit()
    notes: dict[str, list[str]] = {}
    left_out: dict[str, list[str]] = {}
    raw: dict[str, Any] = Field({}, exclude=True)


class StoredResponder(_Plain):
    """What an audit found of one responder."""

    emi: float
    emi_stderr: float | None = None
    told_from_references: bool | None = None


class StoredFinding(_Plain):
    """What an audit found of one estimator with one pair of encoders."""

    encoders: str
    estimator: str
    unit: str = "nats"
    responders: dict[str, StoredResponder]
    not_noticed: list[str] = []
    preferred: list[str] = []


class StoredAudit(_Plain):
    """What ``lmms-eval-emi audit`` wrote."""

    format_version: int = 1
    study: str
    split: str
    findings: list[StoredFinding]


class StoredPoint(_Plain):
    """One split beside a score."""

    split: str
    score: float
    loss: float | None = None
    emi: float
    emid: float | None = None
    index: float | None = None
    cosine: float | None = None


class StoredCorrelation(_Plain):
    """A correlation with its interval."""

    value: float
    ci95: Interval | None = None


class StoredAgreement(_Plain):
    """What ``lmms-eval-emi agreement`` found of one model and one score."""

    model: str
    study: str
    score: str
    points: list[StoredPoint]
    over_splits: dict[str, dict[str, StoredCorrelation | None]] = {}
    over_shifts: dict[str, dict[str, StoredCorrelation | None]] = {}
    findings: list[str] = []


class StoredAgreements(_Plain):
    """What ``lmms-eval-emi agreement`` wrote."""

    format_version: int = 1
    agreements: list[StoredAgreement]


def is_agreement(entry: Any) -> bool:
    """Whether JSON is meant to be of ``lmms-eval-emi agreement``."""
    return isinstance(entry, dict) and entry.get("kind") == "agreement"


def check_agreement(path: Path, entry: Mapping[str, Any]) -> StoredAgreements:
    """Agreements, checked.

    Raises:
        ResultsError: as :func:`check_audit`.
    """
    return _checked(StoredAgreements, path, entry, entry, "lmms-eval-emi agreement")


def is_audit(entry: Any) -> bool:
    """Whether JSON is meant to be an audit."""
    return isinstance(entry, dict) and {"findings", "split", "study"} <= entry.keys()


def check_audit(path: Path, entry: Mapping[str, Any]) -> StoredAudit:
    """An audit, checked.

    Raises:
        ResultsError: it is of a newer version, or damaged; with the places that are.
    """
    return _checked(StoredAudit, path, entry, entry, "lmms-eval-emi audit")


def read_entries(path: Path) -> list[Any]:
    """The entries of a file of results, unchecked.

    Raises:
        ResultsError: it cannot be read, or is no JSON.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: expected a JSON file of results: {error}") from error
    several = isinstance(content, dict) and isinstance(content.get("results"), list)
    return content["results"] if several else [content]


def is_entry(entry: Any) -> bool:
    """Whether an entry is meant to be one of ours."""
    return isinstance(entry, dict) and {"splits", "id_split", "signature"} <= entry.keys()


def check_entry(path: Path, entry: Mapping[str, Any]) -> StoredEntry:
    """An entry of ours, checked.

    Raises:
        ResultsError: it is of a newer version, or damaged; with the places that are.
    """
    return _checked(StoredEntry, path, entry, {**entry, "raw": dict(entry)}, "lmms-eval-emi score")


Model = TypeVar("Model", bound=_Plain)


def _checked(
    model: type[Model], path: Path, entry: Mapping[str, Any], content: Mapping[str, Any], command: str
) -> Model:
    version = entry.get("format_version", 1)
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT_VERSION:
        raise ResultsError(newer_version(path, version, FORMAT_VERSION))
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}, got {_shown(one['input'])}" for one in error.errors()
        ]
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ResultsError(
            f"{path}: expected results of {command}, got some that are damaged: {'; '.join(problems[:SHOWN])}{more}. Make them again."
        ) from error


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "an integer of more than 20 digits"
    return repr(value)[:60]
