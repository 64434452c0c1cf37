"""Sentences that a language model rewrites."""

from __future__ import annotations

import numpy as np

from lmms_eval_emi.shifts.operators import ShiftOptions, textual_operator
from lmms_eval_emi.shifts.operators.textual.sentence_model import restyle, rewrite


@textual_operator(group="sentence")
def casual(text: str, level: None, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Rewrite in the casual style of a message to a friend, by a language model. No levels."""
    return restyle(text, "the casual style of a message to a friend", options)


@textual_operator(group="sentence")
def formal(text: str, level: None, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Rewrite in the formal style of a letter to an authority, by a language model. No levels."""
    return restyle(text, "the formal style of a letter to an authority", options)


@textual_operator(group="sentence")
def passive(text: str, level: None, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Rewrite in the passive voice, by a language model. No levels."""
    return restyle(text, "the passive voice", options)


@textual_operator(group="sentence", level_name="language", prompt_suffix=" Please answer in English.")
def translation(text: str, language: str, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Translate by a language model. The level is the language, as in translation:German."""
    return rewrite(text, f"Translate the following question into {language}.", options)
