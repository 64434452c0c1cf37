"""``lmms-eval-emi compare``: which models differ, on which shifts, and how many images an effect needs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.cli.options import add_overwrite, add_settings, new_parser, settings_of
from lmms_eval_emi.errors import InputError, ResultsError
from lmms_eval_emi.util.printing import MARK, NOTHING, number, table, with_error

if TYPE_CHECKING:
    from lmms_eval_emi.scoring.compare import Difference, Estimate


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi compare a.json b.json",
            "lmms-eval-emi compare results/*.json --output differences.json",
            "lmms-eval-emi compare results.json --power 0.005",
            "lmms-eval-emi compare --scores accuracy.csv",
        ),
        description="Differences of EMI and EMID between the models of some results, with intervals that match their images; which shifts separate them, and which models cannot be told apart.",
    )
    parser.add_argument(
        "results", nargs="*", type=Path, metavar="RESULTS", help="JSON files of score or of harness runs"
    )
    parser.add_argument(
        "--scores",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="instead: scores of rows by any metric, of at least two models: csv, tsv, json or jsonl with score, question_id, model (default: the file's name), and perhaps split, and image, whose rows count as one observation",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the differences as JSON")
    parser.add_argument(
        "--allow-different", action="store_true", help="compare although encoders, estimators or conventions differ"
    )
    add_overwrite(parser)
    add_settings(parser, "adjust", "seed")
    power = parser.add_argument_group("power")
    power.add_argument(
        "--power",
        type=float,
        metavar="EMID",
        help="instead: the smallest EMID that each shift can show today, and how many images (not rows) this EMID would need",
    )
    power.add_argument(
        "--chance", type=float, default=0.8, metavar="P", help="chance of finding it at 5 %% (default: %(default)s)"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Compare the models of some result files, print the differences, and write them if asked."""
    if args.scores:
        return _print_ranks(args)
    if not args.results:
        raise InputError("compare: expected RESULTS or --scores FILE, got neither.")
    if args.power is not None:
        return _print_power(args)
    settings = settings_of(args)
    from lmms_eval_emi.scoring.compare import (
        Comparison,
        ComparisonDocument,
        check_comparable,
        compare,
        indistinguishable,
        read_compared,
    )
    from lmms_eval_emi.util.files import check_output

    if args.output:
        check_output(args.output, args.results, overwrite=args.overwrite, example="differences.json")
    results = read_compared(args.results)
    if len(results) < 2:
        raise ResultsError("compare: expected the results of at least two models, got one.")
    problems = check_comparable(results)
    if problems and not args.allow_different:
        raise ResultsError(
            f"the results are not comparable: {'; '.join(problems)}. Score them alike, or pass --allow-different."
        )

    written = []
    for first, second in combinations(results, 2):
        differences = compare(first, second, settings.adjust, settings.seed)
        print(f"{first.label} - {second.label}")
        _print_differences(differences, settings.adjust)
        written.append(Comparison(first=first.label, second=second.label, differences=differences))
    groups = indistinguishable(results)
    for group in groups:
        kind = "cannot be told apart by mean EMID" if len(group) > 1 else "differs from all others by mean EMID"
        print(f"{', '.join(group)}: {kind}")
    if args.output:
        ComparisonDocument(adjust=settings.adjust, comparisons=written, indistinguishable=groups).write(args.output)
    return 0


def _print_differences(differences: Sequence[Difference], adjust: str) -> None:
    """Print the differences of two models by split, and which shifts separate them."""
    rows = [
        [
            difference.split,
            _estimate(difference.emi),
            _estimate(difference.emid, MARK if difference.separates else ""),
            f"[{difference.emid.ci95[0]:.4g}, {difference.emid.ci95[1]:.4g}]"
            if difference.emid and difference.emid.ci95
            else NOTHING,
            number(difference.p_adjusted, ".2g"),
        ]
        for difference in differences
    ]
    print(table(rows, ["split", "EMI ± SE", "EMID ± SE", "95 %", "p"]))
    shifts = [difference for difference in differences if difference.emid and difference.emi]
    apart = [shift.split for shift in shifts if shift.separates]
    print(f"{len(apart)} of {len(shifts)} shifts separate them ({adjust}, 5 %): {', '.join(apart) or 'none'}")
    print("EMID above 0: the first model lost more.\n")


def _estimate(estimate: Estimate | None, mark: str = "") -> str:
    return with_error(estimate.value, estimate.stderr, mark) if estimate else NOTHING


def _print_ranks(args: argparse.Namespace) -> int:
    """Print the models with the places between which each may stand."""
    from lmms_eval_emi.scoring.compare import RanksDocument, rank, read_row_scores
    from lmms_eval_emi.util.files import check_output

    if args.results:
        raise InputError("compare: --scores takes the place of RESULTS; give one of them.")
    if args.output:
        check_output(args.output, args.scores, overwrite=args.overwrite, example="ranks.json")
    settings = settings_of(args)
    found = rank(read_row_scores(args.scores), settings.adjust, settings.seed)
    rows = [
        [
            ranked.model,
            with_error(ranked.score, ranked.stderr),
            f"{ranked.best}" if ranked.best == ranked.worst else f"{ranked.best} to {ranked.worst}",
        ]
        for ranked in found
    ]
    print(table(rows, ["model", "score ± SE", "place"]))
    print(
        f"{found[0].rows} rows that all models have. place: between which a model may stand, by differences paired in rows ({settings.adjust} over all pairs, 5 %)."
    )
    if args.output:
        RanksDocument(adjust=settings.adjust, models=found).write(args.output)
    return 0


def _print_power(args: argparse.Namespace) -> int:
    from lmms_eval_emi.scoring.compare import power, read_compared

    for result in read_compared(args.results):
        found = power(result, args.power, args.chance)
        print(f"{result.label}, {result.study}: EMID of {args.power:g} found with a chance of {args.chance:.0%} at 5 %")
        if not found:
            print("No shift has images enough to say.\n")
            continue
        rows = [
            [shift.name, shift.images, f"{shift.stderr:.2g}", f"{shift.detectable:.2g}", f"{shift.needed:,}"]
            for shift in found
        ]
        headers = ["shift", "images", "SE", "detectable today", "images needed"]
        print(table(rows, headers, colalign=("left", *["right"] * 4)))
        print(f"All shifts: {max(shift.needed for shift in found):,} images.\n")
    return 0
