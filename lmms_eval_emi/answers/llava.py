"""LLaVA's answer files: JSON lines with ``question_id`` and ``text``, one file a split."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmms_eval_emi.answers.base import AnswersError, ModelAnswers, SplitAnswers, collect
from lmms_eval_emi.studies.catalogue import BUILT_IN, Study, load_study


def find_models(folder: Path, study: Study, model: str | None = None) -> list[ModelAnswers]:
    """The one model whose answers a folder holds; see :func:`find_answer_files`."""
    return [ModelAnswers(model, find_answer_files(folder, study, model))]


def reads(record: dict[str, Any]) -> bool:
    """Whether a record is one of LLaVA's."""
    return "question_id" in record and "text" in record


def read_file(path: Path) -> SplitAnswers:
    """Read one answer file.

    Raises:
        AnswersError: the file cannot be read at all.
    """
    texts, records, problems = collect(path, "question_id", "text")
    models = {str(record["model_id"]) for record in records if record.get("model_id")}
    return SplitAnswers(path, texts, "id", models.pop() if len(models) == 1 else None, problems)


def find_answer_files(folder: Path, study: Study, model: str | None = None) -> dict[str, Path]:
    """The answer file of every split that has one in ``folder``.

    A split's file is ``{split}.jsonl`` or ``{split}_{model}.jsonl``; a split whose catalogue entry
    names ``answers`` may take that file instead. A file belongs to the longest name that it begins
    with, so that ``llava_bench_coco_frost_1.jsonl`` is not the file of ``llava_bench_coco``.

    The files are those of one model: the ones without a model's name where there are such, else
    those of the only model.

    Args:
        folder: with the files.
        study: whose splits are looked for.
        model: take the files with this model's name, if any have one.

    Raises:
        AnswersError: the folder has no such file, or has those of several models.
    """
    stems = {
        stem
        for known in (study, *map(load_study, BUILT_IN))
        for split in known.splits.values()
        for stem in split.answer_stems
    }
    by_stem: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        owner = max(
            (stem for stem in stems if path.stem == stem or path.stem.startswith(f"{stem}_")), key=len, default=None
        )
        if owner:
            by_stem.setdefault(owner, {})[path.stem[len(owner) + 1 :]] = path
    wanted = {stem for split in study.splits.values() for stem in split.answer_stems}
    suffixes = {suffix for stem in wanted for suffix in by_stem.get(stem, {})}
    models = sorted(suffixes - {""})
    if model is not None and models:
        if model not in models:
            raise AnswersError(f"{folder}: expected answers of one of {', '.join(models)}, got --model {model}.")
        chosen = model
    elif "" in suffixes or not models:
        chosen = ""
    elif len(models) == 1:
        chosen = models[0]
    else:
        raise AnswersError(f"{folder}: answers of several models ({', '.join(models)}). Pick one with --model.")
    files = {}
    for name, split in study.splits.items():
        stem = next((stem for stem in split.answer_stems if chosen in by_stem.get(stem, {})), None)
        if stem:
            files[name] = by_stem[stem][chosen]
    if not files:
        present = [path.name for path in sorted(folder.glob("*"))]
        raise AnswersError(
            f"{folder}: expected answer files such as {study.id_split}.jsonl or {study.id_split}_{model or 'MODEL'}.jsonl, found {_listed(present) or 'nothing'}."
        )
    return files


def write_answer_file(path: Path, rows: Iterable[tuple[object, str, str]], model: str) -> None:
    """Write ``(question_id, prompt, text)`` rows in the format that :func:`read_file` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for question_id, prompt, text in rows:
            record = {"question_id": question_id, "prompt": prompt, "text": text, "model_id": model}
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
