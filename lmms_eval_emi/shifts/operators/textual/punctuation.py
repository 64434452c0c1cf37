"""Punctuation marks too many, as AEDA adds them."""

import numpy as np

from lmms_eval_emi.shifts.operators import RefusedError, textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.words import split
from lmms_eval_emi.shifts.options import ShiftOptions

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
