"""``lmms-eval-emi validate``: whether a file is what the commands write."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmms_eval_emi.cli.options import add_command
from lmms_eval_emi.errors import InputError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands,
        "validate",
        examples=("lmms-eval-emi validate results.json", "lmms-eval-emi validate --schema results"),
        help="check files by the JSON Schemas of what the commands write",
        description="Check results, rows, audits, agreements, robustness, verdicts and differences by their JSON Schemas, and say where a file departs from its own. Exits with 1 if one does.",
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JSON files, or JSON lines of judge")
    parser.add_argument("--schema", metavar="NAME", help="print the schema of this name and stop; list for the names")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check each file, or print a schema."""
    import json

    from lmms_eval_emi.schemas import load_schema, problems_of, schema_names

    if args.schema == "list":
        print("\n".join(schema_names()))
        return 0
    if args.schema is not None:
        if args.schema not in schema_names():
            raise InputError(f"--schema: expected one of {', '.join(schema_names())}, got {args.schema!r}.")
        print(json.dumps(load_schema(args.schema), indent=1, ensure_ascii=False))
        return 0
    if not args.files:
        raise InputError("validate: expected files, or --schema NAME.")
    failed = False
    for path in args.files:
        try:
            kind, problems = problems_of(path)
        except (OSError, ValueError) as error:
            kind, problems = None, [str(error)]
        if kind is None and not problems:
            problems = ["it is none of the files that the commands write"]
        failed |= bool(problems)
        verdict = "valid" if not problems else "not valid"
        print(f"{path}: {verdict}" + (f" ({kind})" if kind else ""))
        for one in problems:
            print(f"  {one}")
    return 1 if failed else 0
