"""``lmms-eval-emi report``: results as a page, a table or plots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lmms_eval_emi.cli.options import add_command, add_overwrite
from lmms_eval_emi.errors import ResultsError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands,
        "report",
        examples=(
            "lmms-eval-emi report results.json",
            "lmms-eval-emi report a.json b.json agreement.json --output report.html",
            "lmms-eval-emi report results.json --format latex",
        ),
        help="show results as a self-contained page, a table or plots",
        description="Read results of score, audit and agreement, of harness runs or of the published script, and write one self-contained HTML page, a table (Markdown, CSV, LaTeX) or plots (PNG).",
    )
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULTS",
        help="JSON files of score, audit or agreement, or output folders of harness runs",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="what to write; for png a folder (default: report.html, or the table on stdout)",
    )
    parser.add_argument(
        "--format", choices=("html", "md", "csv", "latex", "png"), default="html", help="default: %(default)s"
    )
    parser.add_argument(
        "--full", action="store_true", help="with --format latex: every split, instead of one line a group of shifts"
    )
    parser.add_argument(
        "--no-published",
        action="store_true",
        help="leave out the published results that built-in families are compared with",
    )
    add_overwrite(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, write."""
    from lmms_eval_emi.report.finding import comparability_lines
    from lmms_eval_emi.report.page import to_text, write_report
    from lmms_eval_emi.report.reading import read_findings, read_results
    from lmms_eval_emi.util.files import check_output

    findings, others = read_findings(args.results)
    results = read_results(others)
    if not results and args.format != "html":
        raise ResultsError(
            f"--format {args.format}: expected results of score; audits and agreements are shown by the page alone."
        )
    if args.output is None and args.format in {"md", "csv", "latex"}:
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
