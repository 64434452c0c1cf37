"""Split a text into words and separators, and draw the words that an operator may change.

Not an operator itself. The parts of a question that must stay unchanged for it to keep its meaning are found here, once for
all operators: numbers in digits or words, tokens such as ``<image>``, and the user's own words.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import regex

from lmms_eval_emi.shifts.operators import RefusedError

NUMBER_WORDS = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand "
    "dozen million billion trillion".split()
)
# Scripts that set no spaces. Their runs are taken two characters at a time, about a word's length in Chinese.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_LETTER = rf"[[\p{{L}}\p{{M}}\p{{N}}_\u200c\u200d]--{_UNSPACED}]"
# Every quantifier is possessive, so that the time grows with the text and not with its square.
_PIECE = regex.compile(
    rf"(?P<run>(?:(?<!{_LETTER})(?:[-+\u2212\u00b1]\.?+|\.)(?=\p{{N}}))?+{_LETTER}++(?:(?<=\p{{N}})[.,:/](?=\p{{N}}){_LETTER}++)*+)"
    rf"|(?P<unspaced>{_UNSPACED}\p{{M}}*+)|(?P<space>\s++)|(?P<mark>\X)",
    flags=regex.V1,
)
_TOKENS = regex.compile(
    r"<\|?/?\p{L}[\p{L}\p{N}_ -]{0,30}/?\|?>"  # <image>, <image 2>, <|image_1|>, <image/>
    r"|(?:https?://|(?<![\p{L}\p{N}])www\.)[!-~]++"
    r"|(?<![\p{L}\p{N}.+_-])[\p{L}\p{N}.+_-]++@[\p{L}\p{N}-]++(?:\.[\p{L}\p{N}-]++)++"
)
_SCRIPTS = ("Latin", "Greek", "Cyrillic", "Arabic", "Hebrew", "Devanagari", "Armenian", "Georgian")

LATIN_POOL = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!@#$%^&*()_+"
Kind = Literal["word", "kept", "space", "mark"]


@dataclass(frozen=True)
class Piece:
    """A part of a text."""

    text: str
    kind: Kind
    spaced: bool = True  # whether its script sets spaces between words


def split(text: str, keep: Sequence[str] = ()) -> list[Piece]:
    """Return a text's pieces; joined, they are the text again.

    Args:
        text: text in any script.
        keep: words and phrases that are pieces of their own, whatever their case and the width of their spaces.
    """
    pieces: list[Piece] = []
    place = 0
    for start, stop in _kept_spans(text, tuple(keep)):
        pieces += _pieces(text[place:start])
        pieces.append(Piece(text[start:stop], "kept"))
        place = stop
    return pieces + _pieces(text[place:])


def _pieces(text: str) -> list[Piece]:
    pieces: list[Piece] = []
    run: list[str] = []

    def close_run() -> None:
        word = "".join(run)
        if word:
            pieces.append(Piece(word, "word" if regex.search(r"\p{L}", word) else "mark", spaced=False))
        run.clear()

    for match in _PIECE.finditer(text):
        kind, part = match.lastgroup, match.group()
        if len(run) == 2 or kind != "unspaced":
            close_run()
        if kind == "unspaced":
            run.append(part)
        elif kind == "run":
            if regex.search(r"\p{N}", part) or part.lower() in NUMBER_WORDS:
                pieces.append(Piece(part, "kept"))
            else:
                pieces.append(Piece(part, "word" if regex.search(r"\p{L}", part) else "mark"))
        else:
            pieces.append(Piece(part, "space" if kind == "space" else "mark"))
    close_run()
    return pieces


def _kept_spans(text: str, keep: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return where the tokens and the words to keep are, in order, what overlaps as one."""
    spans = [match.span() for match in _TOKENS.finditer(text)]
    pattern = _keep_pattern(keep)
    if pattern is not None:
        spans += [
            match.span()
            for match in pattern.finditer(text, overlapped=True)
            if not _joined(text, match.start()) and not _joined(text, match.end())
        ]
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged


@lru_cache(maxsize=64)
def _keep_pattern(keep: tuple[str, ...]) -> regex.Pattern[str] | None:
    forms = {unicodedata.normalize(form, word) for word in keep if word.strip() for form in ("NFC", "NFD")}
    phrases = [r"\s+".join(map(regex.escape, form.split())) for form in sorted(forms, key=len, reverse=True)]
    return regex.compile("|".join(phrases), flags=regex.IGNORECASE) if phrases else None


