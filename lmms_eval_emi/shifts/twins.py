"""Shifted twins of any lmms-eval task, made row by row while the task runs, with nothing on disk.

    include: /path/to/mme.yaml
    task: mme_defocus_blur_3
    process_docs: !function lmms_eval_emi.shifts.twins.defocus_blur_3

Any name of a split that ``lmms-eval-emi shifts apply`` would write is such a function: ``defocus_blur_3``,
``keyboard_1``, ``defocus_blur_3_keyboard_1``. For other columns, seeds or options, :func:`twin` makes one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import xxhash

from lmms_eval_emi.data.columns import (
    QUESTION_COLUMNS,
    find_id_column,
    find_image_columns,
    find_question_column,
    holds_text,
)
from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.settings import Settings, load_settings
from lmms_eval_emi.shifts.apply import Recipe, Step, parse_steps
from lmms_eval_emi.shifts.operators import Family, ShiftOptions, operators

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)
ROW_COLUMN = "emi_shift_row"
IMAGE_COLUMN = "emi_shift_image"  # tells the images of rows apart in what a harness logs of a row
IMAGE_SUFFIX = ".emi.png"  # harnesses log values that look like names of images
MOST_HASHED = 16 * 2**30  # bytes of images; a dataset of more has no such column

# Where a question ends and its options or its closing instruction begin; both stay unchanged.
OPTIONS = re.compile(
    r"\s*\n\s*(?:options|choices)\s*:|\s*select from the following choices|\s+\(?A[.):]\s.*\s\(?B[.):]\s",
    re.IGNORECASE | re.DOTALL,
)
INSTRUCTION = re.compile(r"(?<=[?.!:\n])\s*(?:please\s+)?(?:answer|respond|reply)\b[^?]*$", re.IGNORECASE)

Columns = str | Sequence[str] | Callable[["datasets.Dataset"], Sequence[str]] | None


def split_question(text: str) -> tuple[str, str]:
    r"""Split a prompt into its question and the part that must stay unchanged: options and instructions for the answer.

    >>> split_question("Is it red? Please answer yes or no.")
    ('Is it red?', ' Please answer yes or no.')
    >>> split_question("Which is it?\nA. a cat\nB. a dog")
    ('Which is it?', '\nA. a cat\nB. a dog')
    """
    ends = [found.start() for found in (OPTIONS.search(text), INSTRUCTION.search(text)) if found and found.start()]
    end = min(ends, default=len(text))
    return text[:end], text[end:]


def twin(  # noqa: PLR0913
    *specifications: str,
    question: Columns = None,
    image: str | Sequence[str] | None = None,
    id: str | None = None,
    seed: int = 0,
    keep: Sequence[str] = (),
    process_docs: Callable[[datasets.Dataset], datasets.Dataset] | None = None,
    splits: Collection[str] = (),
    settings: Settings | None = None,
) -> Callable[[datasets.Dataset], datasets.Dataset]:
    """Return a ``process_docs`` hook that shifts the rows of a task as the harness reads them.

    A row that cannot be shifted is logged and left unchanged. So are, in a question, options that follow it in the
    same text and a closing instruction such as "Please answer yes or no."; see :func:`split_question`.

    Args:
        specifications: ``"defocus_blur:3"``, ``"keyboard:1"``; at most one visual and one textual.
        question: columns of text to shift, or a function that finds them; default: the first there is of
            question, prompt, query, instruction, problem and text.
        image: columns of images to shift; default: all that contain an image or a list of them.
        id: column that seeds a row; default: question_id, id, qid, index or data_id where its values differ from
            row to row, else the row's number.
        seed: seed of the study.
        keep: words that textual operators leave alone.
        process_docs: the task's own hook, which runs first.
        splits: splits of the dataset that are shifted, where it says which it is; default: all. Others, such as that of
            few-shot examples, stay unchanged.
        settings: default: those of the environment when the hook is called.

    Raises:
        ShiftError: an unknown operator or level, or one that lacks what it needs.
    """
    recipe = _to_recipe(specifications)

    def shifted_docs(dataset: datasets.Dataset) -> datasets.Dataset:
        split = str(dataset.split) if dataset.split else ""
        if process_docs:
            dataset = process_docs(dataset)
        if splits and split and split not in splits:
            return dataset
        images = _image_columns(dataset, image) if recipe.visual else []
        texts = _question_columns(dataset, question) if recipe.textual else []
        ids = _id_column(dataset, id)
        if ROW_COLUMN not in dataset.column_names:
            dataset = dataset.add_column(ROW_COLUMN, list(range(len(dataset))))
        if IMAGE_COLUMN not in dataset.column_names and (keys := _image_keys(dataset)):
            dataset = dataset.add_column(IMAGE_COLUMN, keys)
        options = ShiftOptions.from_settings(settings or load_settings(), keep=tuple(keep))
        return dataset.with_transform(_ShiftedRows(recipe, tuple(images), tuple(texts), ids, seed, options))

    shifted_docs.__name__ = recipe.name
    return shifted_docs


def _to_recipe(specifications: Sequence[str]) -> Recipe:
    """Return the recipe of at most one visual and one textual operator, each at one level.

    Raises:
        ShiftError: there are no or too many operators, or an operator or level is unknown.
    """
    steps: dict[Family, list[Step]] = {"visual": [], "text": []}
    for specification in specifications:
        name = specification.partition(":")[0].strip()
        family: Family = "visual" if name in operators("visual") else "text"
        found = parse_steps(family, specification)
        if len(found) != 1 or steps[family]:
            raise ShiftError(f"twin: expected one operator at one level a modality, got {', '.join(specifications)}.")
        steps[family] = found
    recipe = Recipe(visual=next(iter(steps["visual"]), None), textual=next(iter(steps["text"]), None))
    if not recipe.steps:
        raise ShiftError("twin: expected an operator, such as 'defocus_blur:3'.")
    return recipe


@dataclass(frozen=True)
class _ShiftedRows:
    """Shifts the rows of a batch as ``datasets`` hands them out."""

    recipe: Recipe
    images: tuple[str, ...]
    texts: tuple[str, ...]
    ids: str
    seed: int
    options: ShiftOptions

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = batch.get(self.ids) or batch[ROW_COLUMN]
        shifted = dict(batch)
        for columns, step in ((self.images, self.recipe.visual), (self.texts, self.recipe.textual)):
            for column in columns:
                if step and column in batch:  # the harness reads rows without their images, too
                    shifted[column] = [
                        self._shift(value, step, row) for value, row in zip(batch[column], rows, strict=True)
                    ]
        return shifted

    def _shift(self, value: Any, step: Step, row_id: object) -> Any:
        if value is None:
            return None
        if isinstance(value, list):
            return [self._shift(item, step, f"{row_id}/{place}") for place, item in enumerate(value)]
        rest = ""
        if isinstance(value, str):
            value, rest = split_question(value)
        shifted = step.apply_or_keep(
            value,
            lambda reason: _report(step.name, str(row_id), reason),
            seed=self.seed,
            row_id=row_id,
            options=self.options,
        )
        return shifted + rest if rest else shifted


@lru_cache(maxsize=100_000)
def _report(step: str, row_id: str, reason: str) -> None:
    """Say once that a row is left unchanged; the harness reads each row several times."""
    logger.warning("%s: row %s is left as it is: %s", step, row_id, reason)


def _image_keys(dataset: datasets.Dataset) -> list[str] | None:
    """Return a name for the images of each row that looks like that of a file, the same for the same images."""
    columns = find_image_columns(dataset, lists=True)
    if not columns:
        return None
    from datasets import Image, List

    if dataset.data.nbytes > MOST_HASHED:
        return None
    cells = dataset.select_columns(columns)
    for name in columns:
        kept = Image(decode=False)
        cells = cells.cast_column(name, kept if isinstance(dataset.features[name], Image) else List(kept))
    keys = []
    for table in cells.with_format("arrow").iter(batch_size=64):
        for row in zip(*(table.column(name).to_pylist() for name in columns), strict=True):
            digest = xxhash.xxh3_64()
            for cell in row:
                for item in cell if isinstance(cell, list) else [cell]:
                    digest.update((item or {}).get("bytes") or str((item or {}).get("path")).encode())
            keys.append(digest.hexdigest() + IMAGE_SUFFIX)
    return keys


def _columns(given: Columns, dataset: datasets.Dataset) -> list[str] | None:
    if given is None:
        return None
    if callable(given):
        return list(given(dataset))
    names = [given] if isinstance(given, str) else list(given)
    missing = [name for name in names if name not in dataset.column_names]
    if missing:
        raise ShiftError(
            f"twin: expected the columns {', '.join(missing)}, which are missing; the task's rows have {', '.join(dataset.column_names)}."
        )
    return names


def _image_columns(dataset: datasets.Dataset, given: str | Sequence[str] | None) -> list[str]:
    found = _columns(given, dataset) or find_image_columns(dataset, lists=True)
    if not found:
        raise ShiftError(
            f"twin: expected a column of images to shift; the task's rows have {', '.join(dataset.column_names)}, and none holds images."
        )
    return found


def _question_columns(dataset: datasets.Dataset, given: Columns) -> list[str]:
    usual = find_question_column(dataset)
    found = _columns(given, dataset) or ([usual] if usual else [])
    if not found:
        raise ShiftError(
            f"twin: expected a column of {', '.join(QUESTION_COLUMNS)} to shift; the task's rows have {', '.join(dataset.column_names)}. "
            "Name it in a utils.py beside the task: process_docs = twin(..., question='...')."
        )
    for name in found:
        if not holds_text(dataset, name):
            raise ShiftError(f"twin: expected a column of texts to shift, {name} holds {dataset.features[name]}.")
    return found


def _id_column(dataset: datasets.Dataset, given: str | None) -> str:
    if given is not None:
        return (_columns(given, dataset) or [given])[0]
    return find_id_column(dataset) or ROW_COLUMN


def recipe_of(name: str) -> Recipe | None:
    """Return the recipe of a split's name, such as ``defocus_blur_3_keyboard_1``; ``None`` for names without numbers as levels."""
    visual, textual = _named_steps("visual"), _named_steps("text")
    if name in visual or name in textual:
        return Recipe(visual.get(name), textual.get(name))
    for image_part, step in visual.items():
        text_part = name.removeprefix(f"{image_part}_")
        if text_part != name and text_part in textual:
            return Recipe(step, textual[text_part])
    return None


def __getattr__(name: str) -> Callable[..., Any]:
    """Return the hook of a split's name, so that a task file can name it."""
    recipe = recipe_of(name) if not name.startswith("_") else None
    if recipe is None:
        raise AttributeError(
            f"{__name__} has no shift {name!r}; expected an operator and a level, such as defocus_blur_3, keyboard_1 or defocus_blur_3_keyboard_1. lmms-eval-emi shifts list shows them."
        )
    return twin(*map(specification_of, recipe.steps))


def specification_of(step: Step) -> str:
    """Return a step as :func:`twin` and the command line take it: ``defocus_blur:3``."""
    return step.operator.name if step.level is None else f"{step.operator.name}:{step.level}"


@lru_cache(maxsize=2)
def _named_steps(family: Family) -> dict[str, Step]:
    """Return all steps of a family by name, but those whose level is a word of the user's."""
    return {
        step.name: step
        for name, found in operators(family).items()
        if not found.level_name
        for step in parse_steps(family, name)
    }
