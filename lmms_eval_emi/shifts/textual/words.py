"""A text as words and what stands between them; which of them may be changed, and which are drawn.

Not an operator itself. What a question must keep to mean what it meant is told apart here, once for
all operators: numbers in digits or words, tokens such as ``<image>``, and the user's own words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import regex

from lmms_eval_emi.shifts.operators import Refused

NUMBER_WORDS = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand "
    "million billion".split()
)
PLACEHOLDER = r"<\|?/?\p{L}[\p{L}\p{N}_ -]{0,30}\|?>"  # <image>, <image 2>, <|image_1|>
NUMBER = r"[\p{L}_]*\p{N}[\p{L}\p{N}_]*(?:[.,:/]\p{N}[\p{L}\p{N}_]*)*"
WORD = r"[\p{L}\p{M}\u200c\u200d]+"
# Scripts that set no spaces. Their runs are taken two characters at a time, about a word's length in Chinese.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"

Kind = Literal["word", "kept", "space", "mark"]


@dataclass(frozen=True)
class TextOptions:
    """What the user asks of textual operators.

    Attributes:
        keep: words and phrases that stay as they are, whatever their case.
        synonyms: a YAML or JSON file of synonyms by word, instead of WordNet.
        endpoint: an OpenAI-compatible one, for the operators on sentences; its base URL.
        model: what to ask of the endpoint.
    """

    keep: tuple[str, ...] = ()
    synonyms: Path | None = None
    endpoint: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Piece:
    """A part of a text."""

    text: str
    kind: Kind
    spaced: bool = True  # whether its script sets spaces between words


@lru_cache(maxsize=64)
def _pattern(keep: tuple[str, ...]) -> regex.Pattern:
    own = "|".join(
        rf"(?<![\p{{L}}\p{{M}}\p{{N}}_]){regex.escape(word)}(?![\p{{L}}\p{{M}}\p{{N}}_])"
        if not regex.search(UNSPACED, word)
        else regex.escape(word)
        for word in sorted(keep, key=len, reverse=True)
        if word
    )
    kept = "|".join(part for part in (own, PLACEHOLDER, r"https?://\S+", NUMBER) if part)
    return regex.compile(
        rf"(?P<kept>{kept})|(?P<unspaced>{UNSPACED}\p{{M}}*)|(?P<word>(?:(?!{UNSPACED}){WORD})+?(?=(?!{WORD})|{UNSPACED}|$))|(?P<space>\s+)|(?P<mark>\X)",
        flags=regex.IGNORECASE,
    )


def split(text: str, keep: Sequence[str] = ()) -> list[Piece]:
    """A text's pieces; joined, they are the text again."""
    pieces: list[Piece] = []
    run = ""
    for match in _pattern(tuple(keep)).finditer(text):
        kind, part = match.lastgroup, match.group()
        if run and (kind != "unspaced" or len(graphemes(run)) == 2):
            pieces.append(Piece(run, "word", spaced=False))
            run = ""
        if kind == "unspaced":
            run += part
        elif kind == "word" and part.lower() in NUMBER_WORDS:
            pieces.append(Piece(part, "kept"))
        else:
            pieces.append(Piece(part, kind))  # type: ignore[arg-type]
    if run:
        pieces.append(Piece(run, "word", spaced=False))
    return pieces


def join(pieces: Sequence[Piece | str]) -> str:
    """The text of pieces."""
    return "".join(piece if isinstance(piece, str) else piece.text for piece in pieces)


def graphemes(word: str) -> list[str]:
    """What a reader calls the characters of a word: letters with their marks."""
    return regex.findall(r"\X", word)


def change_characters(
    text: str,
    rate: float,
    random: np.random.RandomState,
    keep: Sequence[str],
    change: Callable[[list[str], list[int]], list[str]],
    *,
    can_change: Callable[[str], bool] = lambda character: True,
    shortest_word: int = 4,
    fewest: int = 1,
) -> str:
    """Change some characters of some words, as many as nlpaug's augmenters do.

    Of n words and marks, ceil(rate n) words are drawn from those of at least ``shortest_word``
    characters; in each, ceil(0.3 length) characters, and at least ``fewest``, from those that can change.

    Args:
        text: what to change.
        rate: share of the words.
        random: where all draws are from.
        keep: words that stay as they are.
        change: new characters from a word's characters and the drawn places, in ascending order.
        can_change: whether a character may be drawn.
        shortest_word: in characters; words of scripts without spaces are short and exempt.
        fewest: characters drawn in a word, where it has as many.

    Raises:
        Refused: no word can be changed.
    """
    pieces = split(text, keep)
    words = {}
    for place, piece in enumerate(pieces):
        if piece.kind == "word":
            characters = graphemes(piece.text)
            open_places = [i for i, character in enumerate(characters) if can_change(character)]
            if open_places and (len(characters) >= shortest_word or not piece.spaced):
                words[place] = (characters, open_places)
    if not words:
        raise Refused("no word of the text can be changed so")
    count = math.ceil(rate * sum(piece.kind != "space" for piece in pieces) - 1e-9)
    changed: list[Piece | str] = list(pieces)
    for place in _draw(list(words), count, random):
        characters, open_places = words[place]
        drawn = sorted(_draw(open_places, max(fewest, math.ceil(0.3 * len(characters))), random))
        changed[place] = "".join(change(list(characters), drawn))
    return join(changed)


def _draw(items: list[int], count: int, random: np.random.RandomState) -> list[int]:
    """``count`` of the items, or all; a larger count draws the same ones and more."""
    return [items[i] for i in random.permutation(len(items))[:count]]


def random_letters(text: str, like: str, random: np.random.RandomState) -> Callable[[], str]:
    """Draws characters for a word: nlpaug's letters, digits and signs for Latin script, else letters of the text."""
    if regex.search(r"\p{Latin}", like):
        pool = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!@#$%^&*()_+"
    else:
        pool = "".join(sorted(set(regex.findall(r"(?!\p{Latin})\p{L}", text))))
    return lambda: pool[random.randint(len(pool))]
