"""Files that contain questions, references and responses row by row: plain tables, and logs of other tools.

One module for each tool; :func:`read_rows` chooses by what a file is. All of them give rows under the same names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.data.columns import ID_COLUMNS, QUESTION_COLUMNS, REFERENCE_COLUMNS
from lmms_eval_emi.data.flat import inspect_ai, lm_eval, spreadsheet
from lmms_eval_emi.data.images import SHORTEST_BASE64
from lmms_eval_emi.data.rows import id_text
from lmms_eval_emi.data.tables import SEPARATORS, TEXT_FORMATS, read_table
from lmms_eval_emi.errors import ResponsesError

if TYPE_CHECKING:
    import datasets

SUFFIXES = (".parquet", ".arrow", *sorted(TEXT_FORMATS), *spreadsheet.SUFFIXES, *inspect_ai.SUFFIXES)
NAMES: dict[str, Sequence[str]] = {
    "image": ("image", "image_path", "picture", "img"),
    "question": QUESTION_COLUMNS,
    "response": ("response", "prediction", "pred", "output", "model_answer", "filtered_resps", "completion"),
    "reference": (*REFERENCE_COLUMNS, "target", "ground_truth", "gt"),
    "split": ("split", "shift", "subset", "condition"),
    "model": ("model", "model_id", "model_name"),
    "id": (*ID_COLUMNS, "sample_id", "doc_id"),
}
NEEDED = ("question", "response", "reference")


def read_rows(path: Path, split_by: str | None = None) -> datasets.Dataset:
    """Return the rows of a file, with the columns ``id, question, response, reference``, and ``image, split, model`` if known.

    Args:
        path: path of a parquet, arrow, csv, tsv, jsonl, json or xlsx file, or a log of inspect_ai.
        split_by: column, or for logs a path such as ``metadata.shift``, that names the split of a row; default: a column
            with a usual name, or else all rows are one split of the file's name.

    Raises:
        ResponsesError: the format is unknown, or a column is missing; the message lists the columns.
    """
    import datasets

    if not path.is_file():
        raise ResponsesError(f"{path}: expected a file with rows; it is not there.")
    if path.suffix.lower() not in SUFFIXES:
        raise ResponsesError(
            f"{path}: expected a table ({', '.join(SUFFIXES)}), got {path.suffix or 'no suffix'}. Pickles are not read, for reading one runs what it says."
        )
    if inspect_ai.reads(path):
        return _named(datasets.Dataset.from_list(inspect_ai.read(path, split_by)), path, "split" if split_by else None)
    if lm_eval.reads(path):
        return _named(datasets.Dataset.from_list(lm_eval.read(path)), path, None)
    if path.suffix.lower() in spreadsheet.SUFFIXES:
        return _named(datasets.Dataset.from_list(spreadsheet.read(path)), path, split_by)
    if path.suffix in TEXT_FORMATS:
        return _named(read_table(path), path, split_by)
    kind = "parquet" if path.suffix == ".parquet" else "arrow"
    rows = datasets.load_dataset(kind, data_files=str(path), split="train")
    return _named(rows, path, split_by)


def _named(rows: datasets.Dataset, path: Path, split_by: str | None) -> datasets.Dataset:
    """Return the rows under our names."""
    found = {ours: _column(rows, theirs) for ours, theirs in NAMES.items()}
    if split_by is not None:
        if split_by not in rows.column_names:
            raise ResponsesError(
                f"--split-by: expected a column of {path.name}, got {split_by!r}; it has {_listed(rows)}."
            )
        found["split"] = split_by
    missing = [name for name in NEEDED if found[name] is None]
    if missing:
        usual = "; ".join(f"{name}: {', '.join(NAMES[name])}" for name in missing)
        raise ResponsesError(f"{path}: expected columns for {', '.join(missing)} ({usual}); it has {_listed(rows)}.")
    kept = rows.select_columns(list(dict.fromkeys(column for column in found.values() if column)))
    for ours, column in found.items():
        if column and column != ours:
            kept = kept.remove_columns([ours]) if ours in kept.column_names else kept
            kept = kept.rename_column(column, ours)
    return kept


def _column(rows: datasets.Dataset, names: Sequence[str]) -> str | None:
    by_name: Mapping[str, str] = {name.lower(): name for name in reversed(rows.column_names)}
    return next((by_name[name] for name in names if name in by_name), None)


def _listed(rows: Any) -> str:
    return ", ".join(rows.column_names)


def is_image_table(path: Path | None) -> bool:
    """Return whether a path is a table of images and not a folder of them."""
    return path is not None and path.suffix.lower() in SEPARATORS and path.is_file()


def with_images_of(rows: datasets.Dataset, table: Path) -> datasets.Dataset:
    """Return rows with the images of a benchmark's table; rows that have images are returned unchanged.

    Args:
        rows: predictions with the column ``id``.
        table: ``.tsv`` or ``.csv`` file with the columns ``index`` and ``image``.

    Raises:
        ResponsesError: the table lacks a column, rows have no index, or an index or an image is missing.
    """
    if "image" in rows.column_names:
        return rows
    images = read_table(table)
    missing = {"index", "image"} - set(images.column_names)
    if missing:
        raise ResponsesError(
            f"--images {table}: expected the columns index and image, {', '.join(sorted(missing))} are missing; it has {', '.join(images.column_names)}."
        )
    if "id" not in rows.column_names:
        raise ResponsesError(f"--images {table}: expected predictions with an index, by which images are joined.")
    cells = dict(zip(map(id_text, images["index"]), images["image"], strict=True))
    return rows.add_column("image", [_image_of(id_text(row_id), cells, table) for row_id in rows["id"]])


def _image_of(index: str, cells: dict[str, Any], table: Path) -> str:
    """Return the base64 text of a row's image."""
    seen: set[str] = set()
    while index in cells and index not in seen:
        seen.add(index)
        cell = str(cells[index] or "").strip()
        if cell.startswith("["):
            try:
                listed = [str(item) for item in json.loads(cell.replace("'", '"'))]
            except ValueError:
                listed = []
            if len(listed) != 1:
                raise ResponsesError(f"--images {table}: index {index}: expected one image, got {len(listed)}.")
            cell = listed[0]
        if len(cell) >= SHORTEST_BASE64:
            return cell
        index = id_text(cell)
    raise ResponsesError(f"--images {table}: it has no image for the index {index!r}.")
