"""Answers that exist: which files hold them, and what is in them. A module a file format.

A format is a module with ``find_models(folder, study, model)``, which gives the files of every
model in a folder, ``reads(record)``, which tells whether a line is of its format, and
``read_file(path)``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmms_eval_emi.answers.base import AnswersError, ModelAnswers, SplitAnswers, first_record
from lmms_eval_emi.studies.catalogue import Study

__all__ = ["AnswersError", "ModelAnswers", "SplitAnswers", "answers_of_study", "find_answers", "read_answers"]


def find_answers(folder: Path, study: Study, model: str | None = None) -> list[ModelAnswers]:
    """The answer files of every model in a folder: a harness run's samples, or LLaVA's answer files.

    Args:
        folder: ``--output_path`` of a harness run or a folder below it, or a folder of answer files.
        study: whose splits are looked for.
        model: take only this one.

    Raises:
        AnswersError: the folder is not there, has no such files, or does not say whose they are.
    """
    if not folder.is_dir():
        state = "a file" if folder.exists() else "not there"
        raise AnswersError(f"responses: expected a folder of answer files, got {folder}, which is {state}.")
    found = (reader.find_models(folder, study, model) for reader in _formats())
    return next(models for models in found if models)


def answers_of_study(study: Study, model: str | None = None) -> ModelAnswers:
    """The answer files that a study file names itself."""
    files = {name: path for name in study.splits if (path := study.answer_file(name))}
    if not files:
        raise AnswersError(
            f"{study.source}: no split names its answers. Add answers: FILE.jsonl to the splits, or give a folder with --responses."
        )
    return ModelAnswers(model, files)


def read_answers(path: Path) -> SplitAnswers:
    """Read an answer file of any known format.

    Raises:
        AnswersError: the file cannot be read at all.
    """
    record = first_record(path)
    readers = _formats()
    return next((reader for reader in readers if reader.reads(record)), readers[-1]).read_file(path)


def _formats() -> tuple[Any, ...]:
    """The formats in the order in which they are tried; the last says what is wrong where none fits."""
    from lmms_eval_emi.answers import llava, lmms_eval

    return lmms_eval, llava
