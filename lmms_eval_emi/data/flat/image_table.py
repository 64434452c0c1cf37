"""Images of VLMEvalKit's benchmark tables, joined with predictions by their index.

A prediction file has no images. They are in the benchmark's TSV file, as base64 text; a cell may name the index of another
row whose image it shares, or be a list with one image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.data.images import SHORTEST_BASE64
from lmms_eval_emi.data.sample import id_text
from lmms_eval_emi.data.tables import SEPARATORS, read_table
from lmms_eval_emi.errors import ResponsesError

if TYPE_CHECKING:
    import datasets


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
