"""``python -m lmms_eval_emi``, for launchers that start modules."""

import sys

from lmms_eval_emi.cli import command

if __name__ == "__main__":
    sys.exit(command())
