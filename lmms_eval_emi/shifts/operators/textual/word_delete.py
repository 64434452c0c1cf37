"""Words that are missing."""

import numpy as np

from lmms_eval_emi.shifts.operators import RefusedError, textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.words import split
from lmms_eval_emi.shifts.options import ShiftOptions

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
