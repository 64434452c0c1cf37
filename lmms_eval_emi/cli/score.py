"""``lmms-eval-emi score``: score existing responses."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from lmms_eval_emi.cli.options import (
    add_overwrite,
    add_settings,
    add_study_arguments,
    renamed_models,
    settings_of,
    study_of,
)

log = logging.getLogger("lmms_eval_emi")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "score",
        help="score existing responses: EMI, EMID and the shift index",
        description="Read responses (LLaVA-style files, or what lmms-eval --log_samples wrote), compute EMI of every split and EMID and the RJSD index of every shift, print a table and write JSON.",
    )
    add_study_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the results as JSON")
    add_overwrite(parser)
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help="score this split, and the ID split that it is compared with; may be repeated (default: all)",
    )
    parser.add_argument(
        "--estimator",
        action="append",
        default=[],
        metavar="NAME|PATH",
        help="registered estimator, one that needs no training (ksg, hsic, dcor, cosine), or a .safetensors or .pt file; several give one column each (LMMS_EVAL_EMI_ESTIMATOR; default: club-global)",
    )
    add_settings(
        parser,
        "allow_other_encoders",
        "convention",
        "entropy",
        "vision_encoder",
        "text_encoder",
        "device",
        "batch_size",
        "images",
        "resamples",
        "seed",
        "adjust",
        "margin",
        "without_degenerate",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score, write, print."""
    settings = settings_of(args)
    from lmms_eval_emi.files import check_output
    from lmms_eval_emi.studies.schema import load_study

    study = load_study(study_of(args))
    renamed = renamed_models(args.model_name)
    if args.output:
        inputs = [study.source, *args.estimator, *(study.response_file(name) for name in study.splits)]
        inputs += [study.local_path(split.dataset) for split in study.splits.values()]
        check_output(args.output, inputs, overwrite=args.overwrite)

    from lmms_eval_emi.scoring.joining import collect_samples
    from lmms_eval_emi.scoring.pipeline import left_out_lines, score_samples
    from lmms_eval_emi.scoring.row_results import write_results
    from lmms_eval_emi.scoring.table import fit_to_warnings, notes_to_lines, results_to_table

    entries = collect_samples(
        study,
        args.responses,
        splits=args.split,
        models=args.model,
        renamed=renamed,
        allow_missing=args.allow_missing,
    )
    scored = score_samples(entries, settings, estimators=args.estimator, allow_missing=args.allow_missing)
    if args.output:
        write_results(args.output, scored)
        log.info("results written to %s", args.output)
    print(results_to_table([one.result for one in scored]))
    for line in dict.fromkeys(line for one in scored for line in fit_to_warnings(one.result)):
        log.warning("%s", line)
    told = set()
    for one in scored:
        if one.result.model in told:
            continue
        told.add(one.result.model)
        for line in left_out_lines(one.result.left_out):
            log.warning("%s: left out: %s", one.result.model, line)
        for line in notes_to_lines(one.result):
            log.warning("%s, %s.", one.result.model, line)
        if study.id_split not in one.result.splits:
            log.warning(
                "%s: The ID split %s was not scored, so EMID and the index are left out. Add its responses as %s.jsonl.",
                one.result.model,
                study.id_split,
                study.id_split,
            )
    return 0
