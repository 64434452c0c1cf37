"""Operators that shift images and texts, and what makes whole suites of shifts of them.

A new operator is one new file in ``operators/visual/`` or ``operators/textual/``. ``writer`` writes the splits of a recipe as a
dataset with its tasks, ``twins`` shifts rows while a harness task runs, and ``contact_sheet`` shows what operators do.
"""

from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.shifts.apply import shift_image, shift_text
from lmms_eval_emi.shifts.operators import Operator, RefusedError, ShiftOptions, operators
from lmms_eval_emi.shifts.twins import twin

__all__ = ["Operator", "RefusedError", "ShiftError", "ShiftOptions", "operators", "shift_image", "shift_text", "twin"]
