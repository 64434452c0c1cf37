"""Casual: the same question in the casual style of a message to a friend."""

import numpy as np

from lmms_eval_emi.shifts.operators import textual_operator
from lmms_eval_emi.shifts.operators.textual.sentence_model import restyle
from lmms_eval_emi.shifts.options import ShiftOptions


@textual_operator(group="sentence")
def casual(text: str, level: None, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Rewrite in the casual style of a message to a friend, by a language model. No levels."""
    return restyle(text, "the casual style of a message to a friend", options)
