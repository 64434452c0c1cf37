"""What ``lmms-eval --output_path DIR --log_samples`` wrote: ``{time}_samples_{task}.jsonl``, a folder a model.

A sample's ``doc_id`` is its row in the split. It is all that identifies the row after
``--predict_only``; the answer is in ``filtered_resps``.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from lmms_eval_emi.answers.base import AnswersError, ModelAnswers, SplitAnswers, collect
from lmms_eval_emi.studies.catalogue import Study

log = logging.getLogger("lmms_eval_emi")
FILE_NAME = re.compile(r"(?P<time>.+)_samples_(?P<task>.+)\.jsonl")


def find_models(folder: Path, study: Study, model: str | None = None) -> list[ModelAnswers]:
    """The samples files of every model below a folder, of its latest run of each task; none if there are none."""
    split_of = {study.task_name(split): split for split in study.splits}
    found: dict[Path, dict[str, list[Path]]] = {}
    for path in sorted(folder.rglob("*_samples_*.jsonl")):
        match = FILE_NAME.fullmatch(path.name)
        if match and match["task"] in split_of:
            found.setdefault(path.parent, {}).setdefault(split_of[match["task"]], []).append(path)
    models = []
    for parent, files in found.items():
        older = sum(len(paths) - 1 for paths in files.values())
        if older:
            log.info("%s: taking the latest of several runs; %d older samples files are passed over.", parent, older)
        models.append(ModelAnswers(parent.name, {split: paths[-1] for split, paths in files.items()}))
    if model is not None and models and model not in {answers.model for answers in models}:
        raise AnswersError(
            f"{folder}: expected answers of one of {', '.join(str(answers.model) for answers in models)}, got --model {model}."
        )
    return [answers for answers in models if model in (None, answers.model)]


def reads(record: dict[str, Any]) -> bool:
    """Whether a record is one of a samples file."""
    return "doc_id" in record and "filtered_resps" in record


def read_file(path: Path) -> SplitAnswers:
    """Read a samples file.

    Raises:
        AnswersError: the file cannot be read at all.
    """
    texts, _, problems = collect(path, "doc_id", "filtered_resps", _first_answer)
    return SplitAnswers(path, texts, "row", problems=problems)


def _first_answer(answer: Any) -> str | None:
    """The first of a sample's answers, stripped as the harness strips what a task is given."""
    while isinstance(answer, list):
        answer = answer[0] if answer else None
    return answer.strip() if isinstance(answer, str) else None
