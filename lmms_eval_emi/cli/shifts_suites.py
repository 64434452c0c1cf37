"""``lmms-eval-emi shifts suites``: the robustness suites that others published."""

from __future__ import annotations

import argparse
import logging
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.cli.options import new_parser
from lmms_eval_emi.cli.shifts_twins import print_next_commands
from lmms_eval_emi.errors import StudyError
from lmms_eval_emi.util.printing import table

if TYPE_CHECKING:
    from lmms_eval_emi.data.suites import Suite

log = logging.getLogger("lmms_eval_emi")

MARK = "Written by lmms-eval-emi shifts suites"  # first line of the study files written here


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi shifts suites",
            "lmms-eval-emi shifts suites pope_corruption",
            "lmms-eval-emi shifts suites pope_corruption --output my_tasks",
        ),
        description="List the suites, say where one is from and what it needs, or write its tasks for lmms-eval --include_path.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="suite to describe, or to write")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write its tasks")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="its data, where they are not on the hub, or in the place of those that are",
    )
    parser.add_argument(
        "--per-class",
        type=int,
        default=50,
        metavar="N",
        help="of a suite of domains: most pictures of each class and domain (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="by which they are drawn (default: %(default)s)")
    return parser


def run(args: argparse.Namespace) -> int:
    """List the published suites, describe one, or write its tasks."""
    from lmms_eval_emi.data.suites import load_suite, suite_names

    if args.name is None:
        if args.output or args.data:
            raise StudyError(
                f"suites: expected the NAME of a suite with --output; they are {', '.join(suite_names())}."
            )
        suites = [load_suite(name) for name in suite_names()]
        print(table([[suite.name, suite.kind, suite.title] for suite in suites], ["suite", "kind", "what it is"]))
        print(
            "\nstudy: splits with references, scored by EMI. twins: operators for tasks of lmms-eval. domains: labelled pictures by domain. lmms-eval-emi shifts suites NAME says more."
        )
        return 0
    suite = load_suite(args.name)
    if args.output is None:
        print(_described(suite))
        return 0
    if args.per_class < 1:
        raise StudyError(f"--per-class: expected at least 1, got {args.per_class}.")
    write: Any = {"study": _write_study, "twins": _write_twins, "domains": _write_domains}[suite.kind]
    write(suite, args)
    return 0


def _described(suite: Suite) -> str:
    fields = {
        "source": suite.source,
        "from": suite.url,
        "licence": suite.licence,
        "needs": suite.needs,
        "published": suite.published,
        "our choice": suite.ours,
    }
    lines = [f"{suite.name} ({suite.kind}): {suite.title}"]
    for label, text in fields.items():
        if text:
            lines += textwrap.wrap(f"{label}: {' '.join(text.split())}", 110, subsequent_indent="  ")
    if suite.kind == "study":
        study = suite.study or {}
        lines.append(f"splits: {', '.join(study.get('splits', {}))}")
        lines.append(
            f"use: lmms-eval-emi shifts suites {suite.name} --output DIR --data FOLDER; then lmms-eval --include_path DIR/tasks, and score --study DIR/study.yaml"
            if suite.prepare
            else f"use: lmms-eval-emi shifts suites {suite.name} --output DIR; lmms-eval --include_path DIR/tasks --tasks {study.get('group')}; lmms-eval-emi score {suite.name}"
        )
    elif suite.kind == "twins":
        lines.append(f"tasks: {', '.join(suite.tasks)}")
        lines.append(f"operators: {', '.join((*suite.visual, *suite.textual))}")
        lines.append(
            f"use: lmms-eval-emi shifts twins [TASK ...] --suite {suite.name} --output DIR, then lmms-eval-emi robustness OUT"
        )
    else:
        lines.append(f"domains: {', '.join(suite.domains.names if suite.domains else ())}")
        lines.append(
            f"use: lmms-eval-emi shifts suites {suite.name} --output DIR; lmms-eval --include_path DIR --tasks {suite.name}_robustness --log_samples; lmms-eval-emi robustness OUT"
        )
    return "\n".join(lines)


def _write_study(suite: Suite, args: argparse.Namespace) -> None:
    import copy

    import yaml

    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.harness.lmms_eval.write_tasks import write_task_files
    from lmms_eval_emi.util.files import write_atomically

    path = args.output / "study.yaml"
    if args.data is not None and not suite.prepare and not args.data.exists():
        raise StudyError(f"--data: expected a folder or file, got {args.data}, which is not there.")
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]:
        raise StudyError(
            f"--output: {path} is another file than lmms-eval-emi shifts suites writes. Name another folder."
        )
    fields: dict[str, Any] = copy.deepcopy(suite.study or {})
    if suite.prepare:
        if args.data is None:
            raise StudyError(f"suite {suite.name}: expected --data FOLDER. It needs {' '.join(suite.needs.split())}")
        from lmms_eval_emi.data.suites import PREPARE

        count = PREPARE[suite.prepare](args.data, args.output)
        log.info("%d rows written to %s", count, args.output)
    elif args.data is not None:  # a released set, whose splits hold their shifts already
        fields["dataset"] |= {"path": str(args.data.resolve())}
        fields["dataset"].pop("split", None)
        fields["dataset"].pop("shifts_at_load", None)
        for split in fields["splits"].values():
            split.pop("dataset", None)
    text = f"# After {suite.source}. {MARK} {suite.name}.\n"
    write_atomically(path, text + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))
    study = load_study(path).trust()
    count = write_task_files(args.output / "tasks", [study], suite=None)
    print(f"lmms-eval --include_path {shlex.quote(str(args.output / 'tasks'))} --tasks {study.group} --model ...")
    allowed = f" --images {shlex.quote(str(args.data.resolve()))}" if args.data is not None else ""
    print(f"lmms-eval-emi score {shlex.quote(str(path))} RESPONSES{allowed}")
    log.info("a study of %d splits and %d files of tasks written to %s", len(study.splits), count, args.output)


def _write_twins(suite: Suite, args: argparse.Namespace) -> None:
    from lmms_eval_emi.harness.lmms_eval.twin_tasks import resolve
    from lmms_eval_emi.harness.lmms_eval.write_twins import TwinOptions, twin_files, write_twin_files
    from lmms_eval_emi.shifts.apply import parse_steps, recipes

    images = [step for specification in suite.visual for step in parse_steps("visual", specification)]
    texts = [step for specification in suite.textual for step in parse_steps("text", specification)]
    made = [recipe for recipe in recipes(images, texts, False) if recipe.steps]
    tasks = resolve(suite.tasks)
    write_twin_files(args.output, twin_files(tasks, made, TwinOptions(args.seed)))
    print_next_commands(args.output, tasks)


def _write_domains(suite: Suite, args: argparse.Namespace) -> None:
    from lmms_eval_emi.harness.lmms_eval.domain_tasks import domain_files, write_pictures
    from lmms_eval_emi.harness.lmms_eval.write_twins import PICTURES, write_twin_files

    files = domain_files(suite, args.data, args.per_class, args.seed)
    write_twin_files(args.output, files)
    if args.data is not None:
        count = write_pictures(suite, args.data, args.output / PICTURES, args.per_class, args.seed)
        log.info("%d pictures written to %s", count, args.output / PICTURES)
    print_next_commands(args.output, [suite.name])
