"""``lmms-eval-emi robustness``: what a task's own metrics lose under its shifts."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.cli.options import add_overwrite, add_settings, new_parser, settings_of
from lmms_eval_emi.errors import ResultsError, UnavailableError

if TYPE_CHECKING:
    from lmms_eval_emi.settings import Settings
    from lmms_eval_emi.slices.robustness.comparison import (
        Consistency,
        ConsistencyResult,
        MetricRobustness,
        ReportedMetric,
        ShiftedTask,
        TaskResult,
    )

log = logging.getLogger("lmms_eval_emi")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi robustness OUT --output robustness.json",
            "lmms-eval-emi robustness OUT --task mme --baseline llava-hf__llava-1.5-7b-hf",
            "lmms-eval-emi robustness OUT --pair mmstar=mmstar_my_shift --without-consistency",
        ),
        description="Read what lmms-eval --log_samples logged of tasks and of their shifted twins, and compare them by every metric that rows have: the loss with its error, the relative loss (MMI), rows that became wrong and right, a paired test adjusted over the shifts, and how many responses keep their meaning.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="--output_path of lmms-eval --log_samples")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the results as JSON")
    add_overwrite(parser)
    _add_choice_options(parser)
    parser.add_argument(
        "--baseline", metavar="NAME", help="model, as its folder is called, whose losses others are compared with"
    )
    parser.add_argument(
        "--cluster",
        metavar="KEY|rows:N|FILE",
        help="what rows of one image share: a key of the logged values, N rows in a row, or a CSV file with doc_id and cluster (default: the images that twins log)",
    )
    parser.add_argument(
        "--same-from",
        type=float,
        default=0.95,
        metavar="COSINE",
        help="similarity from which two responses count as one in meaning (default: %(default)s)",
    )
    parser.add_argument(
        "--without-consistency", action="store_true", help="do not compare the responses, which takes the text encoder"
    )
    add_settings(parser, "text_encoder", "device", "batch_size", "adjust", "margin", "seed")
    return parser


def _add_choice_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK",
        help="clean task to take; may be repeated (default: all that have twins)",
    )
    parser.add_argument(
        "--only-model",
        action="append",
        default=[],
        metavar="NAME",
        help="model to take, as its folder is called; may be repeated (default: all)",
    )
    parser.add_argument(
        "--pair",
        action="append",
        default=[],
        metavar="CLEAN=SHIFTED",
        help="two tasks whose rows are the same questions; may be repeated",
    )
    parser.add_argument(
        "--other-rows",
        action="append",
        default=[],
        metavar="CLEAN=SHIFTED",
        help="two tasks whose rows are different, such as photographs and sketches; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Read, compare, print, write."""
    settings = settings_of(args)
    from lmms_eval_emi.slices.robustness.comparison import RobustnessDocument, measure_all
    from lmms_eval_emi.util.files import check_output

    if args.output:
        check_output(args.output, [args.out], overwrite=args.overwrite, example="robustness.json")
    if not -1 <= args.same_from <= 1:
        raise ResultsError(f"--same-from: expected a cosine from -1 to 1, got {args.same_from}.")
    pairs = _pairs(args)
    same = {} if args.without_consistency else _consistencies(pairs, settings, args.same_from)
    measured = {
        model: {
            task: measure_all(own, method=settings.adjust, margin=settings.margin, seed=settings.seed)
            for task, own in by_task.items()
        }
        for model, by_task in pairs.items()
    }
    written: list[TaskResult] = []
    for model, by_task in measured.items():
        for task, metrics in by_task.items():
            base = measured[args.baseline].get(task) if args.baseline and model != args.baseline else None
            own_same = {pair.shifted.name: same.get((model, task, pair.shifted.name)) for pair in pairs[model][task]}
            print(f"{task}, {model}")
            written.append(_print_task(pairs[model][task], metrics, own_same, base, args))
            print()
    if any(one is not None and one.same is not None for one in same.values()):
        print(
            f"same meaning: cosine of both responses' embeddings at least {args.same_from} (text encoder {settings.text_encoder})"
        )
    print(
        "loss > 0: worse. SE: for new images. MMI: loss / clean score. right→wrong, wrong→right: share of rows that flipped under the shift. p: paired test, adjusted over the shifts of a task."
    )
    if args.output:
        RobustnessDocument(
            kind="robustness",
            adjust=settings.adjust,
            text_encoder=None if args.without_consistency else settings.text_encoder,
            same_from=None if args.without_consistency else args.same_from,
            tasks=written,
        ).write(args.output)
        log.info("results written to %s", args.output)
    return 0


