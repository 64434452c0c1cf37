"""The rows of a study's splits, shifted in memory where the study says ``shifts_at_load``."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lmms_eval_emi.data.images import encoded_image, open_image
from lmms_eval_emi.data.rows import check_place, image_roots, load_stored_splits
from lmms_eval_emi.data.study import Columns, SplitSpec, Study
from lmms_eval_emi.errors import ImageError, ShiftError, StudyError
from lmms_eval_emi.settings import Settings, load_settings
from lmms_eval_emi.shifts.apply import Step
from lmms_eval_emi.shifts.operators import ShiftOptions, operator

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)


def load_splits(
    study: Study, names: Iterable[str] | None = None, settings: Settings | None = None
) -> dict[str, datasets.Dataset]:
    """Load the rows of a study's splits.

    Args:
        study: study whose splits.
        names: names of the splits; default: all.
        settings: settings with the folders of images and of the shifts' resources; default: those of the environment.

    Returns:
        Rows by split. A dataset that several splits share is loaded once.

    Raises:
        StudyError: a dataset is not there, lacks a split or columns, or cannot be shifted.
    """
    settings = settings or load_settings()
    stored = load_stored_splits(study, names, settings.images)
    return {name: shift_at_load(study, study.split(name), rows, settings) for name, rows in stored.items()}


def load_unshifted(
    study: Study, names: Iterable[str] | None = None, settings: Settings | None = None
) -> dict[str, datasets.Dataset]:
    """Load the rows of a study's splits as their datasets hold them, and shift one row of each split to see that it works.

    Args:
        study: study whose splits.
        names: names of the splits; default: all.
        settings: settings as for :func:`load_splits`.

    Returns:
        Rows by split, unshifted.

    Raises:
        StudyError: as for :func:`load_splits`.
    """
    settings = settings or load_settings()
    stored = load_stored_splits(study, names, settings.images)
    for name, rows in stored.items():
        shift_at_load(study, study.split(name), rows.take(min(1, len(rows))), settings)
    return stored


def shift_at_load(study: Study, split: SplitSpec, rows: datasets.Dataset, settings: Settings) -> datasets.Dataset:
    """Return the rows of a split, shifted from those of the ID split if the study says so.

    Raises:
        StudyError: a shift of the split is not an operator, or the operator lacks what it needs.
    """
    made = split.dataset.shifts_at_load
    if made is None or not split.shifts:
        return rows
    try:
        steps: dict[str, Step] = {}
        for shift in split.shifts:
            if made.only in (None, shift.modality):
                name, _, level = shift.name.partition(" ")
                steps[shift.modality] = Step(operator(shift.modality, name), shift.severity or level or None)
        synonyms = check_place(study, study.folder / made.synonyms, settings.images) if made.synonyms else None
        options = ShiftOptions.from_settings(settings, keep=made.keep, synonyms=synonyms)
        change = partial(
            _shift_row,
            steps=steps,
            columns=split.dataset.columns,
            roots=image_roots(study, split.dataset, settings.images),
            how={"seed": made.seed, "options": options},
        )
        return _map_rows(rows, change, split.dataset.columns.image)
    except ShiftError as error:
        raise StudyError(f"{study.source}: the split {split.name}: {error}") from error


def _map_rows(
    rows: datasets.Dataset, change: Callable[[dict[str, Any]], dict[str, Any]], image: str | None
) -> datasets.Dataset:
    """Return rows with changed columns, in memory; ``image`` is the column of images, which ``change`` gets undecoded."""
    from datasets import Image as ImageFeature

    if image is None:
        return rows.map(change, keep_in_memory=True, load_from_cache_file=False)
    was = rows.features[image]  # a column of paths becomes one of images
    changed = rows.cast_column(image, ImageFeature(decode=False)).map(
        change, keep_in_memory=True, load_from_cache_file=False
    )
    return changed.cast_column(image, was if isinstance(was, ImageFeature) else ImageFeature())


def _shift_row(
    row: dict[str, Any], steps: Mapping[str, Step], columns: Columns, roots: Sequence[Path], how: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the changed columns of one row; what cannot be shifted is logged and left unchanged."""
    row_id = row[columns.id]
    visual, textual = steps.get("visual"), steps.get("text")
    changed: dict[str, Any] = {}

    def report(step: Step) -> Callable[[str], object]:
        return lambda reason: logger.warning("%s: row %s is left unchanged: %s", step.name, row_id, reason)

    if columns.image and row[columns.image] is not None:
        try:
            content = encoded_image(row[columns.image], roots)
            changed[columns.image] = {"bytes": content, "path": None}  # wherever its path was relative to
            if visual:
                given = open_image(content)
                new = visual.apply_or_keep(given, report(visual), row_id=row_id, **how)
                if new is not given:
                    changed[columns.image] = {"bytes": _to_png(new), "path": None}
        except ImageError as error:
            if visual:
                report(visual)(str(error))
    if textual and row[columns.question] is not None:
        changed[columns.question] = textual.apply_or_keep(row[columns.question], report(textual), row_id=row_id, **how)
    return changed


def _to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
