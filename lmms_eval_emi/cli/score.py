"""``lmms-eval-emi score``: score existing responses."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.cli.engine import add_engine, engine_of, opened_engine
from lmms_eval_emi.cli.options import (
    add_overwrite,
    add_settings,
    add_study_arguments,
    new_parser,
    renamed_models,
    resolve_sources,
    settings_of,
)
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.settings import PREFIX

if TYPE_CHECKING:
    from lmms_eval_emi.scoring.result import StudyResult
    from lmms_eval_emi.scoring.rows import Scored

log = logging.getLogger("lmms_eval_emi")

FAILED = 3  # exit status of --fail-on
SETTINGS = (
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
    "margin_share",
    "without_degenerate",
    "thoughts",
    "cache",
    "cache_limit",
)
OF_STUDIES = ("embeddings", "save_embeddings", "split", "only_model", "model_name")  # options that need a study


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi score natural out --output results.json",
            "lmms-eval-emi score my_study.yaml --estimator reference-r2 --estimator cosine",
            "lmms-eval-emi score table.parquet --id-split clean --estimator reference-r2",
        ),
        description="Read responses (LLaVA-style files, or what lmms-eval --log_samples wrote), compute EMI of every split and EMID and the RJSD index of every shift, print a table and write JSON.",
    )
    add_study_arguments(parser, several="several are scored in one run, which encodes what they share once")
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE|DIR",
        help="score embeddings that exist, in the place of responses: {split}.parquet, {split}.safetensors or {split}/*.npy in a folder, or one file of several splits; read a part at a time",
    )
    parser.add_argument(
        "--save-embeddings",
        type=Path,
        metavar="DIR",
        help="write the embeddings of every split as {split}.parquet, for --embeddings",
    )
    _add_table_options(parser)
    parser.add_argument(
        "--fail-on",
        metavar="lost|emid>X",
        type=_failure,
        help="exit with status 3 where a shift is lost, or has an EMID above X: for CI. It fails as well where no verdict can be given, for responses that hardly depend on their images",
    )
    add_engine(parser)
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
        help="registered estimator, one that needs no training (reference-r2, cosine, dcor, dcor-reference, hsic, hsic-reference, ksg), or a .safetensors or .pt file; several give one column each (LMMS_EVAL_EMI_ESTIMATOR; default: club-global)",
    )
    add_settings(parser, *SETTINGS)
    return parser


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--id-split",
        metavar="NAME",
        help="score tables or logs instead of a study: csv, tsv, jsonl, json, parquet or xlsx (VLMEvalKit's) files with columns for question, response and reference, and perhaps image, split, model and id, or logs of inspect_ai (.eval, .json); this is their split in distribution",
    )
    parser.add_argument(
        "--split-by",
        metavar="COLUMN",
        help="with --id-split: the column, or for logs the keys of a sample such as metadata.shift, that names the split of a row (default: split, shift, subset or condition, or else each file is a split)",
    )


def run(args: argparse.Namespace) -> int:
    """Score responses, write the results, and print their tables."""
    from lmms_eval_emi.scoring.embed import process_group, rank
    from lmms_eval_emi.scoring.rows import write_results

    with process_group():
        scored = _score_tables(args) if args.id_split else _score_studies(args)
        if rank():
            return 0
        if args.output:
            write_results(args.output, scored)
            log.info("results written to %s", args.output)
    return _show(args, scored)


def _score_studies(args: argparse.Namespace) -> list[Scored]:
    """Score responses, or stored embeddings, in studies."""
    if args.split_by:
        raise InputError("--split-by: it names the splits of tables and logs, and goes with --id-split NAME.")
    resolve_sources(args, several=True)
    _complete_demo(args)
    settings = settings_of(args)
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.util.files import check_folder_writable, check_output

    studies = [load_study(name) for name in args.study]
    if args.output:
        inputs: list[Any] = [*args.estimator, args.embeddings]
        for study in studies:
            inputs += [study.source, *(study.response_file(name) for name in study.splits)]
            inputs += [study.local_path(split.dataset) for split in study.splits.values()]
        check_output(args.output, inputs, overwrite=args.overwrite)
    if args.save_embeddings:
        started = args.save_embeddings.is_dir() and any(args.save_embeddings.iterdir())
        if started and not args.overwrite and args.engine == "local":  # an engine continues there
            raise InputError(
                f"--save-embeddings: the folder {args.save_embeddings} is not empty. Name another one, or pass --overwrite."
            )
        check_folder_writable(args.save_embeddings)

    from lmms_eval_emi.scoring.pipeline import ScoreRequest, score_sources

    request = ScoreRequest(
        responses=args.responses,
        embeddings=args.embeddings,
        engine=engine_of(args),
        save_embeddings=args.save_embeddings,
        models=args.only_model,
        model_names=renamed_models(args.model_name),
        splits=args.split,
        estimators=args.estimator,
        allow_missing=args.allow_missing,
    )
    with opened_engine(args):
        return score_sources(studies, request, settings)


def _score_tables(args: argparse.Namespace) -> list[Scored]:
    """Score files that contain questions, references and responses row by row."""
    from lmms_eval_emi.scoring.flat import collect_flat
    from lmms_eval_emi.scoring.pipeline import score_samples
    from lmms_eval_emi.util.files import check_output

    for name in OF_STUDIES:
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')}: it goes with a study; tables and logs are scored whole.")
    if args.engine != "local":
        raise InputError("--engine: tables and logs are scored by this process or the ranks of a launcher.")
    paths = [Path(source) for source in [*args.sources, *args.study, *args.responses]]
    if not paths:
        raise InputError("--id-split: expected tables or logs to score, got none.")
    if args.output:
        check_output(args.output, [*paths, *args.estimator], overwrite=args.overwrite)
    settings = settings_of(args)
    entries = collect_flat(paths, args.id_split, settings, split_by=args.split_by, allow_missing=args.allow_missing)
    return score_samples(entries, settings, estimators=args.estimator, allow_missing=args.allow_missing)


def _show(args: argparse.Namespace, scored: Sequence[Scored]) -> int:
    """Print the tables, what to know of them, and what to do next."""
    from lmms_eval_emi.scoring.table import fit_to_warnings, results_to_table

    for name in dict.fromkeys(scored_study.result.shift for scored_study in scored):
        print(results_to_table([scored_study.result for scored_study in scored if scored_study.result.shift == name]))
    for line in dict.fromkeys(line for scored_study in scored for line in fit_to_warnings(scored_study.result)):
        log.warning("%s", line)
    _say_what_is_missing(scored)
    if args.output and args.output.is_file():
        print(f"lmms-eval-emi report {shlex.quote(str(args.output))}")
    failures = [line for scored_study in scored for line in _failures(scored_study.result, args.fail_on)]
    for line in failures:
        log.error("--fail-on: %s", line)
    return FAILED if failures else 0


def _failure(text: str) -> float | str:
    """Parse the value of ``--fail-on``: ``lost``, or the EMID above which the command fails."""
    kind, above, bound = text.partition(">")
    if text == "lost":
        return text
    try:
        if kind.strip() == "emid" and above:
            return float(bound)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected lost or emid>NUMBER, got {text!r}")


def _failures(result: StudyResult, asked: float | str | None) -> list[str]:
    """Return why a result fails, one line each."""
    if asked is None:
        return []
    if result.scale is not None and result.scale.distinguishable is False:
        return [f"{result.model}: its responses hardly depend on the images, so it cannot be called robust."]
    shifts = result.shifts().items()
    if asked == "lost":
        return [
            f"{result.model}: {name} is lost, EMID {split.emid:.4g}."
            for name, split in shifts
            if split.verdict == "lost"
        ]
    return [
        f"{result.model}: EMID of {name} is {split.emid:.4g}, above {asked:g}."
        for name, split in shifts
        if split.emid is not None and split.emid > float(asked)
    ]


def _complete_demo(args: argparse.Namespace) -> None:
    """Fill in the estimator and encoders of the demo's study, and the responses of a demo in the current folder."""
    if args.study != ["demo"] or args.embeddings:
        return
    assets = resources.files("lmms_eval_emi.slices.demo").joinpath("assets")
    for name in ("vision_encoder", "text_encoder"):
        if getattr(args, f"setting_{name}") is None and f"{PREFIX}{name.upper()}" not in os.environ:
            setattr(args, f"setting_{name}", str(assets.joinpath(name)))
    if not args.estimator and f"{PREFIX}ESTIMATOR" not in os.environ:
        args.estimator = ["demo"]
    if not args.responses:
        found = sorted(Path("emi-demo").glob("*/*_emi_responses/demo"))
        if not found:
            raise InputError(
                "study demo: expected the responses of a run. Make one with lmms-eval-emi demo, which leaves them in emi-demo, or give --responses DIR."
            )
        args.responses, args.allow_missing = [found[-1]], True


def _say_what_is_missing(scored: Sequence[Scored]) -> None:
    from lmms_eval_emi.scoring.table import left_out_to_lines, notes_to_lines

    told = set()
    for scored_study in scored:
        result, model = scored_study.result, scored_study.result.model
        if (result.shift, model) in told:
            continue
        told.add((result.shift, model))
        for line in left_out_to_lines(scored_study.result):
            log.warning("%s: left out: %s", model, line)
        for line in notes_to_lines(scored_study.result):
            log.warning("%s, %s.", model, line)
        if result.id_split not in result.splits:
            log.warning(
                "%s: the ID split %s of %s was not scored, for the reason above; EMID and the index are left out.",
                model,
                result.id_split,
                result.shift,
            )
