"""``lmms-eval-emi tasks``: which tasks there are, and where."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmms_eval_emi.cli.options import add_command
from lmms_eval_emi.errors import StudyError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands,
        "tasks",
        examples=(
            "lmms-eval-emi tasks",
            "lmms-eval-emi tasks --from-study my_study.yaml --output my_tasks",
        ),
        help="list the tasks and groups, and print their folder",
        description="List the tasks and groups that lmms-eval finds after installation, and the folder for --include_path, which lmms-eval tasks list needs.",
    )
    parser.add_argument("--from-study", metavar="FILE", help="write the task and group files of a study of your own")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write them, for lmms-eval --include_path DIR"
    )
    parser.add_argument("--path", action="store_true", help="print only the folder")
    parser.add_argument(
        "--check", action="store_true", help="find out whether lmms-eval finds the tasks by itself, and if not, why"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the folder, the groups and the tasks."""
    from tabulate import tabulate

    from lmms_eval_emi.data.study import BUILT_IN, BUNDLED, load_study
    from lmms_eval_emi.harness.lmms_eval.compat import tasks_folder
    from lmms_eval_emi.harness.lmms_eval.write_tasks import groups

    if args.from_study or args.output:
        return _write(args)
    if args.path:
        print(tasks_folder())
        return 0
    if args.check:
        return _check()
    built_in, bundled = ([load_study(name) for name in names] for names in (BUILT_IN, BUNDLED))
    rows = [
        [study.task_name(name), split.modality, " + ".join(map(str, split.shifts)) or "in distribution", name]
        for study in (*built_in, *bundled)
        for name, split in study.splits.items()
    ]
    print(
        tabulate(
            [[name, len(members)] for name, members in (groups(built_in) | groups(bundled, suite=None)).items()],
            headers=["group", "tasks"],
        )
    )
    print()
    print(tabulate(rows, headers=["task", "modality", "shift", "split"]))
    print(f"\nfolder (lmms-eval --include_path): {tasks_folder()}")
    return 0


def _check() -> int:
    from lmms_eval_emi.harness.lmms_eval.compat import broken_entry_points, remedy

    broken = broken_entry_points()
    for name, reason in broken.items():
        print(f"The plugin {name} of lmms-eval cannot be loaded: {reason}")
    if broken:
        print(f"It may keep lmms-eval from finding the tasks of this package. Remove or fix it, or:\n{remedy()}")
        return 1
    print("lmms-eval finds the tasks: every plugin that it loads can be loaded.")
    return 0


def _write(args: argparse.Namespace) -> int:
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.harness.lmms_eval.compat import command_line
    from lmms_eval_emi.harness.lmms_eval.write_tasks import groups, write_task_files

    if not (args.from_study and args.output):
        raise StudyError("tasks: --from-study FILE and --output DIR go together.")
    study = load_study(args.from_study)
    existing = args.output.is_dir() and [
        path.name for path in args.output.iterdir() if path.name not in {"groups", study.name}
    ]
    if existing:
        raise StudyError(
            f"output: expected a new or empty folder, or one of earlier task files; {args.output} holds {', '.join(existing[:5])}."
        )
    count = write_task_files(args.output, [study], suite=None)
    print(f"{count} files written below {args.output}")
    for name, members in groups([study], suite=None).items():
        print(f"  {name}: {len(members)} tasks")
    print(f"run them with: {command_line(study.group, args.output)}")
    return 0
