"""Translation: the question in another language, as in the published natural shifts."""

import numpy as np

from lmms_eval_emi.shifts.operators import textual_operator
from lmms_eval_emi.shifts.operators.textual.sentence_model import rewrite
from lmms_eval_emi.shifts.options import ShiftOptions


@textual_operator(group="sentence", level_name="language", prompt_suffix=" Please answer in English.")
def translation(text: str, language: str, random: np.random.RandomState, options: ShiftOptions) -> str:
    """Translate by a language model. The level is the language, as in translation:German."""
    return rewrite(text, f"Translate the following question into {language}.", options)
