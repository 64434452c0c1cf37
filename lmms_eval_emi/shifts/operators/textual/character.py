"""Characters that are wrong, missing, added or swapped."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lmms_eval_emi.shifts.operators import ShiftOptions, textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.pieces import CharacterRule, change_characters, random_letters, substitute

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
    """Return the characters of the neighbouring keys by character: the next keys of its row, and of the rows above and below."""
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


@textual_operator(group="character", levels=RATES)
def char_replace(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Replace characters of words by random ones. Parameter: fraction of words changed."""

    def change(characters: list[str], places: list[int]) -> list[str]:
        letter = random_letters(text, "".join(characters), random)
        for place in places:
            characters[place] = letter()
        return characters

    return change_characters(text, rate, random, options.keep, change)


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


@textual_operator(group="character", levels=RATES)
def char_delete(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Delete characters of words. Parameter: fraction of words changed."""

    def change(characters: list[str], places: list[int]) -> list[str]:
        gone = set(places)
        return [character for place, character in enumerate(characters) if place not in gone]

    return change_characters(text, rate, random, options.keep, change)