def _pairs(args: argparse.Namespace) -> dict[str, dict[str, list[ShiftedTask]]]:
    """Return the pairs of clean and shifted task of the logs, by model and task.

    Raises:
        ResultsError: there are no logs, or none of a model that was asked for.
    """
    from lmms_eval_emi.slices.robustness.logged import find_pairs, read_tasks

    by_model = read_tasks(args.out, args.cluster)
    unknown = [name for name in (*args.only_model, *([args.baseline] if args.baseline else [])) if name not in by_model]
    if unknown:
        raise ResultsError(f"{args.out}: expected the models {', '.join(by_model)}, got {', '.join(unknown)}.")
    chosen = [name for name in by_model if not args.only_model or name in (*args.only_model, args.baseline)]
    return {
        model: find_pairs(by_model[model], only=args.task, pairs=args.pair, other_rows=args.other_rows)
        for model in chosen
    }


def _print_task(
    pairs: Sequence[ShiftedTask],
    metrics: Sequence[MetricRobustness],
    same: Mapping[str, Consistency | None],
    base: Sequence[MetricRobustness] | None,
    args: argparse.Namespace,
) -> TaskResult:
    """Print what was measured of one task of a model, and return it for the document."""
    from lmms_eval_emi.slices.robustness.comparison import RelativeResult, TaskResult, relative_to

    clean = pairs[0].clean
    reported = _reported(pairs)
    for metric in metrics:
        _print_metric(metric, same, "clusters" if args.cluster else "images")
    names = {metric.metric for metric in metrics}
    others = [row for row in reported if row.metric not in names or any(metric.notes for metric in metrics)]
    if others:
        _print_reported(others)
    elif not metrics:
        log.warning("%s: it logged no metric of rows and reports none.", clean.name)
    relative = relative_to(metrics, base) if base else []
    for compared in relative:
        _print_relative(compared, args.baseline)
    found: dict[str, Any] = {}
    if relative:
        found["relative"] = RelativeResult(baseline=args.baseline, metrics=[one.to_result() for one in relative])
    return TaskResult(
        model=clean.model,
        task=clean.name,
        metrics=[one.to_result() for one in metrics],
        consistency={name: _plain(one) for name, one in same.items() if one is not None},
        reported=reported,
        **found,
    )


def _consistencies(
    pairs: Mapping[str, Mapping[str, Sequence[ShiftedTask]]], settings: Settings, same_from: float
) -> dict[tuple[str, str, str], Consistency | None]:
    """Return how many responses stay the same, by model, clean and shifted task; each distinct text is embedded once."""
    import numpy as np
    from tqdm import tqdm

    from lmms_eval_emi.encoders import load_text_encoder
    from lmms_eval_emi.encoders.base import encode_batches
    from lmms_eval_emi.slices.robustness.comparison import consistency

    kinds = {pair.clean.response_kind for by_task in pairs.values() for own in by_task.values() for pair in own}
    try:
        encoder = load_text_encoder(settings.text_encoder, settings.device, settings.cache) if "text" in kinds else None
    except UnavailableError as error:
        raise ResultsError(f"{error}\nOr pass --without-consistency, which needs no encoder.") from error
    known: dict[str, np.ndarray] = {}

    def embed(texts: Sequence[str]) -> Mapping[str, np.ndarray]:
        new = [text for text in texts if text not in known]
        if new and encoder is not None:
            with tqdm(total=len(new), desc="Encoding responses", unit="", leave=False, dynamic_ncols=True) as bar:
                for rows in encode_batches(encoder, new, settings.batch_size):
                    known.update(zip(new[int(bar.n) :], rows.numpy(), strict=False))
                    bar.update(len(rows))
        return known

    return {
        (model, task, pair.shifted.name): consistency(pair, embed, same_from)
        for model, by_task in pairs.items()
        for task, own in by_task.items()
        for pair in own
    }


def _stays(found: Consistency | None) -> float | None:
    """Return the fraction of rows whose response stays what it was: in meaning, or as an option."""
    return None if found is None else (found.same or found.identical).value


