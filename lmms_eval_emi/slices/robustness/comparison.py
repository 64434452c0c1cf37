"""A task under its shifts: what each metric loses, whether that is more than chance, and which shift is worst.

A loss is the clean score less the shifted one, or the other way round where less is better, so that a positive loss is
worse. MMI, the multimodal impact score of Qiu et al. (2024), is the loss as a fraction of the clean score. Errors are for
new images, or for new rows where none share one; differences are paired in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from lmms_eval_emi.core.conventions import Adjustment
from lmms_eval_emi.core.jackknife import Jackknife, combine, difference
from lmms_eval_emi.core.multiple import adjust, verdict
from lmms_eval_emi.core.totals import ClusterTotals, exchange_test, relabel_test
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.slices.robustness.metrics import RowMetric
from lmms_eval_emi.util.documents import Document, Interval, Plain


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

    def metric(self, name: str) -> RowMetric | None:
        """Return a metric by name."""
        return next((one for one in self.metrics if one.name == name), None)


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


@dataclass(frozen=True)
class Loss:
    """Loss of one metric under one shift.

    Attributes:
        pair: the tasks.
        metric: name of the metric.
        rows: rows that were compared; of the shifted task where they are not the same.
        clean, shifted: scores.
        loss: positive: worse.
        mmi: loss / clean score; ``None`` unless the clean score is above 0.
        right_to_wrong, wrong_to_right: fraction of rows whose response was right and is wrong under the shift, and the
            reverse; ``None`` where rows are not scored right or wrong, or are not the same questions.
        p_value: p-value of a paired test, or for rows that are not the same, of an unpaired one.
        p_adjusted: over the shifts of the task.
        verdict: ``lost``, ``gained``, ``held`` or ``undecided``.
    """

    pair: ShiftedTask
    metric: str
    rows: int
    clean: Jackknife
    shifted: Jackknife
    loss: Jackknife
    mmi: Jackknife | None
    right_to_wrong: float | None
    wrong_to_right: float | None
    p_value: float
    p_adjusted: float | None = None
    verdict: str | None = None

    @property
    def mmi_ci95(self) -> Interval | None:
        """Interval of MMI: 1 less that of shifted / clean, from the logarithm of the ratio.

        The ratio of two scores near 0 is skewed, so that an interval symmetric about MMI covers too little.
        """
        if self.mmi is None or min(self.clean.value, self.shifted.value) <= 0:
            return plain("mmi", self.mmi)["mmi_ci95"]
        ratio = combine(lambda e: math.log(e[1] / e[0]) if min(e) > 0 else math.nan, (self.clean, self.shifted))
        reach = ratio.interval(corrected=False)
        if reach is None or not all(map(math.isfinite, reach)):
            return plain("mmi", self.mmi)["mmi_ci95"]
        losses = sorted(1 - math.exp(end) for end in reach)
        # Where less is better, the shifted score is above the clean one when something is lost.
        return losses if self.loss.value * (self.clean.value - self.shifted.value) >= 0 else [-losses[1], -losses[0]]

    def to_result(self) -> LossResult:
        """Return the loss as it is written."""
        return LossResult(
            task=self.pair.shifted.name,
            shift=self.pair.shift,
            operators=dict(self.pair.operators),
            level=self.pair.level,
            design="paired" if self.pair.paired else "unpaired",
            rows=self.rows,
            images=self.loss.clusters,
            **plain("clean", self.clean),
            **plain("shifted", self.shifted),
            **plain("loss", self.loss),
            **(plain("mmi", self.mmi) | {"mmi_ci95": self.mmi_ci95}),
            right_to_wrong=self.right_to_wrong,
            wrong_to_right=self.wrong_to_right,
            p=self.p_value,
            p_adjusted=self.p_adjusted,
            verdict=self.verdict,
        )


@dataclass(frozen=True)
class MetricRobustness:
    """A task by one metric under all its shifts.

    Attributes:
        metric: name of the metric.
        higher_is_better: whether more is better.
        losses: losses by shift.
        by_group: mean loss and mean MMI over the levels of an operator.
        mean: mean over the operators.
        worst: the shift that costs most.
        notes: what a reader should know.
    """

    metric: str
    higher_is_better: bool
    losses: Sequence[Loss]
    by_group: Mapping[str, tuple[Jackknife, Jackknife | None]]
    mean: tuple[Jackknife, Jackknife | None]
    worst: Loss
    notes: Sequence[str] = ()

    def to_result(self) -> MetricResult:
        """Return the metric as it is written."""
        return MetricResult(
            metric=self.metric,
            higher_is_better=self.higher_is_better,
            shifts=[own.to_result() for own in self.losses],
            by_operator={name: MeanLoss.of(*pair) for name, pair in self.by_group.items()},
            mean=MeanLoss.of(*self.mean),
            worst=WorstShift(shift=self.worst.pair.shift, loss=self.worst.loss.value),
            notes=list(self.notes),
        )


class LossResult(Plain):
    """Loss of one metric under one shift, as it is written; a positive loss is worse, ``mmi`` is the loss over the clean score."""

    task: str
    shift: str
    operators: dict[str, str] = {}
    level: str = ""
    design: Literal["paired", "unpaired"]
    rows: int
    images: int
    clean: float | None
    clean_stderr: float | None = None
    clean_ci95: Interval | None = None
    shifted: float | None
    shifted_stderr: float | None = None
    shifted_ci95: Interval | None = None
    loss: float | None
    loss_stderr: float | None = None
    loss_ci95: Interval | None = None
    mmi: float | None = None
    mmi_stderr: float | None = None
    mmi_ci95: Interval | None = None
    right_to_wrong: float | None = None
    wrong_to_right: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    verdict: str | None = None


class MeanLoss(Plain):
    """Mean loss over some shifts."""

    loss: float | None
    loss_stderr: float | None = None
    loss_ci95: Interval | None = None
    mmi: float | None = None
    mmi_stderr: float | None = None
    mmi_ci95: Interval | None = None

    @classmethod
    def of(cls, loss: Jackknife, mmi: Jackknife | None) -> MeanLoss:
        """Return the means of two jackknives."""
        return cls(**plain("loss", loss), **plain("mmi", mmi))


class WorstShift(Plain):
    """The shift that costs most."""

    shift: str
    loss: float


class MetricResult(Plain):
    """A task by one metric under all its shifts."""

    metric: str
    higher_is_better: bool
    shifts: list[LossResult]
    by_operator: dict[str, MeanLoss] = {}
    mean: MeanLoss
    worst: WorstShift
    notes: list[str] = []


class ConsistencyResult(Plain):
    """Fractions of responses that stay the same under a shift: in meaning, to the letter, and their mean cosine."""

    same: float | None
    same_stderr: float | None = None
    same_ci95: Interval | None = None
    identical: float | None
    identical_stderr: float | None = None
    identical_ci95: Interval | None = None
    cosine: float | None
    cosine_stderr: float | None = None
    cosine_ci95: Interval | None = None


class ReportedMetric(Plain):
    """A score that a task reports by its own aggregation, which has no error."""

    task: str
    metric: str
    clean: float
    shifted: float
    loss: float
    mmi: float | None = None


class RelativeLoss(Plain):
    """Difference of the losses of two models under one shift."""

    difference: float | None
    difference_stderr: float | None = None
    difference_ci95: Interval | None = None
    p: float | None = None


class RelativeMetric(Plain):
    """A model's losses beside those of a baseline, by one metric."""

    metric: str
    shifts: dict[str, RelativeLoss]
    ratio: float | None = None
    ratio_stderr: float | None = None
    ratio_ci95: Interval | None = None


