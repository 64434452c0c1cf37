"""A task under its shifts: what each metric loses, whether that is more than chance, and which shift is worst."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lmms_eval_emi.core.conventions import Adjustment
from lmms_eval_emi.core.jackknife import Jackknife, adjust, combine, difference, verdict
from lmms_eval_emi.core.totals import ClusterTotals, exchange_test, relabel_test
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.slices.robustness.metrics import RowMetric
from lmms_eval_emi.slices.robustness.results import (
    Consistency,
    Loss,
    LossDifference,
    MeanLoss,
    MetricRobustness,
    RelativeMetric,
    ReportedMetric,
    WorstShift,
    largest,
    plain,
)


@dataclass(frozen=True, eq=False)
class ScoredTask:
    """A task as one model answered it.

    Attributes:
        name: name of the task.
        model: model that answered.
        targets: what is right, by row.
        responses: responses by row.
        prompts: prompts by row.
        clusters: clusters of rows that share an image; a row that is not among them is one by itself.
        metrics: metrics of the rows.
        reported: what the harness reports, by metric, with whether higher is better.
        settings: settings of the run, which should be those of the runs that it is compared with.
        response_kind: what ``responses`` are: texts, or names of chosen options, which are compared and not embedded;
            ``none`` where the task has neither.
        twin: what its metadata say of its origin, if it is a shifted task of our writing.
    """

    name: str
    model: str
    targets: Mapping[int, str] = field(repr=False)
    responses: Mapping[int, str] = field(repr=False)
    prompts: Mapping[int, str] = field(repr=False)
    clusters: Mapping[int, Hashable] = field(repr=False)
    metrics: Sequence[RowMetric]
    reported: Mapping[str, tuple[float, bool]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    response_kind: Literal["text", "option", "none"] = "text"
    twin: Mapping[str, Any] = field(default_factory=dict)

    def metric(self, name: str) -> RowMetric | None:
        """Return a metric by name."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True)
class ShiftedTask:
    """A clean task and a shifted one.

    Attributes:
        clean, shifted: both tasks.
        shift: what was shifted, in words.
        operators: operators of the shift, by modality, without their levels.
        level: level of the shift, where it has one.
        paired: whether the rows of both are the same questions.
    """

    clean: ScoredTask
    shifted: ScoredTask
    shift: str
    operators: Mapping[str, str] = field(default_factory=dict)
    level: str = ""
    paired: bool = True

    @property
    def group(self) -> str:
        """Name of the operator, over whose levels losses are averaged."""
        return " + ".join(self.operators.values()) or self.shift


def check_pair(pair: ShiftedTask) -> list[int]:
    """Return the rows that both tasks have.

    Raises:
        ResultsError: the tasks share no rows, or their targets differ, so that the questions are not the same.
    """
    rows = sorted(set(pair.clean.targets) & set(pair.shifted.targets))
    if not rows:
        raise ResultsError(f"{pair.clean.name} and {pair.shifted.name}: they have no row in common.")
    differ = [row for row in rows if pair.clean.targets[row] != pair.shifted.targets[row]]
    if differ:
        raise ResultsError(
            f"{pair.clean.name} and {pair.shifted.name}: what is right differs in {len(differ)} of {len(rows)} rows, such as row {differ[0]}, so they are not the same questions. Compare them with --other-rows {pair.clean.name}={pair.shifted.name}."
        )
    return rows