def _joined(text: str, place: int) -> bool:
    """Return whether the characters around a place belong to one word: letters or digits of one script that sets spaces."""
    if not 0 < place < len(text):
        return False
    scripts = [_script(text[place - 1]), _script(text[place])]
    return None not in scripts and ("any" in scripts or scripts[0] == scripts[1])


@lru_cache(maxsize=4096)
def _script(character: str) -> str | None:
    if regex.match(r"[\p{N}\p{M}_]", character):
        return "any"
    # Korean sets particles behind a word without a space.
    if (
        not regex.match(r"\p{L}", character)
        or regex.match(_UNSPACED, character)
        or regex.match(r"\p{Hangul}", character)
    ):
        return None
    return next((script for script in _SCRIPTS if regex.match(rf"\p{{{script}}}", character)), "other")


def join(pieces: Sequence[Piece | str]) -> str:
    """Return the text of pieces."""
    return "".join(piece if isinstance(piece, str) else piece.text for piece in pieces)


def graphemes(word: str) -> list[str]:
    """Return the graphemes of a word: letters with their marks."""
    return regex.findall(r"\X", word)


@dataclass(frozen=True)
class CharacterRule:
    """Rule for the characters and words that may be changed."""

    can_change: Callable[[str], bool] = lambda character: True  # whether a character may be drawn
    shortest_word: int = 4  # characters of the shortest word; words of scripts without spaces are short and exempt
    fewest: int = 1  # characters drawn in a word, if it has as many


def change_characters(
    text: str,
    rate: float,
    random: np.random.RandomState,
    keep: Sequence[str],
    change: Callable[[list[str], list[int]], list[str]],
    rule: CharacterRule = CharacterRule(),
) -> str:
    """Change some characters of some words, as many as nlpaug's augmenters do.

    Of n words and marks, ceil(rate n) words are drawn from those that are long enough; in each, ceil(0.3 length)
    characters, and at least ``rule.fewest``, from those that can change.

    Args:
        text: text to change.
        rate: fraction of the words.
        random: random state of all draws.
        keep: words that stay unchanged.
        change: function of a word's characters and the drawn positions, in ascending order, to new characters.
        rule: which characters may be drawn.

    Raises:
        RefusedError: no word can be changed.
    """
    pieces = split(text, keep)
    words = {}
    for place, piece in enumerate(pieces):
        if piece.kind == "word":
            characters = graphemes(piece.text)
            open_places = [i for i, character in enumerate(characters) if rule.can_change(character)]
            if open_places and (len(characters) >= rule.shortest_word or not piece.spaced):
                words[place] = (characters, open_places)
    if not words:
        raise RefusedError("no word of the text can be changed so")
    count = math.ceil(rate * sum(piece.kind != "space" for piece in pieces) - 1e-9)
    changed: list[Piece | str] = list(pieces)
    for place in _draw(list(words), count, random):
        characters, open_places = words[place]
        drawn = sorted(_draw(open_places, max(rule.fewest, math.ceil(0.3 * len(characters))), random))
        changed[place] = "".join(change(list(characters), drawn))
    return join(changed)


def _draw(items: list[int], count: int, random: np.random.RandomState) -> list[int]:
    """Return ``count`` random items, or all; a larger count returns the same ones and more."""
    return [items[i] for i in random.permutation(len(items))[:count]]


def substitute(table: Mapping[str, str], random: np.random.RandomState) -> Callable[[list[str], list[int]], list[str]]:
    """Return a change for :func:`change_characters`: each character becomes a random one of its entry in a table."""

    def change(characters: list[str], places: list[int]) -> list[str]:
        for place in places:
            others = table[characters[place]]
            characters[place] = others[random.randint(len(others))]
        return characters

    return change


def random_letters(text: str, like: str, random: np.random.RandomState) -> Callable[[], str]:
    """Return random characters for a word: nlpaug's letters, digits and signs for Latin script, else letters of the text."""
    pool = LATIN_POOL if regex.search(r"\p{Latin}", like) else _other_letters(text) or LATIN_POOL
    return lambda: pool[random.randint(len(pool))]


@lru_cache(maxsize=16)
def _other_letters(text: str) -> str:
    return "".join(sorted(set(regex.findall(r"(?!\p{Latin})\p{L}", text))))
