"""``lmms-eval-emi run``: lmms-eval with every response on the disk, and none generated twice."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lmms_eval_emi.cli.options import add_command
from lmms_eval_emi.data.study import BUILT_IN, BUNDLED
from lmms_eval_emi.errors import RunError

GROUPS = {**{name: f"llavabench_shift_{name}" for name in (*BUILT_IN, *BUNDLED)}, "all": "llavabench_shift"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands,
        "run",
        examples=(
            "lmms-eval-emi run --shift natural --model llava_hf --model_args pretrained=llava-hf/llava-1.5-7b-hf --output_path out",
            "lmms-eval-emi run --tasks mme --model llava_hf --output_path out --dry-run",
        ),
        help="run lmms-eval so that no response is lost or generated twice",
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
        required=True,
        metavar="DIR",
        help="folder of the run: journal, results and responses",
    )
    parser.add_argument("--tasks", metavar="NAMES", help="tasks and groups of lmms-eval, with commas between")
    parser.add_argument(
        "--shift",
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
        "--dry-run", action="store_true", help="show how many requests each task has and how many are left, and stop"
    )
    parser.set_defaults(run=run, takes_others=True)


def run(args: argparse.Namespace) -> int:
    """Run, or show what there is to do."""
    from lmms_eval_emi.harness.lmms_eval import compat
    from lmms_eval_emi.harness.lmms_eval.resume.runs import RunOptions, dry_run
    from lmms_eval_emi.harness.lmms_eval.resume.runs import run as run_resumable
    from lmms_eval_emi.harness.signals import Stopped

    options = RunOptions(args.output_path, tuple(harness_arguments(args)), args.save_every, not args.no_share)
    if args.dry_run:
        found = dry_run(options)
        if compat.is_main_process():
            print(states_table(found))
        return 0
    try:
        run_resumable(options)
    except Stopped as stopped:
        return stopped.status
    return 0


def harness_arguments(args: argparse.Namespace) -> list[str]:
    """What lmms-eval's own command is given.

    Raises:
        RunError: an option has a value that it does not take, or none says what to run.
    """
    if args.save_every < 1:
        raise RunError(f"--save-every: expected 1 or more, got {args.save_every}.")
    if args.output_path.exists() and not args.output_path.is_dir():
        raise RunError(f"--output_path: expected a folder, got the file {args.output_path}.")
    others: Sequence[str] = args.others
    tasks = [*([args.tasks] if args.tasks else []), *(GROUPS[name] for name in args.shift)]
    config = any(one == "--config" or one.startswith("--config=") for one in others)
    if not tasks and not config:
        raise RunError(f"expected --tasks NAMES or --shift {'|'.join(GROUPS)}, got neither.")
    return [*others, *(["--tasks", ",".join(tasks)] if tasks else []), "--output_path", str(args.output_path)]


def states_table(tasks: Sequence) -> str:
    """How far every task is, as a table with sums."""
    from tabulate import tabulate

    rows = [[one.task, one.requests, one.answered, one.shared, one.left] for one in tasks]
    sums = [sum(row[column] for row in rows) for column in range(1, 5)]
    headers = ["task", "requests", "in the journal", "shared", "left"]
    return tabulate([*rows, ["all", *sums]] if len(rows) != 1 else rows, headers=headers)
