"""Results of ``lmms-eval-emi robustness``: what is in memory, in the file and in its schema.

A loss is the clean score less the shifted one, or the other way round where less is better, so that a positive loss is
worse. MMI, the multimodal impact score of Qiu et al. (2024), is the loss as a fraction of the clean score. Errors are for
new images, or for new rows where none share one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import PrivateAttr

from lmms_eval_emi.core.jackknife import Jackknife, combine
from lmms_eval_emi.util.files import Document, Interval, Plain


def plain(name: str, jackknife: Jackknife | None) -> dict[str, Any]:
    """Return a score with its error as the fields ``name``, ``name_stderr`` and ``name_ci95``."""
    if jackknife is None or not math.isfinite(jackknife.value):
        return {name: None, f"{name}_stderr": None, f"{name}_ci95": None}
    interval = jackknife.interval(corrected=False)
    return {
        name: jackknife.value,
        f"{name}_stderr": jackknife.stderr,
        f"{name}_ci95": interval,
    }


class Loss(Plain):
    """Loss of one metric under one shift.

    Attributes:
        task: name of the shifted task.
        shift: what was shifted, in words.
        operators: operators of the shift, by modality, without their levels.
        level: level of the shift, if it has one.
        design: whether the rows of both tasks are the same questions.
        rows: number of rows that were compared; of the shifted task for an unpaired design.
        images: number of images among them.
        clean, shifted: scores.
        loss: positive: worse.
        mmi: loss / clean score; ``None`` unless the clean score is above 0.
        right_to_wrong, wrong_to_right: fraction of rows whose response was right and is wrong under the shift, and the
            reverse; ``None`` if rows are not scored right or wrong, or are not the same questions.
        p: p-value of a paired test, or for an unpaired design, of an unpaired one.
        p_adjusted: p-value adjusted over the shifts of the task.
        verdict: ``lost``, ``gained``, ``held`` or ``undecided``.
    """

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

    _jackknives: tuple[Jackknife, Jackknife | None] = PrivateAttr()

    @classmethod
    def of(cls, clean: Jackknife, shifted: Jackknife, *, sign: float, **fields: Any) -> Loss:
        """Return the loss of two scores.

        Args:
            clean: score of the clean task, with its error.
            shifted: score of the shifted task.
            sign: 1 if higher scores are better, else -1.
            **fields: fields other than the scores, their loss and MMI.
        """
        loss = combine(lambda e: sign * (e[0] - e[1]), (clean, shifted))
        mmi = None
        if clean.value > 0:
            mmi = combine(lambda e: sign * (e[0] - e[1]) / e[0] if e[0] else math.nan, (clean, shifted))
        scores = plain("clean", clean) | plain("shifted", shifted) | plain("loss", loss) | plain("mmi", mmi)
        if mmi is not None:
            scores["mmi_ci95"] = _interval_of_ratio(clean, shifted, sign) or scores["mmi_ci95"]
        result = cls(**scores, images=loss.clusters, **fields)
        result._jackknives = (loss, mmi)
        return result

    @property
    def jackknives(self) -> tuple[Jackknife, Jackknife | None]:
        """Loss and MMI without each image; only of a loss that was computed, not of one that was read."""
        return self._jackknives


def _interval_of_ratio(clean: Jackknife, shifted: Jackknife, sign: float) -> tuple[float, float] | None:
    """Return the interval of MMI: 1 less that of shifted / clean, from the logarithm of the ratio.

    The ratio of two scores near 0 is skewed, so that an interval symmetric about MMI covers too little.
    """
    if min(clean.value, shifted.value) <= 0:
        return None
    ratio = combine(lambda e: math.log(e[1] / e[0]) if min(e) > 0 else math.nan, (clean, shifted))
    reach = ratio.interval(corrected=False)
    if reach is None or not all(map(math.isfinite, reach)):
        return None
    low, high = sorted(1 - math.exp(end) for end in reach)
    return (low, high) if sign > 0 else (-high, -low)


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


def largest(losses: Sequence[Loss]) -> Loss:
    """Return the largest of some losses that are defined."""
    return max(losses, key=lambda loss: -math.inf if loss.loss is None else loss.loss)


class WorstShift(Plain):
    """The shift that costs most."""

    shift: str
    loss: float


class MetricRobustness(Plain):
    """A task by one metric under all its shifts.

    Attributes:
        metric: name of the metric.
        higher_is_better: whether more is better.
        shifts: loss under each shift.
        by_operator: mean over the levels of each operator.
        mean: mean over the operators.
        worst: the shift that costs most.
        notes: what a reader should know.
    """

    metric: str
    higher_is_better: bool
    shifts: list[Loss]
    by_operator: dict[str, MeanLoss] = {}
    mean: MeanLoss
    worst: WorstShift
    notes: list[str] = []


class Consistency(Plain):
    """Fractions of responses that stay the same under a shift.

    Attributes:
        same: fraction of rows whose response has the same meaning; ``None`` for options, which have no text.
        identical: fraction of rows whose response is the same, letter by letter, or whose chosen option is.
        cosine: mean cosine of both responses' embeddings; ``None`` for options.
    """

    same: float | None
    same_stderr: float | None = None
    same_ci95: Interval | None = None
    identical: float | None
    identical_stderr: float | None = None
    identical_ci95: Interval | None = None
    cosine: float | None
    cosine_stderr: float | None = None
    cosine_ci95: Interval | None = None

    @property
    def stays(self) -> float | None:
        """Fraction of rows whose response stays the same: in meaning, or as an option."""
        return self.same if self.same is not None else self.identical


class ReportedMetric(Plain):
    """A score that a task reports by its own aggregation, which has no error."""

    task: str
    metric: str
    clean: float
    shifted: float
    loss: float
    mmi: float | None = None


class LossDifference(Plain):
    """Difference of the losses of two models under one shift."""

    difference: float | None
    difference_stderr: float | None = None
    difference_ci95: Interval | None = None
    p: float | None = None


class RelativeMetric(Plain):
    """Losses of a model relative to those of a baseline, as relative mCE compares errors of classifiers.

    Attributes:
        metric: name of the metric.
        shifts: loss of the model less that of the baseline, by shift, paired in images.
        ratio: sum of the model's losses over that of the baseline; ``None`` unless the baseline's is above 0 beyond
            its error, since a ratio to 0 says nothing.
    """

    metric: str
    shifts: dict[str, LossDifference]
    ratio: float | None = None
    ratio_stderr: float | None = None
    ratio_ci95: Interval | None = None


class Relative(Plain):
    """Losses of a model relative to those of a baseline model."""

    baseline: str
    metrics: list[RelativeMetric]


class TaskRobustness(Plain):
    """The robustness of one model in one task."""

    model: str
    task: str
    metrics: list[MetricRobustness]
    consistency: dict[str, Consistency] = {}
    reported: list[ReportedMetric] = []
    relative: Relative | None = None


class RobustnessDocument(Document):
    """Document that ``lmms-eval-emi robustness`` writes."""

    kind: Literal["robustness"] = "robustness"
    adjust: str
    text_encoder: str | None = None
    same_from: float | None = None
    tasks: list[TaskRobustness]
