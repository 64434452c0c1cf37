"""Studies as data: a YAML file says which splits there are and what shifts each of them.

The two built-in families are such files beside this module, in the format that any other study uses.
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

BUILT_IN = ("natural", "synthetic")
Modality = Literal["id", "visual", "text", "joint"]
SHIFT_MODALITIES: tuple[Modality, ...] = ("visual", "text", "joint")


class StudyError(ValueError):
    """A study file is missing or does not say what a study must say."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(_Strict):
    """Names of the dataset's columns."""

    id: str = "question_id"
    image: str = "image"
    question: str = "question"
    reference: str = "reference_answer"


class DatasetSpec(_Strict):
    """Where the splits are: a hub name or folder for ``datasets.load_dataset``."""

    path: str
    columns: Columns = Columns()


class Shift(_Strict):
    """One shift of one modality."""

    modality: Literal["visual", "text"]
    name: str
    severity: int | None = None

    def __str__(self) -> str:
        return self.name if self.severity is None else f"{self.name} {self.severity}"


class SplitSpec(_Strict):
    """One split of a study."""

    name: str
    task: str = Field(pattern=r"^[a-z0-9_]+$")
    modality: Modality
    shifts: tuple[Shift, ...] = ()
    answers: str | None = None  # stem of the answer file, where several splits share one
    prompt_suffix: str = ""  # added to the question when a model is asked, not when it is embedded

    @model_validator(mode="after")
    def _modality_is_that_of_the_shifts(self) -> SplitSpec:
        modalities = {shift.modality for shift in self.shifts}
        expected = "id" if not modalities else "joint" if len(modalities) > 1 else modalities.pop()
        if self.modality != expected:
            raise ValueError(f"split {self.name}: its shifts make its modality {expected!r}, not {self.modality!r}")
        return self

    @property
    def answer_stems(self) -> tuple[str, ...]:
        """Stems of the files that may hold its answers, the split's own first."""
        return (self.name,) if self.answers is None else (self.name, self.answers)


class Study(_Strict):
    """A family of splits, one of which is in distribution."""

    name: str
    title: str
    group: str = Field(pattern=r"^[a-z0-9_]+$")
    dataset: DatasetSpec
    id_split: str
    splits: dict[str, SplitSpec]

    @model_validator(mode="before")
    @classmethod
    def _name_the_splits(cls, data: dict) -> dict:
        if isinstance(data, dict) and isinstance(data.get("splits"), dict):
            splits = {
                name: {"name": name, **fields} if isinstance(fields, dict) else fields
                for name, fields in data["splits"].items()
            }
            return {**data, "splits": splits}
        return data

    @model_validator(mode="after")
    def _has_one_id_split(self) -> Study:
        id_splits = [name for name, split in self.splits.items() if split.modality == "id"]
        if id_splits != [self.id_split]:
            raise ValueError(f"expected the one split without shifts to be id_split {self.id_split!r}, got {id_splits}")
        return self

    def split(self, name: str) -> SplitSpec:
        """A split by name.

        Raises:
            StudyError: there is none of that name.
        """
        if name not in self.splits:
            close = difflib.get_close_matches(name, self.splits, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise StudyError(
                f"split: the study {self.name} has no split {name!r}.{hint} It has {', '.join(self.splits)}."
            )
        return self.splits[name]

    def shifts(self, modality: str | None = None) -> list[str]:
        """Names of the shifted splits, in the file's order, of one modality or of all."""
        return [
            name for name, split in self.splits.items() if split.modality != "id" and modality in (None, split.modality)
        ]

    def task_name(self, split: str) -> str:
        """Name of the harness task of a split."""
        return f"{self.group}_{self.split(split).task}"


def load_study(name_or_path: str | Path) -> Study:
    """Load a built-in study by name, or a study file.

    Raises:
        StudyError: neither a built-in name nor a file, or the file is not a study.
    """
    return _load(str(name_or_path))


@lru_cache(maxsize=32)
def _load(source: str) -> Study:
    if source in BUILT_IN:
        text = resources.files("lmms_eval_emi.studies").joinpath(f"{source}.yaml").read_text(encoding="utf-8")
    elif Path(source).is_file():
        text = Path(source).read_text(encoding="utf-8")
    else:
        raise StudyError(
            f"study: expected {' or '.join(map(repr, BUILT_IN))} or the path of a study file, got {source!r}."
        )
    try:
        return Study.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise StudyError(f"{source}: not a YAML file: {error}") from error
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(map(str, problem['loc'])) or 'study'}: {problem['msg']}" for problem in error.errors()
        )
        raise StudyError(f"{source}: not a study:\n{problems}") from error
