"""``lmms-eval-emi estimators audit``: what an estimator notices, and what it does not."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.cli.options import (
    add_overwrite,
    add_settings,
    add_study_arguments,
    new_parser,
    renamed_models,
    resolve_sources,
    settings_of,
)
from lmms_eval_emi.util.printing import MARK, table, with_error

if TYPE_CHECKING:
    from lmms_eval_emi.scoring.audit import Finding
    from lmms_eval_emi.settings import Settings

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
    """Score responses with known faults by each estimator, and print which faults it notices."""
    settings = settings_of(args)
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.scoring.audit import AuditDocument, audit
    from lmms_eval_emi.scoring.join import collect_samples
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
    findings, left_out = audit(
        entries,
        settings,
        split=args.split,
        estimators=args.estimator,
        encoders=[(vision, text) for vision, text in args.encoders],
        rewrite=_paraphraser(settings),
    )
    split = args.split or study.id_split
    if args.output:
        AuditDocument(study=study.name, split=split, findings=findings, left_out=left_out).write(args.output)
        log.info("findings written to %s", args.output)
    print(f"{study.title}, split {split}\n")
    _print(findings)
    for line in left_out:
        log.warning("left out: %s.", line)
    return 0


def _paraphraser(settings: Settings) -> Callable[[str], str] | None:
    """Return a function that asks the endpoint for a paraphrase, or ``None`` without an endpoint."""
    if not (settings.endpoint and settings.endpoint_model):
        return None
    from lmms_eval_emi.shifts.operators import ShiftOptions
    from lmms_eval_emi.shifts.operators.textual.sentence_model import rewrite

    options = ShiftOptions.from_settings(settings)
    instruction = "Say the following answer in other words, with the same meaning, in its own language."
    return lambda text: rewrite(text, instruction, options)


def _print(findings: Sequence[Finding]) -> None:
    """Print EMI of every responder by every estimator, and what each estimator notices."""
    numbers = {
        encoders: number + 1 for number, encoders in enumerate(dict.fromkeys(finding.encoders for finding in findings))
    }
    several = len(numbers) > 1
    headers = [
        f"EMI ± SE\n{finding.estimator}" + (f"\nencoders {numbers[finding.encoders]}" if several else "")
        for finding in findings
    ]
    rows = []
    for name in findings[0].responders:
        responders = [finding.responders[name] for finding in findings]
        cells = (
            with_error(each.emi, each.emi_stderr, MARK if each.told_from_references else "") for each in responders
        )
        rows.append([name, *cells])
    alignment = ("left", *["right"] * len(findings))
    print(table(rows, ["responder", *headers], colalign=alignment))
    print(f"\n{MARK} differs from the references: the interval of 95 % excludes 0")
    for encoders, number in numbers.items():
        print(f"encoders {number}: {encoders}" if several else f"encoders: {encoders}")
    for finding in findings:
        with_encoders = f" with encoders {numbers[finding.encoders]}" if several else ""
        print(f"{finding.estimator}{with_encoders}, in {finding.unit}, {'; '.join(_noticed(finding))}")


def _noticed(finding: Finding) -> list[str]:
    """Return which responders an estimator does not notice or prefers to the references, and what makes it unreliable."""
    if all(responder.told_from_references is None for responder in finding.responders.values()):
        noticed = ["has too few images to tell"]
    else:
        missed = ", ".join(finding.not_noticed)
        noticed = [f"does not notice: {missed}" if missed else "notices all of them"]
        noticed += [f"prefers to the references: {', '.join(finding.preferred)}"] if finding.preferred else []
    return noticed + (finding.reliability.marks if finding.reliability else [])
