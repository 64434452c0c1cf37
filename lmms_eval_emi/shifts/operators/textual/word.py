"""Words that are replaced, missing, added or swapped, and punctuation."""

from __future__ import annotations

import numpy as np

from lmms_eval_emi.shifts.operators import RefusedError, ShiftOptions, textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.pieces import split
from lmms_eval_emi.shifts.operators.textual.synonyms import FUNCTION_WORDS, synonym_source, synonyms_fingerprint

# The published texts were drawn again until a sentence encoder found them like the original, which
# phrases rarely pass. Drawing these less often gives the fraction of characters that was published.
PHRASE_WEIGHT = 0.25


@textual_operator(group="word", levels=RATES, resources=synonyms_fingerprint)
def synonym(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Replace max(1, rate n) of the n words of a text by synonyms. Parameter: the rate."""
    synonyms = synonym_source(options.synonyms, options.wordnet)
    pieces = split(text, options.keep)
    words = sorted({piece.text.lower() for piece in pieces if piece.kind == "word"} - FUNCTION_WORDS)
    count = max(1, int(rate * sum(piece.kind in ("word", "kept") for piece in pieces) + 1e-9))
    replacements: dict[str, str] = {}
    for word in (words[i] for i in random.permutation(len(words))):
        choices = synonyms(word)
        if choices and len(replacements) < count:
            replacements[word] = draw(choices, random)
    if not replacements:
        raise RefusedError("no word of the text has a synonym")
    return "".join(
        with_case_of(replacements[piece.text.lower()], piece.text)
        if piece.kind == "word" and piece.text.lower() in replacements
        else piece.text
        for piece in pieces
    )


def draw(choices: tuple[str, ...], random: np.random.RandomState) -> str:
    """Return one of a word's synonyms, phrases at a part of the chance of single words."""
    weights = np.cumsum([PHRASE_WEIGHT if " " in choice else 1.0 for choice in choices])
    return choices[int(np.searchsorted(weights, random.random_sample() * weights[-1], side="right"))]


def with_case_of(synonym: str, like: str) -> str:
    """Return a synonym in capitals, capitalised or unchanged, as another word is."""
    if like.isupper() and len(like) > 1:
        return synonym.upper()
    return synonym[:1].upper() + synonym[1:] if like[:1].isupper() else synonym


@textual_operator(group="word", levels=RATES, resources=synonyms_fingerprint)
def sr(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Replace words as synonym does, and write the text without capitals and punctuation, as in the published splits. Parameter: the rate."""
    return plain(synonym(text, rate, random, options), options)


def plain(text: str, options: ShiftOptions) -> str:
    """Return a text in lower case with single spaces for marks; apostrophes vanish, and what must be kept is."""
    parts: list[str] = []
    for piece in split(text, options.keep):
        if piece.kind in ("kept", "word"):
            parts.append(piece.text if piece.kind == "kept" else piece.text.lower())
        elif piece.text not in ("'", "’") and parts and parts[-1] != " ":
            parts.append(" ")
    return "".join(parts).strip()


@textual_operator(group="word", levels=RATES, resources=synonyms_fingerprint)
def word_insert(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Insert synonyms of a text's words at random positions, max(1, rate n) for n words. Parameter: the rate."""
    synonyms = synonym_source(options.synonyms, options.wordnet)
    pieces = split(text, options.keep)
    words = [place for place, piece in enumerate(pieces) if piece.kind in ("word", "kept")]
    choices = [found for place in words if (found := synonyms(pieces[place].text.lower()))]
    if not choices:
        raise RefusedError("no word of the text has a synonym")
    inserted: dict[int, list[str]] = {}
    for _ in range(max(1, int(rate * len(words) + 1e-9))):
        found = choices[random.randint(len(choices))]
        inserted.setdefault(words[random.randint(len(words))], []).append(draw(found, random))
    return "".join(
        "".join(f"{word} " for word in inserted.get(place, [])) + piece.text for place, piece in enumerate(pieces)
    )


@textual_operator(group="word", levels=RATES)
def word_swap(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Swap two words, max(1, rate n) times for n words. Parameter: the rate."""
    pieces = split(text, options.keep)
    words = [place for place, piece in enumerate(pieces) if piece.kind == "word"]
    if len({pieces[place].text for place in words}) < 2:
        raise RefusedError("the text has fewer than two words to swap")
    count = sum(piece.kind in ("word", "kept") for piece in pieces)
    parts = [piece.text for piece in pieces]
    for _ in range(max(1, int(rate * count + 1e-9))):
        first = random.randint(len(words))
        other = (first + 1 + random.randint(len(words) - 1)) % len(words)
        parts[words[first]], parts[words[other]] = parts[words[other]], parts[words[first]]
    return "".join(parts)


CLOSING = " \t\n.,;:!?)]"


@textual_operator(group="word", levels=RATES)
def word_delete(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Delete each word with the same probability, but keep at least one. Parameter: the probability."""
    pieces = split(text, options.keep)
    words = [place for place, piece in enumerate(pieces) if piece.kind == "word"]
    if len(words) < 2:
        raise RefusedError("the text has fewer than two words that may be deleted")
    chances = dict(zip(words, random.random_sample(len(words)), strict=True))
    spared = max(chances, key=lambda place: chances[place])
    gone = {place for place, chance in chances.items() if chance <= rate and place != spared}
    parts: list[str] = []
    for place, piece in enumerate(pieces):
        if place in gone:
            # Of the two spaces around a word, one goes with it; a space that parts two other pieces stays.
            if parts and parts[-1].isspace() and (place + 1 == len(pieces) or pieces[place + 1].text[0] in CLOSING):
                parts.pop()
        elif not (piece.kind == "space" and not parts):
            parts.append(piece.text)
    return "".join(parts)


MARKS = ".,!?;:"


@textual_operator(group="word", levels=RATES)
def punctuation(text: str, rate: float, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Insert 1 to rate n + 1 punctuation marks before the n words of a text. Parameter: the rate."""
    pieces = split(text, options.keep)
    places = [place for place, piece in enumerate(pieces) if piece.kind in ("word", "kept")]
    if not places:
        raise RefusedError("the text has no words")
    count = min(len(places), 1 + int(random.random_sample() * int(rate * len(places) + 1)))
    chosen = {places[i] for i in random.permutation(len(places))[:count]}
    parts = []
    for place, piece in enumerate(pieces):
        if place in chosen:
            parts.append(MARKS[random.randint(len(MARKS))] + (" " if piece.spaced else ""))
        parts.append(piece.text)
    return "".join(parts)
