"""``lmms-eval-emi status``: how far a run is."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmms_eval_emi.cli.options import add_command
from lmms_eval_emi.cli.run import states_table


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands,
        "status",
        examples=("lmms-eval-emi status out",),
        help="how far a run of lmms-eval-emi run is",
        description="Read the journal of a run: requests by task, how many are answered and how many are left, whether it is running, and the command that goes on with it.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="its --output_path")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, print."""
    from lmms_eval_emi.harness.lmms_eval.resume.runs import status

    runs = status(args.folder)
    for number, one in enumerate(runs):
        described = one.described
        left = sum(task.left for task in one.tasks)
        latest = number == len(runs) - 1
        if latest and one.running:
            state = "running"
        elif not one.tasks:
            state = "nothing is planned yet"
        else:
            state = f"stopped, {left} left" if left else "every response is there"
        print(f"model      {described.get('model')} ({described.get('model_args')})")
        print(f"started    {described.get('started')}, {described.get('ranks')} rank(s)")
        print(f"state      {state}")
        if one.damaged:
            print(f"damaged    {one.damaged} record(s) that were not written to the end; they are generated again")
        if one.tasks:
            print(f"\n{states_table(one.tasks)}\n")
        if left or not one.tasks:
            print(f"go on with         {described.get('command')}")
        if any(task.answered for task in one.tasks):
            print(f"results so far     lmms-eval-emi recover {args.folder}")
    return 0
