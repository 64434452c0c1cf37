"""Synonyms as EDA writes them, which the published splits ``sr_4`` and ``sr_7`` are: plain words, no marks."""

import numpy as np

from lmms_eval_emi.shifts.operators import textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.synonym import synonym
from lmms_eval_emi.shifts.operators.textual.synonyms import synonyms_fingerprint
from lmms_eval_emi.shifts.operators.textual.words import split
from lmms_eval_emi.shifts.options import ShiftOptions


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
