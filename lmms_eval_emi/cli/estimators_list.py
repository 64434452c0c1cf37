"""``lmms-eval-emi estimators list``: the estimators that ``--estimator`` takes by name."""

from __future__ import annotations

import argparse

from lmms_eval_emi.cli.options import new_parser
from lmms_eval_emi.util.printing import table


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return new_parser(
        prog,
        description="List the estimators that --estimator takes by name; it also takes the path of a .safetensors or .pt file.",
        examples=("lmms-eval-emi estimators list",),
    )


def run(args: argparse.Namespace) -> int:
    """Print a table of the registered estimators."""
    from lmms_eval_emi.estimators import registered_estimators

    rows = [
        [name, entry.kind, "yes" if entry.is_trained else "no", entry.description]
        for name, entry in registered_estimators().items()
    ]
    print(table(rows, ["name", "kind", "trained", "what it is"], maxcolwidths=[None, None, None, 90]))
    return 0
