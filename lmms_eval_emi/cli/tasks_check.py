"""``lmms-eval-emi tasks check``: whether lmms-eval finds the tasks by itself."""

from __future__ import annotations

import argparse

from lmms_eval_emi.cli.options import new_parser


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return new_parser(
        prog,
        description="Find out whether lmms-eval finds the tasks by itself, and if not, why. Exits with 1 if it does not.",
        examples=("lmms-eval-emi tasks check",),
    )


def run(args: argparse.Namespace) -> int:
    """Load every plugin of lmms-eval, and print those that fail."""
    from lmms_eval_emi.harness.lmms_eval.compat.task_index import broken_entry_points, remedy

    broken = broken_entry_points()
    for name, reason in broken.items():
        print(f"The plugin {name} of lmms-eval cannot be loaded: {reason}")
    if broken:
        print(f"It may keep lmms-eval from finding the tasks of this package. Remove or fix it, or:\n{remedy()}")
        return 1
    print("lmms-eval finds the tasks: every plugin that it loads can be loaded.")
    return 0
