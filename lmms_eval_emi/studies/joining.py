"""Answers that exist, joined with the rows of their study."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmms_eval_emi.answers import AnswersError, ModelAnswers, SplitAnswers, read_answers
from lmms_eval_emi.answers.base import id_text
from lmms_eval_emi.samples import Sample
from lmms_eval_emi.studies.catalogue import Study
from lmms_eval_emi.studies.rows import load_splits, to_samples

if TYPE_CHECKING:
    import datasets

SHOWN_PROBLEMS = 10
log = logging.getLogger("lmms_eval_emi")


@dataclass
class AnsweredStudy:
    """The samples of one model's answers in a study.

    Attributes:
        model: whose answers.
        samples: by split, in the study's order.
        left_out: what could not be used, by split, with the reasons.
    """

    model: str
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)


def join_answers(
    study: Study,
    models: Sequence[ModelAnswers],
    names: Iterable[str] | None = None,
    *,
    label: str,
    allow_missing: bool = False,
) -> list[AnsweredStudy]:
    """Join every model's answers with the rows of the study's splits, by question id or row number.

    Args:
        study: with the rows.
        models: with the answer files.
        names: of the splits; default: all.
        label: of where the answers come from, for errors, and the name of a model that has none.
        allow_missing: use what is there, and report the rest in ``left_out``.

    Raises:
        AnswersError: answers are missing or cannot be read, and that is not allowed; or none can be used.
        StudyError: a dataset is not there, or lacks a split or columns.
    """
    wanted = list(names or study.splits)
    joined = []
    for answers in models:
        answered = AnsweredStudy(answers.model or label)
        for name in wanted:
            if name not in answers.files:
                expected = " or ".join(
                    [f"{stem}.jsonl" for stem in study.split(name).answer_stems]
                    + [f"*_samples_{study.task_name(name)}.jsonl"]
                )
                answered.left_out[name] = [
                    f"{answers.model or label}: no answers of the split {name}. Expected {expected}."
                ]
        joined.append(answered)
    _refuse(joined, allow_missing)

    needed = [name for name in wanted if any(name in answers.files for answers in models)]
    rows = load_splits(study, needed)
    row_ids: dict[str, list[object]] = {
        name: list(split[study.split(name).dataset.columns.id]) for name, split in rows.items()
    }
    texts: list[dict[str, dict[int, str]]] = []
    for answers, answered in zip(models, joined, strict=True):
        files = {
            path: read_answers(path)
            for path in dict.fromkeys(answers.files[name] for name in needed if name in answers.files)
        }
        texts.append({})
        for name in needed:
            if name in answers.files:
                file = files[answers.files[name]]
                texts[-1][name], problems = _join(name, row_ids[name], file)
                if problems:
                    answered.left_out.setdefault(name, []).extend(problems)
        names_in_files = Counter(file.model for file in files.values() if file.model)
        if len(names_in_files) > 1:
            counts = ", ".join(f"{model} in {count}" for model, count in names_in_files.most_common())
            log.warning("%s: its files name several models as model_id (%s), and are scored together.", label, counts)
        if answers.model is None and names_in_files:
            answered.model = names_in_files.most_common(1)[0][0]
    _refuse(joined, allow_missing)
    for answered, by_split in zip(joined, texts, strict=True):
        answered.samples = _samples(study, rows, by_split)
        if not answered.samples:
            raise AnswersError(f"{answered.model}: none of the answers can be used.")
    return joined


def _samples(
    study: Study, rows: Mapping[str, datasets.Dataset], texts: Mapping[str, dict[int, str]]
) -> dict[str, list[Sample]]:
    return {
        name: to_samples(rows[name], study.split(name).dataset.columns, answers)
        for name, answers in texts.items()
        if answers
    }


def _join(name: str, ids: list[object], file: SplitAnswers) -> tuple[dict[int, str], list[str]]:
    """Answers by row, and what is wrong with them."""
    answers = file.by_row(ids)
    problems = list(file.problems)
    doubled = [key for key, count in Counter(map(id_text, ids)).items() if count > 1]
    if file.keyed_by == "id" and doubled:
        problems.append(
            f"{name}: question id {doubled[0]} stands in several rows of the dataset, so answers cannot be told apart by it. Name another id column."
        )
        return {}, problems
    missing = [str(key) for row, key in enumerate(ids) if row not in answers]
    if missing:
        shown = ", ".join(missing[:SHOWN_PROBLEMS]) + (", ..." if len(missing) > SHOWN_PROBLEMS else "")
        problems.append(
            f"{file.path}: {len(missing)} of the {len(ids)} questions of {name} have no usable answer: question_id {shown}. Add the answers."
        )
    return answers, problems


def _refuse(joined: Sequence[AnsweredStudy], allow_missing: bool) -> None:
    problems = list(
        dict.fromkeys(problem for answered in joined for reasons in answered.left_out.values() for problem in reasons)
    )
    if problems and not allow_missing:
        shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])
        more = f"\n  and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise AnswersError(
            f"the answers are not complete:\n{shown}{more}\nMend them, or score what is there with --allow-missing."
        )
