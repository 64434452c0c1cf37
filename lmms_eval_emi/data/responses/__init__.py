"""Existing responses: which files hold them, and what is in them. One module for each file format.

A format is a module with the functions of :class:`lmms_eval_emi.data.responses.base.Format`, registered
under the entry-point group ``lmms_eval_emi.responses``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from lmms_eval_emi.data.responses import llava
from lmms_eval_emi.data.responses.base import Format, ModelResponses, SplitResponses, by_model, first_record, rename
from lmms_eval_emi.data.rows import check_place
from lmms_eval_emi.data.study import Study
from lmms_eval_emi.errors import ResponsesError

__all__ = [
    "Format",
    "ModelResponses",
    "ResponsesError",
    "SplitResponses",
    "choose_models",
    "expected_files",
    "find_responses",
    "read_responses",
    "responses_of_study",
]

GROUP = "lmms_eval_emi.responses"
ALL = "all"


def find_responses(folder: Path, study: Study) -> list[ModelResponses]:
    """Return the responses of each model in a folder: a harness run's samples, or LLaVA's response files.

    Args:
        folder: the output folder of a harness run or a folder below it, or a folder of response files.
        study: study whose splits are looked for.

    Raises:
        ResponsesError: the folder is not there or has no such files, or one that cannot be read.
    """
    if not folder.is_dir():
        state = "a file" if folder.exists() else "not there"
        raise ResponsesError(f"responses: expected a folder of response files, got {folder}, which is {state}.")
    found = (reader.find_models(folder, study) for reader in formats())
    return _told_apart(next(models for models in found if models), folder)


def _told_apart(models: list[ModelResponses], folder: Path) -> list[ModelResponses]:
    """Return the models; those of one name, such as one model in two experiments, are called by their folders."""
    counts = Counter(entry.model for entry in models)
    return [
        entry
        if counts[entry.model] == 1
        else replace(entry, model=str(next(iter(entry.splits.values())).path.parent.relative_to(folder)))
        for entry in models
    ]


def responses_of_study(study: Study, images: Path | None = None) -> list[ModelResponses]:
    """Return the responses in the files that a study file names itself, by model.

    Args:
        study: the study.
        images: another folder that the study may name, as the setting ``images``.

    Raises:
        ResponsesError: the study names none, or one that cannot be read.
        StudyError: a file lies outside the study's folder.
    """
    files = {name: path for name in study.splits if (path := study.response_file(name))}
    if not files:
        raise ResponsesError(
            f"{study.source}: no split names its responses. Add responses: FILE.jsonl to the splits, or give a folder with --responses."
        )
    return by_model({name: check_place(study, path, images) for name, path in files.items()}, read_responses)


def choose_models(
    found: Mapping[str, Sequence[ModelResponses]], wanted: Sequence[str] = (), renamed: Mapping[str, str] | None = None
) -> list[tuple[str, ModelResponses]]:
    """Return which models of some folders to use.

    Args:
        found: models by folder.
        wanted: names to take, wherever they are; ``all`` takes every one. Without any, each folder must
            hold one model.
        renamed: new name by old name. Models that get the same name become one.

    Returns:
        Pairs of folder and model.

    Raises:
        ResponsesError: a folder contains several models and none was chosen, or a wanted one is in no folder.
    """
    renamed = dict(renamed or {})
    known = {entry.model for models in found.values() for entry in models}
    unknown = [old for old in renamed if old not in known]
    if unknown:
        raise ResponsesError(
            f"--model-name: expected one of {', '.join(sorted(map(str, known)))} before the =, got {unknown[0]}."
        )
    chosen: list[tuple[str, ModelResponses]] = []
    missing = set(wanted) - {ALL}
    for folder, models in found.items():
        models = rename(models, renamed) if renamed else models
        if not wanted and len(models) > 1:
            names = ", ".join(sorted(str(entry.model) for entry in models))
            raise ResponsesError(
                f"{folder}: responses of several models ({names}). Choose with --only-model NAME, or take every one with --only-model all."
            )
        for entry in models:
            names_of = {entry.model, *entry.aliases}
            if not wanted or ALL in wanted or names_of & set(wanted):
                chosen.append((folder, entry))
                missing -= {name for name in names_of if name}
    if missing:
        listed = "; ".join(
            f"{folder} has {', '.join(sorted(str(entry.model) for entry in models))}"
            for folder, models in found.items()
        )
        raise ResponsesError(
            f"--only-model: expected a model that is there, got {', '.join(sorted(missing))}. {listed}."
        )
    return chosen


def read_responses(path: Path) -> dict[str | None, SplitResponses]:
    """Read a response file of any known format; responses by model.

    Raises:
        ResponsesError: the file cannot be read at all.
    """
    record = first_record(path)
    readers = formats()
    return next((reader for reader in readers if reader.reads(record)), readers[-1]).read_file(path)


def expected_files(study: Study, split: str) -> str:
    """Return the accepted names of the response file of a split, for messages."""
    return " or ".join(reader.expected_file(study, split) for reader in reversed(formats()))


@lru_cache(maxsize=1)
def formats() -> tuple[Format, ...]:
    """Return the formats in the order in which they are tried; LLaVA's, the last, says what is wrong where none fits."""
    registered = {entry.name: entry for entry in entry_points(group=GROUP)}
    others = [entry.load() for name, entry in sorted(registered.items()) if name != "llava"]
    return (*others, llava)
