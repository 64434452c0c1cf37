"""``lmms-eval-emi tasks``: which tasks there are, and where."""

from __future__ import annotations

import argparse


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "tasks",
        help="list the tasks and groups, and print their folder",
        description="List the tasks and groups that lmms-eval finds after installation, and the folder for --include_path, which lmms-eval tasks list needs.",
    )
    parser.add_argument("--path", action="store_true", help="print only the folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the folder, the groups and the tasks."""
    from tabulate import tabulate

    from lmms_eval_emi.harness.task_files import groups, tasks_folder
    from lmms_eval_emi.studies.catalogue import BUILT_IN, load_study

    if args.path:
        print(tasks_folder())
        return 0
    studies = [load_study(name) for name in BUILT_IN]
    rows = [
        [study.task_name(name), split.modality, " + ".join(map(str, split.shifts)) or "in distribution", name]
        for study in studies
        for name, split in study.splits.items()
    ]
    print(tabulate([[name, len(members)] for name, members in groups(studies).items()], headers=["group", "tasks"]))
    print()
    print(tabulate(rows, headers=["task", "modality", "shift", "split"]))
    print(f"\nfolder (lmms-eval --include_path): {tasks_folder()}")
    return 0
