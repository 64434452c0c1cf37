"""Synonyms: the same said in other words."""

from __future__ import annotations

import numpy as np

from lmms_eval_emi.shifts.operators import RefusedError, textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.synonyms import FUNCTION_WORDS, synonym_source, synonyms_fingerprint
from lmms_eval_emi.shifts.operators.textual.words import split
from lmms_eval_emi.shifts.options import ShiftOptions

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
