"""The rows of a study's splits, shifted in memory where the study says ``shifts_at_load``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lmms_eval_emi.data.rows import check_place, image_roots, load_stored_splits
from lmms_eval_emi.data.study import SplitSpec, Study
from lmms_eval_emi.errors import ShiftError, StudyError
from lmms_eval_emi.settings import Settings, load_settings
from lmms_eval_emi.shifts.apply import Recipe, Step, shift_rows
from lmms_eval_emi.shifts.operators import operator
from lmms_eval_emi.shifts.options import ShiftOptions

if TYPE_CHECKING:
    import datasets


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


def shift_at_load(study: Study, split: SplitSpec, rows: datasets.Dataset, settings: Settings) -> datasets.Dataset:
    """Return the rows of a split, shifted from those of the ID split if the study says so.

    Raises:
        StudyError: a shift of the split is not an operator, or the operator lacks what it needs.
    """
    made = split.dataset.shifts_at_load
    if made is None or not split.shifts:
        return rows
    try:
        steps = {}
        for shift in split.shifts:
            if made.only in (None, shift.modality):
                name, _, level = shift.name.partition(" ")
                steps[shift.modality] = Step(operator(shift.modality, name), shift.severity or level or None)
        synonyms = check_place(study, study.folder / made.synonyms, settings.images) if made.synonyms else None
        options = ShiftOptions.from_settings(settings, keep=made.keep, synonyms=synonyms)
        recipe = Recipe(visual=steps.get("visual"), textual=steps.get("text"))
        roots = image_roots(study, split.dataset, settings.images)
        return shift_rows(rows, recipe, split.dataset.columns, made.seed, options, roots)
    except ShiftError as error:
        raise StudyError(f"{study.source}: the split {split.name}: {error}") from error
