"""``lmms-eval-emi recover``: results of what a run has generated so far."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from lmms_eval_emi.cli.options import add_command

log = logging.getLogger("lmms_eval_emi")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands,
        "recover",
        examples=("lmms-eval-emi recover out",),
        help="make results of what the journal of a run holds, without the model",
        description="Run lmms-eval's scoring on the responses that the journal of a run holds. Neither the model nor the original command is needed. Documents without a response are left out, and the last line says how many.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the run's --output_path")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write the results (default: DIR/recovered)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Recover, and say of how many responses."""
    from lmms_eval_emi.harness.lmms_eval.resume.runs import recover

    folder = args.folder.resolve()
    output = args.output.resolve() if args.output else folder / "recovered"
    tasks = recover(folder, output)
    left = sum(task.left + task.shared for task in tasks)
    total = sum(task.requests for task in tasks)
    whole = (
        f"of all {total} requests" if not left else f"of {total - left} of {total} requests: they are results of a part"
    )
    log.info("results %s, in %s", whole, output)
    return 0