def _plain(found: Consistency) -> ConsistencyResult:
    from lmms_eval_emi.slices.robustness.comparison import ConsistencyResult, plain

    sides = {name: plain(name, getattr(found, name)) for name in ("same", "identical", "cosine")}
    return ConsistencyResult(**{key: value for own in sides.values() for key, value in own.items()})


def _reported(pairs: Sequence[ShiftedTask]) -> list[ReportedMetric]:
    """Return what the tasks report by their own aggregation, which has no error."""
    from lmms_eval_emi.slices.robustness.comparison import ReportedMetric

    rows = []
    for pair in pairs:
        for metric, (clean, better) in pair.clean.reported.items():
            if metric in pair.shifted.reported:
                shifted = pair.shifted.reported[metric][0]
                loss = clean - shifted if better else shifted - clean
                rows.append(
                    ReportedMetric(
                        task=pair.shifted.name,
                        metric=metric,
                        clean=clean,
                        shifted=shifted,
                        loss=loss,
                        mmi=loss / clean if clean > 0 else None,
                    )
                )
    return rows


def _print_metric(metric: MetricRobustness, same: Mapping[str, Consistency | None], unit: str) -> None:
    """Print the losses of one metric under every shift, their means, and what to know of it."""
    from tabulate import tabulate

    from lmms_eval_emi.scoring.table import MARK, NOTHING, with_error

    rows = []
    for one in metric.losses:
        row = [one.pair.shift, one.rows, one.loss.clusters or NOTHING, with_error(one.shifted)]
        row += [with_error(one.loss, MARK if one.verdict in ("lost", "gained") else "")]
        row += [_share(one.mmi.value if one.mmi else None), _share(one.right_to_wrong), _share(one.wrong_to_right)]
        row += [NOTHING if one.p_adjusted is None else f"{one.p_adjusted:.2g}", one.verdict or NOTHING]
        rows.append([*row, *([_share(_stays(same.get(one.pair.shifted.name)))] if any(same.values()) else [])])
    headers = ["shift", "rows", unit, "score ± SE", "loss ± SE", "MMI", "right→wrong", "wrong→right", "p", "verdict"]
    options = metric.losses[0].pair.clean.response_kind == "option"
    headers += ["same option" if options else "same meaning"] if any(same.values()) else []
    print(f"\n{metric.metric}, clean {with_error(metric.losses[0].clean)}")
    print(tabulate(rows, headers=headers, disable_numparse=True, colalign=("left", *["right"] * 8, "left")))
    if len(metric.losses) > 1:
        groups = [
            f"{name} {with_error(loss)}" + (f" (MMI {mmi.value:.1%})" if mmi else "")
            for name, (loss, mmi) in metric.by_group.items()
        ]
        loss, mmi = metric.mean
        share = f" (MMI {mmi.value:.1%})" if mmi else ""
        print(f"mean loss over levels: {', '.join(groups)}")
        print(
            f"mean loss over operators: {with_error(loss)}{share}; worst: {metric.worst.pair.shift}, {with_error(metric.worst.loss)}"
        )
    for note in metric.notes:
        print(f"note: {note}")


def _print_reported(rows: Sequence[ReportedMetric]) -> None:
    """Print what tasks report by their own aggregation."""
    from tabulate import tabulate

    print("\nAs the tasks report them, without errors:")
    cells = [
        [row.task, row.metric, f"{row.clean:.4g}", f"{row.shifted:.4g}", f"{row.loss:.4g}", _share(row.mmi)]
        for row in rows
    ]
    print(tabulate(cells, headers=["task", "metric", "clean", "shifted", "loss", "MMI"], disable_numparse=True))


def _print_relative(one: Any, baseline: str | None) -> None:
    """Print the losses of a model beside those of the baseline."""
    from tabulate import tabulate

    from lmms_eval_emi.scoring.table import NOTHING, with_error

    shown = f"no ratio, for {baseline} loses nothing beyond its error"
    if one.ratio:
        shown = f"ratio of the losses' sums {with_error(one.ratio)}"
    print(f"\nbeside {baseline}, {one.metric}: {shown}")
    rows = [
        [name, with_error(found), NOTHING if found.p_value is None else f"{found.p_value:.2g}"]
        for name, found in one.differences.items()
    ]
    print(tabulate(rows, headers=["shift", "difference of losses ± SE", "p"], disable_numparse=True))


def _share(value: float | None) -> str:
    from lmms_eval_emi.scoring.table import NOTHING

    return NOTHING if value is None else f"{value:.1%}"
