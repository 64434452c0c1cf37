"""``lmms-eval-emi robustness``: what a task's own metrics lose under its shifts."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.cli.options import add_overwrite, add_settings, new_parser, settings_of
from lmms_eval_emi.errors import ResultsError, UnavailableError
from lmms_eval_emi.util.printing import MARK, NOTHING, number, table, with_error

if TYPE_CHECKING:
    from lmms_eval_emi.settings import Settings
    from lmms_eval_emi.slices.robustness.comparison import ShiftedTask
    from lmms_eval_emi.slices.robustness.results import (
        Consistency,
        MeanLoss,
        MetricRobustness,
        RelativeMetric,
        ReportedMetric,
        RobustnessDocument,
        TaskRobustness,
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
    """Compare each logged task with its shifted tasks, print the losses, and write them if asked."""
    settings = settings_of(args)
    from lmms_eval_emi.util.files import check_output

    if args.output:
        check_output(args.output, [args.out], overwrite=args.overwrite, example="robustness.json")
    if not -1 <= args.same_from <= 1:
        raise ResultsError(f"--same-from: expected a cosine from -1 to 1, got {args.same_from}.")
    document = _compare(args, settings)
    for task in document.tasks:
        _print_task(task, "clusters" if args.cluster else "images")
    if any(consistency.same is not None for task in document.tasks for consistency in task.consistency.values()):
        print(
            f"same meaning: cosine of both responses' embeddings at least {args.same_from} (text encoder {settings.text_encoder})"
        )
    print(
        "loss > 0: worse. SE: for new images. MMI: loss / clean score. right→wrong, wrong→right: share of rows that flipped under the shift. p: paired test, adjusted over the shifts of a task."
    )
    if args.output:
        document.write(args.output)
        log.info("results written to %s", args.output)
    return 0


def _compare(args: argparse.Namespace, settings: Settings) -> RobustnessDocument:
    """Return the losses of each task of each model under its shifts."""
    from lmms_eval_emi.slices.robustness.comparison import measure_all, relative_to, reported_metrics
    from lmms_eval_emi.slices.robustness.results import Relative, RobustnessDocument, TaskRobustness

    pairs = _pairs(args)
    same = {} if args.without_consistency else _consistencies(pairs, settings, args.same_from)
    measured = {
        (model, task): measure_all(of_task, method=settings.adjust, margin=settings.margin, seed=settings.seed)
        for model, by_task in pairs.items()
        for task, of_task in by_task.items()
    }
    tasks = []
    for (model, task), metrics in measured.items():
        relative = None
        if args.baseline and model != args.baseline:
            compared = relative_to(metrics, measured.get((args.baseline, task), []))
            relative = Relative(baseline=args.baseline, metrics=compared) if compared else None
        task_pairs = pairs[model][task]
        tasks.append(
            TaskRobustness(
                model=task_pairs[0].clean.model,
                task=task_pairs[0].clean.name,
                metrics=metrics,
                consistency=same.get((model, task), {}),
                reported=reported_metrics(task_pairs),
                **({"relative": relative} if relative else {}),
            )
        )
    return RobustnessDocument(
        kind="robustness",
        adjust=settings.adjust,
        text_encoder=None if args.without_consistency else settings.text_encoder,
        same_from=None if args.without_consistency else args.same_from,
        tasks=tasks,
    )


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


def _consistencies(
    pairs: Mapping[str, Mapping[str, Sequence[ShiftedTask]]], settings: Settings, same_from: float
) -> dict[tuple[str, str], dict[str, Consistency]]:
    """Return how many responses stay the same, by model and task, then by shifted task; each distinct text is embedded once."""
    import numpy as np
    from tqdm import tqdm

    from lmms_eval_emi.encoders import load_text_encoder
    from lmms_eval_emi.encoders.base import encode_batches
    from lmms_eval_emi.slices.robustness.comparison import consistency

    kinds = {pair.clean.response_kind for by_task in pairs.values() for of_task in by_task.values() for pair in of_task}
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
        (model, task): {
            pair.shifted.name: found for pair in of_task if (found := consistency(pair, embed, same_from)) is not None
        }
        for model, by_task in pairs.items()
        for task, of_task in by_task.items()
    }


def _print_task(task: TaskRobustness, unit: str) -> None:
    """Print what was measured of one task of a model."""
    print(f"{task.task}, {task.model}")
    for metric in task.metrics:
        _print_metric(metric, task.consistency, unit)
    names = {metric.metric for metric in task.metrics}
    others = [
        loss for loss in task.reported if loss.metric not in names or any(metric.notes for metric in task.metrics)
    ]
    if others:
        _print_reported(others)
    elif not task.metrics:
        log.warning("%s: it logged no metric of rows and reports none.", task.task)
    if task.relative:
        for compared in task.relative.metrics:
            _print_relative(compared, task.relative.baseline)
    print()


def _print_metric(metric: MetricRobustness, same: Mapping[str, Consistency], unit: str) -> None:
    """Print the losses of one metric under every shift, their means, and what to know of it."""
    from lmms_eval_emi.slices.robustness.results import largest

    rows = []
    for loss in metric.shifts:
        row = [loss.shift, loss.rows, loss.images or NOTHING, with_error(loss.shifted, loss.shifted_stderr)]
        row += [with_error(loss.loss, loss.loss_stderr, MARK if loss.verdict in ("lost", "gained") else "")]
        row += [number(loss.mmi, ".1%"), number(loss.right_to_wrong, ".1%"), number(loss.wrong_to_right, ".1%")]
        row += [number(loss.p_adjusted, ".2g"), loss.verdict or NOTHING]
        rows.append([*row, *([number(same[loss.task].stays if loss.task in same else None, ".1%")] if same else [])])
    headers = ["shift", "rows", unit, "score ± SE", "loss ± SE", "MMI", "right→wrong", "wrong→right", "p", "verdict"]
    options = all(consistency.same is None for consistency in same.values())
    headers += ["same option" if options else "same meaning"] if same else []
    first = metric.shifts[0]
    print(f"\n{metric.metric}, clean {with_error(first.clean, first.clean_stderr)}")
    print(table(rows, headers, colalign=("left", *["right"] * 8, "left")))
    if len(metric.shifts) > 1:
        groups = [f"{name} {_mean_with_error(mean)}" for name, mean in metric.by_operator.items()]
        worst = largest(metric.shifts)
        print(f"mean loss over levels: {', '.join(groups)}")
        print(
            f"mean loss over operators: {_mean_with_error(metric.mean)}; worst: {worst.shift}, {with_error(worst.loss, worst.loss_stderr)}"
        )
    for note in metric.notes:
        print(f"note: {note}")


def _print_reported(rows: Sequence[ReportedMetric]) -> None:
    """Print what tasks report by their own aggregation."""
    print("\nAs the tasks report them, without errors:")
    cells = [
        [row.task, row.metric, f"{row.clean:.4g}", f"{row.shifted:.4g}", f"{row.loss:.4g}", number(row.mmi, ".1%")]
        for row in rows
    ]
    print(table(cells, ["task", "metric", "clean", "shifted", "loss", "MMI"]))


def _print_relative(compared: RelativeMetric, baseline: str) -> None:
    """Print the losses of a model beside those of the baseline."""
    shown = f"no ratio, for {baseline} loses nothing beyond its error"
    if compared.ratio is not None:
        shown = f"ratio of the losses' sums {with_error(compared.ratio, compared.ratio_stderr)}"
    print(f"\nbeside {baseline}, {compared.metric}: {shown}")
    rows = [
        [
            name,
            with_error(difference.difference, difference.difference_stderr),
            number(difference.p, ".2g"),
        ]
        for name, difference in compared.shifts.items()
    ]
    print(table(rows, ["shift", "difference of losses ± SE", "p"]))


def _mean_with_error(mean: MeanLoss) -> str:
    share = "" if mean.mmi is None else f" (MMI {mean.mmi:.1%})"
    return with_error(mean.loss, mean.loss_stderr) + share
