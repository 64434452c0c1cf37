"""``lmms-eval-emi tasks list``: the tasks and groups, and their folder."""

from __future__ import annotations

import argparse

from lmms_eval_emi.cli.options import new_parser
from lmms_eval_emi.util.printing import table


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        description="List the tasks and groups that lmms-eval finds after installation, and the folder for --include_path, which lmms-eval tasks list needs.",
        examples=(
            "lmms-eval-emi tasks list",
            'lmms-eval tasks list --include-path "$(lmms-eval-emi tasks path)"',
        ),
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the groups, the tasks and the folder."""
    from lmms_eval_emi.data.study import BUILT_IN, BUNDLED, load_study
    from lmms_eval_emi.harness.common import groups
    from lmms_eval_emi.harness.lmms_eval.compat.task_index import tasks_folder

    built_in, bundled = ([load_study(name) for name in names] for names in (BUILT_IN, BUNDLED))
    members = groups(built_in) | groups(bundled, suite=None)
    print(table([[name, len(tasks)] for name, tasks in members.items()], ["group", "tasks"]))
    rows = [
        [study.task_name(name), split.modality, " + ".join(map(str, split.shifts)) or "in distribution", name]
        for study in (*built_in, *bundled)
        for name, split in study.splits.items()
    ]
    print(f"\n{table(rows, ['task', 'modality', 'shift', 'split'])}")
    print(f"\nfolder (lmms-eval --include_path): {tasks_folder()}")
    return 0
