"""What every format of answers has in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class AnswersError(ValueError):
    """Answers are missing or cannot be read; the message says which file and line, and what to do."""


@dataclass(frozen=True)
class ModelAnswers:
    """Where the answers of one model are: its name, if the files' places tell it, and a file a split."""

    model: str | None
    files: dict[str, Path]


@dataclass(frozen=True)
class SplitAnswers:
    """What one file holds.

    Attributes:
        path: of the file.
        texts: answer by question id, as text, or by row number.
        keyed_by: ``id`` or ``row``.
        model: whose they are, if the file says so.
        problems: lines that cannot be used, with the reason; they are no part of ``texts``.
    """

    path: Path
    texts: dict[Any, str] = field(repr=False)
    keyed_by: str
    model: str | None = None
    problems: tuple[str, ...] = ()

    def by_row(self, ids: Sequence[object]) -> dict[int, str]:
        """Answers by row number, for a split whose rows have these ids."""
        keys = range(len(ids)) if self.keyed_by == "row" else [id_text(question_id) for question_id in ids]
        return {row: self.texts[key] for row, key in enumerate(keys) if key in self.texts}


def id_text(question_id: object) -> str:
    """A question id as text; 3, "3" and 3.0, which pandas makes of it, are one."""
    return str(int(question_id)) if isinstance(question_id, float) and question_id.is_integer() else str(question_id)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers.

    Raises:
        AnswersError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines() would cut an answer at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise AnswersError(f"{path}: expected a UTF-8 file of JSON lines: {error}") from error
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def first_record(path: Path) -> dict[str, Any]:
    """The first line of a file that is a JSON object, or an empty one."""
    for _, line in read_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        return record if isinstance(record, dict) else {}
    return {}


def collect(
    path: Path, key_name: str, text_name: str, text_of: Callable[[Any], Any] = lambda text: text
) -> tuple[dict[Any, str], list[dict[str, Any]], tuple[str, ...]]:
    """Answers by key, the records they come from, and the problems, of a file of JSON lines.

    Args:
        path: of the file.
        key_name: of the record's field that identifies its row.
        text_name: of the record's field with the answer.
        text_of: what to make of that field; anything but a text is a problem.
    """
    texts: dict[Any, str] = {}
    seen: dict[Any, int] = {}
    doubled: set[Any] = set()
    records, problems = [], []
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            hint = " The file seems to be one JSON array: write an object a line." if line.strip() == "[" else ""
            problems.append(f"{where}: not a line of JSON ({error}). Mend or remove the line.{hint}")
            continue
        text = text_of(record.get(text_name)) if isinstance(record, dict) and record.get(key_name) is not None else None
        if not isinstance(text, str):
            keys = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            problems.append(
                f"{where}: expected an object with {key_name} and {text_name} (a text), got {keys or 'an empty object'}. Mend or remove the line."
            )
            continue
        key = record[key_name] if key_name == "doc_id" else id_text(record[key_name])
        if key in seen:
            problems.append(f"{where}: {key_name} {key} stands in line {seen[key]} already. Keep one of the two.")
            doubled.add(key)
            continue
        seen[key] = number
        texts[key] = text
        records.append(record)
    for key in doubled:
        del texts[key]
    return texts, records, tuple(problems)
