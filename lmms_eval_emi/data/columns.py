"""Finding the columns of image, question, reference and id of a dataset by their usual names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

QUESTION_COLUMNS = ("question", "prompt", "query", "instruction", "problem", "text")
REFERENCE_COLUMNS = ("reference_answer", "answer", "reference", "gpt_answer")
ID_COLUMNS = ("question_id", "id", "qid", "index", "data_id")


def find_question_column(rows: datasets.Dataset) -> str | None:
    """Return the first usual name of a question that the rows have."""
    return _first(QUESTION_COLUMNS, rows)


def find_id_column(rows: datasets.Dataset) -> str | None:
    """Return the first usual name of an id whose values differ from row to row."""
    return next((name for name in ID_COLUMNS if name in rows.column_names and is_id(rows, name)), None)


def find_image_columns(rows: datasets.Dataset, *, lists: bool = False) -> list[str]:
    """Return all columns that contain an image, or, if wanted, a list of images."""
    from datasets import Image, List

    return [
        name
        for name, feature in rows.features.items()
        if isinstance(feature, Image) or (lists and isinstance(feature, List) and isinstance(feature.feature, Image))
    ]


def is_id(rows: datasets.Dataset, column: str) -> bool:
    """Return whether a column has a plain value of its own in every row."""
    from datasets import Value

    return isinstance(rows.features[column], Value) and count_distinct(rows, column) == len(rows)


def count_distinct(rows: datasets.Dataset, column: str) -> int:
    """Return the number of distinct values of a column."""
    if rows._indices is not None:  # a selection of rows is not in Arrow's table as such
        return len(set(map(str, rows.with_format(None)[column])))
    import pyarrow.compute

    return pyarrow.compute.count_distinct(rows.select_columns([column]).data.column(column), mode="all").as_py()


def holds_text(rows: datasets.Dataset, column: str) -> bool:
    """Return whether a column contains texts, or lists of texts."""
    feature = rows.features[column]
    return getattr(getattr(feature, "feature", feature), "dtype", None) in ("string", "large_string")


def _first(names: tuple[str, ...], rows: datasets.Dataset) -> str | None:
    return next((name for name in names if name in rows.column_names), None)
