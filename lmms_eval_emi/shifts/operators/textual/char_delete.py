"""Characters that are missing."""

import numpy as np

from lmms_eval_emi.shifts.operators import textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.words import change_characters
from lmms_eval_emi.shifts.options import ShiftOptions


@textual_operator(group="character", levels=RATES)
def char_delete(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Delete characters of words. Parameter: fraction of words changed."""

    def change(characters: list[str], places: list[int]) -> list[str]:
        gone = set(places)
        return [character for place, character in enumerate(characters) if place not in gone]

    return change_characters(text, rate, random, options.keep, change)