def measure(pair: ShiftedTask, metric: str, seed: int = 0) -> Loss | None:
    """Return the loss of a metric under a shift; ``None`` if either task lacks the metric.

    Raises:
        ResultsError: as :func:`check_pair`.
    """
    first, second = pair.clean.metric(metric), pair.shifted.metric(metric)
    if first is None or second is None:
        return None
    if pair.paired:
        rows = [row for row in check_pair(pair) if row in first.parts and row in second.parts]
        if not rows:
            return None
        clusters = {row: pair.clean.clusters.get(row, pair.shifted.clusters.get(row, ("row", row))) for row in rows}
        a, b = first.sums(rows, clusters), second.sums(rows, clusters)
        p_value = exchange_test(a, b, first.function, seed=seed)
    else:
        a, b = (
            metric.sums(list(metric.parts), {row: (label, task.clusters.get(row, row)) for row in metric.parts})
            for label, metric, task in (("clean", first, pair.clean), ("shifted", second, pair.shifted))
        )
        p_value = relabel_test(a, b, first.function, seed=seed)
        rows = []
    sign = 1.0 if first.higher_is_better else -1.0
    changed = _changed(rows, first, second) if rows and first.binary and second.binary else (None, None)
    return Loss.of(
        a.jackknife(first.function),
        b.jackknife(first.function),
        sign=sign,
        task=pair.shifted.name,
        shift=pair.shift,
        operators=dict(pair.operators),
        level=pair.level,
        design="paired" if pair.paired else "unpaired",
        rows=len(rows) or len(second.parts),
        right_to_wrong=changed[0],
        wrong_to_right=changed[1],
        p=p_value if math.isfinite(p_value) else None,
    )


def _changed(rows: Sequence[int], clean: RowMetric, shifted: RowMetric) -> tuple[float, float]:
    """Return the fractions of rows that went from right to wrong, and from wrong to right."""
    was, now = (np.array([metric.parts[row][0] for row in rows]) for metric in (clean, shifted))
    fell, rose = float(((was == 1) & (now == 0)).mean()), float(((was == 0) & (now == 1)).mean())
    return (fell, rose) if clean.higher_is_better else (rose, fell)


def measure_all(
    pairs: Sequence[ShiftedTask], *, method: Adjustment = "holm", margin: float | None = None, seed: int = 0
) -> list[MetricRobustness]:
    """Return a task under all its shifts, by every metric of its rows.

    Args:
        pairs: pairs of one clean task.
        method: method of adjusting p-values over the shifts.
        margin: loss within which a shift counts as held.
        seed: seed of the tests.
    """
    found = []
    for metric in pairs[0].clean.metrics:
        measured = [(pair, loss) for pair in pairs if (loss := measure(pair, metric.name, seed)) is not None]
        undefined = [pair.shift for pair, loss in measured if loss.loss is None]
        measured = [(pair, loss) for pair, loss in measured if loss.loss is not None]
        if not measured:
            continue
        losses = [loss for _, loss in measured]
        p_values = None if method == "maxt" else [1.0 if loss.p is None else loss.p for loss in losses]
        adjusted = adjust([loss.jackknives[0] for loss in losses], method, seed=seed, p_values=p_values)
        losses = [
            loss.model_copy(update={"p_adjusted": p, "verdict": verdict(loss.jackknives[0], p, margin)})
            for loss, p in zip(losses, adjusted, strict=True)
        ]
        groups = [pair.group for pair, _ in measured]
        by_group = {
            name: _mean_of_means([loss.jackknives for group, loss in zip(groups, losses, strict=True) if group == name])
            for name in dict.fromkeys(groups)
        }
        worst = largest(losses)
        found.append(
            MetricRobustness(
                metric=metric.name,
                higher_is_better=metric.higher_is_better,
                shifts=losses,
                by_operator={name: MeanLoss.of(*means) for name, means in by_group.items()},
                mean=MeanLoss.of(*_mean_of_means(list(by_group.values()))),
                worst=WorstShift(shift=worst.shift, loss=worst.jackknives[0].value),
                notes=[*_notes(pairs[0].clean, metric), *_notes_of_losses(metric, measured, undefined)],
            )
        )
    return found


def _mean(parts: Sequence[Jackknife]) -> Jackknife:
    return parts[0] if len(parts) == 1 else combine(lambda values: math.fsum(values) / len(values), parts)


def _mean_of_means(means: Sequence[tuple[Jackknife, Jackknife | None]]) -> tuple[Jackknife, Jackknife | None]:
    """Return the mean loss and the mean MMI; the MMI is ``None`` if a loss lacks it."""
    mmis = [mmi for _, mmi in means if mmi is not None]
    return _mean([loss for loss, _ in means]), _mean(mmis) if len(mmis) == len(means) else None


