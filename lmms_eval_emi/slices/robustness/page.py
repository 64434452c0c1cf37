"""Sections of the report's page about what tasks lose under their shifts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval_emi.report.finding import numeral
from lmms_eval_emi.report.plots import plot_intervals
from lmms_eval_emi.report.reading import single_object
from lmms_eval_emi.report.sections import Section, number_cell, table_row
from lmms_eval_emi.slices.robustness.results import Loss, MetricRobustness, RobustnessDocument, TaskRobustness
from lmms_eval_emi.util.files import parse_model

INTRO = (
    "The task's own metric on its clean rows and under each shift. A positive loss is worse. MMI is the loss divided by the "
    "clean score. Intervals of 95 % and p-values are for new images; p is adjusted over the shifts of the task."
)
HEADERS = ["shift", "loss", "verdict", "p", "score", "MMI", "right to wrong", "wrong to right", "same response", "rows"]


def read_sections(paths: Sequence[Path]) -> tuple[list[Section], list[Path]]:
    """Return a section for each metric in the results of ``robustness`` among some files, and the other paths.

    Raises:
        ResultsError: a file of that kind is damaged.
    """
    sections: list[Section] = []
    others = []
    for path in paths:
        content = single_object(path)
        if content.get("kind") != "robustness":
            others.append(path)
            continue
        document = parse_model(RobustnessDocument, content, path, what="results of lmms-eval-emi robustness")
        sections += [_section(task, metric) for task in document.tasks for metric in task.metrics]
    return sections, others


def _section(task: TaskRobustness, metric: MetricRobustness) -> Section:
    ordered = sorted(metric.shifts, key=lambda loss: -(loss.loss or 0.0))
    caption = f"Loss of {metric.metric} of {task.task} under each shift"
    intervals = [(loss.shift, loss.loss, loss.loss_ci95) for loss in reversed(ordered) if loss.loss is not None]
    return Section(
        title=f"{task.task}, {metric.metric}: {task.model}",
        contents=f"{task.task}, {metric.metric}",
        intro=INTRO,
        sentences=_findings(metric, ordered),
        headers=HEADERS,
        rows=[_row(task, loss) for loss in ordered],
        caption=caption,
        notes=list(metric.notes),
        figure=plot_intervals(intervals, f"loss of {metric.metric}, interval of 95 %") if intervals else None,
    )


def _findings(metric: MetricRobustness, ordered: Sequence[Loss]) -> list[str]:
    lost = [loss for loss in ordered if loss.verdict == "lost"]
    mean = metric.mean
    sentences = [f"{len(lost)} of {len(ordered)} shifts cost more than chance explains."]
    if lost:
        share = "" if lost[0].mmi is None else f", {lost[0].mmi:.0%} of the clean score"
        sentences.append(f"The largest loss is that of {lost[0].shift}: {numeral(lost[0].loss, 3)}{share}.")
    if mean.loss is not None and len(ordered) > 1:
        interval = "" if mean.loss_ci95 is None else f" [{mean.loss_ci95[0]:.3g}, {mean.loss_ci95[1]:.3g}]"
        sentences.append(f"Mean loss over operators: {numeral(mean.loss, 3)}{interval}.")
    return sentences


def _row(task: TaskRobustness, loss: Loss) -> dict[str, Any]:
    same = task.consistency.get(loss.task)
    stays = None if same is None else same.stays
    error = "" if loss.loss_stderr is None else f" ± {loss.loss_stderr:.2g}"
    cells = [
        loss.shift,
        (f"{numeral(loss.loss, 3)}{error}", loss.loss),
        loss.verdict or "–",
        number_cell(loss.p_adjusted, 3),
        number_cell(loss.shifted, 3),
        *(_percent(value) for value in (loss.mmi, loss.right_to_wrong, loss.wrong_to_right, stays)),
        loss.rows,
    ]
    return table_row(cells)


def _percent(value: float | None) -> tuple[str, float | None]:
    return ("–" if value is None else f"{value:.1%}", value)
