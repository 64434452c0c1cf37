"""``lmms-eval-emi estimators audit``: what an estimator notices, and what it does not."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from lmms_eval_emi.cli.options import (
    add_overwrite,
    add_settings,
    add_study_arguments,
    new_parser,
    renamed_models,
    resolve_sources,
    settings_of,
)

log = logging.getLogger("lmms_eval_emi")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi estimators audit --study my_study.yaml --estimator mine.safetensors --estimator dcor",
        ),
        description="Make responders from the references of a study (empty, words shuffled, the reference of another image, one word wrong, ...), score them, and say which ones an estimator does not tell from the references. It cannot tell a model that answers like these either.",
    )
    add_study_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the findings as JSON")
    add_overwrite(parser)
    parser.add_argument("--split", metavar="NAME", help="whose rows responders are made from (default: the ID split)")
    parser.add_argument(
        "--estimator",
        action="append",
        default=[],
        metavar="NAME|PATH",
        help="estimator to audit; may be repeated (LMMS_EVAL_EMI_ESTIMATOR; default: club-global)",
    )
    parser.add_argument(
        "--encoders",
        nargs=2,
        action="append",
        default=[],
        metavar=("VISION", "TEXT"),
        help="pair of encoders to audit with; may be repeated (default: those of the settings)",
    )
    add_settings(
        parser,
        "vision_encoder",
        "text_encoder",
        "allow_other_encoders",
        "device",
        "batch_size",
        "images",
        "seed",
        "endpoint",
        "endpoint_model",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Audit, write, print."""
    settings = settings_of(args)
    from tabulate import tabulate

    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.scoring.audit import AuditDocument, audit
    from lmms_eval_emi.scoring.join import collect_samples
    from lmms_eval_emi.scoring.table import MARK, value_with_error
    from lmms_eval_emi.util.files import check_output

    resolve_sources(args)
    study = load_study(args.study[0])
    if args.output:
        check_output(args.output, [study.source, *args.estimator], overwrite=args.overwrite, example="audit.json")
    entries = collect_samples(
        study,
        args.responses,
        settings,
        models=args.only_model,
        renamed=renamed_models(args.model_name),
        allow_missing=args.allow_missing,
    )
    rewrite = None
    if settings.endpoint and settings.endpoint_model:
        from lmms_eval_emi.shifts.operators.textual.sentence_model import rewrite as ask
        from lmms_eval_emi.shifts.options import ShiftOptions

        options = ShiftOptions.from_settings(settings)
        instruction = "Say the following answer in other words, with the same meaning, in its own language."

        def rewrite(text: str) -> str:
            return ask(text, instruction, options)

    findings, left_out = audit(
        entries,
        settings,
        split=args.split,
        estimators=args.estimator,
        encoders=[(vision, text) for vision, text in args.encoders],
        rewrite=rewrite,
    )
    if args.output:
        AuditDocument(
            study=study.name,
            split=args.split or study.id_split,
            findings=[one.to_result() for one in findings],
            left_out=left_out,
        ).write(args.output)
        log.info("findings written to %s", args.output)
    numbers = {encoders: number + 1 for number, encoders in enumerate(dict.fromkeys(one.encoders for one in findings))}
    several = len(numbers) > 1
    headers = [
        f"EMI ± SE\n{one.estimator}" + (f"\nencoders {numbers[one.encoders]}" if several else "") for one in findings
    ]
    rows = [
        [
            name,
            *(
                value_with_error(one.scores[name].emi, one.scores[name].emi_stderr, MARK if one.tells(name) else "")
                for one in findings
            ),
        ]
        for name in findings[0].scores
    ]
    print(f"{study.title}, split {args.split or study.id_split}\n")
    print(
        tabulate(
            rows, headers=["responder", *headers], disable_numparse=True, colalign=("left", *["right"] * len(findings))
        )
    )
    print(f"\n{MARK} told from the references: the interval of 95 % leaves 0 out")
    for encoders, number in numbers.items():
        print(f"encoders {number}: {encoders}" if several else f"encoders: {encoders}")
    for one in findings:
        with_encoders = f" with encoders {numbers[one.encoders]}" if several else ""
        if all(one.tells(name) is None for name in one.scores):
            what = ["has too few images to tell"]
        else:
            what = [f"does not notice: {', '.join(one.not_noticed)}" if one.not_noticed else "notices all of them"]
            what += [f"prefers to the references: {', '.join(one.preferred)}"] if one.preferred else []
        what += one.reliability.marks if one.reliability else []
        print(f"{one.estimator}{with_encoders}, in {one.unit}, {'; '.join(what)}")
    for line in left_out:
        log.warning("left out: %s.", line)
    return 0