class RelativeResult(Plain):
    """A model's losses beside those of a baseline."""

    baseline: str
    metrics: list[RelativeMetric]


class TaskResult(Plain):
    """The robustness of one model in one task."""

    model: str
    task: str
    metrics: list[MetricResult]
    consistency: dict[str, ConsistencyResult] = {}
    reported: list[ReportedMetric] = []
    relative: RelativeResult | None = None


class RobustnessDocument(Document):
    """Document that ``lmms-eval-emi robustness`` writes."""

    kind: Literal["robustness"] = "robustness"
    adjust: str
    text_encoder: str | None = None
    same_from: float | None = None
    tasks: list[TaskResult]


def plain(name: str, one: Jackknife | None) -> dict[str, Any]:
    """Return a score with its error as plain data."""
    if one is None or not math.isfinite(one.value):
        return {name: None, f"{name}_stderr": None, f"{name}_ci95": None}
    interval = one.interval(corrected=False)
    return {name: one.value, f"{name}_stderr": one.stderr, f"{name}_ci95": list(interval) if interval else None}


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
    """Return what a shift costs by a metric; ``None`` where one of the two lacks it.

    Raises:
        ResultsError: as :func:`check_pair`.
    """
    first, second = pair.clean.metric(metric), pair.shifted.metric(metric)
    if first is None or second is None:
        return None
    sign = 1.0 if first.higher_is_better else -1.0
    if pair.paired:
        rows = [row for row in check_pair(pair) if row in first.parts and row in second.parts]
        if not rows:
            return None
        clusters = {row: pair.clean.clusters.get(row, pair.shifted.clusters.get(row, ("row", row))) for row in rows}
        a, b = first.sums(rows, clusters), second.sums(rows, clusters)
        p_value = exchange_test(a, b, first.function, seed=seed)
    else:
        a, b = (
            one.sums(list(one.parts), {row: (label, task.clusters.get(row, row)) for row in one.parts})
            for label, one, task in (("clean", first, pair.clean), ("shifted", second, pair.shifted))
        )
        p_value = relabel_test(a, b, first.function, seed=seed)
        rows = []
    own, other = a.jackknife(first.function), b.jackknife(first.function)
    loss = combine(lambda e: sign * (e[0] - e[1]), (own, other))
    mmi = combine(lambda e: sign * (e[0] - e[1]) / e[0] if e[0] else math.nan, (own, other)) if own.value > 0 else None
    right_to_wrong = wrong_to_right = None
    if rows and first.binary and second.binary:
        was, now = (np.array([one.parts[row][0] for row in rows]) for one in (first, second))
        right_to_wrong, wrong_to_right = (
            float(((was == 1) & (now == 0)).mean()),
            float(((was == 0) & (now == 1)).mean()),
        )
        if sign < 0:
            right_to_wrong, wrong_to_right = wrong_to_right, right_to_wrong
    count = len(rows) or len(second.parts)
    return Loss(pair, metric, count, own, other, loss, mmi, right_to_wrong, wrong_to_right, p_value)


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
    clean = pairs[0].clean
    for metric in clean.metrics:
        losses = [one for pair in pairs if (one := measure(pair, metric.name, seed)) is not None]
        undefined = [one.pair.shift for one in losses if not math.isfinite(one.loss.value)]
        losses = [one for one in losses if math.isfinite(one.loss.value)]
        if not losses:
            continue
        p_values = None if method == "maxt" else [one.p_value for one in losses]
        adjusted = adjust([one.loss for one in losses], method, seed=seed, p_values=p_values)
        losses = [
            replace(one, p_adjusted=p, verdict=verdict(one.loss, p, margin))
            for one, p in zip(losses, adjusted, strict=True)
        ]
        groups: dict[str, list[Loss]] = {}
        for one in losses:
            groups.setdefault(one.pair.group, []).append(one)
        by_group = {name: (_mean([one.loss for one in own]), _mean_mmi(own)) for name, own in groups.items()}
        mmis = [mmi for _, mmi in by_group.values()]
        overall = (
            _mean([loss for loss, _ in by_group.values()]),
            _mean([one for one in mmis if one is not None]) if all(mmis) else None,
        )
        worst = max(losses, key=lambda one: one.loss.value)
        found.append(
            MetricRobustness(
                metric.name,
                metric.higher_is_better,
                losses,
                by_group,
                overall,
                worst,
                [*_notes(clean, metric), *_notes_of_losses(metric, losses, undefined)],
            )
        )
    return found


