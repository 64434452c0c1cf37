"""``python -m lmms_eval_emi.cli``, for a machine whose PATH lacks ``lmms-eval-emi``."""

from lmms_eval_emi.cli import command

raise SystemExit(command())
