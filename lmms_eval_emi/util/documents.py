"""Base of everything that is written as JSON: one pydantic model is the object in memory, the file and its schema.

A field that is not set is left out of the file; one that is set to ``None`` is null there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.util.files import read_json, to_json, write_atomically

FORMAT_VERSION = 1  # version of all documents; readers refuse newer ones
SHOWN_PROBLEMS = 3


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Interval = Annotated[tuple[float, float], BeforeValidator(_to_tuple)]
Model = TypeVar("Model", bound="Plain")


class Plain(BaseModel):
    """Strict types; no NaN or infinity. Unknown keys, as of later versions, are ignored when a file is read."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore", frozen=True)

    def to_data(self) -> dict[str, Any]:
        """Return plain data for JSON: what is set, under the names that the file has."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)


class Document(Plain):
    """Base of the documents in JSON files; each subclass has its own value of ``kind``."""

    format_version: int = FORMAT_VERSION
    kind: str

    def to_data(self) -> dict[str, Any]:
        """Return plain data for JSON, with the version of the format and the kind of file first."""
        return {"format_version": self.format_version, "kind": self.kind} | super().to_data()

    def write(self, path: str | Path) -> Path:
        """Write the JSON file, all of it or nothing."""
        return write_atomically(Path(path), to_json(self.to_data()))


def parse_model(model: type[Model], content: Any, source: object, *, what: str, exact: bool = False) -> Model:
    """Return a model of JSON data.

    Args:
        model: model to make.
        content: content of the file, as plain data.
        source: name of the file, for messages.
        what: what the file should hold, such as ``results of lmms-eval-emi score``.
        exact: refuse unknown keys as well.

    Raises:
        ResultsError: the file is of a newer version, or damaged; with the places that are.
    """
    version = content.get("format_version", 1) if isinstance(content, Mapping) else 1
    if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version <= FORMAT_VERSION:
        raise ResultsError(
            f"{source}: its format_version is {version!r}, and this version of lmms_eval_emi reads up to {FORMAT_VERSION}. Update it: pip install --upgrade lmms_eval_emi"
        )
    try:
        return model.model_validate(content, extra="forbid" if exact else None)
    except (ValidationError, RecursionError) as error:
        problems = problems_of(error) if isinstance(error, ValidationError) else ["it is nested too deeply"]
        more = f" and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise ResultsError(
            f"{source}: expected {what}, got damaged content: {'; '.join(problems[:SHOWN_PROBLEMS])}{more}. Make the file again."
        ) from error


def read_document(path: Path, what: str) -> Any:
    """Return the plain data of a JSON file.

    Raises:
        ResultsError: the file cannot be read, or is not JSON.
    """
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: expected a JSON file with {what}: {error}") from error


def problems_of(error: ValidationError) -> list[str]:
    """Return the problems of invalid data with their places, a line for each."""
    return [
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}, got {_shown(problem['input'])}"
        for problem in error.errors()
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "an integer of more than 20 digits"
    return repr(value)[:60]
