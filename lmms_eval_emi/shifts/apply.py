"""Parsing and applying shifts: ``defocus_blur:1,3,5`` as steps, steps as splits, one image, one text, whole rows."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lmms_eval_emi.data.images import check_size, open_image, to_rgb
from lmms_eval_emi.data.study import Shift
from lmms_eval_emi.errors import EMIError, ImageError, ShiftError
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.shifts.operators import Family, Operator, RefusedError, ShiftOptions, operator, random_state
from lmms_eval_emi.util.files import encodable

if TYPE_CHECKING:
    pass

logger = logging.getLogger(__name__)
LONGEST_TEXT = 1_000_000
LONGEST_SIDE, MOST_PIXELS = 8192, 25_000_000  # operators need up to 100 bytes a pixel
ID_SPLIT = "clean"


@dataclass(frozen=True)
class Step:
    """An operator at a level."""

    operator: Operator
    level: int | str | None = None

    @property
    def name(self) -> str:
        """As in the names of splits: ``defocus_blur_3``."""
        return "_".join([self.operator.name] + ([_slug(str(self.level))] if self.level is not None else []))

    @property
    def task(self) -> str:
        """As in the names of tasks, which are of small ASCII letters."""
        name = self.name.lower()
        if name.isascii():
            return re.sub(r"[^a-z0-9]+", "_", name)
        return f"{self.operator.name}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    @property
    def shift(self) -> Shift:
        """As in a study file."""
        named = isinstance(self.level, str)
        return Shift(
            modality=self.operator.family,
            name=f"{self.operator.name} {self.level}" if named else self.operator.name,
            severity=self.level if isinstance(self.level, int) else None,
        )

    def apply_or_keep(
        self, value: Any, report: Callable[[str], object], *, seed: int, row_id: object, options: ShiftOptions
    ) -> Any:
        """Return a Pillow image or a text, shifted.

        If the operator refuses it, the reason is passed to ``report``, and the value returned unchanged.
        """
        shift: Callable[..., Any] = shift_image if self.operator.family == "visual" else shift_text
        try:
            return shift(value, self.operator.name, self.level, seed=seed, row_id=row_id, options=options)
        except RefusedError as reason:
            report(str(reason))
            return value


@dataclass(frozen=True)
class Recipe:
    """Steps that make a split: at most one for images and one for texts; without any, the ID split."""

    visual: Step | None = None
    textual: Step | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """Its steps, the visual one first."""
        return tuple(step for step in (self.visual, self.textual) if step)

    @property
    def name(self) -> str:
        """Name of the split."""
        return "_".join(step.name for step in self.steps) or ID_SPLIT

    @property
    def task(self) -> str:
        """Name of the split in the names of tasks."""
        return "_".join(step.task for step in self.steps) or ID_SPLIT


def parse_steps(family: Family, specification: str) -> list[Step]:
    """Return steps from ``name:level,level`` or ``name``, which is every level of the operator.

    Raises:
        ShiftError: no operator of the family, or a level that it lacks.
    """
    name, colon, levels = specification.partition(":")
    found = operator(family, name.strip())
    if not colon and found.levels:
        return [Step(found, level) for level in range(1, len(found.levels) + 1)]
    words = [word.strip() for word in levels.split(",")] if colon else [None]
    given = [int(word) if word and re.fullmatch(r"[0-9]+", word) else word for word in words]
    for level in given:
        found.check_level(level)
    return [Step(found, level) for level in dict.fromkeys(given)]


def recipes(visual: Sequence[Step], textual: Sequence[Step], joint: bool) -> list[Recipe]:
    """Return all splits of a suite: the ID split, every step by itself, and, if ``joint``, every pair.

    Raises:
        ShiftError: nothing to shift, or pairs wanted of one modality only, or two steps of one name.
    """
    if not visual and not textual:
        raise ShiftError(
            "expected --visual or --textual with at least one operator, got neither. lmms-eval-emi shifts list shows them."
        )
    if joint and not (visual and textual):
        raise ShiftError("--joint: expected --visual and --textual operators to pair, got only one of the two.")
    pairs = [Recipe(v, t) for v in visual for t in textual] if joint else []
    made = [Recipe(), *(Recipe(visual=step) for step in visual), *(Recipe(textual=step) for step in textual), *pairs]
    unique = {recipe.task: recipe for recipe in made}
    for recipe in made:
        if unique[recipe.task] != recipe:
            raise ShiftError(
                f"two shifts would have the same task name: {recipe.name} and {unique[recipe.task].name}; leave one out."
            )
    return list(unique.values())


def shift_image(
    image: Image.Image,
    operator_name: str,
    level: int = 3,
    *,
    seed: int = 0,
    row_id: object = 0,
    options: ShiftOptions | None = None,
) -> Image.Image:
    """Return an image of any mode, shifted.

    Args:
        image: image of any mode and of at most 8192 pixels a side; an alpha channel is dropped.
        operator_name: name such as ``defocus_blur``.
        level: severity, 1 to 5.
        seed: seed of the study.
        row_id: ID of the row; seed, operator and row id decide all randomness.
        options: where resources are; default: the settings.

    Returns:
        RGB image of the same size.

    Raises:
        ShiftError: an unknown operator or level, or something that it needs is missing.
        RefusedError: the image is too large or cannot be read.
    """
    found = operator("visual", operator_name)
    parameter = found.parameter(level)
    pixels = np.asarray(shiftable(image))
    shifted = _apply(
        found,
        pixels,
        parameter,
        random_state(seed, found.name, row_id),
        options or ShiftOptions.from_settings(load_settings()),
    )
    if shifted.dtype == np.uint8:
        return Image.fromarray(shifted)
    rounded = np.rint(shifted)
    return Image.fromarray(np.clip(rounded, 0, 255, out=rounded).astype(np.uint8))


def shiftable(image: Image.Image) -> Image.Image:
    """Return an image as operators take it: upright, RGB, and of at most 8192 pixels a side.

    Raises:
        RefusedError: the image is too large, or cannot be read.
    """
    try:
        check_size(image, MOST_PIXELS, LONGEST_SIDE)
        return to_rgb(open_image(image))
    except ImageError as error:
        raise RefusedError(str(error)) from error


def shift_text(
    text: str,
    operator_name: str,
    level: int | str | None = 3,
    *,
    seed: int = 0,
    row_id: object = 0,
    options: ShiftOptions | None = None,
) -> str:
    """Return a text in any script, shifted; see :func:`shift_image` for the other arguments.

    Args:
        text: the text.
        operator_name: name such as ``keyboard``.
        level: 1 to 7, or a language for ``translation``, or ``None`` for operators of one form.
        seed: seed of the study.
        row_id: ID of the row; seed, operator and row id decide all randomness.
        options: words to keep, and where synonyms and rewritten sentences are from; default: the settings.

    Raises:
        ShiftError: an unknown operator or level, or something that it needs is missing.
        RefusedError: nothing in the text can be changed so, or it is too long.
    """
    found = operator("text", operator_name)
    parameter = found.parameter(level)
    if not text.strip():
        raise RefusedError("the text is empty")
    if len(text) > LONGEST_TEXT:
        raise RefusedError(f"the text has {len(text):,} characters; expected at most {LONGEST_TEXT:,}")
    random = random_state(seed, found.name, row_id)
    return _apply(found, encodable(text), parameter, random, options or ShiftOptions.from_settings(load_settings()))


def _apply(found: Operator, *arguments: Any) -> Any:
    """Call an operator; an unforeseen exception costs one row and not the run."""
    try:
        return found.function(*(arguments if found.takes_options else arguments[:-1]))
    except (RefusedError, EMIError):
        raise
    except Exception as error:
        raise RefusedError(f"{found.name} failed: {type(error).__name__}: {error}") from error


def _slug(level: str) -> str:
    return re.sub(r"[^\w]+", "_", level).strip("_") or "other"