def _mean(parts: Sequence[Jackknife]) -> Jackknife:
    return parts[0] if len(parts) == 1 else combine(lambda values: math.fsum(values) / len(values), parts)


def _mean_mmi(losses: Sequence[Loss]) -> Jackknife | None:
    known = [one.mmi for one in losses if one.mmi is not None]
    return _mean(known) if len(known) == len(losses) else None


def _notes_of_losses(metric: RowMetric, losses: Sequence[Loss], undefined: Sequence[str]) -> list[str]:
    """Return what differs between shifts: rows without a score are left out on both sides, so clean scores may differ, too."""
    notes = [f"not defined, and left out: {', '.join(undefined)}"] if undefined else []
    for one in losses:
        shifted = one.pair.shifted.metric(metric.name)
        if shifted is not None and shifted.note and shifted.note != metric.note:
            notes.append(f"{one.pair.shift}: {shifted.note}; the clean score of its rows is {one.clean.value:.4g}")
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


@dataclass(frozen=True)
class Relative:
    """Losses of a model relative to those of a baseline model, as relative mCE compares errors of classifiers.

    Attributes:
        metric: name of the metric.
        differences: loss of the model less that of the baseline, by shift, paired in images.
        ratio: sum of the model's losses over that of the baseline; ``None`` where the baseline's is not above 0 beyond
            its error, for then the ratio says nothing.
    """

    metric: str
    differences: Mapping[str, Jackknife]
    ratio: Jackknife | None

    def to_result(self) -> RelativeMetric:
        """Return the comparison as it is written."""
        shifts = {
            name: RelativeLoss(**plain("difference", own), p=own.p_value) for name, own in self.differences.items()
        }
        return RelativeMetric(metric=self.metric, shifts=shifts, **plain("ratio", self.ratio))


