"""``lmms-eval-emi compare``: which models differ, on which shifts."""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

from lmms_eval_emi.cli.options import add_command, add_overwrite, add_settings, settings_of
from lmms_eval_emi.errors import ResultsError


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = add_command(
        commands,
        "compare",
        examples=(
            "lmms-eval-emi compare a.json b.json",
            "lmms-eval-emi compare results/*.json --output differences.json",
        ),
        help="compare models on the same splits, with paired errors",
        description="Differences of EMI and EMID between the models of some results, with intervals that match their images; which shifts separate them, and which models cannot be told apart.",
    )
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="JSON files of score or of harness runs"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the differences as JSON")
    parser.add_argument(
        "--allow-different", action="store_true", help="compare although encoders, estimators or conventions differ"
    )
    add_overwrite(parser)
    add_settings(parser, "adjust", "seed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, compare, print, write."""
    settings = settings_of(args)
    from tabulate import tabulate

    from lmms_eval_emi.core.jackknife import Jackknife
    from lmms_eval_emi.scoring.compare import check_comparable, compare, indistinguishable, read_stored
    from lmms_eval_emi.scoring.table import MARK, NOTHING, with_error
    from lmms_eval_emi.util.files import check_output, to_json, write_atomically

    if args.output:
        check_output(args.output, args.results, overwrite=args.overwrite, example="differences.json")
    results = read_stored(args.results)
    if len(results) < 2:
        raise ResultsError("compare: expected the results of at least two models, got one.")
    problems = check_comparable(results)
    if problems and not args.allow_different:
        raise ResultsError(
            f"the results are not comparable: {'; '.join(problems)}. Score them alike, or pass --allow-different."
        )

    def plain(one: Jackknife | None) -> dict | None:
        return None if one is None else {"value": one.value, "stderr": one.stderr, "ci95": one.ci95, "p": one.p_value}

    written = []
    for first, second in combinations(results, 2):
        differences = compare(first, second, settings.adjust, settings.seed)
        rows = [
            [
                one.name,
                with_error(one.emi) if one.emi else NOTHING,
                with_error(one.emid, MARK if one.separates else "") if one.emid else NOTHING,
                f"[{one.emid.ci95[0]:.4g}, {one.emid.ci95[1]:.4g}]" if one.emid and one.emid.ci95 else NOTHING,
                NOTHING if one.p_adjusted is None else f"{one.p_adjusted:.2g}",
            ]
            for one in differences
        ]
        print(f"{first.label} - {second.label}")
        print(tabulate(rows, headers=["split", "EMI ± SE", "EMID ± SE", "95 %", "p"], disable_numparse=True))
        shifts = [one for one in differences if one.emid and one.emi]
        apart = [one.name for one in shifts if one.separates]
        print(
            f"{len(apart)} of {len(shifts)} shifts separate them ({settings.adjust}, 5 %): {', '.join(apart) or 'none'}"
        )
        print("EMID above 0: the first model lost more.\n")
        written.append(
            {
                "first": first.label,
                "second": second.label,
                "differences": [
                    {"split": one.name, "emi": plain(one.emi), "emid": plain(one.emid), "p_adjusted": one.p_adjusted}
                    for one in differences
                ],
            }
        )
    groups = indistinguishable(results)
    for group in groups:
        kind = "cannot be told apart by mean EMID" if len(group) > 1 else "differs from all others by mean EMID"
        print(f"{', '.join(group)}: {kind}")
    if args.output:
        content = {"format_version": 1, "adjust": settings.adjust, "comparisons": written, "indistinguishable": groups}
        write_atomically(args.output, to_json(content))
    return 0
