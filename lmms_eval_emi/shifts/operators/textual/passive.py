"""Passive: the same question in the passive voice."""

import numpy as np

from lmms_eval_emi.shifts.operators import textual_operator
from lmms_eval_emi.shifts.operators.textual.sentence_model import restyle
from lmms_eval_emi.shifts.options import ShiftOptions


@textual_operator(group="sentence")
def passive(text: str, level: None, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Rewrite in the passive voice, by a language model. No levels."""
    return restyle(text, "the passive voice", options)
