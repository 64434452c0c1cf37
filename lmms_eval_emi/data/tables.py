"""Tables in text files, read as they are written: ids such as 000 and dates, ``NA`` and ``None`` stay texts.

The readers of datasets guess types, which makes the number 0 of the id 000, a time of a date, and nothing of ``NA``.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.errors import StudyError

if TYPE_CHECKING:
    import datasets

SEPARATORS = {".csv": ",", ".tsv": "\t"}
TEXT_FORMATS = {*SEPARATORS, ".json", ".jsonl"}
LONGEST_CELL = 2**31 - 1


def read_table(path: Path) -> datasets.Dataset:
    """Return rows of a ``.csv``, ``.tsv``, ``.json`` (an array of objects, or lines) or ``.jsonl`` file.

    Cells of a separated file are texts. Of JSON, a column whose values are of several types, or are integers beyond 64 bits,
    becomes texts as they are written.

    Raises:
        StudyError: the file cannot be read, or has no rows; the message names the line.
    """
    import datasets

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: expected a file in UTF-8: {error}") from error
    rows = _separated(path, text) if path.suffix in SEPARATORS else _json(path, text)
    if not rows:
        raise StudyError(f"{path}: expected rows, found none.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _of_one_type([row.get(name) for row in rows]) for name in names}
    try:
        return datasets.Dataset.from_dict(columns)
    except Exception as error:  # Arrow's own kinds
        raise StudyError(f"{path}: its columns cannot be read as a table: {error}") from error


def _separated(path: Path, text: str) -> list[dict[str, Any]]:
    csv.field_size_limit(LONGEST_CELL)  # an image as base64 text is long
    # Only line feeds and carriage returns end a line; str.splitlines would cut cells at U+2028 and form feeds as well.
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=SEPARATORS[path.suffix], strict=True)
    try:
        names = next(lines, [])
        rows = [(lines.line_num, cells) for cells in lines if cells]
    except csv.Error as error:
        raise StudyError(f"{path}:{lines.line_num}: expected separated values: {error}") from error
    for number, cells in rows:
        if len(cells) != len(names):
            raise StudyError(f"{path}:{number}: expected {len(names)} cells, as the first line has, got {len(cells)}.")
    return [dict(zip(names, cells, strict=True)) for _, cells in rows]


def _json(path: Path, text: str) -> list[dict[str, Any]]:
    whole = text.lstrip().startswith("[")
    rows: list[dict[str, Any]] = []
    lines = [(1, text)] if whole else [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            found = json.loads(line, parse_float=_Written)
        except (ValueError, RecursionError) as error:
            raise StudyError(f"{path}:{number}: expected JSON: {error}") from error
        rows += found if whole else [found]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise StudyError(f"{path}: expected objects, row {number} is a {type(row).__name__}.")
    return rows


def _of_one_type(values: list[Any]) -> list[Any]:
    """Return the values, as texts where some are texts and others are not."""
    kinds = {type(value) for value in values if value is not None}
    is_large = any(type(value) is int and abs(value) >= 2**63 for value in values)
    if len(kinds) < 2 and not is_large:
        return [float(value) if isinstance(value, _Written) else value for value in values]
    return [_text_of(value) for value in values]


class _Written(float):
    """A number of a JSON file that remembers how it is written, such as 0.50."""

    def __new__(cls, text: str) -> _Written:
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str


def _text_of(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.text if isinstance(value, _Written) else json.dumps(value)
