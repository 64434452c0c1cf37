"""Characters too many."""

import numpy as np

from lmms_eval_emi.shifts.operators import textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.words import change_characters, random_letters
from lmms_eval_emi.shifts.options import ShiftOptions


@textual_operator(group="character", levels=RATES)
def char_insert(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Insert random characters into words. Parameter: fraction of words changed."""

    def change(characters: list[str], places: list[int]) -> list[str]:
        letter = random_letters(text, "".join(characters), random)
        chosen = set(places)
        return [
            f"{letter()}{character}" if place in chosen else character for place, character in enumerate(characters)
        ]

    return change_characters(text, rate, random, options.keep, change)
