"""``lmms-eval-emi report``: results as a page, a table, plots, or the files of other tools; and whether files keep to their schemas."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

from lmms_eval_emi.cli.options import add_overwrite, new_parser
from lmms_eval_emi.errors import InputError, ResultsError
from lmms_eval_emi.util.files import Plain, parse_json, parse_model

# Where the model of each kind of file stands.
MODELS = {
    "result": "lmms_eval_emi.scoring.result:StudyResult",
    "rows": "lmms_eval_emi.scoring.rows:RowsDocument",
    "results": "lmms_eval_emi.scoring.rows:ResultsDocument",
    "differences": "lmms_eval_emi.scoring.compare:ComparisonDocument",
    "ranks": "lmms_eval_emi.scoring.compare:RanksDocument",
    "agreement": "lmms_eval_emi.scoring.agreement:AgreementDocument",
    "audit": "lmms_eval_emi.scoring.audit:AuditDocument",
    "verdict": "lmms_eval_emi.slices.judge.verdicts:Verdict",
    "preference": "lmms_eval_emi.slices.judge.preference:PreferenceDocument",
    "robustness": "lmms_eval_emi.slices.robustness.results:RobustnessDocument",
    "reproduction": "lmms_eval_emi.slices.reproduce.reproduction:ReproductionDocument",
}
PRINTED = ("md", "csv", "latex")
OF_OTHER_TOOLS = ("every-eval-ever", "lm-eval")


def load_model(kind: str) -> type[Plain]:
    """Return the model of a kind of file.

    Raises:
        InputError: there is no such kind.
    """
    if kind not in MODELS:
        raise InputError(f"--schema: expected one of {', '.join(MODELS)}, got {kind!r}.")
    module, _, name = MODELS[kind].partition(":")
    model: type[Plain] = getattr(importlib.import_module(module), name)
    return model


def check_file(path: Path) -> str:
    """Return the kind of a file that keeps to its schema, key for key.

    Args:
        path: a JSON file, or JSON lines of ``judge ask``.

    Raises:
        ResultsError: the file is not one that the commands write, or does not match its schema.
    """
    lines = path.suffix == ".jsonl"
    try:
        text = path.read_text(encoding="utf-8")
        contents = [parse_json(line) for line in (text.splitlines() if lines else [text])]
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: expected JSON: {error}") from error
    kind = "verdict" if lines else contents[0].get("kind") if isinstance(contents[0], dict) else None
    if kind not in MODELS or not contents:
        raise ResultsError(f"{path}: it is none of the files that the commands write.")
    for number, content in enumerate(contents, 1):
        source = f"{path}, line {number}" if lines else path
        parse_model(load_model(kind), content, source, what=f"content of the kind {kind}", exact=True)
    return str(kind)


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi report results.json",
            "lmms-eval-emi report a.json b.json agreement.json --output report.html",
            "lmms-eval-emi report results.json --format latex",
            "lmms-eval-emi report results.json --format every-eval-ever --output log.json",
            "lmms-eval-emi report --check results.json",
            "lmms-eval-emi report --schema result",
        ),
        description="Read results of score, estimators audit, judge agree and robustness, of harness runs or of the published script, and write one self-contained HTML page, a table (Markdown, CSV, LaTeX), plots (PNG), a log of every-eval-ever or a results file of lm-evaluation-harness. No number is lost.",
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="RESULTS",
        help="JSON files of score, estimators audit, judge agree or robustness, or output folders of harness runs",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="what to write; for png a folder (default: report.html, or stdout)",
    )
    parser.add_argument(
        "--format", choices=("html", *PRINTED, "png", *OF_OTHER_TOOLS), default="html", help="default: %(default)s"
    )
    parser.add_argument(
        "--full", action="store_true", help="with --format latex: every split, instead of one line a group of shifts"
    )
    parser.add_argument(
        "--no-published",
        action="store_true",
        help="leave out the published results that built-in studies are compared with",
    )
    add_overwrite(parser)
    others = parser.add_argument_group("files of other tools")
    others.add_argument("--only-model", metavar="NAME", help="whose results, where the file has several")
    others.add_argument(
        "--organization",
        default="unknown",
        metavar="NAME",
        help="that ran the evaluation, for every-eval-ever (default: %(default)s)",
    )
    others.add_argument("--model-id", metavar="ORG/NAME", help="the model's id, as the hub has it, for every-eval-ever")
    schemas = parser.add_argument_group("schemas")
    schemas.add_argument(
        "--check",
        action="store_true",
        help="check the files by the JSON Schemas of what the commands write, and stop; status 1 if one departs",
    )
    schemas.add_argument(
        "--schema", metavar="KIND", help="print the JSON Schema of a kind of file and stop; list: the kinds"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Read results, and write them as a page, a table or figures, or check them."""
    if args.schema:
        return _print_schema(args.schema)
    if not args.results:
        raise InputError("report: expected RESULTS, or --schema KIND.")
    if args.check:
        return _check(args.results)
    if args.format in OF_OTHER_TOOLS:
        return _export(args)
    from lmms_eval_emi.report.finding import comparability_lines
    from lmms_eval_emi.report.page import write_report
    from lmms_eval_emi.report.reading import read_findings, read_results
    from lmms_eval_emi.report.tables import to_text
    from lmms_eval_emi.slices.robustness.page import read_sections
    from lmms_eval_emi.util.files import check_output

    sections, others = read_sections(args.results)
    findings, others = read_findings(others)
    findings = replace(findings, sections=tuple(sections))
    results = read_results(others)
    if not results and args.format != "html":
        raise ResultsError(
            f"--format {args.format}: expected results of score; audits, agreements and robustness are shown by the page alone."
        )
    if results and not any(result.splits for result in results):
        raise ResultsError(f"{', '.join(map(str, args.results))}: the results have no split that was scored.")
    if args.output is None and args.format in PRINTED:
        print(to_text(results, args.format, full=args.full), end="")
        return 0
    output = args.output or Path("report.html" if args.format == "html" else "report")
    if args.format != "png":
        check_output(output, args.results, overwrite=args.overwrite, example="report.html")
    for line in comparability_lines(results):
        print(line, file=sys.stderr)
    written = write_report(
        results, output, format=args.format, full=args.full, compare=not args.no_published, findings=findings
    )
    for path in written:
        print(path)
    return 0


def _print_schema(kind: str) -> int:

    if kind == "list":
        print("\n".join(MODELS))
    else:
        print(json.dumps(load_model(kind).model_json_schema(), indent=1, ensure_ascii=False))
    return 0


def _check(paths: list[Path]) -> int:

    failed = False
    for path in paths:
        try:
            print(f"{path}: valid ({check_file(path)})")
        except ResultsError as error:
            failed = True
            print(f"not valid: {error}")
    return int(failed)


def _export(args: argparse.Namespace) -> int:
    from lmms_eval_emi.slices.export.formats import read_entry, to_every_eval_ever, to_lm_eval
    from lmms_eval_emi.util.files import check_output, to_json, write_atomically

    if len(args.results) != 1:
        raise InputError(f"--format {args.format}: expected one file of results, got {len(args.results)}.")
    (path,) = args.results
    if args.output:
        check_output(args.output, [path], overwrite=args.overwrite, example="exported.json")
    entry = read_entry(path, args.only_model)
    made = path.stat().st_mtime
    content = (
        to_every_eval_ever(entry, made, args.organization, args.model_id)
        if args.format == "every-eval-ever"
        else to_lm_eval(entry, made)
    )
    if args.output is None:
        print(to_json(content), end="")
    else:
        print(write_atomically(args.output, to_json(content)))
    return 0
