"""``lmms-eval-emi export``: results in the forms that others read."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from lmms_eval_emi.cli.options import add_command, add_overwrite

log = logging.getLogger("lmms_eval_emi")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands,
        "export",
        examples=(
            "lmms-eval-emi export results.json --format every-eval-ever --output log.json",
            "lmms-eval-emi export results.json --format lm-eval --output results_lm_eval.json",
        ),
        help="write results in the forms that others read",
        description="Write the results of one model as an aggregate log of every-eval-ever, with uncertainty, or as a results file of lm-evaluation-harness, which its viewers and comparison scripts open. No number is lost.",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="JSON file of score or of a harness run")
    parser.add_argument("--format", choices=("every-eval-ever", "lm-eval"), required=True, help="form to write")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where to write")
    parser.add_argument("--model", metavar="NAME", help="whose results, where the file has several")
    parser.add_argument(
        "--organization", default="unknown", metavar="NAME", help="that ran the evaluation, for every-eval-ever"
    )
    parser.add_argument("--model-id", metavar="ORG/NAME", help="the model's id, as the hub has it, for every-eval-ever")
    add_overwrite(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, convert, write."""
    from lmms_eval_emi.slices.export.formats import read_entry, to_every_eval_ever, to_lm_eval
    from lmms_eval_emi.util.files import check_output, to_json, write_atomically

    check_output(args.output, [args.results], overwrite=args.overwrite, example="exported.json")
    entry = read_entry(args.results, args.model)
    made = args.results.stat().st_mtime
    content = (
        to_every_eval_ever(entry, made, args.organization, args.model_id)
        if args.format == "every-eval-ever"
        else to_lm_eval(entry, made)
    )
    write_atomically(args.output, to_json(content))
    log.info("%s of %s written to %s", args.format, entry.model, args.output)
    return 0
