"""Characters in the wrong order."""

import numpy as np

from lmms_eval_emi.shifts.operators import textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.words import change_characters
from lmms_eval_emi.shifts.options import ShiftOptions


@textual_operator(group="character", levels=RATES)
def char_swap(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Swap neighbouring characters of words; capitals stay in place. Parameter: fraction of words changed."""

    def change(characters: list[str], places: list[int]) -> list[str]:
        last = len(characters) - 1
        if last < 1:
            return characters
        for place in places:
            step = 1 if place == 0 else -1 if place == last else (-1, 1)[random.randint(2)]
            left, right = characters[place], characters[place + step]
            characters[place], characters[place + step] = with_case_of(right, left), with_case_of(left, right)
        return characters

    return change_characters(text, rate, random, options.keep, change)


def with_case_of(character: str, like: str) -> str:
    """Return a character in upper or lower case, as another one is."""
    return character.upper() if like.isupper() else character.lower()
