"""Published robustness suites as data: one YAML file each, with its source, its licence and what is known of it.

A suite is a study (splits with reference responses, scored by EMI), twins (operators and tasks of lmms-eval, compared by the
tasks' own metrics), or domains (labelled images by domain, which become tasks). What a publication does not say and we
chose is under ``ours`` in its file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lmms_eval_emi.data.tables import read_table
from lmms_eval_emi.errors import InputError, StudyError
from lmms_eval_emi.util.printing import suggest

Kind = Literal["study", "twins", "domains"]
LLAVA_MED_QUESTIONS = "llava_med_eval_qa50_qa.jsonl"
IMAGE_MARK = "<image>"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Domains(_Strict):
    """Labelled images by domain.

    Attributes:
        path: hub name of a dataset with one row an image; ``None`` if there is none, and a folder
            ``DOMAIN/CLASS/file`` has to be given.
        config, split: configuration and split of the dataset.
        image, domain, label: its columns.
        names: names of the domains, the one in distribution first.
    """

    path: str | None = None
    config: str | None = None
    split: str = "train"
    image: str = "image"
    domain: str = "domain"
    label: str = "label"
    names: tuple[str, ...]


class Suite(_Strict):
    """A published suite.

    Attributes:
        name: name of the suite and of its file.
        title: what it is, in a line.
        source: publication.
        url: where it comes from.
        licence: licence of the data, as published.
        needs: what it takes and where that is had.
        published: what is published about it.
        ours: what we chose, for the publication does not say it.
        study: for the kind ``study``: the content of a study file.
        prepare: name of the function that makes the study's rows from published files, if needed.
        tasks, visual, textual: for the kind ``twins``: tasks of lmms-eval, and operators.
        domains: for the kind ``domains``.
    """

    name: str
    title: str
    source: str
    url: str
    licence: str
    needs: str
    published: str
    ours: str = ""
    study: dict[str, Any] | None = None
    prepare: str | None = None
    tasks: tuple[str, ...] = ()
    visual: tuple[str, ...] = ()
    textual: tuple[str, ...] = ()
    domains: Domains | None = Field(default=None)

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Suite:
        if sum((self.study is not None, bool(self.tasks), self.domains is not None)) != 1:
            raise InputError("expected one of study, tasks and domains")
        return self

    @property
    def kind(self) -> Kind:
        """Kind of the suite: ``study``, ``twins`` or ``domains``."""
        return "study" if self.study is not None else "twins" if self.tasks else "domains"


@lru_cache(maxsize=1)
def suite_names() -> tuple[str, ...]:
    """Return names of all suites."""
    folder = resources.files("lmms_eval_emi.data.suites")
    return tuple(sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml")))


@lru_cache(maxsize=32)
def load_suite(name: str, kind: Kind | None = None) -> Suite:
    """Return a suite by name.

    Args:
        name: name of the suite.
        kind: kind that it must be of.

    Raises:
        StudyError: there is no such suite, or its kind is another one.
    """
    if name not in suite_names():
        hint = suggest(name, suite_names())
        raise StudyError(f"suite: there is no suite {name!r}.{hint} The suites are {', '.join(suite_names())}.")
    text = resources.files("lmms_eval_emi.data.suites").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    try:
        found = Suite.model_validate({"name": name, **yaml.safe_load(text)})
    except ValidationError as error:
        raise StudyError(f"suite {name}: its file is not one of a suite: {error}") from error
    if kind is not None and found.kind != kind:
        raise StudyError(
            f"suite {name}: it is of the kind {found.kind}, and {kind} is expected here. lmms-eval-emi shifts suites {name} says how it is used."
        )
    return found


def llava_med(data: Path, output: Path) -> int:
    """Write LLaVA-Med's questions with their images as ``llava_med.parquet``; returns the number of rows.

    Args:
        data: folder that contains the questions, and the images in it or in ``images/``.
        output: folder to write to.

    Raises:
        StudyError: a file is missing, or is not what LLaVA-Med publishes.
    """
    import datasets

    path = data / LLAVA_MED_QUESTIONS
    if not path.is_file():
        raise StudyError(
            f"--data: expected {LLAVA_MED_QUESTIONS} in {data}, as LLaVA-Med's repository has it in data/eval."
        )
    table = read_table(path)
    if not {"question_id", "image", "text", "gpt4_answer"} <= set(table.column_names):
        raise StudyError(
            f"{path}: expected question_id, image, text and gpt4_answer; it has {', '.join(table.column_names)}."
        )
    rows, missing = [], []
    for record in table:
        name = str(record["image"])
        file = next((path for path in (data / name, data / "images" / name) if path.is_file()), None)
        if file is None or not file.resolve().is_relative_to(data.resolve()):
            missing.append(name)
            continue
        rows.append(
            {
                "question_id": int(record["question_id"]),
                "image": {"bytes": file.read_bytes(), "path": None},
                "question": str(record["text"]).removesuffix(IMAGE_MARK).strip(),
                "reference_answer": str(record["gpt4_answer"]),
            }
        )
    if missing:
        raise StudyError(
            f"--data: {len(missing)} of the images are not in {data} or {data / 'images'}, such as {missing[0]}. LLaVA-Med's repository says how to fetch them."
        )
    output.mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    made.to_parquet(str(output / "llava_med.parquet"))
    return len(rows)


PREPARE: dict[str, Callable[[Path, Path], int]] = {"llava_med": llava_med}
