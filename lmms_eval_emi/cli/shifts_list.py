"""``lmms-eval-emi shifts list``: the shift operators."""

from __future__ import annotations

import argparse

from lmms_eval_emi.cli.options import new_parser
from lmms_eval_emi.util.printing import table


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return new_parser(
        prog,
        description="List the operators on images and on texts, with their levels.",
        examples=("lmms-eval-emi shifts list",),
    )


def run(args: argparse.Namespace) -> int:
    """Print a table of the operators on images and one of those on texts."""
    from lmms_eval_emi.shifts.operators import operators

    for family, option in (("visual", "--visual"), ("text", "--textual")):
        rows = [
            [
                operator.name,
                operator.group,
                f"1-{len(operator.levels)}" if operator.levels else operator.level_name or "",
                operator.summary,
            ]
            for operator in operators(family).values()
        ]
        print(table(rows, [option, "group", "levels", "what it does"], maxcolwidths=[None, None, None, 90]))
        print()
    return 0
