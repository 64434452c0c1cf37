"""OCR errors: letters read as others, or as digits, that look like them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lmms_eval_emi.shifts.operators import textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.words import CharacterRule, change_characters, substitute
from lmms_eval_emi.shifts.options import ShiftOptions

LOOK_ALIKE = "0oOD8 1lI 2zZ 5sS8 6bG 8sSB& 9gq ou rk CG OD OU EB ce hb nm vu ij ft"


@textual_operator(group="character", levels=RATES)
def ocr(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Replace characters by others that look like them. Parameter: fraction of words changed."""
    table = look_alikes()
    rule = CharacterRule(table.__contains__, shortest_word=1, fewest=2)
    return change_characters(text, rate, random, options.keep, substitute(table, random), rule)


@lru_cache(maxsize=1)
def look_alikes() -> dict[str, str]:
    """Return the characters that each character is taken for."""
    table: dict[str, set[str]] = {}
    for group in LOOK_ALIKE.split():
        for character in group:
            table.setdefault(character, set()).update(set(group) - {character})
    return {character: "".join(sorted(others)) for character, others in table.items()}
