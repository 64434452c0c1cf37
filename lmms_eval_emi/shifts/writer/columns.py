"""The columns of the rows that a suite is made of."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.data.columns import (
    QUESTION_COLUMNS,
    REFERENCE_COLUMNS,
    count_distinct,
    find_id_column,
    find_image_columns,
)
from lmms_eval_emi.data.study import Columns
from lmms_eval_emi.errors import ShiftError

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


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
    found = next((name for name in ([given] if given else usual) if name in rows.column_names), None)
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
    column = given or next((name for name in ("image", *images) if name in rows.column_names), None)
    if column is not None and column not in images and not _may_hold_images(rows.features[column]):
        raise ShiftError(
            f"--image-column: expected a column with an image or the path of one in every row, {column} holds {rows.features[column]}."
        )
    return column


def _unique_column(rows: datasets.Dataset, given: str | None) -> str | None:
    """Return the column of ids: the given one, or one with a usual name and different values; ``None`` without one.

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
    """Return a name that no column has, the given one if it is free."""
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