def relative_to(own: Sequence[MetricRobustness], baseline: Sequence[MetricRobustness]) -> list[Relative]:
    """Return a model's losses beside those of a baseline, over the shifts that both have."""
    found = []
    for one in own:
        other = next((known for known in baseline if known.metric == one.metric), None)
        if other is None:
            continue
        losses = {loss.pair.shifted.name: loss for loss in other.losses}
        pairs = [(loss, losses[loss.pair.shifted.name]) for loss in one.losses if loss.pair.shifted.name in losses]
        if not pairs:
            continue
        shifts = [loss.pair.shift for loss, _ in pairs]
        sums = [_total([side[place].loss for side in pairs]) for place in (0, 1)]
        reach = sums[1].interval(corrected=False)
        sure = sums[1].value > 0 and reach is not None and reach[0] > 0
        found.append(
            Relative(
                one.metric,
                {
                    loss.pair.shift if shifts.count(loss.pair.shift) == 1 else loss.pair.shifted.name: difference(
                        loss.loss, base.loss
                    )
                    for loss, base in pairs
                },
                combine(lambda e: e[0] / e[1], sums) if sure else None,
            )
        )
    return found


def _total(parts: Sequence[Jackknife]) -> Jackknife:
    return combine(math.fsum, parts)


@dataclass(frozen=True)
class Consistency:
    """Fractions of responses that stay the same under a shift.

    Attributes:
        same: fraction of rows whose response has the same meaning; ``None`` of options, which have no text.
        identical: fraction of rows whose response is the same, letter by letter, or whose chosen option is.
        cosine: mean cosine of both responses' embeddings; ``None`` of options.
    """

    same: Jackknife | None
    identical: Jackknife
    cosine: Jackknife | None


def consistency(
    pair: ShiftedTask, embed: Callable[[Sequence[str]], Mapping[str, np.ndarray]], same_from: float
) -> Consistency | None:
    """Return how many responses stay the same under a shift; ``None`` where the rows are not the same.

    Args:
        pair: the tasks.
        embed: gives the unit embedding of every text.
        same_from: cosine from which two responses count as one in meaning.
    """
    if not pair.paired or pair.clean.response_kind != pair.shifted.response_kind:
        return None
    rows = [row for row in check_pair(pair) if row in pair.clean.responses and row in pair.shifted.responses]
    if not rows:
        return None
    texts = [(pair.clean.responses[row], pair.shifted.responses[row]) for row in rows]
    clusters = [pair.clean.clusters.get(row, pair.shifted.clusters.get(row, ("row", row))) for row in rows]
    identical = ClusterTotals.of_values([float(a == b) for a, b in texts], clusters).jackknife()
    if pair.clean.response_kind == "option":
        return Consistency(None, identical, None)
    known = embed(sorted({text for both in texts for text in both}))
    cosines = np.array([1.0 if a == b else float(known[a] @ known[b]) for a, b in texts])
    return Consistency(
        ClusterTotals.of_values(cosines >= same_from, clusters).jackknife(),
        identical,
        ClusterTotals.of_values(cosines, clusters).jackknife(),
    )
