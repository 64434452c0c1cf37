"""``lmms-eval-emi judge agree``: EMI and EMID beside the scores that others give."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.cli.options import add_overwrite, add_settings, new_parser, settings_of
from lmms_eval_emi.errors import ResultsError

if TYPE_CHECKING:
    from lmms_eval_emi.core.correlation import Correlation
    from lmms_eval_emi.scoring.agreement import Agreement

log = logging.getLogger("lmms_eval_emi")

LABELS = {"emi": "EMI", "emid": "EMID", "index": "index", "cosine": "cosine", "lead": "lead over the cosine"}


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi judge agree results.json --judged judged.jsonl --output agreement.json",
            "lmms-eval-emi judge agree results.json --scores accuracy=accuracy.csv --scores human=human.jsonl",
        ),
        description="Correlate EMI of splits with another score of them, EMID and the index with what that score loses, and within splits the values of rows with the scores of rows. The cosine of response and reference stands beside EMI, as the baseline that it must beat.",
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="JSON files of score, with their rows")
    parser.add_argument(
        "--judged",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="verdicts of lmms-eval-emi judge ask; may be repeated",
    )
    parser.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="CSV or JSON lines with split, score, for scores of rows question_id, and for several models model; higher is better; may be repeated",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the findings as JSON, for report")
    add_overwrite(parser)
    add_settings(parser, "seed")
    return parser


def run(args: argparse.Namespace) -> int:
    """Read, correlate, print, write."""
    settings = settings_of(args)
    from lmms_eval_emi.scoring.agreement import (
        AgreementDocument,
        agree,
        read_results_to_compare,
        read_scores,
    )
    from lmms_eval_emi.slices.judge.preference import scores_of_verdicts
    from lmms_eval_emi.slices.judge.verdicts import read_verdicts
    from lmms_eval_emi.util.files import check_output

    named = [one.partition("=") if "=" in one else (Path(one).stem, "=", one) for one in args.scores]
    files = [Path(path) for _, _, path in named]
    if args.output:
        check_output(
            args.output, [*args.results, *args.judged, *files], overwrite=args.overwrite, example="agreement.json"
        )
    if not (args.judged or named):
        raise ResultsError(
            "agreement: expected --judged FILE or --scores FILE to compare the results with, got neither."
        )
    results = [one for path in args.results for one in read_results_to_compare(path)]
    outside = []
    for path in args.judged:
        verdicts = read_verdicts(path)
        judges = " and ".join(dict.fromkeys(one.judge for one in verdicts)) or "no judge"
        several = len(args.judged) > 1
        label = f"relative preference ({judges}, {path.name})" if several else "relative preference"
        outside += scores_of_verdicts(verdicts, label)
    outside += [score for name, _, path in named for score in read_scores(Path(path), name)]
    found = [
        agree(result, score, settings.seed)
        for score in outside
        for result in results
        if score.model in ("", result.model)
    ]
    strangers = sorted({score.model for score in outside} - {"", *(result.model for result in results)})
    if strangers:
        message = (
            f"scores of {', '.join(strangers)}: the results are of {', '.join(sorted({one.model for one in results}))}"
        )
        if not found:
            raise ResultsError(f"{message}. Give the model its name with score --model-name OLD=NEW.")
        log.warning("%s, and they are left out.", message)
    if not found:
        raise ResultsError(
            "agreement: the files hold no scores of the results' splits, so there is nothing to compare."
        )
    for one in found:
        _print(one)
    if args.output:
        AgreementDocument(kind="agreement", agreements=[one.to_result() for one in found]).write(args.output)
        log.info("findings written to %s", args.output)
    return 0


def _print(found: Agreement) -> None:
    from tabulate import tabulate

    from lmms_eval_emi.scoring.table import NOTHING, with_error

    print(f"{found.result.model}, {found.result.study}: {found.score}, {len(found.points)} splits")
    parts: tuple[tuple[str, Mapping[str, Mapping[str, Correlation | None]]], ...] = (
        (found.score, found.over_splits),
        (f"loss of {found.score}", found.over_shifts),
    )
    rows = [
        [LABELS[what], with_what, *(_shown(by_measure.get(one)) for one in ("pearson_r", "spearman_r", "kendall_tau"))]
        for with_what, own in parts
        for what, by_measure in own.items()
        if any(by_measure.values())
    ]
    if rows:
        print(tabulate(rows, headers=["", "with", "Pearson", "Spearman", "Kendall"], disable_numparse=True))
    else:
        few = len(found.points) < 8
        print(
            "Too few splits for a correlation over them; it takes 8."
            if few
            else "No correlation over splits: the score is the same for all of them."
        )
    within = [
        [
            measure.replace("spearman_r", "Spearman").replace("auc", "AUC"),
            name or "all",
            one.rows,
            with_error(one.emi),
            with_error(one.cosine),
            with_error(one.lead),
        ]
        for measure, by_split in found.within.items()
        for name, one in by_split.items()
        if not name or len(by_split) <= 12
    ]
    if within:
        headers = ["within splits", "split", "rows", "EMI ± SE", "cosine ± SE", "lead ± SE"]
        print(tabulate(within, headers=headers, disable_numparse=True))
    for line in found.findings():
        print(line)
    print(
        f"Intervals of 95 % and SE: for new images{'' if found.of_rows else '; the scores count as fixed'}. {NOTHING}: not defined.\n"
    )


def _shown(one: Correlation | None) -> str:
    if one is None:
        return "-"
    return f"{one.value:+.3f}" + (f" [{one.ci95[0]:+.2f}, {one.ci95[1]:+.2f}]" if one.ci95 else "")
