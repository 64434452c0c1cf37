"""Keyboard typos: a finger that hits the key beside the one meant."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lmms_eval_emi.shifts.operators import textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.words import CharacterRule, change_characters, substitute
from lmms_eval_emi.shifts.options import ShiftOptions

# Rows of keys, each with what it types plain and shifted. A row stands half a key, and the letters'
# upper row a whole one, to the right of where its left neighbour's key begins.
DIGITS = ("1! 2@ 3# 4$ 5% 6^ 7& 8* 9( 0)", 0.0)
LAYOUTS: dict[str, tuple[tuple[str, float], ...]] = {
    "Latin (QWERTY)": (DIGITS, ("qQ wW eE rR tT yY uU iI oO pP", 0.5), ("aA sS dD fF gG hH jJ kK lL ;:", 0.75), ("zZ xX cC vV bB nN mM ,< .> /?", 1.25)),
    "Cyrillic (ЙЦУКЕН)": (("йЙ цЦ уУ кК еЕ нН гГ шШ щЩ зЗ хХ ъЪ", 0.5), ("фФ ыЫ вВ аА пП рР оО лЛ дД жЖ эЭ", 0.75), ("яЯ чЧ сС мМ иИ тТ ьЬ бБ юЮ", 1.25)),
    "Greek": (("ςΣ εΕ ρΡ τΤ υΥ θΘ ιΙ οΟ πΠ", 1.5), ("αΑ σΣ δΔ φΦ γΓ ηΗ ξΞ κΚ λΛ", 0.75), ("ζΖ χΧ ψΨ ωΩ βΒ νΝ μΜ", 1.25)),
    "Hebrew": (("ק ר א ט ו ן ם פ", 2.5), ("ש ד ג כ ע י ח ל ך ף", 0.75), ("ז ס ב ה נ מ צ ת ץ", 1.25)),
    "Arabic": (("ض ص ث ق ف غ ع ه خ ح ج د", 0.5), ("ش س ي ب ل ا ت ن م ك ط", 0.75), ("ئ ء ؤ ر ى ة و ز ظ", 1.25)),
}  # fmt: skip
REACH = 1.36  # keys; the neighbours of g are r t y, f h, v b n


@textual_operator(group="character", levels=RATES)
def keyboard(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Replace characters by those of neighbouring keys, plain or shifted. Parameter: fraction of words changed."""
    table = neighbours()
    return change_characters(
        text, rate, random, options.keep, substitute(table, random), CharacterRule(table.__contains__)
    )


@lru_cache(maxsize=1)
def neighbours() -> dict[str, str]:
    """Return what the keys around a character's key type, by character: the next keys of its row and of the rows beside it."""
    table: dict[str, str] = {}
    for rows in LAYOUTS.values():
        keys = [
            (key, column + offset, row)
            for row, (line, offset) in enumerate(rows)
            for column, key in enumerate(line.split())
        ]
        for key, x, y in keys:
            around = "".join(
                other
                for other, u, v in keys
                if other != key and abs(v - y) <= 1 and abs(u - x) <= (REACH if v != y else 1)
            )
            for character in key:
                if character.isalpha():
                    table[character] = around
    return table
