"""The columns of image, question, reference and id of a dataset: found by their usual names, or chosen and checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.data.study import Columns
from lmms_eval_emi.errors import ShiftError

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

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


def _first(names: Sequence[str], rows: datasets.Dataset) -> str | None:
    return next((name for name in names if name in rows.column_names), None)


def choose_columns(
    rows: datasets.Dataset, image: str | None, question: str | None, reference: str | None, id: str | None
) -> tuple[datasets.Dataset, Columns]:
    """Return the columns to use, where ``None`` means the usual names, and the rows with an id of each.

    Raises:
        ShiftError: a column is missing, or not of a kind that can be shifted.
    """
    from datasets import Value

    texts = {
        "--question-column": _pick(rows, question, QUESTION_COLUMNS, "--question-column"),
        "--reference-column": _pick(rows, reference, REFERENCE_COLUMNS, "--reference-column"),
    }
    for option, name in texts.items():
        feature = rows.features[name]
        if not isinstance(feature, Value):
            raise ShiftError(
                f"{option}: expected a column of texts, {name} holds {feature}. Name another, or write one text per row first."
            )
        if feature.dtype not in ("string", "large_string"):
            rows = rows.cast_column(name, Value("string"))
    column = _image_column(rows, image)
    id = _unique_column(rows, id)
    if id is None:
        id = free_name("row_id", rows)
        rows = rows.add_column(id, list(range(len(rows))))
    names = {"id": id, "question": texts["--question-column"], "reference": texts["--reference-column"]}
    # The loader of image folders takes columns of such names for paths of images.
    for name in rows.column_names:
        if name != column and name.endswith(("file_name", "file_names")):
            new = free_name(f"{name}_", rows)
            rows = rows.rename_column(name, new)
            names = {use: new if chosen == name else chosen for use, chosen in names.items()}
    return rows, Columns(image=column, **names)


def _pick(rows: datasets.Dataset, given: str | None, usual: Sequence[str], option: str) -> str:
    """Return the given column, or the first of the usual ones.

    Raises:
        ShiftError: the rows have none of them.
    """
    found = _first([given] if given else usual, rows)
    if found is None:
        raise ShiftError(
            f"{option}: expected a column {given or ' or '.join(usual)}; the rows have {', '.join(rows.column_names)}. Name one with {option}."
        )
    return found


def _image_column(rows: datasets.Dataset, given: str | None) -> str | None:
    """Return the column of images: the given one, ``image``, or the first with images; ``None`` for text alone.

    Raises:
        ShiftError: the given column is missing, or has no images and no paths.
    """
    if given == "none":
        return None
    images = find_image_columns(rows)
    if given is not None:
        _pick(rows, given, (), "--image-column")
    column = given or _first(("image", *images), rows)
    if column is not None and column not in images and not _may_hold_images(rows.features[column]):
        raise ShiftError(
            f"--image-column: expected a column with an image or the path of one in every row, {column} holds {rows.features[column]}."
        )
    return column


def _unique_column(rows: datasets.Dataset, given: str | None) -> str | None:
    """Return the column of ids: the given one, or one with a usual name and unique values; ``None`` if there is none.

    Raises:
        ShiftError: the given column is missing, or has a value twice.
    """
    if given is None:
        return find_id_column(rows)
    _pick(rows, given, (), "--id-column")
    different = count_distinct(rows, given)
    if different != len(rows):
        raise ShiftError(
            f"--id-column: expected different ids in all rows, {given} has {different} in {len(rows)} rows. Leave the option out to number the rows."
        )
    return given


def _may_hold_images(feature: Any) -> bool:
    """Return whether a column without the type of an image may hold some: bytes, paths, or objects with both."""
    if isinstance(feature, dict):
        return set(feature) <= {"bytes", "path"} and bool(feature)
    return getattr(feature, "dtype", None) in ("string", "large_string", "binary", "large_binary")


def free_name(name: str, rows: datasets.Dataset) -> str:
    """Return the given name if it is free, otherwise a variant that no column has."""
    return name if name not in rows.column_names else free_name(f"{name}_", rows)


def plain_rows(rows: datasets.Dataset, image: str | None) -> datasets.Dataset:
    """Return the rows with their image still encoded, and of the other columns those that a table of text can hold."""
    from datasets import Image as ImageFeature
    from datasets import List, Value

    def plain(feature: Any) -> bool:
        return (
            isinstance(feature, Value)
            or type(feature).__name__ == "ClassLabel"
            or (isinstance(feature, List) and plain(feature.feature))
        )

    if image and rows.features[image] not in (Value("string"), Value("large_string")):
        rows = rows.cast_column(image, ImageFeature(decode=False))
    dropped = [name for name, feature in rows.features.items() if name != image and not plain(feature)]
    if dropped:
        logger.info("left out of the suite: %s, which are no plain values", ", ".join(dropped))
        rows = rows.remove_columns(dropped)
    return rows
