"""Public sets of captions with human scores, from which EMI and human judgement are compared with one command.

A set is a YAML file in ``slices/judge/human/``, or a file of the user's with the same fields.
"""

from __future__ import annotations

import ast
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lmms_eval_emi.data.rows import column_values, load_source, undecoded
from lmms_eval_emi.errors import InputError, StudyError
from lmms_eval_emi.scoring.agreement import OutsideScores, number_of_score
from lmms_eval_emi.scoring.flat import join_tables
from lmms_eval_emi.settings import Settings
from lmms_eval_emi.util.files import problems_of
from lmms_eval_emi.util.printing import shorten

if TYPE_CHECKING:
    import datasets

    from lmms_eval_emi.scoring.join import StudySamples


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SetColumns(_Strict):
    """Names of a dataset's columns.

    Attributes:
        image: image of the row; ``None`` for sets without images.
        response: text that people scored.
        reference: reference text, or a list of them, of which the first is used.
        score: human score of criteria that name no column; higher is better.
        question: question of the row; ``None`` where all rows share the question of the set.
    """

    image: str | None = "image"
    response: str
    reference: str
    score: str | None = None
    question: str | None = None


class Criterion(_Strict):
    """What people judged.

    Attributes:
        split: split of the dataset.
        score: column of the human score; ``None`` for the column that all criteria share.
    """

    split: str
    score: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_split(cls, given: Any) -> Any:
        """Take the name of a split alone as well."""
        return {"split": given} if isinstance(given, str) else given


class HumanSet(_Strict):
    """Rows with human scores.

    Attributes:
        name: name of the set.
        title: what it is, with its publication.
        licence: licence of the data, as published.
        path: hub name, folder or file of the dataset.
        config: configuration of the dataset.
        question: what every text answers, unless a column says it.
        columns: names of the columns.
        criteria: split by name of the criterion, or split and column of the score.
    """

    name: str = Field(pattern=r"^[\w-]+$")  # part of a file's name
    title: str
    licence: str = ""
    path: str
    config: str | None = None
    question: str = "Describe the image."
    columns: SetColumns
    criteria: dict[str, Criterion] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_scores(self) -> HumanSet:
        without = [name for name in self.criteria if self.score_column(name) is None]
        if without:
            raise ValueError(
                f"no column of scores for {', '.join(without)}: set columns.score, or score of a criterion"
            )
        return self

    def score_column(self, criterion: str) -> str | None:
        """Return the column that holds the human scores of a criterion."""
        return self.criteria[criterion].score or self.columns.score


def human_set_names() -> list[str]:
    """Return the names of the sets that come with the package."""
    folder = resources.files("lmms_eval_emi.slices.judge").joinpath("human")
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def load_human_set(source: str) -> HumanSet:
    """Read the description of a set.

    Args:
        source: name of a set of the package, or path of a YAML file with the fields of :class:`HumanSet`.

    Raises:
        InputError: there is no such set, or the file cannot be read.
    """
    bundled = source in human_set_names()
    path = (
        resources.files("lmms_eval_emi.slices.judge").joinpath("human", f"{source}.yaml") if bundled else Path(source)
    )
    try:
        return HumanSet.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeError, yaml.YAMLError, ValidationError) as error:
        reason = "; ".join(problems_of(error)) if isinstance(error, ValidationError) else error
        raise InputError(
            f"{source}: expected a set with human scores ({', '.join(human_set_names())}), or a YAML file that describes one: {reason}"
        ) from error


def read_human_set(
    source: HumanSet, settings: Settings, limit: int | None = None
) -> tuple[list[StudySamples], list[OutsideScores]]:
    """Read the rows of a set: each of its splits once, as a study of one split, and per criterion the human scores.

    Args:
        source: description of the set.
        settings: settings with the folder of images, and what to do with thoughts.
        limit: number of rows of each split; default: all.

    Raises:
        StudyError: the dataset cannot be read, lacks a split or a column, or has a score that is not a number.
    """
    splits = load_source(source.path, source.config)
    criteria_of: dict[str, list[str]] = {}
    for criterion, described in source.criteria.items():
        criteria_of.setdefault(described.split, []).append(criterion)
    entries, scores = [], []
    for split, criteria in criteria_of.items():
        if split not in splits:
            raise StudyError(
                f"{source.path}: expected the split {split}, which is missing; it has {', '.join(splits)}."
            )
        rows = splits[split]
        rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
        label = f"{source.path}, split {split}"
        name = shorten(criteria, 1)
        place = Path(f"{source.name}_{name}")
        entry = join_tables(source.name, place, {name: (place, _to_table(rows, source, label))}, settings)
        entries.append(entry)
        for criterion in criteria:
            human_scores = _scores(rows, str(source.score_column(criterion)), label)
            by_row = {str(number): (score, 1.0) for number, score in enumerate(human_scores) if score is not None}
            scores.append(OutsideScores(f"human {criterion}", {entry.study.id_split: by_row}, model=source.name))
    return entries, scores


def _to_table(rows: datasets.Dataset, source: HumanSet, label: str) -> datasets.Dataset:
    """Return rows with the columns ``id, question, response, reference, image``."""
    import datasets

    columns = source.columns
    _check_columns(rows, [name for key, name in columns if name and key != "score"], label)
    questions = column_values(rows, columns.question) if columns.question else [source.question] * len(rows)
    table = datasets.Dataset.from_dict(
        {
            "id": [str(number) for number in range(len(rows))],
            "question": questions,
            "response": column_values(rows, columns.response),
            "reference": [_first_reference(value) for value in column_values(rows, columns.reference)],
        }
    )
    if columns.image:
        images = undecoded(rows, columns.image).select_columns([columns.image])
        images = images if columns.image == "image" else images.rename_column(columns.image, "image")
        table = datasets.concatenate_datasets([table, images], axis=1)
    return table


def _scores(rows: datasets.Dataset, column: str, label: str) -> list[float | None]:
    """Return the human score of each row, ``None`` for a row without one."""
    _check_columns(rows, [column], label)
    try:
        return [number_of_score(value) for value in column_values(rows, column)]
    except ValueError as error:
        raise StudyError(f"{label}: {column}: {error}") from error


def _check_columns(rows: datasets.Dataset, wanted: list[str], label: str) -> None:
    missing = [name for name in wanted if name not in rows.column_names]
    if missing:
        raise StudyError(f"{label}: missing columns {', '.join(missing)}; it has {', '.join(rows.column_names)}.")


def _first_reference(value: Any) -> str | None:
    """Return a reference, or the first of a list, which a CSV file holds as text such as ``"['a', 'b']"``."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):  # a text that begins with a bracket
            return value
    return value if isinstance(value, str) else next(iter(value or ()), None)
