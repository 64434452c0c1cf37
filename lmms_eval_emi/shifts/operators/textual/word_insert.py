"""Words too many."""

import numpy as np

from lmms_eval_emi.shifts.operators import RefusedError, textual_operator
from lmms_eval_emi.shifts.operators.textual import RATES
from lmms_eval_emi.shifts.operators.textual.synonym import draw
from lmms_eval_emi.shifts.operators.textual.synonyms import synonym_source, synonyms_fingerprint
from lmms_eval_emi.shifts.operators.textual.words import split
from lmms_eval_emi.shifts.options import ShiftOptions


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
