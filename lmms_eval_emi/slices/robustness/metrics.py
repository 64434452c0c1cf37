"""Metrics of rows, read from what a harness logged for each row.

A metric is a function of sums over rows (:mod:`lmms_eval_emi.core.totals`). A logged value is a number, a truth value, or a
dictionary that contains one; some tasks log what was predicted and what is right, and leave the comparing to their
aggregation, so that is done here. What no row has by itself, such as CIDEr, is no metric of rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lmms_eval_emi.core.totals import ClusterTotals, Function, f1, mean, ratio

SCORE_KEYS = ("score", "is_correct", "true_false", "correct", "acc", "accuracy")
PREDICTION_KEYS = (("pred", "answer"), ("pred_answer", "gt_answer"), ("prediction", "ground_truth"))
# Whose "score" is something else: the answer as a number, in sets of four rows.
NO_SCORES = re.compile(r"naturalbench")
Parts = tuple[float, float]
HIGHEST = 1e100  # its square is still finite


@dataclass(frozen=True, eq=False)
class RowMetric:
    """A metric that every row has its part of.

    Attributes:
        name: as the task calls it.
        parts: parts of each row that has it, whose sums the metric is a function of.
        function: function of the sums.
        higher_is_better: whether more is better.
        binary: whether every row is right or wrong.
        note: what a reader should know.
    """

    name: str
    parts: Mapping[int, Parts] = field(repr=False)
    function: Function = mean
    higher_is_better: bool = True
    binary: bool = False
    note: str = ""

    def noting(self, note: str) -> RowMetric:
        """Return the same with one more note."""
        return replace(self, note="; ".join(filter(None, (self.note, note))))

    def sums(self, rows: Sequence[int], clusters: Mapping[int, Hashable]) -> ClusterTotals:
        """Return the sums of some rows by cluster."""
        return ClusterTotals.of(np.array([self.parts[row] for row in rows]), [clusters[row] for row in rows])

    def value(self) -> float:
        """Return the metric over all its rows."""
        return float(self.function(np.array(list(self.parts.values())).sum(axis=0)[None])[0])


def read_row_metrics(
    rows: Mapping[int, Mapping[str, Any]],
    higher_is_better: Mapping[str, bool] | None = None,
    score_key: str | None = None,
) -> list[RowMetric]:
    """Return the metrics of some rows.

    Args:
        rows: logged values by metric, by row.
        higher_is_better: direction by metric, for those that the task names; default: all of the rows', higher is better.
        score_key: key of a dictionary, which contains its number.

    Returns:
        Those that differ from each other, in the task's order. For yes-or-no questions, F1 and the rate of yes are among them.
    """
    named = list(higher_is_better or {})
    logged = list(dict.fromkeys(name for row in rows.values() for name in row))
    found: list[RowMetric] = []
    for name in [metric for metric in named if metric in logged] or logged:
        values = {row: metrics[name] for row, metrics in rows.items() if name in metrics}
        better = bool((higher_is_better or {}).get(name, True))
        row_metric = _metric(name, values, better, score_key)
        # Some tasks log one dictionary under the names of all metrics that they compute from it.
        if row_metric is not None and not any(
            metric.parts == row_metric.parts and metric.function is row_metric.function for metric in found
        ):
            found.append(row_metric)
        for metric in _yes_or_no(values):
            if not any(known.name == metric.name for known in found):
                found.append(metric)
    return found


def _metric(name: str, values: Mapping[int, Any], better: bool, score_key: str | None) -> RowMetric | None:
    pairs = {row: pair for row, value in values.items() if (pair := _judged(value)) is not None}
    if pairs:
        parts = {row: (100 * model, reference) for row, (reference, model) in pairs.items()}
        lost = len(values) - len(pairs)
        note = f"{lost} rows without a verdict are left out" if lost else ""
        return RowMetric(name, parts, ratio, better, note=note)
    if NO_SCORES.match(name):
        return None
    numbers = {row: number for row, value in values.items() if (number := _number(value, score_key)) is not None}
    if not numbers or len(numbers) < len(values) / 2:
        return None
    note = f"{len(values) - len(numbers)} rows without a score are left out" if len(numbers) < len(values) else ""
    binary = set(numbers.values()) <= {0.0, 1.0}
    return RowMetric(name, {row: (number, 1.0) for row, number in numbers.items()}, mean, better, binary, note)


def _number(value: Any, score_key: str | None) -> float | None:  # noqa: PLR0911
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) and abs(value) < HIGHEST else None
    if isinstance(value, str):  # how the harness writes NumPy's truth values and single-precision numbers
        if value in ("True", "False"):
            return float(value == "True")
        try:
            number = float(value)
        except ValueError:
            return None
        return number if math.isfinite(number) and abs(number) < HIGHEST else None
    if not isinstance(value, Mapping):
        return None
    for key in dict.fromkeys((*([score_key] if score_key else []), *SCORE_KEYS)):
        if key in value and not isinstance(value[key], Mapping):
            return _number(value[key], None)
    if value.get("question_type") == "multiple-choice" and "parsed_pred" in value:
        predicted = value["parsed_pred"]
        return float((predicted[0] if isinstance(predicted, list) and predicted else predicted) == value.get("answer"))
    if "parsed_pred" in value:
        return None  # an open question, which the task compares in ways of its own
    for predicted_key, right_key in PREDICTION_KEYS:
        if predicted_key in value and isinstance(value.get(right_key), str):
            return float(str(value[predicted_key]).strip().casefold() == value[right_key].strip().casefold())
    return None


def _judged(value: Any) -> tuple[float, float] | None:
    """Return a judge's scores of reference and model; negative scores mean a missing verdict."""
    scores = value.get("scores") if isinstance(value, Mapping) else None
    if isinstance(scores, list) and len(scores) == 2 and all(isinstance(score, int | float) for score in scores):
        return (float(scores[0]), float(scores[1])) if min(scores) >= 0 else None
    return None


def _yes_or_no(values: Mapping[int, Any]) -> list[RowMetric]:
    """Return F1 of the answer "yes" and the fraction of "yes" for questions with such references; nothing for other tasks.

    lmms-eval's ``pope_yes_ratio`` is computed from the references, so no shift can change it; the share here is that of the answers.
    """
    read: dict[int, tuple[str, str]] = {}
    for row, value in values.items():
        if isinstance(value, Mapping) and "prediction" in value and "ground_truth" in value:
            right = str(value["ground_truth"]).strip().casefold()
            if right not in ("yes", "no"):
                return []
            read[row] = (str(value["prediction"]).strip().casefold(), right)
    if not read:
        return []
    hits = {
        row: (
            float(predicted == right == "yes"),
            float(predicted == "yes" != right or (predicted == "no" and right == "yes")),
        )
        for row, (predicted, right) in read.items()
    }
    said_yes: dict[int, Parts] = {row: (float(predicted == "yes"), 1.0) for row, (predicted, _) in read.items()}
    neither = sum(predicted not in ("yes", "no") for predicted, _ in read.values())
    note = f"{neither} responses are neither yes nor no" if neither else ""
    rate = RowMetric("yes_rate", said_yes, mean, note=note)
    return [
        RowMetric("f1", hits, f1, note=note),
        rate.noting("a rate and no quality: more is not better, and lost or gained say in which direction it changed"),
    ]
