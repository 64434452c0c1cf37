"""``lmms-eval-emi tasks write``: the task and group files of a study of your own."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmms_eval_emi.cli.options import add_settings, new_parser, settings_of
from lmms_eval_emi.errors import OutputError


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        description="Write the task and group files of a study of your own, for lmms-eval --include_path.",
        examples=("lmms-eval-emi tasks write my_study.yaml my_tasks",),
    )
    parser.add_argument("study", metavar="FILE", help="study file")
    parser.add_argument("output", type=Path, metavar="DIR", help="folder to write, for lmms-eval --include_path DIR")
    add_settings(parser, "images")
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the files, and print how to run them."""
    from lmms_eval_emi.data.rows import check_place
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.harness.common import groups
    from lmms_eval_emi.harness.lmms_eval.compat.launch import command_line
    from lmms_eval_emi.harness.lmms_eval.write_tasks import write_task_files

    study, settings = load_study(args.study), settings_of(args)
    for spec in {split.dataset.path: split.dataset for split in study.splits.values()}.values():
        if (local := study.local_path(spec)) is not None:
            check_place(study, local, settings.images)
    existing = args.output.is_dir() and [
        path.name for path in args.output.iterdir() if path.name not in {"groups", study.name}
    ]
    if existing:
        raise OutputError(
            f"output: expected a new or empty folder, or one of earlier task files; {args.output} holds {', '.join(existing[:5])}."
        )
    count = write_task_files(args.output, [study.trust()], suite=None)
    print(f"{count} files written below {args.output}")
    for name, members in groups([study], suite=None).items():
        print(f"  {name}: {len(members)} tasks")
    print(f"run them with: {command_line(study.group, args.output)}")
    return 0
