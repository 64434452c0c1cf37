"""``lmms-eval-emi run``: lmms-eval with every response on the disk, and none generated twice."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval_emi.cli.options import new_parser
from lmms_eval_emi.data.study import BUILT_IN, BUNDLED
from lmms_eval_emi.errors import InputError, RunError
from lmms_eval_emi.util.printing import table

log = logging.getLogger("lmms_eval_emi")
GROUPS = {**{name: f"llavabench_shift_{name}" for name in (*BUILT_IN, *BUNDLED)}, "all": "llavabench_shift"}


TAKES_OTHER_OPTIONS = True  # lmms-eval's own


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi run --study natural --model llava_hf --model_args pretrained=llava-hf/llava-1.5-7b-hf --output_path out",
            "lmms-eval-emi run --tasks mme --model llava_hf --output_path out --dry-run",
        ),
        description=(
            "Run lmms-eval with its own options, by their own names (lmms-eval --help lists them). Responses are written to a journal below --output_path "
            "block by block, so the same command goes on where an earlier one was stopped, on any number of ranks. It works for every task, and under accelerate launch or torchrun: "
            "accelerate launch --num_processes 8 -m lmms_eval_emi run ..."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output_path",
        type=Path,
        metavar="DIR",
        help="folder of the run: journal, results and responses",
    )
    parser.add_argument("--tasks", metavar="NAMES", help="tasks and groups of lmms-eval, with commas between")
    parser.add_argument(
        "--study",
        action="append",
        default=[],
        choices=tuple(GROUPS),
        help="our tasks of one family, or all; may be repeated",
    )
    parser.add_argument(
        "--save-every",
        type=int,
        default=32,
        metavar="N",
        help="requests of a block, which is what a kill can cost; rounded up to a multiple of --batch_size (default: %(default)s)",
    )
    parser.add_argument(
        "--no-share",
        action="store_true",
        help="generate each of several requests that are the same question about the same image (default: one, where decoding draws nothing)",
    )
    parser.add_argument(
        "--retry-empty",
        action="store_true",
        help="ask again those requests whose response is empty (error messages of failed requests are asked again anyway)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show how many requests each task has and how many are left, and stop"
    )
    _add_earlier_run_options(parser)
    return parser


def _add_earlier_run_options(parser: argparse.ArgumentParser) -> None:
    look = parser.add_argument_group("look at an earlier run")
    look.add_argument(
        "--status",
        type=Path,
        metavar="DIR",
        help="show how far the run in DIR is, and the command that goes on with it",
    )
    look.add_argument(
        "--recover", type=Path, metavar="DIR", help="make results of what the journal in DIR holds, without the model"
    )
    look.add_argument(
        "--trust", action="store_true", help="let --recover run the command of a folder that somebody else wrote"
    )
    look.add_argument("--recovered", type=Path, metavar="DIR", help="where --recover writes (default: DIR/recovered)")


def run(args: argparse.Namespace) -> int:
    """Run lmms-eval with a journal, or show, recover or plan such a run."""
    from lmms_eval_emi.harness.lmms_eval.compat import launch
    from lmms_eval_emi.harness.lmms_eval.resume.runs import RunOptions, dry_run
    from lmms_eval_emi.harness.lmms_eval.resume.runs import run as run_resumable
    from lmms_eval_emi.harness.signals import Stopped

    if args.status:
        return _print_status(args.status)
    if args.recover:
        return _recover(args.recover.resolve(), args.recovered, trust=args.trust)
    options = RunOptions(
        args.output_path, tuple(harness_arguments(args)), args.save_every, not args.no_share, args.retry_empty
    )
    if args.dry_run:
        found = dry_run(options)
        if launch.is_main_process():
            for label, tasks in found.items():
                print(f"{label}\n" * (len(found) > 1) + states_table(tasks))
        return 0
    try:
        run_resumable(options)
    except Stopped as stopped:
        return stopped.status
    return 0


def harness_arguments(args: argparse.Namespace) -> list[str]:
    """Return the arguments for lmms-eval's own command.

    Raises:
        RunError: an option has a value that it does not take, or none says what to run.
    """
    if args.output_path is None:
        raise InputError("expected --output_path DIR, the folder of the run.")
    if args.save_every < 1:
        raise RunError(f"--save-every: expected 1 or more, got {args.save_every}.")
    if args.output_path.exists() and not args.output_path.is_dir():
        raise RunError(f"--output_path: expected a folder, got the file {args.output_path}.")
    others: Sequence[str] = args.others
    tasks = [*([args.tasks] if args.tasks else []), *(GROUPS[name] for name in args.study)]
    config = any(other == "--config" or other.startswith("--config=") for other in others)
    if not tasks and not config:
        raise RunError(f"expected --tasks NAMES or --study {'|'.join(GROUPS)}, got neither.")
    return [*others, *(["--tasks", ",".join(tasks)] if tasks else []), "--output_path", str(args.output_path)]


def states_table(tasks: Sequence[Any]) -> str:
    """Return how far every task is, as a table with sums."""
    rows = [[task.task, task.requests, task.answered, task.shared, task.left] for task in tasks]
    sums = [sum(row[column] for row in rows) for column in range(1, 5)]
    headers = ["task", "requests", "in the journal", "shared", "left"]
    shown = [*rows, ["all", *sums]] if len(rows) != 1 else rows
    return table(shown, headers, colalign=("left", *["right"] * 4))


def _print_status(folder: Path) -> int:
    """Print the requests of each task, whether the run is active, and the command that continues with it."""
    from lmms_eval_emi.harness.lmms_eval.resume.runs import status
    from lmms_eval_emi.util.journal import is_running, read_journal

    runs, running, damaged = status(folder), is_running(folder), read_journal(folder).damaged
    for number, run in enumerate(runs):
        described = run.described
        left = sum(task.left for task in run.tasks)
        if number == len(runs) - 1 and running:
            state = "running"
        elif not run.tasks:
            state = "nothing is planned yet"
        else:
            state = f"stopped, {left} left" if left else "every response is there"
        print(f"model      {described.get('model')} ({described.get('model_args')})")
        print(f"started    {described.get('started')}, {described.get('ranks')} rank(s)")
        print(f"state      {state}")
        if damaged:
            print(f"damaged    {damaged} incomplete record(s); their requests are generated again")
        if run.tasks:
            print(f"\n{states_table(run.tasks)}\n")
        if left or not run.tasks:
            print(f"go on with         {described.get('command')}")
        if any(task.answered for task in run.tasks):
            print(f"results so far     lmms-eval-emi run --recover {folder}")
    return 0


def _recover(folder: Path, output: Path | None, *, trust: bool) -> int:
    """Run lmms-eval's scoring on the responses that a journal contains."""
    from lmms_eval_emi.harness.lmms_eval.resume.runs import recover
    from lmms_eval_emi.util.files import RECOVERED

    target = output.resolve() if output else folder / RECOVERED
    tasks = recover(folder, target, trust=trust)
    left, total = sum(task.left + task.shared for task in tasks), sum(task.requests for task in tasks)
    part = f"of {total - left} of {total} requests: they are partial results"
    log.info("results %s, in %s", part if left else f"of all {total} requests", target)
    return 0
