"""Operators that shift images and texts, and what makes whole suites of shifts of them.

A new operator is one new file in ``visual/`` or ``textual/``. ``recipes`` turns operators into splits;
``suite`` writes them as a dataset, ``twins`` makes them while a harness task runs, ``contact_sheet`` shows them.
"""

from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.shifts.apply import shift_image, shift_text
from lmms_eval_emi.shifts.operators import Operator, RefusedError, operators
from lmms_eval_emi.shifts.options import ShiftOptions
from lmms_eval_emi.shifts.twins import twin

__all__ = ["Operator", "RefusedError", "ShiftError", "ShiftOptions", "operators", "shift_image", "shift_text", "twin"]
