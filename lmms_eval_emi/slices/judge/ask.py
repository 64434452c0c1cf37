"""``lmms-eval-emi judge ask``: what a judge model says of responses."""

from __future__ import annotations

import argparse
import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.cli.options import (
    add_overwrite,
    add_settings,
    add_study_arguments,
    new_parser,
    renamed_models,
    resolve_sources,
    settings_of,
)
from lmms_eval_emi.errors import EndpointError, ImageError, OutputError
from lmms_eval_emi.settings import Settings
from lmms_eval_emi.util.printing import table, with_error

if TYPE_CHECKING:
    from lmms_eval_emi.data.rows import Sample
    from lmms_eval_emi.scoring.join import StudySamples
    from lmms_eval_emi.slices.judge.client import VerdictRequest

log = logging.getLogger("lmms_eval_emi")

CONTEXT_COLUMNS = ("caption", "captions", "context")
CATEGORY_COLUMNS = ("category", "type")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi judge ask natural out --endpoint http://localhost:8000/v1 --endpoint-model NAME --output judged.jsonl",
            "lmms-eval-emi judge ask --study natural --responses out --output judged.jsonl --dry-run",
        ),
        description="Ask a judge for two scores of 1 to 10, of the reference and of the model's response, as llava-bench does, in both orders. Every verdict is in --output as soon as it is there, and the same command asks only for what is missing. Relative preference and win rate by split go beside it, as *.summary.json.",
    )
    add_study_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="verdicts, as JSON lines")
    add_overwrite(parser)
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help="judge this split and the ID split; may be repeated",
    )
    add_settings(parser, "endpoint", "endpoint_model")
    parser.add_argument(
        "--context",
        metavar="COLUMN",
        help=f"column that says what the image shows (default: the first there is of {', '.join(CONTEXT_COLUMNS)}); none for no context",
    )
    parser.add_argument(
        "--category",
        metavar="COLUMN",
        help=f"column that says what kind of question it is (default: the first there is of {', '.join(CATEGORY_COLUMNS)}); none for no kind",
    )
    parser.add_argument("--with-image", action="store_true", help="send the image, to a judge that sees")
    parser.add_argument(
        "--orders",
        choices=("both", "reference_first", "model_first"),
        default="both",
        help="whose response comes first (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=int, default=1, metavar="N", help="verdicts of each row and order (default: %(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=0.2, help="of the judge's sampling (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="of a reply (default: %(default)s)")
    parser.add_argument(
        "--concurrency", type=int, default=8, metavar="N", help="requests under way at once (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="SECONDS", help="for one request (default: %(default)s)"
    )
    parser.add_argument(
        "--retry-missing", action="store_true", help="ask again for verdicts that are recorded as missing"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say how many requests and tokens it would take, and stop"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Ask the judge for the missing verdicts, and print the relative preference of each split."""
    settings = settings_of(args)
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.scoring.join import collect_samples
    from lmms_eval_emi.slices.judge.client import Judge, ask, plan

    _check(args, settings)
    resolve_sources(args)
    study = load_study(args.study[0])
    entries = collect_samples(
        study,
        args.responses,
        settings,
        splits=args.split,
        models=args.only_model,
        renamed=renamed_models(args.model_name),
        allow_missing=args.allow_missing,
    )
    judge = Judge(
        settings.endpoint or "", settings.endpoint_model or "", args.temperature, args.max_tokens, args.timeout
    )
    wanted = [request for entry in entries for request in _wanted(entry, args, settings)]
    if args.dry_run:
        start_over = args.overwrite or not settings.endpoint_model
        found = plan(wanted, judge, None if start_over else args.output, retry_missing=args.retry_missing)
        images = f", and {len(found.missing):,} images" if args.with_image else ""
        print(
            f"{len(found.wanted):,} verdicts are wanted, {len(found.kept):,} are there; {len(found.missing):,} requests of about {found.tokens():,} tokens in all{images}."
        )
        return 0
    verdicts = ask(
        wanted,
        judge,
        args.output,
        retry_missing=args.retry_missing,
        fresh=args.overwrite,
        concurrency=args.concurrency,
    )
    _tell(entries, verdicts, args.output, judge.model)
    return 0 if any(verdict.scores for verdict in verdicts) else 1


def _check(args: argparse.Namespace, settings: Settings) -> None:
    """Check the options and what is at the output before anything is asked.

    Raises:
        EndpointError: an option is out of range, or there is no endpoint.
        OutputError: the output, or the summary beside it, is something else.
    """
    from lmms_eval_emi.slices.judge.verdicts import read_verdicts

    for name, lowest in (("repeats", 1), ("concurrency", 1), ("max_tokens", 1)):
        if getattr(args, name) < lowest:
            raise EndpointError(f"--{name.replace('_', '-')}: expected at least {lowest}, got {getattr(args, name)}.")
    for name, value in (("temperature", args.temperature), ("timeout", args.timeout)):
        if not (math.isfinite(value) and value >= 0):
            raise EndpointError(f"--{name}: expected a number of at least 0, got {value}.")
    if args.repeats > 1 and args.temperature <= 0:
        raise EndpointError(
            "--repeats: at a temperature of 0 every repeat is the same. Pass --temperature 0.2, for one."
        )
    if not args.dry_run and not (settings.endpoint and settings.endpoint_model):
        raise EndpointError(
            "expected --endpoint URL and --endpoint-model NAME of an OpenAI-compatible endpoint, such as http://localhost:8000/v1, and its key in OPENAI_API_KEY if it wants one."
        )
    if args.output.is_dir():
        raise OutputError(f"output: expected a file, got the folder {args.output}.")
    if args.output.exists() and args.output.stat().st_size and not args.dry_run:
        read_verdicts(args.output)  # whatever else it is must not be written to, nor replaced
    summary = _summary_of(args.output)
    if summary.exists() and not _is_summary(summary):
        raise OutputError(f"output: {summary}, which is to hold what the verdicts add up to, is another file. Move it.")


def _summary_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".jsonl") + ".summary.json")


def _is_summary(path: Path) -> bool:
    from lmms_eval_emi.util.files import read_json

    try:
        found = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("kind") == "preference"


def _wanted(entry: StudySamples, args: argparse.Namespace, settings: Settings) -> list[VerdictRequest]:
    from lmms_eval_emi.data.rows import column_values, id_text
    from lmms_eval_emi.shifts.at_load import load_splits
    from lmms_eval_emi.slices.judge.client import VerdictRequest
    from lmms_eval_emi.slices.judge.prompt import ORDERS, Case
    from lmms_eval_emi.slices.judge.verdicts import Key

    rows = load_splits(entry.study, list(entry.samples), settings)
    orders = ORDERS if args.orders == "both" else (args.orders,)
    wanted = []
    for name, samples in entry.samples.items():
        split = rows[name]
        columns = {
            what: _column(split.column_names, given, usual, what)
            for what, given, usual in (
                ("context", args.context, CONTEXT_COLUMNS),
                ("category", args.category, CATEGORY_COLUMNS),
            )
        }
        values = {what: column_values(split, column) if column else None for what, column in columns.items()}
        for sample in samples:
            row = sample.row or 0
            texts = {what: _text(value[row]) if value else "" for what, value in values.items()}
            case = Case(
                sample.question,
                sample.reference,
                sample.response,
                texts["context"],
                texts["category"],
                sample.image if args.with_image else None,
            )
            wanted += [
                VerdictRequest(Key(entry.model, name, row, order, repeat), id_text(sample.id), case)
                for order in orders
                for repeat in range(args.repeats)
            ]
    return wanted


def _column(present: Sequence[str], given: str | None, usual: Sequence[str], what: str) -> str | None:

    if given is None:
        return next((name for name in usual if name in present), None)
    if given == "none":
        return None
    if given not in present:
        raise EndpointError(
            f"--{what}: expected a column of the study's rows, got {given}; they have {', '.join(present)}."
        )
    return given


def _text(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return "" if value is None else str(value)


def _tell(entries: Sequence[StudySamples], verdicts: Sequence[Any], path: Path, judge: str) -> None:
    """Add up, write beside the verdicts, print."""
    from lmms_eval_emi.slices.judge.preference import PreferenceDocument, prefer, self_agreement
    from lmms_eval_emi.slices.judge.verdicts import group_verdicts

    by_split = group_verdicts(verdicts)
    rows, written = [], []
    for entry in entries:
        for name, samples in entry.samples.items():
            preference = prefer(entry.model, name, by_split.get((entry.model, name), []), _clusters(samples))
            relative = with_error(preference.relative, preference.relative_stderr)
            wins = with_error(preference.win_rate, preference.win_rate_stderr)
            rows.append([preference.model, preference.split, preference.rows, relative, wins, preference.missing])
            written.append(preference)
    agreement = self_agreement(verdicts)
    summary = _summary_of(path)
    PreferenceDocument(
        kind="preference", judge=judge, study=entries[0].study.name, splits=written, self_agreement=agreement
    ).write(summary)
    headers = ["model", "split", "rows", "relative preference ± SE", "win rate ± SE, %", "missing"]
    print(table(rows, headers, colalign=("left", "left", *["right"] * 4)))
    print(
        "\nRelative preference: 100 x mean score of the model / mean score of the references. SE: for new images. A row without a verdict is missing and has no score."
    )
    for line in agreement.to_lines():
        print(line)
    reasons = Counter(verdict.missing for verdict in verdicts if verdict.scores is None)
    if reasons:
        reason, count = reasons.most_common(1)[0]
        message = "%d of %d verdicts are missing, %d of them because %s. --retry-missing asks again."
        log.warning(message, reasons.total(), len(verdicts), count, reason)
    log.info("verdicts written to %s, and what they add up to, to %s", path, summary)


def _clusters(samples: Sequence[Sample]) -> dict[int, Any]:
    """Return the key of the image of each row, by row number; the id of rows without a readable image."""
    from lmms_eval_emi.data.images import pixel_key

    found: dict[int, Any] = {}
    for sample in samples:
        try:
            found[sample.row or 0] = pixel_key(sample.image) if sample.image is not None else sample.id
        except ImageError:
            found[sample.row or 0] = sample.id
    return found
