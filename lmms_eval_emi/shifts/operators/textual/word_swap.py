"""Words in the wrong order."""

import numpy as np

from lmms_eval_emi.shifts.operators import RefusedError, textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.words import split
from lmms_eval_emi.shifts.options import ShiftOptions


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