def _notes_of_losses(
    metric: RowMetric, measured: Sequence[tuple[ShiftedTask, Loss]], undefined: Sequence[str]
) -> list[str]:
    """Return how shifts differ: rows without a score are left out on both sides, so clean scores may differ, too."""
    notes = [f"not defined, and left out: {', '.join(undefined)}"] if undefined else []
    for pair, loss in measured:
        shifted = pair.shifted.metric(metric.name)
        if shifted is not None and shifted.note and shifted.note != metric.note:
            notes.append(f"{pair.shift}: {shifted.note}; the clean score of its rows is {loss.clean:.4g}")
    return notes


def _notes(task: ScoredTask, metric: RowMetric) -> list[str]:
    notes = [metric.note] if metric.note else []
    reported = task.reported.get(metric.name)
    if reported is not None:
        value = metric.value()
        if not math.isclose(value, reported[0], rel_tol=1e-3, abs_tol=1e-3):
            notes.append(
                f"the mean over rows is {value:.4g}, and the task reports {reported[0]:.4g}, which it aggregates in its own way"
            )
    return notes


def relative_to(metrics: Sequence[MetricRobustness], baseline: Sequence[MetricRobustness]) -> list[RelativeMetric]:
    """Return a model's losses relative to a baseline's, over the shifts that both have."""
    found = []
    by_name = {metric.metric: {loss.task: loss for loss in metric.shifts} for metric in baseline}
    for metric in metrics:
        losses = by_name.get(metric.metric, {})
        pairs = [(loss, losses[loss.task]) for loss in metric.shifts if loss.task in losses]
        if not pairs:
            continue
        shifts = [loss.shift for loss, _ in pairs]
        sums = [combine(math.fsum, [pair[side].jackknives[0] for pair in pairs]) for side in (0, 1)]
        reach = sums[1].interval(corrected=False)
        sure = sums[1].value > 0 and reach is not None and reach[0] > 0
        differences = {}
        for loss, base in pairs:
            change = difference(loss.jackknives[0], base.jackknives[0])
            name = loss.shift if shifts.count(loss.shift) == 1 else loss.task
            differences[name] = LossDifference(**plain("difference", change), p=change.p_value)
        ratio = combine(lambda e: e[0] / e[1], sums) if sure else None
        found.append(RelativeMetric(metric=metric.metric, shifts=differences, **plain("ratio", ratio)))
    return found


def consistency(
    pair: ShiftedTask, embed: Callable[[Sequence[str]], Mapping[str, np.ndarray]], same_from: float
) -> Consistency | None:
    """Return how many responses stay the same under a shift, or ``None`` if the rows are not the same questions.

    Args:
        pair: the tasks.
        embed: function from texts to the unit embedding of each.
        same_from: cosine from which two responses count as one in meaning.
    """
    if not pair.paired or pair.clean.response_kind != pair.shifted.response_kind:
        return None
    rows = [row for row in check_pair(pair) if row in pair.clean.responses and row in pair.shifted.responses]
    if not rows:
        return None
    texts = [(pair.clean.responses[row], pair.shifted.responses[row]) for row in rows]
    clusters = [pair.clean.clusters.get(row, pair.shifted.clusters.get(row, ("row", row))) for row in rows]
    values: dict[str, Any] = {"identical": [float(a == b) for a, b in texts]}
    if pair.clean.response_kind != "option":
        known = embed(sorted({text for both in texts for text in both}))
        values["cosine"] = np.array([1.0 if a == b else float(known[a] @ known[b]) for a, b in texts])
        values["same"] = values["cosine"] >= same_from
    fields: dict[str, Any] = {}
    for name in ("same", "identical", "cosine"):
        jackknife = ClusterTotals.of_values(values[name], clusters).jackknife() if name in values else None
        fields |= plain(name, jackknife)
    return Consistency(**fields)


def reported_metrics(pairs: Sequence[ShiftedTask]) -> list[ReportedMetric]:
    """Return the scores that tasks report by their own aggregation, which have no error."""
    found = []
    for pair in pairs:
        for metric, (clean, higher_is_better) in pair.clean.reported.items():
            if metric in pair.shifted.reported:
                shifted = pair.shifted.reported[metric][0]
                loss = clean - shifted if higher_is_better else shifted - clean
                mmi = loss / clean if clean > 0 else None
                found.append(
                    ReportedMetric(
                        task=pair.shifted.name, metric=metric, clean=clean, shifted=shifted, loss=loss, mmi=mmi
                    )
                )
    return found
