"""``lmms-eval-emi judge agree``: EMI and EMID compared with the scores of judges, of people or of another metric."""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.cli.options import add_overwrite, add_settings, new_parser, settings_of
from lmms_eval_emi.errors import InputError, ResultsError
from lmms_eval_emi.util.printing import NOTHING, table, with_error

if TYPE_CHECKING:
    from lmms_eval_emi.scoring.agreement import Agreement, OutsideScores, ResultToCompare
    from lmms_eval_emi.settings import Settings

log = logging.getLogger("lmms_eval_emi")

LABELS = {"emi": "EMI", "emid": "EMID", "index": "index", "cosine": "cosine", "lead": "lead over the cosine"}


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi judge agree results.json --judged judged.jsonl --output agreement.json",
            "lmms-eval-emi judge agree results.json --scores accuracy=accuracy.csv --scores human=human.jsonl",
            "lmms-eval-emi judge agree longcap-arena --estimator reference-r2 --estimator dcor --output human.json",
        ),
        description="Correlate EMI of splits with another score of them, EMID and the index with what that score loses, and within splits the values of rows with the scores of rows. The cosine of response and reference stands beside EMI, as the baseline that it must beat.",
    )
    parser.add_argument(
        "results",
        nargs="+",
        type=Path,
        metavar="RESULTS",
        help="JSON files of score, with their rows; or public sets with human scores, which are scored first (composite, flickr8k-crowdflower, flickr8k-expert, longcap-arena, mmhe, polaris, or a YAML file that describes one)",
    )
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
    parser.add_argument(
        "--estimator",
        action="append",
        default=[],
        metavar="NAME|PATH",
        help="estimator of public sets with human scores, as for score; may be repeated (LMMS_EVAL_EMI_ESTIMATOR; default: club-global)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="rows of each criterion of a public set (default: all)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the findings as JSON, for report")
    add_overwrite(parser)
    add_settings(
        parser,
        "seed",
        "vision_encoder",
        "text_encoder",
        "allow_other_encoders",
        "device",
        "batch_size",
        "images",
        "cache",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Correlate results with the scores of others, print the correlations, and write them if asked."""
    settings = settings_of(args)
    from lmms_eval_emi.scoring.agreement import AgreementDocument, agree
    from lmms_eval_emi.slices.judge.human import human_set_names
    from lmms_eval_emi.util.files import check_output

    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: expected 1 or more rows, got {args.limit}.")
    sets = [path for path in args.results if _is_human_set(path)]
    if args.output:
        inputs = [*args.results, *args.judged, *(path for _, path in map(_named_file, args.scores))]
        check_output(args.output, inputs, overwrite=args.overwrite, example="agreement.json")
    plain = [path for path in args.results if path not in sets]
    if plain and not (args.judged or args.scores):
        raise ResultsError(
            f"agreement: expected --judged FILE or --scores FILE to compare the results with, got neither. Sets with human scores need neither: {', '.join(human_set_names())}."
        )
    pairs = _pairs_of_files(plain, args) if plain else []
    for path in sets:
        pairs += _pairs_of_set(str(path), args, settings)
    found = [agree(result, score, settings.seed) for result, score in pairs]
    if not found:
        raise ResultsError(
            "agreement: the files hold no scores of the results' splits, so there is nothing to compare."
        )
    for agreement in found:
        _print(agreement)
    if args.output:
        AgreementDocument(kind="agreement", agreements=found).write(args.output)
        log.info("findings written to %s", args.output)
    return 0


def _is_human_set(path: Path) -> bool:
    """Return whether an argument names a set with human scores, or the YAML file of one."""
    from lmms_eval_emi.slices.judge.human import human_set_names

    return path.suffix in (".yaml", ".yml") or (str(path) in human_set_names() and not path.exists())


def _named_file(text: str) -> tuple[str, Path]:
    """Return name and path of ``NAME=FILE``, or of ``FILE``, whose name is that of the file."""
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals else (Path(text).stem, Path(text))


def _pairs_of_files(paths: Sequence[Path], args: argparse.Namespace) -> list[tuple[ResultToCompare, OutsideScores]]:
    """Return every result of the files with every score that may be of its model."""
    from lmms_eval_emi.scoring.agreement import read_results_to_compare, read_scores
    from lmms_eval_emi.slices.judge.preference import scores_of_verdicts
    from lmms_eval_emi.slices.judge.verdicts import read_verdicts

    results = [result for path in paths for result in read_results_to_compare(path)]
    outside = []
    for path in args.judged:
        verdicts = read_verdicts(path)
        judges = " and ".join(dict.fromkeys(verdict.judge for verdict in verdicts)) or "no judge"
        several = len(args.judged) > 1
        label = f"relative preference ({judges}, {path.name})" if several else "relative preference"
        outside += scores_of_verdicts(verdicts, label)
    for score in args.scores:
        name, path = _named_file(score)
        outside += read_scores(path, name)
    pairs = [(result, score) for score in outside for result in results if score.model in ("", result.model)]
    strangers = sorted({score.model for score in outside} - {"", *(result.model for result in results)})
    if strangers:
        message = f"scores of {', '.join(strangers)}: the results are of {', '.join(sorted({result.model for result in results}))}"
        if not pairs:
            raise ResultsError(f"{message}. Give the model its name with score --model-name OLD=NEW.")
        log.warning("%s, and they are left out.", message)
    return pairs


def _pairs_of_set(
    source: str, args: argparse.Namespace, settings: Settings
) -> list[tuple[ResultToCompare, OutsideScores]]:
    """Score a set with human scores, and return the results of each criterion with its human scores."""
    from lmms_eval_emi.scoring.agreement import read_results_to_compare
    from lmms_eval_emi.scoring.pipeline import score_samples
    from lmms_eval_emi.scoring.rows import write_results
    from lmms_eval_emi.slices.judge.human import load_human_set, read_human_set
    from lmms_eval_emi.util.files import check_output

    described = load_human_set(source)
    path = args.output.with_name(f"{args.output.stem}.{described.name}.json") if args.output else None
    if path:
        check_output(path, [], overwrite=args.overwrite, example="agreement.json")
    log.info("%s. Licence: %s", described.title, described.licence or "unknown")
    entries, scores = read_human_set(described, settings, args.limit)
    scored = score_samples(entries, settings, estimators=args.estimator, allow_missing=True)
    with tempfile.TemporaryDirectory() as folder:
        written = path or Path(folder) / "results.json"
        write_results(written, scored)
        results = read_results_to_compare(written)
    return [(result, score) for score in scores for result in results if result.id_split in score.rows]


def _print(found: Agreement) -> None:
    from lmms_eval_emi.scoring.agreement import ALL

    count = f"{len(found.points)} split{'s' * (len(found.points) != 1)}"
    print(", ".join(filter(None, [found.model, f"{found.study}: {found.score}", count, found.estimator])))
    parts = ((found.score, found.over_splits), (f"loss of {found.score}", found.over_shifts))
    rows = [
        [
            LABELS[what],
            with_what,
            *(str(by_measure.get(measure) or "-") for measure in ("pearson_r", "spearman_r", "kendall_tau")),
        ]
        for with_what, parts_of in parts
        for what, by_measure in parts_of.items()
        if any(by_measure.values())
    ]
    if rows:
        print(table(rows, ["", "with", "Pearson", "Spearman", "Kendall"]))
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
            name,
            ranking.rows,
            *(with_error(each.value, each.stderr) for each in (ranking.emi, ranking.cosine, ranking.lead)),
        ]
        for measure, by_split in found.within_splits.items()
        for name, ranking in by_split.items()
        if name == ALL or len(by_split) <= 12
    ]
    if within:
        headers = ["within splits", "split", "rows", "EMI ± SE", "cosine ± SE", "lead ± SE"]
        print(table(within, headers))
    for line in found.findings:
        print(line)
    print(
        f"Intervals of 95 % and SE: for new images{'' if found.of == 'rows' else '; the scores count as fixed'}. {NOTHING}: not defined.\n"
    )
