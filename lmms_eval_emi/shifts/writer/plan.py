"""Description of a suite of shifted splits, and counts of what was written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from lmms_eval_emi.data.study import Columns
from lmms_eval_emi.shifts.apply import Recipe, Step
from lmms_eval_emi.shifts.operators import ShiftOptions


@dataclass(frozen=True)
class Suite:
    """Description of a suite that is to be written.

    Attributes:
        name: name of the study, and, in lower case, of its group of tasks.
        source: what the rows are from, for the card.
        recipes: recipes of the splits, the ID split first.
        columns: columns of the rows; ``image`` is ``None`` if there are none.
        seed: seed of all randomness.
        options: options of textual operators.
        roots: folders that paths of images are relative to, and that they must lie in.
        run_with: command that runs the tasks, for the card.
    """

    name: str
    source: str
    recipes: tuple[Recipe, ...]
    columns: Columns
    seed: int = 0
    options: ShiftOptions = field(default_factory=ShiftOptions)
    roots: tuple[str, ...] = ()
    run_with: str = ""

    @property
    def visual(self) -> list[Step]:
        """Steps for images, each once."""
        return list(dict.fromkeys(recipe.visual for recipe in self.recipes if recipe.visual))

    @property
    def textual(self) -> list[Step]:
        """Steps for texts, each once."""
        return list(dict.fromkeys(recipe.textual for recipe in self.recipes if recipe.textual))


@dataclass(frozen=True)
class Written:
    """Counts of a suite that was written."""

    rows: int
    left: Counter  # rows that a step left as they were, by its name
    resumed: int  # rows that an earlier run had done
