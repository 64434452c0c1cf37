"""A sample: one row of a split, with the response of a model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lmms_eval_emi.data.images import DatasetImage, ImageSource
from lmms_eval_emi.errors import SampleError
from lmms_eval_emi.util.files import encodable

BYTE_ORDER_MARK = "\ufeff"
WHOLE_NUMBER = re.compile(r"-?\d+\.0+")
RowKey = tuple[str, str]  # return type of row_key


@dataclass(frozen=True)
class Sample:
    """One row of a split.

    Args:
        image: a Pillow image, encoded bytes, a path, or a cell of a dataset; ``None`` for text alone.
        question: as the model was asked, without any instruction about its response.
        response: response of the model.
        reference: what the response is compared with.
        id: identifies the row in its split.
        row: number of the row in its split, where it comes from a dataset.
        translation: the reference in the language of the response, where that is another one.

    Raises:
        SampleError: a field has another type.
    """

    image: ImageSource | None
    question: str
    response: str
    reference: str
    id: Any = None
    row: int | None = None
    translation: str | None = None

    def __post_init__(self) -> None:
        for name in ("question", "response", "reference"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise SampleError(f"row {self.id}: expected text in {name}, got {type(text).__name__}.")
            object.__setattr__(self, name, encodable(text))
        if self.image is not None and not isinstance(self.image, Image.Image | bytes | str | Path | DatasetImage):
            raise SampleError(
                f"row {self.id}: expected a Pillow image, encoded bytes or a path in image, got {type(self.image).__name__}. Convert with PIL.Image.fromarray or .open."
            )

    @property
    def key(self) -> RowKey:
        """Tells the row from all others of a study, and is the same for its shifted twins; see :func:`row_key`."""
        return row_key(self.id, self.reference)


def id_text(row_id: object) -> str:
    """Return a row's id as text; 3, "3", "3 ", 3.0 and "3.0", which pandas makes of it, are one, and so are Unicode's forms."""
    if isinstance(row_id, bytes):
        row_id = row_id.decode("utf-8", "replace")
    if isinstance(row_id, str):
        row_id = unicodedata.normalize("NFC", row_id).strip()
    if isinstance(row_id, float | np.floating) and float(row_id).is_integer():
        return str(int(row_id))
    if isinstance(row_id, str) and WHOLE_NUMBER.fullmatch(row_id):
        return row_id.partition(".")[0]
    return f"{row_id:d}" if type(row_id) is int and abs(row_id) < 10**1000 else str(row_id)


def row_key(row_id: object, reference: object) -> RowKey:
    """Return the key that a row shares with its shifted copies and with no other row: id and reference.

    Ids alone do not tell rows apart: question 7 of one image set is not question 7 of another. Space, line ends and
    Unicode forms, which programs change when they write a file, do not count.
    """
    return id_text(row_id), " ".join(unicodedata.normalize("NFC", str(reference)).strip(BYTE_ORDER_MARK).split())


def without_images(splits: Mapping[Any, Sequence[Sample]]) -> bool:
    """Return whether the samples of all splits are text alone."""
    return all(sample.image is None for samples in splits.values() for sample in samples)
