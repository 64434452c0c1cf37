"""LLaVA's answer files: JSON lines with ``question_id`` and ``text``, one file a split."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lmms_eval_emi.studies.catalogue import BUILT_IN, Study, load_study


class AnswersError(ValueError):
    """Answers are missing or cannot be read; the message says which file and line, and what to do."""


@dataclass(frozen=True)
class AnswerFile:
    """What one file holds.

    Attributes:
        path: of the file.
        texts: answer by question id, which is compared as text.
        model: its ``model_id``, if all lines have the same.
        problems: lines that cannot be used, with the reason.
    """

    path: Path
    texts: dict[str, str] = field(repr=False)
    model: str | None
    problems: tuple[str, ...]


def read_answer_file(path: Path) -> AnswerFile:
    """Read one answer file. What cannot be used is among its ``problems``, and no part of ``texts``.

    Raises:
        AnswersError: the file cannot be read at all.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut an answer at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise AnswersError(f"{path}: expected a UTF-8 file of JSON lines: {error}") from error
    texts: dict[str, str] = {}
    seen: dict[str, int] = {}
    doubled: set[str] = set()
    models: set[str] = set()
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{where}: not a line of JSON ({error.msg}). Mend or remove the line.")
            continue
        if not isinstance(record, dict) or "question_id" not in record or not isinstance(record.get("text"), str):
            keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            problems.append(
                f"{where}: expected an object with question_id and text (a string), got {keys or 'an empty object'}. Mend or remove the line."
            )
            continue
        key = str(record["question_id"])
        if key in seen:
            problems.append(f"{where}: question_id {key} stands in line {seen[key]} already. Keep one of the two.")
            doubled.add(key)
            continue
        seen[key] = number
        texts[key] = record["text"]
        if record.get("model_id"):
            models.add(str(record["model_id"]))
    for key in doubled:
        del texts[key]
    return AnswerFile(path, texts, models.pop() if len(models) == 1 else None, tuple(problems))


def find_answer_files(folder: Path, study: Study, model: str | None = None) -> dict[str, Path]:
    """The answer file of every split that has one in ``folder``.

    A split's file is ``{split}.jsonl`` or ``{split}_{model}.jsonl``; a split whose catalogue entry
    names ``answers`` may take that file instead. A file belongs to the longest name that it begins
    with, so that ``llava_bench_coco_frost_1.jsonl`` is not the file of ``llava_bench_coco``.

    Args:
        folder: with the files.
        study: whose splits are looked for.
        model: which model's files to take where the folder has several.

    Raises:
        AnswersError: the folder is missing or has no such file, or a split has files of several models.
    """
    if not folder.is_dir():
        raise AnswersError(
            f"responses: expected a folder of answer files, got {folder}, which is {'a file' if folder.exists() else 'not there'}."
        )
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
    files = {}
    for name, split in study.splits.items():
        for stem in split.answer_stems:
            candidates = by_stem.get(stem, {})
            if model is not None and model in candidates:
                files[name] = candidates[model]
            elif "" in candidates:
                files[name] = candidates[""]
            elif model is None and len(candidates) == 1:
                files[name] = next(iter(candidates.values()))
            elif model is None and candidates:
                raise AnswersError(
                    f"{folder}: the split {name} has answers of several models ({', '.join(sorted(candidates))}). Pick one with --model."
                )
            if name in files:
                break
    if not files:
        present = [path.name for path in sorted(folder.glob("*"))]
        raise AnswersError(
            f"{folder}: expected answer files such as {study.id_split}.jsonl or {study.id_split}_{model or 'MODEL'}.jsonl, found {_listed(present) or 'nothing'}."
        )
    return files


def write_answer_file(path: Path, rows: Iterable[tuple[object, str, str]], model: str) -> None:
    """Write ``(question_id, prompt, text)`` rows in the format that :func:`read_answer_file` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for question_id, prompt, text in rows:
            record = {"question_id": question_id, "prompt": prompt, "text": text, "model_id": model}
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
