"""``lmms-eval-emi shifts twins``: shifted twins of the harness's tasks."""

from __future__ import annotations

import argparse
import logging
import shlex
from collections.abc import Iterable
from pathlib import Path

from lmms_eval_emi.cli.options import new_parser
from lmms_eval_emi.errors import EMIError, StudyError

log = logging.getLogger("lmms_eval_emi")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi shifts twins mme pope --visual fog:1,3,5 rotation:3 --textual keyboard:3 --output my_twins",
            "lmms-eval --include_path my_twins --tasks mme_robustness --model ... --output_path OUT --log_samples",
            "lmms-eval-emi robustness OUT --output robustness.json",
        ),
        description="Write task files of shifted twins of any tasks, groups or tags of lmms-eval, in a folder that is complete: with it as --include_path, the group TASK_robustness runs the clean task and its twins. Rows are shifted as they are read; nothing else is written. Options of a multiple-choice question and closing instructions stay as they are.",
    )
    parser.add_argument("task", nargs="*", metavar="TASK", help="task, group or tag of lmms-eval")
    parser.add_argument(
        "--visual",
        nargs="+",
        default=[],
        metavar="NAME:LEVEL,LEVEL",
        help="operators on images (lmms-eval-emi shifts list); without levels, all of them",
    )
    parser.add_argument("--textual", nargs="+", default=[], metavar="NAME:LEVEL,LEVEL", help="operators on texts")
    parser.add_argument("--joint", action="store_true", help="add every pair of a visual and a textual shift")
    parser.add_argument("--suite", metavar="NAME", help="tasks and operators of a suite (lmms-eval-emi shifts suites)")
    parser.add_argument("--include-path", type=Path, metavar="DIR", help="folder with tasks of your own")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write, for lmms-eval --include_path DIR")
    parser.add_argument(
        "--question-column",
        action="append",
        default=[],
        metavar="NAME",
        help="column of text to shift; may be repeated (default: what the task's prompt is made of, options left out)",
    )
    parser.add_argument(
        "--image-column",
        action="append",
        default=[],
        metavar="NAME",
        help="column of images to shift; may be repeated (default: all)",
    )
    parser.add_argument(
        "--keep", nargs="+", default=[], metavar="WORD", help="words that textual operators leave alone"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all operators (default: %(default)s)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show what each twin does to one row, which loads the datasets; write nothing",
    )
    return parser


def print_next_commands(folder: Path, tasks: Iterable[str]) -> None:
    """Print how to run the task files of a folder, and how to compare what they log."""
    for name in tasks:
        print(
            f"lmms-eval --include_path {shlex.quote(str(folder))} --tasks {name}_robustness --log_samples --output_path OUT --model ..."
        )
    print("lmms-eval-emi robustness OUT --output robustness.json")


def run(args: argparse.Namespace) -> int:
    """Resolve the named tasks, and show or write their shifted tasks."""
    from lmms_eval_emi.harness.lmms_eval.twin_tasks import resolve
    from lmms_eval_emi.harness.lmms_eval.write_twins import TwinOptions, preview, twin_files, write_twin_files
    from lmms_eval_emi.shifts.apply import parse_steps, recipes

    if args.output is None and not args.dry_run:
        raise StudyError("twins: expected --output DIR, or --dry-run.")
    names, visual, textual = list(args.task), list(args.visual), list(args.textual)
    if args.suite:
        from lmms_eval_emi.data.suites import load_suite

        suite = load_suite(args.suite, kind="twins")
        names, visual, textual = (
            names or list(suite.tasks),
            visual or list(suite.visual),
            textual or list(suite.textual),
        )
    if not names:
        raise StudyError("twins: expected at least one TASK of lmms-eval, or --suite NAME, got none.")
    images = [step for specification in visual for step in parse_steps("visual", specification)]
    texts = [step for specification in textual for step in parse_steps("text", specification)]
    made = [recipe for recipe in recipes(images, texts, args.joint) if recipe.steps]
    options = TwinOptions(args.seed, tuple(args.keep), tuple(args.question_column), tuple(args.image_column))
    tasks = resolve(names, args.include_path)
    leaves = list({task.name: task for members in tasks.values() for task in members}.values())
    if args.dry_run:
        failed = 0
        for task in leaves:
            for recipe in made:
                try:
                    print("\n".join(preview(task, recipe, options)))
                except EMIError as error:
                    failed += 1
                    print(f"{task.name}, {recipe.name}: {error}")
        print(
            f"\n{len(leaves)} tasks, {len(leaves) * len(made)} twins"
            + (f"; {failed} cannot be shown" if failed else "")
        )
        return 1 if failed else 0
    write_twin_files(args.output, twin_files(tasks, made, options))
    print_next_commands(args.output, tasks)
    log.info("%d twins of %d tasks written to %s", len(leaves) * len(made), len(leaves), args.output)
    return 0
